"""Are the answers right? Greedy answers to held-out prompts, scored by what each domain is for.

Through `Engine.generate`, once with the domain's own adapter and once with `auto` (where the router decides for the own
adapter, the answer is the same one and is not computed twice).

shell      right program: the first command word, after sudo too; exact: the same words
regex      equivalent: the same verdicts of `re.fullmatch` and `re.search` on all test strings (scorers/pattern.py)
sql        exact after normalization of case, white space, quotes of values and the last semicolon
math       the number after the last `Answer:`; generated exercises and GSM8K's word problems apart
code       parses; exact syntax tree; same results as the reference, where that is one self-contained function
all others token F1 and ROUGE-L against the reference
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from report import Report, progress
from scorers.arithmetic import same_answer
from scorers.overlap import rouge_l, token_f1
from scorers.pattern import equivalent
from scorers.program_code import parses, passes, same_program
from scorers.shell import program, same_command
from scorers.sql import same_statement
from subject import Subject, arguments

from zephyra_cli.held_out import draw

if TYPE_CHECKING:
    from zephyra_cli.engine import Engine

Record = dict[str, Any]
SYNTHETIC = "synthetic (build.py)"
_LONGEST = {"stories": 160, "medical": 200, "code": 256, "math": 256}  # tokens; any other: 96


@dataclass(frozen=True)
class Score:
    """A share of right answers or a mean overlap. `rate` gives None where a record cannot be judged."""

    key: str
    text: str
    rate: Callable[[str, str], float | None]
    at_least: float | None = None


def _pattern(key: str) -> Callable[[str, str], float]:
    known: dict[tuple[str, str], dict[str, bool]] = {}

    def rate(answer: str, reference: str) -> float:
        if (answer, reference) not in known:
            known[answer, reference] = equivalent(answer, reference)
        return float(known[answer, reference][key])

    return rate


_OVERLAP = (Score("f1", "token F1", token_f1), Score("rouge_l", "ROUGE-L", rouge_l))
SCORES: dict[str, tuple[Score, ...]] = {
    "shell": (
        Score("program", "right program", lambda a, r: program(a) == program(r), at_least=0.70),
        Score("exact", "exact command", same_command),
    ),
    "regex": (
        Score("equivalent", "equivalent", _pattern("equivalent"), at_least=0.50),
        Score("fullmatch", "equivalent on whole strings alone", _pattern("fullmatch")),
        Score("exact", "exact", lambda a, r: a.strip() == r.strip()),
    ),
    "sql": (Score("exact", "exact after normalization", same_statement, at_least=0.50),),
    "math (exercises)": (Score("right", "right", same_answer, at_least=0.60),),
    "math (word problems)": (Score("right", "right", same_answer),),
    "code": (
        Score("parses", "parses", lambda a, r: parses(a)),
        Score("exact", "exact syntax tree", same_program),
        Score("passes", "same results as the reference", passes),
    ),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--limit", type=int, default=100, help="prompts of a part (default: %(default)s)")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the first N answers of each part")
    options = parser.parse_args()
    subject = Subject.of(options)
    report = Report("usefulness", f"{subject.pack.name}, greedy, at most {options.limit} prompts a part")
    engine = subject.engine()
    for part, domain, records in _parts(subject, options.limit):
        progress(f"{part}: {len(records)} prompts")
        given = {"own adapter": [_answer(engine, domain, domain, record["prompt"]) for record in records]}
        if subject.pack.router is not None:
            given["auto"] = _routed(engine, domain, records, given["own adapter"])
        for name, answers in given.items():
            _rate(report, part, name, answers, records)
        for record, answer in list(zip(records, given["own adapter"], strict=True))[: options.show]:
            print(f"\n[{part}] {record['prompt']}\n  wanted: {record['response']}\n  answer: {answer}")
    report.finish(options.json)


def _parts(subject: Subject, limit: int) -> list[tuple[str, str, list[Record]]]:
    """Name, domain and records of everything that is scored; mathematics is two parts."""
    parts = []
    for domain in subject.own_domains:
        records = subject.valid(domain)
        if domain == "math":
            generated = [record for record in records if record["source"] == SYNTHETIC]
            others = [record for record in records if record["source"] != SYNTHETIC]
            parts.append(("math (exercises)", domain, draw(generated, limit)))
            parts.append(("math (word problems)", domain, draw(others, limit)))
        else:
            parts.append((domain, domain, draw(records, limit)))
    return parts


def _routed(engine: Engine, domain: str, records: Sequence[Record], own: Sequence[str]) -> list[str]:
    """What `auto` answers, given what the own adapter answered."""
    answers = []
    for record, answer in zip(records, own, strict=True):
        weights = engine.route(record["prompt"]).weights
        answers.append(answer if weights == {domain: 1.0} else _answer(engine, "auto", domain, record["prompt"]))
    return answers


def _answer(engine: Engine, chosen: str, domain: str, prompt: str) -> str:
    from zephyra_cli.engine import Answer, Request
    from zephyra_fusion.types import Message

    params = replace(engine.pack.generation, temperature=0.0, max_tokens=_LONGEST.get(domain, 96))
    request = Request(messages=(Message("user", prompt),), params=params, domain=chosen)
    *_, last = engine.generate(request)
    assert isinstance(last, Answer)
    return last.text


def _rate(report: Report, part: str, name: str, answers: Sequence[str], records: Sequence[Record]) -> None:
    for score in SCORES.get(part, _OVERLAP):
        rates = [score.rate(answer, record["response"]) for answer, record in zip(answers, records, strict=True)]
        judged = [float(rate) for rate in rates if rate is not None]
        if judged:
            report.figure(
                f"{part}.{score.key}.{name.split()[0]}",
                f"{part}, {name}: {score.text} ({len(judged)})",
                sum(judged) / len(judged),
                unit="%",
                at_least=score.at_least,
            )


if __name__ == "__main__":
    main()
