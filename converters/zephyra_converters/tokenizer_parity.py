"""The gate of every export: the same ids from `tokenizers` and from the GGUF's own vocabulary, on hostile text."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from zephyra_converters.sentencepiece_vocab import prefix_after_controls
from zephyra_fusion.errors import ZephyraError

STRINGS = 3000

# Ranges worth mixing: Latin with accents, Greek, Cyrillic, Hebrew, Arabic, Devanagari, Thai, Hangul jamo, punctuation
# and its invisible signs, arrows, CJK, kana, Hangul, private use, presentation forms, half and full width, Gothic,
# mathematical letters, emoji and their modifiers, variation selectors and tags.
_RANGES = (
    (0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x400), (0x400, 0x500), (0x590, 0x600), (0x600, 0x700),
    (0x900, 0x980), (0xE00, 0xE80), (0x1100, 0x1200), (0x1E00, 0x1F00), (0x2000, 0x2070), (0x2150, 0x2200),
    (0x3000, 0x3100), (0x4E00, 0x4F00), (0xAC00, 0xAD00), (0xE000, 0xE010), (0xFE00, 0xFE10), (0xFB50, 0xFC00),
    (0xFF00, 0xFFF0), (0x10330, 0x10350), (0x1D400, 0x1D500), (0x1F300, 0x1F700), (0xE0020, 0xE0040),
)  # fmt: skip
_PIECES = (
    "don't", "I'LL", "we'Ve", "'s'S", "naïve", "Straße", "x2", "1234567", "3.14", "½", "٣٤٥", "第12章",
    "  ", "   ", " \n", "\n\n", "\r\n", "\r", "\t", "\t ", "\u00a0", "\u3000", "\u200b", "\u200d", "\ufeff",
    "\u0085", "\u2028", "\x00", "\x1b[0m", "def f(x):\n\treturn x", "SELECT * FROM t;", "https://a.b/c?d=e&f",
    "e\u0301", "\u0301", "👩\u200d👩\u200d👧", "🇩🇪", "👍🏽", "</s>", "<|im_end|>", "<|user", "|>", "!?…", "——",
    "\"'`", "{}[]()", "\\n", "中文字", "日本語", "한국어", "हिन्दी", "עברית", "ไทย",
)  # fmt: skip


def hostile_strings(count: int = STRINGS, controls: tuple[str, ...] = ()) -> list[str]:
    """Always the same strings: mixed scripts, lone marks, odd spaces, control tokens' text, every low byte.

    Code points that Python's Unicode table does not know are left out: tables of different age disagree on them.
    """
    draw = random.Random(20240229)
    pieces = _PIECES + controls
    strings = [chr(n) for n in range(0x100)] + list(pieces)
    while len(strings) < count:
        parts = []
        for _ in range(draw.randint(1, 12)):
            kind = draw.random()
            if kind < 0.35:
                parts.append(draw.choice(pieces))
            elif kind < 0.5:
                parts.append(draw.choice((" ", "  ", "\n", "\t", "")))
            else:
                low, high = draw.choice(_RANGES)
                points = (chr(draw.randrange(low, high)) for _ in range(draw.randint(1, 6)))
                parts.append("".join(c for c in points if unicodedata.category(c) not in ("Cn", "Cs")))
        strings.append("".join(parts))
    return strings


def check_tokenizer(tokenizer_json: Mapping[str, Any], tokenize: Callable[[str, bool], list[int]]) -> int:
    """Hold `tokenize(text, parse_special)` of a GGUF against tokenizer.json; returns the number of strings compared.

    A single difference is a ZephyraError that shows the string and both lists of ids.
    """
    import tokenizers

    reference = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json))
    added = tokenizer_json.get("added_tokens") or []
    controls = tuple(entry["content"] for entry in added if entry.get("special"))[:32]
    strings = hostile_strings(STRINGS, controls)
    if (tokenizer_json.get("normalizer") or {}).get("type") == "NFC":
        strings = [unicodedata.normalize("NFC", text) for text in strings]
    for special in (False, True) if prefix_after_controls(tokenizer_json) else (False,):
        reference.encode_special_tokens = not special
        for text, encoding in zip(strings, reference.encode_batch(strings, add_special_tokens=False), strict=True):
            ids = tokenize(text, special)
            if ids != encoding.ids:
                raise ZephyraError(
                    f"the GGUF's vocabulary reads {text!r} as {ids}, tokenizer.json as {encoding.ids}"
                    f" ({'with' if special else 'without'} control tokens)",
                    hint="llama.cpp cannot express this tokenizer exactly; nothing was written",
                )
    return 2 * len(strings)
