"""Checkpoint folders: exact round trips, and errors that name what does not fit and where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fusion.family import FAMILY, build, some_ids
from zephyra_fusion.checkpoint import load_checkpoint, save_checkpoint
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.lora import LoraConfig, add_adapter


@torch.no_grad()
@pytest.mark.parametrize("name", list(FAMILY))
def test_round_trip_is_exact(name: str, tmp_path: Path) -> None:
    model, ids = build(FAMILY[name]), some_ids(12)
    save_checkpoint(model, tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert torch.equal(loaded(ids), model(ids))
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))


def test_adapters_are_left_out(tmp_path: Path) -> None:
    model = build(FAMILY["qk norm"])
    save_checkpoint(model, tmp_path / "plain")
    add_adapter(model, "a", LoraConfig(r=2))
    save_checkpoint(model, tmp_path / "adapted")
    plain, adapted = (load_file(tmp_path / n / "model.safetensors") for n in ("plain", "adapted"))
    assert plain.keys() == adapted.keys()


def test_every_mismatch_in_one_error(tmp_path: Path) -> None:
    save_checkpoint(build(FAMILY["qk norm"]), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 32)
    tensors["model.layers.7.mlp.up_proj.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, path)
    with pytest.raises(ZephyraError) as caught:
        load_checkpoint(tmp_path)
    for part in (
        str(tmp_path),
        "'model.layers.1.mlp.up_proj.weight' is missing",
        "'model.layers.7.mlp.up_proj.weight' has no place",
        "'model.layers.0.mlp.up_proj.weight' is [3, 32], must be [48, 32]",
    ):
        assert part in caught.value.message


def test_damaged_or_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ZephyraError, match=r"config\.json does not exist"):
        load_checkpoint(tmp_path)
    save_checkpoint(build(FAMILY["qk norm"]), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ZephyraError, match=r"model\.safetensors cannot be read"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ZephyraError, match="holds a list, not an object"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ZephyraError, match="cannot be read"):
        load_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../b.safetensors"}}))
    save_config = build(FAMILY["qk norm"])
    save_checkpoint(save_config, tmp_path)
    with pytest.raises(ZephyraError, match="names a file outside its folder"):
        load_checkpoint(tmp_path)


def test_shards(tmp_path: Path) -> None:
    model, ids = build(FAMILY["qk norm"]), some_ids(12)
    save_checkpoint(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, tmp_path / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with torch.no_grad():
        assert torch.equal(load_checkpoint(tmp_path)(ids), model(ids))


@pytest.mark.parametrize("shape", [(2, 9), (1, 10), (2, 11), (10,)])
def test_mismatched_masks_and_positions_are_refused(shape: tuple[int, ...]) -> None:
    model, ids = build(FAMILY["qk norm"]), some_ids(10)
    with pytest.raises(ZephyraError, match=r"attention_mask is \[.*\], must be \[batch, .*\] = \[2, 10\]"):
        model(ids, attention_mask=torch.ones(shape))
    with pytest.raises(ZephyraError, match=r"positions are \[.*\], must be as the ids: \[2, 10\]"):
        model(ids, torch.zeros(shape, dtype=torch.long))
