"""Does the GGUF compute what PyTorch computes, and what does its quantization cost?

Base and adapters are converted to F32 here, in a temporary folder. Three things are measured: the largest difference of
any logit at any position of 32 rendered conversations; whether each of 64 greedy tokens of PyTorch is the GGUF's own
choice at its place (it would have written the same ones; both go on after an end token, so that there are always 64);
and the perplexity of held-out answers in the shipped files against the F32 ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from report import Report, progress
from subject import Subject, arguments

from zephyra_cli.held_out import CHAT
from zephyra_cli.likelihood import Example, Loss, examples, logits_from, loss, total

if TYPE_CHECKING:
    from zephyra_cli.backends.llama import LlamaBackend
    from zephyra_cli.pack import Pack

_LONGEST = 256  # tokens of a conversation
BASE = "base"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/nano/base"), help="default: %(default)s")
    parser.add_argument("--adapters", type=Path, default=Path("runs/nano/adapters"), help="default: %(default)s")
    parser.add_argument("--prompts", type=int, default=32, help="conversations compared (default: %(default)s)")
    parser.add_argument("--continued", type=int, default=8, help="of them continued (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=60, help="records for perplexity (default: %(default)s a domain)")
    options = parser.parse_args()
    subject = Subject.of(options)
    report = Report("conversion", f"{options.checkpoint} and {options.adapters}")
    with TemporaryDirectory() as folder:
        base, adapters = convert(options.checkpoint, options.adapters, Path(folder))
        exact = _backend(base, adapters, subject.threads, exact=True)
        _exactness(report, subject, exact, options)
        shipped = {name: subject.pack.path(adapter.file) for name, adapter in subject.pack.adapters.items()}
        quantized = _backend(subject.pack.path(subject.pack.base), shipped, subject.threads, exact=False)
        _quantization(report, subject, exact, quantized, options.limit)
        exact.close()
    report.finish(options.json)


def convert(checkpoint: Path, adapters: Path, target: Path) -> tuple[Path, dict[str, Path]]:
    """The F32 GGUF of a checkpoint folder and of every PEFT folder in `adapters`."""
    from zephyra_converters.gguf_write import plan_gguf, write_gguf
    from zephyra_converters.hf import read_hf
    from zephyra_converters.lora import write_lora_gguf
    from zephyra_converters.peft import read_peft

    source = read_hf(checkpoint)
    base = target / "base.gguf"
    write_gguf(plan_gguf(source), base, "F32")
    made = {}
    for folder in _adapter_folders(adapters):
        made[folder.name] = target / f"{folder.name}.gguf"
        write_lora_gguf(read_peft(folder), source.config, made[folder.name], "F32")
    return base, made


def _adapter_folders(adapters: Path) -> list[Path]:
    return sorted(path.parent for path in adapters.glob("*/adapter_config.json"))


def _backend(base: Path, adapters: dict[str, Path], threads: int | None, *, exact: bool) -> LlamaBackend:
    """`exact`: no flash attention, F32 cache; else the settings that answers are given with."""
    from zephyra_cli.backends.llama import LlamaBackend

    settings: dict[str, Any] = {"kv_type": "f32", "flash_attention": False} if exact else {}
    backend = LlamaBackend(base, threads=threads, **settings)
    for name, path in adapters.items():
        backend.add_adapter(name, path)
    return backend


def _exactness(report: Report, subject: Subject, backend: LlamaBackend, options: Any) -> None:
    from zephyra_fusion.checkpoint import load_adapter, load_checkpoint
    from zephyra_fusion.lora import set_adapters

    asked = _mixed(subject, subject.pack, backend, options.prompts)
    model = load_checkpoint(options.checkpoint)
    names = [BASE, *(folder.name for folder in _adapter_folders(options.adapters))]
    for name in names[1:]:
        load_adapter(model, name, options.adapters / name)
    differences, identical = {}, {}
    for name in names:
        weights = {} if name == BASE else {name: 1.0}
        backend.set_adapters(weights)
        set_adapters(model, weights)
        progress(f"{name}: logits and greedy tokens")
        differences[name] = max(_difference(model, backend, example) for example in asked)
        chosen = [_same_greedy(model, backend, example.prompt) for example in asked[: options.continued]]
        identical[name] = sum(chosen) / len(chosen)
    rows = [[name, differences[name], f"{100 * identical[name]:.0f} %"] for name in names]
    report.table("F32 GGUF against PyTorch", ["", "largest difference", "64 tokens identical"], rows)
    count = f"{len(asked)} prompts, base and {len(names) - 1} adapters"
    report.figure("difference", f"largest logit difference, {count}", max(differences.values()), at_most=1e-3)
    same = min(identical.values())
    text = f"64 greedy tokens identical, {options.continued} prompts each"
    report.figure("greedy", text, same, unit="%", at_least=1.0)


def _mixed(subject: Subject, pack: Pack, backend: LlamaBackend, count: int) -> list[Example]:
    """`count` examples, all domains and chat in turn."""
    domains = [*subject.domains, CHAT]
    each = [examples(subject.valid(domain, -(-count // len(domains))), pack, backend) for domain in domains]
    turns = [example for turn in zip(*each, strict=False) for example in turn]
    return [Example(e.prompt[:_LONGEST], e.response[: max(0, _LONGEST - len(e.prompt))]) for e in turns[:count]]


def _difference(model: Any, backend: LlamaBackend, example: Example) -> float:
    import torch

    ids = [*example.prompt, *example.response]
    with torch.inference_mode():
        wanted = model(torch.tensor([ids]))[0].numpy()
    return float(abs(logits_from(backend, ids) - wanted).max())


def _same_greedy(model: Any, backend: LlamaBackend, prompt: Sequence[int], count: int = 64) -> bool:
    import torch

    cache, written, step = model.new_cache(), list(prompt), list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            step = [int(model(torch.tensor([step]), cache=cache)[0, -1].argmax())]
            written += step
    chosen = logits_from(backend, written[:-1], len(prompt) - 1).argmax(axis=1).tolist()
    return bool(chosen == written[len(prompt) :])


def _quantization(report: Report, subject: Subject, exact: LlamaBackend, quantized: LlamaBackend, limit: int) -> None:
    kind = subject.pack.quantization or "shipped"
    rows: list[list[str | float]] = []
    sums: dict[str, list[list[Loss]]] = {"base": [], "own": []}
    for domain in [*subject.own_domains, CHAT]:
        asked = examples(subject.valid(domain, limit), subject.pack, exact)
        row: list[str | float] = [domain]
        progress(f"{domain}: perplexity")
        mixes: dict[str, dict[str, float]] = {"base": {}} if domain == CHAT else {"base": {}, "own": {domain: 1.0}}
        for name, weights in mixes.items():
            pair = []
            for backend in (exact, quantized):
                backend.set_adapters(weights)
                pair.append(total([loss(backend, example) for example in asked]))
            sums[name].append(pair)
            row += [pair[0].perplexity, pair[1].perplexity]
        rows.append([*row, *[""] * (5 - len(row))])
    report.table("perplexity of answers", ["", "base F32", f"base {kind}", "own F32", f"own {kind}"], rows)
    for name, text in (("base", "base alone"), ("own", "each domain's own adapter")):
        before, after = (total([pair[i] for pair in sums[name]]).perplexity for i in (0, 1))
        label = f"{kind} against F32, {text}: change of perplexity"
        report.figure(f"quantized_{name}", label, abs(after / before - 1), unit="%", at_most=0.005)


if __name__ == "__main__":
    main()
