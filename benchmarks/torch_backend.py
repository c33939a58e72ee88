"""The torch backend on a device: decoding, switching, batches.

    python benchmarks/random_model.py FOLDER --size 500M      # or any pack, GGUF or checkpoint folder
    python benchmarks/torch_backend.py --model FOLDER --device cuda

- Decoding at batch 1: tokens a second, and the share of the memory bandwidth that they reach (gpt-fast's measure):
  bytes of the weights times tokens a second over the rate at which the device copies memory, measured here.
- A switch: what `set_adapters` takes, and how much longer the first token of a recent mix takes than staying does.
  A mix that comes back must capture and compile nothing.
- A batch of 16 rows whose adapters differ, against one whose rows have the same.
"""

from __future__ import annotations

import itertools
import statistics
import time
from typing import TYPE_CHECKING, Any

from report import Report
from subject import arguments

if TYPE_CHECKING:
    from zephyra_cli.backends.fusion import FusionBackend

DECODE, REPEATS, ROWS = 128, 5, 16


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="auto", help="default: %(default)s")
    parser.add_argument("--decode", type=int, default=DECODE, help="tokens of an answer (default: %(default)s)")
    options = parser.parse_args()
    from zephyra_cli import store
    from zephyra_cli.backends.fusion import FusionBackend

    pack = store.find(options.model, offline=True)
    backend = FusionBackend(pack.path(pack.base), device=options.device, threads=options.threads, context=1024)
    names = sorted(pack.adapters)[:2]
    for name in names:
        backend.add_adapter(name, pack.path(pack.adapters[name].file))
    accelerated = backend.device != "cpu"
    report = Report("torch_backend", f"{pack.name}, {backend.parameters / 1e6:.0f} M, {backend.device}")
    rate = statistics.median(decoding(backend, options.decode, turn) for turn in range(REPEATS + 1))
    weight = backend._model.lm_head.weight
    moved = backend.parameters * weight.element_size() * rate
    bandwidth = copy_rate(weight.device)
    report.figure("decode", "decoding, batch 1", rate, unit="tokens/s")
    report.figure("bandwidth", "the device copies", bandwidth / 1e9, unit="GB/s")
    report.figure("share", "share of it that decoding reaches", moved / bandwidth, unit="%",
                  at_least=0.7 if accelerated else None)  # fmt: skip
    if names:
        switching(report, backend, names, options.decode)
        mixed(report, backend, names, options.decode)
    report.finish(options.json)


def decoding(backend: FusionBackend, count: int, seed: int) -> float:
    from zephyra_fusion.types import SamplingParams

    prompt = [20 + (seed + at) % 200 for at in range(32)]
    best = SamplingParams(max_tokens=count, seed=seed, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    list(backend.generate(prompt, best))
    return backend.usage.decode_tokens_per_second


def switching(report: Report, backend: FusionBackend, names: list[str], count: int) -> None:
    from zephyra_fusion.types import SamplingParams

    prompt = [20 + at % 200 for at in range(64)]
    params = SamplingParams(max_tokens=2)
    mixes: list[dict[str, float]] = [{}, {names[0]: 1.0}]
    for mix in mixes * 2:
        backend.set_adapters(mix)
        list(backend.generate(prompt, params))
    calls, stays, returns, before = [], [], [], backend.captures
    for mix in itertools.islice(itertools.cycle(mixes), 20):
        calls.append(backend.set_adapters(mix))
        for found in returns, stays:
            start = time.perf_counter()
            list(backend.generate(prompt, params))
            found.append(1000 * (time.perf_counter() - start))
    report.figure("switch", "switch: the call", statistics.median(calls), unit="ms", at_most=1.0)
    report.figure("return", "first two tokens after it, against staying", statistics.median(returns)
                  / statistics.median(stays), at_most=1.1)  # fmt: skip
    report.figure("captures", "graphs captured for mixes that came back", backend.captures - before, at_most=0)


def mixed(report: Report, backend: FusionBackend, names: list[str], count: int) -> None:
    from zephyra_cli.backends.protocol import Job
    from zephyra_fusion.types import SamplingParams

    def rate(mixes: list[dict[str, float]]) -> float:
        hot = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        jobs = [
            Job(
                prompt=[20 + at] * 8,
                params=SamplingParams(max_tokens=count, seed=at, **hot),
                weights=mixes[at % len(mixes)],
            )
            for at in range(ROWS)
        ]
        start, tokens = time.perf_counter(), 0
        for _ in backend.generate_many(jobs):
            tokens += 1
        return tokens / (time.perf_counter() - start)

    rates = [(rate([{names[0]: 1.0}]), rate([{}, *({name: 1.0} for name in names)])) for _ in range(REPEATS)]
    one, several = (statistics.median(found) for found in zip(*rates[1:], strict=True))
    report.figure("one", f"{ROWS} rows, one adapter", one, unit="tokens/s")
    report.figure("several", f"{ROWS} rows, adapters of their own", several, unit="tokens/s")
    report.figure("mixed", "their ratio", several / one, at_least=0.77)


def copy_rate(device: Any) -> float:
    """Bytes a second that are read while the device copies; a copy reads and writes."""
    import torch

    size = 2**28 if device.type != "cpu" else 2**26
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def once() -> float:
        start = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        elif device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter() - start

    return 2 * size / min(once() for _ in range(10))


if __name__ == "__main__":
    main()
