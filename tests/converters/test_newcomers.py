"""The closed form against the plain one: a ridge fitted without each example in turn, and the folded formula."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from zephyra_cli.detectors import Detector, Detectors
from zephyra_converters import checkpoint
from zephyra_converters.newcomers import Sample, learn, write_newcomers
from zephyra_fusion.errors import ZephyraError


def samples() -> list[Sample]:
    dice = random.Random(4)
    found = []
    for domain, low, high in (("a", 10, 60), ("b", 40, 110), ("none", 100, 200), ("new", 180, 240)):
        for number in range(30):
            tokens = tuple(dice.randrange(low, high) for _ in range(dice.randrange(3, 9)))
            shares = (0.7, 0.2, 0.1) if domain in ("a", "b") else (0.1, 0.2, 0.7)
            found.append(Sample(domain, tokens, shares, f"{domain}{number}"))
    return found


def test_the_files_formula_gives_the_learned_scores(tiny_gguf: Path, tmp_path: Path) -> None:
    given = samples()
    rarity, (learned,) = learn(tiny_gguf, ["new"], given)
    write_newcomers(tmp_path / "n.gguf", rarity, [learned])
    shares, logs = (dict(zip("abc", numbers, strict=True)) for numbers in (learned.shares, learned.logs))
    detector = Detector(name="new", shares=shares, logs=logs, bias=learned.bias, sharpness=learned.sharpness)
    detectors = Detectors(tmp_path / "n.gguf", [detector])
    fired = {
        sample.prompt
        for sample in given
        if detectors.odds(sample.tokens, dict(zip("abc", sample.shares, strict=True)))["new"] > 1.0
    }
    own = {sample.prompt for sample in given if sample.domain == "new"}
    assert len(fired & own) >= 27 and len(fired - own) <= 6
    assert learned.examples == 30 and learned.found >= 25


def test_leaving_out_is_exact(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the inverse says of an example is what a ridge says that never saw it."""
    random_ = np.random.default_rng(0)
    x, sides = random_.standard_normal((40, 7)), np.where(np.arange(40) < 15, 1.0, -1.0)
    weight, ridge = np.where(sides > 0, 2.0, 0.5), 0.3
    kernel = x @ x.T + 1.0
    inverse = np.linalg.inv(kernel + np.diag(ridge / weight))
    left_out = sides - (inverse @ sides) / np.diag(inverse)
    for n in (0, 20, 39):
        rest = np.arange(40) != n
        dual = np.linalg.solve(kernel[rest][:, rest] + np.diag(ridge / weight[rest]), sides[rest])
        assert left_out[n] == pytest.approx(kernel[n, rest] @ dual)


def test_large_tables_are_read_in_pieces(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = learn(tiny_gguf, ["new"], samples())[1][0].weights
    monkeypatch.setattr(checkpoint, "_BLOCK", 33 * 64)
    assert np.allclose(learn(tiny_gguf, ["new"], samples())[1][0].weights, whole, atol=1e-5)


def test_too_few_examples_are_refused(tiny_gguf: Path) -> None:
    few = [sample for sample in samples() if sample.domain != "new" or sample.prompt in ("new1", "new2")]
    with pytest.raises(ZephyraError, match="2 different examples of 'new' and 90 of all else"):
        learn(tiny_gguf, ["new"], few)


def test_damaged_weights_are_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    rarity, (learned,) = learn(tiny_gguf, ["new"], samples())
    detector = Detector(name="new", shares={}, logs={}, bias=0.0, sharpness=1.0)
    write_newcomers(tmp_path / "n.gguf", rarity, [learned])
    with pytest.raises(ZephyraError, match="weights of 2 newcomers"):
        Detectors(tmp_path / "n.gguf", [detector, detector])
    with pytest.raises(ZephyraError, match="does not hold"):
        Detectors(tiny_gguf, [detector])
    data = bytearray((tmp_path / "n.gguf").read_bytes())
    data[-8:] = b"\xff" * 8  # NaN
    (tmp_path / "n.gguf").write_bytes(data)
    with pytest.raises(ZephyraError, match="no numbers"):
        Detectors(tmp_path / "n.gguf", [detector])


def test_tokens_of_another_vocabulary_are_refused(tiny_gguf: Path) -> None:
    given = [*samples(), Sample("a", (5, 320), (0.7, 0.2, 0.1))]
    with pytest.raises(ZephyraError, match="token 320, the vocabulary of .* has 320"):
        learn(tiny_gguf, ["new"], given)
