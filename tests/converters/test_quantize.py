"""Quantization: importance matrices computed and read, types by pattern, and what is said of both."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zephyra_converters import dequantize
from zephyra_converters.activations import CHUNK, compute_importance
from zephyra_converters.convert import Options, convert
from zephyra_converters.decoder_reference import reference_hidden
from zephyra_converters.gguf_check import check_gguf
from zephyra_converters.gguf_header import read_header
from zephyra_converters.gguf_read import read_gguf
from zephyra_converters.gguf_write import plan_gguf, write_gguf
from zephyra_converters.hf import read_hf
from zephyra_converters.imatrix import importance_of, read_importance
from zephyra_converters.names import DECODER, translate
from zephyra_converters.quantize import NEED_CALIBRATION, QUANTIZATIONS, Quantization, run
from zephyra_converters.sizes import sizes_by_type
from zephyra_fusion.errors import ZephyraError

WORDS = "find all files larger than a megabyte in the home folder and list the names of them "


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(WORDS * 12 + "SELECT name FROM people;\n" * 8)
    return path


@pytest.fixture(scope="module")
def wide(
    oracle: Callable[[str], Any], tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Path]:
    """A checkpoint whose rows the super-blocks of 256 divide."""
    import importlib

    conftest = importlib.import_module("tests.converters.conftest")
    folder = tmp_path_factory.mktemp("wide") / "wide"

    def make() -> Path:
        if not folder.exists():
            transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
            sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 128}
            torch.manual_seed(3)
            config = transformers.LlamaConfig(**{**conftest.SIZES, **sizes})
            transformers.LlamaForCausalLM(config).save_pretrained(folder)
            conftest.put_tokenizer(folder, tiny_tokenizer)
        return folder

    return make


@pytest.fixture(scope="module")
def plain(wide: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "plain.gguf"
    write_gguf(plan_gguf(read_hf(wide())), path, "F32")
    return path


@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
def test_importance_is_the_mean_square_of_each_input(
    family: str, checkpoint_folder: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    """Against the reference's own inputs, experts by the tokens that each was given."""
    checkpoint = read_hf(checkpoint_folder(family))
    write_gguf(plan_gguf(checkpoint), tmp_path / "a.gguf", "F32")
    seen: list[int] = []
    ours = compute_importance(tmp_path / "a.gguf", text, lambda done, total: seen.append(done))

    import json

    import tokenizers

    assert checkpoint.tokenizer is not None
    ids = tokenizers.Tokenizer.from_str(json.dumps(checkpoint.tokenizer.tokenizer)).encode(text.read_text()).ids
    length = min(CHUNK, checkpoint.config.max_position_embeddings)
    pieces = [ids[at : at + length] for at in range(0, len(ids), length)]
    squares: dict[tuple[str, int], list[np.ndarray]] = {}

    def record(module: str, x: np.ndarray) -> float:
        if module.startswith("model.layers"):
            name, expert = translate(module + ".weight", DECODER) or ("", None)
            squares.setdefault((name, expert or 0), []).append(x.astype(np.float64) ** 2)
        return 0.0

    reference_hidden(checkpoint.config, checkpoint.tensors, pieces, record)
    experts = checkpoint.config.num_experts
    for name, values in ours.values.items():
        count = experts if "_exps" in name else 1
        rows = values.reshape(count, -1)
        for expert in range(count):
            expected = np.concatenate(squares[name, expert]).mean(axis=0)
            np.testing.assert_allclose(rows[expert], expected, rtol=2e-3)
    assert {name for name, _ in squares} == set(ours.values)
    assert seen[-1] == len(ids) == ours.tokens


def test_both_file_formats_say_the_same(tmp_path: Path, write_gguf: Callable[..., Path]) -> None:
    sums = {"blk.0.attn_q.weight": np.array([[2, 4, 6]], "f4"), "blk.0.ffn_up_exps.weight": np.ones((2, 3), "f4")}
    counts = {"blk.0.attn_q.weight": np.array([2.0]), "blk.0.ffn_up_exps.weight": np.array([4.0, 0.0])}
    expected = importance_of(sums, counts, "here", 8)
    assert expected.silent_experts == 1
    assert expected.values["blk.0.ffn_up_exps.weight"].tolist() == [0.25] * 3 + [1.0] * 3
    tensors = {}
    for name in sums:
        tensors[name + ".in_sum2"] = sums[name]
        tensors[name + ".counts"] = counts[name].astype("f4").reshape(-1, 1)
    keys = {"general.architecture": "", "general.type": "imatrix", "imatrix.chunk_count": 4, "imatrix.chunk_size": 2}
    read = read_importance(write_gguf(tmp_path / "a.gguf", keys, tensors))
    assert read is not None and read.tokens == 8
    old = struct.pack("<i", 2)
    for name, values in expected.values.items():
        old += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 3, values.size)
        old += (values * 3).astype("<f4").tobytes()
    (tmp_path / "a.dat").write_bytes(old + struct.pack("<i", 4))
    older = read_importance(tmp_path / "a.dat")
    assert older is not None
    for name, values in expected.values.items():
        np.testing.assert_allclose(read.values[name], values)
        np.testing.assert_allclose(older.values[name], values)
    (tmp_path / "short.dat").write_bytes(old[:60])
    with pytest.raises(ZephyraError, match="cut short"):
        read_importance(tmp_path / "short.dat")


@pytest.mark.parametrize("kind", NEED_CALIBRATION)
def test_calibration_opens_the_smallest_types(kind: str, wide: Callable[[], Path], text: Path, tmp_path: Path) -> None:
    with pytest.raises(ZephyraError, match="needs an importance matrix"):
        convert(wide(), tmp_path / "a.gguf", Options(quantization=kind))
    options = Options(quantization=kind, calibration=text, verify=False)
    part = convert(wide(), tmp_path / "a.gguf", options).parts[0]
    assert part.calibration is not None and "calibration.txt" in part.calibration
    assert part.bytes < 0.3 * convert(wide(), tmp_path / "b.gguf", Options(quantization="F16", verify=False)).bytes


def test_every_type_is_written_and_its_size_is_known_before(wide: Callable[[], Path], tmp_path: Path) -> None:
    """In this process, because a new one for each of the types would take a second.

    The smallest, which cost the quantizer a second each, are left to the test of calibration.
    """
    plan = plan_gguf(read_hf(wide()))
    write_gguf(plan, tmp_path / "plain.gguf", "F32")
    planned = sizes_by_type(plan)
    assert planned.keys() == QUANTIZATIONS.keys()
    for name, size in planned.items():
        if name in NEED_CALIBRATION:
            continue
        target = tmp_path / f"{name}.gguf"
        assert run(str(tmp_path / "plain.gguf"), str(target), Quantization(name=name), {}) == 0, name
        check_gguf(target)
        assert abs(target.stat().st_size - size) < 256, name  # the header says what was done


@pytest.mark.parametrize("kind", [kind for kind in QUANTIZATIONS if kind not in NEED_CALIBRATION])
def test_every_type_reads_back(kind: str, wide: Callable[[], Path], plain: Path, tmp_path: Path) -> None:
    """Close to what it was made of, as far as so few bits go."""
    target = tmp_path / "a.gguf"
    assert run(str(plain), str(target), Quantization(name=kind), {}) == 0
    convert(target, tmp_path / "back", Options(to="hf"))
    back = read_hf(tmp_path / "back").tensors
    for name, tensor in read_gguf(plain).tensors.items():
        expected, values = tensor.read(), back[name].read()
        assert np.ptp(expected) == 0 or np.corrcoef(expected.ravel(), values.ravel())[0, 1] > 0.6, name


def test_the_library_reads_blocks_as_gguf_py_does() -> None:
    import gguf

    rows = np.random.default_rng(0).normal(size=(3, 512)).astype(np.float32)
    for kind in (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0):
        raw = gguf.quants.quantize(rows, kind)
        assert np.array_equal(dequantize._by_library(raw, kind, "a"), gguf.quants.dequantize(raw, kind))
    with pytest.raises(ZephyraError, match="'a' is Q8_K, which cannot be read back"):
        dequantize.dequantized(np.zeros((1, 292), np.uint8), 15, "a")


def test_types_by_pattern(wide: Callable[[], Path], tmp_path: Path) -> None:
    types = ("ffn_down=q6_k", r"blk\.0\.attn_v=Q8_0")
    convert(wide(), tmp_path / "a.gguf", Options(quantization="Q4_K_S", tensor_types=types, verify=False))
    written = {name: tensor.type_name for name, tensor in read_header(tmp_path / "a.gguf").tensors.items()}
    assert written["blk.0.ffn_down.weight"] == "Q6_K" and written["blk.0.attn_v.weight"] == "Q8_0"
    assert written["blk.0.ffn_up.weight"] == "Q4_K"


def test_llama_cpps_own_mixtures_are_no_fallbacks(wide: Callable[[], Path], text: Path, tmp_path: Path) -> None:
    """Rows of 256 are divided by all blocks: whatever has another type than asked for has it on purpose."""
    for name in QUANTIZATIONS:
        calibration = text if name in (*NEED_CALIBRATION, "Q4_0") else None
        options = Options(quantization=name, calibration=calibration, dry_run=True)
        assert convert(wide(), tmp_path / "a.gguf", options).warnings == (), name


_MIXTURE = "mixture do not divide fell back: "


@pytest.mark.parametrize(
    ("kind", "types", "said"),
    [
        ("Q8_0", (), []),
        ("Q4_K_M", (), [_MIXTURE]),
        ("Q4_0", (), [_MIXTURE]),  # its head would be Q6_K
        ("Q8_0", ("ffn_down=Q4_0",), []),
        ("Q8_0", ("ffn_down=Q6_K",), ["'ffn_down=Q6_K': rows that Q6_K's blocks do not divide fell back: 2 as Q8_0"]),
        ("Q8_0", ("attn=Q5_0", "attn_q=Q4_0"), ["'attn_q=Q4_0' has no effect: earlier patterns"]),
        ("Q8_0", ("ffn_gate_inp=Q5_0",), ["'ffn_gate_inp=Q5_0': llama.cpp does not quantize all of its tensors: 2 as"]),
    ],
)
def test_what_does_not_get_its_type_is_said(
    checkpoint_folder: Callable[[str], Path], tmp_path: Path, kind: str, types: Sequence[str], said: Sequence[str]
) -> None:
    source = checkpoint_folder("qwen3-moe" if "inp" in str(types) else "qwen3")
    options = Options(quantization=kind, tensor_types=types, dry_run=True)
    warnings = convert(source, tmp_path / "a.gguf", options).warnings
    assert len(warnings) == len(said) and all(map(str.__contains__, warnings, said)), warnings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tensor_types": ["ffn_dwon=Q6_K"]}, "matches no tensor"),
        ({"tensor_types": ["ffn_down=Q6_L"]}, "unknown type"),
        ({"tensor_types": ["ffn_down"]}, "PATTERN=TYPE"),
        ({"tensor_types": ["(=Q6_K"]}, "no regular expression"),
        ({"tensor_types": ["ffn=Q6_K"], "quantization": "F16"}, "no effect on F16"),
        ({"calibration": Path(__file__), "quantization": "Q8_0"}, "no effect on Q8_0"),
        ({"calibration": Path("absent.txt")}, "cannot read 'absent.txt'"),
        ({"verify_text": Path("absent.txt")}, "cannot read 'absent.txt'"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    options: dict[str, Any], said: str, checkpoint_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ZephyraError, match=said):
        convert(checkpoint_folder("qwen3"), tmp_path / "a.gguf", Options(**{"quantization": "Q4_0", **options}))
    assert not list(tmp_path.iterdir())


def test_a_matrix_of_another_model_is_refused(
    checkpoint_folder: Callable[[str], Path], tmp_path: Path, write_gguf: Callable[..., Path]
) -> None:
    tensors = {"other.in_sum2": np.ones((1, 3), "f4"), "other.counts": np.ones((1, 1), "f4")}
    foreign = write_gguf(tmp_path / "m.gguf", {"general.architecture": "", "general.type": "imatrix"}, tensors)
    with pytest.raises(ZephyraError, match="belongs to another model"):
        convert(checkpoint_folder("qwen3"), tmp_path / "a.gguf", Options(quantization="Q4_0", calibration=foreign))


def test_figures_stand_in_the_file_itself(
    oracle: Callable[[str], Any], checkpoint_folder: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    report = convert(checkpoint_folder("qwen3"), tmp_path / "a.gguf", Options(quantization="Q8_0", verify_text=text))
    proof = report.parts[0].verification
    assert proof is not None and proof.text is not None
    metadata = read_header(tmp_path / "a.gguf").metadata
    for key, value in proof.to_dict().items():
        assert metadata[f"zephyra.verification.{key}"] == pytest.approx(value)
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(checkpoint_folder("qwen3") / "tokenizer.json"))
    ids, losses = tokenizer(text.read_text())["input_ids"], []
    for at in range(0, len(ids), 256):
        piece = torch.tensor([ids[at : at + 256]])
        with torch.inference_mode():
            logits = oracle("qwen3")(piece).logits[0, :-1].log_softmax(-1)
        losses.append(-logits.gather(1, piece[0, 1:, None]))
    expected = float(torch.cat(losses).mean().exp())
    assert proof.text.perplexity_source == pytest.approx(expected, rel=1e-3)
    assert proof.text.perplexity == pytest.approx(expected, rel=0.05) and proof.text.text_kl_divergence > 0
