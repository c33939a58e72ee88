"""Whole conversions: there and back, packs, refusals, and nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.converters.conftest import bits, changed
from zephyra_converters.convert import Options, convert
from zephyra_converters.gguf_header import read_header
from zephyra_converters.safetensors_file import read_safetensors
from zephyra_fusion.errors import ZephyraError


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        "llama-biased",
        "llama3-rope",
        "llama-linear-rope",
        "qwen2",
        "qwen2-yarn",
        "qwen3",
        "mixtral",
        "mistral-window",
        "qwen3-windows",
        "qwen3-moe",
    ],
)
def test_there_and_back_is_bit_equal(family: str, checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    source, gguf, back = checkpoint_folder(family), tmp_path / "a.gguf", tmp_path / "back"
    convert(source, gguf, Options(quantization="F32"))
    convert(gguf, back, Options(to="hf"))
    assert bits(back / "model.safetensors") == bits(source / "model.safetensors")
    transformers = pytest.importorskip("transformers")
    before = transformers.AutoConfig.from_pretrained(source).to_dict()
    after = transformers.AutoConfig.from_pretrained(back).to_dict()
    silent = {"dtype", "_name_or_path", "eos_token_id", "transformers_version"}  # say nothing of the function
    assert {k: after.get(k) for k, v in before.items() if k not in silent and v is not None} == {
        k: v for k, v in before.items() if k not in silent and v is not None
    }


def test_report_of_a_quantized_base(checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    report = convert(checkpoint_folder("qwen3"), tmp_path / "base.gguf", Options(quantization="q8_0"))
    part = report.parts[0]
    assert part.quantization == "Q8_0" and part.tensors["Q8_0"] == 15
    assert part.verification is not None and 0 < part.verification.max_abs_diff < 0.5
    assert part.bytes == (tmp_path / "base.gguf").stat().st_size
    assert json.loads(json.dumps(report.to_dict()))["kind"] == "base"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.gguf"]


def test_k_quants_tell_what_fell_back(checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    report = convert(checkpoint_folder("qwen3"), tmp_path / "base.gguf", Options(quantization="Q4_K_M"))
    assert "fell back" in report.warnings[-1]


def test_dry_run_writes_nothing(checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    source = checkpoint_folder("llama")
    planned = convert(source, tmp_path / "a.gguf", Options(quantization="F16", dry_run=True))
    assert not list(tmp_path.iterdir())
    written = convert(source, tmp_path / "a.gguf", Options(quantization="F16", verify=False))
    assert abs(planned.bytes - written.bytes) < 0.05 * written.bytes


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"model_type": "gpt_neox"}, "gpt_neox"),
        ({"scale_emb": 12}, "scale_emb"),
        ({"num_hidden_layers": 1}, "does not know"),
        ({"num_hidden_layers": 3}, "lacks"),
        ({"intermediate_size": 128}, r"config.json says \[128, 64\]"),
        ({"vocab_size": 300}, r"\[300, 64\]"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
        ({"eos_token_id": 4000}, "4000"),
    ],
)
def test_what_gguf_cannot_express_is_refused(
    checkpoint_folder: Callable[[str], Path], tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    source = changed(checkpoint_folder("llama"), tmp_path / "changed", **config)
    with pytest.raises(ZephyraError, match=said):
        convert(source, tmp_path / "a.gguf", Options(quantization="F32"))
    assert [path.name for path in tmp_path.iterdir()] == ["changed"]


def test_windows_over_experts_with_qk_norm_are_refused(
    checkpoint_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    more = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}
    source = changed(checkpoint_folder("qwen3-moe"), tmp_path / "changed", **more)
    with pytest.raises(ZephyraError, match="num_experts 4 together with what needs architecture 'step35'"):
        convert(source, tmp_path / "a.gguf")


def test_nan_weights_are_named_and_nothing_stays(checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    source = changed(checkpoint_folder("llama"), tmp_path / "changed")
    tensors = read_safetensors(source / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    values = tensors[name].read()
    values[3, 5] = np.nan
    from safetensors.numpy import save_file

    save_file({n: t.read() for n, t in tensors.items()} | {name: values}, source / "model.safetensors")
    wrong = r"_?up.*weight' has values that are NaN or infinite, the first at \[3, 5\]"
    for options in (Options(), Options(to="hf")):
        with pytest.raises(ZephyraError, match=wrong):
            convert(source, tmp_path / "a", options)
    assert [path.name for path in tmp_path.iterdir()] == ["changed"]


def test_targets_are_guarded(checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    source, target = checkpoint_folder("qwen3"), tmp_path / "a.gguf"
    target.write_text("precious")
    with pytest.raises(ZephyraError, match="exists"):
        convert(source, target)
    assert target.read_text() == "precious"
    convert(source, target, Options(force=True, verify=False, quantization="F16"))
    assert read_header(target).architecture == "qwen3"
    with pytest.raises(ZephyraError, match="inside"):
        convert(source, source / "inside.gguf")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "letter.txt").write_text("precious")
    with pytest.raises(ZephyraError, match="no conversion made"):
        convert(target, tmp_path / "folder", Options(to="hf", force=True))
    with pytest.raises(ZephyraError, match="no folder"):
        convert(source, tmp_path / "absent" / "a.gguf")
    with pytest.raises(ZephyraError, match="absent' does not exist"):
        convert(tmp_path / "absent")


@pytest.mark.parametrize(("given", "said"), [("Q9_9", "unknown quantization"), ("iq2_xs", "importance matrix")])
def test_quantizations_are_checked(
    checkpoint_folder: Callable[[str], Path], tmp_path: Path, given: str, said: str
) -> None:
    with pytest.raises(ZephyraError, match=said):
        convert(checkpoint_folder("qwen3"), tmp_path / "a.gguf", Options(quantization=given))


def test_a_quantized_file_is_not_quantized_again(checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    convert(checkpoint_folder("qwen3"), tmp_path / "a.gguf", Options(verify=False))
    with pytest.raises(ZephyraError, match="quantized already"):
        convert(tmp_path / "a.gguf", tmp_path / "b.gguf", Options(quantization="Q4_0"))
    back = convert(tmp_path / "a.gguf", tmp_path / "back", Options(to="hf"))
    assert "does not come back" in back.warnings[0]


def test_special_tokens_that_the_vocabulary_lacks_are_warned_about(
    checkpoint_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    source = changed(checkpoint_folder("qwen3"), tmp_path / "changed")
    tokens = {"bos_token": None, "eos_token": "<|stop|>", "pad_token": {"content": "[PAD]"}}
    (source / "tokenizer_config.json").write_text(json.dumps(tokens))
    warnings = convert(source, tmp_path / "a.gguf", Options(dry_run=True)).warnings
    assert len(warnings) == 2 and "eos_token" in warnings[0] and "'<|stop|>'" in warnings[0]
    assert "pad_token" in warnings[1] and "'[PAD]'" in warnings[1]
