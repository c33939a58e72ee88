"""Which of a repository's GGUF files to take: the one that was named, or the one that fits this machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from zephyra_cli.disk import amount
from zephyra_cli.hub import RemoteFile
from zephyra_fusion.errors import ZephyraError, did_you_mean

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_TYPE = re.compile(
    r"(?i)(?:^|[-._/])((?:UD-)?I?Q\d_(?:K_[A-Z]+|K|\d(?:_\d+)*|[A-Z]+)|TQ\d_0|MXFP4|BF16|F16|F32|FP16|FP32)$"
)
_NO_MODEL = re.compile(r"(?i)(?:^|[-._/])(?:mmproj|imatrix|lora|adapter|mtp|draft)(?:[-._]|$)")
_PLAIN = ("F32", "F16", "BF16", "FP16", "FP32")
_USUAL = "Q4_K_M"


@dataclass(frozen=True)
class Candidate:
    """A model as GGUF: one file, or the shards of one, in order. `quantization`: "" where the name does not say.

    `count`: how many files it should be; a repository may lack some.
    """

    name: str
    quantization: str
    files: tuple[RemoteFile, ...]
    count: int = 1

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def whole(self) -> bool:
        return len(self.files) == self.count

    @property
    def is_model(self) -> bool:
        """Whole, and not what goes with a model: a projector, an importance matrix, an adapter, a draft."""
        return self.whole and not _NO_MODEL.search(self.name)


def candidates(files: Mapping[str, RemoteFile]) -> list[Candidate]:
    """The models among the files, the smallest first; shards may be missing."""
    groups: dict[tuple[str, int], list[RemoteFile]] = {}
    for name in sorted(files):
        if shard := _SHARD.fullmatch(name):
            groups.setdefault((shard["stem"], int(shard["count"])), []).append(files[name])
        elif name.endswith(".gguf"):
            groups[name.removesuffix(".gguf"), 1] = [files[name]]
    found = [Candidate(stem, quantization_of(stem), tuple(group), count) for (stem, count), group in groups.items()]
    return sorted(found, key=lambda candidate: candidate.size)


def quantization_of(stem: str) -> str:
    """The type that a file's name tells ("Q4_K_M", "UD-Q4_K_XL", "F16"), else nothing."""
    match = _TYPE.search(stem)
    return re.sub("^FP", "F", match[1].upper()) if match else ""


def means(part: str, candidate: Candidate) -> int | None:
    """How plainly a reference's part names a candidate: 0 is the plainest; None: not at all."""
    files, stems = [file.name for file in candidate.files], [candidate.name, f"{candidate.name}.gguf"]
    ways = (
        part in files,
        part in stems,
        part in [PurePosixPath(name).name for name in files],
        part in [PurePosixPath(name).name for name in stems],
        part.upper() == candidate.quantization and not _NO_MODEL.search(candidate.name),
    )
    return ways.index(True) if any(ways) else None


def named(found: Iterable[Candidate], part: str) -> Candidate | None:
    """The one that `part` means: a file, its stem, or a quantization; None for none.

    ZephyraError: several, or shards of it are missing.
    """
    ranks = [(rank, c) for c in found if (rank := means(part, c)) is not None]
    plainest = [c for rank, c in ranks if rank == min(rank for rank, _ in ranks)]
    meant = [c for c in plainest if c.whole] or plainest[:1]
    if len(meant) > 1:
        names = ", ".join(c.files[0].name for c in meant)
        raise ZephyraError(f"'{part}' means several files: {names}", hint="name the file itself")
    return _whole(meant[0]) if meant else None


def _whole(candidate: Candidate) -> Candidate:
    if not candidate.whole:
        raise ZephyraError(
            f"'{candidate.name}' is {candidate.count} files, the repository has {len(candidate.files)} of them"
        )
    return candidate


def choose(found: Iterable[Candidate], memory: int) -> tuple[Candidate, str]:
    """The one for a machine with `memory` bytes (0: unknown), and why. ZephyraError: none fits.

    The best that takes a quarter of the memory at most; where all take more, the usual Q4_K_M or what is next below it;
    at most what leaves a fifth and half a GiB for the cache, the computation and the system.
    """
    found = list(found)
    likely = [c for c in found if len(found) == 1 or not _NO_MODEL.search(c.name)]
    models = [c for c in likely if c.whole] or [_whole(c) for c in likely]
    if not models:
        raise ZephyraError("none of the GGUF files looks like a language model", hint="name one: hf:owner/name:FILE")
    if len(models) == 1 and not memory:
        return models[0], "the only one"
    limit = memory * 4 // 5 - 2**29
    fitting = [c for c in models if c.size <= limit] if memory else models
    if not fitting:
        least = models[0]
        raise ZephyraError(
            f"even the smallest, {_said(least)}, does not fit: this machine has {memory / 1e9:.1f} GB of memory",
            hint=f"name it to take it all the same: {least.quantization or least.name}",
        )
    if len(models) == 1:
        return models[0], "the only one, and it fits"
    small = [c for c in fitting if c.quantization not in _PLAIN] or fitting
    if easy := [c for c in small if memory and c.size <= memory // 4]:
        best = easy[-1]
        return best, f"{_said(best)}: the best that takes at most a quarter of this machine's {memory / 1e9:.1f} GB"
    usual = next((c for c in small if c.quantization == _USUAL), None)
    if usual:
        return usual, f"{_said(usual)}: the usual balance of size and quality" + (", and it fits" if memory else "")
    ceiling = next((c.size for c in models if c.quantization == _USUAL), 0)
    below = [c for c in small if c.size <= ceiling] or small
    return below[-1], f"{_said(below[-1])}: the best that fits into {memory / 1e9:.1f} GB of memory"


def unknown(part: str, found: Iterable[Candidate]) -> ZephyraError:
    """The error for a part that means nothing."""
    found = list(found)
    names = [c.quantization or c.name for c in found]
    return ZephyraError(f"the repository has no GGUF file or quantization '{part}'", hint=did_you_mean(part, names))


def _said(candidate: Candidate) -> str:
    return f"{candidate.quantization or candidate.name} ({amount(candidate.size)})"
