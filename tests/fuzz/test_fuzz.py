"""Odd files against everything that reads files: no crash, no foreign exception, nothing slow, nothing greedy.

A short run by default; `FUZZ=20000 pytest tests/fuzz` is the long one. Case N of a target is always the same file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zephyra_cli.router_features import write_features
from zephyra_converters.newcomers import Sample
from zephyra_fusion.chat import ZEPHYRA_JINJA

ROOT = Path(__file__).parents[2]
SHORT = {
    "gguf": 250,
    "safetensors": 300,
    "manifest": 300,
    "checkpoint": 150,
    "adapter": 150,
    "examples": 200,
    "template": 80,
}
ENOUGH = 20  # failures, and the run is over
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start|>' + m['role'] + '<|end|>' + m['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


@pytest.fixture(scope="session")
def seeds(
    tiny_gguf: Path,
    tiny_adapters: dict[str, Path],
    tiny_router: Path,
    tiny_tokenizer: Any,
    make_gguf: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """seeds(target) -> a folder of good files."""
    import numpy as np

    from zephyra_converters.checkpoint import LazyTensor
    from zephyra_converters.gguf_file import Planned, write_gguf_file
    from zephyra_converters.safetensors_file import write_safetensors

    root = tmp_path_factory.mktemp("seeds")

    def tensor(name: str, *shape: int) -> LazyTensor:
        return LazyTensor.holding(name, np.full(shape, 0.5, dtype=np.float32))

    def gguf(folder: Path) -> None:
        for name, source in {"base": tiny_gguf, "adapter": tiny_adapters["b"], "router": tiny_router}.items():
            shutil.copy(source, folder / f"{name}.gguf")
        scores = {
            "tokenizer.ggml.scores": [0.5] * 320,
            "qwen3.rope.scaling.type": "linear",
            "qwen3.rope.scaling.factor": 2.0,
        }
        make_gguf(folder / "scored.gguf", scores)
        vectors = [Planned(tensor(name, 400), "F32") for name in ("rarity", "weights.0")]
        write_gguf_file(folder / "newcomers.gguf", "zephyra-newcomers", {}, vectors)

    def safetensors(folder: Path) -> None:
        write_safetensors(folder / "a.safetensors", [tensor("a", 4, 8), tensor("b", 3)])
        write_safetensors(folder / "b.safetensors", [tensor("a", 16)], "BF16")

    def manifest(folder: Path) -> None:
        shutil.copy(ROOT / "assets" / "zephyra-nano" / "zephyra.json", folder)

    def checkpoint(folder: Path) -> None:
        tiny_tokenizer.save(str(folder / "tokenizer.json"))
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 320, **sizes}
        config |= {"num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512, "rms_norm_eps": 1e-6}
        config |= {"tie_word_embeddings": True, "rope_theta": 10000.0, "hidden_act": "silu"}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "pad_token": "<|pad|>"}))
        from zephyra_converters.hf import expected_shapes
        from zephyra_fusion.config_json import from_json

        shapes = expected_shapes(from_json(config))
        write_safetensors(folder / "model.safetensors", [tensor(name, *shape) for name, shape in shapes.items()])

    def adapter(folder: Path) -> None:
        module = "base_model.model.model.layers.0.self_attn.q_proj"
        pair = [tensor(f"{module}.lora_A.weight", 4, 64), tensor(f"{module}.lora_B.weight", 64, 4)]
        write_safetensors(folder / "adapter_model.safetensors", pair)
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
        (folder / "adapter_config.json").write_text(json.dumps({**config, "rank_pattern": {}, "use_rslora": False}))

    def examples(folder: Path) -> None:
        write_features(folder / "a.jsonl.gz", [Sample("none", (n, n + 7), (0.5, 0.25, 0.25)) for n in range(50)])
        (folder / "c.jsonl").write_text('{"prompt": "find it", "domain": "shell"}\n' * 9)
        (folder / "b.txt").write_text("one\ntwo é\n" * 20)

    def template(folder: Path) -> None:
        (folder / "a").write_text(ZEPHYRA_JINJA)
        (folder / "b").write_text(LLAMA3)

    makers: dict[str, Callable[[Path], None]] = {
        f.__name__: f for f in (gguf, safetensors, manifest, checkpoint, adapter, examples, template)
    }

    def made(target: str) -> Path:
        folder = root / target
        if not folder.exists():
            folder.mkdir()
            makers[target](folder)
        return folder

    return made


@pytest.mark.parametrize("target", SHORT)
def test_odd_files(target: str, seeds: Callable[[str], Path], tmp_path: Path) -> None:
    count, start = int(os.environ.get("FUZZ", SHORT[target])), 0
    outcomes, wrong = Counter[str](), []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    while start < count and len(wrong) < ENOUGH:
        command = [sys.executable, "-m", "tests.fuzz.worker", target, seeds(target), tmp_path, str(start), str(count)]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=ROOT, text=True)
        number, said = start - 1, ""
        assert worker.stdout is not None
        for line in worker.stdout:
            first, _, said = line.rstrip("\n").partition(" ")
            number = int(first)
            if said in ("ok", "refused"):
                outcomes[said] += 1
            elif said:
                wrong.append(f"{target} {number}: {said}")
        if status := worker.wait():
            wrong.append(f"{target} {number}: the process died with status {status}")
        elif number < count - 1:
            wrong.append(f"{target}: the worker stopped after {number}")
        start = max(start, number) + 1
    print(f"{target}: {dict(outcomes)}, wrong: {len(wrong)}")
    assert not wrong, "\n".join(wrong)
    assert outcomes["refused"] > count // 20, outcomes
