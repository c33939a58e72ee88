"""Is every specialist worth switching on? Perplexity of held-out answers, domains × adapters.

Loss over the response and its end token given the chat prompt, in the llama.cpp backend, on the same drawn records for
every column. `auto` takes, prompt by prompt, what the router decides; its yardstick is the domain's own adapter always
(the base for chat).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from report import Report, progress
from subject import Subject, arguments

from zephyra_cli.domain import AUTO
from zephyra_cli.evaluation import BASE, perplexities
from zephyra_cli.held_out import CHAT
from zephyra_cli.likelihood import Loss, total


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--limit", type=int, default=150, help="records of a domain (default: %(default)s)")
    options = parser.parse_args()
    subject = Subject.of(options)
    report = Report("adapters", f"{subject.pack.name}, {options.limit} records a domain")
    records = {domain: subject.valid(domain, options.limit) for domain in [*subject.own_domains, CHAT]}
    matrix = perplexities(subject.engine(), records, progress=lambda done, all, text: progress(f"{done}/{all} {text}"))
    _show(report, matrix)
    report.finish(options.json)


def _show(report: Report, matrix: Mapping[str, Mapping[str, Loss]]) -> None:
    columns = list(next(iter(matrix.values())))
    rows = [[domain, *(losses[name].perplexity for name in columns)] for domain, losses in matrix.items()]
    report.table("perplexity of answers (rows) under adapters (columns)", ["", *columns], rows)
    domains = [domain for domain in matrix if domain != CHAT]
    gains, best = {}, {}
    for domain in domains:
        losses = matrix[domain]
        gains[domain] = 1.0 - losses[domain].perplexity / losses[BASE].perplexity
        best[domain] = min((name for name in losses if name != AUTO), key=lambda name: losses[name].perplexity)
        report.figure(f"gain_{domain}", f"{domain}: less perplexity than base", gains[domain], unit="%", at_least=0.15)
    own_best = [best[domain] == domain for domain in domains]
    report.figure("own_best", "domains whose own adapter is the best", sum(own_best), at_least=len(domains))
    # A perplexity ends at 1: where the base is near it, only the loss can still fall by much.
    compared = [[d, *_compared(matrix[d][BASE], matrix[d][d]), best[d]] for d in domains]
    columns_compared = ["", "base", "own adapter", "less perplexity %", "less loss %", "best"]
    report.table("own adapter against the bare base", columns_compared, compared)
    if AUTO in columns:
        _show_auto(report, matrix)


def _compared(base: Loss, own: Loss) -> list[float]:
    less_loss = 1.0 - (own.nats / own.tokens) / (base.nats / base.tokens)
    return [base.perplexity, own.perplexity, 100 * (1.0 - own.perplexity / base.perplexity), 100 * less_loss]


def _show_auto(report: Report, matrix: Mapping[str, Mapping[str, Loss]]) -> None:
    def lost(pairs: Sequence[tuple[Loss, Loss]]) -> float:
        return total([a for a, _ in pairs]).perplexity / total([o for _, o in pairs]).perplexity - 1.0

    pairs = {d: (losses[AUTO], losses[BASE if d == CHAT else d]) for d, losses in matrix.items()}
    inside = [pair for domain, pair in pairs.items() if domain != CHAT]
    report.figure("auto_loss", "auto: more perplexity than the right adapter", lost(inside), unit="%", at_most=0.01)
    report.figure("auto_loss_chat", "  chat included", lost(list(pairs.values())), unit="%")
    worst = max(pairs, key=lambda domain: lost([pairs[domain]]))
    report.figure("auto_loss_worst", f"  the worst ({worst})", lost([pairs[worst]]), unit="%")


if __name__ == "__main__":
    main()
