"""The metrics log: one JSON object a line, appended; what was logged after the restored step is cut off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class MetricsLog:
    def __init__(self, path: Path, *, resume_step: int = 0) -> None:
        self.path = path
        kept = []
        if resume_step and path.exists():
            for line in path.read_text().splitlines():
                if line.startswith("{") and json.loads(line).get("step", 0) <= resume_step:
                    kept.append(line)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in kept))

    def write(self, **values: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}) + "\n")
