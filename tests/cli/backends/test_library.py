"""Our thin ctypes layer against the complete one of llama-cpp-python, and what happens where there is no library."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zephyra_cli.backends import library
from zephyra_fusion.errors import ZephyraError


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (library.ModelParams, "llama_model_params"),
        (library.ContextParams, "llama_context_params"),
        (library.Batch, "llama_batch"),
        (library.SamplerChainParams, "llama_sampler_chain_params"),
    ],
)
def test_structures_lie_as_theirs_do(ours: Any, theirs: str) -> None:
    from llama_cpp import llama_cpp

    other = getattr(llama_cpp, theirs)
    assert ctypes.sizeof(ours) == ctypes.sizeof(other)
    assert [field[0] for field in ours._fields_] == [field[0] for field in other._fields_]
    for name, *_ in ours._fields_:
        mine, its = getattr(ours, name), getattr(other, name)
        assert (mine.offset, mine.size) == (its.offset, its.size), name


def test_functions_take_what_theirs_take() -> None:
    import llama_cpp
    from llama_cpp import llama_cpp as low

    assert llama_cpp.__version__ == library.VERSION
    for name, (result, arguments) in library._FUNCTIONS.items():
        if name.startswith("ggml"):
            continue
        other = getattr(low._lib, name)
        assert [_size(argument) for argument in other.argtypes] == [_size(argument) for argument in arguments], name
        assert _size(other.restype) == _size(result), name


def _size(kind: Any) -> tuple[str, int]:
    """Pointers are alike, whatever they point to; numbers and structures by their size."""
    if kind is None:
        return "nothing", 0
    if kind in (ctypes.c_void_p, ctypes.c_char_p) or issubclass(
        kind, (ctypes._Pointer, ctypes.Array, ctypes._CFuncPtr)
    ):
        return "pointer", ctypes.sizeof(ctypes.c_void_p)
    if issubclass(kind, ctypes.Structure):
        return "structure", ctypes.sizeof(kind)
    return str(kind._type_), ctypes.sizeof(kind)


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    full = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment
    return subprocess.run([sys.executable, "-c", script], env=full, capture_output=True, text=True, timeout=60)


def test_imports_nothing_heavy(tiny_gguf: Path) -> None:
    done = run(
        "import sys; from pathlib import Path; from zephyra_cli.backends.llama import LlamaBackend\n"
        "from zephyra_fusion.types import SamplingParams\n"
        f"b = LlamaBackend(Path({str(tiny_gguf)!r}))\n"
        "list(b.generate(b.encode('hello'), SamplingParams(max_tokens=3)))\n"
        "print({'torch', 'numpy', 'rich', 'llama_cpp', 'gguf', 'tokenizers', 'json', 'subprocess'} & set(sys.modules))"
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_an_abort_in_the_library_is_one_line_and_status_70() -> None:
    done = run(
        "import ctypes\nfrom zephyra_cli.backends.library import library\n"
        "lib = library()\n"
        "ggml_abort = lib.ggml_abort\n"
        "ggml_abort.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p]\n"
        "ggml_abort(b'kernel.c', 7, b'GGML_ASSERT(odd) failed')\n"
    )
    assert done.returncode == 70
    assert done.stderr == "error: llama.cpp stopped the program: kernel.c:7: GGML_ASSERT(odd) failed\n"


def test_a_missing_library_says_how_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    with pytest.raises(ZephyraError, match="there is no libllama in") as error:
        library.library_path()
    assert "pip install llama-cpp-python==0.3.36" in (error.value.hint or "")
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH")
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ZephyraError, match="llama-cpp-python is not installed"):
        library.library_path()


def test_a_library_that_does_not_load(tmp_path: Path) -> None:
    (tmp_path / library.library_path().name).write_bytes(b"\x7fELF and nothing more")
    done = run(
        "from zephyra_cli.backends.library import library\n"
        "from zephyra_fusion.errors import ZephyraError\n"
        "try:\n    library()\nexcept ZephyraError as error:\n    print(error.message, '|', error.hint)",
        LLAMA_CPP_LIB_PATH=str(tmp_path),
    )
    assert done.stdout.startswith("cannot load ") and "pip install" in done.stdout and not done.stderr


def test_errors_of_the_library_are_quoted(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    done = run(  # in a process of its own: the llama_cpp package, where imported, takes the log away from us
        "from zephyra_cli.backends.library import library, take_errors\n"
        "lib = library()\n"
        f"print(lib.llama_model_load_from_file({os.fsencode(path)!r}, lib.llama_model_default_params()))\n"
        "print(take_errors())\nprint(take_errors())"
    )
    handle, errors, nothing = done.stdout.splitlines()
    assert handle == "None" and "bad GGUF version" in errors
    assert nothing == "no reason given" and done.stderr == ""
