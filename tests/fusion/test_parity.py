"""Tiny random models of transformers in our family and back: logits, greedy continuation, RoPE scalings."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from zephyra_fusion import config_json
from zephyra_fusion.checkpoint import load_checkpoint, save_checkpoint
from zephyra_fusion.layers.moe import load_balancing_loss
from zephyra_fusion.model import ZephyraFusion

transformers = pytest.importorskip("transformers")

SHAPE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
    "attn_implementation": "eager",
}
MOE = {"num_experts_per_tok": 2, "output_router_logits": True}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 5000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 5000.0,
}
PATTERN = ["sliding_attention", "full_attention", "sliding_attention"]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama biased": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "llama linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}}),
    "llama llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama yarn": ("Llama", {"rope_parameters": YARN}),
    "llama yarn, all keys": (
        "Llama",
        {"rope_parameters": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 0.5}},
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral window": ("Mistral", {"sliding_window": 6}),
    "qwen2": ("Qwen2", {}),
    "qwen2 window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3 window": ("Qwen3", {"head_dim": 8, "use_sliding_window": True, "sliding_window": 6, "layer_types": PATTERN}),
    "mixtral": ("Mixtral", {**MOE, "num_local_experts": 4}),
    "mixtral window": ("Mixtral", {**MOE, "num_local_experts": 4, "sliding_window": 6}),
    "qwen3 moe": ("Qwen3Moe", {**MOE, "num_experts": 4, "moe_intermediate_size": 24, "norm_topk_prob": True}),
    "qwen3 moe, shares as they are": ("Qwen3Moe", {**MOE, "num_experts": 4, "moe_intermediate_size": 24}),
}


def theirs_of(name: str) -> Any:
    family, changed = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **changed})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.uniform_(0.7, 1.3)
            elif "bias" in parameter_name:
                parameter.normal_(std=0.3)
    return model


@pytest.fixture(scope="module", params=list(CASES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ZephyraFusion]:
    theirs = theirs_of(request.param)
    folder = tmp_path_factory.mktemp("hf")
    theirs.save_pretrained(folder)
    return theirs, load_checkpoint(folder)


def some_ids(length: int = 30) -> torch.Tensor:
    return torch.randint(3, 99, (2, length), generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def test_their_logits(pair: tuple[Any, ZephyraFusion]) -> None:
    theirs, ours = pair
    ids = some_ids()
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_their_greedy_continuation(pair: tuple[Any, ZephyraFusion]) -> None:
    theirs, ours = pair
    ids = some_ids(11)[:1]
    expected = theirs.generate(ids, do_sample=False, max_new_tokens=24, eos_token_id=None, pad_token_id=0)[0, 11:]
    cache, last, tokens = ours.new_cache(), ids, []
    for _ in range(24):
        last = ours(last, cache=cache)[:, -1:].argmax(-1)
        tokens.append(int(last))
    assert tokens == expected.tolist()


@torch.no_grad()
def test_back_again(pair: tuple[Any, ZephyraFusion], tmp_path: Path) -> None:
    theirs, ours = pair
    assert config_json.dialect_of(ours.config) == theirs.config.model_type or theirs.config.model_type == "mistral"
    save_checkpoint(ours, tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = some_ids()
    torch.testing.assert_close(again(ids).logits, ours(ids), atol=1e-4, rtol=0)
    torch.testing.assert_close(load_checkpoint(tmp_path)(ids), ours(ids), atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixtral", "qwen3 moe"])
def test_their_load_balancing_loss(name: str, tmp_path: Path) -> None:
    theirs = theirs_of(name)
    theirs.save_pretrained(tmp_path)
    ours, ids = load_checkpoint(tmp_path).train(), some_ids()
    gates = theirs(ids, output_router_logits=True).router_logits
    ours(ids)
    loss = import_module(type(theirs).__module__).load_balancing_loss_func
    each = [loss((logits,), 4, 2) for logits in gates]
    torch.testing.assert_close(load_balancing_loss(ours), torch.stack(each).mean())


def test_a_config_that_no_dialect_has_is_written_as_our_own(tmp_path: Path) -> None:
    from tests.fusion.family import FAMILY, build
    from tests.fusion.family import some_ids as ids_of_the_family

    for name in (
        "attention frequency",
        "adaptive input",
        "narrow input",
        "shared expert",
        "position xpos",
        "post-norm",
    ):
        model = build(FAMILY[name])
        assert config_json.dialect_of(model.config) == config_json.NATIVE
        save_checkpoint(model, tmp_path / name)
        loaded, ids = load_checkpoint(tmp_path / name), ids_of_the_family(12)
        assert loaded.config == model.config
        assert torch.equal(loaded(ids), model(ids))
