"""What is not a pack: adapters, sharded files, quantizations to choose from; and the commands over all that is here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.process import Run
from tests.hub.server import Hub, files_of
from zephyra_cli import download, install, store
from zephyra_cli.hub import Reference, RemoteFile
from zephyra_cli.quantization import candidates, choose, named, quantization_of
from zephyra_fusion.errors import ZephyraError

Pull = Callable[..., Any]
GB = 10**9


@pytest.fixture(scope="session")
def peft(tiny_gguf: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapter "b" as a PEFT folder, trained on hf:ada/tiny."""
    from zephyra_converters.gguf_read import read_gguf
    from zephyra_converters.lora import read_lora_gguf
    from zephyra_converters.peft import write_peft

    folder = tmp_path_factory.mktemp("peft") / "b"
    folder.mkdir()
    write_peft(read_lora_gguf(tiny_adapters["b"], read_gguf(tiny_gguf).config), folder, base="ada/tiny")
    return folder


def test_an_adapter_is_checked_against_its_base_before_its_weights_come(
    hub: Hub, pulled: Pull, tiny_pack: Path, peft: Path, zephyra: Run
) -> None:
    hub.add("ada/lora", files_of(peft), card={"license": "mit"})
    with pytest.raises(ZephyraError, match="trained on 'ada/tiny', which is not installed") as caught:
        pulled("hf:ada/lora")
    assert "zephyra pull hf:ada/tiny" in (caught.value.hint or "")
    hub.add("ada/tiny", files_of(tiny_pack))
    pulled("hf:ada/tiny")
    found = pulled("hf:ada/lora")
    assert (found.kind, found.root.parent.name) == ("adapter", "adapters")
    assert (found.root / "adapter_model.safetensors").read_bytes() == (peft / "adapter_model.safetensors").read_bytes()
    shown = json.loads(zephyra("models", "show", "lora", "--json").stdout)
    assert (shown["kind"], shown["license"], shown["source"]["repository"]) == ("adapter", "mit", "ada/lora")
    assert zephyra("models", "verify", "lora").returncode == 0


def test_an_adapter_of_another_base_is_refused(
    hub: Hub, pulled: Pull, peft: Path, tiny_adapters: dict[str, Path], make_gguf: Any, tmp_path: Path
) -> None:
    import numpy as np

    wide = {f"blk.{n}.ffn_{kind}.weight": np.zeros((128, 64), "float32") for n in (0, 1) for kind in ("gate", "up")}
    wide |= {f"blk.{n}.ffn_down.weight": np.zeros((64, 128), "float32") for n in (0, 1)}
    other = make_gguf(tmp_path / "wide.gguf", {"qwen3.feed_forward_length": 128}, wide)
    hub.add("ada/lora", files_of(peft))
    with pytest.raises(ZephyraError, match="does not fit the base: .*mlp"):
        pulled("hf:ada/lora", base=str(other))
    hub.add("ada/lora-gguf", {"lora-b.gguf": tiny_adapters["b"].read_bytes()})
    with pytest.raises(ZephyraError, match="ffn_down.weight"):
        pulled("hf:ada/lora-gguf", base=str(other))


def test_an_adapter_as_gguf(hub: Hub, pulled: Pull, tiny_gguf: Path, tiny_adapters: dict[str, Path]) -> None:
    hub.add("ada/lora-gguf", {"b.gguf": tiny_adapters["b"].read_bytes()})
    found = pulled("hf:ada/lora-gguf", base=str(tiny_gguf))
    assert found.kind == "adapter" and (found.root / "b.gguf").read_bytes() == tiny_adapters["b"].read_bytes()


def test_of_several_quantizations_one_is_taken_and_the_reason_said(
    hub: Hub, pulled: Pull, tiny_gguf: Path, tiny_adapters: dict[str, Path], zephyra: Run
) -> None:
    weights = tiny_gguf.read_bytes()
    hub.add("ada/tiny-GGUF", {"tiny-Q8_0.gguf": weights, "tiny-F16.gguf": weights + bytes(32)})
    assert pulled("hf:ada/tiny-GGUF").name == "tiny-Q8_0"
    assert "takes Q8_0" in pulled.notes[0]
    with pytest.raises(ZephyraError, match="no GGUF file or quantization 'Q4_K'") as caught:
        pulled("hf:ada/tiny-GGUF:Q4_K")
    assert "known: F16, Q8_0" in (caught.value.hint or "")
    hub.add("ada/lora-gguf", {"b.gguf": tiny_adapters["b"].read_bytes()}, card={"base_model": "ada/tiny-GGUF"})
    done = zephyra("generate", "-m", "hf:ada/lora-gguf", "hello")
    assert done.returncode == 1 and b"is an adapter and no model" in done.stderr, done.stderr


@pytest.fixture(scope="session")
def shards(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base as llama.cpp's gguf-split would leave it."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    folder = tmp_path_factory.mktemp("shards")
    reader = GGUFReader(tiny_gguf)
    writer = GGUFWriter(folder / "tiny-Q8_0.gguf", "qwen3", split_max_tensors=9)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind, *inner = field.types
            writer.add_key_value(field.name, field.contents(), kind, inner[0] if inner else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    assert GGUFValueType.UINT16
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def test_sharded_files_come_together_and_run(
    hub: Hub, pulled: Pull, shards: Path, zephyra: Run, tiny_gguf: Path
) -> None:
    files = files_of(shards)
    assert len(files) == 3
    hub.add("ada/tiny-GGUF", {f"Q8_0/{name}": data for name, data in files.items()})
    found = pulled("hf:ada/tiny-GGUF:Q8_0")
    assert found.name == "tiny-Q8_0" and {path.name for path in found.root.glob("*.gguf")} == set(files)
    options = ["-n", "5", "-t", "0", "--raw", "the heart"]
    split, whole = (zephyra("generate", "-m", model, *options) for model in ("tiny-Q8_0", str(tiny_gguf)))
    assert split.returncode == 0, split.stderr
    assert split.stdout == whole.stdout

    hub.add("ada/broken-GGUF", {name: data for name, data in files.items() if "00002" not in name})
    with pytest.raises(ZephyraError, match="is 3 files, the repository has 2 of them"):
        pulled("hf:ada/broken-GGUF")


def test_what_lies_beside_the_wanted_one_does_not_matter(hub: Hub, pulled: Pull, shards: Path, tiny_gguf: Path) -> None:
    files, weights = files_of(shards), tiny_gguf.read_bytes()
    some = {name: data for name, data in files.items() if "00002" not in name}
    hub.add("ada/some", some | {"good-F16.gguf": weights})
    for reference in ("hf:ada/some", "hf:ada/some:F16", "hf:ada/some:good-F16"):
        assert pulled(reference).name == "good-F16"
    with pytest.raises(ZephyraError, match="'tiny-Q8_0' is 3 files, the repository has 2 of them"):
        pulled("hf:ada/some:Q8_0")

    both = {f"all/{name}": data for name, data in files.items()} | {"all/tiny-Q8_0.gguf": weights}
    hub.add("ada/both", both)
    assert pulled("hf:ada/both").name == "tiny-Q8_0"
    assert len(list(pulled("hf:ada/both:tiny-Q8_0-00002-of-00003.gguf").root.glob("*.gguf"))) == 3
    assert len(list(pulled("hf:ada/both:tiny-Q8_0.gguf", name="one").root.glob("*.gguf"))) == 1
    with pytest.raises(ZephyraError, match="'Q8_0' means several files: all/tiny-Q8_0"):
        pulled("hf:ada/both:Q8_0")

    checkpoint = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights"}
    for other in ("imatrix.gguf", "mmproj-F16.gguf", "tiny-Q8_0-00001-of-00003.gguf"):
        hub.add("ada/model", checkpoint | {other: weights})
        assert pulled("hf:ada/model").kind == "checkpoint"


def remote(**sizes: float) -> dict[str, RemoteFile]:
    names = {f"model-{kind}.gguf": int(size * GB) for kind, size in sizes.items()}
    return {name: RemoteFile(name, size, "0" * 64) for name, size in names.items()}


@pytest.mark.parametrize(
    ("memory", "chosen", "reason"),
    [
        (64, "Q8_0", "at most a quarter"),
        (24, "Q5_K_M", "at most a quarter"),
        (10, "Q4_K_M", "the usual balance"),
        (5, "Q2_K", "the best that fits into 5.0 GB"),
        (0, "Q4_K_M", "the usual balance"),
    ],
)
def test_the_quantization_that_fits(memory: int, chosen: str, reason: str) -> None:
    found = candidates(
        remote(Q2_K=3, Q4_K_M=4.9, Q5_K_M=5.7, Q8_0=8.5, F16=16)
        | {"mmproj-F16.gguf": RemoteFile("mmproj-F16.gguf", GB, "")}
    )
    candidate, why = choose(found, memory * GB)
    assert candidate.quantization == chosen and reason in why


def test_quantizations_by_name() -> None:
    found = candidates(remote(Q4_K_M=4, Q8_0=8, IQ3_XXS=3))
    assert [
        named(found, part) and named(found, part).quantization for part in ("q8_0", "model-Q4_K_M.gguf", "Q6_K")
    ] == ["Q8_0", "Q4_K_M", None]
    with pytest.raises(ZephyraError, match="does not fit: this machine has 2.0 GB"):
        choose(found, 2 * GB)
    stems = {
        "a/b-UD-Q4_K_XL": "UD-Q4_K_XL",
        "x.f16": "F16",
        "x-iq2_xs": "IQ2_XS",
        "Q4": "",
        "model-MXFP4": "MXFP4",
        "y-FP16": "F16",
    }
    assert {stem: quantization_of(stem) for stem in stems} == stems


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["../up"], "not a plain relative path"),
        (["/etc/passwd"], "not a plain relative path"),
        (["a\\b"], "not a plain relative path"),
        (["Model.gguf", "model.gguf"], "the same name on some file systems"),
        (["stra\u00dfe", "STRASSE"], "the same name"),
        (["caf\u00e9", "cafe\u0301"], "the same name"),
        (["a", "a/b"], "the same name"),
        (["A/x", "a/y"], "the same name"),
        (["x" * 201], "too long"),
        (["/".join(["abc"] * 300)], "too long"),
        (["con.gguf"], "cannot be a file's name"),
        (["end."], "cannot be a file's name"),
        (["es\x1bcape"], "cannot be a file's name"),
        ([".git/config"], "cannot be a file's name"),
    ],
)
def test_names_that_become_no_paths(names: list[str], message: str) -> None:
    with pytest.raises(ZephyraError, match=message):
        install.check_names(names)
    install.check_names(["a/b", "a/c", "base.gguf", "file base.gguf", "adapters/\u00fc.gguf"])


def test_references() -> None:
    assert Reference.parse("hf:o/n@v1.0:Q4_K_M") == Reference("o/n", "v1.0", "Q4_K_M")
    assert str(Reference.parse("hf:o/n:a/b.gguf")) == "hf:o/n:a/b.gguf"
    for text in ("hf:o", "hf:o/n/m", "hf:../n", "hf:o/n@", "hf:"):
        with pytest.raises(ZephyraError):
            Reference.parse(text)
    pasted = {"o/n": "hf:o/n", "https://huggingface.co/o/n": "hf:o/n", "https://hf.co/o/n/tree/v1": "hf:o/n@v1"}
    for text, meant in pasted.items():
        with pytest.raises(ZephyraError) as caught:
            Reference.parse(text)
        assert caught.value.hint == f"did you mean {meant}?"


RECEIPTS = [
    *({"license": value} for value in (5, None, {"a": 1})),
    *({"source": value} for value in (5, None, [], {"repository": ["x"]}, {"repository": "a/b", "commit": None})),
    *({"files": value} for value in ([], None, {"x": 5}, {"x": {}}, {"x": {"size": "x", "sha256": 3}})),
    *({"files": {name: {"size": 1, "sha256": "00"}}} for name in ("../../etc/passwd", "/etc/passwd")),
    {"files": {"x": {"size": 10**400, "sha256": "00"}}},
    [],
]


def test_a_receipt_with_wrong_values_harms_its_own_model_alone(
    hub: Hub, pulled: Pull, home: Path, zephyra: Run
) -> None:
    for number, receipt in enumerate(RECEIPTS):
        root = home / "models" / f"odd{number}"
        root.mkdir(parents=True)
        (root / "config.json").write_text("{}")
        (root / ".pulled.json").write_text(json.dumps(receipt))
        with pytest.raises(ZephyraError, match=".pulled.json"):
            install.receipt_of(root)
    (root / ".pulled.json").write_text('{"source": {"repository": "ada/model", "reference": "made by hand"}}')
    hub.add("ada/model", {"config.json": b"{}", "model.safetensors": (2).to_bytes(8, "little") + b"{}"})
    whole = pulled("hf:ada/model")
    assert store.find("hf:ada/model", offline=True).root == whole.root.parent
    listed = zephyra("models", "--json")
    assert [row["name"] for row in json.loads(listed.stdout)["models"] if not row["embedded"]] == ["model", root.name]
    assert listed.stderr.count(b"warning: ") == len(RECEIPTS) - 1
    for command in ("show", "verify"):
        done = zephyra("models", command, "odd0")
        assert done.returncode == 1 and b".pulled.json': license is 5, must be a text" in done.stderr, done.stderr


def test_the_commands_over_what_is_here(hub: Hub, pulled: Pull, tiny_pack: Path, zephyra: Run) -> None:
    files = files_of(tiny_pack)
    for name in ("ada/one", "ada/two"):
        hub.add(name, files)
        pulled(f"hf:{name}")
    listed = json.loads(zephyra("models", "--json").stdout)
    rows = {row["name"]: row for row in listed["models"]}
    weights = sum(len(data) for name, data in files.items() if name.endswith(".gguf"))
    assert rows["one"]["license"] == "CC0-1.0" and rows["one"]["context_length"] == 512
    assert listed["shared_bytes"] == weights
    shown = zephyra("models", "show", "two")
    assert b"hf:ada/two, commit " in shown.stdout
    assert b"0.0 MB freed" in zephyra("models", "remove", "one").stderr
    assert zephyra("models", "verify", "two").returncode == 0

    (store.find("two").root / "base.gguf").write_bytes(b"")
    broken = zephyra("models", "verify", "two")
    assert broken.returncode == 1 and b"base.gguf: 0 bytes" in broken.stderr and b"pull it again" in broken.stderr

    hub.add("ada/three", {"config.json": b"{}", "model.safetensors": bytes(200_000)})
    hub.fail("GET /cdn/", cut_after=100_000)
    hub.fail("GET /cdn/", status=404)
    with pytest.raises(ZephyraError):
        pulled("hf:ada/three")
    told = zephyra("models").stderr
    assert b"0.1 MB of unfinished downloads" in told, told
    assert b"0.1 MB freed" in zephyra("models", "clean").stderr
    assert download.unfinished() == 0
