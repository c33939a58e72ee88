"""Document 004: what its encoder and decoder have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.field_types import at_least_one, said_as
from zephyra_fusion.layer_config import LayerConfig
from zephyra_fusion.layers.block import BaseTransformerLayer
from zephyra_fusion.layers.feed_forward import ACTIVATIONS
from zephyra_fusion.layers.moe import MixtureOfExperts, load_balancing_loss
from zephyra_fusion.layers.norm import NORMS
from zephyra_fusion.layers.position import Position, SinusoidalPosition
from zephyra_fusion.layers.scaled_dot_product import ATTENTIONS

PLACEMENTS = {"pre_norm": "pre", "post_norm": "post"}
_NAMES = {  # our keys: the document's names
    "hidden_size": "d_model",
    "hidden_act": "activation",
    "num_attention_heads": "nhead",
    "intermediate_size": "dim_feedforward",
    "num_experts_per_tok": "top_k",
    "shared_expert_intermediate_size": "moe_shared_size",
    "frequency_modes": "freq_modes",
    "rms_norm_eps": "layer_norm_eps",
    "max_position_embeddings": "max_seq_len",
}


class SequenceTransformer(nn.Module):
    """A stack of layers over a continuous sequence `[B, T, input_size]`: projection, positions, layers, final norm.

    `att_type`: `standard`, `xformer` (chunks, memory linear in T), `flash` (fused kernels): the same numbers;
    `frequency` (`FrequencyAttention` with `freq_modes`). `use_adaptive_ln`: `layer`, `rms` or `adaptive`
    (`AdaptiveNorm`). `norm_strategy`: `pre_norm`, `post_norm`. `use_swiglu` gates the feed-forward layer, whose inner
    width is `dim_feedforward` either way; `activation` (`gelu`, `relu`, `swish`) is that of the gate, or of the
    plain layer; where it is not given, swish and gelu. `use_moe` makes `num_experts` of it, `top_k` a position, with
    a shared expert of `moe_shared_size`; an expert's capacity holds in training (`MixtureOfExperts`), and
    `aux_loss` is to be added to the loss. `share_layers` uses one layer `num_layers` times. `pos_encoder` is a
    `Position`, sinusoidal times `pos_encoding_scale` where it is not given; `max_seq_len` the longest sequence.
    """

    def __init__(
        self,
        layer: Callable[[LayerConfig], BaseTransformerLayer],
        input_size: int,
        d_model: int = 512,
        nhead: int = 8,
        num_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | None = None,
        att_type: str = "standard",
        layer_norm_eps: float = 1e-5,
        norm_strategy: str = "pre_norm",
        use_adaptive_ln: str = "layer",
        max_seq_len: int = 5000,
        pos_encoding_scale: float = 1.0,
        pos_encoder: Position | None = None,
        use_gradient_checkpointing: bool = False,
        share_layers: bool = False,
        use_final_norm: bool = True,
        use_swiglu: bool = True,
        freq_modes: int = 32,
        use_moe: bool = False,
        num_experts: int = 8,
        top_k: int = 2,
        moe_capacity_factor: float | None = 1.25,
        moe_shared_size: int = 0,
    ) -> None:
        super().__init__()
        wrong = [
            f"{name} is {value!r}, must be a whole number of at least 1"
            for name, value in (("input_size", input_size), ("num_layers", num_layers))
            if not at_least_one(value)
        ]
        given = {"att_type": att_type, "use_adaptive_ln": use_adaptive_ln, "activation": activation}
        given["norm_strategy"] = norm_strategy
        parts: dict[str, Iterable[str]] = {"att_type": ATTENTIONS, "use_adaptive_ln": NORMS, "activation": ACTIVATIONS}
        for option, known in {**parts, "norm_strategy": PLACEMENTS}.items():
            if (chosen := given[option]) is not None and not (isinstance(chosen, str) and chosen in known):
                wrong.append(f"unknown {option} {chosen!r:.60}, known: {', '.join(sorted(known))}")
        encoder: object = pos_encoder
        if encoder is not None and not isinstance(encoder, Position):
            wrong.append(f"pos_encoder is {pos_encoder!r:.60}, must be a Position")
        if pos_encoder is not None and pos_encoding_scale != 1.0:
            wrong.append(f"pos_encoding_scale is {pos_encoding_scale}, but pos_encoder has its own scale")
        kind = "swiglu" if use_swiglu else "mlp"
        experts: dict[str, Any] = {
            "feed_forward": "moe",
            "expert_feed_forward": kind,
            "num_experts": num_experts,
            "num_experts_per_tok": top_k,
            "moe_capacity_factor": moe_capacity_factor,
            "shared_expert_intermediate_size": moe_shared_size,
        }
        with said_as(_NAMES, beside=wrong):
            self.config = LayerConfig(
                hidden_size=d_model,
                num_attention_heads=nhead,
                intermediate_size=dim_feedforward,
                dropout=dropout,
                attention_dropout=dropout,
                hidden_act=activation or ("swish" if use_swiglu else "gelu"),
                attention=att_type,
                attention_out_bias=True,
                mlp_bias=True,
                frequency_modes=freq_modes,
                rms_norm_eps=layer_norm_eps,
                norm_placement=PLACEMENTS.get(str(norm_strategy), "pre"),
                norm=use_adaptive_ln,
                max_position_embeddings=max_seq_len,
                position="none",
                **(experts if use_moe else {"feed_forward": kind}),
            )
        self.input_size, self.num_layers = input_size, num_layers
        self.use_gradient_checkpointing = use_gradient_checkpointing
        self.input_projection = nn.Linear(input_size, d_model)
        self.position = pos_encoder or SinusoidalPosition(self.config, pos_encoding_scale)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(layer(self.config) for _ in range(1 if share_layers else num_layers))
        self.final_norm = NORMS[use_adaptive_ln](d_model, layer_norm_eps) if use_final_norm else nn.Identity()
        self.apply(_initialize)

    @property
    def depth(self) -> list[nn.Module]:
        """The layer of every depth; a shared one stands there more than once."""
        return [self.layers[index % len(self.layers)] for index in range(self.num_layers)]

    @property
    def aux_loss(self) -> Tensor:
        """Load-balancing loss of the last training pass (0 without experts); add a small multiple to the loss."""
        if not any(isinstance(m, MixtureOfExperts) for m in self.modules()):
            return torch.zeros((), device=self.input_projection.weight.device)
        return load_balancing_loss(self)

    def embed(self, x: Tensor, start: int = 0) -> Tensor:
        """`x [B, T, input_size]` at positions from `start` on, to `[B, T, d_model]`."""
        if x.dim() != 3 or x.shape[2] != self.input_size or x.shape[1] == 0:
            raise ZephyraError(f"the sequence is {list(x.shape)}, must be [batch, steps, {self.input_size}]")
        if not x.is_floating_point():
            raise ZephyraError(f"the sequence is {x.dtype}, must be floating-point numbers")
        end, limit = start + x.shape[1], self.config.max_position_embeddings
        if end > limit:
            raise ZephyraError(f"{end} steps exceed max_seq_len {limit}")
        positions = torch.arange(start, end, device=x.device).expand(x.shape[0], -1)
        return self.dropout(self.position.embed(self.input_projection(x), positions))

    def run(self, layer: nn.Module, *arguments: Any) -> Tensor:
        """One layer, computed again in the backward pass where checkpointing is on."""
        if self.use_gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(layer, *arguments, use_reentrant=False)
        return layer(*arguments)


def check_options(options: Mapping[str, Any]) -> None:
    """ZephyraError: one of them is none of `SequenceTransformer`."""
    known = [name for name in signature(SequenceTransformer.__init__).parameters if name not in ("self", "layer")]
    if unknown := sorted(set(options) - set(known)):
        raise ZephyraError(f"unknown options {', '.join(unknown)}", hint=did_you_mean(unknown[0], known))


def keep_mask(mask: Tensor | None, x: Tensor, name: str) -> Tensor | None:
    """`mask [B, T]` (True = keep) of a sequence `x [B, T, …]` as what attention takes, `[B, 1, 1, T]`."""
    if mask is None:
        return None
    if list(mask.shape) != list(x.shape[:2]):
        raise ZephyraError(f"{name} is {list(mask.shape)}, must be [batch, steps] = {list(x.shape[:2])}")
    if not bool(mask.any(dim=1).all()):
        raise ZephyraError(f"{name} keeps nothing of sequence {int(mask.any(dim=1).logical_not().nonzero()[0])}")
    return mask.bool()[:, None, None, :]


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
