"""Random, small checkpoints of every family that converts, with real vocabularies and all that lies in such folders."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

CARD = """---
license: [apache-2.0]
license_name: somebody-1
language:
- en
- no
tags:
- chat
pipeline_tag: text-generation
base_model: somebody/some-model-7B
datasets:
- somebody/texts-v2
- https://example.org/more
---
# A model
"""
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
# family: (class, options, vocabulary)
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama-2": ("Llama", {"max_position_embeddings": 4096}, "llama-spm"),
    "llama-3": ("Llama", {"rope_parameters": _LLAMA3}, "llama-bpe"),
    "llama-3.2": ("Llama", {"rope_parameters": {**_LLAMA3, "factor": 32.0}, "tie_word_embeddings": True}, "llama-bpe"),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True}, "llama-bpe"),
    "llama-linear-rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        "llama-spm",
    ),
    "smollm2": ("Llama", {"tie_word_embeddings": True, "head_dim": 32}, "gpt-2"),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 32}, "llama-spm"),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}, "llama-spm"),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}, "qwen2"),
    "qwen2.5-yarn": (
        "Qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        "qwen2",
    ),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}, "qwen2"),
    "qwen3-untied": ("Qwen3", {"head_dim": 64}, "qwen2"),
    "qwen3-moe": (
        "Qwen3Moe",
        {"num_experts_per_tok": 2, "norm_topk_prob": True, "num_experts": 4, "moe_intermediate_size": 64},
        "qwen2",
    ),
}


def make_checkpoint(folder: Path, family: str, llama_cpp: Path) -> Path:
    """A random checkpoint of transformers in the precision that such models come in, with a real vocabulary."""
    import torch
    import transformers

    from zephyra_converters.gguf_header import read_header
    from zephyra_converters.gguf_read import text_metadata
    from zephyra_converters.hf import write_tokenizer_files
    from zephyra_converters.tokenizer_back import tokenizer_files_of

    kind, changes, vocabulary = FAMILIES[family]
    metadata = text_metadata(read_header(llama_cpp / "models" / f"ggml-vocab-{vocabulary}.gguf"))
    size, end = len(metadata["tokenizer.ggml.tokens"]), metadata["tokenizer.ggml.eos_token_id"]
    ids = {"eos_token_id": end, "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id", end), "pad_token_id": None}
    config = getattr(transformers, f"{kind}Config")(vocab_size=size, **{**SIZES, **ids, **changes})
    torch.manual_seed(11)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    model.to(torch.bfloat16 if kind != "Mistral" else torch.float16).save_pretrained(folder)
    write_tokenizer_files(tokenizer_files_of(metadata), folder)
    _say_more(folder, alone=family == "llama-2", end=end)
    if metadata["tokenizer.ggml.model"] == "llama":
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(metadata))
    return folder


def _say_more(folder: Path, *, alone: bool, end: int) -> None:
    """What real folders hold beside: a card, recommended sampling, further end tokens, templates in various places."""
    (folder / "README.md").write_text(CARD)
    generation = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "repetition_penalty": 1.05}
    (folder / "generation_config.json").write_text(json.dumps({**generation, "eos_token_id": [end, 5, 7]}))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    if alone:  # tokenizer.model without tokenizer.json
        (folder / "tokenizer.json").unlink()
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    else:
        named = {"default": template, "tool-use": template + "tools"}
        config["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
    path.write_text(json.dumps(config))


def sentencepiece_model(metadata: dict[str, Any]) -> bytes:
    """A vocabulary as sentencepiece's ModelProto."""

    def field(number: int, kind: int, value: bytes | int) -> bytes:
        if isinstance(value, int):
            return bytes([number << 3, value])
        size = len(value)
        length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
        return bytes([number << 3 | kind]) + (length if kind == 2 else b"") + value

    keys = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type"))
    pieces = b""
    for token, score, kind in zip(*keys, strict=True):
        piece = field(1, 2, token.encode()) + field(2, 5, struct.pack("<f", score))
        pieces += field(1, 2, piece + field(3, 0, kind))
    byte_fallback = b"\x98\x02\x01"  # field 35: true
    return pieces + field(2, 2, field(3, 0, 2) + byte_fallback) + field(3, 2, field(3, 0, 1))
