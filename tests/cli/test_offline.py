"""`--offline` and `ZEPHYRA_OFFLINE` forbid the network to every command that could use it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

Inside = Callable[..., tuple[int, str, str]]
REACHING_OUT = (
    "pull hf:owner/name",
    "convert hf:owner/name --dry-run",
    "convert --dry-run PACK/adapters --base hf:owner/name",
    "domains add law -m PACK --adapter hf:owner/name",
    "domains -m hf:owner/name",
    *(f"{command} -m hf:owner/name hi" for command in ("generate", "route", "shell")),
    *(f"{command} -m hf:owner/name" for command in ("chat", "bench", "serve")),
    "eval DATA -m hf:owner/name",
)


@pytest.mark.parametrize(
    ("command", "way"),
    [*product(REACHING_OUT, ("option", "environment")), ("push PACK hf:owner/name", "environment")],
)
def test_the_network_is_forbidden(
    command: str, way: str, inside: Inside, tiny_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    (tmp_path / "domains" / "sql").mkdir(parents=True)
    (tmp_path / "domains" / "sql" / "valid.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    words = [word.replace("PACK", str(tiny_pack)).replace("DATA", str(tmp_path)) for word in command.split()]
    if way == "environment":
        monkeypatch.setenv("ZEPHYRA_OFFLINE", "1")
    else:
        words.append("--offline")
    status, out, err = inside(*words)
    assert (status, out) == (1, "")
    assert err.startswith("error: ") and "the network is forbidden (offline)" in err
