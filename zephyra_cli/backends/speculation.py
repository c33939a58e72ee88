"""One answer's steps with a draft: what to decode, and which guesses stay."""

from __future__ import annotations

import time
from collections.abc import Sequence

from zephyra_cli.backends.context import Context
from zephyra_fusion.draft import Draft, DraftLength


class Speculation:
    """Decodes sampled tokens together with guesses at what follows them; see `zephyra_fusion.draft`.

    Whoever generates samples from row `row` of the last batch and hands the token to `advance`. Nothing is read from
    a guess but the time it saves: the cache holds a guess only while it is the token that was sampled.
    """

    def __init__(self, draft: Draft, length: DraftLength, context: Context, prompt: Sequence[int], last: int) -> None:
        """last: tokens that this generation may give at most."""
        self._draft, self._length, self._context = draft, length, context
        self._tokens = list(prompt)
        self._end = len(prompt) + last
        self._guesses: Sequence[int] = ()
        self._right = -1  # guesses of the last batch that were sampled; -1: there was no batch yet
        self._seconds = self._drafting = 0.0
        self.drafted = self.accepted = 0
        draft.begin(prompt)

    @property
    def note(self) -> str:
        """Why nothing is drafted now; empty while something is."""
        if self._length.paused:
            return f"paused: it does not pay at an acceptance of {self._length.acceptance:.2f}; tried again later"
        return ""

    def advance(self, token: int) -> int:
        """Make the logits after `token` available; the row they are in."""
        self._tokens.append(token)
        if 0 <= self._right < len(self._guesses):
            if self._guesses[self._right] == token:
                self._context.keep(token)
                self._right += 1
                self.accepted += 1
                return self._right
            self._context.drop_guesses()
        clock = time.perf_counter
        if self._right >= 0:
            self._length.observe(len(self._guesses), self._right, self._seconds, self._drafting)
        count = min(self._length.next(), self._end - len(self._tokens) - 1, self._context.most_guesses)
        if count > 0 and not self._guesses:
            self._draft.follow(self._tokens)  # not timed: it is no part of what a guess costs from now on
        start = clock()
        self._guesses = self._draft.propose(self._tokens, count) if count > 0 else ()
        drafted = clock()
        self._context.decode((token,), self._guesses)
        self._right, self._drafting, self._seconds = 0, drafted - start, clock() - drafted
        self.drafted += len(self._guesses)
        return 0
