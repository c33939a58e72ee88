"""The numbers of a converted model: transformers against our reference against llama.cpp, every family."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.converters.conftest import FAMILIES
from zephyra_converters.checkpoint import LazyTensor
from zephyra_converters.decoder_reference import reference_logits
from zephyra_converters.gguf_read import read_gguf
from zephyra_converters.gguf_write import plan_gguf, write_gguf
from zephyra_converters.hf import read_hf
from zephyra_converters.loaded import LoadedGGUF
from zephyra_converters.safetensors_file import write_safetensors
from zephyra_converters.tokenizer_parity import check_tokenizer


def oracle_logits(model: Any, ids: list[int]) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_f32_gguf_has_transformers_logits(
    family: str,
    oracle: Callable[[str], Any],
    checkpoint_folder: Callable[[str], Path],
    token_ids: list[list[int]],
    tmp_path: Path,
) -> None:
    checkpoint = read_hf(checkpoint_folder(family))
    write_gguf(plan_gguf(checkpoint), tmp_path / "base.gguf", "F32")
    reference = reference_logits(checkpoint.config, checkpoint.tensors, token_ids)
    with LoadedGGUF(tmp_path / "base.gguf", 64) as gguf:
        for ids, ours in zip(token_ids, reference, strict=True):
            theirs = oracle_logits(oracle(family), ids)
            assert np.abs(ours - theirs).max() <= 1e-4
            assert np.abs(gguf.logits(ids) - theirs).max() <= 1e-3
            assert theirs.std() > 0.3  # else the bound above says nothing


def test_a_head_that_a_tied_checkpoint_stores_counts_where_it_differs(
    checkpoint_folder: Callable[[str], Path], token_ids: list[list[int]], tmp_path: Path
) -> None:
    """As in transformers: a copy of the embedding is the embedding, another table is the model's head."""
    transformers = pytest.importorskip("transformers")
    tensors = read_hf(checkpoint_folder("qwen3")).tensors
    table = tensors["model.embed_tokens.weight"].read()
    for head, tied in ((table, True), (table[::-1].copy(), False)):
        folder = tmp_path / f"tied-{tied}"
        shutil.copytree(checkpoint_folder("qwen3"), folder)
        both = [*tensors.values(), LazyTensor.holding("lm_head.weight", head)]
        write_safetensors(folder / "model.safetensors", both, "F32")
        checkpoint = read_hf(folder)
        assert checkpoint.config.tie_word_embeddings == tied == ("lm_head.weight" not in checkpoint.tensors)
        write_gguf(plan_gguf(checkpoint), tmp_path / "base.gguf", "F32")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
        (ours,) = reference_logits(checkpoint.config, checkpoint.tensors, token_ids[1:2])
        with LoadedGGUF(tmp_path / "base.gguf", 64) as gguf:
            theirs = oracle_logits(model, token_ids[1])
            assert np.abs(ours - theirs).max() <= 1e-4
            assert np.abs(gguf.logits(token_ids[1]) - theirs).max() <= 1e-3


def test_vocabulary_reads_as_tokenizers_does(checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = read_hf(checkpoint_folder("qwen3"))
    write_gguf(plan_gguf(checkpoint), tmp_path / "base.gguf", "F16")
    assert checkpoint.tokenizer is not None
    with LoadedGGUF(tmp_path / "base.gguf", 64) as gguf:
        assert check_tokenizer(checkpoint.tokenizer.tokenizer, gguf.tokenize) >= 6000


@pytest.mark.parametrize(
    "more",
    [
        {"attention_scale": 0.05},
        {"attention_scale": 0.3, "sliding_window": 10, "layer_types": ["full_attention", "sliding_attention"]},
        {"attention_bias": True, "attention_out_bias": True, "sliding_window": 8},
        {"qk_norm": True, "sliding_window": 8, "attention_bias": True},
    ],
)
def test_what_only_zephyra_fusion_can(
    more: dict[str, Any], tiny_tokenizer: Any, token_ids: list[list[int]], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from tests.converters.conftest import put_tokenizer
    from zephyra_fusion.checkpoint import save_checkpoint
    from zephyra_fusion.config import FusionConfig
    from zephyra_fusion.model import ZephyraFusion

    shape = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256}
    torch.manual_seed(2)
    model = ZephyraFusion(FusionConfig(**(shape | more), initializer_range=0.15)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    save_checkpoint(model, tmp_path / "model")
    put_tokenizer(tmp_path / "model", tiny_tokenizer)
    checkpoint = read_hf(tmp_path / "model")
    write_gguf(plan_gguf(checkpoint), tmp_path / "base.gguf", "F32")
    reference = reference_logits(checkpoint.config, checkpoint.tensors, token_ids)
    with LoadedGGUF(tmp_path / "base.gguf", 64) as gguf:
        for ids, ours in zip(token_ids, reference, strict=True):
            with torch.no_grad():
                theirs = model(torch.tensor([ids]))[0].numpy()
            assert np.abs(ours - theirs).max() <= 1e-4
            assert np.abs(gguf.logits(ids) - theirs).max() <= 1e-3
            assert theirs.std() > 0.3
    back = read_gguf(tmp_path / "base.gguf")
    assert {name: tensor.read().tobytes() for name, tensor in back.tensors.items()} == {
        name: tensor.read().tobytes() for name, tensor in checkpoint.tensors.items()
    }
    said = {"eos_token_id", "bos_token_id", "pad_token_id", "initializer_range"}
    ours_again, before = back.config.to_dict(), checkpoint.config.to_dict()
    assert {k: v for k, v in ours_again.items() if k not in said} == {k: v for k, v in before.items() if k not in said}
