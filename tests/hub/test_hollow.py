"""A dry run of what is on the hub: the same report as of the folder itself, for the price of the headers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.hub.server import Hub
from zephyra_cli.hollow import hollow_folder
from zephyra_converters.checkpoint import Checkpoint, LazyTensor, TokenizerFiles
from zephyra_converters.hf import expected_shapes, read_hf, write_hf
from zephyra_converters.json_file import write_json
from zephyra_converters.safetensors_file import write_safetensors
from zephyra_fusion.config import FusionConfig
from zephyra_fusion.config_json import to_json
from zephyra_fusion.errors import ZephyraError


@pytest.fixture
def folder(tiny_tokenizer: Any, tmp_path: Path) -> Path:
    """A checkpoint whose weights are far larger than its header, in two shards."""
    import numpy as np

    config = FusionConfig(
        vocab_size=320, hidden_size=256, num_hidden_layers=4, num_attention_heads=2, intermediate_size=1024,
        eos_token_id=5, max_position_embeddings=512,
    )  # fmt: skip
    tensors = {n: LazyTensor.holding(n, np.ones(shape, "f4")) for n, shape in expected_shapes(config).items()}
    files = TokenizerFiles(tokenizer=json.loads(tiny_tokenizer.to_str()), config={"eos_token": "<|end|>"})
    path = tmp_path / "large"
    path.mkdir()
    write_hf(Checkpoint(config=config, tensors=tensors, path=path, name="large", tokenizer=files), path, "F32")
    return path


def put(hub: Hub, folder: Path) -> None:
    hub.add("someone/large", {path.name: path.read_bytes() for path in folder.iterdir()})


def test_the_report_is_the_folders_own(hub: Hub, folder: Path, zephyra: Callable[..., Any], home: Path) -> None:
    put(hub, folder)
    afar = zephyra("convert", "hf:someone/large", "out.gguf", "-q", "Q4_K_M", "--dry-run", "--json")
    near = zephyra("convert", str(folder), "out.gguf", "-q", "Q4_K_M", "--dry-run", "--json")
    assert afar.returncode == near.returncode == 0, afar.stderr
    there, here = json.loads(afar.stdout), json.loads(near.stdout)
    assert there["source"] == "hf:someone/large" and there["machine_memory"] > 2**28
    for key in ("bytes", "sizes", "kind", "warnings"):
        assert there[key] == here[key]
    assert there["sizes"]["Q4_K_M"]["bytes"] < there["sizes"]["F16"]["bytes"] / 3
    size = (folder / "model.safetensors").stat().st_size
    assert size > 4 * 2**20 and hub.sent(r"safetensors|\.bin|/cdn") < 1.3 * 2**20


def test_a_repeated_head_is_not_compared_from_afar(hub: Hub, folder: Path) -> None:
    """The part of a table that came along with the header would differ from the hole that the other one is."""
    import numpy as np

    config = replace(read_hf(folder).config, vocab_size=2000)  # a table of more than the first piece that is fetched
    shapes = {**expected_shapes(config), "lm_head.weight": (2000, 256)}
    tensors = [LazyTensor.holding(name, np.ones(shape, "f4")) for name, shape in shapes.items()]
    write_safetensors(folder / "model.safetensors", tensors, "F32")
    write_json(folder / "config.json", to_json(config))
    put(hub, folder)
    with hollow_folder("hf:someone/large") as place:
        assert read_hf(place).config.tie_word_embeddings


def test_what_cannot_be_looked_at_is_refused(hub: Hub, folder: Path, zephyra: Callable[..., Any]) -> None:
    put(hub, folder)
    run = zephyra("convert", "hf:someone/large", "out.gguf")
    assert run.returncode == 1 and b"--dry-run looks at it there" in run.stderr
    hub.add("someone/pickled", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    hub.add("someone/gguf", {"a.gguf": b"GGUF"})
    for name, said in (("pickled", "0 safetensors files"), ("gguf", "no checkpoint"), ("absent", "no repository")):
        with pytest.raises(ZephyraError, match=said), hollow_folder(f"hf:someone/{name}"):
            pass
