"""Rows of token ids: whole documents, shifted labels, an order that the seed fixes."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from zephyra_fusion.train.config import PhaseConfig
from zephyra_fusion.train.data import IGNORED, Mixture, TokenizedSource
from zephyra_fusion.train.loop import learning_rate


def source(lengths: list[int], response: int = 0) -> TokenizedSource:
    ends = np.cumsum(lengths)
    return TokenizedSource(
        np.arange(1, ends[-1] + 1, dtype=np.uint16), ends, np.full(len(lengths), response, dtype=np.int64)
    )


def test_labels_are_the_next_ids_and_documents_are_not_joined() -> None:
    inputs, labels = next(source([5, 4]).rows(12, 0, response_only=False, pad=0))
    for given, wanted in zip(inputs, labels, strict=True):
        assert wanted == (IGNORED if given == 0 else given + 1)
    assert 5 not in inputs and 9 not in inputs  # a document's last id is only ever a label


def test_prompts_do_not_count_with_response_only() -> None:
    inputs, labels = next(source([8], response=5).rows(7, 0, response_only=True, pad=0))
    assert list(labels) == [IGNORED] * 4 + [
        6,
        7,
        8,
    ]


def test_a_document_longer_than_a_row_is_cut_and_nothing_is_lost() -> None:
    rows = list(islice(source([100]).rows(40, 0, response_only=False, pad=0), 2))
    assert list(np.concatenate([r[0] for r in rows])) == list(range(1, 81))


def test_an_epoch_holds_every_document_once() -> None:
    rows = islice(source([9] * 20).rows(8, 3, response_only=False, pad=0), 40)
    firsts = [int(inputs[0]) for inputs, _ in rows]
    assert sorted(firsts[:20]) == sorted(firsts[20:]) == [1 + 9 * n for n in range(20)]
    assert firsts[:20] != firsts[20:]


def test_the_seed_fixes_the_batches_and_the_shares_hold() -> None:
    sources = {"a": source([9] * 50), "b": source([9] * 50)}

    def draw(seed: int) -> np.ndarray:
        return Mixture(sources, {"a": 3, "b": 1}, length=8, seed=seed, pad=0).batch(400)[0]

    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))
    only = Mixture(sources, {"a": 1.0, "b": 0.0}, length=8, seed=0, pad=0)
    assert only.batch(4)[0].shape == (4, 8)


@pytest.mark.parametrize("step, factor", [(0, 0.25), (3, 1.0), (9, 1.0), (10, 1.0), (15, 0.55), (20, 0.0)])
def test_warm_up_stable_decay(step: int, factor: float) -> None:
    phases = [
        PhaseConfig(steps=10, mixture={}, warmup_steps=4),
        PhaseConfig(steps=10, mixture={}, decay="linear", final_lr=0.1),
    ]
    assert learning_rate(phases, step) == pytest.approx(factor)
