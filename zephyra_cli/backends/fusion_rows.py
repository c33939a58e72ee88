"""Continuous batching in torch: rows with adapters of their own, a new sequence as soon as one has ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zephyra_cli.backends.protocol import Event
from zephyra_cli.backends.token_choice import TokenChoice
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import Token

Ready = tuple[int, Sequence[int], Mapping[str, float], TokenChoice, int]
"""Number of the job, prompt, weights, who chooses its tokens, how many at most."""


@dataclass
class _Row:
    index: int
    weights: Mapping[str, float]
    choice: TokenChoice
    left: int
    length: int
    token: int = -1


class FusionRows:
    def __init__(self, model: Any, most: int, stop_ids: Collection[int]) -> None:
        self._model, self._most, self._stop_ids = model, most, stop_ids

    def run(self, jobs: Sequence[Ready]) -> Generator[Event, bool | None, None]:
        """Every job's tokens as they come; sending True ends that job's answer."""
        from zephyra_fusion.rows import Rows

        rows = Rows(self._model, min(self._most, len(jobs)))
        waiting, running = deque(jobs), list[_Row]()  # running[n] is in row n
        while waiting or running:
            while waiting and len(running) < rows.count:
                index, prompt, weights, choice, left = waiting.popleft()
                row = _Row(index, weights, choice, left, len(prompt))
                self._switch([row])
                running.append(row)
                if (yield from self._give(row, rows.read(len(running) - 1, prompt))):
                    running.pop()
            if not running:
                continue
            self._switch(running)
            logits = rows.step([row.token for row in running], [row.length for row in running])
            over = []
            for number, row in enumerate(running):
                row.length += 1
                if (yield from self._give(row, logits[number])):
                    over.append(number)
            for number in reversed(over):
                if number != len(running) - 1:
                    rows.move(len(running) - 1, number)
                    running[number] = running[-1]
                running.pop()

    def _give(self, row: _Row, logits: Any) -> Generator[Event, bool | None, bool]:
        """The row's next token; whether its answer is over."""
        try:
            row.token = row.choice.choose(logits)
        except ZephyraError as error:
            yield row.index, error
            return True
        row.left -= 1
        reason = "stop" if row.token in self._stop_ids else "length" if row.left == 0 else None
        stopped = yield row.index, Token(row.token, reason)
        return bool(stopped) or reason is not None

    def _switch(self, rows: Sequence[_Row]) -> None:
        """Numbers where all rows have one mix, else a weight a row."""
        import torch

        from zephyra_fusion.lora import set_adapters

        if all(row.weights == rows[0].weights for row in rows):
            set_adapters(self._model, rows[0].weights)
            return
        device = self._model.lm_head.weight.device
        names = sorted({name for row in rows for name in row.weights})
        set_adapters(
            self._model,
            {name: torch.tensor([row.weights.get(name, 0.0) for row in rows], device=device) for name in names},
        )
