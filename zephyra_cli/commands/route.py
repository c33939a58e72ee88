"""`zephyra route`: what the router says, and nothing more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from zephyra_cli.commands.options import Files, Json, Model, Offline, Prompt, Threads


def route(
    prompt: Prompt = None,
    model: Model = None,
    file: Files = None,
    input: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE.jsonl", help='Many prompts: {"prompt": …} a line; JSON lines come out.'),
    ] = None,
    threads: Threads = None,
    json: Json = False,
    offline: Offline = None,
) -> None:
    """Show what the router makes of a prompt."""
    from zephyra_cli import settings, store, ui
    from zephyra_cli.engine import Engine, route_dict
    from zephyra_cli.progress import Waiting
    from zephyra_cli.prompt import read_prompt

    if input is not None and (prompt is not None or file):
        raise typer.BadParameter("--input excludes a PROMPT and --file")
    chosen = settings.load({"model": model, "threads": threads, "offline": offline})
    pack = store.find(chosen.model, offline=chosen.offline)
    question = None if input else read_prompt(prompt, file or ())
    with Waiting(f"loading {pack.name}"):
        engine = Engine.open(pack, chosen)
    if question is None:
        assert input is not None
        for line in _prompts(input):
            ui.write_json(route_dict(engine.route(line)))
        return
    decision = route_dict(engine.route(question))
    if json:
        ui.write_json(decision)
    else:
        ui.write(_table(decision))


def _prompts(path: Path) -> Iterator[str]:
    """The prompts of a JSON-lines file, read line by line. ZephyraError names the line that is none."""
    import json

    from zephyra_cli.batch_file import stream
    from zephyra_fusion.errors import ZephyraError

    try:
        with stream(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ZephyraError(f"'{path}', line {number}: no valid JSON: {error}") from None
                if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
                    raise ZephyraError(f"'{path}', line {number}: no text under \"prompt\"")
                yield value["prompt"]
    except OSError as error:
        raise ZephyraError(f"cannot read '{path}': {error.strerror}") from None


def _table(route: dict[str, Any]) -> str:
    from zephyra_cli import ui

    rows = [
        ("→" if name == route["domain"] else "", name, f"{100 * share:.1f} %")
        for name, share in route["probabilities"].items()
    ]
    decision = "nothing fits well enough: the base answers" if route["abstained"] else f"{route['domain']} answers"
    return ui.table(rows, right=(2,)) + f"{decision} ({route['router_ms']:.1f} ms)\n"
