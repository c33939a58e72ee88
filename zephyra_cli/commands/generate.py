"""`zephyra generate`: one answer."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from zephyra_cli.commands.options import Files, Json, Model, Offline, Prompt, Threads

if TYPE_CHECKING:
    from zephyra_cli.engine import Answer


def generate(
    prompt: Prompt = None,
    model: Model = None,
    domain: Annotated[
        str | None,
        typer.Option(
            "--domain",
            "-d",
            metavar="auto|none|NAME|NAME=W,…",
            help="Who answers. [default: auto where there is a router]",
        ),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", "-n", metavar="N", help="Longest answer.")] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", "-t", metavar="T", help="0 is greedy and reproducible.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(metavar="K", help="Only the K likeliest tokens; 0: all.")] = None,
    top_p: Annotated[float | None, typer.Option(metavar="P", help="Only the likeliest, up to this sum.")] = None,
    min_p: Annotated[
        float | None, typer.Option(metavar="P", help="Only what is P times as likely as the likeliest.")
    ] = None,
    repeat_penalty: Annotated[float | None, typer.Option(metavar="X", help="Above 1: fewer repetitions.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="The same seed gives the same answer.")] = None,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End before this text (repeatable).")] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", metavar="TEXT", help="System prompt.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template: continue the prompt.")] = False,
    file: Files = None,
    backend: Annotated[Literal["auto", "llama"] | None, typer.Option(help="What computes.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"] | None, typer.Option(help="Where it runs.")] = None,
    threads: Threads = None,
    context: Annotated[int | None, typer.Option(metavar="N", help="Most tokens of prompt and answer together.")] = None,
    json: Json = False,
    stream_json: Annotated[
        bool, typer.Option("--stream-json", help="One JSON object a line: pieces, then the result.")
    ] = False,
    stats: Annotated[bool | None, typer.Option("--stats", help="A line of figures on standard error.")] = None,
    offline: Offline = None,
) -> None:
    """Answer one prompt.

    The prompt is the argument, standard input where it is a pipe or a file, and the files, joined by blank lines.
    """
    options = {name: value for name, value in locals().items() if name in _SETTINGS}
    from zephyra_cli import settings, store
    from zephyra_cli.engine import Engine, Request
    from zephyra_cli.prompt import read_prompt
    from zephyra_fusion.types import Message

    if json and stream_json:
        raise typer.BadParameter("--json and --stream-json exclude each other")
    if raw and system is not None:
        raise typer.BadParameter("--raw has no place for a --system prompt")
    chosen = settings.load(options)
    pack = store.find(chosen.model, offline=chosen.offline)
    params = chosen.sampling(pack.generation)
    question = Message("user", read_prompt(prompt, file or ()))
    messages = (question,) if raw or not chosen.system else (Message("system", chosen.system), question)
    engine = Engine.open(pack, context=chosen.context, threads=chosen.threads, device=chosen.device)
    request = Request(messages=messages, params=params, raw=raw, domain=chosen.domain, stop=tuple(stop or ()))
    show = _show_json if json else _show_json_lines if stream_json else _show_text
    _follow(engine.generate(request), show, stats=chosen.stats)


_SETTINGS = frozenset(
    ("model", "domain", "max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "system")
    + ("backend", "device", "threads", "context", "stats", "offline")
)


def _follow(events: Generator[str | Answer, None, None], show: Callable[[str | Answer], None], *, stats: bool) -> None:
    """Show the answer while it comes. Ctrl-C during the showing is the engine's too: it then closes the answer."""
    interruption: KeyboardInterrupt | None = None
    while (event := next(events, None) if interruption is None else events.throw(interruption)) is not None:
        interruption = None
        try:
            show(event)
            if stats and not isinstance(event, str):
                _show_stats(event)
        except KeyboardInterrupt as caught:
            interruption = caught


def _show_text(event: str | Answer) -> None:
    from zephyra_cli import ui

    if isinstance(event, str):
        ui.write(event)
    elif event.text and not event.text.endswith("\n"):
        ui.write("\n")


def _show_json(event: str | Answer) -> None:
    from zephyra_cli import ui

    if not isinstance(event, str):
        ui.write_json(event.to_dict())


def _show_json_lines(event: str | Answer) -> None:
    from zephyra_cli import ui

    ui.write_json({"type": "text", "text": event} if isinstance(event, str) else {"type": "result", **event.to_dict()})


def _show_stats(answer: Answer) -> None:
    from zephyra_cli import ui

    usage, route = answer.usage, answer.route
    who = "+".join(f"{name}={weight:g}" for name, weight in answer.weights.items()) or "base"
    figures = [who, f"{usage.prompt_tokens} tokens in ({usage.cached_tokens} cached)", f"{usage.completion_tokens} out"]
    if route is not None:
        figures.append(f"router {route.router_ms:.1f} ms")
    figures += [
        f"load {answer.load_ms:.0f} ms",
        f"switch {answer.switch_ms:.1f} ms",
        f"first token {usage.first_token_ms:.1f} ms",
        f"{usage.decode_tokens_per_second:.0f} tokens/s",
        answer.finish_reason,
    ]
    ui.note(" · ".join(figures))
