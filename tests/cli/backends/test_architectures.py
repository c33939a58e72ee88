"""Every architecture that the GGUF check lets through is loaded, run, and keeps the cache rule, windows included."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zephyra_cli.backends.llama import LlamaBackend
from zephyra_cli.backends.protocol import Job
from zephyra_fusion.types import SamplingParams, Token

EXPERTS, WINDOW = 4, 16
ARCHITECTURES = [
    "llama",
    "llama-experts",
    "qwen2",
    "qwen3",
    "qwen3moe",
    "granite",
    "granite_swa",
    "step35",
    "step35-experts",
]


def build(name: str, make: Callable[..., Path], base: dict[str, Any], weights: dict[str, Any], path: Path) -> Path:
    architecture, _, experts = name.partition("-")
    keys: dict[str, Any] = {key: None for key in base if key.startswith("qwen3.")}
    own = {key.removeprefix("qwen3."): value for key, value in base.items() if key.startswith("qwen3.")}
    tensors: dict[str, Any] = {}
    dice = np.random.default_rng(4)

    def draw(*shape: int) -> Any:
        return (dice.standard_normal(shape) * 2 / shape[-1] ** 0.5).astype(np.float32)

    if architecture not in ("qwen3", "qwen3moe", "step35"):
        tensors |= {tensor: None for tensor in weights if "_q_norm" in tensor or "_k_norm" in tensor}
    if architecture == "qwen2":
        tensors |= {
            f"blk.{layer}.attn_{part}.bias": draw(size) for layer in (0, 1) for part, size in (("q", 64), ("v", 32))
        }
    if architecture == "granite":
        own |= {"logit_scale": 2.0, "attention.scale": 0.3}
    if architecture in ("granite_swa", "step35"):
        own |= {"attention.sliding_window": WINDOW, "attention.sliding_window_pattern": [True, False]}
    if architecture == "granite_swa":
        own["logit_scale"] = 1.0
        tensors |= {f"blk.{layer}.attn_sinks.weight": np.full(2, -1e30, np.float32) for layer in (0, 1)}
    if architecture == "step35":
        own |= {"rope.dimension_count": 64, "rope.dimension_count_swa": 32, "rope.freq_base_swa": 10000.0}
        own["expert_feed_forward_length"] = 0
        tensors["output.weight"] = weights["token_embd.weight"]
    if experts or architecture == "qwen3moe":
        own |= {"expert_count": EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": 96}
        for layer in (0, 1):
            block = f"blk.{layer}.ffn_"
            tensors |= {f"{block}{part}.weight": None for part in ("gate", "up", "down")}
            tensors |= {f"{block}{part}_exps.weight": draw(EXPERTS, 96, 64) for part in ("gate", "up")}
            tensors[f"{block}down_exps.weight"] = draw(EXPERTS, 64, 96)
            tensors[f"{block}gate_inp.weight"] = draw(EXPERTS, 64)
            if architecture == "step35":
                own |= {"expert_gating_func": 1, "expert_weights_norm": True, "expert_shared_feed_forward_length": 32}
                tensors |= {f"{block}{part}_shexp.weight": np.zeros((32, 64), np.float32) for part in ("gate", "up")}
                tensors[f"{block}down_shexp.weight"] = np.zeros((64, 32), np.float32)
    keys |= {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in own.items()}
    return make(path, keys, tensors)


@pytest.fixture(params=ARCHITECTURES)
def model(
    request: pytest.FixtureRequest,
    make_gguf: Callable[..., Path],
    tiny_metadata: dict[str, Any],
    tiny_weights: dict[str, Any],
    tmp_path: Path,
) -> Iterator[Path]:
    yield build(request.param, make_gguf, tiny_metadata, tiny_weights, tmp_path / "model.gguf")


def test_runs_and_keeps_the_cache_rule(model: Path) -> None:
    options: dict[str, Any] = {"threads": 1, "kv_type": "f32", "flash_attention": False, "n_batch": 32}
    warm, dice = LlamaBackend(model, **options), random.Random(6)
    text = [dice.randrange(6, 320) for _ in range(70)]
    cached = 0
    for keep in (70, 75, 70, 60, 12, 30, 3, 80, 40, 90, 20):  # rewinds within the window of 16 and far beyond it
        prompt = text[:keep] + [dice.randrange(6, 320) for _ in range(8)]
        tokens = [token.id for token in warm.generate(prompt, SamplingParams(max_tokens=6))]
        cached += warm.usage.cached_tokens
        cold = LlamaBackend(model, **options)
        assert tokens == [token.id for token in cold.generate(prompt, SamplingParams(max_tokens=6))]
        expected = np.array(cold.logits([*prompt, *tokens[:-1]])[-1])
        np.testing.assert_allclose(np.array(warm._context(1).logits(-1, 320)), expected, atol=1e-3)
        cold.close()
        text = prompt + tokens
    assert cached > 100
    warm.close()


def test_many_at_once_move_their_caches(model: Path) -> None:
    """Answers end at different times, so that others move into their slots."""
    backend, dice = LlamaBackend(model, threads=1, kv_type="f32", flash_attention=False), random.Random(7)
    jobs = [
        Job(
            prompt=[dice.randrange(6, 320) for _ in range(20 + 3 * most)],
            params=SamplingParams(max_tokens=most, seed=most, temperature=1),
        )
        for most in (2, 30, 4, 28, 9)
    ]
    together: list[list[Token]] = [[] for _ in jobs]
    for index, token in backend.generate_many(jobs):
        assert isinstance(token, Token)
        together[index].append(token)
    assert together == [list(backend.generate(job.prompt, job.params)) for job in jobs]
    backend.close()


def test_a_deep_rewind_behind_a_window_is_read_anew(
    make_gguf: Callable[..., Path], tiny_metadata: dict[str, Any], tiny_weights: dict[str, Any], tmp_path: Path
) -> None:
    backend = LlamaBackend(
        build("granite_swa", make_gguf, tiny_metadata, tiny_weights, tmp_path / "model.gguf"), n_batch=16
    )
    text = [6 + i % 300 for i in range(400)]
    greedy = SamplingParams(max_tokens=1)
    list(backend.generate(text, greedy))
    list(backend.generate([*text[:-2], 7, 8], greedy))
    assert backend.usage.cached_tokens == 398
    list(backend.generate([*text[:40], 7, 8], greedy))
    assert backend.usage.cached_tokens == 0
    backend.close()
