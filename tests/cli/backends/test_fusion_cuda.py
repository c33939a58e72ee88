"""What only a CUDA device can show of the torch backend: `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from zephyra_cli.backends.fusion import FusionBackend
from zephyra_cli.backends.protocol import Job
from zephyra_fusion.types import SamplingParams, Token

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]
PROMPT = list(range(50, 90))


@pytest.fixture
def backend(tiny_gguf: Path, tiny_adapters: dict[str, Path]) -> Iterator[FusionBackend]:
    opened = FusionBackend(tiny_gguf, device="cuda")
    for name, path in tiny_adapters.items():
        opened.add_adapter(name, path)
    yield opened
    opened.close()


def test_auto_takes_the_device_in_bfloat16(backend: FusionBackend, tiny_gguf: Path) -> None:
    other = FusionBackend(tiny_gguf)
    assert (other.device, backend.device) == ("cuda", "cuda")
    assert backend._model.lm_head.weight.dtype == torch.bfloat16
    other.close()


@pytest.mark.parametrize("weights", [{}, {"a": 1.0}, {"a": 0.5, "b": 0.5}])
def test_logits_are_the_cpus(
    weights: dict[str, float], backend: FusionBackend, tiny_gguf: Path, tiny_adapters: dict[str, Path]
) -> None:
    cpu = FusionBackend(tiny_gguf, device="cpu", threads=1)
    for name, path in tiny_adapters.items():
        cpu.add_adapter(name, path)
    for one in backend, cpu:
        one.set_adapters(weights)
    expected = np.array(cpu.logits(PROMPT))
    assert np.abs(np.array(backend.logits(PROMPT)) - expected).mean() < 0.1 * expected.std()
    cpu.close()


def test_a_mix_that_comes_back_captures_nothing(backend: FusionBackend) -> None:
    backend.forget()
    texts: list[list[Token]] = []
    for weights in ({}, {"a": 1.0}, {}, {"a": 1.0}, {}):
        assert backend.set_adapters(weights) < 1.0
        texts.append(list(backend.generate(PROMPT, SamplingParams(max_tokens=12))))
    assert texts[0] == texts[2] == texts[4] and texts[1] == texts[3] and texts[0] != texts[1]
    assert backend.captures == 2, "one a mix"


def test_a_mixed_batch_answers_all(backend: FusionBackend) -> None:
    mixes: list[dict[str, float]] = [{}, {"a": 1.0}, {"b": 0.5}, {"a": 0.5, "c": 0.5}]
    jobs = [Job(prompt=PROMPT, params=SamplingParams(max_tokens=9), weights=mixes[n % 4]) for n in range(40)]
    answers: dict[int, list[Token]] = {}
    for index, token in backend.generate_many(jobs):
        assert isinstance(token, Token)
        answers.setdefault(index, []).append(token)
    assert sorted(answers) == list(range(40))
    assert all(answer[-1].finish_reason for answer in answers.values())
    firsts = [answers[n][0].id for n in range(4)]
    assert [answers[n][0].id for n in range(36, 40)] == firsts
