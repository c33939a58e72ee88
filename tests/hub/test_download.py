"""Downloads under faults: whatever the server, the disk or the clock does, a pull ends whole or says why."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.process import Run, start
from tests.hub.repositories import sha256
from tests.hub.server import Hub
from zephyra_cli import download
from zephyra_fusion.errors import ZephyraError

Pull = Callable[..., Any]
CONTENT = random.Random(1).randbytes(700_001)
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": CONTENT, "tokenizer.json": b""}


@pytest.fixture
def stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of more than 64 KiB are cut."""
    monkeypatch.setattr(download, "STRIPE", 64 * 1024)


def whole(root: Path) -> bool:
    return all((root / name).read_bytes() == content for name, content in FILES.items())


def left() -> list[str]:
    """What lies in the folder of downloads, but for locks."""
    return sorted(path.name for path in download.folder().iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("status", [403, 408, 429, 500, 502, 503, 504])
def test_errors_that_pass_are_waited_out(hub: Hub, pulled: Pull, stripes: None, status: int) -> None:
    hub.add("ada/model", FILES)
    hub.fail("GET /cdn/", status=status, times=4, headers={"Retry-After": "0"})
    hub.fail("GET /api/models/ada", status=503 if status == 403 else status)  # 403 of the CDN: an address that expired
    hub.fail("GET .*resolve/.*/config", status=500, times=2)
    assert whole(pulled("hf:ada/model").root)


@pytest.mark.parametrize("stripe", [64 * 1024, 64 * 2**20])
def test_broken_connections_go_on_where_they_broke(
    hub: Hub, pulled: Pull, monkeypatch: pytest.MonkeyPatch, stripe: int
) -> None:
    monkeypatch.setattr(download, "STRIPE", stripe)
    hub.add("ada/model", FILES)
    hub.fail("GET /cdn/", cut_after=50_000, times=9)
    assert whole(pulled("hf:ada/model").root)
    assert hub.sent("/cdn/") <= len(CONTENT) * 1.05


def test_a_server_that_falls_silent(hub: Hub, pulled: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    hub.add("ada/model", FILES)
    hub.fail("GET /cdn/", delay=1.0)
    assert whole(pulled("hf:ada/model").root)
    hub.add("ada/again", {"config.json": b"{}", "model.safetensors": CONTENT[::-1]})
    hub.fail("GET /cdn/", delay=1.0, times=99)
    with pytest.raises(ZephyraError, match="does not answer"):
        pulled("hf:ada/again")


@pytest.mark.parametrize(
    ("status", "message", "hint"),
    [
        (401, "does not accept the token", "hf auth login"),
        (404, "404", None),
        (416, "416", None),
        (429, "too many requests", "what arrived is kept"),
        (451, "451", None),
        (500, "500", "server's fault"),
        (503, "503", "try again later"),
    ],
)
def test_errors_that_stay_are_explained_and_nothing_is_installed(
    hub: Hub, pulled: Pull, home: Path, status: int, message: str, hint: str | None
) -> None:
    hub.add("ada/model", FILES)
    fault = hub.fail("GET /cdn/", status=status, times=99)
    with pytest.raises(ZephyraError, match=message) as caught:
        pulled("hf:ada/model")
    assert (hint or "") in (caught.value.hint or "")
    assert not (home / "models").exists()
    fault.times = 0
    assert whole(pulled("hf:ada/model").root)


def test_a_server_that_asks_for_more_time_than_anybody_has(hub: Hub, pulled: Pull) -> None:
    hub.add("ada/model", FILES)
    hub.fail("GET /cdn/", status=429, headers={"Retry-After": "3600"}, times=9)
    with pytest.raises(ZephyraError) as caught:
        pulled("hf:ada/model")
    assert "try again in 3600 seconds" in (caught.value.hint or "")


def test_wrong_bytes_are_an_error_and_are_removed(hub: Hub, pulled: Pull, home: Path) -> None:
    hub.add("ada/model", FILES)
    hub.fail("GET /cdn/", corrupt=True)
    with pytest.raises(ZephyraError, match="'model.safetensors' arrived with wrong bytes"):
        pulled("hf:ada/model")
    assert not [name for name in left() if name.startswith(sha256(CONTENT))]
    assert not (home / "models").exists()
    assert whole(pulled("hf:ada/model").root)
    hub.add("ada/other", FILES | {"config.json": b'{"model_type": "qwen3"}'})
    hub.fail("GET .*resolve/.*/config.json", corrupt=True)  # a small file, known by git's hash
    with pytest.raises(ZephyraError, match=r"'config.json' arrived with wrong bytes: git:"):
        pulled("hf:ada/other")


def test_a_body_of_another_length(hub: Hub, pulled: Pull) -> None:
    hub.add("ada/model", FILES)
    hub.fail("GET /cdn/", body=CONTENT[:1000], ignore_range=True)
    assert whole(pulled("hf:ada/model").root)  # an answer that ends early is asked for again
    hub.add("ada/other", {"config.json": b"{}", "model.safetensors": CONTENT[1:]})
    hub.fail("GET /cdn/", body=CONTENT + CONTENT)
    with pytest.raises(ZephyraError, match="sends other bytes of 'model.safetensors' than were asked for"):
        pulled("hf:ada/other")


def test_a_server_without_ranges(hub: Hub, pulled: Pull, stripes: None) -> None:
    hub.add("ada/model", FILES)
    hub.fail("GET /cdn/", cut_after=100_000, ignore_range=True)
    hub.fail("GET /cdn/", ignore_range=True, times=99)
    assert whole(pulled("hf:ada/model").root)


def test_parts_that_do_not_fit_their_table_start_over(hub: Hub, pulled: Pull) -> None:
    hub.add("ada/model", FILES)
    hub.fail("GET /cdn/", cut_after=200_000)
    hub.fail("GET /cdn/", status=404, times=99)
    with pytest.raises(ZephyraError):
        pulled("hf:ada/model")
    part, table = (next(download.folder().glob(pattern)) for pattern in ("*.part", "*.have"))
    assert int.from_bytes(table.read_bytes(), "little") == 200_000
    table.write_bytes((10**12).to_bytes(8, "little"))
    hub.faults.clear()
    assert whole(pulled("hf:ada/model").root)
    assert not part.exists()


def test_the_token_goes_to_the_hub_and_not_to_the_cdn(hub: Hub, pulled: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.users |= {"hf_ada": "ada", "hf_eve": "eve"}
    for name in ("ada/gated", "ada/private"):
        hub.add(name, FILES, gated=name == "ada/gated", readers={"ada"})
    with pytest.raises(ZephyraError, match="'ada/gated' is gated") as gated:
        pulled("hf:ada/gated")
    assert "accept its terms at http://127.0.0.1" in (gated.value.hint or "")
    with pytest.raises(ZephyraError, match="no repository 'ada/private'.*or it is private") as private:
        pulled("hf:ada/private")
    assert "hf auth login" in (private.value.hint or "")
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    assert whole(pulled("hf:ada/gated").root) and whole(pulled("hf:ada/private").root)
    tokens = {(seen.path.split("/")[1], seen.authorization) for seen in hub.seen[-6:]}
    assert ("cdn", None) in {(place, token) for place, token in tokens if place == "cdn"}
    assert not [seen for seen in hub.seen if seen.path.startswith("/cdn/") and seen.authorization]


def test_names_that_are_near(hub: Hub, pulled: Pull) -> None:
    repository = hub.add("ada/small-llama", FILES)
    repository.refs["v1.0"] = repository.refs["main"]
    with pytest.raises(ZephyraError, match="no repository 'ada/smal-llama'") as caught:
        pulled("hf:ada/smal-llama")
    assert "did you mean 'ada/small-llama'?" in (caught.value.hint or "")
    with pytest.raises(ZephyraError, match="no revision 'v1.1'") as caught:
        pulled("hf:ada/small-llama@v1.1")
    assert "did you mean 'v1.0'?" in (caught.value.hint or "")
    with pytest.raises(ZephyraError, match="cannot be the name of a repository"):
        pulled("hf:ada/" + "x" * 200)


def test_no_network(hub: Hub, pulled: Pull, zephyra: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ZephyraError, match="cannot reach http://127.0.0.1:9"):
        pulled("hf:ada/model")
    done = zephyra("pull", "hf:ada/model", HF_HUB_OFFLINE="1")
    assert done.returncode == 1 and b"forbidden (HF_HUB_OFFLINE)" in done.stderr
    done = zephyra("pull", "hf:ada/model", ZEPHYRA_OFFLINE="1")
    assert done.returncode == 1 and b"the network is forbidden (offline)" in done.stderr


def test_two_at_once_fetch_once(hub: Hub, pulled: Pull) -> None:
    hub.add("ada/model", FILES)
    hub.fail("GET /cdn/", bytes_per_second=len(CONTENT) / 3)
    first = start("pull", "hf:ada/model")
    while not any(seen.path.endswith("config.json") for seen in hub.seen):
        time.sleep(0.01)
    second = start("pull", "hf:ada/model")
    (_, told), (_, also) = first.communicate(timeout=60), second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0), (told, also)
    assert hub.sent("/cdn/") == len(CONTENT)
    assert b"waiting for another zephyra" in told + also


def test_ctrl_c_keeps_what_arrived(hub: Hub, pulled: Pull) -> None:
    hub.add("ada/model", FILES)
    hub.fail("GET /cdn/", bytes_per_second=len(CONTENT) / 3)
    process = start("pull", "hf:ada/model")
    while not part_bytes():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130 and b"Traceback" not in told
    assert b"what arrived is kept, and the same command goes on there" in told
    kept = part_bytes()
    assert kept > 0
    assert whole(pulled("hf:ada/model").root)
    assert hub.seen[-1].range and f"bytes={kept}-" in {
        seen.range and seen.range.split("-")[0] + "-" for seen in hub.seen
    }


def part_bytes(content: bytes = CONTENT) -> int:
    """How much of a content its table counts."""
    place = download.folder() / sha256(content)
    if place.exists():
        return len(content)
    table = place.with_name(place.name + ".have")
    return int.from_bytes(table.read_bytes(), "little") if table.exists() else 0


def test_killed_at_any_moment_it_goes_on(hub: Hub, pulled: Pull) -> None:
    """The short form of benchmarks/pull.py."""
    moments = random.Random(7)
    for number in range(4):
        content = moments.randbytes(300_000)
        hub.add(f"ada/model{number}", FILES | {"model.safetensors": content})
        hub.fail("GET /cdn/", bytes_per_second=600_000)
        process = start("pull", f"hf:ada/model{number}")
        while not any(f"model{number}/" in seen.path for seen in hub.seen):
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.5))
        process.kill()
        process.communicate()
        hub.faults.clear()
        kept = part_bytes(content)
        time.sleep(0.2)  # the server notices that nobody reads
        before = hub.sent("/cdn/")
        root = pulled(f"hf:ada/model{number}").root
        assert (root / "model.safetensors").read_bytes() == content
        assert hub.sent("/cdn/") - before == len(content) - kept


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 500 kB as ZEPHYRA_HOME."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(place)]
    if os.name == "nt" or os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    monkeypatch.setenv("ZEPHYRA_HOME", str(place))
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(hub: Hub, pulled: Pull, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("ada/model", FILES)
    with pytest.raises(ZephyraError, match=r"0.70 MB are to be fetched, .* has 0.\d\d MB of space left"):
        pulled("hf:ada/model")
    assert hub.sent("/cdn/") == 0
    usage = shutil.disk_usage(small_disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))  # it fills while we write
    with pytest.raises(ZephyraError, match="is full"):
        pulled("hf:ada/model")
    assert not (small_disk / "models").exists()
    subprocess.run(["mount", "-o", "remount,size=5m", str(small_disk)], check=True)
    before = hub.sent("/cdn/")
    assert whole(pulled("hf:ada/model").root)
    assert hub.sent("/cdn/") - before < len(CONTENT)


def test_a_read_only_disk(hub: Hub, pulled: Pull, small_disk: Path) -> None:
    hub.add("ada/model", FILES)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ZephyraError, match="Read-only file system"):
        pulled("hf:ada/model")


def test_the_clock_may_jump(hub: Hub, pulled: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("ada/model", FILES)
    times = random.Random(3)
    monkeypatch.setattr(time, "time", lambda: times.uniform(-1e9, 1e10))
    hub.fail("GET /cdn/", cut_after=1000, times=3)
    assert whole(pulled("hf:ada/model").root)
    assert threading.active_count() < 50
