"""Vocabularies: every pre-tokenizer that llama.cpp knows gives the same ids, there and back; the others are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from zephyra_converters.checkpoint import Checkpoint, TokenizerFiles
from zephyra_converters.gguf_read import read_gguf
from zephyra_converters.gguf_write import plan_gguf, write_gguf
from zephyra_converters.hf import read_hf
from zephyra_converters.loaded import LoadedGGUF
from zephyra_converters.tokenizer import PRE_TOKENIZERS, vocabulary_of
from zephyra_converters.tokenizer_back import tokenizer_files_of
from zephyra_converters.tokenizer_parity import check_tokenizer, hostile_strings
from zephyra_fusion.chat import END, SPECIAL_TOKENS
from zephyra_fusion.config import FusionConfig
from zephyra_fusion.errors import ZephyraError

CORPUS = [
    "the heart of the matter is that 1234 others weren't there before 2024; naïve café, Straße ÀÉÎ",
    "def f(x):\n\treturn x + 1  # twice\r\n\r\n   SELECT name FROM people;",
    "日本語の文章と한국어 문장 и русский текст, हिन्दी भी",
] * 3


def trained(pre: str) -> dict[str, Any]:
    """A small tokenizer.json with the pre-tokenizer that llama.cpp calls `pre`."""
    regex, ignore_merges = PRE_TOKENIZERS[pre]
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex in (None, "digits"))
    first = {"digits": [pre_tokenizers.Digits(individual_digits=True)], None: []}.get(regex)
    if first is None:
        first = [pre_tokenizers.Split(Regex(regex or ""), behavior="isolated")]
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, own]) if first else own
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return dict(json.loads(tokenizer.to_str()))


def config_for(tokenizer: dict[str, Any], **more: Any) -> FusionConfig:
    size = 1 + max([*tokenizer["model"]["vocab"].values(), *(t["id"] for t in tokenizer["added_tokens"])])
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return FusionConfig(**({"vocab_size": size, "eos_token_id": 5} | shape | more))


def checkpoint_with(tokenizer: dict[str, Any]) -> Checkpoint:
    import numpy as np

    from zephyra_converters.checkpoint import LazyTensor
    from zephyra_converters.hf import expected_shapes

    config = config_for(tokenizer)
    tensors = {n: LazyTensor.holding(n, np.ones(s, np.float32)) for n, s in expected_shapes(config).items()}
    files = TokenizerFiles(tokenizer=tokenizer)
    return Checkpoint(config=config, tensors=tensors, path=Path("made-up"), name="made-up", tokenizer=files)


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_same_ids_as_tokenizers_there_and_back(pre: str, tmp_path: Path) -> None:
    tokenizer = trained(pre)
    write_gguf(plan_gguf(checkpoint_with(tokenizer)), tmp_path / "a.gguf", "F16")
    with LoadedGGUF(tmp_path / "a.gguf", 32) as gguf:
        assert check_tokenizer(tokenizer, gguf.tokenize) >= 6000
    files = read_gguf(tmp_path / "a.gguf").tokenizer
    assert files is not None
    back = Tokenizer.from_str(json.dumps(files.tokenizer))
    reference = Tokenizer.from_str(json.dumps(tokenizer))
    strings = hostile_strings(600, SPECIAL_TOKENS)
    for text, ours, theirs in zip(strings, back.encode_batch(strings), reference.encode_batch(strings), strict=True):
        assert ours.ids == theirs.ids, text
        assert back.decode(ours.ids, skip_special_tokens=False) == text


def test_the_gate_sees_a_difference(tmp_path: Path) -> None:
    tokenizer = trained("qwen2")
    write_gguf(plan_gguf(checkpoint_with(tokenizer)), tmp_path / "a.gguf", "F16")
    other = json.loads(json.dumps(tokenizer))
    other["model"]["merges"] = other["model"]["merges"][:-20]
    with LoadedGGUF(tmp_path / "a.gguf", 32) as gguf, pytest.raises(ZephyraError, match="cannot express|reads"):
        check_tokenizer(other, gguf.tokenize)


def test_user_text_cannot_forge_control_tokens(tmp_path: Path) -> None:
    tokenizer = trained("qwen2")
    write_gguf(plan_gguf(checkpoint_with(tokenizer)), tmp_path / "a.gguf", "F16")
    with LoadedGGUF(tmp_path / "a.gguf", 32) as gguf:
        assert gguf.tokenize(END, True) == [5]
        assert 5 not in gguf.tokenize(f"a{END}b", False)


def edit(tokenizer: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    copy = json.loads(json.dumps(tokenizer))
    *parents, last = path.split(".")
    place = copy
    for key in parents:
        place = place[key]
    place[last] = value
    return dict(copy)


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
TEKKEN = {
    "type": "Split",
    "behavior": "Isolated",
    "pattern": {"Regex": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|\p{N}|\s+"},
}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("pre_tokenizer", {"type": "Whitespace"}, "Whitespace"),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}, "no counterpart"),
        ("pre_tokenizer", None, "no counterpart"),
        ("pre_tokenizer", {"pretokenizers": [TEKKEN, BYTES]}, "Mistral's Tekken: llama.cpp reads words with combining"),
        ("model.type", "Unigram", "Unigram"),
        ("model.byte_fallback", True, "SentencePiece"),
        ("model.dropout", 0.1, "dropout"),
        ("model.end_of_word_suffix", "</w>", "end_of_word_suffix"),
        ("normalizer", {"type": "Lowercase"}, "Lowercase"),
        ("post_processor", {"type": "BertProcessing"}, "BertProcessing"),
        ("model.vocab.extra", 9999, "ids up to 9999"),
    ],
)
def test_what_llama_cpp_reads_otherwise_is_refused(path: str, value: Any, said: str) -> None:
    tokenizer = trained("qwen2")
    config = config_for(tokenizer)
    with pytest.raises(ZephyraError, match=said):
        vocabulary_of(TokenizerFiles(tokenizer=edit(tokenizer, path, value)), config)


def test_special_ids() -> None:
    tokenizer = trained("qwen2")
    files = TokenizerFiles(tokenizer=tokenizer, config={"eos_token": {"content": END}, "pad_token": "<|pad|>"})
    keys = vocabulary_of(files, config_for(tokenizer, eos_token_id=(0, 5))).metadata()
    assert keys["tokenizer.ggml.eos_token_id"] == 5
    assert keys["tokenizer.ggml.eot_token_id"] == 0
    assert keys["tokenizer.ggml.bos_token_id"] == 5
    assert keys["tokenizer.ggml.padding_token_id"] == 1
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert keys["tokenizer.ggml.token_type"][:7] == [3, 3, 3, 3, 3, 3, 1]
    with pytest.raises(ZephyraError, match="end token"):
        vocabulary_of(TokenizerFiles(tokenizer=tokenizer), config_for(tokenizer, eos_token_id=None))


def test_a_template_that_adds_bos_is_kept() -> None:
    tokenizer = trained("llama-bpe")
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {},
    }
    processors = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}
    vocabulary = vocabulary_of(
        TokenizerFiles(tokenizer=edit(tokenizer, "post_processor", processors)), config_for(tokenizer)
    )
    assert vocabulary.add_bos and not vocabulary.add_eos and vocabulary.pre == "llama-bpe"


@pytest.mark.parametrize(("processor", "adds"), [(None, True), ({"type": "ByteLevel"}, False)])
def test_without_a_template_the_config_says_what_is_added(processor: dict[str, Any] | None, adds: bool) -> None:
    """As in llama.cpp: a post-processor that only trims offsets adds nothing, one that is not there leaves it open."""
    tokenizer = edit(trained("qwen2"), "post_processor", processor)
    config = {"eos_token": END, "bos_token": "<|endoftext|>", "add_bos_token": True}
    vocabulary = vocabulary_of(TokenizerFiles(tokenizer=tokenizer, config=config), config_for(tokenizer))
    assert (vocabulary.add_bos, vocabulary.add_eos) == (adds, False)


def test_rows_without_a_token_are_filled(checkpoint_folder: Callable[[str], Path]) -> None:
    checkpoint = read_hf(checkpoint_folder("qwen3"))
    assert checkpoint.tokenizer is not None
    config = FusionConfig.from_dict({**checkpoint.config.to_dict(), "vocab_size": 384})
    keys = vocabulary_of(checkpoint.tokenizer, config).metadata()
    assert len(set(keys["tokenizer.ggml.tokens"])) == 384
    assert keys["tokenizer.ggml.token_type"][320:] == [5] * 64
    back = tokenizer_files_of(keys).tokenizer
    assert len(back["model"]["vocab"]) == 320


def test_tekken_json_alone_is_told_apart(checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoint_folder("mistral") / name).read_bytes())
    with pytest.raises(ZephyraError, match="has neither tokenizer.json nor tokenizer.model"):
        plan_gguf(read_hf(tmp_path))
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(ZephyraError, match="has Mistral's tekken.json for a tokenizer"):
        plan_gguf(read_hf(tmp_path))
