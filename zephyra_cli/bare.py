"""A bare .gguf as a chat model: its own template and its own habit of a first token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zephyra_cli.text import encode
from zephyra_fusion.chat import ZEPHYRA, ZEPHYRA_JINJA
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import Message, Segment

if TYPE_CHECKING:
    from zephyra_cli.backends.protocol import Backend


def bare_prompt(path: Path, messages: Sequence[Message], backend: Backend, *, raw: bool) -> list[int]:
    """Ids of the conversation (or, `raw`, of the last message alone). ZephyraError: the file has no chat template."""
    from zephyra_converters.gguf_header import read_header

    header = read_header(path)
    metadata = header.metadata
    bos, eos = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    template = metadata.get("tokenizer.chat_template")
    if raw:
        segments = [Segment(messages[-1].content)]
    elif template == ZEPHYRA_JINJA:
        segments = ZEPHYRA.render(messages)
    elif isinstance(template, str):
        from zephyra_cli.template import render

        words = header.strings("tokenizer.ggml.tokens")
        spelled = {
            name: words[token] if isinstance(token, int) and 0 <= token < len(words) else ""
            for name, token in (("bos_token", bos), ("eos_token", eos))
        }
        segments = render(template, messages, spelled)
    else:
        raise ZephyraError(f"'{path}' has no chat template", hint="--raw continues the text without one")
    ids = encode(segments, backend)
    starts = metadata.get("tokenizer.ggml.add_bos_token", _starts_by_habit(metadata))
    return [bos, *ids] if starts and isinstance(bos, int) and ids[:1] != [bos] else ids


def _starts_by_habit(metadata: Mapping[str, object]) -> bool:
    """Whether llama.cpp puts a first token before text where the file does not say."""
    pre = metadata.get("tokenizer.ggml.pre")
    return metadata.get("tokenizer.ggml.model") == "llama" or pre in ("llama3", "llama-v3", "llama-bpe")
