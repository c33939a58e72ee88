"""Speculative decoding, as far as it needs no model: what a draft is, the n-gram draft, and how many tokens pay.

The target samples at every drafted position in turn and a drafted token is kept while it is what the target sampled
("sample and match"). So the text is the target's own at any temperature, with any filters, grammars and adapters; a
draft decides the speed alone. Sources: Leviathan et al. 2023 (arXiv 2211.17192), prompt look-up (Saxena 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

LONGEST_DRAFT = 15
GRAM = 3  # tokens that must repeat before what followed them is taken for a guess


class Draft(Protocol):
    """Guesses at what comes next."""

    name: str
    """As `--draft` takes it."""

    def begin(self, prompt: Sequence[int]) -> None:
        """A new text; what it shares with the last one may be kept."""
        ...

    def follow(self, tokens: Sequence[int]) -> None:
        """Read what is new in `tokens`: the prompt, or what came while nothing was drafted."""
        ...

    def propose(self, tokens: Sequence[int], count: int) -> Sequence[int]:
        """At most `count` guesses at what follows `tokens`: the text of `begin` and what was added since."""
        ...

    def close(self) -> None:
        """Give all memory back. Allowed twice."""
        ...


class NgramDraft:
    """What followed the last three tokens when they stood together before. Costs next to nothing."""

    name = "ngram"

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # where the text went on after its last such n-gram
        self._indexed = GRAM

    def begin(self, prompt: Sequence[int]) -> None:
        self._after.clear()
        self._indexed = GRAM

    def follow(self, tokens: Sequence[int]) -> None:
        for at in range(self._indexed, len(tokens)):  # not the end: nothing followed it yet
            self._after[tuple(tokens[at - GRAM : at])] = at
        self._indexed = max(self._indexed, len(tokens))

    def propose(self, tokens: Sequence[int], count: int) -> Sequence[int]:
        self.follow(tokens)
        start = self._after.get(tuple(tokens[-GRAM:]))
        if start is None or count < 1:
            return ()
        guess = list(tokens[start : start + count])
        while len(guess) < count:  # the text repeats itself: so may the guess
            guess += guess[: count - len(guess)]
        return guess

    def close(self) -> None:
        self._after.clear()


FIRST_PAUSE, LONGEST_PAUSE = 128, 4096  # tokens without a draft after one that did not pay; each time twice as many
TRIALS = (1, 3, 7, 15)  # tokens of the drafts that find out whether it pays: each after one that was right altogether
CLEAR = 1.25  # times as fast, all guesses right: a trial that shows so much need not grow
SURE = 0.97  # acceptance from which on the next longer trial is worth its price
WORTH = 1.03  # a draft must promise this much more speed
_MEMORY = 0.95  # share of the past acceptance that is kept at each step
_PLAIN_FIRST, _PLAIN_AGAIN = 3, 48  # plain steps before the first draft; steps with a draft after which one is plain
_PRIOR = 0.8  # acceptance that a trial begins with, worth one guess


class DraftLength:
    """How many tokens to draft: as many as pay by the clock, 0 where none do.

    A step that verifies k drafted tokens at an acceptance of p gives 1 + p + … + p^k tokens. What it costs is
    measured for every length, drafting included, and compared with that of a plain step. Where nothing pays there is
    a pause, then a trial, then a pause twice as long. A trial begins with one token, for it may be wrong, and grows
    as long as it is right and does not clearly pay, for some processors gain by many tokens at once only; nearly
    certain guesses try the longer ones too. Lengths beyond twice the longest that was measured are not trusted. One
    object lives as long as model and draft do.
    """

    def __init__(self, longest: int = LONGEST_DRAFT) -> None:
        self.longest = longest
        self._seconds: dict[int, float] = {}  # of a step by the number of tokens it decodes
        self._drafting = 0.0  # seconds for a drafted token
        self._hits, self._tries = 1.0, 2.0
        self._plain = self._since_plain = 0  # steps without a draft; steps with one since the last of them
        self._pause, self._next_pause = 0, FIRST_PAUSE
        self._trial: int | None = 0  # which of TRIALS is next

    @property
    def acceptance(self) -> float:
        """Share of drafted positions that were accepted, the latest ones above all."""
        return self._hits / self._tries

    @property
    def paused(self) -> bool:
        return self._pause > 0

    def next(self) -> int:
        """Tokens to draft for the next step."""
        if self._pause:
            self._pause -= 1
            return 0
        if self._plain < _PLAIN_FIRST or self._since_plain >= _PLAIN_AGAIN:
            return 0  # what a plain step costs decides all, and one that was disturbed would for ever
        if self._trial is not None:
            return min(TRIALS[self._trial], self.longest)
        longest = max(self._seconds) - 1
        if self.acceptance >= SURE and (longer := [n for n in TRIALS if longest < n <= self.longest]):
            return longer[0]
        known = 2 * max(self._seconds) - 1
        best = max(range(1, min(self.longest, known) + 1), key=self._rate)
        if self._rate(best) > WORTH * self._rate(0):
            self._next_pause = FIRST_PAUSE
            return best
        self._pause, self._next_pause = self._next_pause, min(2 * self._next_pause, LONGEST_PAUSE)
        self._trial = 0
        return 0

    def observe(self, drafted: int, accepted: int, seconds: float, drafting_seconds: float = 0.0) -> None:
        """What a step did that verified `drafted` tokens: how many were right, and the seconds of both halves."""
        known = self._seconds.get(drafted + 1, seconds)
        # Falls fast and rises slowly: what disturbs a measurement makes it longer.
        self._seconds[drafted + 1] = known + (0.5 if seconds < known else 0.1) * (seconds - known)
        self._since_plain = self._since_plain + 1 if drafted else 0
        if not drafted:
            self._plain += 1
            return
        if self._trial == 0:
            self._hits, self._tries = _PRIOR, 1.0
        if self._trial is not None:
            pays = (drafted + 1) * self._seconds.get(1, 0.0) > CLEAR * (seconds + drafting_seconds)
            grows = accepted == drafted and not pays and self._trial + 1 < len(TRIALS)
            self._trial = self._trial + 1 if grows else None
        self._hits = _MEMORY * self._hits + accepted
        self._tries = _MEMORY * self._tries + accepted + (accepted < drafted)
        each = drafting_seconds / drafted
        self._drafting = each if not self._drafting else self._drafting + 0.2 * (each - self._drafting)

    def _rate(self, count: int) -> float:
        """Expected tokens a second with `count` drafted."""
        tokens, share = 1.0, 1.0
        for _ in range(count):
            share *= self.acceptance
            tokens += share
        return tokens / (self._cost(count + 1) + count * self._drafting)

    def _cost(self, size: int) -> float:
        """Seconds for a step over `size` tokens: measured, or on the line through the measured ones around it."""
        known = self._seconds
        if size in known:
            return known[size]
        below = max((n for n in known if n < size), default=1)
        above = min((n for n in known if n > size), default=0)
        if above:
            share = (size - below) / (above - below)
            return known[below] + share * (known[above] - known[below])
        slopes = [(known[below] - known[n]) / (below - n) for n in known if n < below]
        slope = min(slopes, default=0.3 * known[1])  # what is not known may be good: it is tried, and then known
        return known[below] + max(slope, 0.0) * (size - below)
