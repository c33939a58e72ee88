"""benchmarks/forecast.py: it learns, its steps are the forecast of the whole, both plots are drawn."""

from __future__ import annotations

import sys
from pathlib import Path

import forecast
import pytest
import torch


def test_training_brings_the_forecast_nearer() -> None:
    torch.manual_seed(0)
    series, model = forecast.synthetic_series(), forecast.Forecaster()
    before = forecast.evaluate(model, series)[0]
    forecast.train(model.train(), series, 40, batch=16)
    after, history, future, predicted = forecast.evaluate(model, series)
    assert after["transformer"] < 0.8 * before["transformer"]
    assert {name: error for name, error in after.items() if name != "transformer"} == {
        name: error for name, error in before.items() if name != "transformer"
    }
    assert (len(history), len(future), len(predicted)) == (forecast.HISTORY, forecast.HORIZON, forecast.HORIZON)


def test_the_plot_in_text_marks_truth_and_forecast() -> None:
    history, future = torch.zeros(forecast.HISTORY), torch.ones(forecast.HORIZON)
    lines = forecast.text_plot(history, future, torch.cat((torch.ones(12), torch.full((12,), 2.0)))).splitlines()
    begin = 2 * forecast.PERIOD
    assert all(line[begin] == "|" for line in lines)
    assert lines[0].endswith("o" * 12) and lines[-1].startswith("." * begin)
    assert sum("@" * 12 in line for line in lines) == 1


def test_the_plot_as_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    series = [torch.linspace(0, 1, n) for n in (forecast.HISTORY, forecast.HORIZON, forecast.HORIZON)]
    assert forecast.png_plot(tmp_path / "plot.png", *series)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not forecast.png_plot(tmp_path / "none.png", *series)
    assert not (tmp_path / "none.png").exists()
