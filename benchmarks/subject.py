"""What is measured: a model and the held-out data, by the same options for every benchmark."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zephyra_cli.engine import Engine
    from zephyra_cli.held_out import HeldOut
    from zephyra_cli.pack import Pack


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
    def held_out(self) -> HeldOut:
        from zephyra_cli.held_out import HeldOut

        return HeldOut(self.data)

    @property
    def domains(self) -> list[str]:
        """The domains that have held-out data, by name."""
        return self.held_out.domains

    @property
    def own_domains(self) -> list[str]:
        """Those of them for which the model has an adapter."""
        return [domain for domain in self.domains if domain in self.pack.adapters]

    def valid(self, domain: str, limit: int | None = None) -> list[dict[str, Any]]:
        """Held-out records `{"prompt", "response", "source"}`; with `limit`, always the same drawn ones."""
        return self.held_out.valid(domain, limit)

    def engine(self) -> Engine:
        from zephyra_cli.engine import Engine
        from zephyra_cli.settings import Settings

        return Engine.open(self.pack, Settings(threads=self.threads))
