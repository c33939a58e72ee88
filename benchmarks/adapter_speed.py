"""Adapters at the speed of the base: one adapter, a blend of four, a switch and the way back, and the memory it takes.

Subject: folders of `random_model.py` (default: the embedded pack). The adapters are what a pack of these bases has,
Q8_0, and F16 files beside them. Every ratio is of medians from the same run, the sides in turn. `llama-bench` as in
speed.py; beside it a bare loop over the C API, which also takes the first F16 file as it is: what llama.cpp makes of
an adapter without any code of ours. --processor-time with --threads 1 counts what the thread computes: for machines
that do other work as well (llama-bench and the bare loop keep the wall clock).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from bare_loop import BareLoop
from report import Report
from speed import LlamaBench

if TYPE_CHECKING:
    from zephyra_cli.backends.llama import LlamaBackend

DECODE, PREFILL, CONVERSATION = 64, 512, 600
Mix = dict[str, float]


@dataclass(frozen=True)
class Model:
    """A base with four adapters over it, and the same ones in F16 where `random_model` made them."""

    name: str
    base: Path
    adapters: Mapping[str, Path]

    @classmethod
    def of_folder(cls, folder: Path, quantization: str) -> Model:
        adapters = {path.stem: path for path in sorted((folder / "adapters-Q8_0").glob("*.gguf"))[:4]}
        adapters |= {f"{name}-F16": folder / "adapters" / path.name for name, path in adapters.items()}
        return cls(f"{folder.name} {quantization}", folder / f"base-{quantization}.gguf", adapters)

    @classmethod
    def embedded(cls) -> Model:
        from zephyra_cli import store

        pack = store.find("zephyra-nano", offline=True)
        names = sorted(pack.adapters)[:4]
        return cls(pack.name, pack.path(pack.base), {name: pack.path(pack.adapters[name].file) for name in names})

    def open(self, threads: int) -> LlamaBackend:
        from zephyra_cli.backends.llama import LlamaBackend

        backend = LlamaBackend(self.base, threads=threads)
        for name, path in self.adapters.items():
            backend.add_adapter(name, path)
        return backend


def main() -> None:
    from zephyra_cli.devices import usable_cores

    parser = ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--quantization", nargs="+", default=["Q8_0", "Q4_K_M"])
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--turns", type=int, default=5, help="of A B A B … (default: %(default)s)")
    parser.add_argument("--processor-time", action="store_true", help="of one thread, instead of the wall clock")
    parser.add_argument("--llama-bench", type=Path, default=shutil.which("llama-bench"))
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    models = [Model.of_folder(folder, kind) for folder in options.folders for kind in options.quantization]
    report = Report("adapter_speed", f"{options.threads} threads, {options.turns} turns")
    for model in models or [Model.embedded()]:
        clock = time.thread_time if options.processor_time else time.perf_counter
        Measurement(model, options.threads, options.turns, report, clock).run(options.llama_bench)
    report.finish(options.json)


class Measurement:
    def __init__(self, model: Model, threads: int, turns: int, report: Report, clock: Callable[[], float]) -> None:
        self.model, self.threads, self.turns, self.report = model, threads, turns, report
        self.backend = model.open(threads)
        self.large = self.backend.parameters >= 400e6
        self.random = Random(3)
        self.clock = clock

    def run(self, llama_bench: Path | None) -> None:
        names = [name for name in sorted(self.model.adapters) if not name.endswith("-F16")]
        mixes: dict[str, Mix] = {"base": {}}
        for kind in ("", "-F16") if len(names) < len(self.model.adapters) else ("",):
            mixes["one" + kind] = {names[0] + kind: 1.0}
            mixes["blend" + kind] = {name + kind: round(0.4 - 0.1 * at, 2) for at, name in enumerate(names)}
        rates: dict[str, list[float]] = defaultdict(list)
        yardstick = LlamaBench(llama_bench, self.model.base, self.threads) if llama_bench else None
        bare = {"bare decode": BareLoop(self.model.base, self.threads)} if llama_bench else {}
        if bare and "one-F16" in mixes:
            bare["bare one"] = BareLoop(self.model.base, self.threads, self.model.adapters[f"{names[0]}-F16"])
        for turn in range(self.turns + 1):
            measured = {key: self.decode(mix) for key, mix in mixes.items()} | {"prefill": self.prefill()}
            if yardstick:
                theirs = yardstick.measure([PREFILL], DECODE)
                measured |= {"their decode": theirs[f"tg{DECODE}"], "their prefill": theirs[f"pp{PREFILL}"]}
                measured |= {key: loop.measure([], DECODE)[f"tg{DECODE}"] for key, loop in bare.items()}
            if turn:  # the first one warms up
                for key, value in measured.items():
                    rates[key].append(value)
        median = {key: statistics.median(values) for key, values in rates.items()}
        self.figure("decode", "decode, base", median["base"], unit="tokens/s")
        self.figure("prefill", "prefill, base", median["prefill"], unit="tokens/s")
        if yardstick:
            for key, mine in (("decode", "base"), ("prefill", "prefill")):
                ratio = median[mine] / median[f"their {key}"]
                self.figure(f"{key}_ratio", f"{key}, base / llama-bench", ratio, at_least=0.98)
            self.figure("bare", "decode, base / a bare loop", median["base"] / median["bare decode"])
        bounds = (0.88, 0.80) if self.large else (None, None)
        for kind, said in (("", ""), ("-F16", " in F16")):
            for key, text, bound in (("one", "one adapter", bounds[0]), ("blend", "blend of four", bounds[1])):
                if key + kind in mixes:
                    ratio = median[key + kind] / median["base"]
                    self.figure(key + kind, f"{text}{said} / base", ratio, at_least=bound)
        if "bare one" in median:
            self.figure("bare_one", "llama.cpp alone: that F16 file / base", median["bare one"] / median["bare decode"])
        self.switches(mixes["one"], {names[1]: 1.0})
        self.memory()
        self.backend.close()

    def decode(self, mix: Mix) -> float:
        from zephyra_fusion.types import SamplingParams

        self.backend.set_adapters(mix)
        for _ in range(5):  # a random walk may end in a stop token
            tokens = self.backend.generate(self.prompt(16), SamplingParams(max_tokens=DECODE + 1))
            next(tokens)
            start = self.clock()
            count = sum(1 for _ in tokens)
            if count > DECODE // 2:
                return count / (self.clock() - start)
        raise SystemExit(f"{self.model.name} ends every answer at once")

    def prefill(self) -> float:
        self.backend.set_adapters({})
        self.answer(self.prompt(PREFILL))
        return self.backend.usage.prefill_tokens_per_second

    def switches(self, here: Mix, there: Mix) -> None:
        """A conversation under `here`; each turn adds a question, with or without an excursion before it."""
        calls, firsts, reread = [], {"stay": list[float](), "return": list[float]()}, []
        prompt = self.prompt(CONVERSATION)
        self.backend.set_adapters(here)
        self.answer(prompt)
        for turn in range(2 * self.turns + 2):
            kind = "return" if turn % 2 else "stay"
            if kind == "return":
                calls.append(self.backend.set_adapters(there))
                self.answer(prompt)
            calls.append(self.backend.set_adapters(here))
            prompt = [*prompt, *self.prompt(16)]
            self.answer(prompt)
            usage = self.backend.usage
            if turn > 1:
                firsts[kind].append(usage.first_token_ms)
            if kind == "return":
                # What a return reads beyond the question that staying reads as well.
                reread.append((usage.prompt_tokens - usage.cached_tokens - 16) / usage.prompt_tokens)
        self.figure("switch", "switch call", statistics.median(calls), unit="ms", at_most=1.0)
        self.figure("reread", "share of the prompt a return reads again", max(reread), unit="%", at_most=0.05)
        ratio = statistics.median(firsts["return"]) / statistics.median(firsts["stay"])
        self.figure("return", "first token after a return / after staying", ratio, at_most=1.1)

    def memory(self) -> None:
        """Of a process that answers once: resident at most, beyond file and keys and values."""
        command = [sys.executable, __file__, "--child", str(self.model.base), str(self.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
        found = json.loads(done.stdout)
        beyond = (found["resident"] - self.model.base.stat().st_size - found["cache"]) / 2**20
        self.figure("resident", "resident", found["resident"] / 2**20, unit="MB")
        self.figure("memory", "resident beyond file and cache", beyond, unit="MB", at_most=120)

    def answer(self, prompt: Sequence[int]) -> None:
        from zephyra_fusion.types import SamplingParams

        list(self.backend.generate(prompt, SamplingParams(max_tokens=1)))

    def prompt(self, count: int) -> list[int]:
        return [self.random.randrange(300, self.backend.vocab_size) for _ in range(count)]

    def figure(self, key: str, text: str, value: float, **about: Any) -> None:
        """As the report's, of this model."""
        name = self.model.name
        self.report.figure(f"{name.replace(' ', '_')}_{key}", f"{name}: {text}", value, **about)


def child(base: Path, threads: int) -> None:
    from zephyra_cli.backends.llama import LlamaBackend
    from zephyra_fusion.types import SamplingParams

    start = time.perf_counter()
    backend = LlamaBackend(base, threads=threads)
    list(backend.generate([300 + n for n in range(PREFILL)], SamplingParams(max_tokens=16)))
    # Not getrusage's ru_maxrss: that begins with what the parent had when it started us.
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    print(json.dumps({"resident": peak, "cache": backend.cache_bytes, "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
