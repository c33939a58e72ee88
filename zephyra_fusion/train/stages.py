"""The stages of training: each reads its recipe, trains, and leaves a folder that the next one takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.sources import read_records
from zephyra_fusion.train.config import TokenizerRecipe, read_recipe
from zephyra_fusion.train.loop import Report


def run(
    stage: str,
    recipe: Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    report: Report | None = None,
) -> Path:
    """Train `stage` by its recipe; returns the folder that was written."""
    from zephyra_fusion.train import adapter, base, joint, router

    stages: Mapping[str, Callable[[Any, bool, Report | None], Path]] = {
        "tokenizer": lambda recipe, resume, report: train_tokenizer_stage(recipe),
        "base": base.train_base,
        "adapter": adapter.train_adapters,
        "router": router.train_router,
        "joint": joint.train_joint,
    }
    if stage not in stages:
        raise ZephyraError(f"unknown training stage '{stage}'", hint=did_you_mean(stage, stages))
    return stages[stage](read_recipe(stage, recipe, overrides), resume, report)


def train_tokenizer_stage(recipe: TokenizerRecipe) -> Path:
    from zephyra_fusion.checkpoint import save_tokenizer
    from zephyra_fusion.tokenizer import train_tokenizer

    data, output = Path(recipe.data), Path(recipe.output)

    def texts() -> Any:
        for name, megabytes in recipe.sources.items():
            left = megabytes * 1e6
            for record in read_records(data, name):
                text = f"{record.prompt}\n{record.text}" if record.prompt else record.text
                left -= len(text.encode())
                if left < 0:
                    break
                yield text

    tokenizer = train_tokenizer(texts(), recipe.vocab_size)
    output.mkdir(parents=True, exist_ok=True)
    partial = output / "tokenizer.json.partial"
    tokenizer.save(str(partial))
    partial.rename(output / "tokenizer.json")
    save_tokenizer(output / "tokenizer.json", output)
    return output
