"""ZephyraFusion: the decoder-only language model of the family."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any, cast, overload

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zephyra_fusion.config import FusionConfig
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.layers.block import DecoderLayer
from zephyra_fusion.layers.cache import KVCache, causal_mask
from zephyra_fusion.layers.embedding import check_ids, token_embedding
from zephyra_fusion.layers.norm import NORMS
from zephyra_fusion.layers.position import POSITIONS
from zephyra_fusion.layers.static_cache import StaticCache

Masks = Mapping[int | None, Tensor | None]  # by window


def _documented(*arguments: Any, **named: Any) -> FusionConfig:
    try:
        signature(FusionConfig.documented).bind(*arguments, **named)
    except TypeError as error:
        known = list(signature(FusionConfig.documented).parameters)
        raise ZephyraError(f"ZephyraFusion: {error}", hint=f"a FusionConfig, or {', '.join(known)}") from None
    return FusionConfig.documented(*arguments, **named)


class FusionDecoder(nn.Module):
    """Embedding, layers and final norm: token ids to hidden states (Hugging Face's `model.` prefix)."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        hidden, width = config.hidden_size, config.embedding_size or config.hidden_size
        self.embed_tokens = token_embedding(config)
        self.embed_projection = nn.Identity() if width == hidden else nn.Linear(width, hidden, bias=False)
        self.position = POSITIONS[config.position](config)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = NORMS[config.norm](hidden, config.rms_norm_eps) if config.final_norm else nn.Identity()


class ZephyraFusion(nn.Module):
    """Token ids `[B, T]` to next-token logits `[B, T, vocab_size]`; causal.

    Built from a `FusionConfig`, or from document 000's arguments (`n_src_vocab, d_word_vec, n_layers, n_head, d_k,
    d_v, d_model, d_inner, dropout=0.1, n_position=200`, see `FusionConfig.documented`): the same class either way.
    Positions start at 0 and no position means padding: padding is `attention_mask` (`[B, T]`, True = keep), or
    `pad_token_id` with `mask_padding` in the config. With a `cache`, the ids continue what the cache holds, and the
    mask covers cached and new tokens.
    """

    @overload
    def __init__(self, config: FusionConfig, /) -> None: ...
    @overload
    def __init__(
        self,
        n_src_vocab: int,
        d_word_vec: int,
        n_layers: int,
        n_head: int,
        d_k: int,
        d_v: int,
        d_model: int,
        d_inner: int,
        dropout: float = 0.1,
        n_position: int = 200,
        cutoffs: tuple[int, ...] | None = None,
        pad_token_id: int | None = None,
    ) -> None: ...
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__()
        given = isinstance(arguments[0] if arguments else None, FusionConfig)
        if given and (named or len(arguments) > 1):
            raise TypeError("ZephyraFusion takes a FusionConfig alone, or the documented arguments")
        config: FusionConfig = arguments[0] if given else _documented(*arguments, **named)
        self.config = config
        self.gradient_checkpointing = False  # True: layers are computed again in the backward pass to save memory
        self.model = FusionDecoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.apply(self._initialize)
        if config.tie_word_embeddings:
            self.tie()

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def tie(self) -> None:
        """Make the head share the embedding's table."""
        self.lm_head.weight = cast(nn.Embedding, self.model.embed_tokens).weight

    def rebuild_buffers(self) -> None:
        """Compute again what is no weight, after the weights came to a model made on the meta device."""
        self.model.position.rebuild()

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
        """What the head reads, `[B, T, hidden]`.

        ZephyraError: ids or positions out of range, more tokens than the context holds, a mask of another shape.
        """
        start, length = cache.offset if cache is not None else 0, input_ids.shape[-1]
        self._check_ids(input_ids, cache)
        positions = self._positions(input_ids, positions, start)
        masks: Masks
        if isinstance(cache, StaticCache):
            if attention_mask is not None:
                raise ZephyraError("a static cache takes no attention_mask", hint="model.new_cache() makes another")
            masks = cache.masks(torch.arange(start, start + length, device=input_ids.device))
        else:
            masks = self._masks(input_ids, self._padding(input_ids, attention_mask, cache), start)
        hidden = self.run(input_ids, positions, masks, cache)
        if cache is not None:
            cache.advance(length)
        return hidden

    def run(self, input_ids: Tensor, positions: Tensor, masks: Masks, cache: KVCache | None) -> Tensor:
        """The tensors' part of `hidden_states`: nothing is checked, and no number of the cache is read or changed
        where it is static. `masks` by window, None: the plain triangle."""
        x = self.model.embed_projection(self.model.embed_tokens(input_ids))
        x = self.model.dropout(self.model.position.embed(x, positions))
        rotation = self.model.position.rotation(positions, x.dtype)
        for index, layer in enumerate(self.model.layers):
            mask = masks[self.config.window(index)]
            causal = mask is None and input_ids.shape[1] > 1
            if self.gradient_checkpointing and self.training and cache is None:
                x = checkpoint(layer, x, rotation, mask, causal, use_reentrant=False)
            else:
                x = layer(x, rotation, mask, causal, cache.layers[index] if cache is not None else None)
        return self.model.norm(x)

    def _check_ids(self, input_ids: Tensor, cache: KVCache | None) -> None:
        if input_ids.dim() != 2 or input_ids.numel() == 0:
            raise ZephyraError(f"token ids are {list(input_ids.shape)}, must be [batch, tokens] and not empty")
        if input_ids.is_floating_point():
            raise ZephyraError(f"token ids are {input_ids.dtype}, must be whole numbers")
        check_ids(input_ids, self.config.vocab_size)
        length, limit = input_ids.shape[1], self.config.max_position_embeddings
        if cache is not None:
            cache.check(length, input_ids.shape[0])
        elif length > limit:
            raise ZephyraError(f"{length} tokens exceed the context of {limit}")

    def _positions(self, input_ids: Tensor, positions: Tensor | None, start: int) -> Tensor:
        if positions is None:
            length = input_ids.shape[1]
            return torch.arange(start, start + length, device=input_ids.device).expand(input_ids.shape[0], length)
        if positions.is_floating_point():
            raise ZephyraError(f"positions are {positions.dtype}, must be whole numbers")
        if positions.shape != input_ids.shape:
            raise ZephyraError(f"positions are {list(positions.shape)}, must be as the ids: {list(input_ids.shape)}")
        if positions.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high, limit = int(positions.min()), int(positions.max()), self.config.max_position_embeddings
            if low < 0 or high >= limit:
                raise ZephyraError(f"position {low if low < 0 else high} is out of range, the context is {limit}")
        return positions

    def _padding(self, input_ids: Tensor, attention_mask: Tensor | None, cache: KVCache | None) -> Tensor | None:
        """`[B, cached + T]`, True = keep, or None where nothing is hidden."""
        pad = self.config.pad_token_id
        if attention_mask is None:
            if not self.config.mask_padding or pad is None:
                return None
            kept = input_ids.ne(pad)
            return kept if cache is None else cache.keep(kept)
        expected = [input_ids.shape[0], (cache.offset if cache is not None else 0) + input_ids.shape[1]]
        if list(attention_mask.shape) != expected:
            raise ZephyraError(
                f"attention_mask is {list(attention_mask.shape)}, must be [batch, cached and new tokens] = {expected}"
            )
        return attention_mask.bool()

    def _masks(self, input_ids: Tensor, padding: Tensor | None, start: int) -> Masks:
        """One mask for every kind of window among the layers; None: the plain triangle, which the kernel makes."""
        length = input_ids.shape[1]
        masks: dict[int | None, Tensor | None] = {}
        for window in {self.config.window(index) for index in range(self.config.num_hidden_layers)}:
            if start == 0 and padding is None and (window is None or window >= length):
                masks[window] = None
                continue
            keys = length + (start if window is None else min(start, window - 1))
            hidden = None if padding is None else padding[:, -keys:]
            masks[window] = causal_mask(length, keys, window=window, device=input_ids.device, padding=hidden)
        return masks
