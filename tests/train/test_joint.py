"""Adapters and router trained together: both learn, the base does not, both folders are what the others read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from zephyra_fusion.checkpoint import load_adapter, load_checkpoint
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.lora import set_adapters
from zephyra_fusion.router_model import load_router
from zephyra_fusion.sources import Record
from zephyra_fusion.tokenizer import Tokenizer
from zephyra_fusion.train import stages
from zephyra_fusion.train.config import read_recipe
from zephyra_fusion.train.data import IGNORED
from zephyra_fusion.train.joint import Examples, JointModel

JOINT = """
data = "{data}"
output = "{runs}/joint"
base = "{runs}/base"
adapters = "{runs}/adapters"
router = "{runs}/router"
threshold_set = "router/ood_dev"
steps = 12
batch_size = 4
sequence_length = 48
warmup_steps = 2
eval_every = 6
device = "cpu"
router_lr = 0.003
optimizer = {{ matrix_optimizer = "adamw", lr = 0.01 }}
"""


@pytest.fixture(scope="module")
def joint(runs: Path, data: Path) -> Path:
    (runs / "joint.toml").write_text(JOINT.format(data=data, runs=runs))
    return stages.run("joint", runs / "joint.toml")


def test_both_have_learned_and_the_base_has_not(runs: Path, joint: Path) -> None:
    before, after = (load_router(folder / "router") for folder in (runs, joint))
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    base = load_checkpoint(runs / "base")
    for name in ("shell", "sql"):
        load_adapter(base, f"{name}-before", runs / "adapters" / name)
        load_adapter(base, f"{name}-after", joint / "adapters" / name)
        layer = base.model.layers[0].self_attn.q_proj
        assert not torch.equal(layer.delta(f"{name}-before"), layer.delta(f"{name}-after"))
    measured = [json.loads(line) for line in (joint / "joint.metrics.jsonl").read_text().splitlines()]
    assert len(measured) == 12 and {"valid/loss", "valid/accuracy"} <= set(measured[-1])
    assert measured[-1]["valid/loss"] < measured[5]["valid/loss"]
    assert not list(joint.glob("*.resume.pt"))


def test_a_row_is_what_router_and_model_read(runs: Path) -> None:
    tokenizer = Tokenizer(runs / "tokenizer" / "tokenizer.json")
    examples = Examples(tokenizer, ("shell", "sql", "none"), window=4, length=12)
    inputs, labels = examples.batch([("sql", Record("ls", prompt="a")), ("none", Record("b" * 50, prompt="c" * 50))])
    prompt, response = (tokenizer.encode_batch([text])[0] for text in ("a", "ls"))
    user, end, assistant = (tokenizer.id(token) for token in ("<|user|>", "<|end|>", "<|assistant|>"))
    row = [user, *prompt, end, assistant, *response, end]
    assert inputs.shape == (2, 4 + 12) and labels.shape == (2, 1 + 12)
    assert labels[:, 0].tolist() == [1, 2]
    assert inputs[0, : len(prompt)].tolist() == prompt and inputs[0, len(prompt) : 4].eq(-1).all()
    assert inputs[0, 4 : 4 + len(row) - 1].tolist() == row[:-1]
    counted = [n for n, label in enumerate(labels[0, 1:].tolist()) if label != IGNORED]
    assert labels[0, 1:][counted].tolist() == [*response, end]
    assert counted[0] == len(prompt) + 2, "the first token of the response is foretold by the opened answer"


def test_the_probabilities_are_the_weights_and_carry_a_gradient(runs: Path) -> None:
    base, router = load_checkpoint(runs / "base"), load_router(runs / "router")
    for name in ("shell", "sql"):
        load_adapter(base, name, runs / "adapters" / name)
    examples = Examples(Tokenizer(runs / "tokenizer" / "tokenizer.json"), ("shell", "sql", "none"), 8, 16)
    inputs, labels = examples.batch([("shell", Record("ls", prompt="list"))])
    model = JointModel(base, router, ["shell", "sql"])
    alone = model.loss(inputs, labels, 8, 0.0)
    alone.backward()
    assert router.classifier.weight.grad is not None and router.classifier.weight.grad.abs().sum() > 0
    routed = inputs[:, :8]
    weights = router(routed.clamp(min=0), routed >= 0).softmax(-1)[0].tolist()
    set_adapters(base, {"shell": weights[0], "sql": weights[1]})
    said = base(inputs[:, 8:].clamp(min=0))
    expected = torch.nn.functional.cross_entropy(said.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(alone, expected, atol=1e-4, rtol=1e-4)
    both = model.loss(inputs, labels, 8, 2.0)
    own = torch.nn.functional.cross_entropy(router(routed.clamp(min=0), routed >= 0), labels[:, 0])
    torch.testing.assert_close(both, alone + 2.0 * own)


def test_a_label_without_an_adapter_is_named(runs: Path, data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "joint.toml"
    recipe.write_text(JOINT.format(data=data, runs=runs))
    with pytest.raises(ZephyraError, match="has no adapter for the router's labels shell, sql"):
        stages.run("joint", recipe, [f"adapters={tmp_path}"])


def test_the_recipes_that_come_with_the_package_are_recipes() -> None:
    folder = Path(stages.__file__).parent / "recipes"
    # Named by what they make, not by the stage.
    of = {"draft": "base"} | dict.fromkeys(("adapters", "geography", "mathematics", "shell"), "adapter")
    stems = {path: path.stem.partition("_")[0] for path in folder.rglob("*.toml")}
    found = {path: of.get(stem, stem) for path, stem in stems.items()}
    assert {"tokenizer", "base", "adapter", "router", "joint"} == set(found.values())
    for path, stage in found.items():
        read_recipe(stage, path)
