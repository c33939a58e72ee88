"""A data folder of a few kilobytes, in the layout of the real one."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

WORDS = [
    "find",
    "list",
    "show",
    "the",
    "all",
    "files",
    "table",
    "count",
    "where",
    "name",
    "city",
    "river",
    "word",
    "means",
    "add",
    "two",
    "and",
    "sum",
    "of",
]


def _write(path: Path, lines: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    chance = random.Random(1)

    def words(count: int) -> str:
        return " ".join(chance.choice(WORDS) for _ in range(count))

    for domain, mark in {"shell": "run", "sql": "SELECT"}.items():
        for split, count in (("train", 120), ("valid", 20)):
            pairs = [{"prompt": f"{mark} {words(6)}", "response": f"{mark} {words(4)}"} for _ in range(count)]
            _write(folder / "domains" / domain / f"{split}.jsonl.gz", pairs)
    for split, count in (("train", 60), ("valid", 20)):
        _write(
            folder / "chat" / f"{split}.jsonl.gz",
            [{"prompt": f"hello {words(3)}", "response": words(3)} for _ in range(count)],
        )
    _write(folder / "pretrain" / "books.jsonl.gz", [{"text": words(80) + ". " + words(60) + "."} for _ in range(40)])
    _write(folder / "pretrain" / "valid.jsonl.gz", [{"text": words(90)} for _ in range(8)])
    _write(folder / "router" / "ood_dev.jsonl.gz", [{"prompt": f"play {n} {words(2)}"} for n in range(30)])
    return folder
