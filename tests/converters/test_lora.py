"""Adapters: peft against our reference against llama.cpp, there and back, and everything that is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.converters.conftest import VARIANTS, edited
from zephyra_converters.checkpoint import LazyTensor
from zephyra_converters.convert import Options, convert
from zephyra_converters.decoder_reference import reference_logits
from zephyra_converters.gguf_header import read_header
from zephyra_converters.gguf_write import plan_gguf, write_gguf
from zephyra_converters.hf import read_hf
from zephyra_converters.loaded import LoadedGGUF
from zephyra_converters.lora import read_lora_gguf, write_lora_gguf
from zephyra_converters.peft import read_peft, write_peft
from zephyra_converters.safetensors_file import read_safetensors, write_safetensors
from zephyra_fusion.errors import ZephyraError


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


def test_an_embedding_beside_layers_is_found_again_by_peft(
    adapted: Callable[[str], tuple[Any, Path, Path]], token_ids: list[list[int]], tmp_path: Path
) -> None:
    import peft
    import torch
    import transformers

    model, folder, base = adapted("embedding")
    write_peft(read_peft(folder), tmp_path, str(base))
    again = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base).float(), tmp_path)
    ids = torch.tensor([token_ids[1]])
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, model(ids).logits)


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


def test_q8_0_fills_ranks_up_to_whole_blocks(adapted: Callable[[str], tuple[Any, Path, Path]], tmp_path: Path) -> None:
    """A B of rank 8 in F16 would be slow; what fills it up is gone when the adapter is read back."""
    for variant in "plain", "patterns", "embedding":
        _, folder, base = adapted(variant)
        config, adapter, path = read_hf(base).config, read_peft(folder), tmp_path / f"{variant}.gguf"
        write_lora_gguf(adapter, config, path, "Q8_0")
        ends = [tensor for name, tensor in read_header(path).tensors.items() if name.endswith(".lora_b")]
        assert {(tensor.type_name, tensor.shape[0]) for tensor in ends} == {("Q8_0", 32)}
        back = read_lora_gguf(path, config)
        for module, pair in adapter.pairs.items():
            assert back.pairs[module].rank == pair.rank < 32
            whole = pair.b.read() @ pair.a.read() * pair.scale
            read = back.pairs[module].b.read() @ back.pairs[module].a.read() * back.pairs[module].scale
            assert np.abs(read - whole).max() < 0.02 * np.abs(whole).max()


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
    with pytest.raises(ZephyraError, match=r"'lm_head.weight' is \[330, 64\] for it and \[320, 64\] in the base"):
        convert(edited(folder, tmp_path / "edited", grown), tmp_path / "a.gguf", Options(base=base))


def test_an_unknown_base_is_asked_for(adapted: Callable[[str], tuple[Any, Path, Path]], tmp_path: Path) -> None:
    source = edited(adapted("plain")[1], tmp_path / "edited", base_model_name_or_path="somebody/some-model")
    with pytest.raises(ZephyraError, match="somebody/some-model"):
        convert(source, tmp_path / "a.gguf")


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    ("value", "kind", "said", "hint"),
    [
        (0.0, "F16", "its B, its A or its scale is zero", "never trained"),
        (1e-9, "F16", "changes nothing as F16: its weights are so small", "F32 or -q BF16"),
        (1e-9, "Q8_0", "changes nothing as Q8_0", "F32 or -q BF16"),
    ],
)
def test_an_adapter_that_changes_nothing_is_an_error(
    adapted: Callable[[str], tuple[Any, Path, Path]],
    tmp_path: Path,
    value: float,
    kind: str,
    said: str,
    hint: str,
    verify: bool,
) -> None:
    _, folder, base = adapted("some-layers")
    small = {"base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight": np.full((32, 4), value, np.float32)}
    source = edited(folder, tmp_path / "edited", small)
    with pytest.raises(ZephyraError, match=said) as caught:
        convert(source, tmp_path / "a.gguf", Options(base=base, quantization=kind, verify=verify))
    assert hint in str(caught.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["edited"]
    if value:
        convert(source, tmp_path / "a.gguf", Options(base=base, quantization="BF16", verify=False))


@pytest.mark.parametrize("method", ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"])
def test_a_learned_prompt_is_not_told_to_merge(
    adapted: Callable[[str], tuple[Any, Path, Path]], tmp_path: Path, method: str
) -> None:
    source = edited(adapted("some-layers")[1], tmp_path / "edited", peft_type=method)
    with pytest.raises(ZephyraError, match=method) as caught:
        convert(source, tmp_path / "a.gguf", Options(base=adapted("some-layers")[2]))
    assert "merge" not in str(caught.value.hint)


def test_an_adapter_that_changes_everything_is_an_error(
    adapted: Callable[[str], tuple[Any, Path, Path]], tmp_path: Path
) -> None:
    _, folder, base = adapted("plain")
    with pytest.raises(ZephyraError, match="changes everything"):
        convert(edited(folder, tmp_path / "edited", lora_alpha=300), tmp_path / "a.gguf", Options(base=base))


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


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_adapters_of_sixteen_bits_keep_every_bit(
    dtype: str, adapted: Callable[[str], tuple[Any, Path, Path]], tmp_path: Path
) -> None:
    _, folder, base = adapted("plain")
    source = edited(folder, tmp_path / "edited")
    tensors = {n: t.read() for n, t in read_safetensors(source / "adapter_model.safetensors").items()}
    lazy = [LazyTensor.holding(name, values) for name, values in tensors.items()]
    write_safetensors(source / "adapter_model.safetensors", lazy, dtype)
    stored = read_safetensors(source / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    convert(source, tmp_path / "a.gguf", Options(quantization=dtype, base=base))
    assert {tensor.type_name for tensor in read_header(tmp_path / "a.gguf").tensors.values()} == {dtype}
    convert(tmp_path / "a.gguf", tmp_path / "back", Options(to="hf", base=base))
    back = read_safetensors(tmp_path / "back" / "adapter_model.safetensors")
    assert back.keys() == stored.keys()
    assert all(np.array_equal(back[name].read(), stored[name].read()) for name in stored)
