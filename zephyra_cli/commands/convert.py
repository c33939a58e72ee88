"""`zephyra convert`: checkpoints, adapters, routers and whole packs to GGUF, and back."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from zephyra_cli.commands.options import Json, Offline
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    from zephyra_converters.report import Part, Report


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A checkpoint, adapter, router or pack folder, or a .gguf file; with --dry-run also hf:owner/name.",
        ),
    ],
    target: Annotated[
        Path | None,
        typer.Argument(metavar="[TARGET]", help="File or folder to write. [default: SOURCE's name here]"),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize",
            "-q",
            metavar="TYPE",
            help="F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, … [default: Q8_0; F16 for a lone adapter or router]",
        ),
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor-type",
            metavar="PATTERN=TYPE",
            help="Another type for the tensors whose GGUF name has PATTERN in it, as ffn_down=Q6_K (repeatable).",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="Weigh columns by how much this text uses them; a text, or an imatrix file (.gguf, .dat).",
        ),
    ] = None,
    to: Annotated[Literal["gguf", "hf"], typer.Option("--to", help="The format to write.")] = "gguf",
    base: Annotated[
        Path | None, typer.Option("--base", metavar="PATH", help="The base of an adapter: folder, pack or .gguf.")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="NAME=PATH", help="Make a pack, with this adapter for NAME (repeatable)."),
    ] = None,
    router: Annotated[
        Path | None, typer.Option("--router", metavar="PATH", help="Make a pack, with this router.")
    ] = None,
    draft: Annotated[
        Path | None,
        typer.Option("--draft", metavar="PATH", help="Make a pack, with this small model that guesses ahead."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="What the result is called.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the logits of source and result.")
    ] = True,
    verify_text: Annotated[
        Path | None,
        typer.Option("--verify-text", metavar="FILE", help="Also compare perplexity and KL divergence on this text."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read headers alone: what would be written, how large, what is refused.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing target.")] = False,
    offline: Offline = None,
    json: Json = False,
) -> None:
    """Convert checkpoints, adapters and packs.

    To GGUF, or from GGUF back to Hugging Face's format.
    """
    from zephyra_cli import ui
    from zephyra_cli.devices import usable_memory
    from zephyra_cli.progress import Progress
    from zephyra_converters.convert import Options
    from zephyra_converters.convert import convert as run

    adapters = _adapters(adapter or ())
    with Progress(bytes=True) as progress, ExitStack() as remote:
        options = Options(
            quantization=quantize,
            tensor_types=tensor_type or (),
            calibration=calibration,
            verify_text=verify_text,
            to=to,
            base=_local(base, dry_run, offline, remote) if base is not None else None,
            adapters=adapters,
            router=router,
            draft=draft,
            name=name,
            verify=verify,
            dry_run=dry_run,
            force=force,
            progress=progress,
        )
        report = run(_local(source, dry_run, offline, remote), target, options)
    if json:
        ui.write_json({**report.to_dict(), "source": str(source), "machine_memory": usable_memory()})
        return
    for warning in report.warnings:
        ui.note(f"warning: {warning}")
    ui.write_table([_HEAD, *(_row(report, part) for part in report.parts)], right=(3, 4))
    if report.sizes:
        _write_sizes(report, usable_memory())
    for part in report.parts:
        if part.calibration:
            ui.note(f"{part.file}: importance matrix from {part.calibration}")
        if part.verification is not None and (text := part.verification.text) is not None:
            ui.note(
                f"{part.file}: perplexity {text.perplexity_source:.3f} -> {text.perplexity:.3f}, KL divergence "
                f"{text.text_kl_divergence:.2g} on {text.text_tokens} tokens of {verify_text}"
            )
    ui.note(f"{'would write' if dry_run else 'wrote'} {report.target}")


def _local(path: Path, dry_run: bool, offline: bool | None, opened: ExitStack) -> Path:
    """The path itself; of what is on the hub, a folder without its weights."""
    if not str(path).startswith("hf:"):
        return path
    if not dry_run:
        raise ZephyraError(
            f"'{path}' is on the hub", hint=f"--dry-run looks at it there; zephyra pull {path} fetches it"
        )
    from zephyra_cli import settings
    from zephyra_cli.hollow import hollow_folder

    settings.require_network("a look at the hub", offline)
    return opened.enter_context(hollow_folder(str(path)))


def _write_sizes(report: Report, memory: int) -> None:
    from zephyra_cli import ui

    rows = [("type", "bytes", "memory to run", "fits")]
    for name, (size, needed) in report.sizes.items():
        rows.append((name, str(size), str(needed), "yes" if needed <= memory else "no"))
    ui.write("\n" + ui.table(rows, right=(1, 2)))
    ui.note(f"this machine has {memory} bytes of memory; counted is a context of at most 4,096 tokens")


_HEAD = ("file", "architecture", "type", "parameters", "bytes", "verified")


def _row(report: Report, part: Part) -> tuple[str, ...]:
    proof = part.verification
    verified = (
        "not compared"
        if proof is None
        else (f"max {proof.max_abs_diff:.1e}, mean {proof.mean_abs_diff:.1e}, top-1 {proof.top1_agreement:.1%}")
    )
    size = f"{'~' if report.dry_run else ''}{part.bytes}"
    return part.file, part.architecture, part.quantization, str(part.parameters), size, verified


def _adapters(given: list[str] | tuple[str, ...]) -> dict[str, Path]:
    adapters: dict[str, Path] = {}
    for entry in given:
        name, equals, path = entry.partition("=")
        if not (name and equals and path):
            raise ZephyraError(f"--adapter '{entry}' is not NAME=PATH", hint="as in --adapter law=./law")
        if name in adapters:
            raise ZephyraError(f"--adapter gives '{name}' twice")
        adapters[name] = Path(path)
    return adapters
