"""PEFT's adapters in our family and back: on, off, plain, rsLoRA, patterns, layer subsets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from zephyra_fusion.checkpoint import load_adapter, load_checkpoint, save_adapter
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.lora import adapter_config, set_adapters
from zephyra_fusion.merge import merge
from zephyra_fusion.model import ZephyraFusion

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ALL},
    "rsLoRA": {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
    "rank and alpha patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ALL,
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6},
        "alpha_pattern": {"up_proj": 16, "model.layers.0.self_attn.o_proj": 1},
    },
    "some layers": {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "one layer": {"r": 3, "lora_alpha": 6, "target_modules": ["k_proj"], "layers_to_transform": 0},
}


def base() -> Any:
    torch.manual_seed(0)
    shape = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 40, "head_dim": 8}
    config = transformers.Qwen3Config(**shape, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)
    return transformers.Qwen3ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    base().save_pretrained(folder)
    return folder


@pytest.fixture
def ours(base_folder: Path) -> ZephyraFusion:
    return load_checkpoint(base_folder)


def trained(kind: dict[str, Any], folder: Path) -> Any:
    model = peft.get_peft_model(base(), peft.LoraConfig(**kind, init_lora_weights=False)).eval()
    model.save_pretrained(folder)
    return model


def ids() -> torch.Tensor:
    return torch.randint(0, 99, (2, 17), generator=torch.Generator().manual_seed(4))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_their_adapter_on_off_and_back(kind: dict[str, Any], ours: ZephyraFusion, tmp_path: Path) -> None:
    theirs = trained(kind, tmp_path / "theirs")
    off = ours(ids())
    config = load_adapter(ours, "a", tmp_path / "theirs")
    assert torch.equal(ours(ids()), off)
    set_adapters(ours, {"a": 1.0})
    expected = theirs(ids()).logits
    assert (expected - off).abs().max() > 0.1
    torch.testing.assert_close(ours(ids()), expected, atol=1e-4, rtol=0)
    set_adapters(ours, {})
    with theirs.disable_adapter():
        torch.testing.assert_close(ours(ids()), theirs(ids()).logits, atol=1e-4, rtol=0)

    save_adapter(ours, "a", config, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(base(), tmp_path / "ours").eval()
    torch.testing.assert_close(again(ids()).logits, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_blend_is_pefts_cat_and_a_merged_adapter_goes_back(ours: ZephyraFusion, tmp_path: Path) -> None:
    theirs = trained(KINDS["plain"], tmp_path / "a")
    theirs.add_adapter("other", peft.LoraConfig(**KINDS["rsLoRA"], init_lora_weights=False))
    theirs.save_pretrained(tmp_path / "b", selected_adapters=["other"])
    load_adapter(ours, "a", tmp_path / "a")
    load_adapter(ours, "b", tmp_path / "b" / "other")
    set_adapters(ours, {"a": 0.7, "b": 0.6})
    blended = ours(ids())
    merge(ours, "both", {"a": 0.7, "b": 0.6}, "cat")
    save_adapter(ours, "both", adapter_config(ours, "both"), tmp_path / "both")
    again = peft.PeftModel.from_pretrained(base(), tmp_path / "both").eval()
    torch.testing.assert_close(again(ids()).logits, blended, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"use_dora": True}, "uses use_dora"),
        ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
        ({"bias": "all"}, "trains biases"),
        ({"target_modules": "all-linear"}, "must be a list of names"),
        ({"peft_type": "IA3"}, "only LORA is supported"),
        ({"r": 5}, r"is \[4, 32\], must be \[5, 32\]"),
        ({"target_modules": ["q_proj"]}, "has no place"),
        ({"layers_to_transform": [1]}, "has no place"),
    ],
)
def test_what_we_do_not_claim_is_refused_by_name(
    changed: dict[str, Any], message: str, ours: ZephyraFusion, tmp_path: Path
) -> None:
    import json

    trained(KINDS["plain"], tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(ZephyraError, match=message):
        load_adapter(ours, "a", tmp_path)
