"""Tiny ada in torch: a small bidirectional text classifier, the shape of ModernBERT (Warner et al., arXiv:2412.13663).

Exactly what llama.cpp's `modern-bert` computes without windows: no biases but the classifier's, one rotary base, the
first layer without an attention norm, mean pooling before the head. Names are transformers'
`ModernBertForSequenceClassification`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.layers.position import rotate


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """Shape, labels, and what calibration found: probabilities are softmax(logits / temperature)."""

    vocab_size: int
    labels: tuple[str, ...]
    hidden_size: int = 32
    num_hidden_layers: int = 3
    num_attention_heads: int = 2
    intermediate_size: int = 64
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_tokens: int = 128
    temperature: float = 1.0
    threshold: float = 0.0
    hidden_activation: str = "silu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        if self.hidden_size % self.num_attention_heads or (self.hidden_size // self.num_attention_heads) % 2:
            raise ZephyraError(
                f"hidden_size {self.hidden_size} over {self.num_attention_heads} heads does not give an even head width"
            )
        if self.hidden_activation != "silu":
            raise ZephyraError(f"hidden_activation is '{self.hidden_activation}', only silu is exact in every engine")


class RouterAttention(nn.Module):
    def __init__(self, config: RouterConfig) -> None:
        super().__init__()
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.heads = config.num_attention_heads

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:  # x [B, T, hidden]
        batch, length, hidden = x.shape
        q, k, v = self.Wqkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, attn_mask=mask)
        return self.Wo(y.transpose(1, 2).reshape(batch, length, hidden))


class RouterFeedForward(nn.Module):
    def __init__(self, config: RouterConfig) -> None:
        super().__init__()
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated, gate = self.Wi(x).chunk(2, dim=-1)
        return self.Wo(functional.silu(activated) * gate)


class RouterLayer(nn.Module):
    def __init__(self, config: RouterConfig, first: bool) -> None:
        super().__init__()
        self.attn_norm = nn.Identity() if first else nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)
        self.attn = RouterAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)
        self.mlp = RouterFeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x), cos, sin, mask)
        return x + self.mlp(self.mlp_norm(x))


class RouterEmbeddings(nn.Module):
    def __init__(self, config: RouterConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.norm(self.tok_embeddings(input_ids))


class RouterEncoder(nn.Module):
    """Token ids `[B, T]` to states `[B, T, hidden]`; every token sees every other one of its row."""

    def __init__(self, config: RouterConfig, dropout: float) -> None:
        super().__init__()
        self.embeddings = RouterEmbeddings(config)
        self.layers = nn.ModuleList(RouterLayer(config, n == 0) for n in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)
        self.dropout = nn.Dropout(dropout)
        dim = config.hidden_size // config.num_attention_heads
        frequencies = config.rope_theta ** -(torch.arange(0, dim, 2).float() / dim)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.frequencies: Tensor

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        angles = torch.arange(input_ids.shape[1], device=input_ids.device)[:, None] * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        x = self.dropout(self.embeddings(input_ids))
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin(), attention_mask[:, None, None, :])
        return self.final_norm(x)


class RouterHead(nn.Module):
    def __init__(self, config: RouterConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=False)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.norm(functional.gelu(self.dense(pooled), approximate="tanh"))


class RouterModel(nn.Module):
    """Token ids `[B, T]` and a mask (True = token) to class logits `[B, labels]`."""

    def __init__(self, config: RouterConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.model = RouterEncoder(config, dropout)
        self.head = RouterHead(config)
        self.classifier = nn.Linear(config.hidden_size, len(config.labels))
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.model(input_ids, attention_mask)
        kept = attention_mask[:, :, None].to(states.dtype)
        pooled = (states * kept).sum(1) / kept.sum(1)
        return self.classifier(self.dropout(self.head(pooled)))


def save_router(model: RouterModel, config: RouterConfig, folder: Path) -> None:
    """`config.json` (`model_type` zephyra-router) and `model.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}, folder / "model.safetensors")
    values: dict[str, Any] = {"model_type": "zephyra-router", **asdict(config)}
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")


def load_router(folder: Path) -> RouterModel:
    try:
        values = json.loads((folder / "config.json").read_text())
        if values.pop("model_type", None) != "zephyra-router":
            raise ZephyraError(f"{folder} holds no router (model_type is not zephyra-router)")
        model = RouterModel(RouterConfig(**values))
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ZephyraError(f"{folder} cannot be read as a router: {error}") from None
    return model.eval()
