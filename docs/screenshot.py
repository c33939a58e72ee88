"""Make README's pictures from the real program: `python docs/screenshot.py` writes assets/*.svg.

The recordings are a shell and a chat on a pseudo-terminal, typed to as a user would; the plot is what the router says.
Answers are greedy: the pictures change with the model and with nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

from recording import FOREGROUND, Step, film, svg

ASSETS = Path(__file__).parents[1] / "assets"
COLUMNS = 126
SQL = "SQL for: how many wins when the team is chicago? Table: t(team, wins, year)"
PROMPTS = {
    "regex": "Regex for strings of at least 3 letters",
    "shell": "Find all .txt files in the current directory",
    "sql": SQL,
    "math": "What is 12 * 7?",
    "geography": "What is the capital of Peru?",
    "dictionary": "What does 'gale' mean?",
    "medical": "What are the symptoms of anemia?",
    "stories": "Tell me a story about a dog and a ball.",
    "code": "Write a Python function that reverses a list.",
    "none": "Good morning, how are you?",
}
AT_SHELL, AT_CHAT, AT_QUESTION = r"^\$ ", r"^\w+> ", r"\[N\]o: "
RECORDINGS = {
    "screenshot": [
        Step(AT_SHELL, f'zephyra generate -t 0 --stats "{PROMPTS["regex"]}"\r'),
        Step(AT_SHELL, f'echo "{SQL}" | zephyra generate -t 0 --json | jq -c .route.weights\r'),
        Step(AT_SHELL, f'zephyra shell -t 0 "{PROMPTS["shell"]}"\r'),
        Step(AT_QUESTION, "e\r"),  # what runs is written here: nobody looks at the model's command while it is filmed
        Step(r"^\$ \S.*", "\x15find . -name '*.txt' | sort\r"),
        Step(AT_QUESTION, "y\r"),
        Step(AT_SHELL, ""),
    ],
    "chat": [
        Step(AT_SHELL, "zephyra chat -t 0\r"),
        Step(AT_CHAT, f"{PROMPTS['regex']}\r"),
        Step(AT_CHAT, "/why\r"),
        Step(AT_CHAT, f"{SQL}\r"),
        Step(AT_CHAT, "/domain none\r"),
        Step(r"base! ", "\x04"),
        Step(AT_SHELL, ""),
    ],
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        place, tools = here / "place", here / "bin"
        place.mkdir()
        tools.mkdir()
        for name in ("notes.txt", "todo.txt", "zephyra.toml"):
            (place / name).write_text("one\ntwo\n")
        program = tools / "zephyra"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m zephyra_cli "$@"\n')
        program.chmod(0o755)
        environment = {
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PS1": "$ ", "ZEPHYRA_HOME": str(here / "home"),
            "SHELL": "/bin/sh", "BASH_SILENCE_DEPRECATION_WARNING": "1", "PYTHONPATH": os.pathsep.join(sys.path),
        }  # fmt: skip
        for name, steps in RECORDINGS.items():
            if "jq" in str(steps) and shutil.which("jq") is None:
                raise SystemExit("the recording pipes into jq, which is not installed")
            shell = ["bash", "--norc", "--noprofile", "-i"]
            frames = film(shell, steps, columns=COLUMNS, lines=40, folder=place, **environment)
            (ASSETS / f"{name}.svg").write_text(svg(frames, f"zephyra: {name}", columns=COLUMNS), encoding="utf-8")
        (ASSETS / "routing.svg").write_text(routing(program, environment), encoding="utf-8")


def routing(program: Path, environment: dict[str, str]) -> str:
    """Prompts by domains, each square as dark as the router is sure."""
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS.values())
    source = program.parent / "prompts.jsonl"
    source.write_text(lines)
    command = [str(program), "route", "--input", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    said = [json.loads(line)["probabilities"] for line in done.stdout.splitlines()]
    cell, left, top = 72, 370, 40
    width, height = left + cell * len(PROMPTS) + 10, top + 30 * len(PROMPTS) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="routing">',
        "<style>text{font:13px ui-sans-serif,Helvetica,Arial,sans-serif}.v{text-anchor:middle}</style>",
        '<rect width="100%" height="100%" rx="8" fill="#1b1d22"/>',
    ]
    for column, domain in enumerate(PROMPTS):
        x = left + cell * (column + 0.5)
        parts.append(f'<text class="v" x="{x}" y="{top - 14}" fill="{FOREGROUND}">{domain}</text>')
    for row, (prompt, shares) in enumerate(zip(PROMPTS.values(), said, strict=True)):
        y = top + 30 * row
        short = prompt if len(prompt) <= 50 else prompt[:49] + "…"
        parts.append(f'<text x="14" y="{y + 18}" fill="{FOREGROUND}">{escape(short)}</text>')
        for column, domain in enumerate(PROMPTS):
            share = shares.get(domain, 0.0)
            x = left + cell * column
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell - 3}" height="27" rx="3" fill="#5aa9e6" '
                f'fill-opacity="{0.06 + 0.94 * share:.3f}"/>'
            )
            if share >= 0.005:
                colour = "#10141a" if share > 0.5 else FOREGROUND
                x += (cell - 3) / 2
                parts.append(f'<text class="v" x="{x}" y="{y + 18}" fill="{colour}">{100 * share:.0f} %</text>')
    return "".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    main()
