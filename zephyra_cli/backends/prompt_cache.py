"""A long prompt that was read once is not read again tomorrow: the cache of keys and values on disk.

What was read is valid for the base, the adapters and their weights, the tokens, this library and the layout of its
cache. Files are known by their SHA-256, which is computed once for a file of this size and time of change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zephyra_cli.backends.adapters import Adapters
from zephyra_cli.backends.kv import Context, ContextSettings, common_prefix
from zephyra_cli.backends.library import VERSION
from zephyra_cli.backends.mix import Mix
from zephyra_cli.backends.prompt_folder import Found, PromptFolder

LEAST = 64
"""Tokens below which a file is not worth writing."""
_HASHES = "zephyra-files.json"


class PromptCache:
    """The prompts of one model in a folder. Models with sliding windows are left out: their cache forgets."""

    def __init__(self, files: PromptFolder, settings: ContextSettings, base: Path, adapters: Adapters) -> None:
        self._files, self._settings, self._base, self._adapters = files, settings, base, adapters
        self._keys: dict[Mix, bytes] = {}
        self._found: Found | None = None  # what the last prompt begins with on disk

    def restore(self, context: Context, mix: Mix, prompt: Sequence[int]) -> None:
        """Fill the context with the longest beginning of `prompt` that is on disk, where it lacks that."""
        self._found = None
        if self._settings.window or len(prompt) < LEAST:
            return
        key = self._key(mix)
        found = self._files.longest(key, prompt, context.size)
        if found is not None and found.common > common_prefix(context.tokens, prompt):
            content = self._files.read(found.path, key)
            if content is None or not context.restore(*content):
                return
        self._found = found

    def keep(self, context: Context, mix: Mix, prompt: Sequence[int]) -> None:
        """Write what the context holds, which has just read `prompt`, where that is news to the disk."""
        known = self._found.common if self._found else 0
        if self._settings.window or len(prompt) - known < LEAST:
            return
        whole = self._found is not None and self._found.common == self._found.count
        self._files.write(self._key(mix), prompt, context.state(), self._found.path if self._found and whole else None)

    def _key(self, mix: Mix) -> bytes:
        import json

        if mix not in self._keys:
            weights = [weight for _, weight in mix]
            facts = {
                "library": VERSION,
                "layout": [self._settings.kv_type, self._settings.flash_attention],
                "base": self._sha256(self._base),
                "adapters": [[self._sha256(p), w] for p, w in zip(self._adapters.paths(mix), weights, strict=True)],
            }
            self._keys[mix] = hashlib.sha256(json.dumps(facts).encode()).digest()
        return self._keys[mix]

    def _sha256(self, path: Path) -> str:
        """Of a file; remembered in the folder."""
        import json

        about = path.stat()
        name, stamp = str(path.resolve()), [about.st_size, about.st_mtime_ns]
        known = self._known()
        if known is not None and name in known and known[name][:2] == stamp:
            return str(known[name][2])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if known is not None:
            self._files.store(_HASHES, [json.dumps({**known, name: [*stamp, digest]}).encode()])
        return digest

    def _known(self) -> dict[str, list[Any]] | None:
        """Size, time of change and SHA-256 of files; None: what stands there is not ours to write over."""
        import json

        place = self._files.folder / _HASHES
        try:
            if place.exists() and not place.is_file():
                return None
            known = json.loads(place.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError):
            return None
        ours = isinstance(known, dict) and all(_is_entry(entry) for entry in known.values())
        return known if ours else None


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and [type(part) for part in entry] == [int, int, str]
