"""Our converter beside llama.cpp's own: the same tensors bit for bit, the same metadata, in less time and memory.

    python benchmarks/convert_oracle.py --llama-cpp PATH

PATH is the folder of convert_hf_to_gguf.py: vendor/llama.cpp of llama-cpp-python's source archive. What it needs
(torch, transformers; sentencepiece) is not needed here. Checkpoints are random, small, of every family that converts,
with the vocabularies that lie in PATH/models. Every difference is either in DELIBERATE, with its reason, or an error.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from oracle_checkpoints import FAMILIES, make_checkpoint
from report import Report, progress

ROOT = Path(__file__).parents[1]
TYPES = ("f32", "f16", "bf16")
ROPE = "rope_freqs.weight"
# A key, or the end of one: why ours differs from llama.cpp's.
DELIBERATE = {
    ROPE: "Llama 3's factors in double precision, rounded once; there in float32 (at most 1e-6 apart)",
    "general.name": "the folder's name as it is; llama.cpp makes a title of it",
    "general.basename": "guessed from the folder's name",
    "general.version": "guessed from the folder's name",
    "general.finetune": "guessed from the folder's name",
    "general.base_model.": "its names as they are; llama.cpp makes titles of them, and guesses a version",
    "general.dataset.": "its names as they are; llama.cpp makes titles of them, and guesses a version",
    "general.size_label": "guessed from the number of parameters",
    "general.quantization_version": "written where something is quantized; llama.cpp writes it always",
    "zephyra.": "our own figures and fingerprint",
    "vocab_size": "the rows of the table, for every architecture; llama.cpp only for llama",
    "rope.dimension_count": "said for every architecture; elsewhere it follows from the head's width",
    "attention.key_length": "said always; llama.cpp only where head_dim stands in config.json",
    "attention.value_length": "said always; llama.cpp only where head_dim stands in config.json",
    "tokenizer.ggml.add_eos_token": "said always",
    "tokenizer.ggml.eot_token_id": "the second end token of generation_config.json; llama.cpp looks for it by text",
    "tokenizer.ggml.eom_token_id": "the third end token of generation_config.json; llama.cpp looks for it by text",
    "tokenizer.ggml.add_sep_token": "no such token here",
    "tokenizer.ggml.unknown_token_id": "tokenizer.json's, where tokenizer_config.json is silent",
}
NAMES = (ROPE, "general.name", "general.base_model.", "general.dataset.")  # where the values may differ, too
SPEED = (("bfloat16", "f16"), ("bfloat16", "bf16"), ("float16", "f16"))  # the checkpoint's type, the file's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, required=True, help="folder with convert_hf_to_gguf.py")
    parser.add_argument("--packages", default="", help="where its sentencepiece lies, if it is not installed here")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES), metavar="NAME")
    parser.add_argument("--types", nargs="*", default=list(TYPES), choices=TYPES)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the checkpoint for speed; 0: none")
    parser.add_argument("--json", type=Path, help="put the figures into this file")
    options = parser.parse_args()
    report = Report("convert_oracle", "zephyra convert beside convert_hf_to_gguf.py")
    with TemporaryDirectory() as name:
        folder = Path(name)
        rows, deliberate, wrong = [], set(), []
        for family in options.families:
            checkpoint = make_checkpoint(folder / family, family, options.llama_cpp)
            for kind in options.types:
                progress(f"{family} {kind}")
                theirs, ours = folder / "theirs.gguf", folder / "ours.gguf"
                run_oracle(options, checkpoint, theirs, kind)
                run_ours(options, checkpoint, ours, kind)
                found = list(differences(ours, theirs))
                said = [reason for key, text in found if (reason := excuse(key, text))]
                deliberate |= set(said)
                wrong += [f"{family} {kind}: {key}: {text}" for key, text in found if not excuse(key, text)]
                rows.append([family, kind, len(said), len(found) - len(said)])
        report.table("differences by family", ["", "type", "deliberate", "others"], rows)
        reasons = [[key, DELIBERATE[key]] for key in sorted(deliberate)]
        report.table("deliberate differences", ["key", "why"], reasons)
        for line in wrong:
            print(line)
        report.figure("others", "differences that are not deliberate", len(wrong), at_most=0)
        if options.gigabytes:
            measure_speed(report, options, folder)
    report.finish(options.json)


def excuse(key: str, text: str) -> str | None:
    """The entry of DELIBERATE for a difference: a key that only one of the files has, a name, a rounding."""
    if not key.startswith(NAMES) and "nothing" not in text:
        return None
    return next((known for known in DELIBERATE if key.endswith(known) or key.startswith(known)), None)


def run_oracle(options: Any, checkpoint: Path, target: Path, kind: str) -> tuple[float, int]:
    script = str(options.llama_cpp / "convert_hf_to_gguf.py")
    packages = os.pathsep.join(filter(None, [options.packages, os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, script, str(checkpoint), "--outfile", str(target), "--outtype", kind]
    return timed(command, {"PYTHONPATH": packages})


def run_ours(options: Any, checkpoint: Path, target: Path, kind: str) -> tuple[float, int]:
    command = [sys.executable, "-m", "zephyra_cli", "convert", str(checkpoint), str(target), "-q", kind]
    packages = os.pathsep.join([str(ROOT), f"{ROOT}/converters"])
    return timed([*command, "--no-verify", "--force"], {"PYTHONPATH": packages})


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, int]:
    """(seconds, peak bytes of memory) of a command that must succeed."""
    begun = time.perf_counter()
    outer = [sys.executable, "-S", "-c", _MEASURED, *command]
    done = subprocess.run(outer, capture_output=True, text=True, env=os.environ | environment, cwd="/")
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return time.perf_counter() - begun, int(done.stdout.split()[-1]) * (1 if sys.platform == "darwin" else 1024)


# A process counts what its parent held before it: so the parent is a small one.
_MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def differences(ours: Path, theirs: Path) -> Iterator[tuple[str, str]]:
    """(metadata key or "tensor NAME", what differs)."""
    import numpy as np

    from zephyra_converters.gguf_header import read_header

    mine, other = read_header(ours), read_header(theirs)
    for key in sorted(set(mine.metadata) | set(other.metadata)):
        a, b = mine.metadata.get(key), other.metadata.get(key)
        if a != b:
            yield key, f"{short(a)} here, {short(b)} there"
        elif mine.types[key] != other.types[key]:
            yield key, f"type {mine.types[key]} here, {other.types[key]} there"
    for name in sorted(set(mine.tensors) | set(other.tensors)):
        a, b = mine.tensors.get(name), other.tensors.get(name)
        if a is None or b is None:
            yield f"tensor {name}", "missing here" if a is None else "missing there"
        elif (a.shape, a.type) != (b.shape, b.type):
            yield f"tensor {name}", f"{list(a.shape)} {a.type_name} here, {list(b.shape)} {b.type_name} there"
        else:
            bits = [np.fromfile(path, "u1", info.size, offset=info.offset) for path, info in ((ours, a), (theirs, b))]
            if not np.array_equal(*bits):
                near = name == ROPE and np.allclose(bits[0].view("f4"), bits[1].view("f4"), rtol=1e-6, atol=0)
                yield ROPE if near else f"tensor {name}", "other bits"


def short(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} entries"
    text = repr(value)
    return "nothing" if value is None else text if len(text) < 60 else text[:57] + "..."


def measure_speed(report: Report, options: Any, folder: Path) -> None:
    """A checkpoint of one size, converted by both to a fresh file, each twice (the better counts)."""
    import torch
    import transformers

    progress("making the large checkpoint")
    large = make_checkpoint(folder / "large", "llama-3", options.llama_cpp)
    config = transformers.LlamaConfig.from_pretrained(large)
    layers = max(1, round((options.gigabytes * 5e8 - 262e6) / 15.7e6))
    for key, value in (("hidden_size", 1024), ("intermediate_size", 4096), ("num_attention_heads", 8)):
        setattr(config, key, value)
    config.head_dim, config.num_key_value_heads, config.num_hidden_layers = 128, 4, layers
    (large / "model.safetensors").unlink()
    model, target, rows = transformers.LlamaForCausalLM(config), folder / "large.gguf", []
    best: dict[str, list[tuple[float, int]]] = {"theirs": [], "ours": []}  # (seconds, bytes) by case
    for stored, kind in SPEED:
        model.to(getattr(torch, stored)).save_pretrained(large, max_shard_size="400MB")
        for name, run in (("theirs", run_oracle), ("ours", run_ours)):
            progress(f"speed: {stored} to {kind}, {name}")
            runs = []
            for _ in range(2):
                target.unlink(missing_ok=True)
                runs.append(run(options, large, target, kind))
            best[name].append(min(runs))
        (theirs, _), (ours, _) = best["theirs"][-1], best["ours"][-1]
        rows.append([f"{stored} to {kind}", theirs, ours, theirs / ours])
    size = sum(path.stat().st_size for path in large.glob("*.safetensors"))
    report.figure("size", "checkpoint", size / 1e9, unit="GB")
    report.table("seconds", ["", "theirs", "ours", "times as fast"], rows)
    memory = {name: max(used for _, used in measured) for name, measured in best.items()}
    for name, used in memory.items():
        report.figure(f"{name}_memory", f"{name}: peak memory", used / 1e6, unit="MB")
    report.figure("speed", "times as fast, the least of these", min(row[-1] for row in rows), at_least=2.0)
    report.figure("memory", "share of its memory", memory["ours"] / memory["theirs"], unit="%", at_most=1.0)
    largest = 2 * config.vocab_size * config.hidden_size
    bound = (2 * largest + 300e6) / 1e6
    report.figure("bound", "our peak memory", memory["ours"] / 1e6, unit="MB", at_most=bound)


if __name__ == "__main__":
    main()
