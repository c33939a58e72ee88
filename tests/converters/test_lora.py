"""Adapters: peft against our reference against llama.cpp, there and back, and everything that is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zephyra_converters.checkpoint import LazyTensor
from zephyra_converters.convert import Options, convert
from zephyra_converters.decoder_reference import reference_logits
from zephyra_converters.gguf_check import check_gguf
from zephyra_converters.gguf_header import read_header
from zephyra_converters.gguf_write import plan_gguf, write_gguf
from zephyra_converters.hf import read_hf
from zephyra_converters.loaded import LoadedGGUF
from zephyra_converters.lora import read_lora_gguf, write_lora_gguf
from zephyra_converters.peft import read_peft, write_peft
from zephyra_converters.safetensors_file import read_safetensors, write_safetensors
from zephyra_fusion.errors import ZephyraError

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


@pytest.mark.parametrize("variant", VARIANTS)
def test_adapter_has_pefts_logits(
    variant: str,
    adapted: Callable[[str], tuple[Any, Path, Path]],
    token_ids: list[list[int]],
    tmp_path: Path,
) -> None:
    import torch

    model, folder, base = adapted(variant)
    checkpoint, adapter = read_hf(base), read_peft(folder)
    write_gguf(plan_gguf(checkpoint), tmp_path / "base.gguf", "F32")
    write_lora_gguf(adapter, checkpoint.config, tmp_path / "adapter.gguf", "F32")
    reference = reference_logits(checkpoint.config, checkpoint.tensors, token_ids, adapter.delta)
    with LoadedGGUF(tmp_path / "base.gguf", 64) as gguf:
        gguf.add_adapter("it", tmp_path / "adapter.gguf")
        for ids, ours in zip(token_ids, reference, strict=True):
            with torch.no_grad():
                on = model(torch.tensor([ids])).logits[0].numpy()
                with model.disable_adapter():
                    off = model(torch.tensor([ids])).logits[0].numpy()
            assert np.abs(on - off).mean() > 0.05
            gguf.set_adapters({})
            assert np.abs(gguf.logits(ids) - off).max() <= 1e-3
            gguf.set_adapters({"it": 1.0})
            assert np.abs(gguf.logits(ids) - on).max() <= 1e-3
            assert np.abs(ours - on).max() <= 1e-4


@pytest.mark.parametrize("variant", ["plain", "rslora", "some-layers", "embedding", "head"])
def test_adapter_comes_back_bit_equal(
    variant: str, adapted: Callable[[str], tuple[Any, Path, Path]], tmp_path: Path
) -> None:
    _, folder, base = adapted(variant)
    convert(folder, tmp_path / "a.gguf", Options(quantization="F32", base=base, verify=False))
    convert(tmp_path / "a.gguf", tmp_path / "back", Options(to="hf", base=base))
    before = read_safetensors(folder / "adapter_model.safetensors")
    after = read_safetensors(tmp_path / "back" / "adapter_model.safetensors")
    assert {n: t.read().tobytes() for n, t in after.items()} == {
        n: t.read().tobytes() for n, t in before.items() if "base_layer" not in n
    }
    there, back = read_peft(folder), read_peft(tmp_path / "back")
    for module, pair in there.pairs.items():
        assert back.pairs[module].scale == pytest.approx(pair.scale, rel=1e-6)


def test_scales_that_differ_by_module_survive(adapted: Callable[[str], tuple[Any, Path, Path]], tmp_path: Path) -> None:
    _, folder, base = adapted("patterns")
    config, adapter = read_hf(base).config, read_peft(folder)
    write_lora_gguf(adapter, config, tmp_path / "a.gguf", "F32")
    back = read_lora_gguf(tmp_path / "a.gguf", config)
    (tmp_path / "peft").mkdir()
    write_peft(adapter, tmp_path / "peft")
    again = read_peft(tmp_path / "peft")
    for module, pair in adapter.pairs.items():
        whole = pair.b.read() @ pair.a.read() * pair.scale
        for other in (back.pairs[module], again.pairs[module]):
            np.testing.assert_allclose(other.b.read() @ other.a.read() * other.scale, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "limit"), [("F16", 0.005), ("Q8_0", 0.1)])
def test_smaller_types_stay_close(
    kind: str, limit: float, adapted: Callable[[str], tuple[Any, Path, Path]], tmp_path: Path
) -> None:
    _, folder, base = adapted("plain")
    report = convert(folder, tmp_path / "a.gguf", Options(quantization=kind, base=base))
    proof = report.parts[0].verification
    assert proof is not None and proof.effect is not None
    assert 0 < proof.mean_abs_diff <= limit and proof.effect > 0.05


def edited(folder: Path, target: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    target.mkdir()
    values = json.loads((folder / "adapter_config.json").read_text()) | config
    (target / "adapter_config.json").write_text(json.dumps(values))
    kept = {n: t.read() for n, t in read_safetensors(folder / "adapter_model.safetensors").items()}
    kept = {n: v for n, v in (kept | (tensors or {})).items() if v is not None}
    lazy = [LazyTensor.holding(n, v) for n, v in kept.items()]
    write_safetensors(target / "adapter_model.safetensors", lazy)
    return target


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("config", "tensors", "said"),
    [
        ({"use_dora": True}, {}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save"),
        ({"peft_type": "LOHA"}, {}, "the PEFT method 'LOHA'"),
        ({"bias": "all"}, {}, "trained biases"),
        ({"init_lora_weights": "pissa_niter_4"}, {}, "pissa"),
        ({"trainable_token_indices": [1, 2]}, {}, "trained tokens"),
        ({}, {"base_model.model.model.embed_tokens.weight": np.zeros((330, 64), np.float32)}, "grown embeddings"),
        ({}, {f"{Q0}.lora_magnitude_vector": np.zeros(64, np.float32)}, "no LoRA pair"),
        ({}, {f"{Q0}.lora_B.weight": None}, "lacks lora_A or lora_B"),
        ({"r": 4}, {}, "its config says r 4"),
        ({"lora_alpha": float("nan")}, {}, "lora_alpha nan"),
    ],
)
def test_what_plain_lora_cannot_say_is_refused_by_name(
    adapted: Callable[[str], tuple[Any, Path, Path]],
    tmp_path: Path,
    config: dict[str, Any],
    tensors: dict[str, Any],
    said: str,
) -> None:
    _, folder, base = adapted("plain")
    source = edited(folder, tmp_path / "edited", tensors, **config)
    with pytest.raises(ZephyraError, match=said):
        convert(source, tmp_path / "a.gguf", Options(base=base))
    assert [path.name for path in tmp_path.iterdir()] == ["edited"]


def test_a_foreign_base_is_refused(
    adapted: Callable[[str], tuple[Any, Path, Path]], checkpoint_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    _, folder, _ = adapted("plain")
    with pytest.raises(ZephyraError, match="does not fit the base.*'model.layers.0.self_attn.k_proj' is"):
        convert(folder, tmp_path / "a.gguf", Options(base=checkpoint_folder("llama-wide-heads")))
    with pytest.raises(ZephyraError, match="one table for embedding and head"):
        convert(adapted("head")[1], tmp_path / "a.gguf", Options(base=checkpoint_folder("llama-wide-heads")))


def test_a_grown_vocabulary_is_refused(adapted: Callable[[str], tuple[Any, Path, Path]], tmp_path: Path) -> None:
    _, folder, base = adapted("head")
    grown = {"base_model.model.lm_head.base_layer.weight": np.zeros((330, 64), np.float32)}
    with pytest.raises(ZephyraError, match=r"'lm_head.weight' is \[330, 64\], the base's \[320, 64\]"):
        convert(edited(folder, tmp_path / "edited", grown), tmp_path / "a.gguf", Options(base=base))


def test_an_unknown_base_is_asked_for(adapted: Callable[[str], tuple[Any, Path, Path]], tmp_path: Path) -> None:
    source = edited(adapted("plain")[1], tmp_path / "edited", base_model_name_or_path="somebody/some-model")
    with pytest.raises(ZephyraError, match="somebody/some-model"):
        convert(source, tmp_path / "a.gguf")


def test_an_adapter_that_changes_nothing_is_an_error(
    adapted: Callable[[str], tuple[Any, Path, Path]], tmp_path: Path
) -> None:
    _, folder, base = adapted("some-layers")
    zero = {"base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight": np.zeros((32, 4), np.float32)}
    source = edited(folder, tmp_path / "edited", zero)
    with pytest.raises(ZephyraError, match="changes nothing"):
        convert(source, tmp_path / "a.gguf", Options(base=base))
    assert [path.name for path in tmp_path.iterdir()] == ["edited"]


def test_an_adapter_that_changes_everything_is_an_error(
    adapted: Callable[[str], tuple[Any, Path, Path]], tmp_path: Path
) -> None:
    _, folder, base = adapted("plain")
    with pytest.raises(ZephyraError, match="changes everything"):
        convert(edited(folder, tmp_path / "edited", lora_alpha=300), tmp_path / "a.gguf", Options(base=base))


def test_a_converted_adapter_knows_its_base(
    adapted: Callable[[str], tuple[Any, Path, Path]], oracle: Callable[[str], Any], tmp_path: Path
) -> None:
    """The fingerprint holds through quantization, and tells a base from another of the same shape."""
    import torch

    _, folder, base = adapted("plain")
    convert(base, tmp_path / "q8.gguf", Options(quantization="Q8_0", verify=False))
    convert(folder, tmp_path / "a.gguf", Options(base=tmp_path / "q8.gguf", verify=False))
    convert(tmp_path / "a.gguf", tmp_path / "back", Options(to="hf", base=base))
    import copy

    other = copy.deepcopy(oracle("llama"))
    with torch.no_grad():
        other.model.norm.weight.mul_(1.01)
    other.save_pretrained(tmp_path / "other")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "other" / file).write_bytes((base / file).read_bytes())
    with pytest.raises(ZephyraError, match="fingerprints differ"):
        convert(tmp_path / "a.gguf", tmp_path / "back2", Options(to="hf", base=tmp_path / "other"))
    convert(tmp_path / "other", tmp_path / "other.gguf", Options(quantization="Q8_0", verify=False))
    with pytest.raises(ZephyraError, match="trained on another base"):
        check_gguf(tmp_path / "a.gguf", base=read_header(tmp_path / "other.gguf"))


def test_a_blend_has_pefts_logits(
    adapted: Callable[[str], tuple[Any, Path, Path]], token_ids: list[list[int]], tmp_path: Path
) -> None:
    """W + 0.7 s B A + 0.4 s' B' A': peft's combination "cat"."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    (_, plain, base), (_, head, _) = adapted("plain"), adapted("head")
    checkpoint = read_hf(base)
    write_gguf(plan_gguf(checkpoint), tmp_path / "base.gguf", "F32")
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base).float(), plain, "plain")
    model.load_adapter(edited(head, tmp_path / "edited", save_embedding_layers=None), "head")
    for name, folder in (("plain", plain), ("head", head)):
        write_lora_gguf(read_peft(folder), checkpoint.config, tmp_path / f"{name}.gguf", "F32")
    with LoadedGGUF(tmp_path / "base.gguf", 64) as gguf:
        for name in ("plain", "head"):
            gguf.add_adapter(name, tmp_path / f"{name}.gguf")
        gguf.set_adapters({"plain": 0.7, "head": 0.4})
        model.base_model.set_adapter(["plain", "head"])
        for module in model.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                for name, weight in (("plain", 0.7), ("head", 0.4)):
                    if name in module.scaling:
                        module.scaling[name] *= weight
        for ids in token_ids:
            with torch.no_grad():
                expected = model(torch.tensor([ids])).logits[0].numpy()
            assert np.abs(gguf.logits(ids) - expected).max() <= 1e-3


def test_old_bin_adapters_are_read(adapted: Callable[[str], tuple[Any, Path, Path]], tmp_path: Path) -> None:
    import torch

    _, folder, base = adapted("plain")
    source = edited(folder, tmp_path / "edited")
    tensors = {n: t.read() for n, t in read_safetensors(source / "adapter_model.safetensors").items()}
    (source / "adapter_model.safetensors").unlink()
    torch.save({n: torch.from_numpy(v).to(torch.bfloat16) for n, v in tensors.items()}, source / "adapter_model.bin")
    convert(source, tmp_path / "a.gguf", Options(base=base, verify=False))
    assert read_peft(source).rank == 8
