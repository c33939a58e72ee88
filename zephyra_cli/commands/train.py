"""`zephyra train`: a thin door to zephyra_fusion.train, the one command that needs PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def train(
    stage: Annotated[
        Literal["tokenizer", "base", "adapter", "router"],
        typer.Argument(metavar="tokenizer|base|adapter|router", help="What to train."),
    ],
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="Data, shape and schedule.")],
    set: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe (repeatable).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
) -> None:
    """Train a part of a model from a recipe."""
    from importlib.util import find_spec

    from zephyra_fusion.errors import ZephyraError

    if stage != "tokenizer" and find_spec("torch") is None:
        raise ZephyraError("training needs PyTorch, which is not installed", hint='pip install "zephyra[torch]"')
    if not recipe.is_file():
        raise ZephyraError(f"there is no recipe '{recipe}'")
    for override in set or ():
        if "=" not in override:
            raise ZephyraError(f"--set '{override}' has no '='", hint="as in --set learning_rate=3e-4")
    from zephyra_cli.progress import Progress
    from zephyra_fusion.train import stages

    with Progress() as progress:
        stages.run(stage, recipe, list(set or ()), resume, progress)
