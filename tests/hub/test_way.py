"""What lies between here and the hub: proxies, redirects, packed and unmeasured answers; and who sees the token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.process import Run
from tests.hub.server import Hub, serve
from zephyra_cli import download
from zephyra_cli.patience import ATTEMPTS
from zephyra_fusion.errors import ZephyraError

Pull = Callable[..., Any]
CONTENT = bytes(range(256)) * 1000
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": CONTENT, "tokenizer.json": b""}
TOKEN = "hf_secretofada"


@pytest.fixture
def private(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """`ada/model`, which only ada's token opens, and that token set."""
    hub.users[TOKEN] = "ada"
    hub.add("ada/model", FILES, readers={"ada"})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def whole(root: Path) -> bool:
    return all((root / name).read_bytes() == content for name, content in FILES.items())


@pytest.mark.parametrize("encoding", ["gzip", "chunked"])
@pytest.mark.parametrize("ranges", [True, False])
def test_answers_without_a_length_and_packed_ones(hub: Hub, pulled: Pull, encoding: str, ranges: bool) -> None:
    hub.add("ada/model", FILES)
    hub.fail("GET .*", encoding=encoding, ignore_range=not ranges, times=99)
    assert whole(pulled("hf:ada/model").root)


def test_a_packed_answer_that_never_ends_is_not_unpacked(hub: Hub, pulled: Pull, home: Path) -> None:
    hub.add("ada/model", FILES)
    hub.fail("GET /cdn/", encoding="gzip", ignore_range=True, body=bytes(200 * 2**20))
    with pytest.raises(ZephyraError, match="arrived with wrong bytes"):
        pulled("hf:ada/model")
    assert not (home / "models").exists() and not list(download.folder().glob("*.part"))


def test_the_token_does_not_follow_a_redirect_to_another_host(private: Hub, pulled: Pull) -> None:
    with serve(Hub()) as stranger:
        stranger.add("ada/model", FILES)
        for path in ("GET /api/models/", "GET .*resolve/.*config.json", "GET .*resolve/.*safetensors"):
            wanted = "ada/model/resolve/main" if "resolve" in path else "api/models/ada/model"
            name = {"json": "config.json", "tors": "model.safetensors"}.get(path[-4:], "")
            target = f"{stranger.endpoint}/{wanted}{name and '/' + name}"
            private.fail(path, status=307, headers={"Location": target})
        try:
            pulled("hf:ada/model")
        except ZephyraError as error:
            assert TOKEN not in f"{error}{error.hint}"
        assert stranger.seen and not [seen for seen in stranger.seen if seen.authorization]
    assert [seen for seen in private.seen if seen.authorization == f"Bearer {TOKEN}"]


@pytest.mark.parametrize(
    "location", ["{hub}/ada/model/resolve/main/config.json", "file:///etc/passwd", "http://[", "//", "gopher://x/"]
)
def test_redirects_that_lead_nowhere_are_errors(private: Hub, pulled: Pull, home: Path, location: str) -> None:
    target = location.format(hub=private.endpoint)
    private.fail("GET .*resolve/.*config.json", status=302, headers={"Location": target}, times=99)
    with pytest.raises(ZephyraError):
        pulled("hf:ada/model")
    assert not (home / "models").exists()


@pytest.mark.parametrize("status", [200, 204, 206, 300, 302, 304])
@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])  # fetched whole; its header first
def test_answers_without_the_bytes_are_asked_for_again_and_then_an_error(
    hub: Hub, pulled: Pull, home: Path, tiny_gguf: Path, status: int, name: str
) -> None:
    hub.add("ada/model", {"config.json": b"{}", name: tiny_gguf.read_bytes()})
    fault = hub.fail("GET /cdn/", status=status, body=b"", times=99)
    message = "than were asked for: ''" if status == 206 else "early|with status"
    with pytest.raises(ZephyraError, match=message):
        pulled("hf:ada/model")
    assert not (home / "models").exists() and fault.times == 99 - (1 if status == 206 else ATTEMPTS)
    fault.times = 2
    if status != 206:
        pulled("hf:ada/model")


def test_a_header_from_a_server_that_sends_less_or_something_else(hub: Hub, pulled: Pull, tiny_gguf: Path) -> None:
    hub.add("ada/model", {"model.gguf": tiny_gguf.read_bytes()})
    fault = hub.fail("GET /cdn/", body=tiny_gguf.read_bytes()[:999], ignore_range=True, times=99)
    with pytest.raises(ZephyraError, match="'model.gguf' ended .* bytes early"):
        pulled("hf:ada/model")
    fault.ignore_range = False
    with pytest.raises(ZephyraError, match="sends other bytes of 'model.gguf' than were asked for"):
        pulled("hf:ada/model")
    fault.times = 0
    pulled("hf:ada/model")


def test_a_damaged_packing_is_an_error(hub: Hub, pulled: Pull) -> None:
    hub.add("ada/model", FILES)
    hub.fail("GET .*config.json", status=200, headers={"Content-Encoding": "gzip"}, times=99)
    with pytest.raises(ZephyraError, match="cannot be understood"):
        pulled("hf:ada/model")


def test_no_message_shows_the_token(private: Hub, pulled: Pull, zephyra: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    echo = {"X-Error-Message": json.dumps({"error": f"Bearer {TOKEN} is not welcome"}), "Retry-After": "999"}
    for status in (400, 401, 403, 429, 451, 500):
        private.fail("GET .*", status=status, headers=echo, times=9)
        with pytest.raises(ZephyraError) as caught:
            pulled("hf:ada/model")
        assert TOKEN not in f"{caught.value}{caught.value.hint}", status
        assert "is described by" not in caught.value.message
    done = zephyra("pull", "hf:ada/model", HF_DEBUG="1")
    assert done.returncode == 1 and TOKEN.encode() not in done.stdout + done.stderr
    private.faults.clear()
    for token in ("hf_secret\u00e9", "hf_secret\u2028x", "hf_secret\x01x", "hf_secret x"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(ZephyraError) as caught:
            pulled("hf:ada/model")
        assert "hf_secret" not in f"{caught.value}{caught.value.hint}"


def test_a_proxy_is_used(hub: Hub, zephyra: Run, home: Path) -> None:
    hub.add("ada/model", FILES)
    proxy = {"HTTP_PROXY": hub.endpoint, "http_proxy": hub.endpoint, "NO_PROXY": "", "no_proxy": ""}
    done = zephyra("pull", "hf:ada/model", HF_ENDPOINT="http://hub.invalid", **proxy)
    assert done.returncode == 0, done.stderr
    assert whole(home / "models" / "model")
    hub.fail("GET .*", status=407, times=99)
    done = zephyra("pull", "hf:ada/model", HF_ENDPOINT="http://hub.invalid", **proxy)
    assert done.returncode == 1 and b"407" in done.stderr
