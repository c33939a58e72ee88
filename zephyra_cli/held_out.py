"""A data folder's held-out part: which domains it has, and their records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.sources import read_lines, source_file

CHAT = "chat"  # belongs to the base: the router's answer to it is `none`
OUTSIDE = "router/ood_dev"  # prompts of no domain


@dataclass(frozen=True)
class HeldOut:
    """`domains/NAME/valid`, `chat/valid` and `router/ood_dev` in `.jsonl`, `.jsonl.gz` or `.jsonl.zst`.

    Records are `{"prompt", "response"}` or `{"text"}`. Without a folder `domains`, what lies in the folder itself are
    the domains. ZephyraError: no such folder, no domain in it, a record that is neither.
    """

    root: Path

    @property
    def domains(self) -> list[str]:
        """By name; `chat` is none of them."""
        if not self.root.is_dir():
            raise ZephyraError(f"'{self.root}' is no folder")
        found = sorted(set(self._names()) - {CHAT})
        if not found:
            raise ZephyraError(
                f"no domain in '{self.root}'", hint="one is domains/NAME/valid.jsonl (or .jsonl.gz, .jsonl.zst)"
            )
        return found

    @property
    def has_chat(self) -> bool:
        return bool(list(self.root.glob(f"{CHAT}/valid.jsonl*")))

    def valid(self, domain: str, limit: int | None = None) -> list[dict[str, Any]]:
        """The domain's records; with `limit`, always the same drawn ones."""
        records = self._lines(CHAT if domain == CHAT else f"{self._prefix}{domain}")
        for number, record in enumerate(records, 1):
            texts = [record.get(key) for key in ("prompt", "response", "text")] if isinstance(record, dict) else []
            if not (texts and (texts[2] or all(texts[:2])) and all(isinstance(t, str | None) for t in texts)):
                raise ZephyraError(f"record {number} of '{domain}' has neither prompt and response nor a text")
        return draw(records, limit)

    def out_of_domain(self) -> list[str]:
        """Prompts of no domain, none where the folder has no such file. Every other line: the router's threshold was
        set on the rest."""
        if not list(self.root.glob(f"{OUTSIDE}*")):
            return []
        return [line["prompt"] for line in self._lines(OUTSIDE)[1::2]]

    @property
    def _prefix(self) -> str:
        return "domains/" if (self.root / "domains").is_dir() else ""

    def _names(self) -> Iterator[str]:
        for path in (self.root / self._prefix).iterdir():
            if path.is_dir() and list(path.glob("valid.jsonl*")):
                yield path.name
            elif path.is_file() and ".jsonl" in path.name:
                yield path.name.partition(".jsonl")[0]

    def _lines(self, name: str) -> list[dict[str, Any]]:
        return list(read_lines(source_file(self.root, name, "valid")))


def question(record: dict[str, Any]) -> str:
    """What of a record the router sees."""
    return str(record["prompt"] if "prompt" in record else record["text"])


def draw(records: Sequence[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    """`limit` records, always the same ones, in their order; all where there are no more or `limit` is None."""
    if limit is None or len(records) <= limit:
        return list(records)
    chosen = Random(len(records)).sample(range(len(records)), limit)
    return [records[index] for index in sorted(chosen)]
