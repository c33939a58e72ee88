"""Our PyTorch model beside transformers, same weights, same run: `python benchmarks/fusion_speed.py [--device cuda]`

Prints, for one Qwen3 shape: a training step (forward, backward, optimizer), generation at batch 1, both as milliseconds
of ours, milliseconds of transformers and their ratio (below 1: ours is faster), with peak memory beside; and what a
batch costs whose rows have different adapters, against the same batch with one adapter (at most 1.3 is the aim).
On CUDA ours generates through the static cache, its step replayed as a CUDA graph (with --compile fused first), and
the aim is 0.5; `--static` does the same without graphs on a CPU. Every figure is the median of alternating repeats.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zephyra_fusion.checkpoint import load_checkpoint
from zephyra_fusion.generate import generate
from zephyra_fusion.lora import LoraConfig, adapted_layers, add_adapter, set_adapters
from zephyra_fusion.model import ZephyraFusion
from zephyra_fusion.static_step import static_cache
from zephyra_fusion.train.device import reuse_memory
from zephyra_fusion.types import SamplingParams

SHAPES = {  # hidden, layers, heads, K/V heads, feed-forward, vocabulary
    "tiny": (64, 2, 2, 1, 128, 512),
    "nano": (256, 6, 4, 1, 768, 8192),
    "small": (768, 12, 12, 4, 2048, 32000),
}


def both(shape: str, device: str) -> tuple[Any, ZephyraFusion]:
    """A random Qwen3 of transformers, and ours with its weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    hidden, layers, heads, kv_heads, inner, vocabulary = SHAPES[shape]
    config = Qwen3Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=128 if hidden == 256 else 64,
        intermediate_size=inner,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    theirs = Qwen3ForCausalLM(config)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_checkpoint(Path(folder))
    return theirs.to(device).eval(), ours.to(device)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def medians(runs: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Milliseconds of each, measured in turns, so that a slow minute of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in list(runs.items())[:: -1 if repeat % 2 else 1]:  # who is second finds the memory warm
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            if repeat:  # the first is for warming up
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(device: str) -> str:
    """On a device, since this was last asked."""
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        return f"{peak:.0f} MiB on the device"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB resident (whole process)"


def training_step(model: Any, ids: Tensor, compiled: bool) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def loss(ids: Tensor) -> Tensor:
        out = model(ids)
        logits = out if isinstance(out, Tensor) else out.logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())

    run = torch.compile(loss) if compiled else loss

    def step() -> None:
        run(ids).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def operators(run: Callable[[], object]) -> int:
    """How many operators a run calls: a measure of its overhead that no other program on the machine disturbs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return sum(event.count for event in profile.key_averages())


def report(title: str, times: dict[str, float], per: str) -> None:
    ours, theirs = times.values()
    name, peer = times
    print(f"{title:34} {name} {ours:9.1f} ms   {peer} {theirs:9.1f} ms   ratio {ours / theirs:.2f}   {per}")


def compare_training(theirs: Any, ours: ZephyraFusion, options: argparse.Namespace) -> None:
    ids = torch.randint(0, ours.config.vocab_size, (options.batch, options.length), device=options.device)
    steps = {n: training_step(m, ids, options.compile) for n, m in (("ours", ours), ("transformers", theirs))}
    times = medians(steps, options.repeats, options.device)
    peak = peak_memory(options.device)
    counted = " and ".join(str(operators(step)) for step in steps.values())
    report("training step", times, f"[{options.batch}, {options.length}], {counted} operators, peak {peak}")


def compare_generation(theirs: Any, ours: ZephyraFusion, options: argparse.Namespace) -> None:
    theirs.eval(), ours.eval()
    prompt = torch.randint(0, ours.config.vocab_size, (1, options.prompt), device=options.device)
    params = SamplingParams(max_tokens=options.tokens)
    cache = None
    if options.static or options.device == "cuda":
        cache = static_cache(ours, options.prompt + options.tokens, compile=options.compile)
    fixed = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens, "do_sample": False, "pad_token_id": 0}

    def our_run() -> list[int]:
        if cache is not None:
            cache.trim(0)
        return [token.id for token in generate(ours, prompt[0].tolist(), params, stop_ids=(), cache=cache)]

    @torch.inference_mode()
    def their_run() -> list[int]:
        return theirs.generate(prompt, **fixed)[0, options.prompt :].tolist()

    same = our_run() == their_run()
    times = medians({"ours": our_run, "transformers": their_run}, options.repeats, options.device)
    rate = 1000 * options.tokens / times["ours"]
    kind = "growing cache" if cache is None else "static cache"
    peak = f"peak {peak_memory(options.device)}"
    report(
        "generation at batch 1", times, f"{rate:.0f} tokens/s, {kind}, same tokens: {'yes' if same else 'NO'}, {peak}"
    )


@torch.inference_mode()
def compare_adapters(ours: ZephyraFusion, options: argparse.Namespace) -> None:
    ours.eval()
    names = [f"domain{index}" for index in range(options.batch)]
    for name in names:
        add_adapter(ours, name, LoraConfig(r=32, lora_alpha=64))
    for _, layer in adapted_layers(ours):
        for name in names:
            layer.factors(name)[1].normal_(std=0.01)
    ids = torch.randint(0, ours.config.vocab_size, (options.batch, options.length), device=options.device)
    rows = torch.eye(options.batch, device=options.device)
    mixed = {name: rows[index] for index, name in enumerate(names)}

    def with_weights(weights: dict[str, Any], ids: Tensor, times: int) -> Callable[[], None]:
        def run() -> None:
            set_adapters(ours, weights)
            for _ in range(times):
                ours(ids)

        return run

    for length, passes in ((options.length, 1), (1, 32)):  # a prompt; tokens after it
        part = ids[:, :length]
        runs = {"every row its own": with_weights(mixed, part, passes)}
        runs["one for all"] = with_weights({names[0]: 1.0}, part, passes)
        times = medians(runs, options.repeats, options.device)
        size = f"{passes} x [{options.batch}, {length}], r = 32"
        report(f"{options.batch} adapters in one batch", times, f"{size}, peak {peak_memory(options.device)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="nano")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile of both training steps, and of our step")
    parser.add_argument("--static", action="store_true", help="generate through the static cache on a CPU too")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    reuse_memory()  # as training does: else pages of fresh memory cost more than the arithmetic, now here, now there
    import transformers

    theirs, ours = both(options.shape, options.device)
    threads = torch.get_num_threads()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{options.shape} on {options.device} ({platform.machine()}, {threads} threads), {versions}")
    compare_generation(theirs, ours, options)
    compare_training(theirs, ours, options)
    compare_adapters(ours, options)


if __name__ == "__main__":
    main()
