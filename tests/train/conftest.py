"""A data folder of a few kilobytes, in the layout of the real one."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from zephyra_fusion.train import stages

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


TOKENIZER = """
data = "{data}"
output = "{runs}/tokenizer"
vocab_size = 320
[sources]
"pretrain/books" = 1
"domains/shell" = 1
"""
BASE = """
data = "{data}"
output = "{runs}/base"
tokenizer = "{runs}/tokenizer"
validation = ["chat"]
compile = false
precision = "fp32"
device = "cpu"
checkpoint_every = 20
eval_every = 20
optimizer = {{ lr = 0.02 }}
[model]
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 64
head_dim = 16
qk_norm = true
max_position_embeddings = 64
[[phases]]
steps = 40
sequence_length = 32
batch_size = 4
accumulation = 2
warmup_steps = 2
mixture = {{ "pretrain/books" = 1, "domains/sql" = 1 }}
[[phases]]
steps = 3
sequence_length = 64
batch_size = 2
decay = "linear"
mixture = {{ "chat" = 1 }}
"""
ADAPTER = """
data = "{data}"
output = "{runs}/adapters"
base = "{runs}/base"
compile = false
precision = "fp32"
device = "cpu"
sequence_length = 32
batch_size = 8
warmup_steps = 2
domains = {{ shell = 40, sql = 3 }}
lora = {{ r = 8, lora_alpha = 32 }}
optimizer = {{ matrix_optimizer = "adamw", lr = 0.05 }}
"""
ROUTER = """
data = "{data}"
output = "{runs}/router"
tokenizer = "{runs}/tokenizer"
labels = ["shell", "sql", "none"]
threshold_set = "router/ood_dev"
none_sources = {{ chat = 40, "pretrain/books" = 20 }}
steps = 60
batch_size = 16
lr = 0.01
warmup_steps = 40
device = "cpu"
model = {{ hidden_size = 16, num_hidden_layers = 1, num_attention_heads = 2, intermediate_size = 16 }}
"""


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, text in {"tokenizer": TOKENIZER, "base": BASE, "adapter": ADAPTER, "router": ROUTER}.items():
        (folder / f"{name}.toml").write_text(text.format(data=data, runs=folder))
        stages.run(name, folder / f"{name}.toml")
    return folder
