"""`zephyra shell`: the command alone in a pipe; on a terminal nothing runs without a yes; the key bindings."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("fcntl", reason="needs a pseudo-terminal")
from pseudo_terminal import Terminal

from tests.cli.process import Run
from zephyra_cli.proposal import command_in
from zephyra_cli.shell_keys import KEYS
from zephyra_fusion.errors import ZephyraError

Inside = Callable[..., tuple[int, str, str]]
PROMPT = "function fish_prompt; printf '> '; end"
DECIDE = """
import sys
from zephyra_cli import interruption, proposal
interruption.install()
wanted = proposal.decide(sys.argv[1])
print("dropped") if wanted is None else proposal.run(wanted)
"""


def proposed(command: str, folder: Path, **environment: str) -> Terminal:
    """The question about this command, on a terminal."""
    settings = {"SHELL": "/bin/sh", "TERM": "xterm"} | environment
    return Terminal(command, program=[sys.executable, "-c", DECIDE], cwd=folder, **settings)


@pytest.mark.parametrize(
    ("answer", "command"),
    [
        ("find . -size +1M", "find . -size +1M"),
        ("Use this:\n```sh\nls -l |\n  wc\n```\nIt counts.", "ls -l |\n  wc"),
        ("`ls`\n", "ls"),
        ("echo `date`", "echo `date`"),
        ("`a` and `b`", "`a` and `b`"),
        ("$ ls", "ls"),
        ("echo $HOME", "echo $HOME"),
    ],
)
def test_the_command_in_an_answer(answer: str, command: str) -> None:
    assert command_in(answer) == command


@pytest.mark.parametrize("answer", ["", " \n", "```\n```"])
def test_no_command_is_an_error(answer: str) -> None:
    with pytest.raises(ZephyraError, match="no command"):
        command_in(answer)


def test_a_pipe_gets_the_command_of_the_specialist_alone(zephyra: Run, tiny_pack: Path) -> None:
    run = zephyra("shell", "-m", tiny_pack, "-n", 4, "--stats", "list files")
    answer = zephyra("generate", "-m", tiny_pack, "-n", 4, "-d", "shell", "list files").stdout
    assert run.returncode == 0 and run.stdout == command_in(answer.decode()).encode() + b"\n"
    assert run.stderr.startswith(b"shell ")


def test_a_model_without_a_specialist_is_told_what_is_wanted(tiny_gguf: Path, inside: Inside, tiny_pack: Path) -> None:
    counts = []
    for model in (tiny_gguf, tiny_pack):
        status, _, err = inside("shell", "-m", model, "-n", 4, "--stats", "list files")
        assert status == 0
        counts.append(int(err.split(" prompt tokens")[0].split()[-1]))
    assert counts[0] > counts[1] + 20


def test_on_a_terminal_it_is_shown_and_no_is_the_default(tiny_pack: Path, tmp_path: Path) -> None:
    with Terminal("shell", "-m", tiny_pack, "-n", 9, "list files", cwd=tmp_path, TERM="xterm") as terminal:
        terminal.until("[N]o: ")
        terminal.types("\r")
        assert terminal.ends() == 0 and terminal.plain.endswith("not run\n")
    assert not [path for path in tmp_path.iterdir() if path.name != "home"]


@pytest.mark.parametrize("reply", ["", "n", "no", "Yess", "yes please", "1", "\x04"])
def test_nothing_runs_without_a_yes(tmp_path: Path, reply: str) -> None:
    with proposed("touch ran", tmp_path) as terminal:
        assert "touch ran\n" in terminal.until("[N]o: ")
        terminal.types(reply + "\r")
        assert terminal.ends() == 0 and "dropped" in terminal.plain
    assert not (tmp_path / "ran").exists()


def test_a_yes_runs_it_and_its_status_is_ours(tmp_path: Path) -> None:
    with proposed("touch ran; exit 7", tmp_path) as terminal:
        terminal.until("[N]o: ")
        terminal.types("y\r")
        assert terminal.ends() == 7
    assert (tmp_path / "ran").exists()


def test_the_running_command_has_the_terminal_and_its_signals(tmp_path: Path) -> None:
    with proposed("trap 'echo caught; exit 3' INT; echo waiting; read line", tmp_path) as terminal:
        terminal.until("[N]o: ")
        terminal.types("yes\r")
        terminal.until("\nwaiting")
        terminal.types("\x03")
        assert terminal.ends() == 3 and "caught" in terminal.plain
    with proposed("yes | head -n 1; echo $?", tmp_path, SHELL="/bin/sh") as terminal:  # SIGPIPE is not ignored
        terminal.until("[N]o: ")
        terminal.types("y\r")
        assert terminal.ends() == 0 and "Broken pipe" not in terminal.plain


def test_ctrl_c_at_the_question_runs_nothing(tmp_path: Path) -> None:
    with proposed("touch ran", tmp_path) as terminal:
        terminal.until("[N]o: ")
        terminal.types("\x03")
        assert terminal.ends() != 0
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_an_edited_command_is_asked_about_again(tmp_path: Path, kind: str) -> None:
    with proposed("touch rat", tmp_path, TERM=kind) as terminal:
        terminal.until("[N]o: ")
        terminal.types("e\r")
        if kind == "xterm":
            terminal.until("$ touch rat")
            terminal.types("\x7fn\r")
        else:
            terminal.until("the command: ")
            terminal.types("touch ran\r")
        terminal.until("touch ran\nrun it?")
        terminal.types("y\r")
        assert terminal.ends() == 0
    assert (tmp_path / "ran").exists() and not (tmp_path / "rat").exists()


@pytest.mark.parametrize("hidden", ["\x1b[8m; touch ran", "\u202e; touch ran", "\x00"])
def test_what_cannot_be_seen_cannot_be_run(tmp_path: Path, hidden: str) -> None:
    with proposed("ls " + hidden.replace("\0", "\x9b"), tmp_path) as terminal:
        shown = terminal.until("[N]o: ")
        assert "run it?" not in shown and "control characters" in shown and "\x1b[8m" not in terminal.all
        terminal.types("y\r")
        assert terminal.ends() == 0 and "dropped" in terminal.plain
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("hidden", ["\x1b[8m", "\u202e", "\x9b"])
def test_a_pipe_does_not_get_it_either(
    inside: Inside, tiny_pack: Path, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    from zephyra_cli import text

    monkeypatch.setattr(text.AnswerText, "feed", lambda self, data: "")
    monkeypatch.setattr(text.AnswerText, "finish", lambda self: f"ls {hidden}\n")
    status, out, err = inside("shell", "-m", tiny_pack, "-n", 2, "list")
    assert (status, out) == (1, "") and "control characters: ls \\" in err


@pytest.mark.parametrize("shell", list(KEYS))
def test_the_key_binding_changes_the_line(shell: str, tmp_path: Path, inside: Inside) -> None:
    """The shell itself, at a terminal; its `zephyra` answers at once with a command that leaves a trace."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    status, keys, err = inside("shell", "--keys", shell)
    assert (status, err) == (0, "") and keys == KEYS[shell]
    (tmp_path / "keys").write_text(keys)
    fake = tmp_path / "bin" / "zephyra"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/asked\necho "echo done > {tmp_path}/ran"\n')
    fake.chmod(0o755)
    environment = {"HOME": str(tmp_path), "ZDOTDIR": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "PS1": "> "}
    environment |= {"TERM": "xterm", "PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}"}
    command = {
        "bash": ["bash", "--norc", "-i"],
        "zsh": ["zsh", "-f", "-i"],
        "fish": ["fish", "--no-config", "-i", "-C", PROMPT],
    }
    with Terminal(program=command[shell], cwd=tmp_path, **environment) as terminal:
        terminal.until("> ")
        terminal.types(f". {tmp_path}/keys; echo rea''dy\r")
        terminal.until("\nready")
        terminal.types("-- list 'my' $files\x1bz")
        terminal.until("/ran")
        terminal.types("\r" + "exit\r")
        terminal.ends()
    assert (tmp_path / "asked").read_text() == "shell\n--\n-- list 'my' $files\n"
    assert (tmp_path / "ran").read_text() == "done\n"
