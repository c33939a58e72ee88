"""What only a CUDA device can show: `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

import pytest
import torch

from zephyra_fusion.config import FusionConfig
from zephyra_fusion.lora import LoraConfig, add_adapter, set_adapters
from zephyra_fusion.model import ZephyraFusion

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
