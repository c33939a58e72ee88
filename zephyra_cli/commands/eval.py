"""`zephyra eval`: what a model's specialists and its router are worth on held-out texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zephyra_cli.commands.options import Context, Json, Model, Offline, Profile, Threads

if TYPE_CHECKING:
    from zephyra_cli.evaluation import Matrix, Routing

OUTSIDE = "(no domain)"


def eval(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA_DIR", help="domains/NAME/valid.jsonl, chat/valid.jsonl, router/ood_dev.jsonl."),
    ],
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="Records of a domain: always the same, drawn from all.")
    ] = 50,
    model: Model = None,
    threads: Threads = None,
    context: Context = None,
    json: Json = False,
    offline: Offline = None,
    profile: Profile = None,
) -> None:
    """Evaluate the model on held-out texts.

    Perplexity of every domain's answers under every adapter; accuracy, calibration and latency of the router. A line
    is {"prompt", "response"} or {"text"}; .gz and .zst are read too.
    """
    from zephyra_cli import settings, store, ui
    from zephyra_cli.engine import Engine
    from zephyra_cli.evaluation import Routing, perplexities
    from zephyra_cli.held_out import CHAT, HeldOut
    from zephyra_cli.progress import Progress, Waiting

    given = {"model": model, "threads": threads, "context": context, "offline": offline, "profile": profile}
    chosen = settings.load(given)
    held_out = HeldOut(data)
    names = [*held_out.domains, *([CHAT] if held_out.has_chat else [])]
    records = {name: held_out.valid(name, limit) for name in names}
    pack = store.find(chosen.model, offline=chosen.offline)
    with Waiting(f"loading {pack.name}"):
        engine = Engine.open(pack, chosen)
    with Progress() as progress:
        matrix = perplexities(engine, records, progress=progress)
        routing = Routing.of(engine, held_out, limit) if pack.router is not None else None
    if routing is not None and not routing.routes:
        ui.note(f"no domain of '{data}' is one of the router's: {', '.join(pack.router.labels if pack.router else ())}")
        routing = None
    if not json:
        ui.write(_tables(matrix, routing))
        return
    result = {
        "model": pack.name,
        "backend": engine.backend.name,
        "device": engine.backend.device,
        "threads": engine.backend.threads,
        "data": str(data),
        "records": {name: len(listed) for name, listed in records.items()},
        "perplexity": {d: {c: round(loss.perplexity, 4) for c, loss in row.items()} for d, row in matrix.items()},
        "tokens": {domain: next(iter(row.values())).tokens for domain, row in matrix.items()},
    }
    ui.write_json(result | {"routing": None if routing is None else _routing(routing)})


def _routing(routing: Routing) -> dict[str, Any]:
    from zephyra_cli.evaluation import abstained, share
    from zephyra_fusion.router import NONE

    median, late = routing.router_ms
    return {
        "accuracy": round(routing.accuracy, 6),
        "accuracy_by_domain": {domain: round(part, 6) for domain, part in routing.by_domain.items()},
        "calibration_error": round(routing.calibration_error(chat=bool(routing.chat)), 6),
        "in_domain_abstained": round(abstained(routing.inside), 6),
        "chat_to_base": round(share([r.domain == NONE for r in routing.chat]), 6) if routing.chat else None,
        "out_of_domain_abstained": round(abstained(routing.outside), 6) if routing.outside else None,
        "answers": routing.confusion(OUTSIDE),
        "router_median_ms": round(median, 3),
        "router_p95_ms": round(late, 3),
    }


def _tables(matrix: Matrix, routing: Routing | None) -> str:
    from zephyra_cli import ui

    columns = list(next(iter(matrix.values())))
    rows = [(name, *(f"{row[column].perplexity:.2f}" for column in columns)) for name, row in matrix.items()]
    text = "Perplexity of answers (rows) under adapters (columns)\n"
    text += ui.table([("", *columns), *rows], right=range(1, len(columns) + 1))
    if routing is None:
        return text
    figures = _routing(routing)
    answers = figures["answers"]
    who = list(next(iter(answers.values())))
    rows = [(name, *map(str, found.values())) for name, found in answers.items()]
    text += "\nPrompts (rows) and who answers (columns)\n"
    text += ui.table([("", *who), *rows], right=range(1, len(who) + 1)) + "\n"
    shares = (
        ("prompts to their own domain", figures["accuracy"]),
        ("in domain, to the base", figures["in_domain_abstained"]),
        ("chat to the base", figures["chat_to_base"]),
        ("out of domain to the base", figures["out_of_domain_abstained"]),
    )
    lines = [(name, f"{100 * part:.1f} %") for name, part in shares if part is not None]
    lines += [
        ("calibration error (15 bins)", f"{figures['calibration_error']:.4f}"),
        ("router, median", f"{figures['router_median_ms']:.2f} ms"),
        ("router, 95th percentile", f"{figures['router_p95_ms']:.2f} ms"),
    ]
    return text + ui.table(lines, right=(1,))
