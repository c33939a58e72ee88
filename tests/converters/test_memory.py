"""A conversion's memory does not grow with the model: measured on a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.converters.conftest import put_tokenizer
from zephyra_converters.checkpoint import LazyTensor
from zephyra_converters.hf import expected_shapes
from zephyra_converters.safetensors_file import write_safetensors
from zephyra_fusion.config_json import from_json

# Peak of what is ours alone: file-backed pages, which the kernel may drop at any time, do not count.
MEASURED = """
import re, sys, threading, time
from zephyra_cli.app import _run
peak = 0
def look():
    global peak
    while True:
        peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]))
        time.sleep(0.005)
threading.Thread(target=look, daemon=True).start()
status = _run(sys.argv[1:])
print(peak * 1024, file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_no_more_than_twice_the_largest_tensor(tiny_tokenizer: Any, tmp_path: Path) -> None:
    import numpy as np

    folder, values = tmp_path / "large", np.random.default_rng(2).standard_normal((32768, 1024), np.float32) * 0.02
    folder.mkdir()
    config = {
        "model_type": "llama", "vocab_size": 32768, "hidden_size": 1024, "intermediate_size": 1024,
        "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 8, "eos_token_id": 5,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    put_tokenizer(folder, tiny_tokenizer)
    tensors = []
    for name, shape in expected_shapes(from_json(config)).items():
        held = values[: shape[0]] if len(shape) == 2 else np.ones(shape, np.float32)
        tensors.append(LazyTensor.holding(name, held))
    write_safetensors(folder / "model.safetensors", tensors, "BF16")
    largest = 2 * 32768 * 1024
    for quantization, more in (("F16", ["--no-verify"]), ("Q8_0", [])):
        command = ["convert", str(folder), f"{quantization}.gguf", "-q", quantization, *more]
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, *command],
            cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"ZEPHYRA_HOME": str(tmp_path / "home")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert int(done.stderr.split()[-1]) < 2 * largest + 300e6
