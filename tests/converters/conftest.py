"""Tiny random checkpoints of every family that converts, made by transformers and peft: the oracle of these tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zephyra_fusion.chat import END, PAD, ZEPHYRA_JINJA

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "eos_token_id": 5,
    "bos_token_id": 0,
    "pad_token_id": 1,
}
EXPERTS = {"num_experts_per_tok": 2, "norm_topk_prob": True}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"head_dim": 32}),
    "llama-wide-heads": ("Llama", {"head_dim": 48, "tie_word_embeddings": True}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
        },
    ),
    "llama-linear-rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-yarn": (
        "Qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-untied": ("Qwen3", {"head_dim": 64}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 32}),
    "mistral-window": ("Mistral", {"sliding_window": 12, "head_dim": 32}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-windows": (
        "Qwen3",
        {
            "head_dim": 32,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 12,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen2-window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1, "layer_types": None},
    ),
    "mixtral-window": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9}),
    "qwen3-moe": ("Qwen3Moe", {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 64, "head_dim": 32}),
}


@pytest.fixture(scope="session")
def oracle() -> Callable[[str], Any]:
    """oracle(family) -> a random model of transformers, float32, in evaluation mode; always the same one."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    models: dict[str, Any] = {}

    def make(family: str) -> Any:
        if family not in models:
            kind, options = FAMILIES[family]
            config = getattr(transformers, f"{kind}Config")(**{**SIZES, **options})
            torch.manual_seed(7)
            model = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    scale = 0.1 if "norm" in name else 1.4 / parameter.shape[-1] ** 0.5
                    parameter.copy_(torch.randn_like(parameter) * scale + (1.0 if "norm" in name else 0.0))
            models[family] = model
        return models[family]

    return make


@pytest.fixture(scope="session")
def checkpoint_folder(
    oracle: Callable[[str], Any], tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """checkpoint_folder(family) -> the oracle's model saved by transformers, with the tiny tokenizer beside it."""
    folders: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in folders:
            folder = tmp_path_factory.mktemp("checkpoints") / family
            oracle(family).save_pretrained(folder)
            put_tokenizer(folder, tiny_tokenizer)
            folders[family] = folder
        return folders[family]

    return make


@pytest.fixture(scope="session")
def tiny_peft(checkpoint_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """tiny_peft() -> the folder of a rank-4 adapter for the family qwen3, saved by peft."""
    folders: list[Path] = []

    def make() -> Path:
        if not folders:
            peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
            transformers = pytest.importorskip("transformers")
            model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint_folder("qwen3"))
            config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
            adapted = peft.get_peft_model(model, config)
            torch.manual_seed(9)
            with torch.no_grad():
                for name, parameter in adapted.named_parameters():
                    if "lora_B" in name:
                        parameter.copy_(torch.randn_like(parameter) * 0.2)
            folders.append(tmp_path_factory.mktemp("peft") / "tiny")
            adapted.save_pretrained(folders[0])
        return folders[0]

    return make


def put_tokenizer(folder: Path, tokenizer: Any) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": END, "pad_token": PAD, "chat_template": ZEPHYRA_JINJA}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def token_ids() -> list[list[int]]:
    """Three texts as ids of the tiny vocabulary."""
    import random

    draw = random.Random(3)
    return [[draw.randrange(320) for _ in range(length)] for length in (1, 17, 60)]


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"r": 8, "lora_alpha": 16, "target_modules": [*ATTENTION, "gate_proj", "up_proj", "down_proj"]}),
    "rslora": ("qwen3", {"r": 16, "lora_alpha": 8, "use_rslora": True, "target_modules": ATTENTION}),
    "patterns": (
        "llama-wide-heads",
        {
            "r": 8,
            "lora_alpha": 8,
            "target_modules": ATTENTION,
            "rank_pattern": {"q_proj": 4, "layers.1.self_attn.v_proj": 16},
            "alpha_pattern": {"k_proj": 32},
        },
    ),
    "some-layers": ("qwen2", {"r": 4, "lora_alpha": 4, "target_modules": ["v_proj"], "layers_to_transform": [1]}),
    "embedding": ("llama", {"r": 8, "lora_alpha": 8, "target_modules": ["embed_tokens", "q_proj"]}),
    "head": ("llama", {"r": 4, "lora_alpha": 8, "target_modules": ["lm_head", "k_proj"]}),
}


@pytest.fixture(scope="session")
def adapted(
    checkpoint_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, Path, Path]]:
    """adapted(variant) -> (peft's model with the adapter on, the adapter's folder, the base's folder)."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    made: dict[str, tuple[Any, Path, Path]] = {}

    def make(variant: str) -> tuple[Any, Path, Path]:
        if variant not in made:
            family, options = VARIANTS[variant]
            base = checkpoint_folder(family)
            model = transformers.AutoModelForCausalLM.from_pretrained(base).float()
            model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
            torch.manual_seed(1)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_" in name:
                        size = (0.3 if "lora_B" in name else 1.0) / parameter.shape[1] ** 0.5
                        parameter.copy_(torch.randn_like(parameter) * size)  # lora_embedding_A starts as zeros, too
            folder = tmp_path_factory.mktemp("adapters") / variant
            model.save_pretrained(folder)
            made[variant] = model, folder, base
        return made[variant]

    return make


def edited(folder: Path, target: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    """A copy of an adapter with other tensors (None removes) and other keys of its config."""
    from zephyra_converters.checkpoint import LazyTensor
    from zephyra_converters.safetensors_file import read_safetensors, write_safetensors

    target.mkdir()
    values = json.loads((folder / "adapter_config.json").read_text()) | config
    (target / "adapter_config.json").write_text(json.dumps(values))
    kept = {n: t.read() for n, t in read_safetensors(folder / "adapter_model.safetensors").items()}
    kept = {n: v for n, v in (kept | (tensors or {})).items() if v is not None}
    lazy = [LazyTensor.holding(n, v) for n, v in kept.items()]
    write_safetensors(target / "adapter_model.safetensors", lazy)
    return target


def changed(folder: Path, target: Path, **config: Any) -> Path:
    """A copy of a checkpoint with other config keys; None removes."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    values = json.loads((folder / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return target


def bits(path: Path) -> dict[str, bytes]:
    """Every tensor's values."""
    from zephyra_converters.safetensors_file import read_safetensors

    return {name: tensor.read().tobytes() for name, tensor in read_safetensors(path).items()}
