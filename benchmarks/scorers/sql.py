"""SQL: the same statement but for case, white space, quotes and the last semicolon?"""

from __future__ import annotations

import re

_TOKEN = re.compile(
    r"""
    '(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*` | \[[^\]]*\]   # quoted
    | \d+(?:\.\d+)? | \w+                                    # numbers, words
    | <> | != | <= | >= | == | \|\| | \S                     # signs
    """,
    re.VERBOSE,
)
_SAME = {"<>": "!=", "==": "="}


def normalized(statement: str) -> list[str]:
    """Tokens: words in lower case, values as they are whatever their quotes ('a''b' and "a'b" -> 'a'b), `<>` as `!=`.

    Values keep their case, and '5' is not 5: both change what a query finds.
    """
    tokens = [_plain(match[0]) for match in _TOKEN.finditer(statement)]
    while tokens and tokens[-1] == ";":
        tokens.pop()
    return tokens


def _plain(token: str) -> str:
    first = token[0]
    if first in "'\"" and len(token) > 1:
        return "'" + token[1:-1].replace(first * 2, first)
    if first in "`[" and len(token) > 1:
        return token[1:-1].lower()
    return _SAME.get(token, token.lower())


def same_statement(answer: str, reference: str) -> bool:
    return normalized(answer) == normalized(reference)
