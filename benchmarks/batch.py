"""Many prompts in one go against one by one: the same prompts, answers and threads, in turn, routing included.

64 short held-out prompts over five domains, greedy. "At once" is what `generate --input --output` runs, its files and
its JSON included; "one by one" is `Engine.generate`. With --llama-batched-bench PATH (built as llama-bench is, see
speed.py: `--target llama-batched-bench`), the decoding rate of llama.cpp's own tool for as many sequences is beside
it, of the base alone, for it cannot switch adapters. Single answers may differ between the two: a batch sums in another
order, and a small model has many near ties.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from report import Report, progress
from speed import installed_libraries
from subject import Subject, arguments

if TYPE_CHECKING:
    from zephyra_cli.engine import Engine

DOMAINS = ("shell", "sql", "regex", "dictionary", "geography")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--prompts", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="of A B A B … (default: %(default)s)")
    parser.add_argument("--llama-batched-bench", type=Path, help="llama.cpp's own tool")
    options = parser.parse_args()
    subject = Subject.of(options)
    domains = [name for name in DOMAINS if name in subject.own_domains] or subject.own_domains[:5]
    texts = [record["prompt"] for name in domains for record in subject.valid(name, 200)]
    short = sorted(texts, key=len)[: 4 * options.prompts][::4][: options.prompts]
    engine = subject.engine()
    seconds: dict[str, list[float]] = {"single": [], "batch": []}
    for turn in range(options.turns + 1):
        progress(f"turn {turn} of {options.turns}")
        alone, first = timed(lambda: one_by_one(engine, short, options.max_tokens))
        together, second = timed(lambda: at_once(engine, short, options.max_tokens))
        if turn:  # the first one warms up
            seconds["single"].append(first)
            seconds["batch"].append(second)
    tokens = sum(count for _, count in alone)
    single, batch = (statistics.median(found) for found in seconds.values())
    report = Report("batch", f"{len(short)} prompts, {len(domains)} domains, {engine.backend.threads} threads, "
                    f"{tokens} tokens, {options.turns} turns")  # fmt: skip
    report.figure("single", "one by one", tokens / single, unit="tokens/s")
    report.figure("batch", "at once", sum(count for _, count in together) / batch, unit="tokens/s")
    report.figure("ratio", "at once: ratio", single / batch, at_least=2.0)
    same = sum(a == b for a, b in zip(alone, together, strict=True)) / len(short)
    report.figure("same", "same answers (others: near ties, by the last bits of a batch)", same, unit="%")
    found = options.llama_batched_bench or shutil.which("llama-batched-bench")
    if found:
        ours = base_rate(engine, short)
        theirs = batched_bench(Path(found), engine, subject)
        report.figure("base", "16 sequences of the base: ours", ours, unit="tokens/s")
        report.figure("theirs", "16 sequences of the base: llama-batched-bench", theirs, unit="tokens/s")
        report.figure("base_ratio", "16 sequences of the base: ratio", ours / theirs, at_least=0.9)
    report.finish(options.json)


def timed(run: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def one_by_one(engine: Engine, prompts: list[str], most: int) -> list[tuple[str, int]]:
    """Texts and numbers of tokens."""
    from zephyra_cli.engine import Answer, Request
    from zephyra_fusion.types import Message, SamplingParams

    found = []
    for prompt in prompts:
        request = Request(messages=(Message("user", prompt),), params=SamplingParams(max_tokens=most))
        *_, answer = engine.generate(request)
        assert isinstance(answer, Answer)
        found.append((answer.text, answer.usage.completion_tokens))
    return found


def at_once(engine: Engine, prompts: list[str], most: int) -> list[tuple[str, int]]:
    from zephyra_cli.batch import Batch
    from zephyra_cli.engine import Request
    from zephyra_fusion.types import SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
        source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        Batch(engine, Request(messages=(), params=SamplingParams(max_tokens=most)), source, target).run(lambda *_: None)
        found = [json.loads(line) for line in target.read_text().splitlines()]
    return [(record["text"], record["usage"]["completion_tokens"]) for record in found]


SEQUENCES, PROMPT, DECODE = 16, 32, 128


def base_rate(engine: Engine, prompts: list[str]) -> float:
    """Tokens a second while 16 sequences of the base decode, greedily; they end together."""
    from zephyra_cli.backends.protocol import Job
    from zephyra_fusion.types import SamplingParams

    params = SamplingParams(max_tokens=DECODE, temperature=0.0)
    ids = engine.backend.encode(" ".join(prompts))
    starts = (ids[at : at + PROMPT] for at in range(0, len(ids) - PROMPT, PROMPT))
    engine.backend.set_adapters({})
    long = next((start for start in starts if sum(1 for _ in engine.backend.generate(start, params)) == DECODE), None)
    if long is None:
        raise SystemExit(f"no prompt makes this model write {DECODE} tokens")
    rates = []
    for _ in range(4):
        started, count = 0.0, 0
        for _ in engine.backend.generate_many([Job(prompt=long, params=params)] * SEQUENCES):
            count += 1
            if count == SEQUENCES:  # the prompts are read
                started = time.perf_counter()
        rates.append((count - SEQUENCES) / (time.perf_counter() - started))
    return statistics.median(rates[1:])


def batched_bench(program: Path, engine: Engine, subject: Subject) -> float:
    """S_TG of llama-batched-bench, in the libraries that we run in."""
    command = [str(program), "-m", str(subject.pack.path(subject.pack.base)), "-c", str(SEQUENCES * 256)]
    command += ["-npp", str(PROMPT), "-ntg", str(DECODE), "-npl", str(SEQUENCES), "-t", str(engine.backend.threads)]
    done = subprocess.run(command, env=installed_libraries(), capture_output=True, text=True)
    rows = re.findall(rf"^\|\s*{PROMPT}\s*\|\s*{DECODE}\s*\|(.*)\|$", done.stdout, flags=re.M)
    if done.returncode or not rows:
        raise SystemExit(f"{program}: {(done.stderr or done.stdout).strip()[-500:]}")
    return float(rows[0].split("|")[5])


if __name__ == "__main__":
    main()
