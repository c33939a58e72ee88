"""Where a conversion may write: never over what is read, never over what nobody can make again, never elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from zephyra_converters.convert import Options, convert
from zephyra_converters.gguf_header import read_header
from zephyra_converters.gguf_write import plan_gguf, write_gguf
from zephyra_converters.hf import read_hf
from zephyra_converters.target import check_target
from zephyra_fusion.errors import ZephyraError


@pytest.fixture
def sources(checkpoint_folder: Callable[[str], Path], tiny_peft: Callable[[], Path], tmp_path: Path) -> dict[str, Path]:
    """Copies that a fault may delete."""
    copytree(checkpoint_folder("qwen3"), tmp_path / "base")
    copytree(tiny_peft(), tmp_path / "law")
    return {"base": tmp_path / "base", "law": tmp_path / "law"}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("source", "target", "more"),
    [
        ("law", "base", {"base": "base"}),
        ("law", "base/x.gguf", {"base": "base"}),
        ("law", "up", {"base": "up/down/base"}),
        ("base", "law", {"adapters": "law"}),
        ("base", "law/pack", {"adapters": "law"}),
        ("base", "law", {"router": "law"}),
        ("base", "law", {"draft": "law"}),
        ("base", "text", {"calibration": "text", "quantization": "Q4_K_M"}),
        ("base", "link", {"verify_text": "text"}),
    ],
)
def test_nothing_that_is_read_is_touched(
    sources: dict[str, Path], tmp_path: Path, source: str, target: str, more: dict[str, str]
) -> None:
    (tmp_path / "text").write_text("words " * 500)
    (tmp_path / "link").symlink_to("text")
    (tmp_path / "up" / "down").mkdir(parents=True)
    copytree(sources["base"], tmp_path / "up" / "down" / "base")
    given: dict[str, Any] = {key: tmp_path / name for key, name in more.items() if key != "quantization"}
    if "adapters" in given:
        given["adapters"] = {"law": given["adapters"]}
    elif target == "law":
        given["adapters"] = {"code": tmp_path / "elsewhere"}
    before = everything(tmp_path)
    with pytest.raises(ZephyraError, match="and that is read"):
        convert(tmp_path / source, tmp_path / target, Options(force=True, verify=False, **{**more, **given}))
    assert everything(tmp_path) == before


def test_force_replaces_what_a_conversion_made_and_nothing_else(sources: dict[str, Path], tmp_path: Path) -> None:
    base, made = sources["base"], tmp_path / "made"
    gguf = tmp_path / "a.gguf"
    convert(base, gguf, Options(quantization="F16", verify=False))
    with pytest.raises(ZephyraError, match="base' holds what no conversion made: 'config.json' and"):
        convert(gguf, base, Options(to="hf", force=True))
    for source, options in (
        (gguf, Options(to="hf", force=True)),
        (base, Options(adapters={"law": sources["law"]}, quantization="F16", verify=False, force=True)),
        (tmp_path / "pack", Options(to="hf", force=True)),  # a folder of folders
    ):
        for _ in range(2):
            convert(source, made, options)
        if source == base:
            copytree(made, tmp_path / "pack")
        (made / "letter.txt").write_text("precious")
        with pytest.raises(ZephyraError, match=r"no conversion made: 'letter.txt'"):
            convert(source, made, options)
        (made / "letter.txt").unlink()


def test_weights_trained_on_are_no_longer_a_conversions(sources: dict[str, Path], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    gguf, made = tmp_path / "a.gguf", tmp_path / "made"
    convert(sources["base"], gguf, Options(quantization="F32", verify=False))
    convert(gguf, made, Options(to="hf"))
    transformers.AutoModelForCausalLM.from_pretrained(made).save_pretrained(made)
    with pytest.raises(ZephyraError, match="no conversion made"):
        convert(gguf, made, Options(to="hf", force=True))


def test_every_file_of_a_split_model_is_read(tmp_path: Path) -> None:
    first, second = (tmp_path / f"a-0000{n}-of-00002.gguf" for n in (1, 2))
    with pytest.raises(ZephyraError, match="and that is read"):
        check_target(second, [first], force=True)
    check_target(tmp_path / "b-00002-of-00002.gguf", [first], force=True)


@pytest.mark.parametrize("beneath", ["folder", "file", "nothing"])
def test_force_replaces_a_link_not_what_it_leads_to(sources: dict[str, Path], tmp_path: Path, beneath: str) -> None:
    gguf, place, link = tmp_path / "a.gguf", tmp_path / "place", tmp_path / "link"
    convert(sources["base"], gguf, Options(quantization="F16", verify=False))
    if beneath == "folder":
        place.mkdir()
        (place / "letter.txt").write_text("precious")
    elif beneath == "file":
        place.write_text("precious")
    link.symlink_to(place)
    before = everything(tmp_path / "place") if place.is_dir() else None
    convert(gguf, link, Options(to="hf", force=True))
    assert link.is_dir() and not link.is_symlink() and (link / "config.json").is_file()
    assert before is None or everything(place) == before


@pytest.mark.parametrize("name", ["/tmp/zephyra-stray", "../stray", "..", ".", "a/b", "\x1b[31mred"])
def test_a_files_own_name_does_not_say_where_the_result_lies(
    sources: dict[str, Path], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "here" / "inside"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    write_gguf(plan_gguf(replace(read_hf(sources["base"]), name=name)), gguf := place / "plain.gguf", "F16")
    assert read_header(gguf).metadata["general.name"] == name
    report = convert(gguf, options=Options(verify=False, quantization="Q8_0"))
    assert report.target == "plain-Q8_0.gguf"
    report = convert(gguf, options=Options(verify=False, quantization="F16", adapters={"law": sources["law"]}))
    assert report.target == "plain"
    assert sorted(os.listdir(place)) == ["plain", "plain-Q8_0.gguf", "plain.gguf"]
    assert os.listdir(place.parent) == ["inside"]


@pytest.mark.parametrize("name", ["../x", "..", "/tmp/x", "a/b", "a\\b", "a\x1b[2J"])
def test_a_name_is_no_place(sources: dict[str, Path], tmp_path: Path, name: str) -> None:
    for options in (Options(name=name), Options(name=name, adapters={"law": sources["law"]})):
        with pytest.raises(ZephyraError, match="cannot be a name"):
            convert(sources["base"], options=options)
