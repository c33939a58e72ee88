"""`zephyra eval` on a data folder of a few lines and a pack of random weights."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.cli.process import Run
from zephyra_cli.evaluation import Routing
from zephyra_cli.held_out import HeldOut
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import Route


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("held-out")

    def put(name: str, *records: dict[str, str]) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(record) + "\n" for record in records)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())

    put("domains/shell/valid.jsonl.gz", *({"prompt": f"list {n}", "response": f"ls {n}"} for n in range(4)))
    put("domains/sql/valid.jsonl", {"prompt": "rows", "response": "SELECT 1"}, {"text": "SELECT 2"})
    put("domains/law/valid.jsonl", {"prompt": "may I?", "response": "no"})
    put("chat/valid.jsonl", {"prompt": "hi", "response": "hello"})
    put("router/ood_dev.jsonl", *({"prompt": f"turn it {n}", "label": "none"} for n in range(4)))
    return root


def test_every_domain_under_every_adapter(zephyra: Run, tiny_pack: Path, data: Path) -> None:
    done = zephyra("eval", data, "-m", tiny_pack, "--json", "--limit", 3)
    assert done.returncode == 0, done.stderr
    got: dict[str, Any] = json.loads(done.stdout)
    assert got["records"] == {"law": 1, "shell": 3, "sql": 2, "chat": 1}
    assert set(got["perplexity"]) == set(got["records"])
    for row in got["perplexity"].values():
        assert list(row) == ["base", "shell", "sql", "auto"] and all(value > 1 for value in row.values())
        assert len({row[name] for name in ("base", "shell", "sql")}) == 3, "adapters act"
    routing = got["routing"]
    assert set(routing["accuracy_by_domain"]) == {"shell", "sql"}, "the router knows no law"
    answers = routing["answers"]
    assert {name: sum(found.values()) for name, found in answers.items()} == {
        "shell": 3, "sql": 2, "chat": 1, "(no domain)": 2,
    }  # fmt: skip
    right = answers["shell"]["shell"] + answers["sql"]["sql"]
    assert routing["accuracy"] == pytest.approx(right / 5, abs=1e-6)
    assert 0 <= routing["calibration_error"] <= 1 and 0 < routing["router_median_ms"] <= routing["router_p95_ms"]
    # the router of random weights sends everything somewhere, so `auto` is the column of who answers
    only = next(iter(answers["chat"])) if answers["chat"]["shell"] else "sql"
    assert got["perplexity"]["chat"]["auto"] == got["perplexity"]["chat"][only]


def test_the_tables(zephyra: Run, tiny_pack: Path, data: Path) -> None:
    done = zephyra("eval", data, "-m", tiny_pack, "--limit", 1)
    lines = done.stdout.decode().splitlines()
    assert lines[1].split() == ["base", "shell", "sql", "auto"]
    assert [line.split()[0] for line in lines[2:6]] == ["law", "shell", "sql", "chat"]
    assert any(line.startswith("calibration error (15 bins)") for line in lines)


def test_a_pack_without_router_and_a_flat_folder(zephyra: Run, change_pack: Any, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "sql.jsonl").write_text('{"text": "SELECT 1 FROM t"}\n')
    done = zephyra("eval", flat, "-m", change_pack(router=None), "--json")
    got = json.loads(done.stdout)
    assert got["routing"] is None and list(got["perplexity"]["sql"]) == ["base", "shell", "sql"]
    assert 0 < got["tokens"]["sql"] < len("SELECT 1 FROM t")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no domain in"),
        ({"sql.jsonl": "{"}, "line 1"),
        ({"sql.jsonl": '{"prompt": "x"}\n'}, "record 1 of 'sql' has neither prompt and response nor a text"),
        ({"sql.jsonl": '{"prompt": "x", "response": 3}\n'}, "record 1 of 'sql' has neither"),
        ({"sql.jsonl": "[1]\n"}, "record 1 of 'sql' has neither"),
    ],
)
def test_what_is_no_data(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ZephyraError, match=message):
        HeldOut(tmp_path).valid(HeldOut(tmp_path).domains[0])
    with pytest.raises(ZephyraError, match="is no folder"):
        _ = HeldOut(tmp_path / "nowhere").domains


def test_bad_use_of_the_program(zephyra: Run, tiny_pack: Path, tmp_path: Path) -> None:
    done = zephyra("eval", tmp_path / "nowhere", "-m", tiny_pack)
    assert done.returncode == 1 and b"is no folder" in done.stderr and done.stdout == b""
    assert zephyra("eval", tmp_path, "--limit", 0).returncode == 2


def test_figures_of_routes() -> None:
    def route(domain: str, **probabilities: float) -> Route:
        return Route(domain=domain, weights={}, probabilities=probabilities, abstained=domain == "none", router_ms=2.0)

    routing = Routing(
        routes={"a": [route("a", a=1.0), route("none", a=0.5, b=0.3)], "b": [route("a", a=0.75, b=0.25)]},
        chat=[route("none", none=1.0)],
        outside=[],
    )
    assert routing.accuracy == pytest.approx(1 / 3) and routing.by_domain == {"a": 0.5, "b": 0.0}
    assert routing.confusion("x") == {
        "a": {"a": 1, "b": 0, "none": 1},
        "b": {"a": 1, "b": 0, "none": 0},
        "chat": {"a": 0, "b": 0, "none": 1},
    }
    # 1.0 right, 0.5 right (its likeliest label), 0.75 wrong: each in a bin of its own
    assert routing.calibration_error(chat=False) == pytest.approx((0.0 + 0.5 + 0.75) / 3)
    assert routing.calibration_error(chat=True) == pytest.approx(1.25 / 4)
    assert routing.router_ms == (2.0, 2.0) and not math.isnan(routing.router_ms[1])
