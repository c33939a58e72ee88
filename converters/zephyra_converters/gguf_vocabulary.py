"""The vocabulary inside a GGUF file: what of it llama.cpp would abort on, or could not take as it is."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from zephyra_converters.gguf_header import GGUFHeader

NO_VOCABULARY = ("none", "no_vocab")
_INT32, _FLOAT32, _STRING = 5, 6, 8  # GGUF value types
_BYTE = 6  # token type
_BYTE_TOKEN = re.compile(rb"<0x[0-9A-Fa-f]{2}>")
_LONGEST = 1 << 16  # bytes of a token or a merge


def vocabulary_faults(header: GGUFHeader, *, needed: bool) -> Iterator[str]:
    """A line for each thing that is wrong. A classifier need not have a vocabulary (`needed` False)."""
    metadata = header.metadata
    model = metadata.get("tokenizer.ggml.model")
    if model in NO_VOCABULARY and not needed:
        return
    if model not in ("gpt2", "llama"):
        yield f"tokenizer.ggml.model is '{str(model)[:40]}', must be gpt2 or llama"
        return
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or header.item_types.get("tokenizer.ggml.tokens") != _STRING:
        yield "tokenizer.ggml.tokens is missing or is no list of strings"
        return
    yield from _tokens(tokens)
    kinds = _column(header, "token_type", _INT32, len(tokens), needed=True)
    scores = _column(header, "scores", _FLOAT32, len(tokens), needed=model == "llama")
    for found in kinds, scores:
        if isinstance(found, str):
            yield found
    if isinstance(kinds, list):
        nameless = [n for n, kind in enumerate(kinds) if kind == _BYTE and not _BYTE_TOKEN.fullmatch(tokens[n])]
        if nameless:  # its name is taken apart without a look at its length
            yield f"token {nameless[0]} is a byte token and is not spelled <0xNN>"
    if isinstance(scores, list) and not all(map(math.isfinite, scores)):
        yield "tokenizer.ggml.scores has entries that are no numbers"
    if model == "gpt2":
        yield from _merges(header)
    if model == "llama" and (missing := {b"<0x%02X>" % byte for byte in range(256)}.difference(tokens)):
        yield f"the vocabulary lacks {len(missing)} of the 256 byte tokens"  # tokenizing such a byte aborts
    for key, value in metadata.items():
        special = key.startswith("tokenizer.ggml.") and key.endswith("_token_id")
        if special and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(tokens)):
            yield f"{key} is {str(value)[:40]}, the vocabulary has {len(tokens)} tokens"


def _tokens(tokens: list[bytes]) -> Iterator[str]:
    """llama.cpp reads a token up to its first zero byte; two that are the same then end the process."""
    names = [token.partition(b"\0")[0] for token in tokens] if b"\0" in b"".join(tokens) else tokens
    if duplicates := len(names) - len(set(names)):
        yield f"the vocabulary of {len(tokens)} tokens repeats {duplicates} of them"
    if b"" in names:
        yield f"token {names.index(b'')} of the vocabulary is empty"
    if max(map(len, tokens)) > _LONGEST:
        yield f"a token has more than {_LONGEST} bytes"


def _column(header: GGUFHeader, name: str, kind: int, count: int, *, needed: bool) -> list[Any] | str | None:
    """One value a token, or what is wrong with them."""
    key = f"tokenizer.ggml.{name}"
    values = header.metadata.get(key)
    if values is None and not needed:
        return None
    if not isinstance(values, list) or len(values) != count:
        return f"{key} has {len(values) if isinstance(values, list) else 'no'} entries for {count} tokens"
    if header.item_types[key] != kind:
        return f"{key} is an array of the type {header.item_types[key]}, must be {kind}"
    return values


def _merges(header: GGUFHeader) -> Iterator[str]:
    key = "tokenizer.ggml.merges"
    merges = header.metadata.get(key)
    if not isinstance(merges, list) or (merges and header.item_types[key] != _STRING):
        yield f"{key} is missing or is no list of strings"
        return
    for number, merge in enumerate(merges):
        if not 0 < merge.find(b" ", 1) < len(merge) - 1 or len(merge) > _LONGEST:
            yield f"merge {number} ({merge[:40]!r}) is not two texts with a space between them"
            return
