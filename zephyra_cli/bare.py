"""A bare .gguf or checkpoint folder as a chat model: its own template and its own habit of a first token."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_cli.text import encode
from zephyra_fusion.chat import ZEPHYRA, ZEPHYRA_JINJA
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import Message, Segment

if TYPE_CHECKING:
    from zephyra_cli.backends.protocol import Backend
    from zephyra_converters.gguf_header import GGUFHeader


@dataclass(frozen=True, kw_only=True)
class _Habits:
    """`first`: the token that texts begin with, if they do; `spelled`: what a template calls bos_token, eos_token."""

    template: object
    first: int | None
    spelled: Mapping[str, str]


def bare_prompt(path: Path, messages: Sequence[Message], backend: Backend, *, raw: bool) -> list[int]:
    """Ids of the conversation (or, `raw`, of the last message alone). ZephyraError: there is no chat template."""
    habits = _of_folder(path, backend, raw=raw) if path.is_dir() else _of_file(path)
    if raw:
        segments = [Segment(messages[-1].content)]
    elif habits.template == ZEPHYRA_JINJA:
        segments = ZEPHYRA.render(messages)
    elif isinstance(habits.template, str):
        from zephyra_cli.template import render

        segments = render(habits.template, messages, habits.spelled)
    else:
        raise ZephyraError(f"'{path}' has no chat template", hint="--raw continues the text without one")
    ids = encode(segments, backend)
    return [habits.first, *ids] if habits.first is not None and ids[:1] != [habits.first] else ids


def facts(path: Path) -> dict[str, Any]:
    """What a .gguf or a checkpoint folder says of itself, by a `Pack`'s names. ZephyraError: it is damaged."""
    if path.is_dir():
        return _config_facts(path)
    from zephyra_converters.gguf_check import check_gguf

    return header_facts(check_gguf(path))


def header_facts(header: GGUFHeader) -> dict[str, Any]:
    """As `facts`, of the header of a model or an adapter."""
    from math import prod

    context = header.metadata.get(f"{header.architecture}.context_length")
    types = Counter(tensor.type_name for tensor in header.tensors.values() if len(tensor.shape) > 1)
    return {
        "description": f"{header.metadata.get('general.name', '')}"[:200],
        "license": f"{header.metadata.get('general.license', '')}"[:200],
        "architecture": header.architecture,
        "parameters": sum(prod(tensor.shape) for tensor in header.tensors.values()),
        "context_length": context if isinstance(context, int) else 0,
        "quantization": types.most_common(1)[0][0] if types else "",
    }


def _config_facts(folder: Path) -> dict[str, Any]:
    """Of `config.json` and the headers of the weights; nothing of them is computed."""
    from math import prod

    from zephyra_converters.json_file import read_json
    from zephyra_converters.safetensors_file import read_safetensors

    config = read_json(folder / "config.json")
    kind, context = config.get("model_type"), config.get("max_position_embeddings")
    tensors = [t for file in sorted(folder.glob("*.safetensors")) for t in read_safetensors(file).values()]
    types = Counter(tensor.dtype for tensor in tensors)
    return {
        "architecture": kind[:100] if isinstance(kind, str) else "",
        "parameters": sum(prod(tensor.shape) for tensor in tensors),
        "context_length": context if type(context) is int and 0 < context < 2**31 else 0,
        "quantization": types.most_common(1)[0][0] if types else "",
    }


def _of_file(path: Path) -> _Habits:
    from zephyra_converters.gguf_header import read_header

    header = read_header(path)
    metadata = header.metadata
    words = header.strings("tokenizer.ggml.tokens")
    bos, eos = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    starts = metadata.get("tokenizer.ggml.add_bos_token", _starts_by_habit(metadata))
    return _Habits(
        template=metadata.get("tokenizer.chat_template"),
        first=bos if starts and isinstance(bos, int) else None,
        spelled={
            name: words[token] if isinstance(token, int) and 0 <= token < len(words) else ""
            for name, token in (("bos_token", bos), ("eos_token", eos))
        },
    )


def _of_folder(path: Path, backend: Backend, *, raw: bool) -> _Habits:
    """As transformers: a chat template writes its own first token, a plain text gets the tokenizer's."""
    from zephyra_converters.hf import read_tokenizer_files

    files = read_tokenizer_files(path)
    if files is None:
        return _Habits(template=None, first=None, spelled={})
    spelled = {name: files.special_token(name) or "" for name in ("bos_token", "eos_token")}
    bos = spelled["bos_token"]
    written = bool(bos) and json.dumps(bos) in json.dumps(files.tokenizer.get("post_processor"))
    starts = raw and bool(bos) and bool(files.config.get("add_bos_token", written))
    first = backend.encode(bos, special=True)[0] if starts else None
    return _Habits(template=files.chat_template, first=first, spelled=spelled)


def _starts_by_habit(metadata: Mapping[str, object]) -> bool:
    """Whether llama.cpp puts a first token before text where the file does not say."""
    pre = metadata.get("tokenizer.ggml.pre")
    return metadata.get("tokenizer.ggml.model") == "llama" or pre in ("llama3", "llama-v3", "llama-bpe")
