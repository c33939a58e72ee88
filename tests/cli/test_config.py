"""`zephyra config` and profiles: each value with its source, changes that keep the user's file as it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zephyra_cli import settings
from zephyra_fusion.errors import ZephyraError

Inside = Callable[..., tuple[int, str, str]]
FILE = """# mine
temperature = 0.5  # warm
seed = 1

[profile.fast]
seed = 2
max_tokens = 9
"""


@pytest.fixture
def file(home: Path) -> Path:
    home.mkdir()
    (home / "config.toml").write_text(FILE)
    return home / "config.toml"


def test_each_setting_is_shown_with_where_it_came_from(
    inside: Inside, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZEPHYRA_TOP_K", "3")
    status, out, err = inside("config", "--profile", "fast", "--json")
    shown = json.loads(out)
    assert (status, err, shown["file"], shown["profiles"]) == (0, "", str(file), ["fast"])
    found = {name: (entry["value"], entry["source"]) for name, entry in shown["settings"].items()}
    assert set(found) == set(settings.KINDS)
    assert found["temperature"] == (0.5, "config.toml")
    assert found["seed"] == (2, "config.toml [profile.fast]")
    assert found["top_k"] == (3, "ZEPHYRA_TOP_K")
    assert found["model"] == ("zephyra-nano", "default")
    table = inside("config")[1].splitlines()
    assert ["seed", "1", "config.toml"] in [line.split() for line in table]


def test_a_profile_by_option_and_by_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.load({}).seed == 1
    assert settings.load({"profile": "fast"}).max_tokens == 9
    monkeypatch.setenv("ZEPHYRA_PROFILE", "fast")
    assert settings.load({}).seed == 2
    monkeypatch.setenv("ZEPHYRA_SEED", "3")
    assert settings.load({}).seed == 3
    assert settings.load({"seed": 4}).seed == 4
    with pytest.raises(ZephyraError, match="no profile 'fats'") as error:
        settings.load({"profile": "fats"})
    assert "did you mean 'fast'" in (error.value.hint or "")


def test_a_profile_reaches_an_answer(inside: Inside, file: Path, tiny_pack: Path) -> None:
    out = inside("generate", "-m", tiny_pack, "--profile", "fast", "--json", "hi")[1]
    assert json.loads(out)["usage"]["completion_tokens"] <= 9 and json.loads(out)["seed"] == 2


def test_get_prints_the_value_alone(inside: Inside, file: Path) -> None:
    assert inside("config", "get", "seed") == (0, "1\n", "")
    assert inside("config", "get", "seed", "--profile", "fast") == (0, "2\n", "")
    assert inside("config", "get", "stats") == (0, "false\n", "")
    assert inside("config", "get", "top_k") == (1, "", "error: setting 'top_k' is not set, the model decides\n")
    assert "did you mean 'seed'" in inside("config", "get", "sead")[2]
    assert inside("config", "path") == (0, f"{file}\n", "")


def test_no_option_before_a_subcommand_is_ignored(inside: Inside, file: Path) -> None:
    for line in (
        "config --profile fast get seed",
        "config --json get seed",
        "templates --json show commit",
        "models --json show zephyra-nano",
        "domains -m somewhere remove sql",
        "log -n 3 search word",
    ):
        status, out, err = inside(*line.split())
        assert (status, out) == (2, "") and "stand behind its name" in err, line
    assert inside("config", "get", "seed", "--profile", "fast") == (0, "2\n", "")


def test_set_and_unset_leave_the_rest_of_the_file_alone(inside: Inside, file: Path) -> None:
    assert inside("config", "set", "seed", "7") == (0, "", "")
    assert file.read_text() == FILE.replace("seed = 1", "seed = 7")
    inside("config", "set", "stats", "on", "--profile", "loud")
    assert file.read_text().startswith(FILE.replace("seed = 1", "seed = 7"))
    assert settings.load({"profile": "loud"}).stats
    inside("config", "unset", "stats", "--profile", "loud")
    inside("config", "unset", "seed")
    assert file.read_text().strip() == FILE.replace("seed = 1\n", "").strip()
    status, _, err = inside("config", "unset", "seed")
    assert status == 1 and err.startswith(f"error: setting 'seed' is not in '{file}'")


def test_a_file_begins_with_the_first_set(inside: Inside, home: Path) -> None:
    inside("config", "set", "model", "tiny", "--profile", "a.b")
    assert (home / "config.toml").read_text() == '[profile."a.b"]\nmodel = "tiny"\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("set temprature 1", "did you mean 'temperature'"),
        ("set temperature hot", "setting 'temperature' is 'hot', must be a number"),
        ("set temperature 300", "temperature is 300.0, must be between 0 and 100"),
        ("set stats perhaps", "must be true or false"),
        ("set device gpu", "unknown device 'gpu'"),
        ("set domain shell=much", "weight of 'shell' is 'much', not a number"),
        ("set domain shell=0.5,sql", "domain 'sql' has no weight"),
        ("set domain =2", "unknown domain ''"),
        ("unset temprature", "did you mean 'temperature'"),
        ("unset profile", "unknown setting 'profile'"),
        ("get profile", "unknown setting 'profile'"),
    ],
)
def test_what_is_wrong_is_refused_and_the_file_stays(inside: Inside, file: Path, arguments: str, message: str) -> None:
    status, out, err = inside("config", *arguments.split())
    assert (status, out) == (1, "") and message in err
    assert file.read_text() == FILE


def test_an_empty_model_is_refused_and_a_blend_is_not(inside: Inside, home: Path) -> None:
    assert "the model's name is empty" in inside("config", "set", "model", "")[2] and not home.exists()
    assert inside("config", "set", "domain", "shell=0.5, sql=0.5")[0] == 0


def test_nothing_is_no_hint(inside: Inside, home: Path) -> None:
    assert "hint:" not in inside("config", "unset", "seed")[2]


def test_an_unknown_name_in_the_file_can_be_taken_out(inside: Inside, file: Path) -> None:
    file.write_text("temprature = 1\n" + FILE)
    status, _, err = inside("config")
    assert status == 1 and f"unknown setting 'temprature' in '{file}'" in err and "did you mean 'temperature'" in err
    assert inside("config", "unset", "temprature") == (0, "", "")
    assert inside("config")[0] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[profile.x]\nsead = 1\n", "unknown setting 'sead' in .*, profile 'x'"),
        ("[profile.x]\nseed = 'a'\n", "must be a whole number"),
        ("[profile]\nseed = 1\n", "no table of profiles"),
        ("profile = 'fast'\n", "no table of profiles"),
    ],
)
def test_profiles_that_are_none_are_refused(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(ZephyraError, match=message):
        settings.load({})


def test_edit_opens_the_users_editor_and_checks(inside: Inside, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "sh -c 'echo seed = 5 >> \"$0\"'")
    assert inside("config", "edit") == (0, "", "")
    assert settings.load({}).seed == 5
    monkeypatch.setenv("EDITOR", "sh -c 'echo sead = 5 >> \"$0\"'")
    status, _, err = inside("config", "edit")
    assert status == 1 and "did you mean 'seed'" in err
    monkeypatch.setenv("EDITOR", "no-such-editor")
    assert "cannot run the editor 'no-such-editor'" in inside("config", "edit")[2]


def test_a_link_stays_a_link(inside: Inside, home: Path, tmp_path: Path) -> None:
    home.mkdir()
    (tmp_path / "dotfile").write_text("seed = 1\n")
    (tmp_path / "dotfile").chmod(0o600)
    (home / "config.toml").symlink_to(tmp_path / "dotfile")
    inside("config", "set", "seed", "2")
    assert (home / "config.toml").is_symlink() and (tmp_path / "dotfile").read_text() == "seed = 2\n"
    assert (tmp_path / "dotfile").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.name == "nt", reason="POSIX")
def test_a_home_that_cannot_be_written_is_an_error(inside: Inside, home: Path) -> None:
    home.write_text("a file where the folder should be")
    status, out, err = inside("config", "set", "seed", "1")
    assert (status, out) == (1, "") and "cannot" in err and "hint: ZEPHYRA_HOME" in err


READ_ONLY = """
mount -t tmpfs -o size=16k tmpfs "$1" && mkdir "$1/home" && echo 'seed = 1' > "$1/home/config.toml" || exit 77
head -c 99999 /dev/zero > "$1/fill" 2> /dev/null
ZEPHYRA_HOME="$1/home" "$2" -m zephyra_cli config set system "$(head -c 20000 /dev/zero | tr '\\0' x)" && exit 1
mount -o remount,ro "$1" || exit 77
ZEPHYRA_HOME="$1/home" "$2" -m zephyra_cli config set seed 2 && exit 1
ZEPHYRA_HOME="$1/home" "$2" -m zephyra_cli templates new x hello && exit 1
ls -A "$1/home"; cat "$1/home/config.toml"
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs a disk of its own to fill")
def test_a_full_and_a_read_only_home_keep_what_they_have(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", READ_ONLY, "sh", str(place), sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if "unshare:" in done.stderr or done.returncode == 77:
        pytest.skip("no disk of its own here")
    assert done.stdout == "config.toml\nseed = 1\n"
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        f"error: cannot write '{place}/home/config.toml': No space left on device",
        f"error: cannot write '{place}/home/config.toml': Read-only file system",
        f"error: cannot make the folder '{place}/home/templates': Read-only file system",
    ]
