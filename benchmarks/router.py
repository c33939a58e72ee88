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
from scorers.calibration import expected_calibration_error
from scorers.perturbation import with_suffix, with_typos
from subject import CHAT, Subject, arguments

if TYPE_CHECKING:
    from zephyra_cli.engine import Engine
    from zephyra_fusion.types import Route

NONE, OUTSIDE = "none", "(no domain)"
PROMPT_TOKENS = 128


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--limit", type=int, help="prompts of a domain (default: all)")
    parser.add_argument("--runs", type=int, default=300, help="timed prompts (default: %(default)s)")
    options = parser.parse_args()
    subject = Subject.of(options)
    report = Report("router", f"{subject.pack.name}, threshold {subject.pack.router and subject.pack.router.threshold}")
    engine = subject.engine()
    prompts = {domain: _prompts(subject, domain, options.limit) for domain in [*subject.domains, CHAT]}
    routes = {name: [engine.route(prompt) for prompt in listed] for name, listed in prompts.items()}
    outside = [engine.route(prompt) for prompt in subject.out_of_domain()]
    chat = routes.pop(CHAT)
    _accuracy(report, routes, chat)
    _abstention(report, routes, chat, outside)
    _confusion(report, {**routes, CHAT: chat, OUTSIDE: outside})
    _robustness(report, engine, {domain: prompts[domain] for domain in routes}, routes)
    _size(report, subject)
    _latency(report, engine, [text for listed in prompts.values() for text in listed], options.runs)
    report.finish(options.json)


def _prompts(subject: Subject, domain: str, limit: int | None) -> list[str]:
    return [record["prompt"] for record in subject.valid(domain, limit)]


def _accuracy(report: Report, routes: Mapping[str, Sequence[Route]], chat: Sequence[Route]) -> None:
    right = {domain: [route.domain == domain for route in listed] for domain, listed in routes.items()}
    everything = [verdict for verdicts in right.values() for verdict in verdicts]
    report.figure("accuracy", "prompts to their own domain", share(everything), unit="%", at_least=0.97)
    worst = min(right, key=lambda domain: share(right[domain]))
    report.figure("accuracy_worst", f"  the worst domain ({worst})", share(right[worst]), unit="%")
    report.figure("chat_to_base", "chat to the base", share([route.domain == NONE for route in chat]), unit="%")
    for key, text, groups in (
        ("ece", "calibration error (15 bins), domains", routes),
        ("ece_chat", "calibration error, domains and chat", {**routes, NONE: chat}),
    ):
        tops = [(domain, *_top(route)) for domain, listed in groups.items() for route in listed]
        error = expected_calibration_error([p for _, _, p in tops], [label == domain for domain, label, _ in tops])
        report.figure(key, text, error, at_most=0.03)


def _top(route: Route) -> tuple[str, float]:
    """The likeliest label and its calibrated probability, whatever the threshold makes of it."""
    return max(route.probabilities.items(), key=lambda item: item[1])


def _abstention(
    report: Report, routes: Mapping[str, Sequence[Route]], chat: Sequence[Route], outside: Sequence[Route]
) -> None:
    def abstained(listed: Sequence[Route]) -> float:
        return share([route.abstained for route in listed])

    inside = [route for listed in routes.values() for route in listed]
    report.figure("ood_abstained", "out of domain to the base", abstained(outside), unit="%", at_least=0.80)
    together = abstained([*outside, *chat])
    report.figure("ood_chat_abstained", "out of domain and chat to the base", together, unit="%", at_least=0.80)
    report.figure("in_domain_kept", "in domain kept", 1.0 - abstained(inside), unit="%", at_least=0.95)


def _confusion(report: Report, routes: Mapping[str, Sequence[Route]]) -> None:
    columns = [*(name for name in routes if name not in (CHAT, OUTSIDE)), NONE]
    rows = []
    for name, listed in routes.items():
        decided = [route.domain for route in listed]
        rows.append([name, *map(decided.count, columns), len(listed)])
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


def share(verdicts: Sequence[bool]) -> float:
    return sum(verdicts) / len(verdicts)


if __name__ == "__main__":
    main()
