"""Prefill and decoding through our engine against llama.cpp's own speed: same file, same threads, same run, in turn.

llama.cpp's own speed is `llama-bench`'s, found on the PATH or by --llama-bench. From the source of the very release:

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36 && tar xzf llama_cpp_python-0.3.36.tar.gz
    cmake -S llama_cpp_python-0.3.36/vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \\
          -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF
    cmake --build build --target llama-bench -j

It is run with the libraries of the installed llama-cpp-python, so that both sides run the same machine code. Beside it,
or without it as the yardstick, stands a bare loop over the C API: no sampling, no text, no checks. What lies between
ours and the loop is our own work, what lies between the loop and llama-bench is not.
Ours is `Engine.generate` (domain none, greedy): decoding by the wall clock, sampling, detokenizing and stop checks
included; prefill by the engine's own account, for llama-bench does not tokenize either.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bare_loop import BareLoop
from report import Report
from subject import Subject, arguments

if TYPE_CHECKING:
    from zephyra_cli.engine import Answer, Engine

PREFILL, DECODE, REPEATS = (256, 512), 128, 3
Rates = dict[str, float]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--llama-bench", type=Path, help="default: the one on the PATH, else a bare loop")
    parser.add_argument("--turns", type=int, default=7, help="of A B A B … (default: %(default)s)")
    options = parser.parse_args()
    subject = Subject.of(options)
    from zephyra_cli.devices import usable_cores

    threads = options.threads or usable_cores()
    engine = Subject(subject.pack, subject.data, threads).engine()
    found = options.llama_bench or shutil.which("llama-bench")
    base = subject.pack.path(subject.pack.base)
    sizes = [size for size in PREFILL if size < engine.backend.context_length]
    ours = Ours(engine, subject, sizes)
    bare = BareLoop(base, threads)
    sides = {"ours": ours, "theirs": LlamaBench(Path(found), base, threads) if found else bare}
    if found:
        sides["bare"] = bare
    rates: dict[str, list[Rates]] = {name: [] for name in sides}
    for turn in range(options.turns + 1):
        for name, side in sides.items():
            measured = side.measure(sizes, DECODE)
            if turn:  # the first one warms up
                rates[name].append(measured)
    own = "llama-bench" if found else "a bare loop over the C API"
    report = Report("speed", f"{subject.pack.name}, {threads} threads, {options.turns} turns, against {own}")
    for key in rates["ours"][0]:
        mine, theirs = (statistics.median(turn[key] for turn in rates[name]) for name in ("ours", "theirs"))
        report.figure(f"{key}_ours", f"{key}: ours", mine, unit="tokens/s")
        report.figure(f"{key}_theirs", f"{key}: llama.cpp's", theirs, unit="tokens/s")
        report.figure(f"{key}_ratio", f"{key}: ratio", mine / theirs, at_least=0.95)
        if found:
            loop = statistics.median(turn[key] for turn in rates["bare"])
            report.figure(f"{key}_bare_ratio", f"{key}: ratio to a bare loop", mine / loop)
    report.finish(options.json)


class Ours:
    """Prompts of the wanted lengths, none twice (a prompt seen before is not read again), and one that goes on long."""

    def __init__(self, engine: Engine, subject: Subject, sizes: Sequence[int]) -> None:
        from router import prompts_of_length

        self.engine = engine
        texts = [record["prompt"] for record in subject.valid("stories")]
        self.prompts = {size: itertools.cycle(prompts_of_length(engine, texts, size, 24)) for size in sizes}
        starts = (" ".join(text.split()[:6]) for text in texts)
        found = (start for start in starts if self._generate(start, DECODE + 1).usage.completion_tokens > DECODE)
        self.long = next(found, "")
        if not self.long:
            raise SystemExit(f"no prompt makes this model write {DECODE + 1} tokens")

    def measure(self, sizes: Sequence[int], decode: int) -> Rates:
        """Tokens a second: `pp256` …, `tg128`; medians of some repeats."""
        rates = {f"pp{size}": [self._prefill(size) for _ in range(REPEATS)] for size in sizes}
        rates[f"tg{decode}"] = [self._decode(decode) for _ in range(REPEATS)]
        return {key: statistics.median(values) for key, values in rates.items()}

    def _prefill(self, size: int) -> float:
        return self._generate(next(self.prompts[size]), 1).usage.prefill_tokens_per_second

    def _decode(self, count: int) -> float:
        start = time.perf_counter()
        usage = self._generate(self.long, count + 1).usage
        seconds = time.perf_counter() - start - usage.first_token_ms / 1000
        return (usage.completion_tokens - 1) / seconds

    def _generate(self, text: str, count: int) -> Answer:
        from zephyra_cli.engine import Answer, Request
        from zephyra_fusion.types import Message, SamplingParams

        params = SamplingParams(max_tokens=count, temperature=0.0)
        request = Request(messages=(Message("user", text),), params=params, raw=True, domain="none")
        *_, last = self.engine.generate(request)
        assert isinstance(last, Answer)
        return last


def installed_libraries() -> dict[str, str]:
    """An environment in which llama.cpp's own programs run in the libraries of the installed llama-cpp-python."""
    from zephyra_cli.backends.library import library_path

    libraries = [str(library_path().parent), os.environ.get("LD_LIBRARY_PATH", "")]
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries))}


class LlamaBench:
    """The tool of llama.cpp, with its own defaults but for file and threads, in the installed libraries."""

    def __init__(self, program: Path, model: Path, threads: int) -> None:
        self.command = [str(program), "-m", str(model), "-t", str(threads), "-r", str(REPEATS), "-o", "json"]
        self.environment = installed_libraries()

    def measure(self, sizes: Sequence[int], decode: int) -> Rates:
        lengths = ["-p", ",".join(map(str, sizes)), "-n", str(decode)]
        done = subprocess.run([*self.command, *lengths], env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{self.command[0]}: {done.stderr.strip()[-500:]}")
        tests = json.loads(done.stdout)
        return {f"pp{t['n_prompt']}" if t["n_prompt"] else f"tg{t['n_gen']}": t["avg_ts"] for t in tests}


if __name__ == "__main__":
    main()
