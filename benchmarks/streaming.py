"""What does streaming Markdown on a terminal cost, against writing the same text plainly, at 500 tokens a second?

A text of headings, lists, code and tables comes in tokens of four characters to a pseudo-terminal, as it comes from a
model: two milliseconds of computing, then the token is shown. Both ways in turn, in processes of their own; the
figures are the times from the first token to the last one shown. The first answer of a chat is measured too: what it
needs is loaded while the user types the first question.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from report import Report

TOKEN_S = 1 / 500
CHARACTERS = 4  # a token of English has about four
TEXT = (
    """# How to find large files

Use `find` with **care**: it walks through *everything* below the folder that you name, and that takes a while.

- `-type f` takes files alone, not folders, links or devices;
- `-size +10M` those that are larger than ten mebibytes;
- `-exec` runs a program for each of them.

```python
"""
    + "".join(
        f"""def step_{number}(path: str, limit: int = {number}) -> list[str]:
    # Each file once, the largest first.
    found = [name for name in os.listdir(path) if os.path.getsize(name) > limit * 2**20]
    return sorted(found, key=os.path.getsize, reverse=True)

"""
        for number in range(6)
    )
    + """```

| size | name | what it is |
| ---: | --- | --- |
"""
    + "".join(
        f"| {17 * number} MB | file-{number}.bin | an example of a row, number {number} |\n" for number in range(12)
    )
    + """
Then look at what was found before you delete any of it. A file that is open in another program keeps its space until
that program ends, so the disk may look as full as before; `lsof` says who has it.

"""
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=5, help="of each kind, after the first (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="put the figures into this file, too")
    parser.add_argument("--show", choices=["plain", "markdown"], help=argparse.SUPPRESS)  # the child's part
    options = parser.parse_args()
    if options.show:
        print(json.dumps(_answers(options.show, options.answers + 1)), file=sys.stderr)
        return
    plain, markdown = (_in_a_terminal(kind, options.answers) for kind in ("plain", "markdown"))
    tokens = -(-len(TEXT) // CHARACTERS)
    report = Report("streaming", f"{tokens} tokens, {options.answers} answers of each kind and the first of each")
    base, ours = (statistics.median(wall for wall, _ in times[1:]) for times in (plain, markdown))
    report.figure("plain_s", "an answer in plain text: median", base, unit="s")
    report.figure("markdown_s", "in Markdown: median", ours, unit="s")
    report.figure("added", "Markdown adds", ours / base - 1, unit="%", at_most=0.03)
    report.figure("added_first", "to the first answer", markdown[0][0] / plain[0][0] - 1, unit="%", at_most=0.03)
    base, ours = (statistics.median(busy for _, busy in times[1:]) for times in (plain, markdown))
    report.figure("added_busy", "processor time: Markdown adds", ours / base - 1, unit="%")
    report.figure("added_first_busy", "  to the first answer", markdown[0][1] / plain[0][1] - 1, unit="%")
    report.finish(options.json)


def _in_a_terminal(kind: str, answers: int) -> list[tuple[float, float]]:
    """Seconds of each answer: on the clock, and of the processor (which another program cannot lengthen)."""
    import pty

    leader, follower = pty.openpty()
    reader = threading.Thread(target=_drain, args=(leader,), daemon=True)
    reader.start()
    command = [sys.executable, __file__, "--show", kind, "--answers", str(answers)]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    done = subprocess.run(command, stdout=follower, stderr=subprocess.PIPE, env=environment, check=True)
    os.close(follower)
    times: list[tuple[float, float]] = json.loads(done.stderr)
    return times


def _drain(leader: int) -> None:
    try:
        while os.read(leader, 1 << 16):
            pass
    except OSError:
        pass


def _answers(kind: str, count: int) -> list[tuple[float, float]]:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from zephyra_cli.follow import show_text
    from zephyra_cli.markdown import MarkdownAnswer, load

    make: Callable[[], Callable[[str], None]] = (lambda: show_text) if kind == "plain" else MarkdownAnswer
    if kind == "markdown":
        load()
    return [_seconds(make) for _ in range(count)]


def _seconds(make: Callable[[], Callable[[str], None]]) -> tuple[float, float]:
    pieces = [TEXT[at : at + CHARACTERS] for at in range(0, len(TEXT), CHARACTERS)]
    start, busy = time.perf_counter(), time.thread_time()
    show = make()
    for piece in pieces:
        computed = time.thread_time() + TOKEN_S
        while time.thread_time() < computed:  # the model computes: this core is busy, not asleep
            pass
        show(piece)
    return time.perf_counter() - start, time.thread_time() - busy


if __name__ == "__main__":
    main()
