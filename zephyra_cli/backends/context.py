"""What a draft and the loop of an answer ask of a conversation in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Context(Protocol):
    """One conversation under one mix: the tokens that were read, and a cache that holds exactly those.

    What an interruption has left behind them goes with the next `rewind`.
    """

    tokens: list[int]
    most_guesses: int

    def rewind(self, prompt: Sequence[int]) -> int:
        """Forget what `prompt` does not begin with; how many of its tokens are left, never all of them."""
        ...

    def read(self, prompt: Sequence[int]) -> None:
        """Append what of `prompt` is not there yet; `rewind` comes first."""
        ...

    def decode(self, tokens: Sequence[int], guesses: Sequence[int] = ()) -> None:
        """Append tokens. With guesses, behind one token, logits come after each, and `keep` makes them tokens."""
        ...

    def keep(self, token: int) -> None:
        """The next guess was right: it is a token now."""
        ...

    def drop_guesses(self) -> None:
        """What was not kept leaves the cache."""
        ...
