"""A conversation as a file: Markdown for people, JSON that comes back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from zephyra_cli.conversations import Kept, Turn
from zephyra_cli.prompt import read_text
from zephyra_fusion.errors import ZephyraError

FORMAT, VERSION = "zephyra-chat", 2
_NAMES = {field.name for field in fields(Turn)} - {"id"}


def to_markdown(turns: Iterable[Turn], system: str | None) -> str:
    """Headings and texts as they were written."""
    parts = [f"## System\n\n{system}"] if system else []
    for turn in turns:
        parts.append(f"## You\n\n{turn.question}\n\n## {turn.model or 'zephyra'}{_who(turn)}\n\n{turn.answer}")
    return "\n\n".join(parts) + "\n"


def to_json(turns: Iterable[Turn], system: str | None) -> str:
    """What `read_json` reads."""
    rows = [{name: value for name, value in asdict(turn).items() if name in _NAMES} for turn in turns]
    return _dump({"system": system, "turns": rows})


def log_to_json(kept: Iterable[Kept], system: str | None) -> str:
    """As `to_json`, with all that the log knows of every turn; those that were taken back are left out."""
    rows = [
        {name: value for name, value in asdict(row.turn).items() if name in _NAMES}
        | {"name": row.name, "at": row.at, "result": dict(row.result), "replay": dict(row.replay)}
        for row in kept
        if not row.undone
    ]
    return _dump({"system": system, "turns": rows})


def read_json(path: Path) -> tuple[list[Turn], str | None]:
    """Turns and system prompt. ZephyraError: unreadable, of a newer zephyra, or no saved chat."""
    text = read_text(path)
    try:
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']!r:.40}")
        if (version := int(values["version"])) > VERSION:
            raise ZephyraError(
                f"'{path}' was made by a newer zephyra: version {version}, this one reads up to {VERSION}",
                hint="update zephyra",
            )
        system = values["system"]
        turns = [_turn(row) for row in values["turns"]]
        if not isinstance(system, str | None):
            raise TypeError("the system prompt is no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ZephyraError(f"'{path}' is no saved chat: {type(error).__name__} {error}") from None
    return turns, system


def write(path: Path, text: str) -> None:
    """A new file. ZephyraError: there is one already, or it cannot be written; then there is none."""
    try:
        with path.open("x", encoding="utf-8", errors="backslashreplace") as file:
            try:
                file.write(text)
                file.flush()
            except BaseException:
                path.unlink(missing_ok=True)
                raise
    except FileExistsError:
        raise ZephyraError(f"'{path}' exists already", hint="choose another name") from None
    except OSError as error:
        raise ZephyraError(f"cannot write '{path}': {error.strerror}") from None


def _turn(row: Mapping[str, Any]) -> Turn:
    turn = Turn(**{name: value for name, value in row.items() if name in _NAMES})
    texts = (turn.question, turn.answer, turn.finish_reason, turn.model)
    weights = turn.weights.items() if isinstance(turn.weights, dict) else [(None, None)]
    numbers = all(isinstance(name, str) and type(weight) in (int, float) for name, weight in weights)
    if not all(isinstance(text, str) for text in texts) or not numbers or type(turn.summary) is not bool:
        raise TypeError("a value of a turn is of the wrong kind")
    return turn


def _who(turn: Turn) -> str:
    return f" ({', '.join(turn.weights)})" if turn.weights else ""


def _dump(values: Mapping[str, Any]) -> str:
    return json.dumps({"format": FORMAT, "version": VERSION, **values}, ensure_ascii=False, indent=1) + "\n"
