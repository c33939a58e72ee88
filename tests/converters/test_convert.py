"""Whole conversions: there and back, packs, refusals, and nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zephyra_converters.convert import Options, convert
from zephyra_converters.gguf_header import read_header
from zephyra_converters.safetensors_file import read_safetensors
from zephyra_fusion.errors import ZephyraError


def bits(path: Path) -> dict[str, bytes]:
    return {name: tensor.read().tobytes() for name, tensor in read_safetensors(path).items()}


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


def changed(folder: Path, target: Path, **config: Any) -> Path:
    """A copy of a checkpoint with other config keys; None removes."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    values = json.loads((folder / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return target


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


@pytest.fixture(scope="module")
def pack_sources(
    oracle: Callable[[str], Any], checkpoint_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A base, two PEFT adapters and a router that belong together."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    from zephyra_fusion.router_model import RouterConfig, RouterModel, save_router

    transformers = pytest.importorskip("transformers")
    folder, base = tmp_path_factory.mktemp("sources"), checkpoint_folder("qwen3")
    for seed, name in enumerate(("law", "code")):
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        config = peft.LoraConfig(r=32, lora_alpha=64, target_modules=targets, task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(model, config)
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, parameter in adapted.named_parameters():
                if "lora_B" in key:
                    parameter.copy_(torch.randn_like(parameter) * 0.05)
        adapted.save_pretrained(folder / name)
    router = RouterConfig(vocab_size=320, labels=("law", "code", "none"), temperature=1.2, threshold=0.6)
    torch.manual_seed(5)
    save_router(RouterModel(router), router, folder / "router")
    return {"base": base, "law": folder / "law", "code": folder / "code", "router": folder / "router"}


def pack_options(sources: dict[str, Path], **more: Any) -> Options:
    adapters = {"law": sources["law"], "code": sources["code"]}
    return Options(adapters=adapters, router=sources["router"], name="tiny-pack", **more)


def test_a_pack_is_made_and_reads_back(pack_sources: dict[str, Path], tmp_path: Path) -> None:
    report = convert(pack_sources["base"], tmp_path / "pack", pack_options(pack_sources, quantization="F32"))
    assert [part.kind for part in report.parts] == ["base", "adapter", "adapter", "router"]
    for part in report.parts[:3]:
        assert part.verification is not None and part.verification.max_abs_diff <= 1e-3
    manifest = json.loads((tmp_path / "pack" / "zephyra.json").read_text())
    files = {p.relative_to(tmp_path / "pack").as_posix(): p for p in (tmp_path / "pack").rglob("*") if p.is_file()}
    assert set(manifest["files"]) == set(files) - {"zephyra.json"}
    for file, entry in manifest["files"].items():
        assert entry["sha256"] == hashlib.sha256(files[file].read_bytes()).hexdigest()
        assert entry["size"] == files[file].stat().st_size
    assert manifest["adapters"]["law"]["verification"]["effect"] > 0.01
    from zephyra_cli.pack import Pack

    pack = Pack.read(tmp_path / "pack")
    assert pack.name == "tiny-pack" and set(pack.adapters) == {"law", "code"} and pack.adapters["law"].rank == 32
    assert pack.router is not None and pack.router.labels == ("law", "code", "none")

    convert(tmp_path / "pack", tmp_path / "apart", Options(to="hf"))
    assert bits(tmp_path / "apart" / "base" / "model.safetensors") == bits(pack_sources["base"] / "model.safetensors")
    for name in ("law", "code"):
        there, back = pack_sources[name], tmp_path / "apart" / "adapters" / name
        assert bits(back / "adapter_model.safetensors") == bits(there / "adapter_model.safetensors")
        config = json.loads((back / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (32, 64)


def test_a_pack_by_the_command_line(pack_sources: dict[str, Path], tmp_path: Path) -> None:
    """The target may stand between options; the pack verifies and answers."""
    (tmp_path / "law").symlink_to(pack_sources["law"])
    options = ["--adapter", "law=./law", "--adapter", f"code={pack_sources['code']}", "--router"]
    options += [str(pack_sources["router"]), "./my-pack", "-q", "Q4_K_M", "--no-verify"]
    environment = os.environ | {"ZEPHYRA_HOME": str(tmp_path / "home")}
    for command in (
        ["convert", str(pack_sources["base"]), *options],
        ["models", "verify", "./my-pack"],
        ["generate", "-m", "./my-pack", "-n", "3", "-d", "law", "hello"],
    ):
        program = [sys.executable, "-m", "zephyra_cli", *command]
        done = subprocess.run(program, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=600)
        assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "my-pack" / "zephyra.json").read_text())
    assert manifest["name"] == "my-pack" and manifest["base"]["quantization"] == "Q4_K_M"
    assert manifest["adapters"].keys() == {"law", "code"} and manifest["router"]["labels"] == ["law", "code", "none"]


def test_a_pack_that_does_not_fit_together_is_refused(pack_sources: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ZephyraError, match="without an adapter: code"):
        options = Options(adapters={"law": pack_sources["law"]}, router=pack_sources["router"])
        convert(pack_sources["base"], tmp_path / "pack", options)
    with pytest.raises(ZephyraError, match="cannot be the name"):
        convert(pack_sources["base"], tmp_path / "pack", Options(adapters={"none": pack_sources["law"]}))
    assert not list(tmp_path.iterdir())


def test_a_pack_carries_a_draft_of_the_same_tokens(
    pack_sources: dict[str, Path], checkpoint_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    from zephyra_cli.pack import Pack

    small = checkpoint_folder("llama")
    report = convert(pack_sources["base"], tmp_path / "pack", Options(draft=small, quantization="Q4_0"))
    assert [(part.kind, part.quantization) for part in report.parts] == [("base", "Q4_0"), ("draft", "Q8_0")]
    pack = Pack.read(tmp_path / "pack")
    assert pack.draft == "draft.gguf" and pack.draft in pack.files
    convert(tmp_path / "pack", tmp_path / "apart", Options(to="hf"))
    assert (tmp_path / "apart" / "draft" / "model.safetensors").is_file()

    other = changed(small, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"][0]["content"] = "<|another|>"
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ZephyraError, match="has other tokens than the base"):
        convert(pack_sources["base"], tmp_path / "none", Options(draft=other))
    assert not (tmp_path / "none").exists()


def test_a_pack_keeps_its_bases_own_template(pack_sources: dict[str, Path], tmp_path: Path) -> None:
    """In the base's file; the manifest says that it holds none of its own."""
    from zephyra_cli.pack import Pack

    source, template = changed(pack_sources["base"], tmp_path / "own"), "{{ messages[0]['content'] }}<|end|>"
    (source / "chat_template.jinja").write_text(template)
    options = Options(adapters={"law": pack_sources["law"]}, quantization="F16", verify=False)
    report = convert(source, tmp_path / "pack", options)
    assert "nothing in it proves" in report.warnings[0]  # the copy has another name
    assert Pack.read(tmp_path / "pack").chat is None
    assert read_header(tmp_path / "pack" / "base.gguf").metadata["tokenizer.chat_template"] == template


def test_pack_dry_run(pack_sources: dict[str, Path], tmp_path: Path) -> None:
    report = convert(pack_sources["base"], tmp_path / "pack", pack_options(pack_sources, dry_run=True))
    assert report.dry_run and len(report.parts) == 4 and not list(tmp_path.iterdir())
