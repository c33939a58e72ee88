"""A backend in a child says the same as one in this process, and its death is a message."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.process import PROGRAM, Run
from zephyra_cli import interruption
from zephyra_cli.backends.frames import Closed, Frames
from zephyra_cli.backends.isolated import IsolatedBackend
from zephyra_cli.backends.llama import LlamaBackend
from zephyra_cli.backends.protocol import Job
from zephyra_cli.engine import Engine
from zephyra_cli.loading import isolated
from zephyra_cli.pack import Pack
from zephyra_cli.settings import Settings
from zephyra_cli.vouched import embedded
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import SamplingParams, Token

SAMPLED = SamplingParams(max_tokens=20, temperature=1.0, seed=5)


def options(file: Path) -> dict[str, Any]:
    pack = {"root": str(file.parent), "name": "x", "base": file.name, "draft": None}
    return {"pack": pack, "settings": {"threads": 1, "draft": "none"}}


@pytest.fixture
def child(tiny_gguf: Path) -> Iterator[IsolatedBackend]:
    backend = IsolatedBackend(tiny_gguf, options(tiny_gguf))
    yield backend
    backend.close()


@pytest.fixture
def here(tiny_gguf: Path) -> Iterator[LlamaBackend]:
    backend = LlamaBackend(tiny_gguf, threads=1)
    yield backend
    backend.close()


def test_it_says_what_a_backend_here_says(
    child: IsolatedBackend, here: LlamaBackend, tiny_adapters: dict[str, Path]
) -> None:
    assert (child.name, child.device, child.context_length) == (here.name, here.device, here.context_length)
    assert (child.vocab_size, child.stop_ids, child.parameters) == (here.vocab_size, here.stop_ids, here.parameters)
    ids = child.encode("find naïve <|end|>")
    assert ids == here.encode("find naïve <|end|>")
    assert child.encode("<|end|>", special=True) == here.encode("<|end|>", special=True)
    for weights in {}, {"a": 0.7}:
        for backend in child, here:
            if weights:
                backend.add_adapter("a", tiny_adapters["a"])
            backend.set_adapters(weights)
        tokens = list(child.generate(ids, SAMPLED))
        assert tokens == list(here.generate(ids, SAMPLED))
        assert [child.token_bytes(t.id) for t in tokens] == [here.token_bytes(t.id) for t in tokens]
        assert child.usage.completion_tokens == here.usage.completion_tokens == len(tokens)
        assert child.usage.cached_tokens == here.usage.cached_tokens
        assert child.logits(ids) == here.logits(ids)
        assert child.cached_tokens(ids, weights) == here.cached_tokens(ids, weights) > 0


def test_many_prompts_at_once(child: IsolatedBackend, here: LlamaBackend) -> None:
    jobs = [Job(prompt=here.encode(text), params=SAMPLED) for text in ("one two", "three", "")]

    def collected(backend: IsolatedBackend | LlamaBackend) -> list[tuple[int, Token | str]]:
        events = backend.generate_many(jobs)
        return sorted((n, e.message if isinstance(e, ZephyraError) else e.id) for n, e in events)

    assert collected(child) == collected(here)


def test_an_early_end_leaves_it_usable(child: IsolatedBackend) -> None:
    ids = child.encode("list the names")
    whole = [token.id for token in child.generate(ids, SAMPLED)]
    tokens = child.generate(ids, SAMPLED)
    assert next(tokens).id == whole[0]
    tokens.close()
    assert child.usage.completion_tokens == 1
    old, new = child.generate(ids, SAMPLED), child.generate(ids, SAMPLED)
    next(old)
    assert [token.id for token in new] == whole
    with pytest.raises(RuntimeError, match="overtaken"):
        next(old)


def test_errors_cross_as_what_they_are(child: IsolatedBackend, tiny_router: Path, tmp_path: Path) -> None:
    with pytest.raises(ZephyraError, match="prompt is empty"):
        next(child.generate([], SAMPLED))
    with pytest.raises(ZephyraError, match="unknown adapter 'x'"):
        child.set_adapters({"x": 1.0})
    with pytest.raises(ZephyraError, match="lone surrogate"):
        child.encode("\udc80")
    with pytest.raises(ZephyraError, match="wanted is a language model"):
        IsolatedBackend(tiny_router, options(tiny_router))
    with pytest.raises(ZephyraError, match="lacks its file"):
        IsolatedBackend(tmp_path / "none.gguf", options(tmp_path / "none.gguf"))
    assert child.encode("still here")


@pytest.mark.parametrize(
    ("deed", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"crashed \(SIGSEGV\)"),
        ("print('GGML_ASSERT(x) failed', file=sys.stderr, flush=True); os._exit(70)", r"aborted on .*GGML_ASSERT"),
        ("os._exit(3)", "ended with status 3"),
        ("os.write(1, b'nonsense'); time.sleep(60)", "answered nonsense"),
        ("os.write(1, b'J' + bytes([255] * 4)); time.sleep(60)", "answered nonsense"),
        ("os.write(1, b'J' + bytes([2, 0, 0, 0]) + b'[]'); time.sleep(60)", "answered nonsense"),
    ],
)
def test_a_death_is_a_message(deed: str, message: str, tiny_gguf: Path) -> None:
    code = f"import os, signal, sys, time; sys.stdin.buffer.read(5); {deed}"
    with pytest.raises(ZephyraError, match=message) as error:
        IsolatedBackend(tiny_gguf, options(tiny_gguf), [sys.executable, "-c", code])
    assert "doctor" in (error.value.hint or "")


def test_a_death_while_it_answers(child: IsolatedBackend) -> None:
    tokens = child.generate(child.encode("list"), SAMPLED)
    next(tokens)
    os.kill(child._process.pid, signal.SIGKILL)
    with pytest.raises(ZephyraError, match=r"crashed \(SIGKILL\)"):
        list(tokens)
    child.close()


@pytest.fixture
def deferring() -> Iterator[None]:
    """The program's own handlers, which never fall into the middle of a frame."""
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.getsignal(number) for number in numbers]
    interruption.install()
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_ctrl_c_ends_the_answer_and_not_the_child(child: IsolatedBackend, deferring: None) -> None:
    ids = child.encode("list the names")
    long = SamplingParams(max_tokens=400, temperature=1.0, seed=1)
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        while True:
            for _ in child.generate(ids, long):
                pass
    assert [token.id for token in child.generate(ids, SAMPLED)]


def test_secrets_stay_here(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    code = f"import os; open({str(tmp_path / 'seen')!r}, 'w').write(' '.join(os.environ))"
    with pytest.raises(ZephyraError, match="ended with status 0"):
        IsolatedBackend(tiny_gguf, options(tiny_gguf), [sys.executable, "-c", code])
    seen = (tmp_path / "seen").read_text().split()
    assert "PATH" in seen and "HF_TOKEN" not in seen


def test_frames_stay_whole(tmp_path: Path) -> None:
    read, write = os.pipe()
    near, far = Frames(read, write), Frames(read, write)
    for value in {"a": [1, "ü"]}, array("f", [1.5, 2.5]), None, "x" * 50_000:
        near.send(value)
        assert far.receive() == value
    os.close(write)
    with pytest.raises(Closed):
        far.receive()
    with pytest.raises(Closed):
        near.send(1)


def test_who_is_isolated(tiny_pack: Path, tiny_gguf: Path, home: Path) -> None:
    stored = Path(shutil.copytree(tiny_pack, home / "models" / "tiny"))
    pack, bare = Pack.read(stored), Pack.bare(tiny_gguf)
    (home / "models" / "linked").symlink_to(tiny_pack)
    for elsewhere in tiny_pack, home / "models" / "linked":  # whatever hashes it claims
        assert isolated(Pack.read(elsewhere), Settings(), "llama")
    for missing in "base.gguf", "router.gguf", "adapters/sql.gguf":
        files = {name: record for name, record in pack.files.items() if name != missing}
        assert isolated(replace(pack, files=files), Settings(), "llama")
    assert isolated(replace(pack, draft="draft.gguf"), Settings(), "llama")
    nano = embedded()
    assert nano is None or not isolated(Pack.read(nano), Settings(), "llama")
    assert not isolated(pack, Settings(), "llama") and isolated(bare, Settings(), "llama")
    assert isolated(pack, Settings(isolate=True), "llama") and not isolated(bare, Settings(isolate=False), "llama")
    assert isolated(pack, Settings(draft="x.gguf"), "llama")
    assert not isolated(bare, Settings(), "torch") and isolated(bare, Settings(isolate=True), "torch")


def test_a_pack_routes_in_the_child(tiny_pack: Path) -> None:
    pack = Pack.read(tiny_pack)
    routes = []
    for isolate in False, True:
        engine = Engine.open(pack, Settings(threads=1, isolate=isolate))
        routes.append([engine.route(text).probabilities for text in ("find files", "select")])
        engine.close()
    assert routes[0] == routes[1]


def test_the_program(zephyra: Run, tiny_pack: Path, tiny_gguf: Path, make_gguf: Callable[..., Path]) -> None:
    command = ("generate", "-m", tiny_pack, "-d", "shell", "-n", "8", "-t", "0", "hello")
    plain, apart = zephyra(*command), zephyra(*command, "--isolate")
    assert plain.returncode == apart.returncode == 0
    assert plain.stdout == apart.stdout and plain.stdout
    assert zephyra("generate", "-m", tiny_gguf, "-n", "4", "hello").returncode == 0


def test_no_child_outlives_its_parent(tiny_gguf: Path) -> None:
    import subprocess

    code = (
        "import os, sys; from pathlib import Path; from zephyra_cli.backends.isolated import IsolatedBackend\n"
        f"b = IsolatedBackend(Path({str(tiny_gguf)!r}), {options(tiny_gguf)!r}); print(b._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([PROGRAM[0], "-c", code], capture_output=True, text=True, timeout=60)
    pid = int(done.stdout)
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the child is still there")
