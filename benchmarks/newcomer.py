"""A domain joins from 50 prompts: does the router find it, and what do the old domains lose?

The newcomers are the scenarios of `router/ood_dev` (an assistant's: calendar, lists, transport …), of which the router
learned nothing. Each joins a copy of the pack by `specialists.add`, as in `zephyra domains add`, with an adapter of the
pack as its own; then its other prompts and the old domains' held-out ones are routed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random

from report import Report, progress
from subject import Subject, arguments

from zephyra_cli.evaluation import share
from zephyra_cli.held_out import CHAT

SCENARIOS = {"play": "music", "music": "music", "audio": "music"}  # two words for one thing
FEWEST = 90  # prompts of a scenario


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--examples", type=int, default=50, help="prompts to learn from (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=100, help="prompts of an old domain (default: %(default)s)")
    parser.add_argument("--only", metavar="NAME", help="one scenario")
    options = parser.parse_args()
    subject = Subject.of(options)
    report = Report("newcomer", f"{subject.pack.name}, {options.examples} examples")
    newcomers = {name: prompts for name, prompts in scenarios(subject).items() if options.only in (None, name)}
    old = [(r["prompt"], domain) for domain in subject.own_domains for r in subject.valid(domain, options.limit)]
    chat = [record["prompt"] for record in subject.valid(CHAT, 2 * options.limit)]
    before = _domains(subject, [prompt for prompt, _ in old])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ZEPHYRA_HOME"] = folder
        for number, (name, prompts) in enumerate(newcomers.items(), 1):
            progress(f"{number}/{len(newcomers)} {name}")
            Random(name).shuffle(prompts)
            learned, held_out = prompts[: options.examples], prompts[options.examples :]
            changed = _joined(subject, Path(folder) / name, name, learned)
            now = _domains(changed, [prompt for prompt, _ in old])
            lost = sum(a == d for a, (_, d) in zip(before, old, strict=True))
            lost -= sum(b == d for b, (_, d) in zip(now, old, strict=True))
            found = share([domain == name for domain in _domains(changed, held_out)])
            strayed = share([domain == name for domain in _domains(changed, chat)])
            rows.append((name, len(held_out), found, lost / len(old), strayed))
    report.table("domains that join", ["", "prompts", "found", "old domains lose", "chat that strays"], rows)
    report.figure("accuracy", "a newcomer's prompts found, mean", _mean(rows, 2), unit="%", at_least=0.90)
    report.figure("accuracy_worst", "  the worst", min(row[2] for row in rows), unit="%")
    report.figure("old_lost", "accuracy lost by the old domains, mean", _mean(rows, 3), unit="%", at_most=0.01)
    report.figure("old_lost_worst", "  the worst", max(row[3] for row in rows), unit="%", at_most=0.01)
    report.figure("chat_strayed", "chat that a newcomer takes from the base, mean", _mean(rows, 4), unit="%")
    report.finish(options.json)


def scenarios(subject: Subject) -> dict[str, list[str]]:
    """Prompts by scenario, those with enough of them."""
    from zephyra_fusion.sources import read_lines, source_file

    found: defaultdict[str, list[str]] = defaultdict(list)
    for line in read_lines(source_file(subject.data, "router/ood_dev", "valid")):
        scenario = line["intent"].split("_")[0]
        found[SCENARIOS.get(scenario, scenario)].append(line["prompt"])
    return {name: prompts for name, prompts in sorted(found.items()) if len(prompts) >= FEWEST}


def _joined(subject: Subject, root: Path, name: str, learned: Sequence[str]) -> Subject:
    from zephyra_cli.pack import Pack
    from zephyra_cli.specialists import Newcomer, add

    shutil.copytree(subject.pack.root, root)
    pack = Pack.read(root)
    adapter = pack.path(next(iter(pack.adapters.values())).file)
    add(pack, Newcomer(name=name, adapter=adapter, prompts=learned), lambda done, total, text: None)
    return Subject(Pack.read(root), subject.data, subject.threads)


def _domains(subject: Subject, prompts: Sequence[str]) -> list[str]:
    engine = subject.engine()
    try:
        return [engine.route(prompt).domain for prompt in prompts]
    finally:
        engine.close()


def _mean(rows: Sequence[Sequence[float]], column: int) -> float:
    return sum(row[column] for row in rows) / len(rows)


if __name__ == "__main__":
    main()
