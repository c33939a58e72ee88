"""`zephyra generate`: one answer."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Annotated

import typer

from zephyra_cli.commands.options import (
    SETTINGS,
    Backend,
    Context,
    Device,
    Domain,
    Files,
    Json,
    MaxTokens,
    MinP,
    Model,
    Offline,
    Prompt,
    RepeatPenalty,
    Seed,
    Stats,
    Stop,
    System,
    Temperature,
    Threads,
    TopK,
    TopP,
)

if TYPE_CHECKING:
    from zephyra_cli.engine import Answer


def generate(
    prompt: Prompt = None,
    model: Model = None,
    domain: Domain = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repeat_penalty: RepeatPenalty = None,
    seed: Seed = None,
    stop: Stop = None,
    system: System = None,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template: continue the prompt.")] = False,
    file: Files = None,
    backend: Backend = None,
    device: Device = None,
    threads: Threads = None,
    context: Context = None,
    json: Json = False,
    stream_json: Annotated[
        bool, typer.Option("--stream-json", help="One JSON object a line: pieces, then the result.")
    ] = False,
    stats: Stats = None,
    offline: Offline = None,
) -> None:
    """Answer one prompt.

    The prompt is the argument, standard input where it is a pipe or a file, and the files, joined by blank lines.
    """
    options = {name: value for name, value in locals().items() if name in SETTINGS}
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
    follow(engine.generate(request), show, stats=chosen.stats)


def follow(events: Generator[str | Answer, None, object], show: Callable[[str | Answer], None], *, stats: bool) -> None:
    """Show the answer while it comes. Ctrl-C during the showing is the engine's too: it then closes the answer."""
    interruption: KeyboardInterrupt | None = None
    while (event := next(events, None) if interruption is None else events.throw(interruption)) is not None:
        interruption = None
        try:
            show(event)
            if stats and not isinstance(event, str):
                show_stats(event)
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


def show_stats(answer: Answer) -> None:
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
