"""Fixtures that every test may use: one tiny random model with all that belongs to it, built once a session, offline.

tiny_tokenizer   tokenizers.Tokenizer: byte-level BPE, 320 entries, the six special tokens first (ids 0..5)
tiny_weights     dict of float32 arrays by GGUF tensor name, Hugging Face orientation [out, in]: the base
tiny_gguf        Path: the base as F32 GGUF (qwen3: 2 layers, width 64, 2 heads of 32 over 1, context 512)
tiny_adapters    dict of Path: LoRA adapters "a" (rank 4), "b" (rank 8, with feed-forward), "c" (rank 4) for tiny_gguf
tiny_loras       dict: adapter name -> {tensor name: (A [r, in], B [out, r], alpha/r)}, what tiny_adapters holds
tiny_router      Path: a modern-bert classifier GGUF (RANK pooling, no vocabulary, 3 labels) over the same token ids
make_gguf        function(path, metadata={}, tensors={}) -> Path: tiny_gguf with some keys or tensors
                 changed (value None removes); arrays of any numpy type are written as they are
write_gguf       function(path, metadata, tensors) -> Path: any GGUF file, for example an odd adapter
tiny_metadata    dict: the keys of tiny_gguf

The weights are random but large enough that adapters change the text; nothing in them was learnt.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from zephyra_fusion.chat import END, END_OF_TEXT, PAD, SPECIAL_TOKENS, ZEPHYRA_JINJA

# What a script starts in the background ignores Ctrl-C, under nohup a lost terminal too, and so do its children: the
# programs under test would.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")

LAYERS, WIDTH, HEADS, HEAD, FEED_FORWARD, CONTEXT, VOCABULARY = 2, 64, 2, 32, 96, 512, 320
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = [
        "find all files larger than a megabyte in the home folder and list the names of them",
        "SELECT name, count(*) FROM people WHERE age > 30 GROUP BY name ORDER BY name;",
        "the heart of the matter is that the other one was there before them; naïve café, Straße",
    ]
    tokenizer.train_from_iterator(lines * 4, trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


@pytest.fixture(scope="session")
def tiny_weights() -> dict[str, Any]:
    import numpy as np

    random = np.random.default_rng(20)

    def matrix(rows: int, columns: int) -> Any:
        return (random.standard_normal((rows, columns)) * 4.0 / columns**0.5).astype(np.float32)

    def norm(size: int) -> Any:
        return (1 + 0.1 * random.standard_normal(size)).astype(np.float32)

    weights = {"token_embd.weight": random.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)}
    for layer in range(LAYERS):
        block = {
            "attn_norm": norm(WIDTH),
            "attn_q": matrix(HEADS * HEAD, WIDTH),
            "attn_k": matrix(HEAD, WIDTH),
            "attn_v": matrix(HEAD, WIDTH),
            "attn_q_norm": norm(HEAD),
            "attn_k_norm": norm(HEAD),
            "attn_output": matrix(WIDTH, HEADS * HEAD),
            "ffn_norm": norm(WIDTH),
            "ffn_gate": matrix(FEED_FORWARD, WIDTH),
            "ffn_up": matrix(FEED_FORWARD, WIDTH),
            "ffn_down": matrix(WIDTH, FEED_FORWARD),
        }
        weights |= {f"blk.{layer}.{name}.weight": value for name, value in block.items()}
    weights["output_norm.weight"] = norm(WIDTH)
    return weights


@pytest.fixture(scope="session")
def tiny_metadata(tiny_tokenizer: Any) -> dict[str, Any]:
    """Keys of tiny_gguf; numbers are written as UINT32 or FLOAT32, lists as arrays."""
    import json

    model = json.loads(tiny_tokenizer.to_str())["model"]
    ids = tiny_tokenizer.get_vocab()
    tokens = sorted(ids, key=ids.__getitem__)
    return {
        "general.architecture": "qwen3",
        "general.name": "tiny",
        "general.type": "model",
        "qwen3.block_count": LAYERS,
        "qwen3.context_length": CONTEXT,
        "qwen3.embedding_length": WIDTH,
        "qwen3.feed_forward_length": FEED_FORWARD,
        "qwen3.attention.head_count": HEADS,
        "qwen3.attention.head_count_kv": 1,
        "qwen3.attention.key_length": HEAD,
        "qwen3.attention.value_length": HEAD,
        "qwen3.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen3.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL_TOKENS else 1 for token in tokens],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in model["merges"]],
        "tokenizer.ggml.eos_token_id": ids[END_OF_TEXT],
        "tokenizer.ggml.bos_token_id": ids[END_OF_TEXT],
        "tokenizer.ggml.eot_token_id": ids[END],
        "tokenizer.ggml.padding_token_id": ids[PAD],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": ZEPHYRA_JINJA,
    }


def write(path: Path, metadata: dict[str, Any], tensors: dict[str, Any]) -> Path:
    """Metadata and arrays as a GGUF file, in the order given."""
    import gguf

    writer = gguf.GGUFWriter(str(path), metadata["general.architecture"])
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def write_gguf() -> Callable[[Path, dict[str, Any], dict[str, Any]], Path]:
    return write


@pytest.fixture(scope="session")
def make_gguf(tiny_metadata: dict[str, Any], tiny_weights: dict[str, Any]) -> Callable[..., Path]:
    def make(path: Path, metadata: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None) -> Path:
        keys, arrays = tiny_metadata | (metadata or {}), tiny_weights | (tensors or {})
        return write(
            path,
            {key: value for key, value in keys.items() if value is not None},
            {name: value for name, value in arrays.items() if value is not None},
        )

    return make


@pytest.fixture(scope="session")
def tiny_gguf(make_gguf: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("tiny") / "base.gguf")


@pytest.fixture(scope="session")
def tiny_loras(tiny_weights: dict[str, Any]) -> dict[str, dict[str, tuple[Any, Any, float]]]:
    import numpy as np

    random = np.random.default_rng(21)
    attention = ["attn_q", "attn_k", "attn_v", "attn_output"]
    plans = {"a": (4, attention), "b": (8, [*attention, "ffn_gate", "ffn_up", "ffn_down"]), "c": (4, attention)}
    loras: dict[str, dict[str, tuple[Any, Any, float]]] = {}
    for name, (rank, modules) in plans.items():
        loras[name] = {}
        for tensor, weight in tiny_weights.items():
            if tensor.split(".")[-2] in modules:
                out, into = weight.shape
                a = (random.standard_normal((rank, into)) / into**0.5).astype(np.float32)
                b = (random.standard_normal((out, rank)) / rank**0.5).astype(np.float32)
                loras[name][tensor] = (a, b, 2.0)
    return loras


@pytest.fixture(scope="session")
def tiny_adapters(
    tiny_loras: dict[str, dict[str, tuple[Any, Any, float]]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    paths = {}
    for name, lora in tiny_loras.items():
        rank = next(iter(lora.values()))[0].shape[0]
        metadata = {
            "general.architecture": "qwen3",
            "general.type": "adapter",
            "general.name": name,
            "adapter.type": "lora",
            "adapter.lora.alpha": float(2 * rank),
        }
        tensors = {}
        for tensor, (a, b, _) in lora.items():
            tensors[tensor + ".lora_a"], tensors[tensor + ".lora_b"] = a, b
        paths[name] = write(folder / f"{name}.gguf", metadata, tensors)
    return paths


@pytest.fixture(scope="session")
def tiny_router(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import numpy as np

    random = np.random.default_rng(22)
    width, feed_forward, labels = 32, 64, ["shell", "sql", "none"]

    def matrix(rows: int, columns: int) -> Any:
        return (random.standard_normal((rows, columns)) * 1.5 / columns**0.5).astype(np.float32)

    ones = np.ones(width, np.float32)
    tensors = {
        "token_embd.weight": random.standard_normal((VOCABULARY, width)).astype(np.float32),
        "token_embd_norm.weight": ones,
        "output_norm.weight": ones,
        "cls.weight": matrix(width, width),
        "cls.norm.weight": ones,
        "cls.output.weight": matrix(len(labels), width),
        "cls.output.bias": random.standard_normal(len(labels)).astype(np.float32),
    }
    for layer in range(2):
        if layer:
            tensors[f"blk.{layer}.attn_norm.weight"] = ones
        tensors[f"blk.{layer}.attn_qkv.weight"] = matrix(3 * width, width)
        tensors[f"blk.{layer}.attn_output.weight"] = matrix(width, width)
        tensors[f"blk.{layer}.ffn_norm.weight"] = ones
        tensors[f"blk.{layer}.ffn_up.weight"] = matrix(2 * feed_forward, width)
        tensors[f"blk.{layer}.ffn_down.weight"] = matrix(width, feed_forward)
    metadata = {
        "general.architecture": "modern-bert",
        "general.type": "model",
        "modern-bert.block_count": 2,
        "modern-bert.context_length": 256,
        "modern-bert.embedding_length": width,
        "modern-bert.feed_forward_length": feed_forward,
        "modern-bert.attention.head_count": 2,
        "modern-bert.attention.layer_norm_epsilon": 1e-5,
        "modern-bert.attention.causal": False,
        "modern-bert.rope.freq_base": 10000.0,
        "modern-bert.hidden_activation": "silu",
        "modern-bert.pooling_type": 4,
        "modern-bert.classifier.pooling_type": 1,
        "modern-bert.classifier.output_labels": labels,
        "modern-bert.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "none",
    }
    return write(tmp_path_factory.mktemp("router") / "router.gguf", metadata, tensors)
