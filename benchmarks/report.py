"""The figures of one benchmark: printed with the target beside each, and kept in one file for all benchmarks."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any


@dataclass
class Report:
    """`name` is the benchmark's; a figure without a bound is information, one with a bound is reached or missed."""

    name: str
    about: str = ""
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    load: float = field(default_factory=lambda: os.getloadavg()[0])

    def figure(
        self,
        key: str,
        text: str,
        value: float,
        *,
        unit: str = "",
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """One number. `unit` "%" takes a share (0.97) and shows 97.0 %; bounds are in the same terms as `value`."""
        reached = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
        self.figures[key] = {"text": text, "value": value, "unit": unit}
        if at_least is not None or at_most is not None:
            bound = {"at_least": at_least} if at_least is not None else {"at_most": at_most}
            self.figures[key] |= {**bound, "reached": reached}

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A matrix for the eye (and the JSON)."""
        self.tables[title] = {"columns": list(columns), "rows": [list(row) for row in rows]}

    def finish(self, path: Path | None) -> None:
        """Print everything; with a path, put it there under this benchmark's name and leave the others' alone."""
        progress("")
        for title, table in self.tables.items():
            print(f"\n{title}")
            print(aligned([table["columns"], *([_cell(value) for value in row] for row in table["rows"])]))
        print(f"\n{self.name}{': ' + self.about if self.about else ''}")
        print(aligned([["", "value", "target", ""], *map(_row, self.figures.values())]))
        print("\n" + ", ".join(f"{key} {value}" for key, value in self.machine().items()))
        if path is not None:
            known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            known[self.name] = {
                "about": self.about,
                "command": " ".join(["python", *sys.argv]),
                "date": date.today().isoformat(),
                "machine": self.machine(),
                "figures": self.figures,
                "tables": self.tables,
            }
            path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def machine(self) -> dict[str, Any]:
        """What the figures depend on. `load` is the machine's at the start: near 0, or the times mean little."""
        from zephyra_cli.backends.library import VERSION
        from zephyra_cli.devices import cpu_model, usable_cores
        from zephyra_fusion import __version__

        return {
            "processor": cpu_model(),
            "cores": usable_cores(),
            "load": round(self.load, 2),
            "python": platform.python_version(),
            "llama-cpp-python": VERSION,
            "zephyra": __version__,
        }


def progress(text: str) -> None:
    """For who waits at a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="" if text else "\r", file=sys.stderr, flush=True)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left, all others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def shown(value: float, unit: str) -> str:
    """97.0 % of a share; four digits of any other number, with its unit."""
    if unit == "%":
        return f"{100 * value:.1f} %" if abs(value) >= 0.002 or value == 0 else f"{100 * value:.3f} %"
    return f"{_cell(value)} {unit}".rstrip()


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _row(figure: dict[str, Any]) -> list[str]:
    unit = figure["unit"]
    target = next((f"{sign} {shown(figure[k], unit)}" for k, sign in _SIGNS if k in figure), "")
    verdict = {True: "reached", False: "MISSED", None: ""}[figure.get("reached")]
    return [figure["text"], shown(figure["value"], unit), target, verdict]


_SIGNS = (("at_least", "≥"), ("at_most", "≤"))
