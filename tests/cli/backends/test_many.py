"""Many prompts at once: the same answers as one by one, whatever ends when."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from zephyra_cli import store
from zephyra_cli.backends import slots
from zephyra_cli.backends.llama import LlamaBackend
from zephyra_cli.backends.protocol import Backend, Job
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import SamplingParams, Token


def some_jobs(count: int, **sampling: Any) -> list[Job]:
    dice = random.Random(8)
    mixes: Sequence[dict[str, float]] = ({}, {"a": 1.0}, {"b": 1.0}, {"a": 0.5, "c": 0.5})
    return [
        Job(
            prompt=[dice.randrange(6, 320) for _ in range(dice.choice((1, 3, 9, 40, 90)))],
            params=SamplingParams(max_tokens=dice.choice((1, 2, 7, 20)), seed=number, **sampling),
            weights=dice.choice(mixes),
        )
        for number in range(count)
    ]


def one_by_one(backend: Backend, jobs: Sequence[Job]) -> list[list[Token]]:
    answers = []
    for job in jobs:
        backend.set_adapters(job.weights)
        answers.append(list(backend.generate(job.prompt, job.params)))
    return answers


def at_once(backend: Backend, jobs: Sequence[Job], most: int | None = None) -> list[list[Token]]:
    answers: list[list[Token]] = [[] for _ in jobs]
    for index, token in backend.generate_many(jobs, most):
        assert isinstance(token, Token)
        answers[index].append(token)
    return answers


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.2}, {"temperature": 0.9, "repeat_penalty": 1.3}])
def test_the_answers_are_those_of_one_by_one(backend: Backend, sampling: dict[str, Any]) -> None:
    jobs = some_jobs(40, **sampling)
    assert at_once(backend, jobs) == one_by_one(backend, jobs)


def test_a_slot_is_taken_again_and_one_slot_is_enough(backend: Backend) -> None:
    jobs = some_jobs(12)
    expected = one_by_one(backend, jobs)
    for most in 1, 3:
        assert at_once(backend, jobs, most) == expected


def test_the_slots_that_run_stay_neighbours(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gaps would cost a pass over the weights each. What moves into them goes on as it began."""
    backend = LlamaBackend(tiny_gguf, threads=1, kv_type="f32", flash_attention=False)
    steps: list[list[int]] = []
    decode = slots.SlotContext.decode

    def seen(context: slots.SlotContext, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        steps.append([slot for slot, *_ in entries])
        decode(context, entries)

    monkeypatch.setattr(slots.SlotContext, "decode", seen)
    jobs = [
        Job(prompt=[7 + number, 40, 9 * number + 6], params=SamplingParams(max_tokens=most, seed=number, temperature=1))
        for number, most in enumerate((3, 30, 5, 28, 2, 26, 9, 30))
    ]
    assert at_once(backend, jobs) == one_by_one(backend, jobs)
    together = [step for step in steps if len(step) == len(set(step))]
    assert all(step == list(range(len(step))) for step in together)
    assert {len(step) for step in together} > {8, 7, 6, 5}
    backend.close()


def test_alone_a_quantized_model_computes_the_same_bits() -> None:
    """Sampled from the whole distribution of the embedded model, where any difference in a logit shows soon."""
    pack = store.find("zephyra-nano", offline=True)
    backend = LlamaBackend(pack.path(pack.base), threads=1)
    backend.add_adapter("sql", pack.path(pack.adapters["sql"].file))
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    jobs = [
        Job(
            prompt=backend.encode("count the rows of table " * (1 + 9 * number)),
            params=SamplingParams(max_tokens=40, seed=number, **plain),
            weights={"sql": 1.0} if number % 2 else {},
        )
        for number in range(6)
    ]
    together = at_once(backend, jobs, 1)
    for job, answer in zip(jobs, together, strict=True):
        backend.forget()
        assert one_by_one(backend, [job]) == [answer]
    backend.close()


def test_a_job_has_its_own_error_and_the_others_go_on(backend: Backend) -> None:
    jobs = some_jobs(6)
    jobs[1] = Job(prompt=[], params=SamplingParams())
    jobs[2] = Job(prompt=[5] * 600, params=SamplingParams())
    jobs[3] = Job(prompt=[7, 8], params=SamplingParams(), weights={"nobody": 1.0})
    jobs[4] = Job(prompt=[7, 8], params=SamplingParams(schema='{"enum": []}'))
    errors = {index: str(event) for index, event in backend.generate_many(jobs) if isinstance(event, ZephyraError)}
    assert sorted(errors) == [1, 2, 3, 4]
    assert "empty" in errors[1] and "600 tokens" in errors[2] and "nobody" in errors[3] and "schema" in errors[4]
    good = [jobs[0], jobs[5]]
    assert at_once(backend, good) == one_by_one(backend, good)


def test_an_answer_is_ended_by_the_caller(backend: Backend) -> None:
    jobs = [Job(prompt=[20 + number, 30], params=SamplingParams(max_tokens=30)) for number in range(5)]
    seen = [0] * 5
    events = backend.generate_many(jobs)
    event = next(events, None)
    while event is not None:
        seen[event[0]] += 1
        try:
            event = events.send(event[0] % 2 == 0 and seen[event[0]] == 3)
        except StopIteration:
            event = None
    assert seen[0::2] == [3, 3, 3] and min(seen[1::2]) > 3


def test_conversations_keep_their_cache_and_an_early_close_leaves_nothing_wrong(backend: Backend) -> None:
    prompt = list(range(10, 60))
    first = list(backend.generate(prompt, SamplingParams(max_tokens=4)))
    events = backend.generate_many(some_jobs(20))
    for _ in range(7):
        next(events)
    events.close()
    backend.set_adapters({})
    assert list(backend.generate(prompt, SamplingParams(max_tokens=4))) == first
    assert backend.usage.cached_tokens == 49


def test_a_batch_keeps_its_blend_while_others_come_and_go(
    tiny_gguf: Path, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zephyra_cli.backends.adapters._SUMS", 1)
    backend = LlamaBackend(tiny_gguf, threads=1, kv_type="f32", flash_attention=False, live_mixes=1)
    for name, path in tiny_adapters.items():
        backend.add_adapter(name, path)
    jobs = [Job(prompt=[7, 8, 9], params=SamplingParams(max_tokens=12), weights={"a": 0.5, "b": 0.5}) for _ in range(2)]
    wanted = at_once(backend, jobs)
    answers: list[list[Token]] = [[], []]
    for at, (index, token) in enumerate(backend.generate_many(jobs)):
        assert isinstance(token, Token)
        answers[index].append(token)
        backend.set_adapters({"a": 0.1 + 0.05 * (at % 8), "c": 0.5})
        list(backend.generate([5, 6], SamplingParams(max_tokens=1)))
    assert answers == wanted
    backend.close()


def test_a_batch_ends_with_its_backend(tiny_gguf: Path) -> None:
    backend = LlamaBackend(tiny_gguf, threads=1)
    events = backend.generate_many(
        [Job(prompt=[7, 8], params=SamplingParams(max_tokens=12), weights={}) for _ in range(2)]
    )
    next(events)
    backend.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(events)
