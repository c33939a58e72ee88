"""The training loop: batches in, steps with a schedule, checkpoints from which it goes on as if never interrupted."""

from __future__ import annotations

import math
import os
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.train.config import PhaseConfig
from zephyra_fusion.train.device import autocast
from zephyra_fusion.train.log import MetricsLog


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a progress display needs, once a step."""

    stage: str
    step: int
    steps: int
    loss: float
    tokens_per_second: float
    note: str = ""


Report = Callable[[Progress], None]
Batches = Callable[[], tuple[Tensor, Tensor]]  # inputs and labels, `[rows, length]`, on the CPU


def learning_rate(phases: Sequence[PhaseConfig], step: int) -> float:
    """The factor on the peak rate at `step` (0-based): warm-up, stable, decay (WSD, arXiv:2404.06395)."""
    level = 1.0
    for phase in phases:
        if step >= phase.steps:
            step -= phase.steps
            level = phase.final_lr if phase.decay != "none" else level
            continue
        if step < phase.warmup_steps:
            return level * (step + 1) / phase.warmup_steps
        if phase.decay == "none":
            return level
        done = (step - phase.warmup_steps) / max(1, phase.steps - phase.warmup_steps)
        shape = 1 - done if phase.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return phase.final_lr + (level - phase.final_lr) * shape
    return 0.0


class Pace(Protocol):
    """What every recipe says of its steps, beside what they learn."""

    @property
    def seed(self) -> int: ...
    @property
    def precision(self) -> str: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def eval_every(self) -> int: ...


class Loop:
    """Runs `phases` over a model; `loss(inputs, labels)` is the mean over the labels that count.

    resume: go on from the last checkpoint, where there is one.
    """

    def __init__(
        self,
        stage: str,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        device: torch.device,
        folder: Path,
        recipe: Pace,
        max_grad_norm: float = 1.0,
        evaluate: Callable[[], Mapping[str, float]] | None = None,
        report: Report | None = None,
        resume: bool = False,
    ) -> None:
        self.stage, self.model, self.loss, self.optimizers = stage, model, loss, list(optimizers)
        self.device, self.precision, self.folder = device, recipe.precision, folder
        self.seed = recipe.seed
        self.checkpoint_every, self.eval_every = recipe.checkpoint_every, recipe.eval_every
        self.max_grad_norm = max_grad_norm
        self.evaluate, self.report = evaluate, report
        self.step = 0
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if resume:
            self.resume()

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.stage}.resume.pt"

    def resume(self) -> bool:
        """Restore the last checkpoint; False where there is none."""
        if not self.checkpoint.exists():
            return False
        try:
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            trainable = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
            if set(trainable) != set(state["model"]):
                raise ZephyraError(f"{self.checkpoint} belongs to another model", hint="start without --resume")
            if (seed := state.get("seed", self.seed)) != self.seed:  # the rows would come in another order
                raise ZephyraError(
                    f"{self.checkpoint} was begun with seed {seed}, the recipe has {self.seed}",
                    hint=f"--set seed={seed}, or start without --resume",
                )
            for name, parameter in trainable.items():
                if (found := tuple(state["model"][name].shape)) != (shape := tuple(parameter.shape)):
                    raise ZephyraError(
                        f"{self.checkpoint} belongs to a model of another shape: {name} is {found}, not {shape}",
                        hint="start without --resume",
                    )
            with torch.no_grad():
                for name, parameter in trainable.items():
                    parameter.copy_(state["model"][name])
            for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(values)
        except (RuntimeError, KeyError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
            cause = str(error).splitlines()[0]
            raise ZephyraError(
                f"cannot resume from {self.checkpoint}: {cause}", hint="start without --resume"
            ) from None
        self.step = int(state["step"])
        return True

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        state: dict[str, Any] = {
            "step": self.step,
            "seed": self.seed,
            "model": {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad},
            "optimizers": [o.state_dict() for o in self.optimizers],
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)

    def run(self, phases: Sequence[PhaseConfig], batches: Sequence[Batches]) -> None:
        """Train to the end of the last phase; steps already done are drawn but not computed."""
        log = MetricsLog(self.folder / f"{self.stage}.metrics.jsonl", resume_step=self.step)
        steps = sum(phase.steps for phase in phases)
        done, resumed, started = 0, self.step, time.monotonic()
        self.model.train()
        for phase, draw in zip(phases, batches, strict=True):
            for _ in range(phase.steps):
                micro = [draw() for _ in range(phase.accumulation)]
                done += 1
                if done <= resumed:
                    continue
                begun = time.monotonic()
                loss, norm = self._step(micro, learning_rate(phases, done - 1))
                self.step = done
                if not math.isfinite(loss):
                    raise ZephyraError(
                        f"the loss is {loss} at step {done}", hint="lower the learning rate and --resume"
                    )
                tokens = sum(inputs.numel() for inputs, _ in micro)
                rate = tokens / (time.monotonic() - begun)
                values: dict[str, Any] = {"step": done, "loss": loss, "grad_norm": norm, "tokens_per_second": rate}
                values["lr_factor"] = learning_rate(phases, done - 1)
                values["seconds"] = time.monotonic() - started
                note = ""
                if self.evaluate is not None and (done % self.eval_every == 0 or done == steps):
                    self.model.eval()
                    with torch.no_grad():
                        measured = dict(self.evaluate())
                    self.model.train()
                    values.update(measured)
                    note = " ".join(f"{k} {v:.3f}" for k, v in measured.items())
                log.write(**values)
                if done % self.checkpoint_every == 0 or done == steps:
                    self.save()
                if self.report is not None:
                    self.report(
                        Progress(stage=self.stage, step=done, steps=steps, loss=loss, tokens_per_second=rate, note=note)
                    )
        self.model.eval()

    def _step(self, micro: Sequence[tuple[Tensor, Tensor]], factor: float) -> tuple[float, float]:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for inputs, labels in micro:
            with autocast(self.device, self.precision):
                loss = self.loss(inputs.to(self.device), labels.to(self.device)) / len(micro)
            loss.backward()
            total += float(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        return total, float(norm)
