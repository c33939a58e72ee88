from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cli.scripted import FIRST_BYTE, STOP, ScriptedBackend
from zephyra_cli.engine import Answer, Engine, Request
from zephyra_cli.pack import Adapter, Pack
from zephyra_fusion.chat import SPECIAL_TOKENS
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.router import Router
from zephyra_fusion.types import Message, SamplingParams

USER, ASSISTANT = SPECIAL_TOKENS.index("<|user|>"), SPECIAL_TOKENS.index("<|assistant|>")


class KeywordClassifier:
    """Sure of `shell` when the prompt says "file", of nothing else."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def logits(self, token_ids: Sequence[int]) -> list[float]:
        self.seen.append(list(token_ids))
        text = bytes(token - FIRST_BYTE for token in token_ids)
        return [5.0, 0.0, 0.0] if b"file" in text else [0.1, 0.0, 0.0]


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    for name in ("base.gguf", "shell.gguf", "sql.gguf"):
        (tmp_path / name).touch()
    return Pack(
        root=tmp_path,
        name="test",
        base="base.gguf",
        adapters={name: Adapter(file=f"{name}.gguf") for name in ("shell", "sql")},
        router=Router(labels=("shell", "sql", "none"), threshold=0.6, max_tokens=32),
    )


def ask(engine: Engine, prompt: str, **request: object) -> tuple[list[str], Answer]:
    params = request.pop("params", SamplingParams())
    events = list(engine.generate(Request(messages=(Message("user", prompt),), params=params, **request)))
    pieces, answer = events[:-1], events[-1]
    assert isinstance(answer, Answer)
    assert answer.text == "".join(pieces)
    return pieces, answer


def test_auto_routes_and_switches_to_the_specialist(pack: Pack) -> None:
    backend = ScriptedBackend(b"find", b" . -ty", b"pe f")
    engine = Engine(pack, backend, classifier=KeywordClassifier())
    pieces, answer = ask(engine, "list files")
    assert pieces == ["find", " . -ty", "pe f"]
    assert answer.finish_reason == "stop"
    assert backend.weights == {"shell": 1.0}
    assert answer.route is not None and answer.route.domain == "shell" and answer.route.router_ms > 0
    assert backend.prompts[0] == [USER, *(FIRST_BYTE + b for b in b"list files"), STOP, ASSISTANT]


def test_auto_leaves_to_the_base_what_fits_nowhere(pack: Pack) -> None:
    backend = ScriptedBackend(b"hello")
    _, answer = ask(Engine(pack, backend, classifier=KeywordClassifier()), "good morning")
    assert answer.route is not None and answer.route.abstained
    assert (answer.route.domain, backend.weights, backend.resident) == ("none", {}, [])


def test_the_router_reads_the_prompt_alone_and_no_more_than_its_window(pack: Pack) -> None:
    classifier = KeywordClassifier()
    Engine(pack, ScriptedBackend(), classifier=classifier).route("x" * 30 + "y" * 30)
    assert bytes(token - FIRST_BYTE for token in classifier.seen[0]) == b"x" * 16 + b"y" * 16


def test_a_named_domain_is_not_routed(pack: Pack) -> None:
    backend = ScriptedBackend(b"x")
    engine = Engine(pack, backend)
    _, answer = ask(engine, "list files", domain="shell=0.7,sql=0.3")
    assert answer.route is None
    assert answer.to_dict()["route"] is None
    assert backend.weights == {"shell": 0.7, "sql": 0.3}
    ask(engine, "list files", domain="sql")
    assert backend.weights == {"sql": 1.0}
    assert backend.resident == ["shell", "sql"]


def test_without_a_router_the_base_answers_and_auto_is_refused(tmp_path: Path) -> None:
    bare = Pack(root=tmp_path, name="plain", base="base.gguf")
    _, answer = ask(Engine(bare, ScriptedBackend(b"x")), "hi")
    assert answer.route is None and answer.weights == {}
    with pytest.raises(ZephyraError, match="has no router"):
        ask(Engine(bare, ScriptedBackend(b"x")), "hi", domain="auto")


def test_raw_has_no_template(pack: Pack) -> None:
    backend = ScriptedBackend(b"x")
    ask(Engine(pack, backend), "Once <|end|>", raw=True, domain="none")
    assert backend.prompts[0] == [FIRST_BYTE + b for b in b"Once <|end|>"]


def test_max_tokens_and_stop_strings_end_it(pack: Pack) -> None:
    _, answer = ask(
        Engine(pack, ScriptedBackend(b"a", b"b", b"c")), "hi", domain="none", params=SamplingParams(max_tokens=2)
    )
    assert (answer.text, answer.finish_reason, answer.usage.completion_tokens) == ("ab", "length", 2)
    backend = ScriptedBackend(b"a\nU", b"ser: b", b"never")
    _, answer = ask(Engine(pack, backend), "hi", domain="none", stop=("\nUser:",))
    assert (answer.text, answer.finish_reason, backend.closed_early) == ("a", "stop", True)


def test_an_interruption_inside_keeps_the_partial_answer_and_goes_on_its_way(pack: Pack) -> None:
    engine = Engine(pack, ScriptedBackend(b"par", b"tial \xc3", KeyboardInterrupt()))
    events = engine.generate(Request(messages=(Message("user", "hi"),), params=SamplingParams(), domain="none"))
    assert [next(events), next(events), next(events)] == ["par", "tial ", "\ufffd"]
    answer = next(events)
    assert isinstance(answer, Answer)
    assert (answer.text, answer.finish_reason) == ("partial \ufffd", "interrupted")
    with pytest.raises(KeyboardInterrupt):
        next(events)


@pytest.mark.parametrize("pieces", [(b"par", b"tial \xc3", KeyboardInterrupt("first")), (b"par", b"tial \xc3")])
def test_an_interruption_at_the_last_piece_loses_neither_answer_nor_the_first_interruption(
    pack: Pack, pieces: tuple[bytes | BaseException, ...]
) -> None:
    """A terminal that goes away: SIGHUP comes while a token is computed, then its last piece cannot be written."""
    engine = Engine(pack, ScriptedBackend(*pieces))
    events = engine.generate(Request(messages=(Message("user", "hi"),), params=SamplingParams(), domain="none"))
    assert [next(events), next(events), next(events)] == ["par", "tial ", "\ufffd"]
    answer = events.throw(KeyboardInterrupt("second"))
    assert isinstance(answer, Answer) and answer.text == "partial \ufffd"
    assert answer.finish_reason == ("interrupted" if len(pieces) == 3 else "stop")
    with pytest.raises(KeyboardInterrupt, match="first" if len(pieces) == 3 else "second"):
        next(events)


def test_an_interruption_thrown_in_does_the_same(pack: Pack) -> None:
    backend = ScriptedBackend(b"par", b"tial")
    events = Engine(pack, backend).generate(
        Request(messages=(Message("user", "hi"),), params=SamplingParams(), domain="none")
    )
    assert next(events) == "par"
    answer = events.throw(KeyboardInterrupt())
    assert isinstance(answer, Answer)
    assert (answer.text, answer.finish_reason, backend.closed_early) == ("par", "interrupted", True)
    with pytest.raises(KeyboardInterrupt):
        next(events)


def test_the_result_object_is_the_contracts(pack: Pack) -> None:
    engine = Engine(pack, ScriptedBackend(b"find"), classifier=KeywordClassifier(), load_ms=31.0)
    _, answer = ask(engine, "files", params=SamplingParams(temperature=0.5, seed=7))
    result = json.loads(json.dumps(answer.to_dict()))
    assert {name: type(value).__name__ for name, value in result.items()} == {
        "text": "str",
        "finish_reason": "str",
        "model": "str",
        "backend": "str",
        "device": "str",
        "route": "dict",
        "usage": "dict",
        "timings": "dict",
        "decision": "dict",
        "speculation": "dict",
        "seed": "int",
        "replay": "str",
    }
    assert list(result["route"]) == ["domain", "weights", "probabilities", "abstained", "router_ms"]
    assert result["usage"] == {"prompt_tokens": 8, "cached_tokens": 0, "completion_tokens": 2}
    assert list(result["timings"]) == [
        "load_ms",
        "switch_ms",
        "first_token_ms",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
    ]
    assert result["timings"]["prefill_tokens_per_second"] == 4000.0
    assert result["speculation"] == {"drafted": 0, "accepted": 0, "draft": "none", "note": ""}
    assert result["seed"] == 7


def test_replay_names_all_that_decides_the_answer(pack: Pack) -> None:
    _, answer = ask(Engine(pack, ScriptedBackend(b"x")), "hi ü", domain="sql=0.5", stop=("END",))
    replay = json.loads(answer.replay)
    assert replay["weights"] == {"sql": 0.5}
    assert replay["messages"] == [["user", "hi ü"]]
    assert replay["stop"] == ["END"]
    assert replay["sampling"]["temperature"] == 0.0
    assert "\n" not in answer.replay


def test_a_missing_adapter_file_is_named(pack: Pack) -> None:
    (pack.root / "sql.gguf").unlink()
    with pytest.raises(ZephyraError, match=r"lacks its file .*sql\.gguf"):
        ask(Engine(pack, ScriptedBackend(b"x")), "hi", domain="sql")
