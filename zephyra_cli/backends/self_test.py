"""Can this build of llama.cpp compute on this processor? Tried in a child process, so that only the child can die.

gcc 12 miscompiles the AMX path of llama.cpp: such a build dies at the first quantized batch on processors with AMX.
Without the "extra buffer types" (AMX, repacking) the same build runs. The rule:

- no risk (the processor tells its flags and AMX is not among them): nothing is tested, nothing is paid;
- otherwise the first use tries a tiny quantized model in a child, with extra buffers, then without;
- the verdict is kept beside our other files and holds for this library file on this processor.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from zephyra_cli.backends.library import EXIT_ABORTED, INSTALL_HINT, library_path
from zephyra_cli.devices import cpu_flags, cpu_model
from zephyra_fusion.errors import ZephyraError

EXTRA, PLAIN, BROKEN = "extra buffers", "no extra buffers", "broken"
ADVICE = (
    "this build of llama.cpp crashes with its AMX code, so zephyra runs it without; "
    "a build by clang is faster (README, section on installing)"
)
_SECONDS = 60


def extra_buffers_allowed(wanted: bool) -> bool:
    """Whether a model may be loaded with extra buffer types. ZephyraError: the library dies even without them."""
    if not at_risk():
        return wanted
    found = verdict()
    if found == BROKEN:
        raise ZephyraError(f"{library_path()} crashes on this processor ({cpu_model()})", hint=INSTALL_HINT)
    return wanted and found == EXTRA


def at_risk() -> bool:
    """AMX, or a processor that does not tell its instruction sets."""
    flags = cpu_flags()
    return not flags or any(flag.startswith("amx") for flag in flags)


def verdict(child: Sequence[str] | None = None) -> str:
    """EXTRA, PLAIN or BROKEN, from the cache or by trying; `child` replaces the command that tries."""
    key, place = _key(), _cache_file()
    try:
        known, _, found = place.read_text().partition("\n")
        if known == key and found in (EXTRA, PLAIN, BROKEN):
            return found
    except (OSError, UnicodeDecodeError):
        pass
    command = list(child or [sys.executable, "-m", "zephyra_cli.backends.self_test"])
    if _survives([*command, EXTRA]):
        found = EXTRA
    elif _survives([*command, PLAIN]):
        found = PLAIN
        print(f"hint: {ADVICE}", file=sys.stderr)
    else:
        found = BROKEN
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_suffix(f".{os.getpid()}")
        draft.write_text(f"{key}\n{found}")
        draft.replace(place)
    except OSError:
        pass  # a home that cannot be written costs another test next time
    return found


def _survives(command: list[str]) -> bool:
    """ZephyraError: the child neither computed nor crashed, so nothing was learnt (and nothing is cached)."""
    import subprocess

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ZephyraError(f"the self-test of llama.cpp did not finish: {error}") from None
    if done.returncode == 0:
        return True
    if done.returncode < 0 or done.returncode == EXIT_ABORTED or done.returncode > 0x80:  # a signal, an abort
        return False
    said = done.stderr.strip().splitlines() or ["no reason given"]
    raise ZephyraError(f"the self-test of llama.cpp failed (status {done.returncode}): {said[-1]}")


def _key() -> str:
    path = library_path()
    parts = [cpu_model(), " ".join(sorted(cpu_flags()))]
    for file in sorted(path.parent.glob("*")):
        if file.is_file() and not file.is_symlink():
            facts = file.stat()
            parts.append(f"{file} {facts.st_size} {facts.st_mtime_ns}")
    return " | ".join(parts).replace("\n", " ")


def _cache_file() -> Path:
    if home := os.environ.get("ZEPHYRA_HOME"):
        return Path(home) / "cache" / "self-test"
    if sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "zephyra" / "self-test"


if __name__ == "__main__":
    from zephyra_cli.backends.self_test_model import compute

    compute(extra_buffers=sys.argv[1] == EXTRA)
