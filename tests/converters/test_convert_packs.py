"""Packs as conversions make them: what lies in them, what they say of themselves, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.converters.conftest import bits, changed
from zephyra_converters.convert import Options, convert
from zephyra_converters.gguf_header import read_header
from zephyra_fusion.errors import ZephyraError


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


@pytest.mark.parametrize("control_tokens", [True, False])
def test_a_pack_of_a_base_without_a_template(
    pack_sources: dict[str, Path], tmp_path: Path, control_tokens: bool
) -> None:
    """Ours, where the vocabulary has its tokens; else none, as for the bare file."""
    from zephyra_cli.pack import Pack

    source = changed(pack_sources["base"], tmp_path / "own")
    (source / "tokenizer_config.json").write_text("{}")
    if not control_tokens:
        tokenizer = (source / "tokenizer.json").read_text()
        (source / "tokenizer.json").write_text(tokenizer.replace("<|user|>", "<|human|>"))
    convert(source, tmp_path / "a.gguf", Options(quantization="F16", verify=False))
    for base in (source, tmp_path / "a.gguf"):
        pack = tmp_path / f"pack-of-{base.name}"
        convert(base, pack, Options(adapters={"law": pack_sources["law"]}, quantization="F16", verify=False))
        assert (Pack.read(pack).chat is not None) == control_tokens


def test_a_pack_takes_an_adapter_that_is_gguf_already(pack_sources: dict[str, Path], tmp_path: Path) -> None:
    """It passes the same checks and proofs, and gets the pack's own type."""
    base, gguf = pack_sources["base"], tmp_path / "law.gguf"
    convert(pack_sources["law"], gguf, Options(base=base, quantization="F32", verify=False))
    report = convert(base, tmp_path / "pack", Options(adapters={"law": gguf}, quantization="F32"))
    assert report.parts[1].verification is not None and report.parts[1].verification.max_abs_diff <= 1e-3
    convert(tmp_path / "pack", tmp_path / "apart", Options(to="hf"))
    back = tmp_path / "apart" / "adapters" / "law" / "adapter_model.safetensors"
    assert bits(back) == bits(pack_sources["law"] / "adapter_model.safetensors")
    report = convert(base, tmp_path / "small", Options(adapters={"law": gguf}, quantization="Q4_0", verify=False))
    assert report.parts[1].quantization == "Q8_0"
    convert(base, tmp_path / "base.gguf", Options(verify=False))
    with pytest.raises(ZephyraError, match=r"base.gguf is no LoRA adapter"):
        convert(base, tmp_path / "none", Options(adapters={"law": tmp_path / "base.gguf"}))


def test_pack_dry_run(pack_sources: dict[str, Path], tmp_path: Path) -> None:
    report = convert(pack_sources["base"], tmp_path / "pack", pack_options(pack_sources, dry_run=True))
    assert report.dry_run and len(report.parts) == 4 and not list(tmp_path.iterdir())
