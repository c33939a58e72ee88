"""The tokens that go before and after a text: tokenizer.json's post-processor, read and made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zephyra_fusion.errors import ZephyraError


def adds_tokens(tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether encoding a text puts a token before it, and one after it.

    The template says so; where there is no post-processor at all `add_bos_token` and `add_eos_token` of
    tokenizer_config.json do, as in llama.cpp and in transformers 4 (which made a template of them).
    """
    post = tokenizer.get("post_processor")
    if not post:
        return bool(config.get("add_bos_token")), bool(config.get("add_eos_token"))
    for step in post.get("processors", [post]):
        if step.get("type") == "TemplateProcessing":
            single = step.get("single") or []
            text = next((n for n, piece in enumerate(single) if "Sequence" in piece), 0)
            return text > 0, text + 1 < len(single)
        if step.get("type") not in (None, "ByteLevel"):
            raise ZephyraError(f"the tokenizer's post_processor '{step.get('type')}' has no counterpart in llama.cpp")
    return False, False


def template(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Any] | None:
    """The post-processor that puts these tokens (by text, with their ids) around every text; None for none."""
    if not before and not after:
        return None

    def pieces(text: str, segment: int) -> list[dict[str, Any]]:
        middle = {"Sequence": {"id": text, "type_id": segment}}
        first, last = ([{"SpecialToken": {"id": t, "type_id": segment}} for t in side] for side in (before, after))
        return [*first, middle, *last]

    return {
        "type": "TemplateProcessing",
        "single": pieces("A", 0),
        "pair": [*pieces("A", 0), *pieces("B", 1)],
        "special_tokens": {t: {"id": t, "ids": [n], "tokens": [t]} for t, n in {**before, **after}.items()},
    }
