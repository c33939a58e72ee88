"""Speculative decoding: speed with n-grams and with a draft model, cost where it does not pay, and the distribution.

Subject: folders of `random_model.py`, and always the embedded pack, which is too small to gain. The sides take turns
and answer the same prompts; acceptance is measured, not assumed. With `--llama-speculative` (llama-speculative-simple,
built as llama-bench is, see speed.py) llama.cpp's own program runs on the same model, draft and prompt.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from report import Report, progress
from scripted_draft import GivenLength

if TYPE_CHECKING:
    from zephyra_cli.backends.llama import LlamaBackend
    from zephyra_fusion.draft import Draft

TOKENS, WARM_UP = 192, 400
FIXED = 1, 3, 7  # tokens drafted at every step: what the processor allows, beside what is chosen by the clock


def main() -> None:
    from zephyra_cli.devices import usable_cores

    parser = ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--quantization", nargs="+", default=["Q8_0", "Q4_K_M"])
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--turns", type=int, default=5, help="prompts, each answered by every side")
    parser.add_argument("--samples", type=int, default=100_000, help="for the chi-square test (default: %(default)s)")
    parser.add_argument("--llama-speculative", type=Path, default=shutil.which("llama-speculative-simple"))
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    report = Report("speculation", f"{options.threads} threads, {TOKENS} tokens, {options.turns} prompts")
    for folder in options.folders:
        for kind in options.quantization:
            random_weights(report, folder, kind, options.threads, options.turns, options.llama_speculative)
    embedded(report, options.threads, options.turns)
    if options.samples:
        distribution(report, options.samples)
    report.finish(options.json)


def random_weights(report: Report, folder: Path, kind: str, threads: int, turns: int, theirs: Path | None) -> None:
    from zephyra_cli.backends.draft_model import ModelDraft
    from zephyra_cli.backends.llama import LlamaBackend
    from zephyra_fusion.draft import NgramDraft

    backend = LlamaBackend(folder / f"base-{kind}.gguf", threads=threads)
    name, large, random = f"{folder.name} {kind}", backend.parameters >= 400e6, Random(5)
    fresh = [[random.randrange(300, backend.vocab_size) for _ in range(32)] for _ in range(turns)]
    circles = [[*prompt, *answer(backend, prompt, WARM_UP)] for prompt in fresh]  # a greedy walk ends in a circle
    model_draft = folder / f"draft-{kind}.gguf"
    for title, prompts, make, bound in (
        ("n-grams, text that repeats", circles, lambda: NgramDraft(), 1.4),
        ("n-grams, text that does not", fresh, lambda: NgramDraft(), 0.97),
        ("draft model", fresh, lambda: ModelDraft(model_draft, backend), 1.5),
    ):
        ratio, accepted = compare(backend, make, prompts)
        key = f"{name}_{title}".replace(" ", "_").replace(",", "")
        report.figure(f"{key}_acceptance", f"{name}: {title}: accepted", accepted, unit="%")
        least = bound if large and (title != "draft model" or accepted >= 0.8) else 0.97
        report.figure(key, f"{name}: {title}: with / without", ratio, at_least=least)
    # What this processor allows: with so many tokens at once, always.
    fixed = {k: compare(backend, lambda: ModelDraft(model_draft, backend), fresh, k) for k in FIXED}
    best = max(fixed, key=lambda k: fixed[k][0])
    text = f"{name}: draft model: the best of {', '.join(map(str, FIXED))} at once is {best}, with / without"
    report.figure(f"{name}_draft_model_fixed".replace(" ", "_"), text, fixed[best][0])
    if theirs is not None:
        backend.speculate(ModelDraft(model_draft, backend))
        text = b"".join(map(backend.token_bytes, fresh[0])).decode("utf-8", "replace")
        prompt = backend.encode(text)
        ours = statistics.median(rate(backend, prompt) for _ in range(3))
        found = their_rate(theirs, folder, kind, threads, text)
        report.figure(f"{name}_theirs".replace(" ", "_"), f"{name}: ours / llama-speculative-simple", ours / found,
                      at_least=1.0)  # fmt: skip
    backend.close()


def embedded(report: Report, threads: int, turns: int) -> None:
    """Real text of a model that is too small: by default nothing is drafted, and insisting costs next to nothing."""
    from zephyra_cli import store
    from zephyra_cli.backends.llama import LlamaBackend
    from zephyra_cli.loading import draft_for
    from zephyra_fusion.draft import NgramDraft

    pack = store.find("zephyra-nano", offline=True)
    backend = LlamaBackend(pack.path(pack.base), threads=threads)
    draft, note = draft_for("auto", pack, backend)
    report.figure("embedded_drafts", f"{pack.name}: drafts by itself ({note})", float(draft is not None), at_most=0)
    starts = ("Once upon a time", "The old house", "There was a little", "In the morning", "A long time ago")
    prompts = [backend.encode(start) for start in starts[:turns]]
    ratio, accepted = compare(backend, NgramDraft, prompts)
    report.figure("embedded_acceptance", f"{pack.name}: --draft ngram: accepted", accepted, unit="%")
    report.figure("embedded", f"{pack.name}: --draft ngram, with / without", ratio, at_least=0.97)
    backend.close()


def compare(
    backend: LlamaBackend, make: Callable[[], Draft], prompts: Sequence[Sequence[int]], fixed: int | None = None
) -> tuple[float, float]:
    """Speed with a draft over speed without it, and the share of drafted tokens that was accepted.

    fixed: tokens to draft at every step, instead of as many as pay.
    """
    rates: dict[bool, list[float]] = {True: [], False: []}
    drafted = accepted = 0
    for turn, prompt in enumerate([prompts[0], *prompts]):
        for with_draft in (True, False) if turn % 2 else (False, True):
            progress(f"{turn}/{len(prompts)} {'with' if with_draft else 'without'} a draft")
            length = GivenLength([fixed]) if with_draft and fixed else None
            backend.speculate(make() if with_draft else None, length)
            value = rate(backend, prompt)
            if turn:  # the first one warms up
                rates[with_draft].append(value)
                drafted, accepted = drafted + backend.usage.drafted, accepted + backend.usage.accepted
    return statistics.median(rates[True]) / statistics.median(rates[False]), accepted / max(drafted, 1)


def rate(backend: LlamaBackend, prompt: Sequence[int]) -> float:
    answer(backend, prompt, TOKENS)
    return backend.usage.decode_tokens_per_second


def answer(backend: LlamaBackend, prompt: Sequence[int], count: int) -> list[int]:
    from zephyra_fusion.types import SamplingParams

    return [token.id for token in backend.generate(prompt, SamplingParams(max_tokens=count))]


def their_rate(program: Path, folder: Path, kind: str, threads: int, prompt: str) -> float:
    """Tokens a second that llama-speculative-simple decodes."""
    from zephyra_cli.backends.library import library_path

    files = ["-m", str(folder / f"base-{kind}.gguf"), "-md", str(folder / f"draft-{kind}.gguf")]
    options = ["-n", str(TOKENS), "-t", str(threads), "--temp", "0", "-c", "2048", "-p", prompt]
    options += ["--spec-type", "draft-simple"]
    path = os.pathsep.join([str(library_path().parent), os.environ.get("LD_LIBRARY_PATH", "")])
    done = subprocess.run(
        [str(program), *files, *options], capture_output=True, env={**os.environ, "LD_LIBRARY_PATH": path}
    )
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    found = re.search(r"decoded.*speed:\s*([\d.]+) t/s", said)
    if found is None:
        raise SystemExit(f"{program}: {said[-500:]}")
    return float(found[1])


def distribution(report: Report, samples: int) -> None:
    """Tokens sampled at temperature 1 behind accepted and rejected guesses, against the softmax of cold logits."""
    import numpy as np

    from zephyra_cli import store
    from zephyra_cli.backends.llama import LlamaBackend
    from zephyra_fusion.draft import NgramDraft
    from zephyra_fusion.types import SamplingParams

    pack = store.find("zephyra-nano", offline=True)
    backend = LlamaBackend(pack.path(pack.base), threads=1, kv_type="f32", flash_attention=False)
    prompt = backend.encode("one two three one two three one two three one two")
    backend.speculate(NgramDraft(), GivenLength([3]))
    top, seen, drawn, seed = 4, dict[tuple[int, ...], dict[int, int]](), 0, 0
    while drawn < samples:
        params = SamplingParams(max_tokens=4, temperature=1.0, top_k=top, top_p=1.0, min_p=0.0, seed=seed)
        tokens = [token.id for token in backend.generate(prompt, params)]
        seed += 1
        for at, token in enumerate(tokens[1:], 1):
            counts = seen.setdefault(tuple(tokens[:at]), {})
            counts[token] = counts.get(token, 0) + 1
            drawn += 1
        if seed % 500 == 0:
            progress(f"{drawn}/{samples} samples")
    statistic, freedom = 0.0, 0
    for begun, counts in seen.items():
        if sum(counts.values()) < 200:
            continue
        logits = np.array(backend.logits([*prompt, *begun])[-1], float)
        best = np.argsort(-logits)[:top]
        shares = np.exp(logits[best] - logits[best].max())
        expected = sum(counts.values()) * shares / shares.sum()
        enough = expected >= 5
        observed = np.array([counts.get(int(token), 0) for token in best])
        statistic += float(((observed - expected) ** 2 / expected)[enough].sum())
        freedom += int(enough.sum()) - 1
    backend.close()
    if not freedom:
        raise SystemExit(f"{samples} samples are too few for a chi-square test; 20,000 are enough")
    report.figure("chi_square_samples", "sampled tokens, temperature 1", drawn)
    deviation = (statistic - freedom) / (2 * freedom) ** 0.5
    report.figure("chi_square", f"chi-square {statistic:.0f} of {freedom}: deviations", deviation, at_most=4.0)


if __name__ == "__main__":
    main()
