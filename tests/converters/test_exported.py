"""An exported folder is transformers' own: its Auto classes load it without code of ours, vLLM finds all it reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.converters.test_lora_experts import expert_adapter
from zephyra_converters.convert import Options, convert
from zephyra_converters.safetensors_file import read_safetensors
from zephyra_fusion.chat import END

# What vLLM's models take from config.json (vllm/model_executor/models: llama, qwen2, qwen3, mixtral, qwen3_moe);
# a key that older transformers would fill with another default must stand there.
ALL = (
    "architectures model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim hidden_act max_position_embeddings rms_norm_eps rope_theta tie_word_embeddings "
    "eos_token_id torch_dtype"
).split()
FAMILIES = {
    "llama3-rope": ("LlamaForCausalLM", [*ALL, "rope_scaling"]),
    "qwen3": ("Qwen3ForCausalLM", ALL),
    "mixtral": ("MixtralForCausalLM", [*ALL, "num_local_experts", "num_experts_per_tok"]),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        [*ALL, "num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"],
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_and_vllm_find_all_they_need(
    family: str,
    oracle: Callable[[str], Any],
    checkpoint_folder: Callable[[str], Path],
    token_ids: list[list[int]],
    tmp_path: Path,
) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    source, folder = checkpoint_folder(family), tmp_path / "back"
    convert(source, tmp_path / "a.gguf", Options(quantization="F32", verify=False))
    convert(tmp_path / "a.gguf", folder, Options(to="hf"))

    name, keys = FAMILIES[family]
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [name] and "auto_map" not in config
    assert [key for key in keys if config.get(key) is None] == []
    assert (
        read_safetensors(folder / "model.safetensors").keys() == read_safetensors(source / "model.safetensors").keys()
    )

    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == name and not any(report.values())
    ends = model.generation_config.eos_token_id
    assert 5 in (ends if isinstance(ends, list) else [ends])
    with torch.no_grad():
        for ids in token_ids:
            theirs, ours = (m(torch.tensor([ids])).logits[0].numpy() for m in (oracle(family), model.eval()))
            assert np.abs(theirs - ours).max() <= 1e-5

    before, after = (transformers.AutoTokenizer.from_pretrained(place) for place in (source, folder))
    text = "find all files\n  über 2 MB <|end|> 日本"
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.eos_token == END and after.eos_token_id == 5
    turn = [{"role": "user", "content": "hello"}]
    assert after.apply_chat_template(turn, tokenize=False) == before.apply_chat_template(turn, tokenize=False)


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe"])
def test_peft_loads_what_comes_back(
    family: str, checkpoint_folder: Callable[[str], Path], token_ids: list[list[int]], tmp_path: Path
) -> None:
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    base = checkpoint_folder(family)
    there = expert_adapter(base, family, tmp_path / "there")
    convert(there, tmp_path / "a.gguf", Options(quantization="F32", base=base, verify=False))
    convert(tmp_path / "a.gguf", tmp_path / "back", Options(to="hf", base=base))
    logits = []
    for folder in (there, tmp_path / "back"):
        model = transformers.AutoModelForCausalLM.from_pretrained(base).float()
        with torch.no_grad():
            adapted = peft.PeftModel.from_pretrained(model, folder).eval()
            logits.append(adapted(torch.tensor([token_ids[1]])).logits[0].numpy())
    assert np.array_equal(*logits)
