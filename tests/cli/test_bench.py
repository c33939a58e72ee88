"""`zephyra bench`: what it measures is what it says, on a model small enough to measure at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from zephyra_cli import settings, store
from zephyra_cli.engine import Engine
from zephyra_cli.speed import SpeedTest

Inside = Callable[..., tuple[int, str, str]]
QUICK = ("-n", 8, "--repeat", 2)


def test_every_figure_is_measured_so_often(inside: Inside, tiny_pack: Path) -> None:
    status, out, _ = inside("bench", "-m", tiny_pack, *QUICK, "--prompt-tokens", 40, "--prompt-tokens", 90, "--json")
    result = json.loads(out)
    assert (status, result["model"], result["backend"], result["threads"]) == (0, "tiny", "llama", 1)
    assert list(result["figures"]) == [
        "prefill_40_tokens_per_second",
        "prefill_90_tokens_per_second",
        "decode_tokens_per_second",
        "decode_adapter_tokens_per_second",
        "switch_first_token_ms",
        "return_first_token_ms",
        "router_ms",
    ]
    for figure in result["figures"].values():
        assert len(figure["values"]) == 2 and all(value > 0 for value in figure["values"])
        assert min(figure["values"]) <= figure["median"] <= max(figure["values"])


def test_a_table_and_the_machine_beside_it(inside: Inside, tiny_pack: Path) -> None:
    status, out, err = inside("bench", "-m", tiny_pack, *QUICK, "--prompt-tokens", 20)
    assert status == 0 and "reading 20 tokens, tokens/s" in out and "routing 128 tokens, ms" in out
    assert "1 threads, 2 repeats" in err


def test_a_bare_model_is_read_and_decoded_alone(inside: Inside, tiny_gguf: Path) -> None:
    out = inside("bench", "-m", tiny_gguf, *QUICK, "--json")[1]
    assert list(json.loads(out)["figures"]) == ["prefill_128_tokens_per_second", "decode_tokens_per_second"]


def test_what_the_context_cannot_hold_is_refused(inside: Inside, tiny_pack: Path) -> None:
    status, out, err = inside("bench", "-m", tiny_pack, "--prompt-tokens", 600)
    assert (status, out) == (1, "") and "the context of 512 tokens is shorter than every prompt" in err


def test_prompts_are_read_and_a_return_is_found_in_the_cache(tiny_pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.open(store.find(str(tiny_pack)), settings.load({"draft": "none"}))
    usages = []
    backend = engine.backend
    inner = backend.generate

    def watched(prompt: list[int], params: object) -> object:
        yield from inner(prompt, params)
        usages.append((len(prompt), backend.usage.cached_tokens))

    monkeypatch.setattr(backend, "generate", watched)
    SpeedTest(engine, (40,), 4, 1, lambda done, total, text: None).run()
    reads = [(length, cached) for length, cached in usages if length == 40]
    assert reads.count((40, 39)) == 2  # the two ways back, warming up included
    assert all(cached == 0 for _, cached in reads if cached != 39) and len(reads) == 8
    engine.close()
