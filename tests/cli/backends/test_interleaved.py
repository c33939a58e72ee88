"""Adapters over large bases are interleaved in memory: they compute what they did, or stay as they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zephyra_cli.backends import adapters, interleaved
from zephyra_cli.backends.blend import write_blend
from zephyra_cli.backends.interleaved import Interleaver
from zephyra_cli.backends.library import library
from zephyra_cli.backends.llama import LlamaBackend
from zephyra_cli.backends.nibbles import fits_nibbles
from zephyra_cli.backends.self_test import extra_buffers_allowed
from zephyra_cli.devices import cpu_flags
from zephyra_converters.gguf_header import read_header
from zephyra_converters.gguf_read import tensor_of
from zephyra_fusion.types import SamplingParams

PROMPT = [7 + i * i % 300 for i in range(20)]
GREEDY = SamplingParams(max_tokens=8)
SPECIALISTS: list[Mapping[str, float]] = [{"b": 1.0}, {"a": 0.5}, {"a": 0.7, "b": 0.45}]


@pytest.fixture
def paths(tiny_loras: Any, tmp_path: Path) -> dict[str, Path]:
    return {name: stored(tmp_path / f"{name}.gguf", tiny_loras[name], "Q8_0", 32) for name in "ab"}


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, tiny_gguf: Path) -> Iterator[None]:
    """Every base is large enough and counts as quantized. Skips where llama.cpp has no kernel for this processor."""
    monkeypatch.setattr(adapters, "LARGE", 0)
    monkeypatch.setattr(adapters, "quantized", lambda base: True)
    backend = LlamaBackend(tiny_gguf, threads=1)
    able = backend._adapters._interleaver is not None
    backend.close()
    if not able:
        known = "avx2" in cpu_flags() and extra_buffers_allowed(True) and not library().llama_supports_gpu_offload()
        assert not known, "this build has kernels for this processor, and they were not taken"
        pytest.skip("llama.cpp interleaves nothing on this processor")
    yield


def stored(path: Path, lora: Any, kind: str, rank: int) -> Path:
    """An adapter whose A and B are of this type, its rank filled up with zeros."""
    import gguf

    code = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(str(path), "qwen3")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0 * rank)
    for tensor, (a, b, _) in lora.items():
        a, b = (np.pad(a, [(0, rank - len(a)), (0, 0)]), np.pad(b, [(0, 0), (0, rank - b.shape[1])]))
        for end, values in ((".lora_a", a), (".lora_b", b)):
            writer.add_tensor(tensor + end, gguf.quants.quantize(values, code), raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def opened(base: Path, paths: Mapping[str, Path]) -> LlamaBackend:
    backend = LlamaBackend(base, threads=1, kv_type="f32", flash_attention=False)
    for name, path in paths.items():
        backend.add_adapter(name, path)
    return backend


def held(backend: LlamaBackend) -> int:
    """How many adapters lie interleaved."""
    return len(backend._adapters._interleaver._memory) if backend._adapters._interleaver else 0


def computed(backend: LlamaBackend) -> list[np.ndarray]:
    rows = []
    for weights in SPECIALISTS:
        backend.set_adapters(weights)
        rows.append(np.array(backend.logits(PROMPT)))
    return rows


@pytest.mark.parametrize("rank", [1, 16, 17, 32, 64])
@pytest.mark.parametrize("kind", ["Q8_0", "F16"])
def test_two_nibbles_are_as_exact_as_q8_0(kind: str, rank: int, tmp_path: Path) -> None:
    random = np.random.default_rng(rank)
    a = random.standard_normal((rank, 64)).astype(np.float32)
    b = (random.standard_normal((96, rank)) * random.uniform(0.01, 3, (96, 1))).astype(np.float32)
    filled = -(-rank // 32) * 32 if kind == "Q8_0" else rank
    path = stored(tmp_path / "a.gguf", {"blk.0.attn_q.weight": (a, b, 2.0)}, kind, filled)
    write_blend(tmp_path / "n.gguf", [(read_header(path), 1.0)], nibbles=True)
    made = read_header(tmp_path / "n.gguf")
    assert made.tensors["blk.0.attn_q.weight.lora_b"].type_name == "Q4_0"
    assert made.tensors["blk.0.attn_q.weight.lora_b"].shape[0] == (32 if rank <= 16 else 2 * (-(-rank // 32) * 32))
    assert made.metadata["adapter.lora.alpha"] == 0.0, "a scale of 1: it is in B"
    products = []
    for header, scale in ((read_header(path), 2.0), (made, 1.0)):
        factors = [
            tensor_of(header.path, header.tensors["blk.0.attn_q.weight" + end]).read() for end in (".lora_b", ".lora_a")
        ]
        products.append(scale * factors[0] @ factors[1])
    error = np.linalg.norm(products[1] - products[0]) / np.linalg.norm(products[0])
    assert error < 0.01, "four bits alone would be off by 0.07"


def test_interleaved_adapters_and_blends_compute_the_same(
    tiny_gguf: Path, paths: dict[str, Path], large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened(tiny_gguf, paths)
    assert held(backend) == 2
    mine = computed(backend)
    assert held(backend) == 3, "the blend lies interleaved as well"
    assert all((row == again).all() for row, again in zip(mine, computed(backend), strict=True))
    backend.set_adapters({})
    base = np.array(backend.logits(PROMPT))
    backend.close()
    assert held(backend) == 0
    monkeypatch.setattr(adapters, "LARGE", 10**12)
    plain = opened(tiny_gguf, paths)
    assert held(plain) == 0
    for row, theirs in zip(mine, computed(plain), strict=True):
        # llama.cpp rounds the product with A to eight bits on its way to B, in either form.
        assert np.abs(row - theirs).max() < 0.05 * np.abs(theirs - base).max()
    plain.close()


def test_turns_after_switches_are_those_of_a_cold_run(tiny_gguf: Path, paths: dict[str, Path], large: None) -> None:
    backend = opened(tiny_gguf, paths)

    def answer(weights: Mapping[str, float], prompt: list[int]) -> list[int]:
        backend.set_adapters(weights)
        return [token.id for token in backend.generate(prompt, GREEDY)]

    prompt, warm = list(PROMPT), []
    for turn in range(8):
        weights = [*SPECIALISTS, {}][turn * 3 % 4]
        warm.append((weights, list(prompt), answer(weights, prompt)))
        prompt += [*warm[-1][2], 5 + turn]
    for weights, asked, said in warm:
        backend.forget()
        assert answer(weights, asked) == said
    backend.close()


def test_an_adapter_that_would_not_stay_itself_stays_as_it_was(
    tiny_gguf: Path, paths: dict[str, Path], large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interleaved, "_CLOSE", -1.0)
    undone = opened(tiny_gguf, paths)
    rows = computed(undone)
    assert held(undone) == 0
    undone.close()
    monkeypatch.setattr(adapters, "LARGE", 10**12)
    plain = opened(tiny_gguf, paths)
    assert all((row == theirs).all() for row, theirs in zip(rows, computed(plain), strict=True))
    plain.close()


def test_sums_that_are_dropped_give_their_memory_back(
    tiny_gguf: Path, paths: dict[str, Path], large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "_SUMS", 2)
    backend = opened(tiny_gguf, paths)
    for step in range(6):
        backend.set_adapters({"a": 0.1 * (step + 1), "b": 0.5})
        backend.logits(PROMPT[:3])
    assert held(backend) == 2 + 2
    backend.close()


def test_without_a_place_to_write_to_adapters_stay_as_they_are(
    tiny_gguf: Path, paths: dict[str, Path], large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zephyra_cli.backends.blend.write_blend", full)
    backend = opened(tiny_gguf, paths)
    assert held(backend) == 0
    backend.set_adapters({"b": 1.0})
    assert len(list(backend.generate(PROMPT, GREEDY))) > 0
    backend.close()


@pytest.mark.parametrize("missing", ["gpu", "kernels", "layout", "crashes"])
def test_where_it_cannot_be_done_nothing_is(
    missing: str, tiny_gguf: Path, paths: dict[str, Path], large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "gpu":
        monkeypatch.setattr(library(), "llama_supports_gpu_offload", lambda: True)
    elif missing == "kernels":
        monkeypatch.setattr(interleaved, "_BUFFER", b"no such buffer")
    elif missing == "layout":
        monkeypatch.setattr(interleaved, "operations", lambda _: None)
    else:
        monkeypatch.setattr(interleaved, "extra_buffers_allowed", lambda wanted: False)
    assert Interleaver.of(library(), 0, 1) is None
    backend = opened(tiny_gguf, paths)
    assert held(backend) == 0 and backend._adapters._interleaver is None
    backend.close()


def test_beside_exact_weights_adapters_stay_exact(
    tiny_gguf: Path, paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "LARGE", 0)
    backend = opened(tiny_gguf, paths)
    assert backend._adapters._interleaver is None
    backend.close()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e-7, 1e30])
def test_numbers_that_nibbles_cannot_hold_stay_as_they_are(
    value: float, tiny_loras: Any, tmp_path: Path, tiny_gguf: Path, large: None, recwarn: pytest.WarningsRecorder
) -> None:
    lora = {name: (a.copy(), b.copy(), scale) for name, (a, b, scale) in tiny_loras["a"].items()}
    _, b, _ = lora["blk.0.attn_q.weight"]
    if value < 1:
        b[:] = value
    else:
        b[0, 0] = value
    path = stored(tmp_path / "a.gguf", lora, "BF16", 4)
    recwarn.clear()
    backend = opened(tiny_gguf, {"a": path})
    assert held(backend) == 0 and not recwarn.list
    backend.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_stops_the_interleaving_leaves_no_adapter_behind(
    error: type[BaseException], tiny_gguf: Path, paths: dict[str, Path], large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed = []
    free = library().llama_adapter_lora_free
    monkeypatch.setattr(library(), "llama_adapter_lora_free", lambda adapter: (freed.append(adapter), free(adapter)))
    interleave = Interleaver.interleave

    def stopped(self: Interleaver, adapter: int) -> bool:
        interleave(self, adapter)
        raise error

    monkeypatch.setattr(Interleaver, "interleave", stopped)
    backend = LlamaBackend(tiny_gguf, threads=1)
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            backend.add_adapter("a", paths["a"])
        assert not backend._adapters._resident
    else:
        backend.add_adapter("a", paths["a"])  # as it lies in its file
    assert len(freed) == 1 and held(backend) == 0
    backend.close()


def test_what_does_not_fit_is_left_alone(tiny_loras: Any, tmp_path: Path, tiny_gguf: Path, large: None) -> None:
    precise = stored(tmp_path / "f32.gguf", tiny_loras["a"], "F32", 4)
    assert not fits_nibbles(read_header(precise))
    assert fits_nibbles(read_header(stored(tmp_path / "f16.gguf", tiny_loras["a"], "F16", 4)))
    backend = opened(tiny_gguf, {"a": precise})
    assert held(backend) == 0
    backend.close()
