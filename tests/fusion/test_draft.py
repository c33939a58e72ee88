"""Drafts and their length, by the clock of a made-up machine."""

from __future__ import annotations

import random
from random import Random

import pytest

from zephyra_fusion.draft import LONGEST_DRAFT, DraftLength, NgramDraft


def test_an_ngram_draft_goes_on_as_the_text_did() -> None:
    draft = NgramDraft()
    text = [1, 2, 3, 4, 5, 6, 9, 1, 2, 3]
    draft.begin(text)
    assert list(draft.propose(text, 3)) == [4, 5, 6]
    assert list(draft.propose([*text, 7], 3)) == []
    assert list(draft.propose([*text, 7, 1, 2, 3], 2)) == [7, 1], "the latest occurrence counts"
    draft.begin([5, 6, 7])
    assert list(draft.propose([5, 6, 7, 1, 2, 3], 3)) == [], "another text has begun"


def test_an_ngram_draft_repeats_what_repeats() -> None:
    draft = NgramDraft()
    text = [8, 1, 2, 1, 2, 1, 2]
    draft.begin(text)
    assert list(draft.propose(text, 7)) == [1, 2, 1, 2, 1, 2, 1]


@pytest.mark.parametrize("text", [[], [1], [1, 2], [1, 2, 3]])
def test_an_ngram_draft_of_little_text_is_silent(text: list[int]) -> None:
    draft = NgramDraft()
    draft.begin(text)
    assert list(draft.propose(text, 4)) == []
    assert list(draft.propose([*text, 1, 2, 3, 9], 0)) == []


def run(length: DraftLength, tokens: int, acceptance: float, cost: dict[int, float], drafting: float = 0.0) -> float:
    """Seconds for so many tokens on a machine whose step over n tokens takes cost[n]; a plain one takes 1."""
    dice, seconds, given = random.Random(7), 0.0, 0
    while given < tokens:
        drafted = length.next()
        accepted = 0
        while accepted < drafted and dice.random() < acceptance:
            accepted += 1
        length.observe(drafted, accepted, cost[drafted + 1], drafting * drafted)
        seconds += cost[drafted + 1] + drafting * drafted
        given += accepted + 1
    return seconds


LARGE = {n: 1 + 0.27 * (n - 1) for n in range(1, LONGEST_DRAFT + 2)}  # 500 M parameters (LLAMACPP.md, section 6)
SMALL = {n: 1 + 0.65 * (n - 1) for n in range(1, LONGEST_DRAFT + 2)}  # 100 M


def test_a_draft_that_is_right_pays() -> None:
    assert run(DraftLength(), 400, 0.95, LARGE) < 400 / 1.9
    assert run(DraftLength(), 400, 0.8, LARGE, drafting=0.1) < 400 / 1.15


@pytest.mark.parametrize(("acceptance", "cost"), [(0.0, LARGE), (0.3, LARGE), (0.0, SMALL), (0.6, SMALL)])
def test_a_draft_that_does_not_pay_costs_next_to_nothing(acceptance: float, cost: dict[int, float]) -> None:
    length = DraftLength()
    assert run(length, 300, acceptance, cost) < 300 / 0.97
    assert length.paused or acceptance > 0.5


def test_it_is_tried_again_when_the_text_changes() -> None:
    length = DraftLength()
    run(length, 200, 0.0, LARGE)
    assert length.paused
    assert run(length, 600, 0.97, LARGE) < 600 / 1.5


def test_the_length_follows_the_acceptance() -> None:
    long, short = DraftLength(), DraftLength()
    run(long, 400, 0.97, LARGE)
    run(short, 400, 0.55, {n: 1 + 0.1 * (n - 1) for n in LARGE})
    assert long.next() > short.next() > 0


def test_a_processor_that_gains_by_many_tokens_only() -> None:
    """Zen 3, one thread, 500 M weights in Q8_0 (docs/LOG.md): 4 at once cost 3.2, 16 cost 7.5."""
    known = {1: 1.0, 2: 2.6, 4: 3.1, 8: 4.5, 16: 7.4}
    cost = {n: min(known[m] for m in known if m >= n) for n in LARGE}
    assert run(DraftLength(), 400, 1.0, cost) < 400 / 1.6
    assert run(DraftLength(), 400, 0.2, cost) < 400 / 0.97


def test_one_slow_step_does_not_end_it() -> None:
    length = DraftLength()
    run(length, 200, 0.95, LARGE)
    drafted = length.next()
    length.observe(drafted, drafted, 10 * LARGE[drafted + 1])
    assert length.next() > 0


def test_one_disturbed_step_does_not_decide_for_ever() -> None:
    """The first plain step takes twice its time: a draft that does not pay must not seem to pay from then on."""
    length, cost, spent, tokens = DraftLength(), {1: 1.0, 2: 1.7, 4: 2.6, 8: 5.0, 16: 7.0}, 0.0, 0
    dice = Random(1)
    for step in range(4000):
        count = length.next()
        right = 0
        while right < count and dice.random() < 0.4:
            right += 1
        seconds = cost[min(n for n in cost if n > count)] * (2.0 if step == 0 else 1.0)
        length.observe(count, right, seconds, 0.1 * count)
        spent, tokens = spent + seconds + 0.1 * count, tokens + 1 + right
    assert tokens / spent > 0.97
