"""What one layer of the family is: widths, heads and the names of its parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.field_types import at_least_one, wrong_types


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """One layer's shape and parts. Parts are names resolved by registries (`layers/`), numbers are numbers.

    Every impossible combination is refused when the config is built, all at once, each with value and limit.
    """

    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    num_key_value_heads: int | None = None  # None: as many as query heads; 1: multi-query
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    value_head_dim: int | None = None  # None: head_dim (document 000 has separate d_k and d_v)
    max_position_embeddings: int = 2048

    position: str = "rope"  # registry of layers/position
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    xpos_scale_base: float = 512.0

    attention: str = "sdpa"  # registry of layers/scaled_dot_product
    attention_bias: bool = False  # q, k, v
    attention_out_bias: bool = False
    attention_scale: float | None = None  # None: head_dim ** -0.5
    attention_dropout: float = 0.0
    qk_norm: bool = False
    frequency_modes: int = 32  # of attention "frequency"

    norm: str = "rms"  # registry of layers/norm
    norm_placement: str = "pre"  # pre | post
    rms_norm_eps: float = 1e-6  # of every norm; Hugging Face's key
    dropout: float = 0.0

    feed_forward: str = "swiglu"  # registry of layers/feed_forward
    hidden_act: str = "silu"
    mlp_bias: bool = False

    num_experts: int = 0  # 0: dense
    num_experts_per_tok: int = 2
    moe_intermediate_size: int | None = None  # None: intermediate_size
    expert_feed_forward: str = "swiglu"  # registry of layers/feed_forward: what every expert is
    shared_expert_intermediate_size: int = 0  # 0: no shared expert
    norm_topk_prob: bool = True
    moe_capacity_factor: float | None = None  # None: no expert ever refuses a token
    router_aux_loss_coef: float = 0.001  # transformers' key; "router" here is its word for the gate

    def __post_init__(self) -> None:
        wrong = wrong_types(self)
        for part in fields(self):
            if part.name in wrong:  # a stand-in, so that everything else is looked at too
                self._set(part.name, 1 if part.default is MISSING else part.default)
        absent = {part.name for part in fields(self) if getattr(self, part.name) is None}
        complaints = [*self._fill(), *self._impossible()]
        if wrong:  # what speaks of a stand-in, or of what was derived from one, is left out
            unsure = {*wrong, *(name for name in absent if getattr(self, name) is not None)}
            complaints = [c for c in complaints if not unsure & set(c.replace(",", " ").split())]
        if complaints := [*wrong.values(), *complaints]:
            raise ZephyraError("impossible configuration: " + "; ".join(complaints))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _fill(self) -> Iterator[str]:
        """Put in what follows from the rest; yields what cannot be derived."""
        heads, hidden = self.num_attention_heads, self.hidden_size
        if self.num_key_value_heads is None:
            self._set("num_key_value_heads", heads)
        if self.head_dim is None and at_least_one(heads) and at_least_one(hidden):
            if hidden % heads:
                yield f"hidden_size is {hidden}, not a multiple of num_attention_heads {heads} (or give head_dim)"
            self._set("head_dim", max(hidden // heads, 1))
        if self.value_head_dim is None:
            self._set("value_head_dim", self.head_dim)
        if self.moe_intermediate_size is None:
            self._set("moe_intermediate_size", self.intermediate_size)

    def _impossible(self) -> Iterator[str]:
        for name in (
            "hidden_size num_attention_heads num_key_value_heads head_dim value_head_dim intermediate_size "
            "max_position_embeddings moe_intermediate_size frequency_modes"
        ).split():
            if not at_least_one(value := getattr(self, name)):
                yield f"{name} is {value}, must be a whole number of at least 1"
        for name in ("rms_norm_eps", "rope_theta", "xpos_scale_base", "attention_scale", "moe_capacity_factor"):
            if (value := getattr(self, name)) is not None and not value > 0:
                yield f"{name} is {value}, must be a number above 0"
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= (value := getattr(self, name)) < 1.0:
                yield f"{name} is {value}, must be from 0 to below 1"
        for name in ("router_aux_loss_coef", "shared_expert_intermediate_size", "num_experts"):
            if (value := getattr(self, name)) < 0:
                yield f"{name} is {value}, must not be negative"
        if self.norm_placement not in ("pre", "post"):
            yield f"norm_placement is '{self.norm_placement}', known: pre, post"
        yield from self._impossible_attention()
        yield from self._impossible_experts()

    def _impossible_attention(self) -> Iterator[str]:
        heads, kv_heads, head_dim = self.num_attention_heads, self.num_key_value_heads, self.head_dim
        if at_least_one(heads) and at_least_one(kv_heads) and heads % (kv_heads or 1):
            yield f"num_attention_heads is {heads}, not a multiple of num_key_value_heads {kv_heads}"
        rotary = self.position in ("rope", "xpos")
        if rotary and at_least_one(head_dim) and (head_dim or 0) % 2:
            yield f"head_dim is {head_dim}, rotary positions need an even number"
        if self.rope_scaling and not rotary:
            yield f"rope_scaling is given, but position is '{self.position}'"
        if self.attention == "frequency":
            if rotary:
                yield f"position is '{self.position}', attention 'frequency' has no query-key product to rotate"
            if self.value_head_dim != head_dim:
                yield f"value_head_dim is {self.value_head_dim}, attention 'frequency' needs head_dim {head_dim}"
            if self.attention_scale is not None:
                yield f"attention_scale is {self.attention_scale}, attention 'frequency' has no scores to scale"

    def _impossible_experts(self) -> Iterator[str]:
        experts, chosen = self.num_experts, self.num_experts_per_tok
        if experts > 0 and not 1 <= chosen <= experts:
            yield f"num_experts_per_tok is {chosen}, must be from 1 to num_experts {experts}"
        elif bool(experts) != (self.feed_forward == "moe"):
            yield f"num_experts is {experts}, but feed_forward is '{self.feed_forward}'"
        if self.expert_feed_forward == "moe":
            yield "expert_feed_forward is 'moe', an expert is no mixture itself"
        if not experts and (self.moe_capacity_factor is not None or self.shared_expert_intermediate_size):
            yield "moe_capacity_factor or shared_expert_intermediate_size is given, but num_experts is 0"
