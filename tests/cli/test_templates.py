"""Stored prompts: what a file may hold, what -T and -p make of it, and the commands that keep them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.process import Run
from zephyra_cli import prompt_template
from zephyra_cli.prompt_template import PromptTemplate
from zephyra_fusion.errors import ZephyraError

Inside = Callable[..., tuple[int, str, str]]
FILE = '''
description = "a test"
system = "Speak $language."
temperature = 0
max_tokens = 5
prompt = """
First, ${what} costs $$5:
$input
"""
[defaults]
language = "Latin"
'''


@pytest.fixture
def stored(home: Path) -> Path:
    (home / "templates").mkdir(parents=True)
    path = home / "templates" / "mine.toml"
    path.write_text(FILE)
    return path


def asked(out: str) -> list[list[str]]:
    return list(json.loads(json.loads(out)["replay"])["messages"])


def test_a_template_makes_the_prompt_and_the_settings(zephyra: Run, stored: Path, tiny_pack: Path) -> None:
    arguments = ("generate", "-m", tiny_pack, "-T", "mine", "-p", "what=it", "--json", "more $what")
    run = zephyra(*arguments, stdin=b"piped")
    assert run.returncode == 0, run.stderr
    prompt = "First, it costs $5:\nmore $what\n\npiped"
    assert asked(run.stdout.decode()) == [["system", "Speak Latin."], ["user", prompt]]
    assert json.loads(run.stdout)["usage"]["completion_tokens"] <= 5


def test_options_and_values_win(inside: Inside, stored: Path, tiny_pack: Path) -> None:
    base = ("generate", "-m", tiny_pack, "-T", stored, "-p", "what=a", "--json", "x")
    out = inside(*base, "-p", "language=Greek", "-n", 2)[1]
    assert asked(out)[0] == ["system", "Speak Greek."] and json.loads(out)["usage"]["completion_tokens"] <= 2
    assert asked(inside(*base, "-s", "Be brief.")[1])[0] == ["system", "Be brief."]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ("-T mine x", "template 'mine' needs a value for 'what'", "-p what=VALUE"),
        ("-T mine -p wat=1 x", "template 'mine' has no variable 'wat'", "did you mean 'what'?"),
        ("-T mine -p what x", "'what' is not NAME=VALUE", ""),
        ("-T mine -p what=1 -p what=2 x", "variable 'what' is given twice", ""),
        ("-T mine -p what=1", "the prompt is empty", ""),
        ("-T mien x", "there is no template 'mien'", "did you mean 'mine'?"),
        ("-T ./gone.toml x", "cannot read 'gone.toml'", ""),
    ],
)
def test_what_is_missing_is_said(
    inside: Inside, stored: Path, tiny_pack: Path, arguments: str, message: str, hint: str
) -> None:
    status, out, err = inside("generate", "-m", tiny_pack, *arguments.split())
    assert (status, out) == (1, "") and message in err and hint in err


def test_wrong_usage(inside: Inside, stored: Path) -> None:
    assert inside("generate", "--raw", "-T", "mine", "-p", "what=a", "x")[0] == 2
    assert inside("generate", "-p", "a=b", "hi")[0] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("promt = 'x'", "unknown key 'promt'"),
        ("prompt = 5", "'prompt' .* is 5, must be a text"),
        ("prompt = 'x'\ntemperature = 'hot'", "'temperature' .* must be a number"),
        ("prompt = 'costs $5'", r"a \$ in 'prompt' .* begins no variable"),
        ("system = '$input'", r"\$input in 'system'"),
        ("prompt = '$a'\ndefaults = 3", "'defaults' .* is no table"),
        ("prompt = '$a'\n[defaults]\na = 3", r"'defaults\.a' .* is 3, must be a text"),
        ("prompt = ", "no valid TOML"),
        ("prompt = '\\u0000", "no valid TOML"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ZephyraError, match=message):
        PromptTemplate.read(tmp_path / "bad.toml")


def test_input_without_a_place_goes_behind_the_prompt(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("prompt = 'Say it'")
    template = PromptTemplate.read(tmp_path / "a.toml").bind({})
    assert (template.render(""), template.render("loud")) == ("Say it", "Say it\n\nloud")
    (tmp_path / "b.toml").write_text("system = 'Be brief'")
    assert PromptTemplate.read(tmp_path / "b.toml").bind({}).render("why?") == "why?"


def test_what_is_piped_in_is_never_a_template(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("prompt = '$x $input'")
    bound = PromptTemplate.read(tmp_path / "a.toml").bind({"x": "$input"})
    assert bound.render("$x ${x} $$") == "$input $x ${x} $$"


def test_every_shipped_template_is_sound() -> None:
    found = list(prompt_template.files())
    assert {"commit", "explain", "summarize", "translate"} <= {path.stem for path in found}
    for path in found:
        template = PromptTemplate.read(path)
        assert template.description and template.takes_input
        values = {name: "value" for name in template.variables}
        assert "some input" in template.bind(values).render("some input")


def test_templates_are_listed_shown_made_and_removed(inside: Inside, home: Path, tiny_pack: Path) -> None:
    rows = json.loads(inside("templates", "--json")[1])["templates"]
    assert {row["name"]: row["variables"] for row in rows}["translate"] == ["to"]
    status, out, err = inside("templates", "new", "greet", "Hello $who\n", "-s", "Be kind.", "--description", "d")
    assert (status, out, err) == (0, "", f"wrote {home}/templates/greet.toml\n")
    assert "greet      who        d" in inside("templates")[1]
    assert "already" in inside("templates", "new", "greet", "again")[2]
    assert inside("templates", "show", "greet")[1] == (home / "templates" / "greet.toml").read_text()
    out = inside("generate", "-m", tiny_pack, "-n", 1, "-T", "greet", "-p", "who=you", "--json")[1]
    assert asked(out) == [["system", "Be kind."], ["user", "Hello you"]]
    assert inside("templates", "remove", "greet")[0] == 0
    assert "you have no template 'greet'" in inside("templates", "remove", "greet")[2]


def test_the_users_template_stands_for_ours(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "sed -i s/imperative/past/")
    assert inside("templates", "edit", "commit") == (0, "", "")
    assert "in the past" in inside("templates", "show", "commit")[1]
    inside("templates", "remove", "commit")
    assert "in the imperative" in inside("templates", "show", "commit")[1]


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a b", "$(x)", ".."])
def test_names_that_are_paths_are_refused(inside: Inside, home: Path, name: str) -> None:
    status, _, err = inside("templates", "new", name, "text")
    assert status == 1 and "cannot be the name of a template" in err and not home.exists()


def test_a_broken_template_is_shown_with_what_is_wrong(inside: Inside, stored: Path) -> None:
    broken = FILE.replace("temperature", "heat")
    stored.write_text(broken)
    status, out, err = inside("templates", "show", "mine")
    assert (status, out) == (0, broken) and "unknown key 'heat'" in err
    assert inside("templates", "show", "nobody")[0] == 1
