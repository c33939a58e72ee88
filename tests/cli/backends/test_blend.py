"""A blend summed to one adapter computes what its adapters compute side by side, in every type they are stored in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zephyra_cli.backends.adapter_file import is_slow, write_fast
from zephyra_cli.backends.blend import write_blend
from zephyra_cli.backends.library import library
from zephyra_cli.backends.llama import LlamaBackend
from zephyra_cli.backends.mix import GRID, mix_of
from zephyra_converters.gguf_check import check_model
from zephyra_converters.gguf_check_lora import check_adapter
from zephyra_converters.gguf_header import read_header
from zephyra_converters.loaded import LoadedGGUF
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import SamplingParams

PROMPT = [7 + i * i % 300 for i in range(20)]


def stored(kind: str, path: Path, loras: Any, rank: int, write: Callable[..., Path]) -> Path:
    """An adapter of this type; its rank is filled up with zeros."""
    import gguf

    metadata = {
        "general.architecture": "qwen3",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 2.0 * rank,
    }
    code = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(str(path), "qwen3")
    for key, value in metadata.items():
        if key != "general.architecture":
            writer.add_float32(key, value) if isinstance(value, float) else writer.add_string(key, value)
    for tensor, (a, b, _) in loras.items():
        for end, values, axis in ((".lora_a", a, 0), (".lora_b", b, 1)):
            room = [(0, 0), (0, 0)]
            room[axis] = (0, rank - values.shape[axis])
            data = gguf.quants.quantize(np.pad(values, room), code)
            writer.add_tensor(tensor + end, data, raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("kinds", "rank"), [(("F32", "F32"), 8), (("F16", "F16"), 8), (("Q8_0", "Q8_0"), 32), (("F16", "Q8_0"), 32)]
)
def test_the_sum_is_the_blend(
    kinds: tuple[str, str], rank: int, tiny_gguf: Path, tiny_loras: Any, write_gguf: Any, tmp_path: Path
) -> None:
    paths = {
        name: stored(kind, tmp_path / f"{name}.gguf", tiny_loras[name], rank, write_gguf)
        for name, kind in zip("ab", kinds, strict=True)
    }
    logits = []
    for summed in True, False:
        backend = LlamaBackend(tiny_gguf, threads=1, kv_type="f32", flash_attention=False, sum_blends=summed)
        for name, path in paths.items():
            backend.add_adapter(name, path)
        backend.set_adapters({"a": 0.7, "b": 0.45})
        logits.append(np.array(backend.logits(PROMPT)))
        backend.close()
    difference = np.abs(logits[0] - logits[1]).max()
    # F16 and Q8_0 round the folded weight (2^-11) and, in llama.cpp, the product with A on its way to B.
    assert difference < (1e-3 if kinds == ("F32", "F32") else 0.1 * logits[1].std())
    backend = LlamaBackend(tiny_gguf, threads=1, kv_type="f32", flash_attention=False)
    assert np.abs(np.array(backend.logits(PROMPT)) - logits[1]).max() > logits[1].std()
    backend.close()


@pytest.mark.parametrize(
    ("kind", "rank", "form"),
    [("F16", 8, ("F32", 8)), ("F16", 24, ("F16", 64)), ("BF16", 40, ("BF16", 64)), ("BF16", 72, ("F32", 72))],
)
def test_a_slow_form_is_written_anew_and_computes_the_same(
    kind: str, rank: int, form: tuple[str, int], tiny_gguf: Path, tiny_loras: Any, write_gguf: Any, tmp_path: Path
) -> None:
    path = stored(kind, tmp_path / "a.gguf", tiny_loras["a"], rank, write_gguf)
    header, fast = read_header(path), tmp_path / "fast.gguf"
    assert is_slow(header)
    write_fast(fast, header, library())
    again = read_header(fast)
    ends = [tensor for name, tensor in again.tensors.items() if name.endswith(".lora_b")]
    assert {(tensor.type_name, tensor.shape[0]) for tensor in ends} == {form}
    assert not is_slow(again)
    with LoadedGGUF(tiny_gguf, 64) as model:
        model.add_adapter("file", path)
        model.add_adapter("fast", fast)
        rows = []
        for name in "file", "fast":
            model.set_adapters({name: 0.7})
            rows.append(model.logits(PROMPT))
        model.set_adapters({})
        # In the file's form llama.cpp rounds the product with A to 16 bits on its way to B.
        assert np.abs(rows[0] - rows[1]).max() < 0.02 * np.abs(model.logits(PROMPT) - rows[1]).max()


def test_without_a_place_to_write_to_the_file_itself_is_taken(
    tiny_gguf: Path, tiny_loras: Any, write_gguf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = stored("F16", tmp_path / "a.gguf", tiny_loras["a"], 8, write_gguf)
    texts = []
    for _ in range(2):
        backend = LlamaBackend(tiny_gguf, threads=1)
        backend.add_adapter("a", path)
        backend.set_adapters({"a": 1.0})
        texts.append([token.id for token in backend.generate(PROMPT, SamplingParams(max_tokens=4))])
        backend.close()
        monkeypatch.setattr("zephyra_cli.backends.adapters.write_fast", full)
    assert texts[0] == texts[1]


def test_zeros_that_fill_ranks_up_are_not_summed(
    tiny_gguf: Path, tiny_loras: Any, write_gguf: Any, tmp_path: Path
) -> None:
    base = check_model(tiny_gguf)
    paths = [stored("Q8_0", tmp_path / f"{name}.gguf", tiny_loras[name], 32, write_gguf) for name in "ab"]
    write_blend(tmp_path / "sum.gguf", [(check_adapter(path, base), 0.5) for path in paths])
    tensors = read_header(tmp_path / "sum.gguf").tensors
    assert {tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".lora_b")} == {32}


def test_many_adapters_in_one_blend(tiny_gguf: Path, tiny_adapters: dict[str, Path]) -> None:
    backend = LlamaBackend(tiny_gguf, threads=1, kv_type="f32", flash_attention=False)
    for number in range(50):
        backend.add_adapter(f"n{number}", tiny_adapters["b"])
    backend.add_adapter("b", tiny_adapters["b"])
    backend.set_adapters({f"n{number}": 0.02 for number in range(50)})
    many = np.array(backend.logits(PROMPT))
    backend.set_adapters({"b": 1.0})
    assert np.abs(np.array(backend.logits(PROMPT)) - many).max() < 5e-3
    backend.close()


def test_sums_come_and_go_and_the_text_stays(tiny_gguf: Path, tiny_adapters: dict[str, Path]) -> None:
    """More mixes than sums and contexts are kept."""
    backend = LlamaBackend(tiny_gguf, threads=1, kv_type="f32", flash_attention=False, live_mixes=3)
    for name, path in tiny_adapters.items():
        backend.add_adapter(name, path)
    mixes = [{"a": 0.1 * (1 + n), "b": 0.5, "c": 0.05 * n} for n in range(12)]
    texts: list[list[list[int]]] = []
    for _ in range(2):
        texts.append([])
        for mix in mixes:
            backend.set_adapters(mix)
            texts[-1].append([token.id for token in backend.generate(PROMPT, SamplingParams(max_tokens=6))])
            backend.logits(PROMPT[:3])
    assert texts[0] == texts[1]
    assert len({tuple(text) for text in texts[0]}) > 6
    backend.close()


def test_blends_lie_on_a_grid() -> None:
    assert mix_of({"b": 0.7049, "a": 0.2951}) == mix_of({"a": 0.3, "b": 0.7}) == (("a", 0.3), ("b", 0.7))
    assert mix_of({"a": 0.704}) == (("a", 0.704),), "one adapter keeps its weight"
    assert mix_of({"a": 1.0, "b": 1e-6}) == (("a", 1.0), ("b", GRID)), "what was asked for does not vanish"
    assert mix_of({"a": 0.0, "b": 1.0, "c": 0.0}) == (("b", 1.0),)
    with pytest.raises(ZephyraError, match="weight of 'a' is 1000"):
        mix_of({"a": 1000.0})
    with pytest.raises(ZephyraError, match="a blend of 1000 adapters is asked for, at most 64"):
        mix_of({f"a{number}": 0.001 for number in range(1000)})
    assert mix_of({f"a{number}": 0.0 for number in range(1000)}) == ()


def test_no_room_for_the_sum_is_an_error(
    tiny_gguf: Path, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zephyra_cli.backends.blend.write_blend", full)
    backend = LlamaBackend(tiny_gguf, threads=1)
    for name in "ab":
        backend.add_adapter(name, tiny_adapters[name])
    backend.set_adapters({"a": 0.5, "b": 0.5})
    with pytest.raises(ZephyraError, match="cannot write the sum of 2 adapters to .*: No space left"):
        next(backend.generate(PROMPT, SamplingParams()))
    backend.close()
