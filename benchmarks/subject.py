"""What is measured: a model and the held-out data, by the same options for every benchmark."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zephyra_cli.engine import Engine
    from zephyra_cli.pack import Pack

CHAT = "chat"  # belongs to the base: the router's answer to it is `none`


def arguments(description: str | None) -> ArgumentParser:
    """The options that all benchmarks have."""
    parser = ArgumentParser(description=(description or "").split("\n\n")[0])
    parser.add_argument("--model", default="zephyra-nano", help="a pack, by name or folder (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures into this file, beside others'")
    parser.add_argument("--threads", type=int, help="default: what zephyra itself would take")
    return parser


@dataclass(frozen=True)
class Subject:
    """A pack and the data folder of README.md's layout (`domains/NAME/valid`, `chat/valid`, `router/ood_dev`)."""

    pack: Pack
    data: Path
    threads: int | None = None

    @classmethod
    def of(cls, options: Namespace) -> Subject:
        from zephyra_cli import store
        from zephyra_fusion.errors import ZephyraError

        try:
            pack = store.find(options.model, offline=True)
        except ZephyraError as error:
            raise SystemExit(f"error: {error}") from None
        if not (options.data / "domains").is_dir():
            raise SystemExit(f"error: no held-out data in {options.data}: choose with --data")
        return cls(pack, options.data, options.threads)

    @property
    def domains(self) -> list[str]:
        """The domains that have held-out data, by name."""
        return sorted(folder.name for folder in (self.data / "domains").iterdir() if folder.is_dir())

    @property
    def own_domains(self) -> list[str]:
        """Those of them for which the model has an adapter."""
        return [domain for domain in self.domains if domain in self.pack.adapters]

    def valid(self, domain: str, limit: int | None = None) -> list[dict[str, Any]]:
        """Held-out records `{"prompt", "response", "source"}`; with `limit`, always the same drawn ones."""
        return draw(self._lines(CHAT if domain == CHAT else f"domains/{domain}"), limit)

    def out_of_domain(self) -> list[str]:
        """Prompts of no domain. Every other line: the router's threshold was set on the rest."""
        return [line["prompt"] for line in self._lines("router/ood_dev")[1::2]]

    def engine(self) -> Engine:
        from zephyra_cli.engine import Engine

        return Engine.open(self.pack, threads=self.threads)

    def _lines(self, name: str) -> list[dict[str, Any]]:
        from zephyra_fusion.train.sources import read_lines, source_file

        return list(read_lines(source_file(self.data, name, "valid")))


def draw(records: Sequence[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    """`limit` records, always the same ones, in their order; all where there are no more or `limit` is None."""
    if limit is None or len(records) <= limit:
        return list(records)
    chosen = Random(len(records)).sample(range(len(records)), limit)
    return [records[index] for index in sorted(chosen)]
