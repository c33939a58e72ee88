"""SentencePiece vocabularies: tokenizer.model, tokenizer.json and GGUF give the same ids; damaged ones are refused."""

from __future__ import annotations

import json
import random
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from zephyra_converters.checkpoint import Checkpoint, LazyTensor, TokenizerFiles
from zephyra_converters.gguf_header import read_header
from zephyra_converters.gguf_read import read_gguf
from zephyra_converters.gguf_write import plan_gguf, write_gguf
from zephyra_converters.hf import expected_shapes
from zephyra_converters.loaded import LoadedGGUF
from zephyra_converters.sentencepiece_vocab import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, Pieces, parse_model
from zephyra_converters.sentencepiece_vocab import tokenizer_json as json_of
from zephyra_converters.tokenizer_parity import check_tokenizer
from zephyra_fusion.config import FusionConfig
from zephyra_fusion.errors import ZephyraError

TEXT = "the heart of the matter is that others weren't there; the old men told them, naïve café, Straße 2024 - 日本 "


def small_pieces(space_prefix: bool = True) -> Pieces:
    """<unk>, <s>, </s>, the 256 bytes, and merges learnt from a few words by counting pairs."""
    words = [list(SPACE + word) for word in TEXT.split() * 3]
    letters = sorted({letter for word in words for letter in word})
    merges: list[str] = []
    while len(merges) < 60:
        pairs = Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(left + right)
        for word in words:
            at = 0
            while at + 1 < len(word):
                if (word[at], word[at + 1]) == (left, right):
                    word[at : at + 2] = [left + right]
                at += 1
    merges = list(dict.fromkeys(merges))
    head = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    scores = [0.0] * len(head) + [float(-n) for n in range(len(merges))] + [float(-len(merges) - 1)] * len(letters)
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(merges) + len(letters))
    return Pieces([*head, *merges, *letters], scores, types, space_prefix)


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number: int, kind: int, value: bytes) -> bytes:
    return varint(number << 3 | kind) + (varint(len(value)) if kind == 2 else b"") + value


def model_bytes(pieces: Pieces, kind: int = 2) -> bytes:
    """sentencepiece_model.proto's ModelProto."""
    data = b""
    for token, score, of in zip(pieces.tokens, pieces.scores, pieces.types, strict=True):
        piece = field(1, 2, token.encode()) + field(2, 5, struct.pack("<f", score))
        data += field(1, 2, piece + (field(3, 0, varint(of)) if of != NORMAL else b""))
    return data + field(2, 2, field(3, 0, varint(kind))) + field(3, 2, field(3, 0, varint(pieces.space_prefix)))


def checkpoint(files: TokenizerFiles, rows: int) -> Checkpoint:
    config = FusionConfig(
        vocab_size=rows, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    tensors = {n: LazyTensor.holding(n, np.ones(shape, "f4")) for n, shape in expected_shapes(config).items()}
    return Checkpoint(config=config, tensors=tensors, path=Path("here"), name="spm", tokenizer=files)


@pytest.mark.parametrize("space_prefix", [True, False])
@pytest.mark.parametrize("with_model", [True, False])
def test_ids_are_the_same_in_all_forms(space_prefix: bool, with_model: bool, tmp_path: Path) -> None:
    pieces = small_pieces(space_prefix)
    files = TokenizerFiles(
        tokenizer=json_of(pieces),
        config={"eos_token": "</s>", "bos_token": "<s>"},
        sentencepiece=model_bytes(pieces) if with_model else None,
    )
    source = checkpoint(files, len(pieces.tokens) + 7)
    write_gguf(plan_gguf(source), tmp_path / "a.gguf", "F32")
    with LoadedGGUF(tmp_path / "a.gguf", 32) as loaded:
        check_tokenizer(files.tokenizer, loaded.tokenize)
        back = read_gguf(tmp_path / "a.gguf").tokenizer
        assert back is not None
        check_tokenizer(back.tokenizer, loaded.tokenize)


def test_a_model_file_alone_is_enough(tmp_path: Path) -> None:
    from zephyra_converters.hf import read_tokenizer_files

    pieces = small_pieces()
    (tmp_path / "tokenizer.model").write_bytes(model_bytes(pieces))
    files = read_tokenizer_files(tmp_path)
    assert files is not None and parse_model(files.sentencepiece or b"") == pieces
    ids = Tokenizer.from_str(json.dumps(files.tokenizer)).encode("the heart", add_special_tokens=False).tokens
    assert ids[0].startswith(SPACE)


@pytest.mark.parametrize(
    ("config", "added"),
    [
        (None, (True, False)),  # llama.cpp's own default for SentencePiece, and LlamaTokenizer's
        ({"bos_token": "<s>", "eos_token": "</s>"}, (True, False)),
        ({"bos_token": {"content": "<s>"}, "add_bos_token": True, "add_eos_token": True}, (True, True)),
        ({"add_bos_token": False, "add_eos_token": False}, (False, False)),
    ],
)
def test_a_model_file_alone_adds_what_its_config_says(
    config: dict[str, Any] | None, added: tuple[bool, bool], tmp_path: Path
) -> None:
    from zephyra_converters.hf import read_tokenizer_files

    pieces = small_pieces()
    (tmp_path / "tokenizer.model").write_bytes(model_bytes(pieces))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    files = read_tokenizer_files(tmp_path)
    assert files is not None
    write_gguf(plan_gguf(checkpoint(files, len(pieces.tokens))), tmp_path / "a.gguf", "F32")
    ids = Tokenizer.from_str(json.dumps(files.tokenizer)).encode("the heart").ids
    with LoadedGGUF(tmp_path / "a.gguf", 32) as loaded:
        assert loaded.tokenize("the heart", False) == ids[added[0] : len(ids) - added[1]]
    assert (ids[0] == 1, ids[-1] == 2) == added
    metadata = read_header(tmp_path / "a.gguf").metadata
    assert (metadata["tokenizer.ggml.add_bos_token"], metadata["tokenizer.ggml.add_eos_token"]) == added
    assert (metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]) == (1, 2)


def test_the_first_token_survives_the_way_back(tmp_path: Path) -> None:
    pieces = small_pieces()
    tokenizer = json_of(pieces)
    begin: dict[str, Any] = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
    special = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text, text], "special_tokens": special,
    }  # fmt: skip
    files = TokenizerFiles(tokenizer=tokenizer, config={"eos_token": "</s>", "bos_token": "<s>"})
    write_gguf(plan_gguf(checkpoint(files, len(pieces.tokens))), tmp_path / "a.gguf", "F32")
    back = read_gguf(tmp_path / "a.gguf").tokenizer
    assert back is not None
    before, after = (Tokenizer.from_str(json.dumps(t)).encode("the heart") for t in (tokenizer, back.tokenizer))
    assert before.ids[0] == 1 and after.ids == before.ids


def test_what_is_no_bpe_is_refused() -> None:
    with pytest.raises(ZephyraError, match="Unigram"):
        parse_model(model_bytes(small_pieces(), kind=1))
    tokenizer = json_of(small_pieces()) | {"normalizer": {"type": "Lowercase"}}
    files = TokenizerFiles(tokenizer=tokenizer, config={"eos_token": "</s>"})
    with pytest.raises(ZephyraError, match="Lowercase"):
        plan_gguf(checkpoint(files, 400))
    with pytest.raises(ZephyraError, match="has 300 rows"):
        plan_gguf(checkpoint(TokenizerFiles(tokenizer=json_of(small_pieces())), 300))


def test_mutated_models_are_read_or_refused() -> None:
    good, draw, refused = model_bytes(small_pieces()), random.Random(12), 0
    for _ in range(2000):
        data = bytearray(good[: draw.randrange(len(good))] if draw.random() < 0.2 else good)
        for _ in range(draw.randint(1, 4)):
            if data:
                data[draw.randrange(len(data))] = draw.choice((0, 0xFF, 0x80, draw.randrange(256)))
        try:
            parse_model(bytes(data))
        except ZephyraError:
            refused += 1
    assert refused > 300
