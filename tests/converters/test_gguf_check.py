"""What would kill llama.cpp is refused; what is accepted is then really loaded and run, in a child that may die."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zephyra_converters.gguf_check import check_classifier, check_gguf, check_model
from zephyra_converters.gguf_check_lora import check_adapter
from zephyra_converters.gguf_header import read_header
from zephyra_fusion.errors import ZephyraError

Make = Callable[..., Path]
NAN, INF = float("nan"), float("inf")


def test_accepts_the_good_ones(tiny_gguf: Path, tiny_router: Path, tiny_adapters: dict[str, Path]) -> None:
    base = check_model(tiny_gguf)
    assert base.architecture == "qwen3"
    check_classifier(tiny_router)
    for path in tiny_adapters.values():
        assert check_gguf(path, base=base).metadata["general.type"] == "adapter"


@pytest.mark.parametrize(
    ("metadata", "cause"),
    [
        ({"general.architecture": "phi3"}, "architecture 'phi3'"),
        ({"general.architecture": "modern-bert"}, "a classifier, wanted is a language model"),
        ({"general.type": "mmproj"}, "of the type 'mmproj'"),
        ({"qwen3.block_count": 0}, "block_count is 0, must be a whole number from 1 to 512"),
        ({"qwen3.block_count": 513}, "block_count is 513"),
        ({"qwen3.block_count": 3}, "'blk.2.attn_norm.weight' is missing"),
        ({"qwen3.block_count": 1}, "'blk.1.attn_norm.weight' is unknown"),
        ({"qwen3.expert_count": 2000}, "expert_count is 2000"),
        ({"qwen3.expert_used_count": 2}, "expert_used_count is 2"),
        ({"qwen3.attention.head_count_kv": 3}, "not a multiple of head_count_kv 3"),
        ({"qwen3.attention.head_count": 0}, "head_count is 0"),
        ({"qwen3.attention.key_length": 33, "qwen3.attention.value_length": 33}, "head size 33"),
        ({"qwen3.attention.value_length": 16}, "value_length is 16, attention.key_length is 32"),
        ({"qwen3.rope.dimension_count": 16}, "rope.dimension_count 16"),
        ({"qwen3.attention.layer_norm_rms_epsilon": -1e-6}, "epsilon is -"),
        ({"qwen3.attention.layer_norm_rms_epsilon": NAN}, "epsilon is nan"),
        ({"qwen3.attention.layer_norm_rms_epsilon": None}, "epsilon is missing"),
        ({"qwen3.rope.freq_base": 0.0}, "freq_base is 0.0"),
        ({"qwen3.rope.freq_base": INF}, "freq_base is inf"),
        ({"qwen3.rope.scaling.type": "ntk"}, "rope scaling type 'ntk'"),
        ({"qwen3.context_length": None}, "context_length is missing"),
        ({"qwen3.embedding_length": 128}, "has the shape"),
        ({"qwen3.feed_forward_length": "many"}, "feed_forward_length is many"),
        ({"qwen3.expert_gating_func": 9}, "expert_gating_func is 9"),
        ({"qwen3.attention.key_length_swa": 16}, "window layers have a size of their own"),
        ({"qwen3.attention.causal": False}, "attention.causal must be True"),
        ({"split.count": 4}, "one of 4 files of a model"),
        ({"tokenizer.ggml.model": "none"}, "tokenizer.ggml.model is 'none'"),
        ({"tokenizer.ggml.tokens": None}, "tokens is missing"),
        ({"tokenizer.ggml.merges": None}, "merges is missing"),
        ({"tokenizer.ggml.merges": [7, 8]}, "merges is missing or is no list of strings"),
        ({"tokenizer.ggml.merges": ["a b", "ab"]}, "merge 1 .* is not two texts"),
        ({"tokenizer.ggml.token_type": [1] * 319 + [6]}, "token 319 is a byte token"),
        ({"tokenizer.ggml.token_type": [1.0] * 320}, "array of the type 6, must be 5"),
        ({"tokenizer.ggml.scores": [NAN] * 320}, "entries that are no numbers"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "no list of strings"),
        ({"tokenizer.ggml.token_type": [1] * 319}, "has 319 entries for 320 tokens"),
        ({"tokenizer.ggml.eos_token_id": 320}, "eos_token_id is 320, the vocabulary has 320"),
        ({"general.alignment": 16}, "alignment is 16"),
    ],
)
def test_refuses_a_model_by_its_keys(metadata: dict[str, Any], cause: str, make_gguf: Make, tmp_path: Path) -> None:
    with pytest.raises(ZephyraError, match=cause):
        check_model(make_gguf(tmp_path / "odd.gguf", metadata))


def test_refuses_a_vocabulary_with_repeats(make_gguf: Make, tiny_metadata: dict[str, Any], tmp_path: Path) -> None:
    tokens = list(tiny_metadata["tokenizer.ggml.tokens"])
    tokens[300] = tokens[301]
    with pytest.raises(ZephyraError, match="320 tokens repeats 1"):
        check_model(make_gguf(tmp_path / "odd.gguf", {"tokenizer.ggml.tokens": tokens}))
    tokens[300], tokens[301] = "same\0one", "same\0two"  # C++ reads both up to the zero
    with pytest.raises(ZephyraError, match="320 tokens repeats 1"):
        check_model(make_gguf(tmp_path / "odd.gguf", {"tokenizer.ggml.tokens": tokens}))


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("blk.0.attn_q.weight", np.zeros((64, 64)), "is F64, which llama.cpp cannot compute with"),
        ("blk.0.attn_q.weight", np.zeros((64, 64), np.int32), "is I32, which"),
        ("token_embd.weight", np.zeros((320, 64), np.int8), "is I8, which"),
        ("blk.1.ffn_norm.weight", np.zeros(64, np.float16), "is F16, vectors must be F32"),
        ("blk.1.ffn_norm.weight", np.zeros(32, np.float32), r"has the shape \[32\], the header asks for \[64\]"),
        ("output_norm.weight", None, "'output_norm.weight' is missing"),
        ("rope_freqs.weight", np.zeros(16, np.float32), "'rope_freqs.weight' is unknown"),
        ("output.weight", np.zeros((321, 64), np.float32), "'output.weight' has the shape"),
    ],
)
def test_refuses_a_model_by_its_tensors(name: str, value: Any, cause: str, make_gguf: Make, tmp_path: Path) -> None:
    with pytest.raises(ZephyraError, match=cause):
        check_model(make_gguf(tmp_path / "odd.gguf", {}, {name: value}))


def test_names_all_faults_at_once(make_gguf: Make, tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "odd.gguf", {"qwen3.rope.freq_base": 0.0}, {"output_norm.weight": None})
    with pytest.raises(ZephyraError, match=r"freq_base is 0\.0.*'output_norm\.weight' is missing"):
        check_model(path)


def test_refuses_an_adapter_of_another_base(tiny_adapters: dict[str, Path], make_gguf: Make, tmp_path: Path) -> None:
    random_ = np.random.default_rng(1)
    wide = {f"blk.{i}.ffn_{m}.weight": random_.random((128, 64), np.float32) for i in (0, 1) for m in ("gate", "up")}
    wide |= {f"blk.{i}.ffn_down.weight": random_.random((64, 128), np.float32) for i in (0, 1)}
    other = check_model(make_gguf(tmp_path / "other.gguf", {"qwen3.feed_forward_length": 128}, wide))
    with pytest.raises(ZephyraError, match=r"b\.gguf does not fit the base .*other\.gguf: 'blk\.0\.ffn_down\.weight'"):
        check_adapter(tiny_adapters["b"], other)
    check_adapter(tiny_adapters["a"], other)  # touches attention alone, which is the same in both


def adapter_changes() -> Iterator[tuple[dict[str, Any], dict[str, Any], str]]:
    one = {"blk.0.attn_q.weight.lora_a": np.zeros((4, 64), np.float32)}
    two = one | {"blk.0.attn_q.weight.lora_b": np.zeros((64, 4), np.float32)}
    embedding = {
        "token_embd.weight.lora_a": np.zeros((320, 4), np.float32),
        "token_embd.weight.lora_b": np.zeros((64, 4), np.float32),
    }
    norm = {"blk.0.attn_norm.weight": np.zeros(64, np.float32)}
    yield {}, {}, "it has no tensors"
    yield {}, one, "lacks its lora_b"
    yield {}, two | norm, "neither lora_a nor lora_b"
    yield {}, two | {"blk.0.attn_q.weight.lora_a": np.zeros((4, 64))}, "is F64"
    yield {}, two | {"blk.0.attn_q.weight.lora_a": np.zeros((8, 64), np.float32)}, "the adapter has"
    yield {}, {name.replace("blk.0", "blk.7"): value for name, value in two.items()}, "no tensor 'blk.7.attn_q.weight'"
    yield {}, embedding, "shares with its output"
    yield {"adapter.lora.alpha": 8}, two, "alpha is 8, must be a finite FLOAT32"
    yield {"adapter.lora.alpha": NAN}, two, "alpha is nan"
    yield {"general.architecture": "llama"}, two, "made for the architecture 'llama'"
    yield {"adapter.type": "ia3"}, two, "no LoRA adapter"


@pytest.mark.parametrize(("metadata", "tensors", "cause"), list(adapter_changes()))
def test_refuses_an_adapter(
    metadata: dict[str, Any], tensors: dict[str, Any], cause: str, write_gguf: Make, tiny_gguf: Path, tmp_path: Path
) -> None:
    keys = {"general.architecture": "qwen3", "general.type": "adapter", "adapter.type": "lora"} | metadata
    path = write_gguf(tmp_path / "odd.gguf", keys, tensors)
    with pytest.raises(ZephyraError, match=cause):
        check_adapter(path, read_header(tiny_gguf))


ADDED = """embedding_length_out attention.causal pooling_type nextn_predict_layers expert_count expert_used_count
expert_group_count attention.sliding_window rope.dimension_count rope.dimension_count_swa attention.key_length_swa
attention.clamp_kqv attention.scale rope.scaling.type rope.scaling.factor rope.scaling.original_context_length
rope.scaling.attn_factor rope.scaling.yarn_log_multiplier residual_scale embedding_scale logit_scale vocab_size"""


def odd_models(make: Make, metadata: dict[str, Any], tensors: dict[str, Any], folder: Path) -> Iterator[Path]:
    """tiny_gguf with one key or one tensor made odd, each as a file of its own."""
    serial = 0
    for key, value in metadata.items():
        odd: list[Any] = [None]
        if isinstance(value, bool):
            odd += [not value, 1]
        elif isinstance(value, int):
            odd += [0, 1, 3, value + 1, 2 * value, 2**31 - 1, 2**32 - 1, float(value), [value]]
        elif isinstance(value, float):
            odd += [0.0, -value, NAN, INF, 1e30, 1]
        elif isinstance(value, str):
            odd += ["", "llama", "\udc80".encode("utf-8", "surrogatepass").decode("latin1"), 7]
        else:
            odd += [value[:-1], value + value, value[::-1], "none"]
        for replacement in odd:
            if key == "general.architecture" and replacement in (None, "", 7):
                continue  # the writer of the fixture needs one
            serial += 1
            yield make(folder / f"{serial:04d}.gguf", {key: replacement})
    for key in ADDED.split():
        for replacement in 0, 1, 5, 2**32 - 1, 0.5, -1.0, NAN, "linear", "longrope", "yarn", [1, 2], True:
            serial += 1
            yield make(folder / f"{serial:04d}.gguf", {f"{metadata['general.architecture']}.{key}": replacement})
    for name, value in list(tensors.items())[:14]:
        for replacement in (
            None,
            value.astype(np.float16),
            value.astype(np.float64),
            value[:-1],
            value[..., :-2],
            value * NAN,
        ):
            serial += 1
            yield make(folder / f"{serial:04d}.gguf", {}, {name: replacement})


RUN = """
import sys
from pathlib import Path
from zephyra_cli.backends.classifier import LlamaClassifier
from zephyra_cli.backends.llama import LlamaBackend
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import SamplingParams
kind, base = sys.argv[1], Path(sys.argv[2])
for line in sys.stdin:
    path = Path(line.strip())
    print(path, flush=True)
    try:
        if kind == "router":
            classifier = LlamaClassifier(path, threads=1)
            classifier.logits(list(range(40)))
            classifier.close()
            continue
        backend = LlamaBackend(path if kind == "model" else base, threads=1)
        if kind == "adapter":
            backend.add_adapter("x", path)
            backend.set_adapters({"x": 0.5})
        ids = backend.encode("the heart of <|end|> naïve \\x00\\U0001F600") or [0]
        for params in SamplingParams(max_tokens=4), SamplingParams(max_tokens=4, temperature=1.0, repeat_penalty=1.3):
            [backend.token_bytes(token.id) for token in backend.generate(ids, params)]
        backend.close()
    except ZephyraError:
        pass
"""


def survive(paths: list[Path], kind: str = "model", base: Path = Path()) -> None:
    """Load and run every file in a child; a dead child is a failure that names the file."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", RUN, kind, str(base)]
    files = "\n".join(map(str, paths))
    done = subprocess.run(command, input=files, env=environment, capture_output=True, text=True, timeout=120)
    last = done.stdout.splitlines()[-1] if done.stdout else "nothing"
    assert done.returncode == 0, f"status {done.returncode} at {last}: {done.stderr[-2000:]}"
    assert len(done.stdout.splitlines()) == len(paths)


def test_llama_survives_every_odd_model_that_is_accepted(
    make_gguf: Make, tiny_metadata: dict[str, Any], tiny_weights: dict[str, Any], tmp_path: Path
) -> None:
    paths = list(odd_models(make_gguf, tiny_metadata, tiny_weights, tmp_path))
    refused = 0
    for path in paths:
        try:
            check_model(path)
        except ZephyraError:
            refused += 1
    assert 0.4 * len(paths) < refused < len(paths)
    survive(paths)


@pytest.mark.parametrize("kind", ["model", "adapter", "router"])
def test_llama_survives_random_damage_that_is_accepted(
    kind: str, tiny_gguf: Path, tiny_adapters: dict[str, Path], tiny_router: Path, tmp_path: Path
) -> None:
    source = {"model": tiny_gguf, "adapter": tiny_adapters["b"], "router": tiny_router}[kind]
    data, dice, base = source.read_bytes(), random.Random(8), check_model(tiny_gguf)
    tensors = read_header(source).tensors
    header_end = min(tensor.offset for tensor in tensors.values())
    keys_end = data.index(b"tokenizer.ggml.tokens") if kind == "model" else header_end
    tensors_begin = header_end - 80 * len(tensors)
    accepted = []
    for serial in range(300):
        damaged = bytearray(data)
        start, end = dice.choice(((24, keys_end), (24, header_end), (tensors_begin, header_end)))
        damaged[dice.randrange(start, end)] = dice.randrange(256)
        path = tmp_path / f"{serial:04d}.gguf"
        path.write_bytes(damaged)
        began = time.perf_counter()
        try:
            check_gguf(path, base=base)
            accepted.append(path)
        except ZephyraError:
            path.unlink()
        assert time.perf_counter() - began < 2
    assert len(accepted) > 10
    survive(accepted, kind, tiny_gguf)
