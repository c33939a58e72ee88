"""A GGUF's vocabulary as the files that `tokenizers` and `transformers` read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zephyra_converters.checkpoint import TokenizerFiles
from zephyra_converters.sentencepiece_vocab import Pieces
from zephyra_converters.sentencepiece_vocab import tokenizer_json as sentencepiece_json
from zephyra_converters.token_template import template
from zephyra_converters.tokenizer import CONTROL, NORMAL, PRE_TOKENIZERS, UNUSED, USER_DEFINED
from zephyra_fusion.errors import ZephyraError


def tokenizer_files_of(metadata: Mapping[str, Any]) -> TokenizerFiles:
    """`tokenizer.json` and `tokenizer_config.json` that tokenize as the GGUF vocabulary does."""
    keys = {k.removeprefix("tokenizer.ggml."): v for k, v in metadata.items() if k.startswith("tokenizer.ggml.")}
    if keys.get("model") == "llama":
        return _with_specials(_sentencepiece_json(keys), keys, metadata, first_is_default=True)
    if keys.get("model") != "gpt2" or keys.get("pre") not in PRE_TOKENIZERS:
        raise ZephyraError(
            f"cannot read back a vocabulary '{keys.get('model')}' with pre-tokenizer '{keys.get('pre')}'",
            hint=f"known: llama, and gpt2 with {', '.join(PRE_TOKENIZERS)}",
        )
    regex, ignore_merges = PRE_TOKENIZERS[keys["pre"]]
    tokens, types = keys["tokens"], keys.get("token_type") or [NORMAL] * len(keys["tokens"])
    special = [n for n, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps: list[dict[str, Any]] = [{**byte_level, "use_regex": regex in (None, "digits")}]
    if regex == "digits":
        steps.insert(0, {"type": "Digits", "individual_digits": True})
    elif regex is not None:
        steps.insert(0, {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False})
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": n, "content": tokens[n], **plain, "special": types[n] == CONTROL} for n in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0],
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": {token: n for n, token in enumerate(tokens) if types[n] != UNUSED},
            "merges": list(keys.get("merges", ())),
        },
    }
    return _with_specials(tokenizer, keys, metadata, first_is_default=keys["pre"] == "llama-bpe")


def _sentencepiece_json(keys: Mapping[str, Any]) -> dict[str, Any]:
    tokens, scores = list(keys["tokens"]), list(keys["scores"])
    prefix = bool(keys.get("add_space_prefix", True))
    return sentencepiece_json(Pieces(tokens, scores, list(keys["token_type"]), prefix))


def _with_specials(
    tokenizer: dict[str, Any], keys: Mapping[str, Any], metadata: Mapping[str, Any], *, first_is_default: bool
) -> TokenizerFiles:
    """With special tokens by name, and with those that go before and after a text.

    `first_is_default`: llama.cpp puts one before the text where the file does not say.
    """
    tokens = keys["tokens"]
    add_bos, add_eos = bool(keys.get("add_bos_token", first_is_default)), bool(keys.get("add_eos_token", False))
    before, after = (
        {tokens[number]: number} if wanted and (number := keys.get(f"{key}_token_id")) is not None else {}
        for wanted, key in ((add_bos, "bos"), (add_eos, "eos"))
    )
    tokenizer["post_processor"] = template(before, after)
    names = {"eos_token": "eos", "bos_token": "bos", "pad_token": "padding"}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": add_bos,
        "clean_up_tokenization_spaces": False,
    }
    for name, key in names.items():
        if (number := keys.get(f"{key}_token_id")) is not None:
            config[name] = tokens[number]
    named = {name: metadata[key] for key in metadata if (name := key.removeprefix("tokenizer.chat_template.")) != key}
    return TokenizerFiles(
        tokenizer=tokenizer,
        config=config,
        chat_template=metadata.get("tokenizer.chat_template"),
        named_templates=named,
    )
