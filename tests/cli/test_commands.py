"""The smaller commands: what they print, for people and as JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.process import Run


@pytest.fixture
def installed(tiny_pack: Path, home: Path) -> Path:
    (home / "models").mkdir(parents=True)
    return Path(shutil.copytree(tiny_pack, home / "models" / "tiny"))


def test_route_json_is_the_route_object(zephyra: Run, tiny_pack: Path) -> None:
    route = json.loads(zephyra("route", "-m", tiny_pack, "--json", "list files").stdout)
    assert list(route) == ["domain", "weights", "probabilities", "abstained", "router_ms"]
    inside = json.loads(zephyra("generate", "-m", tiny_pack, "-n", 1, "--json", "list files").stdout)["route"]
    assert {**route, "router_ms": 0} == {**inside, "router_ms": 0}


def test_route_prints_a_table(zephyra: Run, tiny_pack: Path) -> None:
    run = zephyra("route", "-m", tiny_pack, stdin=b"list files\n")
    *rows, decision = run.stdout.decode().splitlines()
    assert run.returncode == 0 and len(rows) == 3 and sum("→" in row for row in rows) == 1
    assert "answers" in decision


def test_route_takes_many_prompts(zephyra: Run, tiny_pack: Path, tmp_path: Path) -> None:
    prompts = ["list files", "SELECT 1", "zwölf\u2028Boxkämpfer"]
    many = tmp_path / "many.jsonl"
    many.write_text("\n\n".join(json.dumps({"prompt": prompt, "more": 1}) for prompt in prompts), encoding="utf-8")
    run = zephyra("route", "-m", tiny_pack, "--input", many)
    routes = [json.loads(line) for line in run.stdout.split(b"\n")[:-1]]
    alone = json.loads(zephyra("route", "-m", tiny_pack, "--json", prompts[1]).stdout)
    assert len(routes) == 3 and routes[1]["probabilities"] == alone["probabilities"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": 3}', 'line 2: no text under "prompt"'),
        ('{"prompt": "a"}\n[]', "line 2: no text"),
        ('{"prompt": "a"}\nnonsense', "line 2: no valid JSON"),
        ('{"prompt": "a"}\n{"prompt": "\\ud800"}', "lone surrogate"),
        ('{"prompt": "a"}\n{"prompt": ""}', "the text is empty"),
    ],
)
def test_a_wrong_line_is_named_after_the_good_ones_were_answered(
    zephyra: Run, tiny_pack: Path, tmp_path: Path, lines: str, message: str
) -> None:
    (tmp_path / "many.jsonl").write_text(lines)
    run = zephyra("route", "-m", tiny_pack, "--input", tmp_path / "many.jsonl")
    assert (run.returncode, run.stdout.count(b"\n")) == (1, 1)
    assert message in run.stderr.decode() and b"Traceback" not in run.stderr


def test_models_lists_what_is_installed(zephyra: Run, installed: Path) -> None:
    run = zephyra("models")
    assert run.returncode == 0 and b"tiny" in run.stdout and b"shell, sql" in run.stdout
    models = {model["name"]: model for model in json.loads(zephyra("models", "--json").stdout)["models"]}
    assert models["tiny"]["domains"] == ["shell", "sql"]
    assert models["tiny"]["size_bytes"] == sum(path.stat().st_size for path in installed.rglob("*") if path.is_file())


def test_models_show_names_files_and_licences(zephyra: Run, installed: Path) -> None:
    shown = zephyra("models", "show", "tiny").stdout.decode()
    assert "random weights" in shown and "adapters/sql.gguf" in shown and "CC0-1.0" in shown
    facts = json.loads(zephyra("models", "show", "tiny", "--json").stdout)
    assert facts["files"]["base.gguf"]["size_bytes"] == (installed / "base.gguf").stat().st_size


def test_models_verify_finds_a_changed_byte(zephyra: Run, installed: Path) -> None:
    assert zephyra("models", "verify", "tiny").returncode == 0
    assert json.loads(zephyra("models", "verify", "tiny", "--json").stdout)["wrong"] == []
    data = bytearray((installed / "base.gguf").read_bytes())
    data[-1] ^= 1
    (installed / "base.gguf").write_bytes(data)
    run = zephyra("models", "verify", "tiny", "--json")
    assert run.returncode == 1 and b"is damaged: base.gguf: sha256" in run.stderr
    assert len(json.loads(run.stdout)["wrong"]) == 1


def test_models_remove(zephyra: Run, installed: Path) -> None:
    run = zephyra("models", "remove", "tiny")
    assert (run.returncode, run.stdout) == (0, b"") and not installed.exists()
    assert zephyra("models", "remove", "tiny").returncode == 1


def test_a_damaged_model_in_the_store_does_not_hide_the_others(zephyra: Run, installed: Path) -> None:
    (installed.parent / "broken").mkdir()
    (installed.parent / "broken" / "zephyra.json").write_text("{")
    run = zephyra("models")
    assert run.returncode == 0 and b"tiny" in run.stdout and b"is damaged" in run.stderr


def test_domains_lists_the_specialists(zephyra: Run, installed: Path) -> None:
    assert b"queries" in zephyra("domains", "-m", "tiny").stdout
    found = json.loads(zephyra("domains", "-m", "tiny", "--json").stdout)
    assert found["domains"]["sql"] == {"description": "queries", "rank": 8, "routed": True}


def test_train_says_what_is_wrong_with_a_recipe(zephyra: Run, tmp_path: Path) -> None:
    run = zephyra("train", "base", tmp_path / "gone.toml")
    assert run.returncode == 1 and b"there is no recipe" in run.stderr
    (tmp_path / "recipe.toml").write_text("nonsense = 1\n")
    run = zephyra("train", "base", tmp_path / "recipe.toml")
    assert run.returncode == 1 and run.stderr.startswith(b"error: ") and b"Traceback" not in run.stderr
    assert zephyra("train", "everything", tmp_path / "recipe.toml").returncode == 2


def test_doctor_tells_what_is_here(zephyra: Run, installed: Path, home: Path) -> None:
    run = zephyra("doctor")
    assert run.returncode == 0 and str(home) in run.stdout.decode()
    facts = json.loads(zephyra("doctor", "--json").stdout)
    assert facts["llama_cpp"]["library"].endswith((".so", ".dylib", ".dll"))
    assert "tiny" in facts["models"]


def test_version(zephyra: Run) -> None:
    from zephyra_fusion import __version__

    assert zephyra("--version").stdout.decode() == f"zephyra {__version__}\n"
