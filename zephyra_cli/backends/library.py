"""llama.cpp by ctypes: the functions that we call, and nothing more.

The shared library is the one inside the package llama-cpp-python, found without importing that package (130 ms).
Structures and signatures are those of llama.h in llama-cpp-python 0.3.36; a test holds them against its own.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from zephyra_cli.interruption import deferred
from zephyra_fusion.errors import ZephyraError

VERSION = "0.3.36"  # of llama-cpp-python
INSTALL_HINT = f"pip install llama-cpp-python=={VERSION} (it compiles for some minutes), or set LLAMA_CPP_LIB_PATH"
EXIT_ABORTED = 70  # sysexits.h: internal software error

_LogCallback = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
_AbortCallback = ctypes.CFUNCTYPE(None, c_char_p)


class ModelParams(ctypes.Structure):
    _fields_ = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int),
        ("load_mode", c_int),
        ("lazy_mode", c_int),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    ]


class ContextParams(ctypes.Structure):
    _fields_ = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int),
        ("rope_scaling_type", c_int),
        ("pooling_type", c_int),
        ("attention_type", c_int),
        ("flash_attn_type", c_int),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int),
        ("type_v", c_int),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", c_int32),
        ("token", c_void_p),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", c_void_p),
    ]


class SamplerChainParams(ctypes.Structure):
    _fields_ = [("no_perf", c_bool)]


# name: (result, arguments); every handle is a void pointer, which ctypes gives as int or None
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ggml_set_abort_callback": (c_void_p, [_AbortCallback]),
    "ggml_fp16_to_fp32_row": (None, [c_char_p, c_void_p, c_int64]),
    "ggml_bf16_to_fp32_row": (None, [c_char_p, c_void_p, c_int64]),
    "llama_log_set": (None, [_LogCallback, c_void_p]),
    "llama_backend_init": (None, []),
    "llama_supports_gpu_offload": (c_bool, []),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_sampler_chain_default_params": (SamplerChainParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, c_void_p, c_int32, c_bool, c_bool]),
    "llama_token_to_piece": (c_int32, [c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
    "llama_free": (None, [c_void_p]),
    "llama_n_ctx": (c_uint32, [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_memory_seq_cp": (None, [c_void_p, c_int32, c_int32, c_int32, c_int32]),
    "llama_memory_seq_pos_min": (c_int32, [c_void_p, c_int32]),
    "llama_state_seq_get_size": (c_size_t, [c_void_p, c_int32]),
    "llama_state_seq_get_data": (c_size_t, [c_void_p, c_void_p, c_size_t, c_int32]),
    "llama_state_seq_set_data": (c_size_t, [c_void_p, c_void_p, c_size_t, c_int32]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits_ith": (c_void_p, [c_void_p, c_int32]),
    "llama_get_embeddings_seq": (c_void_p, [c_void_p, c_int32]),
    "llama_adapter_lora_init": (c_void_p, [c_void_p, c_char_p]),
    "llama_adapter_lora_free": (None, [c_void_p]),
    "llama_set_adapters_lora": (c_int32, [c_void_p, POINTER(c_void_p), c_size_t, POINTER(c_float)]),
    "llama_sampler_chain_init": (c_void_p, [SamplerChainParams]),
    "llama_sampler_chain_add": (None, [c_void_p, c_void_p]),
    "llama_sampler_init_greedy": (c_void_p, []),
    "llama_sampler_init_dist": (c_void_p, [c_uint32]),
    "llama_sampler_init_top_k": (c_void_p, [c_int32]),
    "llama_sampler_init_top_p": (c_void_p, [c_float, c_size_t]),
    "llama_sampler_init_min_p": (c_void_p, [c_float, c_size_t]),
    "llama_sampler_init_temp": (c_void_p, [c_float]),
    "llama_sampler_init_penalties": (c_void_p, [c_int32, c_int32, c_float, c_float, c_float]),
    "llama_sampler_accept": (None, [c_void_p, c_int32]),
    "llama_sampler_sample": (c_int32, [c_void_p, c_void_p, c_int32]),
    "llama_sampler_free": (None, [c_void_p]),
}

# They log while they work. A Python function that is called in the middle of C, as the log callback is, is given the
# signals that have come meanwhile, and the exception that their handler raises is lost: it has to wait.
_TALKING = (
    "llama_model_load_from_file",
    "llama_init_from_model",
    "llama_adapter_lora_init",
    "llama_set_adapters_lora",
    "llama_memory_seq_cp",
    "llama_free",
)

_last_errors: deque[str] = deque(maxlen=4)


def _on_log(level: int, text: bytes | None, _: object) -> None:
    if level == 4 and text:  # GGML_LOG_LEVEL_ERROR
        _last_errors.append(text.decode("utf-8", "replace").strip())


def _on_abort(text: bytes | None) -> None:
    """llama.cpp is about to abort(): leave with one line instead of a core dump. Comes from any thread."""
    reason = (text or b"").decode("utf-8", "replace").strip().replace("\n", " ")
    os.write(2, f"error: llama.cpp stopped the program: {reason}\n".encode())
    os._exit(EXIT_ABORTED)


# C keeps these pointers for the life of the process.
_log_callback, _abort_callback = _LogCallback(_on_log), _AbortCallback(_on_abort)


@cache
def _deaf() -> Any:
    return ctypes.cast(ctypes.CDLL("msvcrt" if os.name == "nt" else None).abs, _LogCallback)


@contextmanager
def silenced(lib: Any) -> Iterator[None]:
    """Inside, the library logs to a function of libc that does nothing: no signal is lost, and none has to wait."""
    lib.llama_log_set(_deaf(), None)
    try:
        yield
    finally:
        lib.llama_log_set(_log_callback, None)


def take_errors() -> str:
    """What the library logged as errors since the last call, as one line for an error message."""
    text = "; ".join(_last_errors)
    _last_errors.clear()
    return text or "no reason given"


def library_path() -> Path:
    """The shared library libllama. ZephyraError: llama-cpp-python is not installed."""
    if folder := os.environ.get("LLAMA_CPP_LIB_PATH"):
        folders = [Path(folder)]
    else:
        from importlib.util import find_spec

        spec = find_spec("llama_cpp")
        folders = [Path(place) / "lib" for place in (spec and spec.submodule_search_locations) or ()]
    names = {"darwin": ["libllama.dylib", "libllama.so"], "win32": ["llama.dll", "libllama.dll"]}
    for place in folders:
        for name in names.get(sys.platform, ["libllama.so"]):
            if (place / name).is_file():
                return place / name
    if not folders:
        raise ZephyraError("llama-cpp-python is not installed", hint=INSTALL_HINT)
    raise ZephyraError(f"there is no libllama in {folders[0]}", hint=INSTALL_HINT)


@cache
def library() -> Any:
    """The library, loaded, silenced and initialised once. ZephyraError: missing, not loadable or another version."""
    path = library_path()
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    try:
        if sys.platform == "win32":
            os.add_dll_directory(str(path.parent))
        lib = ctypes.CDLL(str(path))
        # On Linux and macOS a symbol of libggml is found through libllama, which depends on it.
        base = ctypes.CDLL(str(path.with_name("ggml-base.dll"))) if sys.platform == "win32" else lib
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(base if name.startswith("ggml") else lib, name)
            function.restype, function.argtypes = result, arguments
            setattr(lib, name, _undisturbed(function) if name in _TALKING else function)
    except (OSError, AttributeError) as error:
        raise ZephyraError(f"cannot load {path}: {error}", hint=INSTALL_HINT) from None
    _check_layout(lib, path)
    lib.ggml_set_abort_callback(_abort_callback)
    lib.llama_log_set(_log_callback, None)  # before backend_init, which already talks
    lib.llama_backend_init()
    return lib


def _undisturbed(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        with deferred():
            return function(*arguments)

    return call


def _check_layout(lib: Any, path: Path) -> None:
    """Structures of another version would be read as garbage; the defaults of this one are known."""
    context, model = lib.llama_context_default_params(), lib.llama_model_default_params()
    seen = (context.n_ctx, context.n_ubatch, context.flash_attn_type, context.type_k, context.yarn_ext_factor)
    flags = (context.offload_kqv, context.no_perf, context.kv_unified, context.n_samplers, model.n_gpu_layers)
    if seen != (512, 512, -1, 1, -1.0) or flags != (True, True, False, 0, -1) or not model.use_extra_bufts:
        raise ZephyraError(f"{path} is not the llama.cpp of llama-cpp-python {VERSION}", hint=INSTALL_HINT)
