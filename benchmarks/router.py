"""Tiny ada: is she right, does she know when she is not, and how long does she take?

All figures come from `Engine.route`, the path of `zephyra route` and of `-d auto`. Out-of-domain prompts are the odd
lines of `router/ood_dev` (the threshold was set on the even ones) and the chat split, which belongs to the base.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import prod
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from report import Report
from scorers.perturbation import with_suffix, with_typos
from subject import Subject, arguments

from zephyra_cli.evaluation import Routing, abstained, share
from zephyra_cli.held_out import CHAT, question
from zephyra_fusion.router import NONE

if TYPE_CHECKING:
    from zephyra_cli.engine import Engine
    from zephyra_fusion.types import Route

OUTSIDE = "(no domain)"
PROMPT_TOKENS = 128


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--limit", type=int, help="prompts of a domain (default: all)")
    parser.add_argument("--runs", type=int, default=300, help="timed prompts (default: %(default)s)")
    options = parser.parse_args()
    subject = Subject.of(options)
    report = Report("router", f"{subject.pack.name}, threshold {subject.pack.router and subject.pack.router.threshold}")
    engine = subject.engine()
    routing = Routing.of(engine, subject.held_out, options.limit)
    names = [*routing.routes, CHAT]
    prompts = {name: [question(record) for record in subject.valid(name, options.limit)] for name in names}
    _accuracy(report, routing)
    _abstention(report, routing)
    _confusion(report, routing)
    _robustness(report, engine, {domain: prompts[domain] for domain in routing.routes}, routing.routes)
    _size(report, subject)
    _latency(report, engine, [text for listed in prompts.values() for text in listed], options.runs)
    report.finish(options.json)


def _accuracy(report: Report, routing: Routing) -> None:
    report.figure("accuracy", "prompts to their own domain", routing.accuracy, unit="%", at_least=0.97)
    right = routing.by_domain
    worst = min(right, key=lambda domain: right[domain])
    report.figure("accuracy_worst", f"  the worst domain ({worst})", right[worst], unit="%")
    report.figure("chat_to_base", "chat to the base", share([r.domain == NONE for r in routing.chat]), unit="%")
    error = routing.calibration_error(chat=False)
    report.figure("ece", "calibration error (15 bins), domains", error, at_most=0.03)
    error = routing.calibration_error(chat=True)
    report.figure("ece_chat", "calibration error, domains and chat", error, at_most=0.03)


def _abstention(report: Report, routing: Routing) -> None:
    report.figure("ood_abstained", "out of domain to the base", abstained(routing.outside), unit="%", at_least=0.80)
    together = abstained([*routing.outside, *routing.chat])
    report.figure("ood_chat_abstained", "out of domain and chat to the base", together, unit="%", at_least=0.80)
    report.figure("in_domain_kept", "in domain kept", 1.0 - abstained(routing.inside), unit="%", at_least=0.95)


def _confusion(report: Report, routing: Routing) -> None:
    counted = routing.confusion(OUTSIDE)
    rows = [[name, *found.values(), sum(found.values())] for name, found in counted.items()]
    columns = list(next(iter(counted.values())))
    report.table("prompts (rows) and who answers (columns)", ["", *columns, "all"], rows)


def _robustness(
    report: Report, engine: Engine, prompts: Mapping[str, Sequence[str]], routes: Mapping[str, Sequence[Route]]
) -> None:
    for key, text, change in (
        ("typo_flips", "decision flipped by a slip in five words", with_typos),
        ("suffix_flips", "decision flipped by two polite words", with_suffix),
    ):
        report.figure(key, text, _flips(engine, prompts, routes, change), unit="%")


def _flips(
    engine: Engine,
    prompts: Mapping[str, Sequence[str]],
    routes: Mapping[str, Sequence[Route]],
    change: Callable[[str, Random], str],
) -> float:
    flipped = []
    for domain, listed in prompts.items():
        random = Random(domain)
        for prompt, route in zip(listed, routes[domain], strict=True):
            flipped.append(engine.route(change(prompt, random)).domain != route.domain)
    return share(flipped)


def _size(report: Report, subject: Subject) -> None:
    pack = subject.pack
    own, base = parameters(pack.path(pack.router_file)), parameters(pack.path(pack.base))
    report.figure("parameters", "parameters", own)
    report.figure("parameters_share", f"  share of the base's {base:,}", own / base, unit="%", at_most=0.05)


def parameters(path: Path) -> int:
    """Numbers in all tensors of a GGUF file."""
    from zephyra_converters.gguf_header import read_header

    return sum(prod(tensor.shape) for tensor in read_header(path).tensors.values())


def _latency(report: Report, engine: Engine, texts: Sequence[str], runs: int) -> None:
    """Whole calls of `Engine.route`, tokenizing included, each with another prompt."""
    prompts = prompts_of_length(engine, texts, PROMPT_TOKENS, runs + 10)
    times = []
    for prompt in prompts:
        start = time.perf_counter()
        engine.route(prompt)
        times.append(1000 * (time.perf_counter() - start))
    times = times[10:]  # caches and threads warm up
    tokens = f"{PROMPT_TOKENS}-token prompt, {len(times)} runs"
    report.figure("latency_ms", f"{tokens}: median", statistics.median(times), unit="ms", at_most=10.0)
    report.figure("latency_p95_ms", "  95th percentile", statistics.quantiles(times, n=20)[18], unit="ms")


def prompts_of_length(engine: Engine, texts: Sequence[str], length: int, count: int) -> list[str]:
    """`count` texts of exactly `length` tokens, cut from the given ones laid end to end."""
    words = " ".join(texts).split(" ")
    found: list[str] = []
    start = 0
    for _ in range(100 * count):
        sizes = accumulate(len(engine.backend.encode(" " + word)) for word in words[start : start + length])
        taken = sum(size <= length for size in sizes)
        text = " ".join(words[start : start + taken])
        if len(engine.backend.encode(text)) == length:
            found.append(text)
            if len(found) == count:
                return found
        start = (start + max(1, taken // 4)) % max(1, len(words) - length)
    raise SystemExit(f"the data gave only {len(found)} of {count} texts of {length} tokens")


if __name__ == "__main__":
    main()
