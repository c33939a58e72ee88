"""Number formats: rounding as torch's and numpy's, and no value that is none goes through."""

from __future__ import annotations

import numpy as np
import pytest

from zephyra_converters.dtypes import check_finite, converted, from_float32, to_float32
from zephyra_fusion.errors import ZephyraError

STORED = {"F64": "f8", "F32": "f4", "F16": "f2"}


def test_bf16_rounds_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    values = np.concatenate([np.random.default_rng(0).standard_normal(4096), [0.0, -0.0, 3.4e38, 1e-40]]).astype("f4")
    theirs = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    assert np.array_equal(to_float32(from_float32(values, "BF16", "x"), "BF16", "x"), theirs)


def test_f16_overflow_is_named() -> None:
    with pytest.raises(ZephyraError, match="'x' has values up to 70000, F16 ends at 65504"):
        from_float32(np.array([7e4], np.float32), "F16", "x")


def test_every_bf16_value_that_f16_can_hold_becomes_what_numpy_rounds_it_to() -> None:
    words = np.arange(2**16, dtype=np.uint16)
    words = words[np.abs(to_float32(words, "BF16", "x")) < 65504]  # neither infinite nor NaN
    assert len(words) > 36000
    wanted = to_float32(words, "BF16", "x").astype(np.float16)
    assert converted(words, "BF16", "F16", "x").tobytes() == wanted.tobytes()
    with pytest.raises(ZephyraError, match="'x' has values up to 65536, F16 ends at 65504"):
        converted(from_float32(np.array([1.0, -65536.0], "f4"), "BF16", "x"), "BF16", "F16", "x")


def test_f64_that_float32_cannot_hold_is_named() -> None:
    with pytest.raises(ZephyraError, match="'x' has values of F64 that float32 cannot hold"):
        converted(np.array([[1.0, 1e300]]), "F64", "F16", "x")


@pytest.mark.parametrize("wrong", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_what_is_no_number_is_found_in_every_type(dtype: str, wrong: float) -> None:
    values = np.array([[0.0, -1.5, 65504.0], [1e-7, wrong, -0.0]], np.float32)
    words = from_float32(values, "BF16", "x") if dtype == "BF16" else values.astype(STORED[dtype])
    check_finite(words[:1], dtype, "x", 7, (9, 3))
    with pytest.raises(ZephyraError, match=r"'x' has values that are NaN or infinite, the first at \[8, 1\]"):
        check_finite(words, dtype, "x", 7, (9, 3))
