"""OpenAI's dialect read into requests, and the queue that they wait in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.scripted import ScriptedBackend
from zephyra_cli.engine import Engine
from zephyra_cli.openai import Refusal, read_completion
from zephyra_cli.pack import Pack
from zephyra_cli.settings import Settings
from zephyra_cli.worker import MOST_WAITING, Worker
from zephyra_fusion.types import SamplingParams


def test_the_form_of_an_answer(tiny_pack: Path) -> None:
    def params(**body: object) -> SamplingParams:
        given = {"prompt": "x", **body}
        return read_completion(given, chat=False, pack=Pack.read(tiny_pack), settings=Settings()).request.params

    schema = {"type": "object", "properties": {"ä": {"type": "integer"}}}
    named = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    assert json.loads(params(response_format=named).schema) == schema
    assert json.loads(params(response_format={"type": "json_object"}).schema) == {"type": "object"}
    assert params(grammar='root ::= "a"').grammar == 'root ::= "a"'
    assert params(response_format={"type": "text"}) == params()
    assert params(temperature=1).seed != params(temperature=1).seed, "a fresh seed for every request"
    assert params(temperature=1, seed=-1).seed == 2**32 - 1
    with pytest.raises(Refusal, match="a schema and a grammar"):
        params(response_format=named, grammar='root ::= "a"')


def test_the_queue_ends_somewhere_and_stopping_tells_who_waits(tiny_pack: Path) -> None:
    worker = Worker(Engine(Pack.read(tiny_pack), ScriptedBackend(b"x")))  # it never starts
    jobs = [worker.submit(None) for _ in range(MOST_WAITING)]
    with pytest.raises(Refusal, match="64 requests are waiting already"):
        worker.submit(None)
    worker.stop()
    assert all(isinstance(job.next(0), Refusal) for job in jobs)
    with pytest.raises(Refusal, match="the server is ending"):
        worker.submit(None)
