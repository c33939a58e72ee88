"""What a ZephyraFusion model is: one frozen config, Hugging Face's keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.field_types import at_least_one, said_as
from zephyra_fusion.layer_config import LayerConfig

FULL, SLIDING = "full_attention", "sliding_attention"
MOST_LAYERS = 10_000
DOCUMENTED = {  # our keys: document 000's names
    "vocab_size": "n_src_vocab",
    "embedding_size": "d_word_vec",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_head",
    "head_dim": "d_k",
    "value_head_dim": "d_v",
    "hidden_size": "d_model",
    "intermediate_size": "d_inner",
    "max_position_embeddings": "n_position",
}


@dataclass(frozen=True, kw_only=True)
class FusionConfig(LayerConfig):
    """The decoder: what every layer is (`LayerConfig`), how many there are, and what stands before and after them."""

    vocab_size: int
    num_hidden_layers: int
    tie_word_embeddings: bool = True
    sliding_window: int | None = None
    layer_types: tuple[str, ...] | None = None  # None: all full, or all sliding where a window is given
    final_norm: bool = True

    embedding_size: int | None = None  # None: hidden_size; else a projection joins the two (document 000's d_word_vec)
    cutoffs: tuple[int, ...] | None = None  # adaptive input embedding
    cutoff_factor: int = 4  # every further cluster of the adaptive input is this many times narrower

    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    mask_padding: bool = False  # hide pad_token_id from attention where no attention_mask is given

    @classmethod
    def documented(
        cls,
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
    ) -> FusionConfig:
        """Document 000's arguments: post-norm, LayerNorm, ReLU, sinusoidal positions from 0, one K/V head a head.

        `cutoffs` chooses the adaptive input; `pad_token_id` hides that id from attention. Input and output
        share one table where both have it (`d_word_vec == d_model`, no cutoffs).
        """
        with said_as(DOCUMENTED):
            return cls(
                vocab_size=n_src_vocab,
                embedding_size=d_word_vec,
                num_hidden_layers=n_layers,
                num_attention_heads=n_head,
                head_dim=d_k,
                value_head_dim=d_v,
                hidden_size=d_model,
                intermediate_size=d_inner,
                dropout=dropout,
                attention_dropout=dropout,
                max_position_embeddings=n_position,
                cutoffs=cutoffs,
                pad_token_id=pad_token_id,
                mask_padding=pad_token_id is not None,
                tie_word_embeddings=d_word_vec == d_model and not cutoffs,
                position="sinusoidal",
                norm="layer",
                norm_placement="post",
                final_norm=False,
                rms_norm_eps=1e-5,
                feed_forward="mlp",
                hidden_act="relu",
                mlp_bias=True,
            )

    def _fill(self) -> Iterator[str]:
        yield from super()._fill()
        for name in ("layer_types", "cutoffs", "eos_token_id"):  # JSON has no tuples
            if isinstance(getattr(self, name), list):
                self._set(name, tuple(getattr(self, name)))
        if self.embedding_size is None:
            self._set("embedding_size", self.hidden_size)
        if self.layer_types is None and self.num_hidden_layers <= MOST_LAYERS:
            kind = FULL if self.sliding_window is None else SLIDING
            self._set("layer_types", (kind,) * self.num_hidden_layers)

    def _impossible(self) -> Iterator[str]:
        yield from super()._impossible()
        for name in ("vocab_size", "num_hidden_layers", "embedding_size", "cutoff_factor"):
            if not at_least_one(value := getattr(self, name)):
                yield f"{name} is {value}, must be a whole number of at least 1"
        if self.num_hidden_layers > MOST_LAYERS:
            yield f"num_hidden_layers is {self.num_hidden_layers}, must be at most {MOST_LAYERS}"
        if self.initializer_range < 0:
            yield f"initializer_range is {self.initializer_range}, must not be negative"
        if self.sliding_window is not None and self.sliding_window < 1:
            yield f"sliding_window is {self.sliding_window}, must be at least 1 (or absent)"
        types = self.layer_types or ()
        if len(types) != self.num_hidden_layers:
            yield f"layer_types names {len(types)} layers, num_hidden_layers is {self.num_hidden_layers}"
        for unknown in sorted(set(types) - {FULL, SLIDING}):
            yield f"layer_types has '{unknown}', known: {FULL}, {SLIDING}"
        if SLIDING in types and self.sliding_window is None:
            yield f"layer_types has {SLIDING}, but sliding_window is not given"
        if self.mask_padding and self.pad_token_id is None:
            yield "mask_padding is on, but pad_token_id is not given"
        if self.mask_padding and not 0 <= (self.pad_token_id or 0) < self.vocab_size:
            yield f"pad_token_id is {self.pad_token_id}, must be from 0 to below vocab_size {self.vocab_size}"
        width = self.embedding_size
        if self.tie_word_embeddings and width != self.hidden_size:
            yield f"tie_word_embeddings is on, but embedding_size {width} is not hidden_size {self.hidden_size}"
        yield from self._impossible_cutoffs()

    def _impossible_cutoffs(self) -> Iterator[str]:
        cutoffs = self.cutoffs or ()
        if list(cutoffs) != sorted(set(cutoffs)) or any(not 0 < c < self.vocab_size for c in cutoffs):
            yield f"cutoffs are {list(cutoffs)}, must rise and lie between 0 and vocab_size {self.vocab_size}"
        if cutoffs and self.tie_word_embeddings:
            yield "tie_word_embeddings is on, adaptive input (cutoffs) has no table to share with the output"
        if cutoffs and (self.embedding_size or 0) < (narrow := self.cutoff_factor ** len(cutoffs)):
            yield f"embedding_size is {self.embedding_size}, {len(cutoffs)} cutoffs need at least {narrow}"

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)

    def window(self, layer: int) -> int | None:
        """How many positions the layer sees, its own included; None: all."""
        return self.sliding_window if (self.layer_types or ())[layer] == SLIDING else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FusionConfig:
        """The config from its own keys; unknown and missing ones are errors (foreign dialects: `config_json`)."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in values]
        wrong = [f"unknown configuration key '{name}'" for name in unknown]
        wrong += [f"configuration key '{name}' is missing" for name in missing]
        if not missing:
            try:
                config = cls(**{name: value for name, value in values.items() if name in known})
            except ZephyraError as impossible:
                wrong.append(impossible.message)
        if wrong:
            raise ZephyraError("; ".join(wrong), hint=did_you_mean(unknown[0], known) if unknown else None)
        return config
