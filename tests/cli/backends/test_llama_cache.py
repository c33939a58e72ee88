"""The cache is valid for (tokens, adapter weights) and for nothing else, whatever happened before."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zephyra_cli.backends.llama import LlamaBackend
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import SamplingParams

MIXES: list[dict[str, float]] = [
    {},
    {"a": 1.0},
    {"b": 1.0},
    {"a": 0.7, "c": 0.3},
    {"a": 0.3, "c": 0.7},
    {"a": 1.0, "b": 0.0},
    {"a": 0.5, "b": 0.25, "c": 1.0},
]


def open_backend(base: Path, adapters: Mapping[str, Path], **options: Any) -> LlamaBackend:
    """Exact: F32 cache, no flash attention (LLAMA's own kernels differ by 1e-2 there)."""
    backend = LlamaBackend(base, threads=1, kv_type="f32", flash_attention=False, **options)
    for name, path in adapters.items():
        backend.add_adapter(name, path)
    return backend


@pytest.fixture
def warm(tiny_gguf: Path, tiny_adapters: dict[str, Path]) -> Iterator[LlamaBackend]:
    backend = open_backend(tiny_gguf, tiny_adapters, n_batch=32, live_mixes=3)
    yield backend
    backend.close()


@pytest.fixture
def cold_answer(tiny_gguf: Path, tiny_adapters: dict[str, Path]) -> Any:
    """What a backend says that has never seen anything: tokens, and the logits that chose the last one."""

    def answer(mix: Mapping[str, float], prompt: Sequence[int], count: int) -> tuple[list[int], Any]:
        backend = open_backend(tiny_gguf, {name: tiny_adapters[name] for name in mix}, n_batch=32)
        backend.set_adapters(mix)
        tokens = [token.id for token in backend.generate(prompt, SamplingParams(max_tokens=count))]
        logits = last_logits(backend)
        backend.close()
        return tokens, logits

    return answer


def last_logits(backend: LlamaBackend) -> Any:
    context = backend._context(1)
    return np.array(context.logits(-1, backend.vocab_size))


def test_every_answer_is_a_cold_backends_answer(warm: LlamaBackend, cold_answer: Any) -> None:
    dice = random.Random(3)
    conversation: list[int] = []
    cached = 0
    for _ in range(120):
        mix = dice.choice(MIXES)
        warm.set_adapters(mix)
        if not conversation or dice.random() < 0.15 or len(conversation) > 400:
            conversation = [dice.randrange(6, 320) for _ in range(dice.randrange(1, 60))]
        elif dice.random() < 0.3:  # edited: a prefix stays
            conversation = conversation[: dice.randrange(len(conversation) + 1)]
        prompt = conversation + [dice.randrange(6, 320) for _ in range(dice.randrange(1, 30))]
        count = dice.randrange(1, 14)
        generator = warm.generate(prompt, SamplingParams(max_tokens=count))
        stop_after = dice.choice((0, 1, 3, 99, 99, 99))
        tokens = []
        for token in generator:
            tokens.append(token.id)
            if len(tokens) == stop_after:
                break
        generator.close()
        cached += warm.usage.cached_tokens
        expected, logits = cold_answer(mix, prompt, len(tokens))
        assert tokens == expected
        np.testing.assert_allclose(last_logits(warm), logits, atol=2e-4)
        conversation = prompt + tokens
    assert cached > 500, "the test is about reuse, and there was none"


def test_a_prefix_is_read_once(warm: LlamaBackend) -> None:
    greedy = SamplingParams(max_tokens=5)
    prompt = list(range(10, 60))
    first = [token.id for token in warm.generate(prompt, greedy)]
    assert (warm.usage.prompt_tokens, warm.usage.cached_tokens, warm.usage.completion_tokens) == (50, 0, 5)
    longer = [*prompt, *first, 100, 101]
    list(warm.generate(longer, greedy))
    assert (warm.usage.prompt_tokens, warm.usage.cached_tokens) == (57, 54)  # the fifth token was never decoded
    list(warm.generate(prompt, greedy))
    assert warm.usage.cached_tokens == 49  # the last token is read again for its logits
    warm.set_adapters({"a": 1.0})
    list(warm.generate(prompt, greedy))
    assert warm.usage.cached_tokens == 0
    warm.set_adapters({"a": 0.5})
    list(warm.generate(prompt, greedy))
    assert warm.usage.cached_tokens == 0, "the same adapter with another weight is another mix"
    warm.set_adapters({})
    list(warm.generate(prompt, greedy))
    assert warm.usage.cached_tokens == 49, "coming back finds what was left"


def test_the_mix_used_longest_ago_is_forgotten(warm: LlamaBackend) -> None:
    prompt = list(range(10, 40))
    cached = []
    for name in ("", "a", "b", "c", "c", "b", "a", ""):
        warm.set_adapters({name: 1.0} if name else {})
        list(warm.generate(prompt, SamplingParams(max_tokens=1)))
        cached.append(warm.usage.cached_tokens)
    assert cached == [0, 0, 0, 0, 29, 29, 29, 0]


def test_caches_that_exceed_the_memory_are_forgotten(tiny_gguf: Path, tiny_adapters: dict[str, Path]) -> None:
    """Two layers of one head of 32 keys and 32 values in F32: 512 bytes a token, 256 tokens at least a context."""
    prompt = list(range(10, 40))
    for room, returns in ((2 * 512 * 256, [0, 0, 29, 0, 0]), (1, [0, 0, 0, 0, 0]), (3 * 512 * 256, [0, 0, 29, 0, 29])):
        backend = open_backend(tiny_gguf, tiny_adapters, kv_memory=room)
        assert backend._settings.cache_bytes(256) == 512 * 256
        cached = []
        for name in ("", "a", "", "b", "a"):
            backend.set_adapters({name: 1.0} if name else {})
            list(backend.generate(prompt, SamplingParams(max_tokens=1)))
            cached.append(backend.usage.cached_tokens)
        assert cached == returns
        backend.close()


def test_a_context_larger_than_the_memory_is_refused(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = open_backend(tiny_gguf, {})
    monkeypatch.setattr("zephyra_cli.backends.kv.available_memory", lambda: 200_000)
    list(backend.generate([9] * 10, SamplingParams(max_tokens=4)))
    with pytest.raises(ZephyraError, match="a context of 512 tokens needs 0 MB .* 0 MB of memory are free"):
        next(backend.generate([9] * 500, SamplingParams(max_tokens=4)))
    monkeypatch.setattr("zephyra_cli.backends.kv.available_memory", lambda: None)
    assert len(list(backend.generate([9] * 500, SamplingParams(max_tokens=4)))) == 4
    backend.close()


def test_the_price_of_a_switch_is_known_before(warm: LlamaBackend) -> None:
    prompt = list(range(10, 60))
    assert warm.cached_tokens(prompt, {}) == warm.cached_tokens(prompt, {"unheard": 1.0}) == 0
    list(warm.generate(prompt, SamplingParams(max_tokens=1)))
    assert warm.cached_tokens(prompt, {}) == 49
    assert warm.cached_tokens([*prompt, 5], {"a": 0.0}) == 50
    assert warm.cached_tokens([*prompt[:20], 5, 6], {}) == 20
    assert warm.cached_tokens(prompt, {"a": 1.0}) == 0


def test_blends_that_hardly_differ_share_a_cache(warm: LlamaBackend) -> None:
    prompt = list(range(10, 60))
    cached = []
    for weights in {"a": 0.7, "c": 0.3}, {"a": 0.7012, "c": 0.2988}, {"a": 0.72, "c": 0.28}:
        warm.set_adapters(weights)
        list(warm.generate(prompt, SamplingParams(max_tokens=1)))
        cached.append(warm.usage.cached_tokens)
    assert cached == [0, 49, 0]


def test_a_growing_conversation_keeps_its_cache(warm: LlamaBackend, cold_answer: Any) -> None:
    """The context is made as large as needed and grows; nothing is read twice."""
    prompt = list(range(6, 206))
    list(warm.generate(prompt, SamplingParams(max_tokens=4)))
    longer = prompt + prompt
    tokens = [token.id for token in warm.generate(longer, SamplingParams(max_tokens=4))]
    assert warm.usage.cached_tokens == 200
    assert tokens == cold_answer({}, longer, 4)[0]


class InterruptedPrompt(list[int]):
    """Ctrl-C when the chunk that starts at 64 is taken."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and index.start == 64:
            raise KeyboardInterrupt
        return super().__getitem__(index)


def test_ctrl_c_between_two_chunks_of_the_prompt(warm: LlamaBackend, cold_answer: Any) -> None:
    prompt = [7 + i % 300 for i in range(150)]
    with pytest.raises(KeyboardInterrupt):
        next(warm.generate(InterruptedPrompt(prompt), SamplingParams(max_tokens=4)))
    assert warm.usage.completion_tokens == 0
    tokens = [token.id for token in warm.generate(prompt, SamplingParams(max_tokens=4))]
    assert warm.usage.cached_tokens == 64
    assert tokens == cold_answer({}, prompt, 4)[0]


class InterruptedRecord(list[int]):
    """Ctrl-C after llama.cpp has stored a batch and before it is written down."""

    def extend(self, _: Any) -> None:
        raise KeyboardInterrupt


def test_ctrl_c_before_a_batch_is_recorded(warm: LlamaBackend, cold_answer: Any) -> None:
    prompt = [7 + i % 300 for i in range(100)]
    list(warm.generate(prompt[:40], SamplingParams(max_tokens=1)))
    context = warm._context(1)
    context.tokens = InterruptedRecord(context.tokens)
    with pytest.raises(KeyboardInterrupt):
        next(warm.generate(prompt, SamplingParams(max_tokens=4)))
    context.tokens = list(context.tokens)
    other = prompt[:60] + [9, 8, 7]  # what was stored and not recorded must not be seen
    tokens = [token.id for token in warm.generate(other, SamplingParams(max_tokens=6))]
    assert warm.usage.cached_tokens == 40
    assert tokens == cold_answer({}, other, 6)[0]


def test_an_overtaken_generator_cannot_spoil_the_cache(warm: LlamaBackend) -> None:
    old = warm.generate(list(range(10, 20)), SamplingParams(max_tokens=9))
    next(old)
    list(warm.generate(list(range(30, 40)), SamplingParams(max_tokens=2)))
    with pytest.raises(RuntimeError, match="overtaken"):
        next(old)
    assert warm.usage.prompt_tokens == 10 and warm.usage.completion_tokens == 2


def test_a_process_stops_soon_after_ctrl_c(tiny_gguf: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from zephyra_cli.backends.llama import LlamaBackend\n"
        "from zephyra_fusion.types import SamplingParams\n"
        "backend = LlamaBackend(Path(sys.argv[1]), n_batch=16)\n"
        "print('ready', flush=True)\n"
        "try:\n"
        "    while True:\n"
        "        list(backend.generate([7 + i % 300 for i in range(500)], SamplingParams(max_tokens=12)))\n"
        "        backend.set_adapters({}); backend.forget()\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped', flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", script, str(tiny_gguf)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        try:
            out, err = child.communicate(timeout=10)
        finally:
            child.kill()  # or leaving the block would wait for it for ever
    assert (out, err, child.returncode) == ("stopped\n", "", 0)
