"""What only a CUDA device can show: `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

import pytest
import torch

from zephyra_fusion.config import FusionConfig
from zephyra_fusion.generate import generate
from zephyra_fusion.lora import LoraConfig, add_adapter, set_adapters
from zephyra_fusion.model import ZephyraFusion
from zephyra_fusion.static_step import static_cache
from zephyra_fusion.types import SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]


@pytest.fixture
def model() -> ZephyraFusion:
    torch.manual_seed(0)
    config = FusionConfig(
        vocab_size=512, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1,
        head_dim=128, intermediate_size=512, qk_norm=True,
    )  # fmt: skip
    made = ZephyraFusion(config).eval()
    add_adapter(made, "law", LoraConfig(r=8, lora_alpha=16))
    return made


@pytest.mark.parametrize("weights", [{}, {"law": 1.0}])
def test_logits_are_the_cpus(model: ZephyraFusion, weights: dict[str, float]) -> None:
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    set_adapters(model, weights)
    ids = torch.randint(0, 512, (2, 40))
    with torch.no_grad():
        expected = model(ids)
        assert torch.allclose(model.cuda()(ids.cuda()).cpu(), expected, atol=2e-3)


def test_cached_steps_in_bf16_follow_the_full_pass(model: ZephyraFusion) -> None:
    model = model.cuda().bfloat16()
    ids = torch.randint(0, 512, (1, 24), device="cuda")
    cache = model.new_cache()
    with torch.no_grad():
        full = model(ids).float()
        steps = torch.cat([model(ids[:, n : n + 1], cache=cache) for n in range(24)], dim=1).float()
    assert (full - steps).abs().max() < 0.05 * full.std() + 0.05


def test_a_training_step_in_bf16_lowers_the_loss(model: ZephyraFusion) -> None:
    model = model.cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(0, 512, (4, 64), device="cuda")
    losses = []
    for _ in range(8):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = model(ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["graph", "compiled"])
def test_a_replayed_step_gives_the_growing_caches_answer(model: ZephyraFusion, compiled: bool) -> None:
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model, prompt, params = model.cuda(), list(range(40, 60)), SamplingParams(max_tokens=24)
    cache = static_cache(model, 64, compile=compiled)
    for weights in ({}, {"law": 1.0}, {"law": 1.0}, {}):  # a graph must not outlive its adapters
        set_adapters(model, weights)
        expected = [token.id for token in generate(model, prompt, params)]
        cache.trim(0)
        assert [token.id for token in generate(model, prompt, params, cache=cache)] == expected


def test_a_mixed_batch_on_the_device_is_each_row_alone(model: ZephyraFusion) -> None:
    add_adapter(model, "sql", LoraConfig(r=4, lora_alpha=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model, ids = model.cuda(), torch.randint(0, 512, (3, 20), device="cuda")
    rows = torch.eye(3, device="cuda")
    with torch.no_grad():
        set_adapters(model, {"law": rows[2], "sql": rows[0]})
        mixed = model(ids)
        for index, weights in enumerate(({"sql": 1.0}, {}, {"law": 1.0})):
            set_adapters(model, weights)
            torch.testing.assert_close(mixed[index], model(ids[index : index + 1])[0], atol=2e-3, rtol=1e-3)
