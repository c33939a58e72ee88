"""How sticky should a conversation be? What the margin of `SwitchPolicy` costs and brings, turn by turn.

The router sees one turn alone. Three kinds of turn come while domain A answers: a whole question of another domain,
which should change to it; a follow-up to A, which should stay; talk, which should go to the base. A follow-up says less
than a question: it is made of the last words of a held-out question of A, and of questions as they are asked after an
answer ("and the ten largest?"), which name no domain at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from random import Random
from typing import TYPE_CHECKING

from report import Report, progress
from subject import Subject, arguments

if TYPE_CHECKING:
    from zephyra_cli.engine import Engine
    from zephyra_fusion.types import Route

MARGINS = (0.0, 0.3, 0.5, 0.7, 0.9, 0.95, 0.97, 0.98, 0.99, 0.999)
LAST_WORDS = 3
VAGUE = (
    "and the ten largest?", "why?", "can you make it shorter?", "and without the first one?", "what about the others?",
    "again, but for two of them", "are you sure?", "and now the other way round", "what does the second part mean?",
    "more, please", "the same for 2019", "how does that work?",
)  # fmt: skip


def main() -> None:
    from zephyra_cli.held_out import CHAT, question
    from zephyra_cli.routing import SwitchPolicy

    parser = arguments(__doc__)
    parser.add_argument("--limit", type=int, default=100, help="questions of a domain (default: %(default)s)")
    options = parser.parse_args()
    subject = Subject.of(options)
    engine = subject.engine()
    asked = {name: [question(line) for line in subject.valid(name, options.limit)] for name in subject.own_domains}
    whole = {name: routes(engine, texts) for name, texts in asked.items()}
    ends = {
        name: routes(engine, [" ".join(text.split()[-LAST_WORDS:]) for text in texts]) for name, texts in asked.items()
    }
    talk = routes(engine, [question(line) for line in subject.valid(CHAT, options.limit)])
    vague = routes(engine, VAGUE)
    domains, dice = sorted(asked), Random(0)
    rows, best = [], 0.0
    for margin in MARGINS:
        policy = SwitchPolicy(margin=margin, price=0.0)

        def share(turns: Sequence[tuple[str, Route, str]], policy: SwitchPolicy = policy) -> float:
            """Of turns (who answers, what the router says, who should) that are decided as they should be."""
            right = [who(policy, route, current) == wanted for current, route, wanted in turns]
            return sum(right) / len(right)

        other = {name: cycle([domain for domain in domains if domain != name]) for name in domains}
        change = share([(next(other[name]), route, name) for name in domains for route in whole[name]])
        follow = share([(name, route, name) for name in domains for route in ends[name]])
        unclear = share([(name, route, name) for name in domains for route in vague])
        base = share([(dice.choice(domains), route, "none") for route in talk])
        mean = (change + (follow + unclear) / 2 + base) / 3
        rows.append([margin, *(round(100 * value, 1) for value in (change, follow, unclear, base, mean))])
        best = max(best, mean)
        if margin == SwitchPolicy().margin:
            chosen = mean, change, unclear
    columns = ["margin", "question of another domain: changes", f"last {LAST_WORDS} words: stays", "vague: stays",
               "talk: to the base", "mean"]  # fmt: skip
    report = Report("switching", f"{subject.pack.name}, {options.limit} questions a domain")
    report.table("turns decided as they should be, per cent", columns, rows)
    mean, change, unclear = chosen
    margin = SwitchPolicy().margin
    report.figure("mean_lost", f"margin {margin}: below the best margin's mean", best - mean, unit="%", at_most=0.03)
    report.figure("change", f"margin {margin}: questions of another domain change", change, unit="%", at_least=0.95)
    report.figure("vague", f"margin {margin}: vague turns stay", unclear, unit="%")
    report.finish(options.json)


def routes(engine: Engine, texts: Sequence[str]) -> list[Route]:
    progress(f"{len(texts)} questions like '{texts[0][:30]}'")
    return [engine.route(text) for text in texts]


def who(policy: object, route: Route, current: str) -> str:
    from zephyra_cli.routing import SwitchPolicy

    assert isinstance(policy, SwitchPolicy)
    weights = policy.decide(route, current).weights
    return next(iter(weights), "none")


if __name__ == "__main__":
    main()
