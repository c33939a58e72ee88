"""A library that kills processes kills the self-test's child and nobody else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from zephyra_cli.backends import self_test
from zephyra_cli.backends.self_test import BROKEN, EXTRA, PLAIN
from zephyra_cli.backends.self_test_model import model_bytes
from zephyra_converters.gguf_header import read_header
from zephyra_fusion.errors import ZephyraError

SEGFAULT = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
COUNT = "import sys; open(sys.argv[1], 'a').write(sys.argv[-1] + '\\n'); "


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZEPHYRA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def child(tmp_path: Path, script: str) -> list[str]:
    """A command that notes each call and then does as the script says; its last argument is the mode."""
    return [sys.executable, "-c", COUNT + script, str(tmp_path / "calls")]


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def test_this_library_passes(capfd: pytest.CaptureFixture[str]) -> None:
    assert self_test.verdict() in (EXTRA, PLAIN)
    assert len(capfd.readouterr().err.splitlines()) <= 1


def test_a_child_that_segfaults_costs_the_extra_buffers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = child(tmp_path, f"sys.argv[-1] == {EXTRA!r} and exec({SEGFAULT!r})")
    assert self_test.verdict(command) == PLAIN
    assert calls(tmp_path) == [EXTRA, PLAIN]
    assert capsys.readouterr().err == f"hint: {self_test.ADVICE}\n"
    assert self_test.verdict(command) == PLAIN
    assert calls(tmp_path) == [EXTRA, PLAIN], "the second time it is known"
    assert capsys.readouterr().err == ""


def test_a_child_that_always_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for script in SEGFAULT, "import os; os._exit(70)", "import os; os.abort()":
        monkeypatch.setenv("ZEPHYRA_HOME", str(tmp_path / str(len(script))))
        assert self_test.verdict(child(tmp_path, script)) == BROKEN
    monkeypatch.setattr(self_test, "at_risk", lambda: True)
    for wanted in True, False:  # the verdict of the last home is known
        with pytest.raises(ZephyraError, match="crashes on this processor") as error:
            self_test.extra_buffers_allowed(wanted)
        assert "pip install" in (error.value.hint or "")


def test_a_child_that_fails_otherwise_teaches_nothing(tmp_path: Path, home: Path) -> None:
    with pytest.raises(ZephyraError, match=r"self-test of llama.cpp failed \(status 1\): no disk"):
        self_test.verdict(child(tmp_path, "sys.exit('no disk')"))
    with pytest.raises(ZephyraError, match="did not finish"):
        self_test.verdict([str(tmp_path / "no-such-program")])
    assert not home.exists()


def test_a_new_library_is_tested_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = child(tmp_path, "")
    assert self_test.verdict(command) == EXTRA
    monkeypatch.setattr(self_test, "cpu_model", lambda: "another processor")
    assert self_test.verdict(command) == EXTRA
    assert len(calls(tmp_path)) == 2


def test_damaged_cache_and_read_only_home(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = child(tmp_path, "")
    self_test.verdict(command)
    place = self_test._cache_file()
    place.write_bytes(b"\xff\xfe")
    assert self_test.verdict(command) == EXTRA
    monkeypatch.setenv("ZEPHYRA_HOME", str(place))  # a file: nothing can be made inside
    assert self_test.verdict(command) == EXTRA


@pytest.mark.parametrize(
    ("flags", "risk"), [({"avx2", "fma"}, False), ({"avx512f", "amx_tile", "amx_int8"}, True), (set(), True)]
)
def test_only_where_there_is_a_risk(flags: set[str], risk: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "cpu_flags", lambda: frozenset(flags))
    assert self_test.at_risk() == risk
    monkeypatch.setattr(self_test, "verdict", lambda: PLAIN)
    assert self_test.extra_buffers_allowed(True) is not risk
    assert self_test.extra_buffers_allowed(False) is False


def test_the_built_in_model_is_quantized(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes())
    assert {tensor.type_name for tensor in read_header(path).tensors.values()} == {
        "F32",
        "Q4_0",
        "Q8_0",
        "Q4_K",
        "Q6_K",
    }
    assert model_bytes() == model_bytes()
