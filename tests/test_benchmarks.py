"""The scorers of benchmarks/: a published figure is only as good as the function that judges an answer."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from report import Report, aligned, shown
from scorers.arithmetic import answer_of, same_answer
from scorers.overlap import rouge_l, token_f1, words
from scorers.pattern import equivalent, generate
from scorers.perturbation import SUFFIXES, with_suffix, with_typos
from scorers.program_code import parses, passes, same_program
from scorers.shell import program, same_command
from scorers.sql import normalized, same_statement

from zephyra_cli.calibration import expected_calibration_error
from zephyra_cli.held_out import draw


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("find . -type f", "find"),
        ("sudo apt install vim", "apt"),
        ("sudo -u postgres psql -l", "psql"),
        ("sudo -E -H pip install x", "pip"),
        ("LC_ALL=C sort -u names.txt", "sort"),
        ("sudo DEBIAN_FRONTEND=noninteractive apt-get upgrade", "apt-get"),
        ("/usr/bin/env python", "env"),
        ("ls|wc -l", "ls"),
        ("  tar xf a.tar\nls", "tar"),
        ("(cd /tmp && ls)", "cd"),
        ("sudo", "sudo"),
        ("", ""),
    ],
)
def test_program_of_a_command(command: str, name: str) -> None:
    assert program(command) == name


def test_same_command_is_strict_but_for_white_space() -> None:
    assert same_command("ls  -l ", "ls -l")
    assert not same_command("ls -l", "ls -L")


def test_sql_differs_only_in_what_does_not_matter() -> None:
    reference = "SELECT name FROM t WHERE city = 'New York' AND age <> 3"
    assert same_statement('select  NAME\nfrom T where City="New York" and age!=3 ;', reference)
    assert same_statement("SELECT `name` FROM [t] WHERE city = 'New York' AND age != 3", reference)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SELECT a FROM t WHERE b = 'x'", "SELECT a FROM t WHERE b = 'X'"),
        ("SELECT a FROM t WHERE b = '5'", "SELECT a FROM t WHERE b = 5"),
        ("SELECT a FROM t WHERE b = 'a b'", "SELECT a FROM t WHERE b = 'a  b'"),
        ("SELECT a, b FROM t", "SELECT b, a FROM t"),
        ("SELECT a FROM t WHERE b < 5", "SELECT a FROM t WHERE b <= 5"),
        ("SELECT a FROM t", ""),
    ],
)
def test_sql_that_means_something_else(one: str, other: str) -> None:
    assert not same_statement(one, other)


def test_sql_quotes_inside_values() -> None:
    assert normalized("'it''s'") == normalized('"it\'s"') == ["'it's"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"^\d+$", r"^[0-9]+$"),
        (r".*(dog).*", r".*dog.*"),
        (r"^[A-Za-z]{3,}$", r"^[a-zA-Z][A-Za-z][A-Za-z]+$"),
        (r"^a{2}(b|c)$", r"^aa[bc]$"),
        (r"(.*[a-z].*){7,}", r"(?:.*[a-z].*){7,}"),  # the reference backtracks without end on many strings
    ],
)
def test_patterns_that_say_the_same(one: str, other: str) -> None:
    assert equivalent(one, other) == {"compiles": True, "fullmatch": True, "equivalent": True}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"^[a-z]{3}$", r"^[a-z]{3,}$"),
        (r"^[A-Za-z]+$", r"^[a-z]+$"),
        (r"^[a-z]{6}_[a-z]{3}$", r"^[a-z]{6}_[a-z]{4}$"),
        (r"^(cat|dog)$", r"^(cat|dig)$"),
        (r"(x+x+)+y", r"x*y"),
    ],
)
def test_patterns_that_differ(one: str, other: str) -> None:
    assert not equivalent(one, other)["fullmatch"]


def test_whole_strings_alone_do_not_make_patterns_equivalent() -> None:
    assert equivalent(r"\d+", r"^\d+$") == {"compiles": True, "fullmatch": True, "equivalent": False}


def test_what_is_no_pattern() -> None:
    assert not any(equivalent("(", "a").values())


@pytest.mark.parametrize("pattern", [r"^[A-Z]{2}\d{3,5}-(ab|cd)+[^x]$", r"^(\w)\1\s?.{2}$", r"^[^\W\d_]*$"])
def test_generated_strings_match(pattern: str) -> None:
    import re

    random = Random(0)
    made = {generate(pattern, random) for _ in range(20)}
    assert len(made) > 2 and all(re.fullmatch(pattern, text) for text in made)


def test_answers_of_exercises() -> None:
    assert answer_of("1 + 1 = 2\nAnswer: 2") == 2
    assert same_answer("so Answer: 3\nAnswer: 1,200.50", "Answer: 1200.5")
    assert same_answer("Answer: -7", "Answer: -7.0")
    assert not same_answer("Answer: 12", "Answer: -12")
    assert not same_answer("the answer is 12", "Answer: 12")
    assert not same_answer("Answer: 1/0", "Answer: 1")


def test_token_f1_counts_words_once() -> None:
    assert words("The area, of 1,234.5 km!") == ["area", "of", "1234.5", "km"]
    assert token_f1("Paris is the capital", "paris is a capital.") == 1.0
    assert token_f1("a cat cat", "cat dog") == pytest.approx(0.5)
    assert token_f1("", "cat") == 0.0
    assert rouge_l("y x", "x y") == pytest.approx(0.5) and token_f1("y x", "x y") == 1.0


def test_code_is_compared_by_syntax_and_by_results() -> None:
    reference = "def add(a, b):\n    return a + b\n"
    assert same_program("def add(a,b): return (a+b)", reference)
    assert not same_program("def add(a,b): return b+a", reference)
    assert passes("def add(x, y):\n    z = x\n    z += y\n    return z", "def add(x, y):\n    return x + y") is True
    assert passes("def add(x, y):\n    return x - y", reference) is False
    assert passes("def other(x, y):\n    return x + y", reference) is False
    assert not parses("def add(x, y) return") and passes("def add(x, y) return", reference) is False


def test_code_without_a_test_is_not_judged() -> None:
    assert passes("x[0]", "x[0]") is None
    assert passes("def f(g):\n    return missing(g)", "def f(g):\n    return missing(g)") is None


def test_foreign_code_cannot_hang_or_write(tmp_path: Path) -> None:
    reference = "def double(n):\n    return n * 2"
    target = tmp_path / "written"
    assert passes("def double(n):\n    while True:\n        pass", reference) is False
    assert passes(f"open({str(target)!r}, 'w')\n{reference}  # not the same tree\nx = 1", reference) is False
    assert not target.exists()


def test_calibration_error() -> None:
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0.0
    assert expected_calibration_error([0.75] * 4, [True, True, True, False]) == pytest.approx(0.0)
    assert expected_calibration_error([0.9] * 10, [True] * 5 + [False] * 5) == pytest.approx(0.4)
    # two bins: 0.2 off with weight 1/4, right with weight 3/4
    error = expected_calibration_error([0.2, 1.0, 1.0, 1.0], [False, True, True, True])
    assert error == pytest.approx(0.05)
    with pytest.raises(ValueError):
        expected_calibration_error([], [])


def test_perturbed_prompts() -> None:
    text = "list all files in the folder that are larger than one megabyte"
    slipped = with_typos(text, Random(3))
    assert slipped != text and abs(len(slipped) - len(text)) <= 2
    assert with_typos(text, Random(3)) == slipped
    assert with_typos("123", Random(0)) == "123"
    assert with_suffix(text, Random(0)).removeprefix(text + " ") in SUFFIXES
    assert all(len(suffix.split()) == 2 for suffix in SUFFIXES)


def test_the_same_records_are_drawn_every_time() -> None:
    records = [{"prompt": str(n)} for n in range(50)]
    assert draw(records, 7) == draw(records, 7) and len(draw(records, 7)) == 7
    assert draw(records, 80) == draw(records, None) == records


def test_a_report_keeps_the_figures_of_other_benchmarks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    path.write_text('{"other": {"figures": {}}}')
    report = Report("mine")
    report.figure("hits", "hits", 0.5, unit="%", at_least=0.6)
    report.figure("time", "time", 3.0, unit="ms", at_most=10)
    report.finish(path)
    kept = json.loads(path.read_text())
    assert set(kept) == {"other", "mine"}
    assert kept["mine"]["figures"]["hits"]["reached"] is False and kept["mine"]["figures"]["time"]["reached"] is True
    printed = capsys.readouterr().out
    assert "50.0 %  ≥ 60.0 %   MISSED" in printed and "≤ 10 ms  reached" in printed


def test_numbers_as_shown() -> None:
    assert shown(0.97, "%") == "97.0 %" and shown(0.0004, "%") == "0.040 %" and shown(12.3456, "ms") == "12.35 ms"
    assert aligned([["a", "1"], ["bcd", "22"]]) == "a     1\nbcd  22"
