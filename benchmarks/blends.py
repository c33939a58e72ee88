"""Do blends earn their place? Prompts that ask two domains at once, answered under every way to mix their adapters.

A prompt is a held-out question of A, a line end, and one of B; its answer is theirs, in that order. Perplexity of the
answer, teacher-forced, under: the base; the router's best label alone at full weight; its two best and its four best
with their probabilities renormalized; its whole distribution; both right adapters, at half and at full weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from random import Random
from typing import TYPE_CHECKING

from report import Report, progress
from subject import Subject, arguments

from zephyra_cli.likelihood import Loss, example, loss, total

if TYPE_CHECKING:
    from zephyra_cli.engine import Engine

Weights = dict[str, float]
BASE, TOP, ALL = "base", "top-1", "whole distribution"


def main() -> None:
    from zephyra_cli.held_out import question

    parser = arguments(__doc__)
    parser.add_argument("--pairs", type=int, default=150, help="mixed prompts (default: %(default)s)")
    options = parser.parse_args()
    subject = Subject.of(options)
    engine, dice = subject.engine(), Random(0)
    records = {name: subject.valid(name, options.pairs) for name in subject.own_domains}
    for name, adapter in subject.pack.adapters.items():
        engine.backend.add_adapter(name, subject.pack.path(adapter.file))
    losses: dict[str, list[Loss]] = {}
    for number in range(options.pairs):
        progress(f"{number}/{options.pairs} mixed prompts")
        first, second = dice.sample(sorted(records), 2)
        one, other = dice.choice(records[first]), dice.choice(records[second])
        prompt = f"{question(one)}\n{question(other)}"
        record = {"prompt": prompt, "response": f"{one['response']}\n{other['response']}"}
        made = example(record, subject.pack, engine.backend)
        if made is None:
            continue
        for name, weights in strategies(engine, prompt, first, second):
            engine.backend.set_adapters(weights)
            losses.setdefault(name, []).append(loss(engine.backend, made))
    found = {name: total(values) for name, values in losses.items()}
    report = Report("blends", f"{subject.pack.name}, {len(losses[BASE])} mixed prompts")
    rows = [[name, round(value.perplexity, 3)] for name, value in found.items()]
    report.table("perplexity of the answers to mixed prompts", ["", "perplexity"], rows)
    top = found[TOP].perplexity
    for name, value in found.items():
        if name != TOP:
            report.figure(
                name.replace(" ", "_"), f"{name}: more perplexity than {TOP}", value.perplexity / top - 1, unit="%"
            )
    best = min((name for name in found if not name.startswith("both")), key=lambda name: found[name].perplexity)
    report.figure(
        "best_is_used", f"what the router does ({TOP}) is the best of its choices ({best})", float(best == TOP)
    )
    report.finish(options.json)


def strategies(engine: Engine, prompt: str, first: str, second: str) -> Iterator[tuple[str, Weights]]:
    probabilities = engine.route(prompt).probabilities
    domains = {name: share for name, share in probabilities.items() if name in engine.pack.adapters}
    ranked = sorted(domains, key=domains.__getitem__, reverse=True)
    yield BASE, {}
    yield TOP, {ranked[0]: 1.0}
    for count in 2, 4:
        yield f"top-{count}, renormalized", renormalized({name: domains[name] for name in ranked[:count]})
    yield ALL, {name: share for name, share in domains.items() if share >= 0.005}
    yield "both right ones at 0.5", {first: 0.5, second: 0.5}
    yield "both right ones at 1", {first: 1.0, second: 1.0}


def renormalized(shares: Mapping[str, float]) -> Weights:
    whole = sum(shares.values())
    return {name: share / whole for name, share in shares.items() if share / whole >= 0.005}


if __name__ == "__main__":
    main()
