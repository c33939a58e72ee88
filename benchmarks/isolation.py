"""What a process of its own costs: the start, each token, a routed prompt; same file, same run."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from report import Report
from subject import Subject, arguments

if TYPE_CHECKING:
    from zephyra_cli.engine import Engine


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tokens", type=int, default=256, help="of an answer (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=7, help="default: %(default)s")
    options = parser.parse_args()
    subject = Subject.of(options)
    report = Report("isolation", f"{subject.pack.name}, {options.tokens} tokens, the median of {options.runs}")
    engines = {}
    for isolate in False, True:
        start = time.perf_counter()
        engines[isolate] = _open(subject, isolate)
        report.figure(f"open_{isolate}", f"open, {_name(isolate)}", 1000 * (time.perf_counter() - start), unit="ms")
    ids = engines[False].backend.encode("Once upon a time")
    tokens: dict[bool, list[float]] = {isolate: [] for isolate in engines}
    for _ in range(options.runs):
        for isolate, engine in engines.items():  # in turn, so that what else runs falls on both
            tokens[isolate].append(_token_us(engine, ids, options.tokens))
    medians = {isolate: statistics.median(found) for isolate, found in tokens.items()}
    for isolate, median in medians.items():
        report.figure(f"token_{isolate}", f"a token, {_name(isolate)}", median, unit="us")
    report.figure("token_overhead", "a token: what the process adds", medians[True] - medians[False], unit="us")
    prompts = [record["prompt"] for record in subject.valid(subject.own_domains[0], 50)]
    for isolate, engine in engines.items():
        took = _route_us(engine, prompts)
        report.figure(f"route_{isolate}", f"a routed prompt, {_name(isolate)}", took, unit="us")
        engine.close()
    report.finish(options.json)


def _open(subject: Subject, isolate: bool) -> Engine:
    from zephyra_cli.engine import Engine
    from zephyra_cli.settings import Settings

    return Engine.open(subject.pack, Settings(threads=subject.threads, isolate=isolate))


def _token_us(engine: Engine, ids: list[int], count: int) -> float:
    """Microseconds a token of one answer, the first one left out."""
    from zephyra_fusion.types import SamplingParams

    tokens = engine.backend.generate(ids, SamplingParams(max_tokens=count, temperature=1.0, seed=1))
    next(tokens)
    start = time.perf_counter()
    given = sum(1 for _ in tokens)
    return 1e6 * (time.perf_counter() - start) / max(1, given)


def _route_us(engine: Engine, prompts: list[str]) -> float:
    times = []
    for prompt in prompts:
        start = time.perf_counter()
        engine.route(prompt)
        times.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times[5:])


def _name(isolate: bool) -> str:
    return "in a process of its own" if isolate else "here"


if __name__ == "__main__":
    main()
