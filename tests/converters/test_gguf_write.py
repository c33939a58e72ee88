"""The numbers of a converted model: transformers against our reference against llama.cpp, every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.converters.conftest import FAMILIES
from zephyra_converters.decoder_reference import reference_logits
from zephyra_converters.gguf_write import plan_gguf, write_gguf
from zephyra_converters.hf import read_hf
from zephyra_converters.loaded import LoadedGGUF
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


def test_vocabulary_reads_as_tokenizers_does(checkpoint_folder: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = read_hf(checkpoint_folder("qwen3"))
    write_gguf(plan_gguf(checkpoint), tmp_path / "base.gguf", "F16")
    assert checkpoint.tokenizer is not None
    with LoadedGGUF(tmp_path / "base.gguf", 64) as gguf:
        assert check_tokenizer(checkpoint.tokenizer.tokenizer, gguf.tokenize) >= 6000
