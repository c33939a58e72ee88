"""Completion as the shells do it: each one that is installed reads its file and is asked with a real Tab."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from zephyra_cli import complete

Inside = Callable[..., tuple[int, str, str]]
SHELLS = ("bash", "zsh", "fish", "powershell")


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the PATH with `zephyra` in it."""
    script = tmp_path / "bin" / "zephyra"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m zephyra_cli "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    return script.parent


@pytest.fixture
def written(inside: Inside, tmp_path: Path) -> Callable[[str], Path]:
    """function(shell) -> the file that `zephyra completion` prints."""

    def write(shell: str) -> Path:
        status, text, err = inside("completion", shell)
        assert (status, err) == (0, "") and "_ZEPHYRA_COMPLETE" in text
        (tmp_path / shell).write_text(text)
        return tmp_path / shell

    return write


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_file(written: Callable[[str], Path], shell: str) -> None:
    written(shell)


@needs("bash")
@pytest.mark.parametrize("breaks", ["=", ""])
def test_bash(program: Path, written: Callable[[str], Path], tmp_path: Path, tiny_pack: Path, breaks: str) -> None:
    """Tabs are typed into a bash, which takes words apart in its own way; a key writes down the line of then."""
    asked = {
        "zephyra doct": "zephyra doctor ",
        f"zephyra generate -m {tiny_pack} -d sh": f"zephyra generate -m {tiny_pack} -d shell ",
        f"zephyra generate -m {tiny_pack} -d sql=0.5,sh": f"zephyra generate -m {tiny_pack} -d sql=0.5,shell ",
        f"zephyra generate -m {tiny_pack} --domain=sh": f"zephyra generate -m {tiny_pack} --domain=shell ",
        f"zephyra generate -m {tiny_pack} --domain=sql=1,sh": f"zephyra generate -m {tiny_pack} --domain=sql=1,shell ",
        "zephyra config set te": "zephyra config set temperature ",
        "A=1 true; zephyra generate --dev": "A=1 true; zephyra generate --device ",
        "zephyra nonsense xyz": "zephyra nonsense xyz",
    }
    begin = f"source {written('bash')}; show() {{ printf '<%s>\\n' \"$READLINE_LINE\"; }}; "
    begin += """PS1='$ '; bind -x '"\\C-t": show'; COMP_WORDBREAKS=" $breaks"; echo rea''dy\r"""
    environment = {"HOME": str(tmp_path), "TERM": "dumb", "INPUTRC": "/dev/null", "breaks": breaks}
    from pseudo_terminal import Terminal

    bash = ["bash", "--noprofile", "--norc", "-i"]
    with Terminal(program=bash, cwd=tmp_path, size=(400, 24), **environment) as terminal:
        terminal.types(begin)
        terminal.until("ready")
        for line, completed in asked.items():
            terminal.types(f"{line}\t\x14")
            terminal.until(f"<{completed}>")
            terminal.types("\x15")


@needs("fish")
def test_fish(program: Path, written: Callable[[str], Path], tmp_path: Path, tiny_pack: Path) -> None:
    (tmp_path / "a_file.txt").touch()
    script = f"source {written('fish')}; complete -C 'zephyra doc'; complete -C 'zephyra generate -f a_f'"
    for domain in ("--domain=sh", "--domain=sql=0.5,sh", "-d sql=0.5,sh"):
        script += f"; complete -C 'zephyra generate -m {tiny_pack} {domain}'"
    environment = os.environ | {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd=tmp_path,
    )
    command, file, *domains = done.stdout.splitlines()
    assert command.startswith("doctor\tShow what is here")
    assert file.split("\t")[0] == "a_file.txt"
    assert domains == ["--domain=shell", "--domain=sql=0.5,shell", "sql=0.5,shell"]


@needs("zsh")
def test_zsh(program: Path, written: Callable[[str], Path], tmp_path: Path, tiny_pack: Path) -> None:
    """zsh completes at a terminal only: a Tab is typed into one, a key writes down the line that is there then."""
    folder = tmp_path / "functions"
    folder.mkdir()
    written("zsh").rename(folder / "_zephyra")
    begin = f"fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -d {tmp_path / 'dump'}; show() {{ "
    begin += (
        'print -r -- "<$BUFFER>" > ' + str(tmp_path / "line") + "; }; zle -N show; bindkey '^X^T' show; print ready\r"
    )
    environment = {"HOME": str(tmp_path), "ZDOTDIR": str(tmp_path), "TERM": "dumb"}
    from pseudo_terminal import Terminal

    with Terminal("-f", "-i", program=["zsh"], **environment) as terminal:
        terminal.types(begin)
        terminal.until("\nready")
        generate = f"zephyra generate -m {tiny_pack}"
        asked = {"zephyra doc": "zephyra doctor", f"{generate} -d sql=0.5,sh": f"{generate} -d sql=0.5,shell"}
        asked |= {f"{generate} --domain={value}": f"{generate} --domain={value}ell" for value in ("sh", "sql=0.5,sh")}
        for line, completed in asked.items():
            (tmp_path / "line").unlink(missing_ok=True)
            terminal.types(f"\x15{line}\t\x18\x14")
            deadline = time.monotonic() + 60
            while not (tmp_path / "line").exists() or not (tmp_path / "line").read_text():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert (tmp_path / "line").read_text() == f"<{completed} >\n"


def test_powershell_is_answered_as_its_file_asks(program: Path) -> None:
    """The shell itself is tried where it is installed, the other side of the conversation everywhere."""
    asked = {"_TYPER_COMPLETE_ARGS": "zephyra conf", "_TYPER_COMPLETE_WORD_TO_COMPLETE": "conf"}
    environment = os.environ | asked | {"_ZEPHYRA_COMPLETE": "complete_powershell"}
    done = subprocess.run(["zephyra"], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout.startswith("config:::The settings and where each comes from")


@needs("pwsh")
def test_powershell(program: Path, written: Callable[[str], Path]) -> None:
    ask = "(TabExpansion2 'zephyra conf' 12).CompletionMatches.CompletionText"
    script = f"Get-Content -Raw {written('powershell')} | Invoke-Expression; {ask}"
    done = subprocess.run(["pwsh", "-NoProfile", "-Command", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "config"


def test_a_tab_imports_nothing_heavy(program: Path) -> None:
    code = "import sys; from zephyra_cli import app; app._run([]); print(*sys.modules, file=sys.stderr)"
    environment = os.environ | {"_ZEPHYRA_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "zephyra generate -m zeph"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == "_arguments '*: :((\"zephyra-nano\"))'\n"
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert not loaded & {"torch", "numpy", "llama_cpp", "tokenizers", "pydantic", "prompt_toolkit"}
    assert not [name for name in done.stderr.split() if name.startswith("rich.")]


def test_a_blend_is_completed_at_its_last_part(tiny_pack: Path) -> None:
    class Line:
        params = {"model": str(tiny_pack)}

    assert complete.domains(Line(), "sql=0.5,s") == ["sql=0.5,shell", "sql=0.5,sql"]
    assert complete.domains(Line(), "n") == ["none"]


@pytest.mark.parametrize(
    ("name", "begun", "offered"),
    [
        ("device", "c", ["cpu", "cuda"]),
        ("stats", "", ["true", "false"]),
        ("model", "zeph", ["zephyra-nano"]),
        ("domain", "no", ["none"]),
        ("seed", "", []),
        ("nonsense", "", []),
    ],
)
def test_values_of_settings(name: str, begun: str, offered: list[str]) -> None:
    class Line:
        params = {"name": name}

    assert complete.setting_values(Line(), begun) == offered


def test_names_that_a_shell_would_execute_are_never_offered(home: Path) -> None:
    for name in ("good", "$(touch pwned)", "a;b", "'", "a b", "\x1b[31m"):
        (home / "models" / name).mkdir(parents=True)
        (home / "models" / name / "zephyra.json").write_text("{}")
    assert complete.models("") == ["zephyra-nano", "good"]


def test_a_broken_configuration_keeps_silent(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Line:
        params: dict[str, str] = {}

    home.mkdir()
    (home / "config.toml").write_text("= broken")
    assert complete.domains(Line(), "") == [] == complete.profiles("")
    assert capfd.readouterr() == ("", "")
