"""Contents on their way here: fetched in parallel, continued at any byte, checked; whole under a hash or not at all.

A content lies in `ZEPHYRA_HOME/downloads` under its digest: `KEY` when it is whole and checked, `KEY.part` with
`KEY.have` before. A part is cut in stripes that are fetched side by side; `KEY.have` holds, for each, how many bytes of
it have been written (64-bit, little endian), and is written after them: whatever kills us, what it counts is there.
huggingface-hub's own download (2.4) drops a broken file's bytes, so only its session is used.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from zephyra_cli.disk import Busy, amount, copy, digest, link, lock, writable
from zephyra_cli.hub import TIMEOUT_S, Reference, RemoteFile, Repository, check_status, explained
from zephyra_cli.patience import Patience, patiently
from zephyra_cli.settings import home
from zephyra_fusion.errors import ZephyraError

STRIPE = 64 * 2**20
CONNECTIONS = 8
_COUNTER = 8  # bytes

Progress = Callable[[int, int | None, str], None]


def folder() -> Path:
    return home() / "downloads"


def unfinished() -> int:
    """Bytes of downloads that were broken off."""
    return sum(path.stat().st_blocks * 512 for path in _remains())  # a part has holes


def clean() -> int:
    """Drop what no running pull is at; returns the bytes."""
    before = unfinished()
    for path in _remains():
        with suppress(Busy), lock(folder() / f"{path.stem[-2:]}.lock", None):
            path.unlink(missing_ok=True)
    return before - unfinished()


def _remains() -> list[Path]:
    return [path for path in folder().glob("*") if path.is_file() and path.suffix != ".lock"]


class Stopped(Exception):
    """Another thread has failed, or the user is gone."""


class Content:
    """One file of a repository and what of it is here."""

    def __init__(self, repository: Repository, file: RemoteFile) -> None:
        self.file, self.url = file, repository.url(file.name)
        self.key = file.digest.replace(":", "-")
        self.path = folder() / self.key
        self.part, self.table = self.path.with_name(self.key + ".part"), self.path.with_name(self.key + ".have")
        self.starts = range(0, max(1, file.size), STRIPE)  # an empty file has a stripe too
        self.have = [0] * len(self.starts)
        self.lock = threading.Lock()

    @property
    def present(self) -> int:
        """Bytes that need not be fetched."""
        return self.file.size if self.path.exists() else sum(self.have)

    def length(self, stripe: int) -> int:
        return min(STRIPE, self.file.size - self.starts[stripe])

    def open(self) -> None:
        """Read what is here of an earlier try; make the files where there is none. Anything odd starts over."""
        try:
            table = self.table.read_bytes()
            size = self.part.stat().st_size
        except FileNotFoundError:
            table, size = b"", 0
        at = range(0, len(self.have) * _COUNTER, _COUNTER)
        have = [int.from_bytes(table[i : i + _COUNTER], "little") for i in at]
        ends = [start + count for start, count in zip(self.starts, have, strict=True) if count]
        whole = all(count <= self.length(stripe) for stripe, count in enumerate(have))
        if len(table) == len(self.have) * _COUNTER and whole and max(ends, default=0) <= size <= self.file.size:
            self.have = have
        else:
            self.discard()
            self.part.write_bytes(b"")
            self.table.write_bytes(bytes(len(self.have) * _COUNTER))

    def discard(self) -> None:
        self.have = [0] * len(self.starts)
        for path in (self.part, self.table):
            path.unlink(missing_ok=True)

    def fetch(self, stripe: int, stopped: threading.Event) -> None:
        """The rest of a stripe; then, with the last one, the check of the whole."""
        patience = Patience(sleep=stopped.wait)
        while self.have[stripe] < self.length(stripe):
            before = self.have[stripe]
            try:
                self._stream(stripe, stopped)
            except Stopped:
                raise
            except Exception as error:
                if self.have[stripe] > before:
                    patience.renew()
                patience.forgive(error)
            if stopped.is_set():
                raise Stopped
        with self.lock:
            if sum(self.have) == self.file.size and not self.path.exists():
                self.finish()

    def _stream(self, stripe: int, stopped: threading.Event) -> None:
        from huggingface_hub.utils import build_hf_headers, get_session

        start = self.starts[stripe] + self.have[stripe]
        end = self.starts[stripe] + self.length(stripe)
        headers = build_hf_headers() | {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        with get_session().stream("GET", self.url, headers=headers, timeout=TIMEOUT_S) as response:
            _first(response, self.file, start)
            if response.status_code == 206:
                self._pour(response, start, end, stopped)
                return
            with self.lock:  # the server knows no ranges and sends all: one thread takes it for all stripes
                if sum(self.have) < self.file.size:
                    self._pour(response, 0, self.file.size, stopped)

    def _pour(self, response: Any, at: int, end: int, stopped: threading.Event) -> None:
        """Write what comes, from `at` on, and count it: each piece first, its number after it."""
        from httpx2 import RemoteProtocolError

        with open(self.part, "r+b", buffering=0) as part, open(self.table, "r+b", buffering=0) as table:
            part.seek(at)
            for chunk in response.iter_bytes():
                if stopped.is_set():
                    raise Stopped
                rest = memoryview(chunk)[: end - at]
                while rest:
                    stripe, inside = divmod(at, STRIPE)
                    written = part.write(rest[: STRIPE - inside]) or 0
                    rest, at = rest[written:], at + written
                    if inside + written > self.have[stripe]:
                        self.have[stripe] = inside + written
                        table.seek(stripe * _COUNTER)
                        table.write(self.have[stripe].to_bytes(_COUNTER, "little"))
                if at == end:
                    return
        raise RemoteProtocolError(f"'{self.file.name}' ended {end - at} bytes early")

    def finish(self) -> None:
        """Check the bytes and give them their final name. ZephyraError: they are wrong, and gone."""
        found = digest(self.part, self.file.digest)
        if found != self.file.digest:
            self.discard()
            raise ZephyraError(
                f"'{self.file.name}' arrived with wrong bytes: {found}, the hub says {self.file.digest}",
                hint="the bad bytes were removed; try again. If it stays so, something on the way changes them",
            )
        with open(self.part, "rb") as part:
            os.fsync(part.fileno())
        os.replace(self.part, self.path)
        self.table.unlink(missing_ok=True)


@contextmanager
def fetched(
    repository: Repository,
    files: Iterable[RemoteFile],
    progress: Progress,
    *,
    here: Callable[[], Mapping[str, Path]] = dict,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[dict[str, Path]]:
    """The files of a repository, whole and checked, by name, for the block to link elsewhere; dropped after it.

    `here` says which files of this machine, by sha256, are linked instead of fetched, once they were checked; it is
    asked when nobody else can be fetching them. Of several processes that want a content one fetches it, others wait.
    ZephyraError: it cannot be had, and why.
    """
    contents = {file.name: Content(repository, file) for file in files}
    wanted = {content.key: content for content in contents.values()}.values()  # the same content but once
    with ExitStack() as locks:
        with writable(folder()), explained(Reference(repository.name, repository.commit)):
            folder().mkdir(parents=True, exist_ok=True)
            for name in sorted({content.key[-2:] for content in wanted}):  # sorted: no two wait for each other
                locks.enter_context(lock(folder() / f"{name}.lock", note))
            present = here()
            for content in wanted:
                if not content.path.exists() and not _reuse(content, repository, present):
                    content.open()
            _check_space(wanted)
            _run(wanted, progress)
        yield {name: content.path for name, content in contents.items()}
        for content in wanted:
            content.path.unlink(missing_ok=True)


def beginning(repository: Repository, file: RemoteFile, enough: Callable[[bytes], bool]) -> bytes:
    """The first bytes of a file, as many as are `enough`: 1 MiB, then four times more each time, at most all."""
    from httpx2 import RemoteProtocolError
    from huggingface_hub.utils import build_hf_headers, get_session

    data = b""

    def ask() -> bytes:
        last = min(max(2**20, 4 * len(data)), file.size) - 1
        headers = build_hf_headers() | {"Range": f"bytes={len(data)}-{last}", "Accept-Encoding": "identity"}
        with get_session().stream("GET", repository.url(file.name), headers=headers, timeout=TIMEOUT_S) as response:
            first, got = _first(response, file, len(data)), bytearray()
            for chunk in response.iter_bytes():
                got += chunk
                if first + len(got) > last:
                    return bytes(got[len(data) - first : last + 1 - first])
        raise RemoteProtocolError(f"'{file.name}' ended {last + 1 - first - len(got)} bytes early")

    with explained(Reference(repository.name, repository.commit)):
        while len(data) < file.size and not (data and enough(data)):
            data += patiently(ask)
    return data


def _first(response: Any, file: RemoteFile, start: int) -> int:
    """Where in a file the bytes of an answer begin: at `start`, or at 0 if the server knows no ranges and sends all."""
    from httpx2 import RemoteProtocolError

    check_status(response)
    if response.status_code == 200:
        return 0
    if response.status_code != 206:
        raise RemoteProtocolError(f"'{file.name}' is answered with status {response.status_code}, not with bytes")
    told = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", told)
    if match is None or match[1] != str(start) or match[2] not in ("*", str(file.size)):
        raise ZephyraError(
            f"the server sends other bytes of '{file.name}' than were asked for: '{told[:80]}', "
            f"wanted from {start} of {file.size}",
            hint="something between here and the hub (a proxy, a mirror) is broken",
        )
    return start


def _run(contents: Collection[Content], progress: Progress) -> None:
    from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

    stopped, total = threading.Event(), sum(content.file.size for content in contents)
    progress(sum(content.present for content in contents), total, "")  # before anything has arrived
    pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="pull")
    missing = [content for content in contents if not content.path.exists()]
    pending = {pool.submit(c.fetch, stripe, stopped) for c in missing for stripe in range(len(c.starts))}
    try:
        while pending:
            done, pending = wait(pending, timeout=0.1, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            progress(sum(content.present for content in contents), total, "")
    except BaseException as error:
        stopped.set()
        pool.shutdown(wait=isinstance(error, Exception), cancel_futures=True)  # who pressed Ctrl-C does not wait
        raise
    pool.shutdown()


def _reuse(content: Content, repository: Repository, here: Mapping[str, Path]) -> bool:
    """Link what this machine has already, in another model or in huggingface-hub's cache; copy it from elsewhere."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository.name, repo_type="model"), "blobs")
    wanted, name = content.file.digest, Path(content.file.name).name
    alike = sorted({path.with_name(name) for path in here.values()}) if wanted.startswith("git:") else []
    for path in (*filter(None, [here.get(wanted)]), *alike, cache / wanted.removeprefix("git:")):
        sized = path.is_file() and path.stat().st_size == content.file.size
        if sized and digest(path, wanted) == wanted:
            real = path.resolve()
            ours = real.is_relative_to(home().resolve()) or path == cache / path.name
            (link if ours else copy)(real, content.path)  # whoever owns another file may write into it
            return True
    return False


def _check_space(contents: Iterable[Content]) -> None:
    needed = sum(content.file.size - content.present for content in contents)
    free = shutil.disk_usage(folder()).free
    if needed > free:
        raise ZephyraError(
            f"{amount(needed)} are to be fetched, '{folder()}' has {amount(free)} of space left",
            hint="free some, or move all models with ZEPHYRA_HOME; zephyra models clean drops unfinished downloads",
        )
