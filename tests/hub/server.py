"""A hub on loopback that speaks the Hugging Face Hub's protocol, and fails in every way when told to.

It is for the real huggingface-hub client, through `HF_ENDPOINT`: facts of a repository, files (large ones by a redirect
to another port, the "CDN"), ranges, and the uploads of a commit. `python -m tests.hub.server FOLDER…` serves folders.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.repositories import LARGE, Repository, git_hash, sha256
from tests.hub.uploads import Uploads


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD path" matches `path`."""

    path: str
    times: int = 1
    status: int | None = None  # answer this, and nothing else
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # close the connection after so many bytes of the body
    delay: float = 0.0  # seconds before the answer
    bytes_per_second: float | None = None
    corrupt: bool = False  # one byte of the body is another
    ignore_range: bool = False  # 200 and the whole body, whatever was asked for
    body: bytes | None = None  # this instead of the body; its length is told honestly
    encoding: str | None = None  # "chunked": no length; "gzip": packed, though nobody asked


@dataclass
class Seen:
    """A request that is answered. `sent`: bytes of the body that have gone out."""

    method: str
    path: str
    range: str | None
    status: int
    sent: int
    authorization: str | None


class Hub:
    """Repositories by id, users by token, faults to come, and a log of what was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.users: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.uploads = Uploads(self.repositories)
        self.lock = threading.Lock()
        self.endpoint = self.cdn = ""

    def add(self, name: str, files: dict[str, bytes], **options: Any) -> Repository:
        repository = self.repositories[name] = Repository(name, **options)
        repository.commit(files)
        return repository

    def fail(self, path: str, **what: Any) -> Fault:
        """Arm a fault; see `Fault`."""
        self.faults.append(Fault(path, **what))
        return self.faults[-1]

    def fault(self, request: str) -> Fault:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.path, request):
                    fault.times -= 1
                    return fault
        return Fault("")

    def sent(self, path: str = "") -> int:
        """Bytes of bodies sent for paths that match."""
        return sum(seen.sent for seen in self.seen if re.search(path, seen.path))

    def content(self, digest: str) -> bytes | None:
        """A large file by its sha256, of any commit or of an upload."""
        trees = (tree for repository in self.repositories.values() for tree in repository.commits.values())
        held = (data for tree in trees for path, data in tree.items() if path.endswith(LARGE))
        return self.uploads.objects.get(digest) or next((data for data in held if sha256(data) == digest), None)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(iter(self._chunk, b""))
        parts = urlsplit(self.path)
        self.route, self.query = unquote(parts.path), parse_qs(parts.query)
        self.fault = self.hub.fault(f"{self.command} {self.route}")
        time.sleep(self.fault.delay)
        with suppress(ConnectionError):
            if self.fault.status is not None:
                return self._error(self.fault.status, "", "the hub was told to fail", **self.fault.headers)
            self._answer()

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline(), 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def _answer(self) -> None:
        if match := re.fullmatch(r"/cdn/([0-9a-f]{64})", self.route):
            if self.command == "PUT":
                return self._json(self.hub.uploads.store(match[1], self.body))
            data = self.hub.content(match[1])
            return self._error(404, "", "no such object") if data is None else self._file(data, match[1])
        if self.route == "/api/models":
            return self._json(self._search())
        if self.route == "/api/whoami-v2":
            user = self._user()
            return self._json({"type": "user", "name": user}) if user else self._error(401, "", "Invalid credentials")
        if self.command == "POST":
            answer = self.hub.uploads.answer(self.route, self.body, self._user(), self.hub.cdn, self.hub.endpoint)
            return self._json(answer) if isinstance(answer, dict) else self._error(*answer)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/refs", self.route):
            repository, _ = self._find(match[1], "main", facts=True)
            refs = repository.refs.items() if repository else ()
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in refs]
            return self._json({"branches": branches, "tags": [], "converts": []}) if repository else None
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self.route):
            repository, commit = self._find(match[1], match[2] or "main", facts=True)
            return self._json(repository.facts(commit)) if repository and commit else None
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self.route):
            repository, commit = self._find(match[1], match[2], facts=True)
            return self._json(repository.listing(commit)) if repository and commit else None
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.route):
            return self._resolve(match[1], match[2], match[3])
        self._error(404, "", "Not Found")

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository, commit = self._find(name, revision)
        if repository is None or commit is None:
            return
        data = repository.commits[commit].get(path)
        if data is None:
            return self._error(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not path.endswith(LARGE):
            return self._file(data, git_hash(data), **headers)
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{sha256(data)}"'}
        self._send(302, b"", **headers, **linked, Location=f"{self.hub.cdn}/cdn/{sha256(data)}?Signature=1")

    def _find(self, name: str, revision: str, *, facts: bool = False) -> tuple[Repository | None, str | None]:
        """The repository and the commit, or (None, None) with the error already sent."""
        repository, user = self.hub.repositories.get(name), self._user()
        hidden = repository is None or (repository.readers is not None and not repository.gated)
        if repository is None or (hidden and user not in (repository.readers or ())):
            status = 404 if user else 401
            self._error(status, "RepoNotFound", "Repository not found" if user else "Invalid username or password.")
            return None, None
        if repository.gated and not facts and user not in (repository.readers or ()):
            why = (
                "Access to model is restricted."
                if user
                else "Access to model is restricted. You must be authenticated."
            )
            self._error(403 if user else 401, "GatedRepo", why)
            return None, None
        commit = repository.resolve(revision)
        if commit is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit

    def _search(self) -> list[dict[str, Any]]:
        words = [word.lower() for word in self.query.get("search", [""])]
        author = self.query.get("author", [""])[0]
        open_to_all = (r for r in self.hub.repositories.values() if r.readers is None or r.gated)
        found = (r for r in open_to_all if words[0] in r.id.lower() and r.id.startswith(author))
        return [{"_id": "0" * 24, "id": r.id, "modelId": r.id, "tags": [], "private": False} for r in found]

    def _user(self) -> str | None:
        return self.hub.users.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def _json(self, value: Any) -> None:
        status = value.pop("status", 200) if isinstance(value, dict) else 200
        self._send(status, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str, **headers: str) -> None:
        body = json.dumps({"error": message}).encode() if self.fault.body is None else self.fault.body
        codes = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self._send(status, body, **{"Content-Type": "application/json"}, **codes, **headers)

    def _file(self, data: bytes, etag: str, **headers: str) -> None:
        """The file or the range of it that was asked for."""
        data = data if self.fault.body is None else self.fault.body
        headers |= {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None or self.fault.ignore_range:
            return self._send(200, data, **headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if first > last:
            return self._send(416, b"", **headers, **{"Content-Range": f"bytes */{len(data)}"})
        span = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        self._send(206, data[first : last + 1], **headers, **span)

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        fault = self.fault
        if fault.corrupt and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault.encoding == "gzip":
            body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
        chunked = fault.encoding == "chunked"
        length = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(body))}
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body
        self.send_response(status)
        for name, value in {**length, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        asked, token = self.headers.get("Range"), self.headers.get("Authorization")
        seen = Seen(self.command, self.route, asked, status, 0, token)
        self.hub.seen.append(seen)
        if self.command != "HEAD":
            last, self.close_connection = self.close_connection, True  # should it break off
            for piece in self._pieces(body):
                seen.sent += len(piece)  # before it goes: who has read it finds it counted
                self.wfile.write(piece)
            self.close_connection = last or seen.sent < len(body)

    def _pieces(self, body: bytes) -> Iterator[bytes]:
        body = body if self.fault.cut_after is None else body[: self.fault.cut_after]
        rate = self.fault.bytes_per_second
        size = max(1, int(rate / 100)) if rate else 64 * 1024
        for at in range(0, len(body), size):
            yield body[at : at + size]
            if rate:
                time.sleep(size / rate)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *arguments: Any) -> None:
        """A client that was killed is no news."""


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve on two free ports of loopback, hub and "CDN", until the block ends."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
    hub.endpoint, hub.cdn = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=s.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True) for s in servers]
    try:
        for thread in threads:
            thread.start()
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def files_of(folder: Path) -> dict[str, bytes]:
    """A folder as a repository's files."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


if __name__ == "__main__":
    local = Hub()
    for root in map(Path, sys.argv[1:]):
        local.add(f"local/{root.name}", files_of(root))
    local.users["hf_local"] = "local"
    with serve(local), suppress(KeyboardInterrupt):
        print(f"export HF_ENDPOINT={local.endpoint}", *local.repositories, sep="\n", flush=True)
        threading.Event().wait()
