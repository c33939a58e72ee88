"""Does the configurable transformer (document 004) forecast? `python benchmarks/forecast.py [--steps 400] [--png FILE]`

Trains an encoder and a decoder for about a minute on a CPU on a synthetic series (two sines, a trend, noise), then
forecasts a part that it has not seen, step by step (`forward_one_step`), and prints its error beside those of the two
naive forecasts: the last value, and the value one period before. The plot is text, or a PNG where matplotlib is there.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from zephyra_fusion import TransformerDecoder, TransformerEncoder

PERIOD, HISTORY, HORIZON, LENGTH, SPLIT = 24, 72, 24, 1400, 1100


def synthetic_series(seed: int = 0) -> Tensor:
    """`[LENGTH]`: a daily and a slower sine, a trend, noise with a standard deviation of 0.1."""
    random = torch.Generator().manual_seed(seed)
    t = torch.arange(LENGTH).float()
    slow = 0.5 * torch.sin(2 * math.pi * t / (PERIOD * 3.5))
    return torch.sin(2 * math.pi * t / PERIOD) + slow + 0.002 * t + 0.1 * torch.randn(LENGTH, generator=random)


def windows(series: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """History `[B, HISTORY, 1]`, the steps to forecast `[B, HORIZON, 1]`, and the level `[B, 1, 1]` taken off both."""
    index = starts[:, None] + torch.arange(HISTORY + HORIZON)
    rows = series[index][..., None]
    level = rows[:, HISTORY - PERIOD : HISTORY].mean(dim=1, keepdim=True)
    return rows[:, :HISTORY] - level, rows[:, HISTORY:] - level, level


class Forecaster(torch.nn.Module):
    """Encoder over the history, decoder over the steps so far."""

    def __init__(self) -> None:
        super().__init__()
        shape = {"d_model": 32, "nhead": 4, "num_layers": 2, "dim_feedforward": 64, "dropout": 0.0, "max_seq_len": 128}
        self.encoder = TransformerEncoder(input_size=1, use_adaptive_ln="rms", att_type="flash", **shape)
        self.decoder = TransformerDecoder(input_size=1, output_size=1, use_adaptive_ln="rms", att_type="flash", **shape)

    def forward(self, history: Tensor, future: Tensor) -> Tensor:
        """Every step from the true ones before it, `[B, HORIZON, 1]`."""
        before = torch.cat((history[:, -1:], future[:, :-1]), dim=1)
        return before + self.decoder(before, self.encoder(history))

    @torch.no_grad()
    def forecast(self, history: Tensor) -> Tensor:
        """Every step from its own ones before it, with cached keys and values."""
        memory, step, state, steps = self.encoder(history), history[:, -1:], None, []
        for _ in range(HORIZON):
            change, state = self.decoder.forward_one_step(step, memory, state)
            step = step + change
            steps.append(step)
        return torch.cat(steps, dim=1)


def train(model: Forecaster, series: Tensor, steps: int, batch: int = 32) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        starts = torch.randint(0, SPLIT - HISTORY - HORIZON, (batch,))
        history, future, _ = windows(series, starts)
        # Noise on the steps so far: at forecast time they are its own, not true ones.
        loss = torch.nn.functional.mse_loss(model(history, future + 0.1 * torch.randn_like(future)), future)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def evaluate(model: Forecaster, series: Tensor) -> tuple[dict[str, float], Tensor, Tensor, Tensor]:
    """Mean absolute errors on the unseen part, and history, truth and forecast of one window."""
    starts = torch.arange(SPLIT, LENGTH - HISTORY - HORIZON, 7)
    history, future, level = windows(series, starts)
    predicted = model.eval().forecast(history)
    naive = {"last value": history[:, -1:].expand_as(future), "one period before": history[:, -PERIOD:]}
    errors = {name: float((guess - future).abs().mean()) for name, guess in naive.items()}
    errors["transformer"] = float((predicted - future).abs().mean())
    return errors, *((x[0] + level[0]).squeeze(-1) for x in (history, future, predicted))


def text_plot(history: Tensor, future: Tensor, predicted: Tensor, height: int = 14) -> str:
    """Truth as `.`, forecast as `o`, both in one place as `@`; the bar is where the forecast begins."""
    truth = torch.cat((history[-2 * PERIOD :], future))
    low = float(torch.minimum(truth.min(), predicted.min()))
    high = float(torch.maximum(truth.max(), predicted.max()))

    def row(value: float) -> int:
        return round((height - 1) * (high - value) / (high - low))

    grid = [[" "] * len(truth) for _ in range(height)]
    for column, value in enumerate(truth.tolist()):
        grid[row(value)][column] = "."
    begin = len(truth) - HORIZON
    for column, value in enumerate(predicted.tolist(), start=begin):
        place = grid[row(value)]
        place[column] = "@" if place[column] == "." else "o"
    return "\n".join("".join(line[:begin]) + "|" + "".join(line[begin:]) for line in grid)


def png_plot(path: Path, history: Tensor, future: Tensor, predicted: Tensor) -> bool:
    """False: matplotlib is not installed, and nothing was written."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    after = range(HISTORY, HISTORY + HORIZON)
    figure = Figure(figsize=(9, 3.5), layout="tight")
    axes = figure.subplots()
    axes.plot(range(HISTORY), history, color="gray", label="history")
    axes.plot(after, future, color="black", label="truth")
    axes.plot(after, predicted, color="tab:red", label="transformer")
    axes.plot(after, history[-PERIOD:], color="tab:blue", linestyle=":", label="one period before")
    axes.legend()
    figure.savefig(path, format="png", dpi=120)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--png", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    series, model = synthetic_series(), Forecaster()
    start = time.perf_counter()
    train(model, series, options.steps)
    seconds = time.perf_counter() - start
    errors, history, future, predicted = evaluate(model, series)
    print(text_plot(history, future, predicted))
    for name, error in errors.items():
        print(f"mean absolute error, {name:18} {error:.3f}")
    best = min(error for name, error in errors.items() if name != "transformer")
    print(f"transformer / best naive         {errors['transformer'] / best:.2f}")
    print(f"trained {options.steps} steps in {seconds:.0f} s, torch {torch.__version__}")
    if options.png and not png_plot(options.png, history, future, predicted):
        print(f"matplotlib is not installed: {options.png} was not written")


if __name__ == "__main__":
    main()
