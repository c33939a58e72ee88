"""The whole way from texts to a base, adapters and a router, on a data folder of a few kilobytes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from zephyra_fusion.checkpoint import load_adapter, load_checkpoint
from zephyra_fusion.config_json import from_json
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.layers.moe import load_balancing_loss
from zephyra_fusion.lora import set_adapters
from zephyra_fusion.model import ZephyraFusion
from zephyra_fusion.router_model import load_router
from zephyra_fusion.tokenizer import Tokenizer
from zephyra_fusion.train import stages
from zephyra_fusion.train.base import language_model_loss, with_balance
from zephyra_fusion.train.config import read_recipe
from zephyra_fusion.train.router_data import framed


def losses(path: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()]


def test_every_stage_leaves_what_the_next_one_reads(runs: Path) -> None:
    model = load_checkpoint(runs / "base")
    assert model.config.vocab_size == Tokenizer(runs / "tokenizer" / "tokenizer.json").vocab_size == 320
    assert json.loads((runs / "base" / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    for name in ("shell", "sql"):
        load_adapter(model, name, runs / "adapters" / name)
    ids = torch.randint(6, 320, (1, 9))
    base = model(ids)
    set_adapters(model, {"shell": 1.0})
    assert not torch.equal(model(ids), base)


def test_the_loss_falls(runs: Path) -> None:
    for path in ("base/base.metrics.jsonl", "adapters/shell/shell.metrics.jsonl"):
        measured = losses(runs / path)
        assert len(measured) >= 40
        assert measured[-1] < 0.9 * measured[0], path


def test_a_resumed_run_ends_with_the_same_bits(runs: Path, data: Path, tmp_path: Path) -> None:
    straight = load_checkpoint(runs / "base").state_dict()
    recipe = runs / "base.toml"
    with pytest.raises(RuntimeError, match="power cut"):
        stages.run("base", recipe, [f"output={tmp_path}"], report=_power_cut_at(25))
    stages.run("base", recipe, [f"output={tmp_path}"], resume=True)
    resumed = load_checkpoint(tmp_path).state_dict()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert len(losses(tmp_path / "base.metrics.jsonl")) == 43


def _power_cut_at(step: int):
    def report(progress):
        if progress.step == step:
            raise RuntimeError("power cut")

    return report


EXPERTS = ["model.feed_forward=moe", "model.num_experts=4", "model.num_experts_per_tok=2"]


def test_experts_are_trained_to_share_the_work(runs: Path, tmp_path: Path) -> None:
    def first_loss(coefficient: float) -> float:
        options = [f"output={tmp_path}/{coefficient}", f"model.router_aux_loss_coef={coefficient}", *EXPERTS]
        with pytest.raises(RuntimeError, match="power cut"):
            stages.run("base", runs / "base.toml", options, report=_power_cut_at(1))
        return losses(tmp_path / str(coefficient) / "base.metrics.jsonl")[0]

    alone, balanced = first_loss(0.0), first_loss(0.5)
    assert 0.5 * 2 - 0.01 < balanced - alone < 0.5 * 4  # between an even use of the experts and one pair of them alone


def test_the_balance_is_part_of_a_traced_loss(runs: Path) -> None:
    torch.manual_seed(0)
    config = {**json.loads((runs / "base" / "config.json").read_text()), "model_type": "qwen3_moe", "num_experts": 4}
    del config["hidden_act"]
    model = ZephyraFusion(from_json({**config, "router_aux_loss_coef": 0.5, "moe_intermediate_size": 32})).train()
    ids = torch.randint(6, 320, (2, 9))
    plain = language_model_loss(model)
    eager = with_balance(model, plain)
    traced = torch.compile(eager, backend="aot_eager")(ids, ids)
    torch.testing.assert_close(traced, eager(ids, ids))
    torch.testing.assert_close(traced - plain(ids, ids), 0.5 * load_balancing_loss(model))
    gates = [p for name, p in model.named_parameters() if name.endswith("gate.weight")]
    traced.backward()
    assert gates and all(gate.grad.abs().sum() > 0 for gate in gates)


def test_a_recipe_that_no_model_can_be_names_all(runs: Path, tmp_path: Path) -> None:
    options = [f"output={tmp_path}", "model.hidden_sizes=3", "model.head_dim=7", "model.rope_theta=wide"]
    with pytest.raises(
        ZephyraError, match="unknown configuration key 'hidden_sizes'.*rope_theta is 'wide'.*head_dim is 7"
    ):
        stages.run("base", runs / "base.toml", options)


@pytest.mark.parametrize(
    ("stage", "option", "said"),
    [
        ("base", "optimizer.lr=nan", "lr is nan, must be at least 0"),
        ("base", "phases=[]", "phases is empty"),
        ("base", "seed=-1", "seed is -1, must be at least 0"),
        ("base", "checkpoint_every=0", "checkpoint_every is 0, must be above 0"),
        ("base", "phases.0.steps=0", "steps is 0, must be above 0"),
        ("base", "phases.7.steps=1", "'phases' has the entries 0 to"),
        ("base", "output.x=1", "'output' is a value"),
        ("adapter", "domains.shell=0", "domains.shell is 0, must be above 0"),
        ("adapter", "lora.dropout=2", "dropout is 2.0, must be between 0 and 1"),
        ("tokenizer", "vocab_size=5", "vocab_size is 5, bytes and special tokens alone are"),
    ],
)
def test_numbers_that_no_training_can_be_made_with(
    runs: Path, tmp_path: Path, stage: str, option: str, said: str
) -> None:
    with pytest.raises(ZephyraError, match=said):
        stages.run(stage, runs / f"{stage}.toml", [f"output={tmp_path}", option])


def test_a_phase_is_set_by_its_place(runs: Path, tmp_path: Path) -> None:
    phases = len(read_recipe("base", runs / "base.toml").phases)
    shorter = [f"phases.{place}.steps=1" for place in range(phases)]
    stages.run("base", runs / "base.toml", [f"output={tmp_path}", *shorter])
    assert len(losses(tmp_path / "base.metrics.jsonl")) == phases


@pytest.mark.parametrize("option", ["domains.nope=3", "base=nowhere", "initial=nowhere"])
def test_no_adapter_is_trained_before_all_can_be(runs: Path, tmp_path: Path, option: str) -> None:
    with pytest.raises(ZephyraError, match="nope|nowhere"):
        stages.run("adapter", runs / "adapter.toml", [f"output={tmp_path}/adapters", option])
    assert not (tmp_path / "adapters").exists()


def test_a_run_goes_on_only_as_it_was_begun(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        stages.run("base", runs / "base.toml", [f"output={tmp_path}"], report=_power_cut_at(25))
    for option, said in ("seed=77", "begun with seed"), ("model.intermediate_size=96", "another shape"):
        with pytest.raises(ZephyraError, match=said):
            stages.run("base", runs / "base.toml", [f"output={tmp_path}", option], resume=True)


def test_training_goes_on_from_a_checkpoint(runs: Path, tmp_path: Path) -> None:
    options = [f"output={tmp_path}", f"initial={runs}/base", "optimizer.lr=0.0", "optimizer.matrix_lr=0.0"]
    stages.run("base", runs / "base.toml", options)
    trained, again = (load_checkpoint(folder).state_dict() for folder in (runs / "base", tmp_path))
    assert all(torch.equal(trained[name], again[name]) for name in trained)  # at a rate of zero it is the same model
    assert max(losses(tmp_path / "base.metrics.jsonl")) < losses(runs / "base" / "base.metrics.jsonl")[0]


def test_training_does_not_go_on_from_what_does_not_fit(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ZephyraError, match="must be"):
        stages.run(
            "base", runs / "base.toml", [f"output={tmp_path}", f"initial={runs}/base", "model.intermediate_size=96"]
        )
    stages.run("tokenizer", runs / "tokenizer.toml", [f"output={tmp_path}/other", "vocab_size=310"])
    with pytest.raises(ZephyraError, match="another tokenizer"):
        stages.run(
            "base",
            runs / "base.toml",
            [f"output={tmp_path}", f"initial={runs}/base", f"tokenizer={tmp_path}/other"],
        )


def test_a_foreign_checkpoint_is_not_resumed(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "base.resume.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(Exception, match="resume") as error:
        stages.run("base", runs / "base.toml", [f"output={tmp_path}"], resume=True)
    assert isinstance(error.value, ZephyraError)


def test_the_router_learns_and_is_calibrated(runs: Path) -> None:
    router = load_router(runs / "router")
    tokenizer = Tokenizer(runs / "tokenizer" / "tokenizer.json")
    ids = torch.tensor([tokenizer.encode("SELECT the name of all table")])
    probabilities = (router(ids, ids >= 0) / router.config.temperature).softmax(-1)[0]
    assert router.config.labels[int(probabilities.argmax())] == "sql"
    assert 0.0 <= router.config.threshold < 1.0


def test_frames_decide_wherever_their_words_come_from() -> None:
    chance, prompts = random.Random(0), {"sql": ["SELECT the name"], "none": ["green eggs and ham."]}
    texts = {framed("sql to get", prompts, "sql", chance) for _ in range(60)}
    assert all(text.startswith("sql to get ") and not text.endswith(".") for text in texts)
    assert any("eggs" in text for text in texts) and any("SELECT" in text for text in texts)


def test_a_frame_of_an_unknown_label_is_refused(runs: Path) -> None:
    with pytest.raises(ZephyraError, match="frames name 'shel'") as error:
        stages.run("router", runs / "router.toml", ['frames={shel = ["run"]}'])
    assert "shell" in str(error.value.hint)


def test_unknown_stages_and_keys_are_named(runs: Path) -> None:
    with pytest.raises(ZephyraError, match="unknown training stage 'bass'"):
        stages.run("bass", runs / "base.toml")
    with pytest.raises(ZephyraError, match="unknown key 'stepz'") as error:
        stages.run("router", runs / "router.toml", ["stepz=3"])
    assert "steps" in str(error.value.hint)
    with pytest.raises(ZephyraError, match=r"steps is 'many', must be int"):
        stages.run("router", runs / "router.toml", ["steps=many"])
    with pytest.raises(ZephyraError, match="no source 'domains/cooking'"):
        stages.run("adapter", runs / "adapter.toml", ["domains={cooking = 1}", f"output={runs}/other"])
