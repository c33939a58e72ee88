"""ZephyraFusion: the decoder-only language model of the family."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zephyra_fusion.config import SLIDING, FusionConfig
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.layers.block import DecoderLayer
from zephyra_fusion.layers.cache import KVCache, causal_mask
from zephyra_fusion.layers.norm import NORMS
from zephyra_fusion.layers.position import RotaryEmbedding


class FusionDecoder(nn.Module):
    """Embedding, layers and final norm: token ids to hidden states (Hugging Face's `model.` prefix)."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = NORMS[config.norm](config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config)


class ZephyraFusion(nn.Module):
    """Token ids `[B, T]` to next-token logits `[B, T, vocab_size]`; causal.

    Positions start at 0 and no position means padding: padding is `attention_mask` (`[B, T]`, True = keep).
    With a `cache`, the ids continue what the cache holds.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.config = config
        self.model = FusionDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.apply(self._initialize)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def rebuild_buffers(self) -> None:
        """Compute again what is no weight, after the weights came to a model made on the meta device."""
        self.model.rotary = RotaryEmbedding(self.config)

    def new_cache(self) -> KVCache:
        return KVCache(self.config)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        hidden = self.hidden_states(input_ids, positions, attention_mask=attention_mask, cache=cache)
        return self.lm_head(hidden)

    def hidden_states(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """What the head reads, `[B, T, hidden]`."""
        batch, length = self._check_ids(input_ids)
        start = cache.offset if cache is not None else 0
        if cache is not None:
            cache.check(length)
        elif length > self.config.max_position_embeddings:
            raise ZephyraError(f"{length} tokens exceed the context of {self.config.max_position_embeddings}")
        if positions is None:
            positions = torch.arange(start, start + length, device=input_ids.device).expand(batch, length)
        keys = start + length
        if attention_mask is not None and attention_mask.shape != (batch, keys):
            raise ZephyraError(
                f"attention_mask is {list(attention_mask.shape)}, must be [batch, tokens] = {[batch, keys]}"
            )
        padding = None if attention_mask is None else attention_mask.bool()
        plain = start == 0 and padding is None  # the plain triangle: let the kernel make it
        masks = {}
        for window in set(self._windows):
            if plain and (window is None or window >= length):
                masks[window] = None
            else:
                masks[window] = causal_mask(length, keys, window=window, device=input_ids.device, padding=padding)
        x = self.model.embed_tokens(input_ids)
        angles = self.model.rotary(positions)
        angles = (angles[0].to(x.dtype), angles[1].to(x.dtype))
        for index, (layer, window) in enumerate(zip(self.model.layers, self._windows, strict=True)):
            mask = masks[window]
            causal = mask is None and length > 1
            x = layer(x, angles, mask, causal, cache.layers[index] if cache is not None else None)
        return self.model.norm(x)

    @property
    def _windows(self) -> list[int | None]:
        types = self.config.layer_types or ()
        return [self.config.sliding_window if kind == SLIDING else None for kind in types]

    def _check_ids(self, input_ids: Tensor) -> tuple[int, int]:
        if input_ids.dim() != 2 or input_ids.numel() == 0:
            raise ZephyraError(f"token ids are {list(input_ids.shape)}, must be [batch, tokens] and not empty")
        # Only on the CPU: on an accelerator the check would wait for the device at every token.
        if input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = int(input_ids.min()), int(input_ids.max())
            if low < 0 or high >= self.config.vocab_size:
                wrong = low if low < 0 else high
                raise ZephyraError(f"token id {wrong} is out of range, the vocabulary has {self.config.vocab_size}")
        return input_ids.shape[0], input_ids.shape[1]
