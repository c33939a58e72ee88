"""Whose base an adapter is: fingerprints, and what is said where nothing proves it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.converters.conftest import edited
from zephyra_converters.convert import Options, convert
from zephyra_converters.gguf_check import check_gguf
from zephyra_converters.gguf_header import read_header
from zephyra_converters.safetensors_file import read_safetensors, write_safetensors
from zephyra_fusion.errors import ZephyraError


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


def test_a_table_that_comes_with_an_adapter_is_compared(
    adapted: Callable[[str], tuple[Any, Path, Path]], tmp_path: Path
) -> None:
    """PEFT saves the base's embedding beside an adapter of it: another one would be lost without a word."""
    _, folder, base = adapted("embedding")
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    table = read_safetensors(folder / "adapter_model.safetensors")[name].read()
    options = Options(base=base, verify=False)
    assert convert(folder, tmp_path / "a.gguf", options).warnings == ()
    half = edited(folder, tmp_path / "half")
    kept = read_safetensors(folder / "adapter_model.safetensors")
    for dtype in ("BF16", "F16"):  # as it was loaded for training
        write_safetensors(tmp_path / "rounded", kept.values(), dtype)
        (tmp_path / "rounded").replace(half / "adapter_model.safetensors")
        assert convert(half, tmp_path / f"{dtype}.gguf", options).warnings == ()
    trained = edited(folder, tmp_path / "trained", {name: table * 1.001})
    with pytest.raises(ZephyraError, match="brings its own model.embed_tokens.weight, with other values"):
        convert(trained, tmp_path / "b.gguf", options)
    convert(base, tmp_path / "q8.gguf", Options(quantization="Q8_0", verify=False))
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_bytes((base / "config.json").read_bytes())
    for number, unseen in enumerate((tmp_path / "q8.gguf", tmp_path / "config")):
        warnings = convert(trained, tmp_path / f"{number}.gguf", Options(base=unseen, verify=False)).warnings
        assert any("brings its own model.embed_tokens.weight" in warning for warning in warnings)


LOST = "base_model.model.model.layers.{}.self_attn.k_proj.lora_{}.weight"


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({}, True),
        ({"target_modules": r"model\.layers\.\d+\.self_attn\.[qkvo]_proj"}, True),
        ({"target_modules": ["k_proj", "q_proj", "layers.1.mlp.up_proj"], "layers_to_transform": [1]}, True),
        ({"target_modules": r".*\.([qvo]|gate|up|down)_proj"}, False),
        ({"exclude_modules": ["k_proj"]}, False),
        ({"exclude_modules": r".*\.k_proj"}, False),
        ({"target_modules": ["q_proj"]}, False),
        ({"layers_to_transform": [7]}, False),
        ({"layers_to_transform": 1, "layers_pattern": "h"}, False),
    ],
)
def test_modules_whose_tensors_are_lost_are_named(
    config: dict[str, Any], refused: bool, adapted: Callable[[str], tuple[Any, Path, Path]], tmp_path: Path
) -> None:
    _, folder, base = adapted("plain")
    none = {LOST.format(layer, side): None for layer in (0, 1) for side in "AB"}
    source, options = edited(folder, tmp_path / "edited", none, **config), Options(base=base, verify=False)
    if refused:
        with pytest.raises(ZephyraError, match=r"no tensors of modules .* targets: .*layers\.1\.self_attn\.k_proj"):
            convert(source, tmp_path / "a.gguf", options)
    else:
        assert convert(source, tmp_path / "a.gguf", options).warnings == ()


def test_modules_that_some_layers_lack_are_warned_about(
    adapted: Callable[[str], tuple[Any, Path, Path]], tmp_path: Path
) -> None:
    _, folder, base = adapted("plain")
    source = edited(folder, tmp_path / "edited", {LOST.format(0, side): None for side in "AB"})
    (warning,) = convert(source, tmp_path / "a.gguf", Options(base=base, verify=False)).warnings
    assert warning.endswith("leaves out modules that its config targets: model.layers.0.self_attn.k_proj")


def test_a_base_that_cannot_be_verified_is_warned_about(
    adapted: Callable[[str], tuple[Any, Path, Path]], tmp_path: Path
) -> None:
    """Its config alone gives the order of rows, and so the same file."""
    _, folder, base = adapted("plain")
    options = Options(base=base, verify=False)
    assert convert(folder, tmp_path / "a.gguf", options).warnings == ()  # its own folder's name
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_bytes((base / "config.json").read_bytes())
    other = edited(folder, tmp_path / "edited", base_model_name_or_path="somebody/model")
    first, second = convert(other, tmp_path / "b.gguf", Options(base=tmp_path / "config")).warnings
    assert "names 'somebody/model' as its base" in first and "--verify-text" in first and "no weights" in second
    (a, b), read = (read_header(tmp_path / name) for name in ("a.gguf", "b.gguf")), tmp_path
    for name, tensor in a.tensors.items():
        assert (read / "a.gguf").read_bytes()[tensor.offset :][: tensor.size] == (
            (read / "b.gguf").read_bytes()[b.tensors[name].offset :][: tensor.size]
        )
