"""SentencePiece BPE vocabularies (Llama 2, Mistral, TinyLlama): `tokenizer.model` and `tokenizer.json` to GGUF.

llama.cpp merges by the score of the outcome, `tokenizers` by the rank of the pair: the same, where scores are known.
Sources: sentencepiece_model.proto; llama.cpp's conversion/base.py (`_create_vocab_sentencepiece`).
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zephyra_converters.checkpoint import TokenizerFiles
from zephyra_converters.token_template import template
from zephyra_fusion.errors import ZephyraError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # ggml's types are SentencePiece's
SPACE = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_ADDED_SCORE, _PAD_SCORE = -1000.0, -10000.0
# transformers' LlamaTokenizer, where tokenizer_config.json is silent
LLAMA_DEFAULTS = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": False}
_BPE = 2  # TrainerSpec.ModelType


@dataclass(frozen=True)
class Pieces:
    """Tokens, scores and types in id order."""

    tokens: list[str]
    scores: list[float]
    types: list[int]
    space_prefix: bool = True


def is_sentencepiece(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json is a SentencePiece BPE."""
    return bool((tokenizer.get("model") or {}).get("byte_fallback"))


def parse_model(data: bytes) -> Pieces:
    """The vocabulary of a `tokenizer.model`. ZephyraError: damaged, or a Unigram model."""
    tokens, scores, types, prefix, kind = [], [], [], True, 1
    try:
        for field, value in _fields(data):
            if field == 1:
                piece = dict(_fields(value))
                tokens.append(piece[1].decode())
                scores.append(struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0)
                types.append(piece.get(3, NORMAL))
            elif field == 2:
                kind = dict(_fields(value)).get(3, 1)
            elif field == 3:
                prefix = bool(dict(_fields(value)).get(3, 1))
    except (ValueError, KeyError, IndexError, struct.error, AttributeError, TypeError):
        raise ZephyraError("tokenizer.model is no SentencePiece model, or it is damaged") from None
    if kind != _BPE:
        raise ZephyraError("tokenizer.model is a SentencePiece Unigram model, only its BPE is supported")
    return Pieces(tokens, scores, types, prefix)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Fields of a protobuf message: numbers for varints, bytes for everything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        length = {1: 8, 5: 4}.get(key & 7, -1)
        if key & 7 == 2:
            length, at = _varint(data, at)
        if length < 0 or at + length > len(data):
            raise ValueError
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError


def pieces_of(tokenizer: Mapping[str, Any], config: Mapping[str, Any], model: bytes | None, size: int) -> Pieces:
    """The vocabulary of a checkpoint, filled up to the embedding table's `size`.

    `tokenizer` and `config` are tokenizer.json and tokenizer_config.json, `model` is tokenizer.model, whose scores
    are taken where it is there; without it they are made from the ranks of the merges.
    """
    space_prefix = _space_prefix(tokenizer)
    if model is not None:
        pieces = parse_model(model)
        added = {int(number): entry for number, entry in (config.get("added_tokens_decoder") or {}).items()}
    else:
        pieces = _from_merges(tokenizer["model"])
        added = {entry["id"]: entry for entry in tokenizer.get("added_tokens") or []}
    tokens, scores, types = list(pieces.tokens), list(pieces.scores), list(pieces.types)
    most = max([len(tokens) - 1, *added])
    if most >= size:
        raise ZephyraError(
            f"the tokenizer has ids up to {most}, the embedding table has {size} rows",
            hint="the tokenizer and the checkpoint do not belong together, or the vocabulary grew",
        )
    for number in range(len(tokens), size):
        tokens.append(f"[PAD{number}]")
        scores.append(_PAD_SCORE)
        types.append(UNUSED)
    for number, entry in added.items():
        if types[number] == UNKNOWN and model is None:
            continue
        control = bool(entry.get("special"))
        tokens[number] = entry["content"] if control else entry["content"].replace(SPACE, " ")
        scores[number], types[number] = _ADDED_SCORE, CONTROL if control else USER_DEFINED
    if len(set(tokens)) != len(tokens):
        twice = sorted(token for token, count in Counter(tokens).items() if count > 1)
        raise ZephyraError(f"the tokenizer gives two ids to {', '.join(map(repr, twice[:6]))}")
    return Pieces(tokens, scores, types, space_prefix)


def _from_merges(model: Mapping[str, Any]) -> Pieces:
    """Scores that merge in the order of the ranks: what a merge makes gets minus its rank, single letters the least."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model.get("merges") or ()):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    by_id = {number: token for token, number in model["vocab"].items()}
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(max(by_id, default=-1) + 1)]
    types = [BYTE if _BYTE.fullmatch(token) else NORMAL for token in tokens]
    if model.get("unk_token") in model["vocab"]:
        types[model["vocab"][model["unk_token"]]] = UNKNOWN
    last = float(-len(ranks) - 1)
    return Pieces(tokens, [float(-ranks[token]) if token in ranks else last for token in tokens], types)


def _space_prefix(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a space goes before the text. ZephyraError: the text is changed in a way that llama.cpp does not have."""
    steps: list[Mapping[str, Any]] = []
    for side in ("normalizer", "pre_tokenizer"):
        value = tokenizer.get(side) or {}
        steps += value.get("normalizers") or value.get("pretokenizers") or ([value] if value else [])
    prefix = False
    for step in steps:
        kind = step.get("type")
        if kind == "Prepend" and step.get("prepend") == SPACE:
            prefix = True
        elif kind == "Metaspace" and step.get("replacement") == SPACE and not step.get("split", True):
            prefix = prefix or step.get("prepend_scheme", "always") != "never"
        elif kind != "Replace" or step.get("pattern") != {"String": " "} or step.get("content") != SPACE:
            raise ZephyraError(
                f"the tokenizer's step {str(step)[:200]} has no counterpart in llama.cpp's SentencePiece"
            )
    return prefix


def prefix_after_controls(tokenizer: Mapping[str, Any]) -> bool:
    """Whether text after a control token gets its space too, which llama.cpp always does."""
    step = tokenizer.get("pre_tokenizer") or {}
    return not (step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first")


def tokenizer_json(pieces: Pieces, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A tokenizer.json that tokenizes as these pieces do, in the form that transformers gives Llama 2's.

    `config`: tokenizer_config.json's, which says what goes before and after a text.
    """
    vocab = {token: number for number, token in enumerate(pieces.tokens) if pieces.types[number] != UNUSED}
    unknown = next((token for token, kind in zip(pieces.tokens, pieces.types, strict=True) if kind == UNKNOWN), None)
    files = TokenizerFiles(tokenizer={}, config=config or {})
    before, after = (
        {token: vocab[token]} if files.config.get(f"add_{key}") and (token := files.special_token(key)) in vocab else {}
        for key in ("bos_token", "eos_token")
    )
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = [n for n, kind in enumerate(pieces.types) if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
    normalizers: list[dict[str, Any]] = [{"type": "Prepend", "prepend": SPACE}] if pieces.space_prefix else []
    normalizers.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if pieces.space_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": n, "content": pieces.tokens[n], **plain, "special": pieces.types[n] != USER_DEFINED} for n in special
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": template(before, after),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": _merges(pieces, vocab),
        },
    }


def _merges(pieces: Pieces, vocab: Mapping[str, int]) -> list[list[str]]:
    """Every pair that makes a piece, the piece of the highest score first (transformers' `generate_merges`)."""
    found: list[tuple[float, int, int, str, str]] = []
    for token, score, kind in zip(pieces.tokens, pieces.scores, pieces.types, strict=True):
        if kind == NORMAL:
            for at in range(1, len(token)):
                left, right = token[:at], token[at:]
                if left in vocab and right in vocab:
                    found.append((-score, vocab[left], vocab[right], left, right))
    return [[left, right] for _, _, _, left, right in sorted(found, key=_order)]


def _order(merge: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(merge[:3])
