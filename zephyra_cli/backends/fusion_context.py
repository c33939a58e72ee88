"""One conversation in torch under one mix of adapters: the tokens that were read, and the cache of their keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zephyra_cli.backends.kv import common_prefix
from zephyra_fusion.draft import LONGEST_DRAFT


class FusionContext:
    """As `kv.Context` is for llama.cpp. The adapters are the model's: whoever decodes has switched them on.

    static: fixed shapes and a captured step, for CUDA. What an interruption left behind goes with the next `rewind`.
    """

    n_batch = 512
    most_guesses = LONGEST_DRAFT

    def __init__(self, model: Any, limit: int, *, static: bool) -> None:
        from zephyra_fusion.static_step import static_cache

        self._model, self.static = model, static
        self.tokens: list[int] = []
        self.cache: Any = static_cache(model, limit) if static else model.new_cache()
        self.logits: Any = None
        """After the last token decoded, or after each of a token and its guesses: `[rows, vocabulary]`."""

    def shared(self, prompt: Sequence[int]) -> int:
        """Tokens of `prompt` that need not be read; never all of it, because the last one's logits are wanted."""
        keep = min(common_prefix(self.tokens, prompt), len(prompt) - 1)
        return keep if keep >= self.cache.earliest else 0

    def rewind(self, prompt: Sequence[int]) -> int:
        """Forget what `prompt` does not begin with; how many of its tokens are left."""
        keep = self.shared(prompt)
        self.cache.trim(keep)
        del self.tokens[keep:]
        return keep

    def read(self, prompt: Sequence[int]) -> None:
        """Append what of `prompt` is not there yet; `rewind` comes first."""
        for at in range(len(self.tokens), len(prompt), self.n_batch):
            self.decode(prompt[at : at + self.n_batch])

    def decode(self, tokens: Sequence[int], guesses: Sequence[int] = ()) -> None:
        """Append tokens; with guesses, behind one token, logits come after each, and `keep` makes them tokens."""
        import torch

        from zephyra_fusion.generate import decode_one_token

        with torch.inference_mode():
            if len(tokens) == 1 and not guesses:
                self.logits = decode_one_token(self._model, tokens[0], self.cache)[None]
            else:
                ids = torch.tensor([[*tokens, *guesses]], device=self._model.lm_head.weight.device)
                hidden = self._model.hidden_states(ids, cache=self.cache)[0]
                self.logits = self._model.lm_head(hidden if guesses else hidden[-1:])
        self.tokens.extend(tokens)

    def keep(self, token: int) -> None:
        """The next guess was right: it is a token now."""
        self.tokens.append(token)

    def drop_guesses(self) -> None:
        """What was not kept leaves the cache."""
        self.cache.trim(len(self.tokens))
