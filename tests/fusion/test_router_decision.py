from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.router import Router
from zephyra_fusion.train.router_data import truncate

ROUTER = Router(labels=("law", "code", "none"), temperature=2.0, threshold=0.6, max_tokens=8)


def test_the_best_domain_at_full_weight() -> None:
    route = ROUTER.decide([8.0, 0.0, 0.0], router_ms=1.5)
    assert (route.domain, route.weights, route.abstained, route.router_ms) == ("law", {"law": 1.0}, False, 1.5)
    expected = math.exp(4) / (math.exp(4) + 2)
    assert route.probabilities["law"] == pytest.approx(expected)


@pytest.mark.parametrize("logits", [[0.0, 0.0, 9.0], [1.0, 0.9, 0.8]])
def test_it_abstains_when_nothing_fits(logits: list[float]) -> None:
    route = ROUTER.decide(logits)
    assert (route.domain, route.weights, route.abstained) == ("none", {}, True)


def test_the_threshold_itself_is_enough() -> None:
    even = Router(labels=("law", "code"), threshold=0.5)
    assert even.decide([1.0, 1.0]).domain == "law"
    assert Router(labels=("law", "code"), threshold=0.51).decide([1.0, 1.0]).abstained


@given(st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3))
def test_probabilities_sum_to_one_for_any_logits(logits: list[float]) -> None:
    probabilities = ROUTER.probabilities(logits)
    assert sum(probabilities.values()) == pytest.approx(1.0)
    assert probabilities[ROUTER.labels[logits.index(max(logits))]] == max(probabilities.values())


@pytest.mark.parametrize("logits", [[1.0, 2.0], [1.0, 2.0, math.nan], [1.0, math.inf, 0.0]])
def test_logits_of_a_damaged_file_are_refused(logits: list[float]) -> None:
    with pytest.raises(ZephyraError, match="logits"):
        ROUTER.decide(logits)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": ()}, "labels"),
        ({"labels": ("a", "a")}, "each once"),
        ({"labels": ("a",), "temperature": 0.0}, "temperature is 0.0"),
        ({"labels": ("a",), "temperature": math.nan}, "temperature is nan"),
        ({"labels": ("a",), "threshold": 1.5}, "threshold is 1.5"),
        ({"labels": ("a",), "max_tokens": 1}, "max_tokens is 1"),
    ],
)
def test_an_impossible_router_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ZephyraError, match=message):
        Router(**values)


@given(st.lists(st.integers(0, 99), max_size=30), st.integers(2, 20))
def test_a_prompt_is_cut_as_in_training(ids: list[int], limit: int) -> None:
    window = Router(labels=("a",), max_tokens=limit).window(ids)
    assert window == truncate(ids, limit)
    assert len(window) == min(limit, len(ids))
