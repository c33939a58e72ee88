"""`zephyra bench`: speed on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from zephyra_cli.commands.options import Context, Json, Model, Offline, Profile, Threads


def bench(
    model: Model = None,
    prompt_tokens: Annotated[
        list[int] | None,
        typer.Option(
            "--prompt-tokens", metavar="N", min=2, help="Read a prompt so long (repeatable). [default: 128, 512]"
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", metavar="N", min=2, help="Tokens to decode.")] = 128,
    repeat: Annotated[int, typer.Option("--repeat", metavar="N", min=1, help="Measure so many times.")] = 5,
    threads: Threads = None,
    context: Context = None,
    json: Json = False,
    offline: Offline = None,
    profile: Profile = None,
) -> None:
    """Measure speed on this machine.

    Reading and decoding, the base and a specialist; the first token after a switch and after the way back; the router.
    Medians and extremes. Nothing is drafted and nothing comes from a cache but what a switch back finds there.
    """
    import os

    from zephyra_cli import settings, store, ui
    from zephyra_cli.devices import cpu_model
    from zephyra_cli.engine import Engine
    from zephyra_cli.progress import Progress, Waiting
    from zephyra_cli.speed import SpeedTest

    given = {"model": model, "threads": threads, "context": context, "offline": offline, "profile": profile}
    chosen = settings.load(given | {"draft": "none"})
    pack = store.find(chosen.model, offline=chosen.offline)
    with Waiting(f"loading {pack.name}"):
        engine = Engine.open(pack, chosen)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    with Progress() as progress:
        figures = SpeedTest(engine, prompt_tokens or (128, 512), max_tokens, repeat, progress).run()
    if json:
        backend = engine.backend
        machine = {"model": pack.name, "backend": backend.name, "device": backend.device, "threads": backend.threads}
        measured = {
            figure.key: {"median": round(figure.median, 3), "values": [round(value, 3) for value in figure.values]}
            for figure in figures
        }
        ui.write_json(machine | {"load_ms": round(engine.load_ms, 3), "load_average": load, "figures": measured})
        return
    rows = [(f.text, f"{f.median:.4g}", f"{min(f.values):.4g}", f"{max(f.values):.4g}") for f in figures]
    loading = (f"loading {pack.name}, ms", f"{engine.load_ms:.4g}", "", "")
    heads = ("MEASURED", "MEDIAN", "LEAST", "MOST")
    ui.write_table([heads, loading, *rows], right=(1, 2, 3))
    busy = f", load {load:.1f}: other work slows it" if load > 0.5 else ""
    ui.note(f"{cpu_model()}, {engine.backend.threads} threads, {repeat} repeats{busy}")
