"""`zephyra log`: what was asked and answered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from zephyra_cli.commands.options import Json, subcommand_follows

if TYPE_CHECKING:
    from zephyra_cli.conversations import Conversations, Kept

log = typer.Typer(add_completion=False, rich_markup_mode=None, help="What was asked and answered, and by whom.")
ID = Annotated[str, typer.Argument(metavar="ID", help="A conversation (12) or one of its turns (12.3).")]
Count = Annotated[int, typer.Option("--count", "-n", metavar="N", min=0, help="At most the last N; 0: all.")]


@log.callback(invoke_without_command=True)
def list_log(context: typer.Context, count: Count = 20, json: Json = False) -> None:
    """What was asked and answered, the latest last: chats, and what `generate` answered."""
    if subcommand_follows(context):
        return
    from dataclasses import asdict

    from zephyra_cli import ui
    from zephyra_cli.log import show_list

    summaries = _conversations().summaries(limit=count or -1)
    if json:
        ui.write_json({"conversations": [asdict(line) for line in summaries]})
    elif not show_list(summaries):
        ui.note("the log is empty")


@log.command()
def search(
    words: Annotated[list[str], typer.Argument(help="All of them must occur, as parts of words too.")],
    count: Count = 20,
    json: Json = False,
) -> None:
    """Turns in whose question or answer the words stand, the latest last."""
    from dataclasses import asdict

    from zephyra_cli import ui
    from zephyra_cli.text import shorten, utf8

    utf8(" ".join(words), "what is searched for")
    found = _conversations().search(" ".join(words), limit=count or -1)
    if json:
        ui.write_json({"turns": [asdict(line) for line in found]})
    elif found:
        rows = [(line.name, line.at, shorten(line.snippet, 100)) for line in found]
        ui.write_table(rows, right=(0,))
    else:
        ui.note("nothing was found")


@log.command()
def show(name: ID, json: Json = False) -> None:
    """A conversation, or one turn with all that is known of it."""
    from zephyra_cli import transcript, ui
    from zephyra_cli.conversations import parse_name

    conversations = _conversations()
    conversation, number = parse_name(name)
    kept = [conversations.turn(name)] if number is not None else conversations.turns(conversation)
    if json:
        ui.write_json({"turns": [_facts(row) for row in kept]})
        return
    shown = [row for row in kept if number is not None or not row.undone]
    ui.write(transcript.to_markdown((row.turn for row in shown), conversations.system(conversation)))
    for row in shown:
        ui.note(f"{row.name}  {row.at}  {_line(row)}")


@log.command()
def export(
    conversation: Annotated[int, typer.Argument(metavar="ID", help="A conversation's number.")],
    to: Annotated[
        Literal["markdown", "json"], typer.Option("--to", help="JSON is what /load reads, with all that is known.")
    ] = "markdown",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file. [default: standard output]")
    ] = None,
) -> None:
    """A conversation as Markdown or JSON."""
    from zephyra_cli import transcript, ui

    conversations = _conversations()
    kept, system = conversations.turns(conversation), conversations.system(conversation)
    if to == "json":
        text = transcript.log_to_json(kept, system)
    else:
        text = transcript.to_markdown((row.turn for row in kept if not row.undone), system)
    if output is None:
        ui.write(text)
    else:
        transcript.write(output, text)
        ui.note(f"conversation {conversation} written to {output}")


@log.command()
def delete(
    conversations: Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="Conversations.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is in the log.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete conversations for good: their texts are gone from the file, too."""
    import sys

    from zephyra_cli import ui
    from zephyra_cli.log import open_conversations
    from zephyra_fusion.errors import ZephyraError

    if everything == bool(conversations):
        raise typer.BadParameter("name conversations, or --all")
    kept = open_conversations()
    chosen = [line.id for line in kept.summaries()] if everything else list(dict.fromkeys(conversations or []))
    if everything and chosen and not yes:
        if not (sys.stdin is not None and sys.stdin.isatty()):
            raise ZephyraError(f"all {len(chosen)} conversations would be deleted", hint="--yes says that you mean it")
        if not typer.confirm(f"delete all {len(chosen)} conversations?", err=True):
            ui.note("nothing was deleted")
            return
    kept.delete(chosen)
    ui.note(f"deleted {len(chosen)} conversation{'s' * (len(chosen) != 1)}")


def _conversations() -> Conversations:
    from zephyra_cli.log import open_conversations

    return open_conversations(readable=True)


def _facts(row: Kept) -> dict[str, Any]:
    turn = row.turn
    return {
        "name": row.name,
        "at": row.at,
        "question": turn.question,
        "answer": turn.answer,
        "finish_reason": turn.finish_reason,
        "model": turn.model,
        "weights": dict(turn.weights),
        "summary": turn.summary,
        "undone": row.undone,
        "result": dict(row.result),
        "replay": dict(row.replay),
    }


def _line(row: Kept) -> str:
    """One line on a turn: who answered, with what seed, how it ended."""
    turn, parts = row.turn, []
    parts.append("+".join(f"{name}={weight:g}" for name, weight in turn.weights.items()) or "base")
    if sampling := row.replay.get("sampling"):
        parts.append(f"temperature {sampling['temperature']:g}, seed {sampling['seed']}")
    parts.append(turn.finish_reason + (", taken back" if row.undone else ""))
    return " · ".join(parts)
