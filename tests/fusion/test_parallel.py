"""Tensor parallelism: two gloo processes give the loss and the gradients of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.fusion.family import EXPERTS, TINY, build, some_ids
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.model import ZephyraFusion

CASES: dict[str, dict[str, Any]] = {
    "grouped heads, norms, biases": {
        "qk_norm": True,
        "attention_bias": True,
        "attention_out_bias": True,
        "mlp_bias": True,
    },
    "one K/V head": {"num_key_value_heads": 1},
    "one K/V head, norms, window": {"num_key_value_heads": 1, "qk_norm": True, "sliding_window": 4},
    "experts": EXPERTS,
    "plain feed-forward, post-norm": {"feed_forward": "mlp", "norm_placement": "post", "norm": "layer"},
}


def loss_and_gradients(model: ZephyraFusion) -> tuple[Tensor, dict[str, Tensor]]:
    ids = some_ids(12)
    loss = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(-1, 1).flatten())
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    whole = {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in gradients.items()}
    return loss.detach(), whole


def one_of_two(rank: int, store: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    from zephyra_fusion.parallel import parallelize

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for name, changed in CASES.items():
        alone, cut = (build({**TINY, **changed}) for _ in range(2))
        parallelize(cut, mesh)
        local = cut.model.layers[0].self_attn.q_proj.weight.to_local()
        assert local.shape[0] == TINY["hidden_size"] // 2, "half of the rows are here"
        expected, expected_gradients = loss_and_gradients(alone)
        loss, gradients = loss_and_gradients(cut)
        torch.testing.assert_close(loss, expected, msg=lambda m, name=name: f"{name}: {m}")
        assert gradients.keys() == expected_gradients.keys()
        for parameter, gradient in gradients.items():
            torch.testing.assert_close(
                gradient,
                expected_gradients[parameter],
                atol=1e-5,
                rtol=1e-3,
                msg=lambda m, where=f"{name}, {parameter}": f"{where}: {m}",
            )
    with pytest.raises(ZephyraError, match="num_attention_heads is 3, not a multiple of 2"):
        parallelize(build({**TINY, "num_attention_heads": 3, "num_key_value_heads": 3}), mesh)
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, args=(str(tmp_path / "store"),), nprocs=2)
