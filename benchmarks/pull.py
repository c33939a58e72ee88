"""Does a pull end whole, whatever happens to it? Kills at random moments, every error of a server, and its speed.

All from the local hub of the tests, which the real huggingface-hub client talks to. A trial of the first part: a pull
of a pack of random bytes in a process of its own, over a slow line, is killed (SIGKILL) at a random moment; the next
pull must finish and be byte-exact. *Arrived* is what the server had sent but for what lay in the kernel's buffers;
*fetched again* is what both pulls together took beyond the size of the pack. Needs /proc.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the hub of the tests

from report import Report, progress  # noqa: E402
from subject import arguments  # noqa: E402

from tests.hub.server import Hub, files_of, serve  # noqa: E402

STATUSES = (400, 401, 402, 403, 404, 405, 408, 409, 410, 413, 416, 418, 421, 425, 429, 431, 451)
STATUSES += (500, 501, 502, 503, 504, 505, 507, 508, 511, 300, 304, 305)
FAULTS: tuple[dict[str, object], ...] = (
    *({"status": status} for status in STATUSES),
    {"cut_after": 0},
    {"cut_after": 10_000},
    {"corrupt": True},
    {"body": b""},
    {"body": b"<html>Please log in to this hotel's network</html>"},
    {"ignore_range": True},
    {"delay": 1.0},
)
PLACES = ("GET /api/models/ada", "GET .*resolve/.*zephyra.json", "GET .*resolve/.*tokenizer.json", "GET /cdn/")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, default=200, help="moments (default: %(default)s)")
    parser.add_argument("--megabytes", type=int, default=12, help="of the pack that is killed (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.5, help="that its pull takes (default: %(default)s)")
    parser.add_argument(
        "--large", type=int, default=256, help="megabytes of the pack that is timed (default: %(default)s)"
    )
    options = parser.parse_args()
    report = Report("pull", f"{options.kills} kills in {options.megabytes} MB, faults at {len(PLACES)} places")
    with tempfile.TemporaryDirectory() as folder, serve(Hub()) as hub:
        environ(hub, Path(folder))
        kills(hub, report, options.kills, options.megabytes * 10**6, options.seconds)
        faults(hub, report)
        speed(hub, report, options.large * 10**6)
    report.finish(options.json)


def environ(hub: Hub, folder: Path) -> None:
    """Nothing real: neither home nor cache nor token, for this process and those that it starts."""
    for name in [name for name in os.environ if name.startswith(("HF_", "ZEPHYRA_"))]:
        del os.environ[name]
    os.environ |= {"ZEPHYRA_HOME": str(folder / "home"), "HF_HOME": str(folder / "hf"), "HF_ENDPOINT": hub.endpoint}
    os.environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "converters")])


def pack(source: random.Random, size: int) -> dict[str, bytes]:
    """A pack of about `size` bytes: base, six adapters, a tokenizer; nothing in it could be run."""
    share = size // 16
    files = {f"adapters/d{number}.gguf": source.randbytes(share) for number in range(6)}
    files |= {"base.gguf": source.randbytes(size - 7 * share), "tokenizer.json": source.randbytes(share)}
    manifest = {
        "format": "zephyra-pack",
        "version": 1,
        "name": "random",
        "base": {"file": "base.gguf"},
        "adapters": {f"d{number}": {"file": f"adapters/d{number}.gguf"} for number in range(6)},
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in files.items()
        },
    }
    return files | {"zephyra.json": json.dumps(manifest).encode()}


def pull(name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "zephyra_cli", "pull", f"hf:ada/{name}"]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def home() -> Path:
    return Path(os.environ["ZEPHYRA_HOME"])


def exact(name: str, files: dict[str, bytes]) -> bool:
    """The installed bytes are those of the hub; the manifest has its source added."""
    found = files_of(home() / "models" / name)
    manifest = json.loads(found.pop("zephyra.json"))
    del manifest["source"]
    return found | {"zephyra.json": json.dumps(manifest).encode()} == files


def kills(hub: Hub, report: Report, count: int, size: int, seconds: float) -> None:
    source = random.Random(20)
    arrived = again = twice = 0
    worst, failed, partly = 0.0, 0, 0
    for number in range(count):
        progress(f"kill {number + 1} of {count}")
        name, files = f"killed{number}", pack(source, size)
        whole = sum(map(len, files.values()))
        hub.add(name := f"ada/{name}", files)
        rate = hub.fail("/cdn/", bytes_per_second=size / 8 / seconds, times=10**6)  # eight connections
        sent, before = hub.sent(), hub.sent("resolve|/cdn/")
        process = pull(name.partition("/")[2])
        while process.poll() is None and hub.sent() == sent:
            time.sleep(0.001)
        time.sleep(source.uniform(0, 1.1 * seconds))
        process.send_signal(signal.SIGSTOP)  # so that nothing moves while it is counted
        first = hub.sent("resolve|/cdn/") - before - unread(hub)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        time.sleep(0.2)  # until the server knows
        written = kept()
        rate.times = 0
        here = hub.sent("resolve|/cdn/")
        done = pull(name.partition("/")[2])
        _, told = done.communicate()
        second = hub.sent("resolve|/cdn/") - here
        if done.returncode or not exact(name.partition("/")[2], files):
            failed += 1
            print(name, told.decode(), file=sys.stderr)
        extra = max(0, first + second - whole)  # fetched though it had arrived
        arrived, again = arrived + first, again + extra
        twice += max(0, second - (whole - written))
        if first > size // 10:
            worst = max(worst, extra / first)
        partly += 0 < written < whole
        del hub.repositories[name]
        shutil.rmtree(home())
    report.figure("killed_partly", "kills that fell between the first byte and the last", partly)
    report.figure("kill_failures", "next pulls that failed or were not byte-exact", failed, at_most=0)
    report.figure(
        "fetched_again", "fetched again, of what had arrived", again / max(1, arrived), unit="%", at_most=0.05
    )
    report.figure(
        "written_again", "fetched again, of what had been written to the disk", twice, unit="bytes", at_most=0
    )
    report.figure("fetched_again_worst", "  the worst kill after a tenth had arrived", worst, unit="%")


def unread(hub: Hub) -> int:
    """Bytes that lie in the kernel's buffers, on either side of our connections (/proc/net/tcp)."""
    ports, total = {int(place.rpartition(":")[2]) for place in (hub.endpoint, hub.cdn)}, 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues = line.split()[:5]
        sending, receiving = (int(queue, 16) for queue in queues.split(":"))
        total += sending * (int(local[-4:], 16) in ports) + receiving * (int(remote[-4:], 16) in ports)
    return total


def kept() -> int:
    """Bytes that the tables of unfinished downloads and finished ones count, and those of an installed pack."""
    from zephyra_cli.download import folder

    whole = [path for path in folder().glob("*") if path.suffix == ""]
    tables = [path.read_bytes() for path in folder().glob("*.have")]
    counted = (int.from_bytes(table[at : at + 8], "little") for table in tables for at in range(0, len(table), 8))
    return sum(counted) + sum(path.stat().st_size for path in whole)


def faults(hub: Hub, report: Report) -> None:
    """Each fault at each place, once and for ever: the pull must end whole or with an error that was written for it."""
    from zephyra_cli import download, patience
    from zephyra_cli import hub as client
    from zephyra_cli.pull import pull as run
    from zephyra_fusion.errors import ZephyraError

    patience.FIRST_WAIT_S, client.TIMEOUT_S, download.TIMEOUT_S = 0.0, 0.3, 0.3
    files, unexplained, half, ends = pack(random.Random(21), 200_000), 0, 0, {"whole": 0, "explained": 0}
    hub.add("ada/faulty", files)
    for place in PLACES:
        for what in FAULTS:
            for times in (1, 10**6):
                progress(f"{place}: {what}")
                hub.faults.clear()
                hub.fail(place, times=times, **what)
                try:
                    run("hf:ada/faulty", progress=lambda done, total, text: None)
                    ends["whole"] += 1
                    half += not exact("faulty", files)
                except ZephyraError:
                    ends["explained"] += 1
                    half += (home() / "models").exists() and any((home() / "models").iterdir())
                except Exception as error:
                    unexplained += 1
                    print(place, what, times, repr(error), file=sys.stderr)
                shutil.rmtree(home(), ignore_errors=True)
    hub.faults.clear()
    report.figure("survived", "faults that were survived", ends["whole"])
    report.figure("explained", "faults that were explained", ends["explained"])
    report.figure("unexplained", "faults that were neither", unexplained, at_most=0)
    report.figure("half", "wrong or half installations after a fault", half, at_most=0)


def speed(hub: Hub, report: Report, size: int) -> None:
    """A pull, hashes and all, beside huggingface-hub's snapshot_download, which checks none; both over loopback."""
    hub.add("ada/large", pack(random.Random(22), size))
    taken = {}
    for name in ("warm", "ours", "theirs"):
        progress(f"speed: {name}")
        start = time.perf_counter()
        if name == "theirs":
            code = "import huggingface_hub; huggingface_hub.snapshot_download('ada/large')"
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        else:
            process = pull("large")
            process.communicate()
            assert process.returncode == 0
            shutil.rmtree(home())
        taken[name] = time.perf_counter() - start
    report.figure(
        "pull_megabytes_per_second",
        "a pull, process start and sha256 included",
        size / 1e6 / taken["ours"],
        unit="MB/s",
    )
    report.figure(
        "snapshot_megabytes_per_second", "snapshot_download, unchecked", size / 1e6 / taken["theirs"], unit="MB/s"
    )


if __name__ == "__main__":
    main()
