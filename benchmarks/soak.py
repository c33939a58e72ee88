"""Does a long chat stay as it began? Five hundred turns on a pseudo-terminal.

The first fifty visit every domain in turn while the conversation fills the context, so that every cache is as large as
it gets. Then most turns are questions; in between the domain is switched, the last question is edited, asked again or
taken back, an answer is interrupted, the terminal resized. Afterwards: how much the program's memory has grown since
turn 50 (Linux), what control sequences the terminal got that are none of the known ones, and which questions the log
lacks.
"""

from __future__ import annotations

import os
import random
import re
import sqlite3
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pseudo_terminal import PROMPT, TAKEN, Terminal
from report import Report, progress
from subject import arguments

from zephyra_cli import store

WARM_TURNS = 50
AGAIN = "(the last question again)"
QUESTIONS = [
    "list all files larger than {} MB",
    "Regex for {} digits",
    "What is {} plus {}?",
    "Tell me a story about {} rivers",
    "SELECT the {} oldest people from people(name, age)",
    "東京 {} ünï שלום",
]
# What a line editor and an answer may send: colours, the cursor, erasing, modes; line ends, and the backspace.
_KNOWN = re.compile(r"\x1b\[\??[\d;]*[A-Za-z]|[\r\n\x08\t]")
_STRAY = re.compile(r"\x1b(?:[^\x1b]{0,12})|[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass
class Soak:
    """What was done, and what came of it. Memory in bytes, one number a turn."""

    asked: list[str] = field(default_factory=list)
    standing: int = 0  # turns that there are for sure: an interrupted one may have ended before its first word
    done: Counter[str] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    status: int = 0

    @property
    def growth(self) -> float:
        """Share by which the memory at the end is above that after WARM_TURNS turns."""
        return self.memory[-1] / self.memory[min(WARM_TURNS, len(self.memory)) - 1] - 1


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--turns", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of what is done (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        soak = run(options.model, options.turns, options.seed, Path(home), *_threads(options.threads))
    report = Report("soak", f"{options.turns} turns: {', '.join(f'{n} {what}' for what, n in soak.done.items())}")
    report.figure("memory_mb", "memory at the end", soak.memory[-1] / 1e6, unit="MB")
    report.figure("growth", f"growth after turn {WARM_TURNS}", soak.growth, unit="%", at_most=0.05)
    report.figure("stray", "stray control sequences", len(soak.stray), at_most=0)
    report.figure("missing", "turns that are not in the log", len(soak.missing), at_most=0)
    report.figure("status", "exit status", soak.status, at_most=0)
    for fault in (soak.stray + soak.missing)[:10]:
        print(repr(fault))
    rows = [
        [turn, f"{soak.memory[turn] / 1e6:.1f}"] for turn in range(0, len(soak.memory), max(1, options.turns // 10))
    ]
    report.table("memory, MB, as the chat went on", ["after", "MB"], rows)
    report.finish(options.json)


def run(model: object, turns: int, seed: int, home: Path, *more: str) -> Soak:
    """The whole of it, `turns` questions long; `more` are options of the chat."""
    soak, dice = Soak(), random.Random(seed)
    options = ("-m", model, "-n", 40, "-t", 0.8, "--seed", seed, *more)
    environment = {"TERM": "xterm-256color", "ZEPHYRA_HOME": str(home)}
    domains = ["none", *store.find(str(model), offline=True).adapters]
    with Terminal("chat", *options, size=(80, 24), **environment) as chat:
        chat.sees(PROMPT)
        while len(soak.asked) < turns:
            if len(soak.asked) < min(WARM_TURNS, turns // 2):
                _say(chat, f"/domain {domains[len(soak.asked) % len(domains)]}")
                _act(chat, soak, dice, "ask", domains)
            else:
                _act(chat, soak, dice, _kind(soak, dice), domains)
            progress(f"turn {len(soak.asked)} of {turns}")
        soak.status = chat.leaves()
    soak.stray = stray(chat.all)
    with sqlite3.connect(home / "conversations.db") as log:
        kept = [question for (question,) in log.execute("SELECT question FROM turns ORDER BY id")]
    missing = Counter(question for question in soak.asked if question != AGAIN) - Counter(kept)
    soak.missing = [*missing.elements(), *(AGAIN for _ in range(len(soak.asked) - len(kept) - missing.total()))]
    return soak


def stray(shown: str) -> list[str]:
    """Control sequences and characters that no part of the chat has reason to send."""
    return _STRAY.findall(_KNOWN.sub("", shown))


def _kind(soak: Soak, dice: random.Random) -> str:
    """Of the next thing that a user does: most often a question."""
    kind = dice.choices(("ask", "retry", "edit", "undo", "interrupt", "domain", "resize"), (10, 2, 2, 1, 2, 2, 2))[0]
    return "ask" if kind in ("retry", "edit", "undo") and soak.standing < 2 else kind


def _act(chat: Terminal, soak: Soak, dice: random.Random, kind: str, domains: list[str]) -> None:
    soak.done[kind] += 1
    question = dice.choice(QUESTIONS).replace("{}", str(len(soak.asked)))
    if kind == "resize":
        chat.resize(dice.randint(30, 140), dice.randint(8, 50))
    elif kind == "domain":
        _say(chat, f"/domain {dice.choice(['auto', 'auto', *domains])}")
    elif kind == "undo":
        soak.standing -= 1
        _say(chat, "/undo")
    elif kind == "retry":
        soak.asked.append(AGAIN)
        _say(chat, "/retry")
    elif kind == "edit":
        soak.asked.append(question)
        _say(chat, f"/edit {question}")
    else:
        soak.asked.append(question)
        soak.standing += kind == "ask"
        _say(chat, question, interrupt=dice.random() * 0.05 if kind == "interrupt" else None)
    soak.memory += [chat.resident()] * (len(soak.asked) - len(soak.memory))


def _say(chat: Terminal, line: str, *, interrupt: float | None = None) -> None:
    """Type a line and wait for the next prompt; `interrupt`: press Ctrl-C after so many seconds."""
    chat.types(line + "\r")
    chat.sees(TAKEN)
    if interrupt is not None:
        time.sleep(interrupt)
        chat.types("\x03")
    chat.sees(PROMPT)
    if interrupt is not None:  # where the answer had ended, the key came to the next prompt, which is drawn once more
        chat.settles()


def _threads(threads: int | None) -> list[str]:
    return ["--threads", str(threads)] if threads else []


if __name__ == "__main__":
    os.environ.pop("NO_COLOR", None)
    main()
