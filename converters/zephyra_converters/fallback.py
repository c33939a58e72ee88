"""Which tensors do not get the type that was asked for, and why: in words, for the report."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping

from zephyra_converters.quantize import Quantization


def fallbacks(types: Mapping[str, str], fell: Collection[str], wanted: Quantization) -> list[str]:
    """`types` of all matrices; `fell`: those whose rows the blocks of their type do not divide."""
    said, rest = [], set(fell)
    patterns = wanted.tensor_types
    first = {name: next((n for n, (p, _) in enumerate(patterns) if re.search(p, name)), None) for name in types}
    for number, (pattern, kind) in enumerate(patterns):
        mine = {name for name, taken_by in first.items() if taken_by == number}
        other = {name for name in mine if types[name] != kind}
        option, rest = f"--tensor-type '{pattern}={kind}'", rest - mine
        if not mine:
            said.append(f"{option} has no effect: earlier patterns take all of its tensors")
        if undivided := other & set(fell):
            said.append(f"{option}: rows that {kind}'s blocks do not divide fell back: {_listed(undivided, types)}")
        if kept := other - set(fell):
            said.append(f"{option}: llama.cpp does not quantize all of its tensors: {_listed(kept, types)}")
    if rest:
        said.append(f"rows that the blocks of {wanted.name}'s mixture do not divide fell back: {_listed(rest, types)}")
    return said


def _listed(names: Collection[str], types: Mapping[str, str]) -> str:
    counts = Counter(types[name] for name in names)
    return ", ".join(f"{count} as {kind}" for kind, count in sorted(counts.items())) + " tensors"
