"""`python -m zephyra_fusion.train STAGE RECIPE [--set key=value …] [--resume]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from zephyra_fusion.train import device, stages
from zephyra_fusion.train.loop import Progress


def show(progress: Progress) -> None:
    if progress.note or progress.step % 10 == 0:
        print(
            f"{progress.stage} {progress.step}/{progress.steps} loss {progress.loss:.4f} "
            f"{progress.tokens_per_second:.0f} tokens/s {progress.note}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    device.reuse_memory()
    print(stages.run(options.stage, options.recipe, options.overrides, resume=options.resume, report=show))


main()
