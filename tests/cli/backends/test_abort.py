"""Ctrl-C while llama.cpp reads: it ends within an operation, and nothing wrong stays behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from zephyra_cli import interruption, store
from zephyra_cli.backends import abort, weights
from zephyra_cli.backends.library import _log_callback, _LogCallback, library
from zephyra_cli.backends.llama import LlamaBackend
from zephyra_cli.backends.protocol import Job
from zephyra_fusion.types import SamplingParams, Token

PROMPT = [7 + i * i % 300 for i in range(100)]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="elsewhere an interruption waits for the end of the batch")


def answer(backend: LlamaBackend, prompt: list[int] = PROMPT) -> list[int]:
    return [token.id for token in backend.generate(prompt, SamplingParams(max_tokens=6))]


def many(backend: LlamaBackend, prompt: list[int]) -> list[list[int]]:
    """Answers of different lengths: slots end, and others move into their places."""
    jobs = [Job(prompt=prompt, params=SamplingParams(max_tokens=most)) for most in (2, 9, 4, 6)]
    answers: list[list[int]] = [[] for _ in jobs]
    for index, token in backend.generate_many(jobs):
        assert isinstance(token, Token)
        answers[index].append(token.id)
    return answers


def test_a_stopped_batch_is_decoded_again_where_the_handler_goes_on(tiny_gguf: Path) -> None:
    backend = LlamaBackend(tiny_gguf, threads=1, kv_type="f32", flash_attention=False)
    expected = answer(backend)
    again = LlamaBackend(tiny_gguf, threads=1, kv_type="f32", flash_attention=False)
    abort._flag[0] = b"!"  # as if a signal had come whose handler only takes a note
    assert answer(again) == expected
    assert abort._flag[0] == b"\0"
    abort._flag[0] = b"!"
    assert answer(again, [*PROMPT, 5, 6]) == answer(backend, [*PROMPT, 5, 6])
    expected_many = many(backend, PROMPT)
    abort._flag[0] = b"!"
    assert many(again, PROMPT) == expected_many
    assert abort._flag[0] == b"\0"
    backend.close()
    again.close()


def test_a_signal_raises_the_flag_at_once_and_leaves_no_trace() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    fd = signal.set_wakeup_fd(writing)
    threads = threading.active_count()
    try:
        with abort.abortable(library()):
            assert abort._flag[0] == b"\0"
            os.kill(os.getpid(), signal.SIGUSR1)
            assert abort._flag[0] != b"\0" and heard == [signal.SIGUSR1]
            abort.go_on()
            assert abort._flag[0] == b"\0"
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
            assert abort._flag[0] != b"\0"
            assert threading.active_count() == threads
        assert abort._flag[0] == b"\0"
        assert signal.set_wakeup_fd(fd) == writing
        assert os.read(reading, 9) == bytes([signal.SIGINT]), "who listened before hears what came last"
    finally:
        signal.set_wakeup_fd(fd)
        signal.signal(signal.SIGUSR1, before)
        os.close(reading)
        os.close(writing)


def test_a_file_with_a_name_for_a_moment_does_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    file = abort._nameless_file()
    assert os.fstat(file).st_size >= 1 and not os.get_blocking(file)
    os.close(file)


def test_another_thread_reads_without_a_watcher(tiny_gguf: Path) -> None:
    backend = LlamaBackend(tiny_gguf, threads=1)
    expected, found = answer(backend), []
    backend.forget()
    worker = threading.Thread(target=lambda: found.append(answer(backend)))
    worker.start()
    worker.join()
    assert found == [expected]
    backend.close()


def one(backend: LlamaBackend, prompt: list[int]) -> None:
    list(backend.generate(prompt, SamplingParams(max_tokens=1)))


def one_of_many(backend: LlamaBackend, prompt: list[int]) -> None:
    list(backend.generate_many([Job(prompt=prompt, params=SamplingParams(max_tokens=1))]))


@pytest.mark.parametrize("read", [one, one_of_many])
def test_ctrl_c_stops_a_batch_in_its_middle(read: Callable[[LlamaBackend, list[int]], None]) -> None:
    """One batch of 1,000 tokens of the embedded model takes long enough to be measured."""
    pack = store.find("zephyra-nano", offline=True)
    backend = LlamaBackend(pack.path(pack.base), threads=1, n_batch=1024)
    prompt = [10 + i % 8000 for i in range(1000)]
    shortest = 1.0
    for _ in range(4):  # a machine that is busy at the wrong moment
        backend.forget()
        start = time.perf_counter()
        read(backend, prompt)
        whole = time.perf_counter() - start
        backend.forget()
        timer = threading.Timer(whole / 8, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        start = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            read(backend, prompt)
        shortest = min(shortest, (time.perf_counter() - start) / whole)
        timer.join()
        if shortest < 0.6:
            break
    assert shortest < 0.6
    expected = LlamaBackend(pack.path(pack.base), threads=1, n_batch=1024)
    assert answer(backend, prompt) == answer(expected, prompt)
    backend.close()
    expected.close()


def test_a_signal_in_the_middle_of_loading_is_not_lost(
    tiny_gguf: Path, tiny_adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp logs while it loads and reads: Python runs the signal's handler in the function that takes the log."""
    monkeypatch.setattr(weights, "silenced", lambda lib: nullcontext())  # as where it is loaded again to hear why not

    def steps() -> Iterator[Callable[[], object]]:
        backend: list[LlamaBackend] = []
        yield lambda: backend.append(LlamaBackend(tiny_gguf, threads=1))
        yield lambda: backend[0].add_adapter("a", tiny_adapters["a"])
        yield lambda: [
            backend[0].set_adapters({"a": 1.0}),
            *backend[0].generate([5, 6, 7], SamplingParams(max_tokens=1)),
        ]

    lib, armed = library(), False

    def log(level: int, text: bytes, data: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, interruption.handle)
    lib.llama_log_set(callback := _LogCallback(log), None)
    try:
        for step in steps():
            armed = True
            with pytest.raises(KeyboardInterrupt):
                step()
            step()
    finally:
        lib.llama_log_set(_log_callback, None)
        signal.signal(signal.SIGINT, before)
        del callback


def test_a_signal_at_any_word_of_a_batch_is_not_lost(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp talks when it plans a step of another shape, moves a sequence and frees a context, too."""
    backend, prompt = LlamaBackend(tiny_gguf, threads=1, kv_type="f32", flash_attention=False), [5, 6, 7]
    lib, left = library(), 0

    def log(level: int, text: bytes, data: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            signal.raise_signal(signal.SIGINT)

    expected = many(backend, prompt)
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, interruption.handle)
    monkeypatch.setattr("zephyra_cli.backends.library._log_callback", callback := _LogCallback(log))
    lib.llama_log_set(callback, None)
    try:
        assert many(backend, prompt) == expected
        words = -left
        for word in range(1, words + 1, 1 + words // 60):
            left = word
            with pytest.raises(KeyboardInterrupt):
                many(backend, prompt)
        left = 0
        assert many(backend, prompt) == expected
    finally:
        lib.llama_log_set(_log_callback, None)
        signal.signal(signal.SIGINT, before)
    backend.close()


def test_an_interruption_while_a_context_is_freed_leaves_no_freed_one(tiny_gguf: Path) -> None:
    backend = LlamaBackend(tiny_gguf, threads=1, kv_type="f32", flash_attention=False)
    answer(backend, PROMPT[:9])
    lib, before, free = library(), signal.getsignal(signal.SIGINT), library().llama_free

    def interrupted(handle: int) -> None:
        with interruption.deferred():
            signal.raise_signal(signal.SIGINT)
            free(handle)

    signal.signal(signal.SIGINT, interruption.handle)
    lib.llama_free = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            answer(backend, PROMPT * 4)  # needs a larger one
    finally:
        lib.llama_free = free
        signal.signal(signal.SIGINT, before)
    assert all(context.handle for context in backend._pool._contexts.values())
    assert len(answer(backend, PROMPT[:9])) == len(answer(backend, PROMPT * 4)) == 6
    backend.close()
