"""One table of tensor names, Hugging Face and GGUF, read in both directions.

`{}` stands for the layer; a second one for the expert, whose matrices GGUF stacks into one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from zephyra_fusion.errors import ZephyraError

DECODER: Mapping[str, str] = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "model.layers.{}.input_layernorm.weight": "blk.{}.attn_norm.weight",
    "model.layers.{}.self_attn.q_proj.weight": "blk.{}.attn_q.weight",
    "model.layers.{}.self_attn.q_proj.bias": "blk.{}.attn_q.bias",
    "model.layers.{}.self_attn.k_proj.weight": "blk.{}.attn_k.weight",
    "model.layers.{}.self_attn.k_proj.bias": "blk.{}.attn_k.bias",
    "model.layers.{}.self_attn.v_proj.weight": "blk.{}.attn_v.weight",
    "model.layers.{}.self_attn.v_proj.bias": "blk.{}.attn_v.bias",
    "model.layers.{}.self_attn.o_proj.weight": "blk.{}.attn_output.weight",
    "model.layers.{}.self_attn.o_proj.bias": "blk.{}.attn_output.bias",
    "model.layers.{}.self_attn.q_norm.weight": "blk.{}.attn_q_norm.weight",
    "model.layers.{}.self_attn.k_norm.weight": "blk.{}.attn_k_norm.weight",
    "model.layers.{}.post_attention_layernorm.weight": "blk.{}.ffn_norm.weight",
    "model.layers.{}.mlp.gate_proj.weight": "blk.{}.ffn_gate.weight",
    "model.layers.{}.mlp.gate_proj.bias": "blk.{}.ffn_gate.bias",
    "model.layers.{}.mlp.up_proj.weight": "blk.{}.ffn_up.weight",
    "model.layers.{}.mlp.up_proj.bias": "blk.{}.ffn_up.bias",
    "model.layers.{}.mlp.down_proj.weight": "blk.{}.ffn_down.weight",
    "model.layers.{}.mlp.down_proj.bias": "blk.{}.ffn_down.bias",
    "model.layers.{}.mlp.gate.weight": "blk.{}.ffn_gate_inp.weight",
    "model.layers.{}.mlp.experts.{}.gate_proj.weight": "blk.{}.ffn_gate_exps.weight",
    "model.layers.{}.mlp.experts.{}.up_proj.weight": "blk.{}.ffn_up_exps.weight",
    "model.layers.{}.mlp.experts.{}.down_proj.weight": "blk.{}.ffn_down_exps.weight",
}

ROUTER: Mapping[str, str] = {
    "model.embeddings.tok_embeddings.weight": "token_embd.weight",
    "model.embeddings.norm.weight": "token_embd_norm.weight",
    "model.final_norm.weight": "output_norm.weight",
    "model.layers.{}.attn_norm.weight": "blk.{}.attn_norm.weight",
    "model.layers.{}.attn.Wqkv.weight": "blk.{}.attn_qkv.weight",
    "model.layers.{}.attn.Wo.weight": "blk.{}.attn_output.weight",
    "model.layers.{}.mlp_norm.weight": "blk.{}.ffn_norm.weight",
    "model.layers.{}.mlp.Wi.weight": "blk.{}.ffn_up.weight",
    "model.layers.{}.mlp.Wo.weight": "blk.{}.ffn_down.weight",
    "head.dense.weight": "cls.weight",
    "head.norm.weight": "cls.norm.weight",
    "classifier.weight": "cls.output.weight",
    "classifier.bias": "cls.output.bias",
}

# Mixtral's own words for what the table calls mlp.experts (its modules are w1, w2, w3)
MIXTRAL: Mapping[str, str] = {
    "model.layers.{}.block_sparse_moe.gate.weight": "model.layers.{}.mlp.gate.weight",
    "model.layers.{}.block_sparse_moe.experts.{}.w1.weight": "model.layers.{}.mlp.experts.{}.gate_proj.weight",
    "model.layers.{}.block_sparse_moe.experts.{}.w3.weight": "model.layers.{}.mlp.experts.{}.up_proj.weight",
    "model.layers.{}.block_sparse_moe.experts.{}.w2.weight": "model.layers.{}.mlp.experts.{}.down_proj.weight",
}

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def common_name(name: str) -> str:
    """The table's name of a tensor that may carry Mixtral's."""
    return _substituted(name, MIXTRAL)


def dialect_name(name: str, dialect: str) -> str:
    """The name of one of the table's tensors in a dialect (`config_json.dialect_of`): Mixtral has its own."""
    return _substituted(name, reverse(MIXTRAL)) if dialect == "mixtral" else name


def _substituted(name: str, table: Mapping[str, str]) -> str:
    pattern, numbers = pattern_of(name)
    return table[pattern].format(*numbers) if pattern in table else name


def pattern_of(name: str) -> tuple[str, tuple[int, ...]]:
    """The name with its numbers taken out, and the numbers."""
    return _NUMBER.sub("{}", name), tuple(int(number) for number in _NUMBER.findall(name))


def translate(name: str, table: Mapping[str, str]) -> tuple[str, int | None] | None:
    """The name in the other dialect, and the expert whose slice of that tensor it is (None: the whole tensor).

    None where the table does not know the name.
    """
    pattern, numbers = pattern_of(name)
    other = table.get(pattern)
    if other is None:
        return None
    places = other.count("{}")
    return other.format(*numbers[:places]), numbers[places] if len(numbers) > places else None


def reverse(table: Mapping[str, str]) -> dict[str, str]:
    """The same table read from right to left."""
    return {right: left for left, right in table.items()}


def check_names(present: Iterable[str], expected: Iterable[str], where: str) -> None:
    """Left-over and missing tensors in one message."""
    have, want = set(present), set(expected)
    wrong = [_listed("does not know", sorted(have - want)), _listed("lacks", sorted(want - have))]
    if said := [text for text in wrong if text]:
        raise ZephyraError(f"{where} {' and '.join(said)}", hint="nothing was written")


def _listed(verb: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"{verb} {len(names)} tensor{'s' if len(names) > 1 else ''}: {', '.join(names[:6])}{more}"
