"""What a folder says about its model beside the weights: README.md's front matter and generation_config.json.

As GGUF's keys, which llama.cpp's own converter writes too (gguf-py's metadata.py); its guesses from names are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zephyra_converters.gguf_file import Signed

_LONGEST = 2**18  # characters of a front matter
# GGUF's key behind general.sampling: (generation_config.json's, its type)
_SAMPLING: Mapping[str, tuple[str, type]] = {
    "top_k": ("top_k", Signed),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "temp": ("temperature", float),
    "penalty_repeat": ("repetition_penalty", float),
}


def sampling_metadata(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling that a model's makers recommend; what is no finite number is left out."""
    found: dict[str, Any] = {}
    for key, (theirs, kind) in _SAMPLING.items():
        value: Any = generation.get(theirs)
        if type(value) in (int, float) and math.isfinite(value) and abs(value) < 2**31:
            found[f"general.sampling.{key}"] = kind(value)
    return found


def card_metadata(folder: Path) -> dict[str, Any]:
    """License, tags, languages, and where the model comes from; a README without front matter says nothing."""
    card = _front_matter(folder / "README.md")
    found: dict[str, Any] = {}
    for key, theirs in (("license", "license"), ("license.name", "license_name"), ("license.link", "license_link")):
        if said := _texts(card, theirs):
            found[f"general.{key}"] = ",".join(said)
    for key, names in (("tags", ("tags", "pipeline_tag")), ("languages", ("languages", "language"))):
        if said := [text for name in names for text in _texts(card, name)]:
            found[f"general.{key}"] = said
    for key, name in (("base_model", "base_model"), ("dataset", "datasets")):
        if said := _texts(card, name):
            found[f"general.{key}.count"] = len(said)
            found |= {f"general.{key}.{n}.{k}": v for n, text in enumerate(said) for k, v in _repository(text)}
    return found


def _repository(text: str) -> Iterator[tuple[str, str]]:
    owner, slash, name = text.partition("/")
    if "://" in text:
        yield "repo_url", text
    elif slash:
        yield "name", name
        yield "organization", owner
        yield "repo_url", f"https://huggingface.co/{text}"
    else:
        yield "name", text


def _texts(card: Mapping[str, Any], key: str) -> list[str]:
    value = card.get(key)
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str) and text]


def _front_matter(path: Path) -> Mapping[str, Any]:
    """The YAML between two lines of three dashes, every scalar as text ("no" is a language); {} where there is none."""
    import yaml

    try:
        with path.open(encoding="utf-8") as file:
            start, dashes, rest = file.read(_LONGEST).partition("---\n")
    except (OSError, UnicodeDecodeError):
        return {}
    text, end, _ = f"\n{rest}".partition("\n---\n")
    if start or not dashes or not end:
        return {}
    try:
        card = yaml.load(text, Loader=yaml.BaseLoader)  # makes nothing but texts, lists and tables
    except (yaml.YAMLError, RecursionError):
        return {}
    return card if isinstance(card, dict) else {}
