"""What a conversion says of itself: the same figures for a person, for `--json` and for a pack's manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from zephyra_converters.comparison import Comparison


@dataclass(frozen=True, kw_only=True)
class Part:
    """One converted file: a base, an adapter or a router."""

    file: str
    kind: str  # base | adapter | router | checkpoint
    source: str
    architecture: str
    parameters: int
    quantization: str
    bytes: int  # 0 where nothing was written
    tensors: Mapping[str, int] = field(default_factory=dict)  # how many tensors ended with which type
    rank: int | None = None
    calibration: str | None = None  # the importance matrix that it was quantized with
    verification: Comparison | None = None
    license: str | None = None

    def to_dict(self) -> dict[str, Any]:
        values = {key: value for key, value in asdict(self).items() if value is not None}
        if self.verification is not None:
            values["verification"] = self.verification.to_dict()
        return values


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole conversion. `dry_run`: nothing was written, `bytes` are computed from the headers."""

    source: str
    target: str
    kind: str  # base | adapter | router | pack
    parts: tuple[Part, ...]
    warnings: tuple[str, ...] = ()
    dry_run: bool = False
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # dry run of a base: by type, bytes and memory
    elapsed_ms: float = 0.0

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "target": self.target,
            "kind": self.kind,
            "dry_run": self.dry_run,
            "bytes": self.bytes,
            "parts": [part.to_dict() for part in self.parts],
            "warnings": list(self.warnings),
            "sizes": {name: {"bytes": size, "memory": memory} for name, (size, memory) in self.sizes.items()},
            "elapsed_ms": round(self.elapsed_ms, 1),
        }
