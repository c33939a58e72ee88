"""An answer followed while it comes: what every way of showing it has in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator

from zephyra_cli import ui
from zephyra_cli.engine import Answer
from zephyra_cli.progress import Waiting
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import Route


def follow(
    events: Generator[str | Answer, None, object],
    show: Callable[[str | Answer], None],
    *,
    stats: bool,
    keep: Callable[[Answer], None] | None = None,
    plain: bool = False,
    streams: bool = True,
) -> None:
    """Show the answer while it comes. Ctrl-C during the showing is the engine's too: it then closes the answer.

    So does an output that takes no more (its reader or its terminal went away): nothing more is shown, and the error
    goes on its way. `keep` gets the answer in every case, as far as it came. `plain`: for a screen reader.
    `streams`: pieces of text are shown; else the wait lasts until the answer is whole.
    """
    interruption: KeyboardInterrupt | None = None  # to be thrown into the events
    stopped: KeyboardInterrupt | None = None
    failure: ZephyraError | OSError | None = None
    with Waiting("reading the prompt" if streams else "answering", silent=plain) as waiting:
        while True:
            try:
                event = next(events, None) if interruption is None else events.throw(interruption)
                if streams or not isinstance(event, str):
                    waiting.end()
                interruption = None
                if event is None:
                    break
                try:
                    if failure is None:
                        show(event)
                        if stats and not isinstance(event, str):
                            show_figures(event)
                except (ZephyraError, OSError) as caught:
                    failure = caught
                    interruption = _Unheard() if isinstance(event, str) and not stopped else None
                if keep is not None and not isinstance(event, str):
                    keep(event)
            except _Unheard:
                break
            except KeyboardInterrupt as caught:
                if inspect.getgeneratorstate(events) == inspect.GEN_CLOSED:  # it has been there already
                    raise
                interruption = stopped = caught
    if (reason := stopped or failure) is not None:
        raise reason


class _Unheard(KeyboardInterrupt):
    """Nobody sees the answer: it ends as if by Ctrl-C."""


def show_text(event: str | Answer) -> None:
    """The answer as plain text, ended by a line end."""
    if isinstance(event, str):
        ui.write(event)
    elif event.text and not event.text.endswith("\n"):
        ui.write("\n")


def show_figures(answer: Answer) -> None:
    """One line on standard error: who answered and why, and what each step cost."""
    ui.note(figures(answer))


def figures(answer: Answer) -> str:
    usage, route = answer.usage, answer.route
    who = ",".join(f"{name}={weight:g}" for name, weight in answer.weights.items()) or "base"
    who = who.removesuffix("=1") if len(answer.weights) == 1 else who
    parts = [who] if route is None else [f"router {route.router_ms:.1f} ms", f"{who} ({_share(route)})"]
    parts += [
        f"load {answer.load_ms:.0f} ms",
        f"switch {answer.switch_ms:.1f} ms",
        f"{usage.prompt_tokens - usage.cached_tokens} of {usage.prompt_tokens} prompt tokens read",
        f"first token {usage.first_token_ms:.1f} ms",
        f"{usage.completion_tokens} tokens, {usage.decode_tokens_per_second:.0f} tokens/s",
    ]
    if usage.drafted:
        share = usage.accepted / usage.drafted
        parts.append(f"{usage.accepted} of {usage.drafted} drafted tokens accepted ({share:.0%})")
    elif answer.draft_note:
        parts.append("no draft")
    return " · ".join([*parts, answer.finish_reason])


def _share(route: Route) -> str:
    """What the router gave to whom it chose, in per cent."""
    return f"{100 * route.probabilities.get(route.domain, 0.0):.0f} %"
