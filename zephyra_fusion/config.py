"""What a ZephyraFusion model is: one frozen config, Hugging Face's keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from zephyra_fusion.errors import ZephyraError, did_you_mean

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """The decoder's shape and parts. Parts are names resolved by registries (`layers/`), numbers are numbers.

    Every impossible combination is refused when the config is built, all at once, each with value and limit.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    num_key_value_heads: int | None = None  # None: as many as query heads; 1: multi-query
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    value_head_dim: int | None = None  # None: head_dim (document 000 has separate d_k and d_v)
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True

    position: str = "rope"  # registry of layers/position
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None

    attention: str = "sdpa"  # registry of layers/attention
    attention_bias: bool = False  # q, k, v
    attention_out_bias: bool = False
    attention_scale: float | None = None  # None: head_dim ** -0.5
    attention_dropout: float = 0.0
    qk_norm: bool = False
    sliding_window: int | None = None
    layer_types: tuple[str, ...] | None = None  # None: all full, or all sliding where a window is given

    norm: str = "rms"  # registry of layers/norm
    norm_placement: str = "pre"  # pre | post
    feed_forward: str = "swiglu"  # registry of layers/feed_forward
    hidden_act: str = "silu"
    mlp_bias: bool = False
    dropout: float = 0.0

    num_experts: int = 0  # 0: dense
    num_experts_per_tok: int = 2
    moe_intermediate_size: int | None = None  # None: intermediate_size
    norm_topk_prob: bool = True
    router_aux_loss_coef: float = 0.001  # transformers' key; "router" here is its word for the gate

    embedding_size: int | None = None  # None: hidden_size; else a projection joins the two (document 000's d_word_vec)
    cutoffs: tuple[int, ...] | None = None  # adaptive input embedding

    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        for name in ("layer_types", "cutoffs", "eos_token_id"):  # JSON has no tuples
            if isinstance(getattr(self, name), list):
                set_(self, name, tuple(getattr(self, name)))
        if self.num_key_value_heads is None:
            set_(self, "num_key_value_heads", self.num_attention_heads)
        if self.head_dim is None and self.num_attention_heads:
            set_(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.value_head_dim is None:
            set_(self, "value_head_dim", self.head_dim)
        if self.embedding_size is None:
            set_(self, "embedding_size", self.hidden_size)
        if self.moe_intermediate_size is None:
            set_(self, "moe_intermediate_size", self.intermediate_size)
        if self.layer_types is None:
            set_(self, "layer_types", (SLIDING if self.sliding_window else FULL,) * self.num_hidden_layers)
        if wrong := list(self._impossible()):
            raise ZephyraError("impossible configuration: " + "; ".join(wrong))

    def _impossible(self) -> Any:
        positive = (
            "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
            "value_head_dim intermediate_size max_position_embeddings embedding_size"
        )
        for name in positive.split():
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                yield f"{name} is {value}, must be a whole number of at least 1"
        heads, kv_heads, head_dim = self.num_attention_heads, self.num_key_value_heads or 1, self.head_dim or 0
        if heads > 0 and kv_heads > 0 and heads % kv_heads:
            yield f"num_attention_heads is {heads}, not a multiple of num_key_value_heads {kv_heads}"
        if self.position in ("rope", "xpos") and head_dim % 2:
            yield f"head_dim is {head_dim}, rotary positions need an even number"
        if self.sliding_window is not None and self.sliding_window < 1:
            yield f"sliding_window is {self.sliding_window}, must be at least 1 (or absent)"
        types = self.layer_types or ()
        if len(types) != self.num_hidden_layers:
            yield f"layer_types names {len(types)} layers, num_hidden_layers is {self.num_hidden_layers}"
        for unknown in sorted(set(types) - {FULL, SLIDING}):
            yield f"layer_types has '{unknown}', known: {FULL}, {SLIDING}"
        if SLIDING in types and self.sliding_window is None:
            yield f"layer_types has {SLIDING}, but sliding_window is not given"
        if self.norm_placement not in ("pre", "post"):
            yield f"norm_placement is '{self.norm_placement}', known: pre, post"
        if not self.rms_norm_eps > 0:
            yield f"rms_norm_eps is {self.rms_norm_eps}, must be above 0"
        if not self.rope_theta > 0:
            yield f"rope_theta is {self.rope_theta}, must be above 0"
        if self.num_experts < 0:
            yield f"num_experts is {self.num_experts}, must not be negative"
        if self.num_experts and not 1 <= self.num_experts_per_tok <= self.num_experts:
            yield f"num_experts_per_tok is {self.num_experts_per_tok}, must be from 1 to num_experts {self.num_experts}"
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                yield f"{name} is {getattr(self, name)}, must be from 0 to below 1"
        cutoffs = self.cutoffs or ()
        if list(cutoffs) != sorted(set(cutoffs)) or any(not 0 < c < self.vocab_size for c in cutoffs):
            yield f"cutoffs are {list(cutoffs)}, must rise and lie between 0 and vocab_size {self.vocab_size}"
        if cutoffs and self.tie_word_embeddings:
            yield "tie_word_embeddings is on, adaptive input (cutoffs) has no table to share with the output"

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FusionConfig:
        """The config from its own keys; unknown ones are errors (foreign dialects: `config_json`)."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ZephyraError(
                f"unknown configuration key{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}",
                hint=did_you_mean(unknown[0], known),
            )
        return cls(**values)
