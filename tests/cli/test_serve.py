"""The HTTP server: OpenAI's objects, streams, who answers, and what is refused; all on loopback."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.process import start
from tests.cli.scripted import FIRST_BYTE, ScriptedBackend
from zephyra_cli.engine import Engine
from zephyra_cli.pack import Pack
from zephyra_cli.server import MOST_BYTES, Server
from zephyra_cli.settings import Settings
from zephyra_fusion.errors import ZephyraError

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


class Sure:
    """A router that has made up its mind."""

    def logits(self, token_ids: object) -> list[float]:
        return [0.0, 9.0, 0.0]


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend("Grü".encode(), b"\xc3", b"\xbc", b"e!", b" STOP it")


@pytest.fixture
def server(tiny_pack: Path, backend: ScriptedBackend) -> Iterator[Server]:
    running = Server("127.0.0.1", 0, Engine(Pack.read(tiny_pack), backend, classifier=Sure()), Settings())
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    thread.join(10)


def ask(server: Server, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    request = urllib.request.Request(server.url + path, data, given)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read().decode()
            return answer.status, json.loads(text) if "json" in answer.headers["Content-Type"] else text
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_chat_completion(server: Server, backend: ScriptedBackend) -> None:
    status, got = ask(server, "/v1/chat/completions", {**CHAT, "model": "auto", "stop": "STOP", "user": "me"})
    assert status == 200 and got["object"] == "chat.completion" and got["id"].startswith("chatcmpl-")
    assert got["choices"] == [
        {
            "index": 0,
            "logprobs": None,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Grüüe! ", "refusal": None},
        }
    ]
    assert got["model"] == "auto" and got["usage"]["total_tokens"] == sum(
        got["usage"][name] for name in ("prompt_tokens", "completion_tokens")
    )
    assert got["zephyra"]["route"]["domain"] == "sql" and got["zephyra"]["weights"] == {"sql": 1.0}
    assert backend.weights == {"sql": 1.0}


def test_a_text_completion_has_no_template(server: Server, backend: ScriptedBackend) -> None:
    status, got = ask(server, "/v1/completions", {"prompt": ["ab"], "model": "none", "max_tokens": 2})
    assert status == 200 and got["object"] == "text_completion"
    assert got["choices"][0] == {"index": 0, "logprobs": None, "finish_reason": "length", "text": "Grü\ufffd"}
    assert backend.prompts == [[FIRST_BYTE + byte for byte in b"ab"]] and backend.weights == {}


def events(text: str) -> list[Any]:
    lines = text.split("\n\n")
    assert lines.pop() == "" and all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def test_a_stream_of_events(server: Server) -> None:
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}, "model": "shell=0.5,sql=0.25"}
    status, text = ask(server, "/v1/chat/completions", body)
    got = events(text)
    assert status == 200 and got.pop() == "[DONE]"
    usage = got.pop()
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 6
    assert {event["object"] for event in got} == {"chat.completion.chunk"} and len({event["id"] for event in got}) == 1
    deltas = [event["choices"][0]["delta"] for event in got]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
    assert [delta["content"] for delta in deltas[1:-1]] == ["Grü", "ü", "e!", " STOP it"]
    assert [event["choices"][0]["finish_reason"] for event in got] == [None] * 5 + ["stop"]
    assert got[-1]["zephyra"]["weights"] == {"shell": 0.5, "sql": 0.25}
    plain = events(ask(server, "/v1/completions", {"prompt": "a", "stream": True})[1])
    assert [event["choices"][0]["text"] for event in plain[:-1]] == ["Grü", "ü", "e!", " STOP it", ""]


def test_models_are_the_domains(server: Server) -> None:
    listed = ask(server, "/v1/models")[1]
    assert [entry["id"] for entry in listed["data"]] == ["tiny", "none", "auto", "shell", "sql"]
    assert ask(server, "/v1/models/sql")[1] == listed["data"][-1]
    assert ask(server, "/v1/models/law")[0] == 404
    assert ask(server, "/health") == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/nothing", CHAT, 404, "nothing is at POST /v1/nothing"),
        ("/v1/../../etc/passwd", None, 404, "nothing is at GET"),
        ("/v1/chat/completions", None, 404, "nothing is at GET"),
        ("/v1/chat/completions", b"{", 400, "no valid JSON"),
        ("/v1/chat/completions", b"[" * 100_000, 400, "no valid JSON"),
        ("/v1/chat/completions", [1], 400, "must be a JSON object"),
        ("/v1/chat/completions", {**CHAT, "model": "shel"}, 404, "unknown domain 'shel' (did you mean 'shell'?"),
        ("/v1/chat/completions", {**CHAT, "model": 3}, 400, "'model' is 3, must be a text"),
        ("/v1/chat/completions", {"messages": []}, 400, "no message of the user"),
        ("/v1/chat/completions", {"messages": "hi"}, 400, "'messages' is 'hi', must be a list"),
        ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0] needs a role"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "file"}]}]}, 400, "of type text"),
        ("/v1/chat/completions", {**CHAT, "temperature": "hot"}, 400, "'temperature' is 'hot', must be a number"),
        ("/v1/chat/completions", {**CHAT, "temperature": -1}, 400, "temperature is -1.0, must be between 0 and 100"),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 0}, 400, "max_tokens is 0, must be at least 1"),
        ("/v1/chat/completions", {**CHAT, "stream": 1}, 400, "'stream' is 1, must be true or false"),
        ("/v1/chat/completions", {**CHAT, "stop": [""]}, 400, "none of them empty"),
        ("/v1/chat/completions", {**CHAT, "n": 2}, 400, "'n' is not supported"),
        ("/v1/chat/completions", {**CHAT, "tools": [{}]}, 400, "'tools' is not supported"),
        ("/v1/chat/completions", {**CHAT, "temprature": 1}, 400, "unknown parameter 'temprature'"),
        ("/v1/chat/completions", {**CHAT, "response_format": {"type": "xml"}}, 400, "text, json_object or json_schema"),
        ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_schema"}}, 400, "schema must be an object"),
        ("/v1/chat/completions", {**CHAT, "grammar": "root ::= ("}, 400, ""),
        ("/v1/completions", CHAT, 400, "unknown parameter 'messages'"),
        ("/v1/completions", {"prompt": [1, 2]}, 400, "prompt must be one text"),
    ],
)  # fmt: skip
def test_what_is_refused(path: str, body: object, status: int, message: str, server: Server) -> None:
    got, value = ask(server, path, body)
    assert got == status and message in value["error"]["message"]
    assert value["error"]["type"] == "invalid_request_error" and set(value["error"]) == {
        "message", "type", "param", "code",
    }  # fmt: skip


def test_nothing_means_what_it_would_mean_by_default(server: Server, backend: ScriptedBackend) -> None:
    neutral = {"n": 1, "frequency_penalty": 0, "logit_bias": None, "tools": [], "response_format": {"type": "text"}}
    assert ask(server, "/v1/chat/completions", {**CHAT, **neutral, "seed": -1, "model": None})[0] == 200
    message = {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}
    assert ask(server, "/v1/chat/completions", {"messages": [message]})[0] == 200
    assert backend.prompts[0] == backend.prompts[1]


def test_headers_that_are_refused(server: Server) -> None:
    assert ask(server, "/v1/chat/completions", CHAT, Content_Type="text/plain")[0] == 415
    assert ask(server, "/v1/models", Host="evil.example")[0] == 403
    assert ask(server, "/v1/models", Host="localhost:1")[0] == 200

    def raw(request: bytes) -> bytes:
        with socket.create_connection(server.server_address[:2], timeout=30) as connection:
            connection.sendall(request)
            return connection.makefile("rb").read()

    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert b" 411 " in raw(head + b"\r\n")
    assert b" 411 " in raw(head + b"Transfer-Encoding: chunked\r\n\r\n")
    assert b" 413 " in raw(head + f"Content-Length: {MOST_BYTES + 1}\r\n\r\n".encode())
    assert b'"invalid_request_error"' in raw(b"nonsense\r\n\r\n")
    assert b" 501 " in raw(b"BREW / HTTP/1.1\r\n\r\n")


def test_who_has_no_key_is_refused(tiny_pack: Path, backend: ScriptedBackend) -> None:
    engine = Engine(Pack.read(tiny_pack), backend, classifier=Sure())
    running = Server("127.0.0.1", 0, engine, Settings(), key="sésame")
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "sesame"}):
        status, value = ask(running, "/v1/models", **headers)
        assert status == 401 and value["error"]["code"] == "invalid_api_key" and "same" not in str(value)
        assert ask(running, "/v1/completions", {"prompt": "x"}, **headers)[0] == 401
    assert ask(running, "/health")[0] == 200 and backend.prompts == []
    key = "Bearer sésame".encode().decode("latin-1")
    assert ask(running, "/v1/completions", {"prompt": "x"}, Authorization=key)[0] == 200
    running.shutdown()
    thread.join(10)


def test_a_fault_of_the_engine_is_no_fault_of_the_server(
    server: Server, backend: ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    backend.pieces = (b"a", ZephyraError("the prompt has 9 tokens, the context 8", hint="shorten it"))
    status, value = ask(server, "/v1/completions", {"prompt": "x"})
    assert status == 400 and value["error"]["message"] == "the prompt has 9 tokens, the context 8 (shorten it)"
    streamed = events(ask(server, "/v1/completions", {"prompt": "x", "stream": True})[1])
    assert streamed[0]["choices"][0]["text"] == "a" and "error" in streamed[-1]
    backend.pieces = (ValueError("inside"),)
    status, value = ask(server, "/v1/completions", {"prompt": "x", "stream": True})
    assert status == 500 and value["error"]["type"] == "server_error" and "inside" not in value["error"]["message"]
    assert "ValueError while generating: inside" in capsys.readouterr().err
    backend.pieces = (b"well",)
    assert ask(server, "/v1/completions", {"prompt": "x"})[1]["choices"][0]["text"] == "well"


def test_requests_are_computed_one_at_a_time_and_none_is_lost(server: Server) -> None:
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(ask(server, "/v1/completions", {"prompt": "x"})))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [status for status, _ in answers] == [200] * 8
    assert {value["choices"][0]["text"] for _, value in answers} == {"Grüüe! STOP it"}


class Slow(ScriptedBackend):
    """Its every token waits until it may come."""

    def __init__(self) -> None:
        super().__init__(*[b"x"] * 50)
        self.begun, self.may = threading.Event(), threading.Semaphore(0)

    def token_bytes(self, token_id: int) -> bytes:
        self.begun.set()
        self.may.acquire(timeout=10)
        return super().token_bytes(token_id)


def test_who_goes_away_no_longer_costs_anything(tiny_pack: Path) -> None:
    backend = Slow()
    running = Server("127.0.0.1", 0, Engine(Pack.read(tiny_pack), backend), Settings(domain="none"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    body = json.dumps({"prompt": "x"}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(running.server_address[:2], timeout=30) as connection:
        connection.sendall(head.encode() + body)
        assert backend.begun.wait(10)
    deadline = time.monotonic() + 20
    while not backend.closed_early and time.monotonic() < deadline:
        backend.may.release()
        time.sleep(0.05)
    assert backend.closed_early and backend.usage.completion_tokens < 50
    running.shutdown()
    thread.join(10)


def test_an_address_that_is_taken(server: Server) -> None:
    with pytest.raises(ZephyraError, match=f"cannot listen on 127.0.0.1:{server.server_port}: "):
        Server("127.0.0.1", server.server_port, server.engine, server.settings)


def test_the_program_serves_and_ctrl_c_ends_it(tiny_pack: Path) -> None:
    process = start("serve", "-m", tiny_pack, "--port", 0, "-d", "sql")
    try:
        line = process.stderr.readline().decode()
        found = re.fullmatch(r"tiny on (http://127\.0\.0\.1:\d+)/v1; Ctrl-C ends\n", line)
        assert found, line
        request = urllib.request.Request(
            found[1] + "/v1/completions",
            json.dumps({"prompt": "ab", "max_tokens": 3, "model": "tiny"}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            got = json.loads(answer.read())
        assert got["zephyra"]["weights"] == {"sql": 1.0} and got["usage"]["completion_tokens"] <= 3
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and out == b"" and b"Traceback" not in err


def test_bad_options_of_the_program(zephyra: Any, tiny_pack: Path) -> None:
    done = zephyra("serve", "-m", tiny_pack, "-d", "law")
    assert done.returncode == 1 and b"unknown domain 'law'" in done.stderr
    assert zephyra("serve", "--port", 70000).returncode == 2
