"""Structured output in a backend and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.process import Run
from zephyra_cli.backends.llama import LlamaBackend
from zephyra_fusion.types import SamplingParams

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 10, "maximum": 20}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 3}, {"temperature": 1.0, "repeat_penalty": 1.5}])
def test_a_random_model_writes_what_the_schema_says(options: dict[str, Any], tiny_gguf: Path) -> None:
    backend = LlamaBackend(tiny_gguf, threads=1)
    free = [token.id for token in backend.generate([50, 60], SamplingParams(max_tokens=8))]
    params = SamplingParams(max_tokens=200, schema=json.dumps(SCHEMA), **options)
    tokens = list(backend.generate([50, 60], params))
    assert tokens[-1].finish_reason == "stop"
    answer = json.loads(b"".join(backend.token_bytes(token.id) for token in tokens))
    assert set(answer) == {"n", "ok"} and 10 <= answer["n"] <= 20 and isinstance(answer["ok"], bool)
    assert [token.id for token in backend.generate([50, 60], SamplingParams(max_tokens=8))] == free
    backend.close()


def test_a_schema_and_a_grammar_on_the_command_line(zephyra: Run, tiny_pack: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "answer.gbnf").write_text('root ::= ("yes" | "no") "!"\n')
    by_file = zephyra("generate", "-m", tiny_pack, "--schema", tmp_path / "schema.json", "hi")
    inline = zephyra("generate", "-m", tiny_pack, "--schema", json.dumps(SCHEMA), "hi")
    assert (by_file.returncode, by_file.stderr) == (0, b"")
    assert by_file.stdout == inline.stdout and 10 <= json.loads(by_file.stdout)["n"] <= 20
    grammar = zephyra("generate", "-m", tiny_pack, "--grammar", tmp_path / "answer.gbnf", "--json", "hi")
    result = json.loads(grammar.stdout)
    assert result["text"] in ("yes!", "no!") and result["finish_reason"] == "stop"
    assert "root ::=" in json.loads(result["replay"])["sampling"]["grammar"]


def test_a_cut_answer_is_said_to_be_cut(zephyra: Run, tiny_pack: Path) -> None:
    done = zephyra("generate", "-m", tiny_pack, "-n", "3", "--schema", '{"type": "array", "minItems": 9}', "hi")
    assert done.returncode == 0
    assert done.stderr == b"note: cut after 3 tokens, the schema is not satisfied yet; --max-tokens allows more\n"


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["--schema", "{"], "--schema is no valid JSON: ", 'as in {"type": "object"}, or a file'),
        (["--schema", "missing.json"], "cannot read 'missing.json': No such file or directory", None),
        (["--schema", ""], "--schema is empty", 'as in {"type": "object"}, or a file'),
        (["--schema", '{"enum": []}'], "the schema cannot be used: Unsatisfiable schema: anyOf is empty", None),
        (["--grammar", "."], "cannot read '.': Is a directory", None),
        (["--grammar", "/dev/null"], "'/dev/null' is empty", None),
    ],
)
def test_a_bad_one_is_said(arguments: list[str], error: str, hint: str | None, zephyra: Run, tiny_pack: Path) -> None:
    done = zephyra("generate", "-m", tiny_pack, *arguments, "hi")
    assert (done.returncode, done.stdout) == (1, b"")
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith(f"error: {error}")
    assert lines[1:] == ([f"hint: {hint}"] if hint else [])


def test_every_answer_of_a_chat_follows_the_schema(zephyra: Run, tiny_pack: Path) -> None:
    schema = '{"enum": ["yes", "no"]}'
    done = zephyra("chat", "-m", tiny_pack, "--schema", schema, stdin=b"is it?\nreally?\n")
    assert done.returncode == 0, done.stderr
    assert len(lines := done.stdout.decode().split()) == 2 and set(lines) <= {'"yes"', '"no"'}
