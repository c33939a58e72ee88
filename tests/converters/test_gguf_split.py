"""A model over several GGUF files, as llama.cpp's gguf-split leaves it, converts as the whole one does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from zephyra_converters.convert import Options, convert
from zephyra_converters.gguf_check import check_model
from zephyra_converters.gguf_header import read_header
from zephyra_fusion.errors import ZephyraError


def split(whole: Path, target: Path) -> list[Path]:
    from gguf import GGUFReader, GGUFWriter

    reader = GGUFReader(whole)
    writer = GGUFWriter(target, read_header(whole).architecture, split_max_tensors=9)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind, *inner = field.types
            writer.add_key_value(field.name, field.contents(), kind, inner[0] if inner else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(target.parent.glob(f"{target.stem}-*.gguf"))


def test_a_split_model_is_a_source(checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    base = checkpoint_folder("llama3-rope")
    convert(base, tmp_path / "whole.gguf", Options(quantization="F32", verify=False))
    first, second, third = split(tmp_path / "whole.gguf", tmp_path / "parts.gguf")
    convert(tmp_path / "whole.gguf", tmp_path / "whole", Options(to="hf"))
    convert(first, tmp_path / "parts", Options(to="hf"))
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    report = convert(first, tmp_path / "q8.gguf", Options(quantization="Q8_0"))  # compared with what the parts hold
    assert report.parts[0].verification is not None
    with pytest.raises(ZephyraError, match="is one of 3 files of a model, but not by its name"):
        convert(second, tmp_path / "again", Options(to="hf"))
    third.unlink()
    with pytest.raises(ZephyraError, match="cannot read .*-00003-of-00003.gguf"):
        convert(first, tmp_path / "again", Options(to="hf"))
    assert not (tmp_path / "again").exists()


def rewritten(path: Path, architecture: str, alignment: int) -> None:
    """A part with the same tensors and no keys but those of the split."""
    from gguf import GGUFReader, GGUFWriter

    said, tensors = read_header(path).metadata, GGUFReader(path).tensors
    writer = GGUFWriter(path.with_suffix(".new"), architecture)
    writer.add_custom_alignment(alignment)
    writer.add_uint16("split.no", said["split.no"])
    writer.add_uint16("split.count", said["split.count"])
    writer.add_int32("split.tensors.count", said["split.tensors.count"])
    for tensor in tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize(
    ("architecture", "alignment", "refusal"),
    [
        ("qwen3", 32, None),
        ("qwen3", 64, None),
        ("qwen3", 1, "general.alignment is 1, must be a multiple of 32"),
        ("qwen3", 16, "general.alignment is 16, must be a multiple of 32"),
        ("llama", 32, "is no part of .*: its general.architecture is 'llama'"),
    ],
)
def test_every_part_is_looked_at(
    tiny_gguf: Path, tmp_path: Path, architecture: str, alignment: int, refusal: str | None
) -> None:
    """llama.cpp reads each file by that file's own alignment, and aborts where tensors begin elsewhere."""
    first, *_, last = split(tiny_gguf, tmp_path / "parts.gguf")
    rewritten(last, architecture, alignment)
    if refusal is None:
        assert check_model(first).tensors.keys() == read_header(tiny_gguf).tensors.keys()
    else:
        with pytest.raises(ZephyraError, match=refusal):
            check_model(first)
