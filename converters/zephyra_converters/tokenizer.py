"""Vocabularies: `tokenizer.json` to GGUF's keys and back; byte-level BPE here, SentencePiece in its own module.

llama.cpp knows a pre-tokenizer by name (`pre`) and has its regex compiled in: one that it does not have is refused, and
`tokenizer_parity` holds the outcome against `tokenizers` before a file gets its final name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zephyra_converters.checkpoint import TokenizerFiles
from zephyra_converters.sentencepiece_vocab import is_sentencepiece, pieces_of, prefix_after_controls
from zephyra_converters.token_template import adds_tokens
from zephyra_fusion.config import FusionConfig
from zephyra_fusion.errors import ZephyraError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # ggml's token types

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _TAIL
_QWEN35 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _TAIL
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _TAIL

# llama.cpp's name: (regex of the Split before ByteLevel, or "digits" or None for ByteLevel's own; ignore_merges)
PRE_TOKENIZERS: Mapping[str, tuple[str | None, bool]] = {
    "qwen2": (_QWEN2, False),
    "qwen35": (_QWEN35, False),
    "llama-bpe": (_LLAMA3, True),
    "dbrx": (_LLAMA3, False),
    "smollm": ("digits", False),
    "gpt-2": (None, False),
}


# How the regex of Mistral's Tekken begins. llama.cpp's `tekken` splits words before combining marks, it does not.
_TEKKEN = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*"


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What GGUF stores: tokens in id order (byte-mapped in a byte-level BPE), their types, merges or scores, special
    ids."""

    pre: str
    model: str = "gpt2"
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    ids: Mapping[str, int]  # eos, eot, eom, bos, unknown, padding
    add_bos: bool = False
    add_eos: bool = False
    add_space: bool = True  # before a text, in a SentencePiece vocabulary
    chat_template: str | None = None
    named_templates: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = field(default_factory=tuple)

    def metadata(self) -> dict[str, Any]:
        keys: dict[str, Any] = {
            "model": self.model,
            "pre": self.pre,
            "tokens": list(self.tokens),
            "token_type": list(self.types),
            **({"scores": list(self.scores)} if self.scores else {"merges": list(self.merges)}),
            **({} if self.add_space else {"add_space_prefix": False}),
            **{f"{name}_token_id": number for name, number in self.ids.items()},
            "add_bos_token": self.add_bos,
            "add_eos_token": self.add_eos,
        }
        result = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
        if self.chat_template:
            result["tokenizer.chat_template"] = self.chat_template
        if self.named_templates:
            named = {re.sub("[^A-Za-z0-9]", "_", name): text for name, text in self.named_templates.items()}
            result |= {f"tokenizer.chat_template.{name}": text for name, text in named.items()}
            result["tokenizer.chat_templates"] = list(named)
        return result


def vocabulary_of(files: TokenizerFiles, config: FusionConfig) -> Vocabulary:
    """The vocabulary of a checkpoint's tokenizer files. What llama.cpp would tokenize otherwise is refused by name."""
    tokenizer = files.tokenizer
    if is_sentencepiece(tokenizer):
        return _sentencepiece(files, config)
    warnings: list[str] = []
    model = tokenizer.get("model") or {}
    _check_model(model)
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    if normalizer == "NFC":
        warnings.append("the tokenizer normalizes text to NFC and llama.cpp does not: text in other forms differs")
    elif normalizer:
        raise ZephyraError(f"the tokenizer has a normalizer '{normalizer}', llama.cpp's byte-level BPE has none")
    added = tokenizer.get("added_tokens") or []
    tokens, types = _entries(model["vocab"], added, config.vocab_size)
    add_bos, add_eos = adds_tokens(tokenizer, files.config)
    return Vocabulary(
        pre=recognise_pre_tokenizer(tokenizer.get("pre_tokenizer"), bool(model.get("ignore_merges"))),
        tokens=tokens,
        types=types,
        merges=[m if isinstance(m, str) else " ".join(m) for m in model.get("merges", ())],
        ids=_special_ids(files, config, tokens, warnings),
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=files.chat_template,
        named_templates=files.named_templates,
        warnings=warnings,
    )


def _sentencepiece(files: TokenizerFiles, config: FusionConfig) -> Vocabulary:
    tokenizer, warnings = files.tokenizer, []
    _check_model(tokenizer["model"])
    pieces = pieces_of(tokenizer, files.config, files.sentencepiece, config.vocab_size)
    if not prefix_after_controls(tokenizer):
        warnings.append("after a control token llama.cpp puts a space before the text, this tokenizer does not")
    add_bos, add_eos = adds_tokens(tokenizer, files.config)
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=pieces.tokens,
        types=pieces.types,
        scores=pieces.scores,
        ids=_special_ids(files, config, pieces.tokens, warnings),
        add_bos=add_bos,
        add_eos=add_eos,
        add_space=pieces.space_prefix,
        chat_template=files.chat_template,
        named_templates=files.named_templates,
        warnings=warnings,
    )


def recognise_pre_tokenizer(value: Any, ignore_merges: bool) -> str:
    """llama.cpp's name for a pre-tokenizer of tokenizer.json; an unknown one is a ZephyraError that shows it."""
    steps = value.get("pretokenizers", [value]) if isinstance(value, Mapping) else []
    kinds = [step.get("type") for step in steps]
    wanted: tuple[str | None, bool] | None = None
    if kinds and kinds[-1] == "ByteLevel" and not steps[-1].get("add_prefix_space"):
        own_regex = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and own_regex:
            wanted = (None, ignore_merges)
        elif kinds == ["Digits", "ByteLevel"] and own_regex and steps[0].get("individual_digits"):
            wanted = ("digits", ignore_merges)
        elif kinds == ["Split", "ByteLevel"] and not own_regex and _splits_all(steps[0]):
            wanted = (steps[0]["pattern"].get("Regex"), ignore_merges)
    for name, known in PRE_TOKENIZERS.items():
        if known == wanted:
            return name
    if wanted is not None and str(wanted[0]).startswith(_TEKKEN):
        raise ZephyraError(
            "the tokenizer is Mistral's Tekken: llama.cpp reads words with combining marks (Hindi, say) otherwise",
            hint="run the folder itself with --backend torch",
        )
    raise ZephyraError(
        f"the pre-tokenizer {str(value)[:300]} (ignore_merges {ignore_merges}) has no counterpart in llama.cpp",
        hint=f"known: {', '.join(PRE_TOKENIZERS)}",
    )


def _splits_all(step: Mapping[str, Any]) -> bool:
    kept = (step.get("behavior"), bool(step.get("invert")))
    return kept in (("Isolated", False), ("Removed", True)) and isinstance(step.get("pattern"), Mapping)


def _check_model(model: Mapping[str, Any]) -> None:
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise ZephyraError(f"the tokenizer is a {kind} model, only BPE (byte-level or SentencePiece's) is supported")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ZephyraError(f"the tokenizer's BPE has {key} {model[key]!r}, llama.cpp has no such thing")


def _entries(vocab: Mapping[str, int], added: Sequence[Mapping[str, Any]], size: int) -> tuple[list[str], list[int]]:
    """Tokens and types in id order; ids that nothing uses are filled up to the embedding table's `size`."""
    by_id: dict[int, tuple[str, int]] = {number: (token, NORMAL) for token, number in vocab.items()}
    for entry in added:
        by_id[entry["id"]] = (entry["content"], CONTROL if entry.get("special") else USER_DEFINED)
    if by_id and max(by_id) >= size:
        raise ZephyraError(
            f"the tokenizer has ids up to {max(by_id)}, the embedding table has {size} rows",
            hint="the tokenizer and the checkpoint do not belong together, or the vocabulary grew",
        )
    entries = [by_id.get(n, (f"[PAD{n}]", UNUSED)) for n in range(size)]
    tokens = [token for token, _ in entries]
    if len(set(tokens)) != len(tokens):
        twice = sorted(token for token, count in Counter(tokens).items() if count > 1)
        raise ZephyraError(f"the tokenizer gives two ids to {', '.join(map(repr, twice[:6]))}")
    return tokens, [kind for _, kind in entries]


def _special_ids(
    files: TokenizerFiles, config: FusionConfig, tokens: Sequence[str], warnings: list[str]
) -> dict[str, int]:
    place = {token: n for n, token in enumerate(tokens)}

    def named(name: str) -> int | None:
        text = files.special_token(name)
        if text is not None and text not in place:
            warnings.append(f"the {name} of tokenizer_config.json, '{text}', is no token of the vocabulary: ignored")
        return place.get(text) if text is not None else None

    ends = list(dict.fromkeys(n for n in (named("eos_token"), *config.eos_token_ids) if n is not None))
    if not ends:
        raise ZephyraError(
            "neither config.json nor tokenizer_config.json names an end token (eos_token_id, eos_token)",
            hint="llama.cpp would take id 11 for it",
        )
    if len(ends) > 3:
        warnings.append(f"{len(ends)} end tokens: GGUF has a place for 3, the others count only where known by text")
    ids = dict(zip(("eos", "eot", "eom"), ends, strict=False))
    bos = named("bos_token")
    bos = config.bos_token_id if bos is None else bos
    ids["bos"] = ends[0] if bos is None else bos  # left out, llama.cpp would take id 11 for it
    padding = named("pad_token")
    padding = config.pad_token_id if padding is None else padding
    if padding is not None:
        ids["padding"] = padding
    unknown = place.get((files.tokenizer.get("model") or {}).get("unk_token") or "")
    if unknown is not None:
        ids["unknown"] = unknown
    if wrong := {name: n for name, n in ids.items() if not 0 <= n < len(tokens)}:
        listed = ", ".join(f"{name} {n}" for name, n in wrong.items())
        raise ZephyraError(f"special ids outside the vocabulary of {len(tokens)}: {listed}")
    return ids
