"""An answer followed while it comes: what every way of showing it has in common."""

from __future__ import annotations

from collections.abc import Callable, Generator

from zephyra_cli import ui
from zephyra_cli.engine import Answer
from zephyra_fusion.errors import ZephyraError


def follow(
    events: Generator[str | Answer, None, object],
    show: Callable[[str | Answer], None],
    *,
    stats: bool,
    keep: Callable[[Answer], None] | None = None,
) -> None:
    """Show the answer while it comes. Ctrl-C during the showing is the engine's too: it then closes the answer.

    So does an output that takes no more (its reader or its terminal went away): nothing more is shown, and the error
    goes on its way. `keep` gets the answer in every case, as far as it came.
    """
    interruption: KeyboardInterrupt | None = None
    failure: ZephyraError | OSError | None = None
    try:
        while (event := next(events, None) if interruption is None else events.throw(interruption)) is not None:
            interruption = None
            try:
                if failure is None:
                    show(event)
                    if stats and not isinstance(event, str):
                        show_figures(event)
            except KeyboardInterrupt as caught:
                interruption = caught
            except (ZephyraError, OSError) as caught:
                failure, interruption = caught, KeyboardInterrupt()
            if keep is not None and not isinstance(event, str):
                keep(event)
    except KeyboardInterrupt:
        if failure is None:
            raise
    if failure is not None:
        raise failure


def show_text(event: str | Answer) -> None:
    """The answer as plain text, ended by a line end."""
    if isinstance(event, str):
        ui.write(event)
    elif event.text and not event.text.endswith("\n"):
        ui.write("\n")


def show_figures(answer: Answer) -> None:
    """One line on standard error: who answered, what it cost."""
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
