"""Adapters on single experts and on the gate that chooses them: peft, our reference and llama.cpp agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.converters.conftest import edited
from zephyra_converters.checkpoint import LazyTensor
from zephyra_converters.convert import Options, convert
from zephyra_converters.decoder_reference import reference_logits
from zephyra_converters.gguf_header import read_header
from zephyra_converters.gguf_write import plan_gguf, write_gguf
from zephyra_converters.hf import expected_shapes, read_hf
from zephyra_converters.loaded import LoadedGGUF
from zephyra_converters.lora import write_lora_gguf
from zephyra_converters.names import dialect_name
from zephyra_converters.peft import read_peft
from zephyra_converters.safetensors_file import read_safetensors, write_safetensors
from zephyra_fusion.errors import ZephyraError

PREFIX = "base_model.model."
# family: whose names its modules have, and the last parts of those that are adapted
DIALECTS = {
    "mixtral": ("mixtral", ["q_proj", "w1", "w2", "w3"]),
    "qwen3-moe": ("", ["q_proj", "gate_proj", "up_proj", "down_proj"]),
}


def expert_adapter(base: Path, family: str, folder: Path, rank: int = 4) -> Path:
    """A folder as peft wrote it over transformers 4, where each expert's matrices were layers of their own."""
    dialect, targets = DIALECTS[family]
    draw, tensors = np.random.default_rng(5), []
    for name, shape in expected_shapes(read_hf(base).config).items():
        module = dialect_name(name, dialect).removesuffix(".weight")
        if module.rpartition(".")[2] in targets:
            a = draw.standard_normal((rank, shape[1]), np.float32) / shape[1] ** 0.5
            b = draw.standard_normal((shape[0], rank), np.float32) * 0.1
            tensors += [LazyTensor.holding(f"{PREFIX}{module}.lora_{s}.weight", v) for s, v in (("A", a), ("B", b))]
    folder.mkdir()
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 8, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("family", DIALECTS)
def test_experts_have_pefts_logits_and_come_back(
    family: str, checkpoint_folder: Callable[[str], Path], token_ids: list[list[int]], tmp_path: Path
) -> None:
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    base = checkpoint_folder(family)
    folder = expert_adapter(base, family, tmp_path / "peft")
    convert(folder, tmp_path / "a.gguf", Options(quantization="F32", base=base))
    write_gguf(plan_gguf(read_hf(base)), tmp_path / "base.gguf", "F32")
    model = transformers.AutoModelForCausalLM.from_pretrained(base).float()
    model = peft.PeftModel.from_pretrained(model, folder).eval()
    with LoadedGGUF(tmp_path / "base.gguf", 64) as gguf:
        gguf.add_adapter("it", tmp_path / "a.gguf")
        for ids in token_ids:
            gguf.set_adapters({})
            off = gguf.logits(ids)
            gguf.set_adapters({"it": 1.0})
            on = gguf.logits(ids)
            with torch.no_grad():
                theirs = model(torch.tensor([ids])).logits[0].numpy()
            assert np.abs(on - theirs).max() <= 1e-3 and np.abs(on - off).mean() > 0.05
    convert(tmp_path / "a.gguf", tmp_path / "back", Options(to="hf", base=base))
    before, after = (read_safetensors(place / "adapter_model.safetensors") for place in (folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name].read(), after[name].read()) for name in before)
    assert read_peft(tmp_path / "back").pairs.keys() == read_peft(folder).pairs.keys()


@pytest.mark.parametrize("family", DIALECTS)
def test_some_experts_at_ranks_of_their_own_and_the_gate(
    family: str, checkpoint_folder: Callable[[str], Path], token_ids: list[list[int]], tmp_path: Path
) -> None:
    """What an expert lacks is zero: against our reference, which knows nothing of stacks."""
    base = checkpoint_folder(family)
    whole = expert_adapter(base, family, tmp_path / "whole")
    block = "model.layers.0." + ("block_sparse_moe" if family == "mixtral" else "mlp")
    down = f"{block}.experts.2." + ("w2" if family == "mixtral" else "down_proj")
    draw, tensors = np.random.default_rng(6), {}
    for name in read_safetensors(whole / "adapter_model.safetensors"):
        if ".experts.1." in name or (".experts.0." in name and ".layers.1." in name):
            tensors[name] = None
    inner = read_hf(base).config.moe_intermediate_size
    for module, shape in ((down, (64, inner)), (f"{block}.gate", (4, 64))):
        tensors[f"{PREFIX}{module}.lora_A.weight"] = draw.standard_normal((6, shape[1]), np.float32) / 8
        tensors[f"{PREFIX}{module}.lora_B.weight"] = draw.standard_normal((shape[0], 6), np.float32) / 8
    patterns = {module.replace(".", r"\."): 6 for module in (down, f"{block}.gate")}
    alphas = {f"{block}.experts.3.{part}".replace(".", r"\."): 2 for part in ("w1", "gate_proj")}
    folder = edited(whole, tmp_path / "some", tensors, rank_pattern=patterns, alpha_pattern=alphas)
    convert(folder, tmp_path / "a.gguf", Options(quantization="F32", base=base))
    checkpoint, adapter = read_hf(base), read_peft(folder)
    assert adapter.rank == 6 and len({pair.scale for pair in adapter.pairs.values()}) == 3
    write_gguf(plan_gguf(checkpoint), tmp_path / "base.gguf", "F32")
    ours = reference_logits(checkpoint.config, checkpoint.tensors, token_ids, adapter.delta)
    with LoadedGGUF(tmp_path / "base.gguf", 64) as gguf:
        gguf.add_adapter("it", tmp_path / "a.gguf")
        gguf.set_adapters({"it": 1.0})
        for ids, expected in zip(token_ids, ours, strict=True):
            assert np.abs(gguf.logits(ids) - expected).max() <= 1e-3


@pytest.mark.parametrize("family", DIALECTS)
@pytest.mark.parametrize("targets", [["gate_up_proj", "down_proj", "gate.weight"], ["experts.down_proj"]])
def test_experts_in_one_parameter(
    family: str,
    targets: list[str],
    checkpoint_folder: Callable[[str], Path],
    token_ids: list[list[int]],
    tmp_path: Path,
) -> None:
    """As peft trains them over transformers 5; the gate is a bare parameter there, too."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    base = checkpoint_folder(family)
    options = {"target_modules": ["v_proj"], "target_parameters": targets, "rank_pattern": {r".*\.gate_up_proj": 6}}
    config = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base).float(), config).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "peft")
    convert(tmp_path / "peft", tmp_path / "a.gguf", Options(quantization="F32", base=base))
    checkpoint, adapter = read_hf(base), read_peft(tmp_path / "peft")
    ours = reference_logits(checkpoint.config, checkpoint.tensors, token_ids, adapter.delta)
    write_gguf(plan_gguf(checkpoint), tmp_path / "base.gguf", "F32")
    with LoadedGGUF(tmp_path / "base.gguf", 64) as gguf:
        gguf.add_adapter("it", tmp_path / "a.gguf")
        gguf.set_adapters({"it": 1.0})
        for ids, expected in zip(token_ids, ours, strict=True):
            with torch.no_grad():
                theirs = model(torch.tensor([ids])).logits[0].numpy()
            assert np.abs(expected - theirs).max() <= 1e-3
            assert np.abs(gguf.logits(ids) - theirs).max() <= 1e-3
    ranks = {"v_proj": 4, r".*gate\.weight": 4, r".*gate_up_proj": 12}
    wrong = edited(tmp_path / "peft", tmp_path / "wrong", r=8, rank_pattern=ranks)
    with pytest.raises(ZephyraError, match="gate.weight' is .2, 64. for it and .4, 64. in the base"):
        convert(wrong, tmp_path / "b.gguf", Options(base=base))


def test_blends_of_experts_on_both_backends(
    checkpoint_folder: Callable[[str], Path], token_ids: list[list[int]], tmp_path: Path
) -> None:
    """Ranks side by side for llama.cpp, two resident adapters in PyTorch, and the sum by our reference."""
    torch = pytest.importorskip("torch")
    from zephyra_cli.backends.blend import write_blend
    from zephyra_cli.backends.fusion_model import load_adapter, load_model
    from zephyra_fusion.lora import set_adapters

    checkpoint = read_hf(base := checkpoint_folder("mixtral"))
    write_gguf(plan_gguf(checkpoint), tmp_path / "base.gguf", "F32")
    model, weights = load_model(checkpoint, "cpu", torch.float32), {"law": 0.7, "code": 0.3}
    adapters = {}
    for name, rank in (("law", 4), ("code", 6)):
        adapters[name] = read_peft(expert_adapter(base, "mixtral", tmp_path / name, rank))
        write_lora_gguf(adapters[name], checkpoint.config, tmp_path / f"{name}.gguf", "F32")
    headers = [(read_header(tmp_path / f"{name}.gguf"), weight) for name, weight in weights.items()]
    write_blend(tmp_path / "blend.gguf", headers)
    load_adapter(model, checkpoint, "law", tmp_path / "law.gguf")
    load_adapter(model, checkpoint, "code", tmp_path / "code")
    set_adapters(model, weights)

    def delta(module: str, x: np.ndarray) -> np.ndarray | float:
        return sum(weight * adapters[name].delta(module, x) for name, weight in weights.items())

    reference = reference_logits(checkpoint.config, checkpoint.tensors, token_ids, delta)
    with LoadedGGUF(tmp_path / "base.gguf", 64) as gguf:
        gguf.add_adapter("blend", tmp_path / "blend.gguf")
        gguf.set_adapters({"blend": 1.0})
        for ids, expected in zip(token_ids, reference, strict=True):
            assert np.abs(gguf.logits(ids) - expected).max() <= 1e-3
            with torch.no_grad():
                assert np.abs(model(torch.tensor([ids]))[0].numpy() - expected).max() <= 1e-3
