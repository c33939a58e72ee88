"""`zephyra train`: a thin door to zephyra_fusion.train, the one command that needs PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from zephyra_fusion.train.loop import Progress as Step


def train(
    stage: Annotated[
        Literal["tokenizer", "base", "adapter", "router", "joint"],
        typer.Argument(metavar="tokenizer|base|adapter|router|joint", help="What to train."),
    ],
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="Data, shape and schedule.")],
    set: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe (repeatable).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
) -> None:
    """Train a part of a model from a recipe."""
    from importlib.util import find_spec

    from zephyra_cli import ui
    from zephyra_cli.progress import Progress
    from zephyra_fusion.errors import ZephyraError

    if find_spec("torch") is None:
        raise ZephyraError("training needs PyTorch, which is not installed", hint="pip install 'zephyra[torch]'")
    if not recipe.is_file():
        raise ZephyraError(f"there is no recipe '{recipe}'")
    from zephyra_fusion.train import device, stages

    device.reuse_memory()
    with Progress() as progress:

        def report(step: Step) -> None:
            figures = f"{step.stage}  loss {step.loss:.3f}  {step.tokens_per_second:.0f} tokens/s  {step.note}"
            progress(step.step, step.steps, figures.rstrip())

        folder = stages.run(stage, recipe, set or (), resume=resume, report=report)
    ui.write(f"{folder}\n")
