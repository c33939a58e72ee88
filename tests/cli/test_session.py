from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.scripted import FIRST_BYTE, ScriptedBackend
from zephyra_cli.engine import Answer, Engine
from zephyra_cli.pack import Adapter, Pack
from zephyra_cli.routing import SwitchPolicy
from zephyra_cli.session import SUMMARIZE, Session
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.router import Router
from zephyra_fusion.types import Route, SamplingParams


class WordClassifier:
    """Sure of the label that the prompt names; of nothing where it names none."""

    def logits(self, token_ids: Sequence[int]) -> list[float]:
        text = bytes(token - FIRST_BYTE for token in token_ids)
        return [5.0 if b"shell" in text else 0.0, 5.0 if b"sql" in text else 0.0, 0.1]


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    for name in ("base.gguf", "shell.gguf", "sql.gguf"):
        (tmp_path / name).touch()
    return Pack(
        root=tmp_path,
        name="test",
        base="base.gguf",
        adapters={name: Adapter(file=f"{name}.gguf") for name in ("shell", "sql")},
        router=Router(labels=("shell", "sql", "none"), threshold=0.6, max_tokens=64),
    )


def session(pack: Pack, *pieces: bytes | BaseException, **values: object) -> Session:
    engine = Engine(pack, ScriptedBackend(*pieces), classifier=WordClassifier())
    told: list[str] = []
    made = Session(engine, SamplingParams(max_tokens=8), told.append, **values)
    made.told = told
    return made


def ask(made: Session, question: str) -> Answer:
    *_, answer = made.ask(question)
    assert isinstance(answer, Answer)
    return answer


def prompts(made: Session) -> list[list[int]]:
    backend = made.engine.backend
    assert isinstance(backend, ScriptedBackend)
    return backend.prompts


def test_every_turn_is_routed_and_sees_the_turns_before(pack: Pack) -> None:
    made = session(pack, b"yes")
    assert ask(made, "a shell question").weights == {"shell": 1.0}
    answer = ask(made, "now sql please")
    assert answer.weights == {"sql": 1.0} and answer.route is not None and answer.route.domain == "sql"
    first, second = prompts(made)
    assert second[: len(first)] == first, "the cache's prefix must fit"
    assert bytes(t - FIRST_BYTE for t in second if t >= FIRST_BYTE) == b"a shell questionyesnow sql please"
    assert [turn.question for turn in made.turns] == ["a shell question", "now sql please"]


def test_a_vague_turn_stays_where_the_conversation_is(pack: Pack) -> None:
    made = session(pack, b"yes")
    ask(made, "a shell question")
    answer = ask(made, "and then?")
    assert answer.weights == {"shell": 1.0} and "stays" in made.reason
    assert answer.route is not None and answer.route.probabilities["shell"] < 0.6


def test_without_margin_the_router_alone_decides(pack: Pack) -> None:
    made = session(pack, b"yes", policy=SwitchPolicy(margin=0.0, price=0.0))
    ask(made, "a shell question")
    assert ask(made, "and then?").weights == {}


@pytest.mark.parametrize(("lead", "who"), [(0.2, "sql"), (0.4, "shell")])
def test_a_change_needs_the_margin(lead: float, who: str) -> None:
    shares = {"shell": 0.5 + lead / 2, "sql": 0.5 - lead / 2}
    route = Route(domain="shell", weights={"shell": 1.0}, probabilities=shares)
    decided = SwitchPolicy(margin=0.3).decide(route, "sql")
    assert decided.weights == {who: 1.0} and decided.by == ("router" if who == "shell" else "sticky")
    assert SwitchPolicy(margin=0.3).decide(route, None).weights == {"shell": 1.0}


def test_a_change_that_reads_much_again_needs_more() -> None:
    route = Route(domain="shell", weights={"shell": 1.0}, probabilities={"shell": 0.7, "sql": 0.3})
    policy = SwitchPolicy(margin=0.3, price=0.1)
    costs = {"shell": 3000, "sql": 20}
    dear = policy.decide(route, "sql", lambda weights: costs[next(iter(weights))])
    assert dear.weights == {"sql": 1.0} and dear.reread_tokens == 0 and "would read 2980 tokens again" in dear.reason
    costs["shell"] = 1500
    cheap = policy.decide(route, "sql", lambda weights: costs[next(iter(weights))])
    assert cheap.weights == {"shell": 1.0} and cheap.reread_tokens == 1480 and "1480 tokens are read" in cheap.reason
    assert cheap.to_dict() == {"by": "router", "reason": cheap.reason, "reread_tokens": 1480}


def test_the_price_is_what_the_cache_lacks(pack: Pack) -> None:
    made = session(pack, b"yes")
    ask(made, "a shell question, and a long one at that")
    answer = ask(made, "now sql please")
    first, second = prompts(made)
    assert answer.decision.reread_tokens == len(first)
    assert len(second) > len(first)


def test_a_pin_beats_the_router(pack: Pack) -> None:
    made = session(pack, b"yes", domain="sql")
    answer = ask(made, "a shell question")
    assert answer.weights == {"sql": 1.0} and answer.route is None
    made.pin("shell=0.5,sql=0.5")
    assert ask(made, "more").weights == {"shell": 0.5, "sql": 0.5}
    made.pin("auto")
    assert ask(made, "and then?").weights == {}, "a blend is nothing that the router could stay with"
    with pytest.raises(ZephyraError, match="unknown domain 'cooking'"):
        made.pin("cooking")
    assert made.domain == "auto"


def test_old_turns_leave_whole_and_the_system_prompt_stays(pack: Pack) -> None:
    made = session(pack, b"yes", system="be brief", domain="none")
    made.engine.backend.context_length = 100
    for number in range(6):
        ask(made, f"question number {number}")
    backend = made.engine.backend
    last = prompts(made)[-1]
    text = bytes(t - FIRST_BYTE for t in last if t >= FIRST_BYTE).decode()
    assert text.startswith("be brief") and text.endswith("question number 5") and "number 0" not in text
    assert len(last) + 8 <= backend.context_length
    assert len(made.turns) == 6, "what is left out of the context is not lost"
    assert "left out" in made.told[0] and "100 tokens" in made.told[0]


def test_a_turn_that_is_repeated_sends_the_same_prompt(pack: Pack) -> None:
    made = session(pack, b"yes")
    ask(made, "a shell question")
    ask(made, "again shell")
    ask(made, made.undo().question)
    assert prompts(made)[1] == prompts(made)[2] and len(made.turns) == 2
    made.undo(), made.undo()
    with pytest.raises(ZephyraError, match="no turn"):
        made.undo()


def test_an_interrupted_answer_is_kept_and_marked(pack: Pack) -> None:
    made = session(pack, b"half", KeyboardInterrupt())
    events = made.ask("a shell question")
    seen = []
    with pytest.raises(KeyboardInterrupt):
        for event in events:
            seen.append(event)
    assert isinstance(seen[-1], Answer) and seen[-1].finish_reason == "interrupted"
    assert [(turn.answer, turn.finish_reason) for turn in made.turns] == [("half", "interrupted")]


def test_an_interruption_before_the_first_word_leaves_no_turn(pack: Pack) -> None:
    made = session(pack, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        list(made.ask("a shell question"))
    assert made.turns == []


def summarizing(made: Session) -> Answer:
    *_, answer = made.compact()
    assert isinstance(answer, Answer)
    return answer


def text_of(prompt: list[int]) -> str:
    return bytes(token - FIRST_BYTE for token in prompt if token >= FIRST_BYTE).decode()


def test_a_summary_stands_for_the_turns_before_it(pack: Pack) -> None:
    made = session(pack, b"yes", system="be brief", domain="shell")
    with pytest.raises(ZephyraError, match="nothing to summarize"):
        summarizing(made)
    ask(made, "question one"), ask(made, "question two")
    made.engine.backend.pieces = (b"they asked twice",)
    assert summarizing(made).weights == {}, "the bare base summarizes"
    assert [turn.summary for turn in made.turns] == [False, False, True] and made.who == "shell"
    ask(made, "question three")
    asked, said = text_of(prompts(made)[-2]), text_of(prompts(made)[-1])
    assert asked == f"be briefquestion oneyesquestion twoyes{SUMMARIZE}"
    assert said == f"be brief{SUMMARIZE}they asked twicequestion three"
    made.undo(), made.undo()
    ask(made, "question four")
    assert text_of(prompts(made)[-1]) == "be briefquestion oneyesquestion twoyesquestion four", "undone, all is back"


def test_what_is_too_long_for_one_prompt_is_summarized_in_parts(pack: Pack) -> None:
    made = session(pack, b"yes", domain="none")
    for number in range(12):
        ask(made, f"question number {number}")
    made.engine.backend.context_length = 300
    asked = len(prompts(made))
    made.engine.backend.pieces = (b"in short",)
    summarizing(made)
    parts = [text_of(prompt) for prompt in prompts(made)[asked:]]
    assert len(parts) > 2 and all(len(prompt) + 8 <= 300 for prompt in prompts(made)[asked:])
    assert all(part.startswith(f"{SUMMARIZE}in short") for part in parts[1:])
    assert all(sum(f"number {n}yes" in part for part in parts) == 1 for n in range(12)), "each turn once, none left out"
    assert len(made.turns) == 13 and made.turns[-1].summary


@pytest.mark.parametrize("pieces", [(b" ",), (KeyboardInterrupt(),), (b"half", KeyboardInterrupt())])
def test_a_summary_that_does_not_come_changes_nothing(pack: Pack, pieces: tuple[bytes | BaseException, ...]) -> None:
    made = session(pack, b"yes", domain="none")
    ask(made, "question one")
    made.engine.backend.pieces = pieces
    with suppress(KeyboardInterrupt):
        summarizing(made)
    assert [turn.question for turn in made.turns] == ["question one"]


def test_when_old_turns_leave_the_next_prompts_begin_alike(pack: Pack) -> None:
    """Else the cache would be worth nothing from the first overflow on."""
    made = session(pack, b"yes", domain="none")
    made.engine.backend.context_length = 300
    for number in range(30):
        ask(made, f"question number {number:02}")
    sent = prompts(made)
    grown = sum(later[: len(earlier)] == earlier for earlier, later in zip(sent, sent[1:], strict=False))
    assert len(made.told) >= 3 and grown == 29 - len(made.told)
    assert all(len(prompt) + 8 <= 300 for prompt in sent)
