"""OpenAI's HTTP interface over one engine: many connections, one request computed at a time, in their order."""

from __future__ import annotations

import ipaddress
import json
import select
import socket
import sys
import time
from collections.abc import Iterable
from hmac import compare_digest
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any

from zephyra_cli import ui
from zephyra_cli.engine import Answer, Engine
from zephyra_cli.openai import Completion, Refusal, models, read_completion
from zephyra_cli.text import visible
from zephyra_cli.worker import Job, Worker
from zephyra_fusion import __version__
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    from zephyra_cli.settings import Settings

MOST_BYTES = 4 * 2**20  # of a request's body
SILENCE_S = 30.0  # a connection that says nothing for so long, or takes nothing, is closed


class Server(ThreadingHTTPServer):
    """Listens on `host:port` (0: any free one); with a `key`, who does not send it is refused.

    ZephyraError: the address is taken or not this machine's.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, host: str, port: int, engine: Engine, settings: Settings, *, key: str = "") -> None:
        self.engine, self.settings, self.created = engine, settings, int(time.time())
        self.worker, self.key = Worker(engine), key
        try:
            self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ZephyraError(f"cannot listen on {host}:{port}: {reason}", hint="--host and --port") from None
        self.local = is_loopback(host)
        self.names = {"localhost", "127.0.0.1", "::1", host.lower()}

    def server_bind(self) -> None:
        """Without http.server's question to the name service, which may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()[:2]

    @property
    def url(self) -> str:
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{host}:{self.server_port}"

    def run(self) -> None:
        """Serve until the interruption, then end what is being computed and let the interruption go on its way."""
        self.worker.start()
        try:
            self.serve_forever()
        finally:
            self.server_close()
            self.worker.stop()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no fault of ours; anything else is worth a line."""
        error = sys.exception()
        if not isinstance(error, OSError):
            ui.note(f"{type(error).__name__} while answering {client_address[0]}: {error}")


class Handler(BaseHTTPRequestHandler):
    """One connection. Every answer that is no success is OpenAI's error object."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = f"zephyra/{__version__}", ""
    timeout = SILENCE_S
    server: Server

    def do_GET(self) -> None:
        self._answer({"/v1/models": self._models, "/health": self._health})

    def do_POST(self) -> None:
        self._answer({"/v1/chat/completions": self._chat, "/v1/completions": self._text})

    def _answer(self, pages: dict[str, Any]) -> None:
        path = self.path.partition("?")[0]
        try:
            self._check_host()
            if path != "/health":
                self._check_key()
            if path.startswith("/v1/models/") and self.command == "GET":
                self._model(path.removeprefix("/v1/models/"))
            elif path in pages:
                pages[path]()
            else:
                raise Refusal(404, f"nothing is at {self.command} {path}", code="not_found")
        except Refusal as refusal:
            # What is left of the body would be read as the next request.
            self.close_connection = self.close_connection or self.command == "POST"
            self._send(refusal.status, refusal.to_dict())

    def _check_host(self) -> None:
        """A page on the web may point its own name at this machine: on loopback only our own names are answered."""
        name = self.headers.get("Host", "").rpartition("@")[2].lower()
        name = name.partition("]")[0].lstrip("[") if name.startswith("[") else name.partition(":")[0]
        if self.server.local and name and name not in self.server.names:
            raise Refusal(403, f"this server is not called '{name}'")

    def _check_key(self) -> None:
        given = self.headers.get("Authorization", "").encode("latin-1", "replace")
        if self.server.key and not compare_digest(given, f"Bearer {self.server.key}".encode()):
            raise Refusal(401, "the key is missing or wrong: Authorization: Bearer KEY", code="invalid_api_key")

    def _health(self) -> None:
        self._send(200, {"status": "ok"})

    def _models(self) -> None:
        self._send(200, {"object": "list", "data": models(self.server.engine.pack, self.server.created)})

    def _model(self, name: str) -> None:
        found = {entry["id"]: entry for entry in models(self.server.engine.pack, self.server.created)}
        if name not in found:
            raise Refusal(404, f"there is no model '{name}' here", param="model", code="model_not_found")
        self._send(200, found[name])

    def _chat(self) -> None:
        self._complete(chat=True)

    def _text(self) -> None:
        self._complete(chat=False)

    def _complete(self, *, chat: bool) -> None:
        server = self.server
        completion = read_completion(self._body(), chat=chat, pack=server.engine.pack, settings=server.settings)
        job = server.worker.submit(completion.request)
        try:
            first = self._next(job)  # a prompt that is refused must be so before "200 OK"
            if completion.stream:
                self._stream(completion, job, first)
            else:
                while not isinstance(first, Answer):
                    first = self._next(job)
                self._send(200, completion.whole(first))
        finally:
            job.cancelled.set()

    def _next(self, job: Job) -> str | Answer:
        """The next event of the engine. Refusal: it failed. ConnectionError: the client has gone."""
        event = None
        while event is None:
            if self._gone():
                raise ConnectionAbortedError
            event = job.next(0.5)
        if isinstance(event, ZephyraError):
            raise Refusal.of(event)
        if isinstance(event, Refusal):
            raise event
        if isinstance(event, BaseException):
            ui.note(f"{type(event).__name__} while generating: {event}")
            raise Refusal(500, "zephyra failed at this; its standard error says more")
        return event

    def _gone(self) -> bool:
        if not select.select([self.connection], [], [], 0)[0]:
            return False
        return not self.connection.recv(1, socket.MSG_PEEK)

    def _stream(self, completion: Completion, job: Job, event: str | Answer) -> None:
        chunked = self.request_version != "HTTP/1.0"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.close_connection = True
        self.end_headers()
        try:
            self._events(completion.opening(), chunked)
            while not isinstance(event, Answer):
                self._events([completion.piece(event)], chunked)
                event = self._next(job)
            self._events([*completion.closing(event), None], chunked)
        except Refusal as refusal:  # too late for a status: an event says it, and no [DONE] follows
            self._events([refusal.to_dict()], chunked)
            self.close_connection = True
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _events(self, events: Iterable[dict[str, Any] | None], chunked: bool) -> None:
        """Server-sent events; None is `[DONE]`."""
        text = "".join(f"data: {'[DONE]' if event is None else json.dumps(event)}\n\n" for event in events)
        if data := text.encode():
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
            self.wfile.flush()

    def _body(self) -> dict[str, Any]:
        kind = self.headers.get_content_type()
        if kind != "application/json":  # what a web page may send without asking is none of it
            raise Refusal(415, f"Content-Type is '{kind}', must be application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or "Transfer-Encoding" in self.headers:
            raise Refusal(411, "the request needs a Content-Length")
        if len(length) > 12 or int(length) > MOST_BYTES:
            raise Refusal(413, f"the body has {length} bytes, at most {MOST_BYTES} are taken")
        data = self.rfile.read(int(length))
        if len(data) < int(length):
            raise ConnectionAbortedError
        try:
            body = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Refusal(400, f"the body is no valid JSON: {error}") from None
        if not isinstance(body, dict):
            raise Refusal(400, "the body must be a JSON object")
        return body

    def _send(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", "1")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses: malformed requests, other methods."""
        self.close_connection = True
        self._send(code, Refusal(code, message or HTTPStatus(code).phrase).to_dict())

    def log_error(self, format: str, *arguments: Any) -> None:
        """Called for connections that stayed silent: clients keep them open, that is no error."""

    def log_message(self, format: str, *arguments: Any) -> None:
        ui.note(visible(f"{self.client_address[0]} {format % arguments}"))


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
