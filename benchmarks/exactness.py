"""Every greedy token of a long-used engine is a cold one's: random turns, switches, blends, rewinds, drafts on and off.

A sequence is a conversation of some turns; each is answered by a backend that has seen everything before and by one
that has seen nothing. On F32 weights with an F32 cache both must agree on every token. On quantized weights (the
embedded pack, for information) llama.cpp's kernels for one token and for several round differently, so a near tie may
fall to either side: a switch and a rewind change how many tokens are read at once.
"""

from __future__ import annotations

import tempfile
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from report import Report, progress
from scripted_draft import GivenLength, ScriptedDraft

if TYPE_CHECKING:
    from zephyra_cli.backends.llama import LlamaBackend

TURNS, LONGEST, FIRST_ID = 5, 300, 300


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sequences", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    report = Report("exactness", f"{options.sequences} sequences of {TURNS} turns, seed {options.seed}")
    with tempfile.TemporaryDirectory() as folder:
        base, adapters = plain_model(Path(folder))
        found = run(base, adapters, options.sequences, options.seed, kv_type="f32", flash_attention=False)
    report.figure("turns", "F32: turns", found.turns)
    report.figure(
        "equal", "F32: turns whose tokens are a cold run's", found.equal / found.turns, unit="%", at_least=1.0
    )
    report.figure("cached", "F32: tokens found in a cache", found.cached)
    report.figure("accepted", "F32: drafted tokens that were accepted", found.accepted)
    base, adapters = embedded()
    found = run(base, adapters, max(1, options.sequences // 10), options.seed)
    report.figure("embedded_equal", "Q8_0, the embedded pack: equal turns", found.equal / found.turns, unit="%")
    report.finish(options.json)


@dataclass
class Findings:
    turns: int = 0
    equal: int = 0
    cached: int = 0
    accepted: int = 0
    different: list[str] = field(default_factory=list)


def run(base: Path, adapters: Mapping[str, Path], sequences: int, seed: int = 0, **settings: Any) -> Findings:
    """All sequences on one warm backend, each turn checked by a cold one."""
    from zephyra_cli.backends.llama import LlamaBackend

    warm, cold = (LlamaBackend(base, threads=1, n_batch=32, live_mixes=3, **settings) for _ in range(2))
    for backend in warm, cold:
        for name, path in adapters.items():
            backend.add_adapter(name, path)
    found = Findings()
    for number in range(sequences):
        if number % 10 == 0:
            progress(f"{number}/{sequences} sequences, {found.turns - found.equal} turns differ")
        conversation(warm, cold, sorted(adapters), Random(f"{seed}:{number}"), found)
    warm.close()
    cold.close()
    return found


def conversation(warm: LlamaBackend, cold: LlamaBackend, names: Sequence[str], dice: Random, found: Findings) -> None:
    from zephyra_fusion.types import SamplingParams

    text: list[int] = []
    weights = mix(names, dice)
    for turn in range(TURNS):
        weights = weights if dice.random() < 0.4 else mix(names, dice)
        if text and dice.random() < 0.35:  # edited, or taken back
            text = text[: dice.randrange(len(text))]
        text += [dice.randrange(FIRST_ID, warm.vocab_size) for _ in range(dice.randrange(1, 40))]
        text = text[-LONGEST:]
        params = SamplingParams(max_tokens=dice.randrange(1, 20))
        stop_after = dice.choice((1, 3, 99, 99, 99))
        cold.set_adapters(weights)
        cold.forget()
        expected = [token.id for token in cold.generate(text, params)]
        drafting = guess_ahead(warm, dice, expected)
        warm.set_adapters(weights)
        tokens: list[int] = []
        running = warm.generate(text, params)
        for token in running:
            tokens.append(token.id)
            if len(tokens) == stop_after:
                break
        running.close()
        expected = expected[: len(tokens)]
        found.turns += 1
        found.equal += tokens == expected
        found.cached += warm.usage.cached_tokens
        found.accepted += warm.usage.accepted
        if tokens != expected:
            found.different.append(f"turn {turn}, {weights}, {drafting}: {tokens} is not {expected}")
        text += tokens


def mix(names: Sequence[str], dice: Random) -> dict[str, float]:
    """The base, one adapter, one at another weight, one beside a weight of 0, or a blend."""
    kind = dice.randrange(5)
    chosen = dice.sample(names, min(len(names), 1 + kind % 3))
    if kind == 0:
        return {}
    if kind == 1:
        return {chosen[0]: 1.0}
    if kind == 2:
        return {chosen[0]: dice.choice((0.5, 1.0)), **dict.fromkeys(chosen[1:], 0.0)}
    return {name: round(dice.choice((0.25, 0.3, 0.5)), 2) for name in chosen}


def guess_ahead(backend: LlamaBackend, dice: Random, answer: Sequence[int]) -> str:
    """A draft that guesses always, or none."""
    from zephyra_fusion.draft import NgramDraft

    if dice.random() < 0.3:
        backend.speculate(None)
        return "no draft"
    draft = NgramDraft() if dice.random() < 0.3 else ScriptedDraft(answer, lambda at: dice.random() < 0.2)
    length = dice.randrange(1, 9)
    backend.speculate(draft, GivenLength([length]))
    return f"{length} drafted by {draft.name}"


def plain_model(folder: Path) -> tuple[Path, dict[str, Path]]:
    """A small model and three adapters in F32."""
    import numpy as np
    from random_model import SIZES, lora_of, metadata_of, weights_of, write

    size, random = SIZES["tiny"], np.random.default_rng(1)
    weights = ((name, values.astype(np.float32)) for name, values in weights_of(size, random, 1.0, attention=1.0))
    write(folder / "base.gguf", metadata_of(size), weights)
    adapters = {}
    keys: dict[str, Any] = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    for name in "abc":
        tensors = ((tensor, 10 * values.astype(np.float32)) for tensor, values in lora_of(size, random))
        adapters[name] = folder / f"{name}.gguf"
        write(adapters[name], keys | {"adapter.lora.alpha": 16.0}, tensors)
    return folder / "base.gguf", adapters


def embedded() -> tuple[Path, dict[str, Path]]:
    from zephyra_cli import store

    pack = store.find("zephyra-nano", offline=True)
    return pack.path(pack.base), {name: pack.path(pack.adapters[name].file) for name in ("regex", "sql", "stories")}


if __name__ == "__main__":
    main()
