"""GBNF, llama.cpp's grammar format, as a grammar of llguidance (Lark).

Every terminal becomes one character: llguidance reads terminals greedily, GBNF knows no such thing. Source of the
format: llama.cpp, grammars/README.md and src/llama-grammar.cpp.
"""

from __future__ import annotations

import re

from zephyra_fusion.depth import check_depth, deepest
from zephyra_fusion.errors import ZephyraError

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[A-Za-z0-9-]+")
_RANGE = re.compile(r"\{[ \t\r\n]*(\d+)[ \t\r\n]*(?:(,)[ \t\r\n]*(\d+)?[ \t\r\n]*)?\}")
_HEX = {"x": 2, "u": 4, "U": 8}
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n"}
MOST_REPETITIONS = 2000  # llama.cpp's own limit
MOST_DEPTH = 100


def lark_from_gbnf(text: str) -> str:
    """The grammar in llguidance's Lark; `start` is GBNF's `root`.

    ZephyraError: bad syntax (with its line), a rule that is missing, a root whose answers could never end.
    """
    return _Reader(text).lark()


class _Reader:
    """Recursive descent over the text. Rules are numbered: GBNF's names are not Lark's."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0
        self.rule = ""  # the one that is being read
        self.numbers: dict[str, int] = {}
        self.bodies: dict[str, str] = {}
        self.levels: dict[str, int] = {}  # of each rule: its own, and its parentheses in each other
        self.uses: dict[str, set[str]] = {}
        self.needs: dict[str, list[set[str]]] = {}  # for each rule its alternatives, as the rules that each needs

    def lark(self) -> str:
        self._skip(lines=True)
        while self.at < len(self.text):
            self._rule()
            self._skip(lines=True)
        if "root" not in self.bodies:
            raise ZephyraError("the grammar has no rule 'root'", hint='as in: root ::= "yes" | "no"')
        if missing := sorted(set(self.numbers) - set(self.bodies)):
            raise ZephyraError(f"the grammar uses rules that it does not have: {', '.join(missing[:6])}")
        check_depth(deepest(self.levels, self.uses), "grammar")
        self._check_end()
        lines = [f"r{self._number(name)}: {body}" for name, body in self.bodies.items()]
        return "\n".join([f"start: r{self._number('root')}", *lines])

    def _check_end(self) -> None:
        """A rule ends if one of its alternatives needs only rules that end. Each waits for those it needs."""
        users: dict[str, list[tuple[str, set[str]]]] = {name: [] for name in self.needs}
        ending, found = set[str](), []
        for name, alternatives in self.needs.items():
            for left in map(set, alternatives):
                for needed in left:
                    users[needed].append((name, left))
                if not left:
                    found.append(name)
        while found:
            if (name := found.pop()) not in ending:
                ending.add(name)
                for user, left in users[name]:
                    left.remove(name)
                    if not left:
                        found.append(user)
        if "root" not in ending:
            endless = ", ".join(sorted(name for name in set(self.needs) - ending if _NAME.match(name))[:6])
            raise ZephyraError(f"no text can ever satisfy the grammar: these rules have no end: {endless}")

    def _number(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))

    def _rule(self) -> None:
        name = self._name()
        self._skip()
        self._expect("::=")
        self._skip(lines=True)
        self._number(name)
        if name in self.bodies:
            raise self._error(f"rule '{name}' is there twice")
        self.rule, self.levels[name], self.uses[name] = name, 1, set()
        self.bodies[name], self.needs[name] = self._alternatives(nested=False)
        if self.at < len(self.text) and self.text[self.at] not in "\r\n":
            raise self._error("expected the end of the line")

    def _alternatives(self, *, nested: bool) -> tuple[str, list[set[str]]]:
        bodies, needs = [], []
        while True:
            body, needed = self._sequence(nested=nested)
            bodies.append(body)
            needs.append(needed)
            if not self._take("|"):
                return " | ".join(bodies), needs
            self._skip(lines=True)

    def _sequence(self, *, nested: bool) -> tuple[str, set[str]]:
        items, needed = [], set[str]()
        while (found := self._item()) is not None:
            self._skip(lines=nested)
            least, repeat = self._repetition()
            self._skip(lines=nested)
            items.append(found[0] + repeat)
            if least:
                needed |= found[1]
        return " ".join(items) or '""', needed

    def _item(self) -> tuple[str, set[str]] | None:
        rest = self.text[self.at : self.at + 1]
        if rest == '"':
            return self._literal(), set()
        if rest == "[":
            return self._characters(), set()
        if rest == ".":
            self.at += 1
            return "/(?s:.)/", set()
        if rest == "(":
            return self._group()
        if rest == "<" or rest == "!":
            raise self._error("tokens by number or name (<…>) are not supported")
        if _NAME.match(self.text, self.at):
            name = self._name()
            self.uses[self.rule].add(name)
            return f"r{self._number(name)}", {name}
        return None

    def _group(self) -> tuple[str, set[str]]:
        self.at += 1
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise self._error(f"more than {MOST_DEPTH} parentheses in each other")
        self.levels[self.rule] = max(self.levels[self.rule], 1 + self.depth)
        self._skip(lines=True)
        body, needs = self._alternatives(nested=True)
        self._expect(")")
        self.depth -= 1
        # A group needs what its easiest alternative needs; with several rules among them, they become one of their own.
        if len(needs) == 1:
            return f"({body})", needs[0]
        if any(not needed for needed in needs):
            return f"({body})", set()
        name = f"({len(self.bodies)}"  # no name that a grammar can have
        self.bodies[name], self.needs[name] = body, needs
        return f"r{self._number(name)}", {name}

    def _repetition(self) -> tuple[int, str]:
        sign = self.text[self.at : self.at + 1]
        if sign and sign in "*+?":
            self.at += 1
            return (1 if sign == "+" else 0), sign
        if sign != "{":
            return 1, ""
        match = _RANGE.match(self.text, self.at)
        if match is None:
            raise self._error("expected a repetition such as {2}, {2,} or {2,4}")
        least, most = int(match[1]), int(match[3]) if match[3] else None if match[2] else int(match[1])
        if max(least, most or 0) > MOST_REPETITIONS or (most is not None and most < least):
            raise self._error(f"a repetition from {least} to {most}, the limit is {MOST_REPETITIONS}")
        self.at = match.end()
        return least, f"{{{least},{'' if most is None else most}}}"

    def _literal(self) -> str:
        self.at += 1
        found = []
        while not self._take('"'):
            found.append(rf"/\x{{{self._character():x}}}/")
        return f"({' '.join(found)})" if found else '""'

    def _characters(self) -> str:
        self.at += 1
        inside = "^" if self._take("^") else ""
        while not self._take("]"):
            first = last = self._character()
            if self.text[self.at : self.at + 1] == "-" and self.text[self.at + 1 : self.at + 2] != "]":
                self.at += 1
                last = self._character()
            if last < first:
                raise self._error(f"the range from {chr(first)!r} to {chr(last)!r} is empty")
            inside += rf"\x{{{first:x}}}-\x{{{last:x}}}"
        if not inside.strip("^"):
            raise self._error("a character class without characters")
        return f"/[{inside}]/"

    def _character(self) -> int:
        """The code point of a character or an escape."""
        if self.at >= len(self.text):
            raise self._error("the grammar ends inside a text or a character class")
        sign = self.text[self.at]
        self.at += 1
        if sign != "\\":
            return ord(sign)
        sign = self.text[self.at : self.at + 1]
        self.at += 1
        if size := _HEX.get(sign):
            digits = self.text[self.at : self.at + size]
            self.at += size
            if not re.fullmatch(rf"[0-9A-Fa-f]{{{size}}}", digits) or int(digits, 16) > 0x10FFFF:
                raise self._error(f"\\{sign} wants {size} hexadecimal digits of a character")
            return int(digits, 16)
        if sign and sign in '"[]\\-^':
            return ord(sign)
        if sign in _ESCAPES:
            return ord(_ESCAPES[sign])
        raise self._error(f"unknown escape \\{sign}")

    def _name(self) -> str:
        match = _NAME.match(self.text, self.at)
        if match is None:
            raise self._error("expected a rule, as in: root ::= item+")
        self.at = match.end()
        return match[0]

    def _skip(self, *, lines: bool = False) -> None:
        match = (_SPACE_AND_LINES if lines else _SPACE).match(self.text, self.at)
        assert match is not None  # both match nothing, too
        self.at = match.end()

    def _take(self, sign: str) -> bool:
        if not self.text.startswith(sign, self.at):
            return False
        self.at += len(sign)
        return True

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise self._error(f"expected '{sign}'")

    def _error(self, reason: str) -> ZephyraError:
        line = self.text.count("\n", 0, self.at) + 1
        near = self.text[max(0, self.at - 12) : self.at + 12]
        return ZephyraError(f"the grammar, line {line}, near {near!r}: {reason}")
