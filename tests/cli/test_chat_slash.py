from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.scripted import ScriptedBackend, kept, scripted_chat
from zephyra_cli import slash, store
from zephyra_cli.chat import Chat
from zephyra_cli.engine import Engine
from zephyra_cli.session import SUMMARIZE
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.router import Router
from zephyra_fusion.types import SamplingParams


@pytest.fixture
def chat(tmp_path: Path, home: Path) -> Chat:
    return scripted_chat(tmp_path, home)


def test_every_command_of_the_table_is_in_the_help(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    slash.run("/help", chat)
    said = capsys.readouterr()
    assert said.out == "" and all(f"/{name} " in said.err for name in slash.COMMANDS)


@pytest.mark.parametrize("line", ["/hepl", "/domain cooking", "/set heat 1", "/stats maybe", "/file", "/file gone"])
def test_what_cannot_be_done_is_said(chat: Chat, line: str) -> None:
    with pytest.raises(ZephyraError) as caught:
        slash.run(line, chat)
    assert caught.value.message


@pytest.mark.parametrize("line", ["/why", "/retry", "/undo", "/edit", "/copy", "/stats", "/load 7", "/edit new"])
def test_nothing_can_be_done_about_nothing(chat: Chat, line: str) -> None:
    with pytest.raises(ZephyraError):
        slash.run(line, chat)


def test_undo_edit_and_retry_change_the_conversation_and_the_log(chat: Chat) -> None:
    chat.ask("one")
    chat.ask("two")
    slash.run("/undo", chat)
    assert kept(chat) == ["one"]
    slash.run("/retry", chat)
    assert kept(chat) == ["one"]
    slash.run("/edit better", chat)
    assert kept(chat) == ["better"] == [turn.question for turn in chat.session.turns]
    slash.run("/edit", chat)
    assert chat.draft == "better"


def test_the_prompt_names_who_gave_the_last_answer_that_stands(chat: Chat) -> None:
    chat.session.engine.pack = replace(chat.session.engine.pack, router=Router(labels=("shell", "none")))
    for domain in ("shell", "none"):
        slash.run(f"/domain {domain}", chat)
        chat.ask(domain)
    slash.run("/domain auto", chat)
    seen = [chat.prompt]
    for _ in range(2):
        slash.run("/undo", chat)
        seen.append(chat.prompt)
    assert seen == ["base> ", "shell> ", "auto> "]


def test_a_retry_that_brings_no_answer_takes_none_away(chat: Chat) -> None:
    chat.ask("one")
    backend = chat.session.engine.backend
    assert isinstance(backend, ScriptedBackend)
    backend.pieces = (KeyboardInterrupt(),)
    with pytest.raises(KeyboardInterrupt):
        slash.run("/retry", chat)
    assert [turn.answer for turn in chat.session.turns] == ["yes"] and kept(chat) == ["one"]


def test_set_domain_and_system(chat: Chat) -> None:
    slash.run("/set temperature 0.5", chat)
    slash.run("/set top_k=7", chat)
    assert (chat.session.params.temperature, chat.session.params.top_k) == (0.5, 7)
    refused = {
        "temperature hot": "be a number",
        "top_k 1.5": "be a whole number",
        "repeat_last_n -5": "not be negative",
    }
    for wrong, said in refused.items():
        with pytest.raises(ZephyraError, match=f"must {said}"):
            slash.run(f"/set {wrong}", chat)
    slash.run("/domain shell", chat)
    assert chat.session.domain == "shell" and chat.prompt == "shell! "
    slash.run("/system be brief", chat)
    assert chat.session.system == "be brief"
    slash.run("/system none", chat)
    assert chat.session.system is None


def test_save_and_load(chat: Chat, tmp_path: Path) -> None:
    chat.session.system = "be brief"
    chat.ask("one")
    slash.run(f"/save {tmp_path}/chat.json", chat)
    slash.run(f"/save {tmp_path}/chat.md", chat)
    assert "one" in (tmp_path / "chat.md").read_text() and "yes" in (tmp_path / "chat.md").read_text()
    with pytest.raises(ZephyraError, match="exists already"):
        slash.run(f"/save {tmp_path}/chat.md", chat)
    turns, number = list(chat.session.turns), chat.log.conversation
    slash.run("/clear", chat)
    assert chat.session.turns == []
    slash.run(f"/load {tmp_path}/chat.json", chat)
    assert chat.session.turns == turns and chat.session.system == "be brief" and chat.log.conversation != number
    slash.run(f"/load {number}", chat)
    assert chat.session.turns == turns and chat.log.conversation == number


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "zephyra-chat", "version": 1, "turns": [{"answer": 1}]}'])
def test_what_is_no_saved_chat(chat: Chat, tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ZephyraError):
        slash.run(f"/load {tmp_path}/bad.json", chat)


def test_a_file_of_another_version(chat: Chat, tmp_path: Path) -> None:
    turn = {"question": "q", "answer": "a", "finish_reason": "stop", "weights": {}, "model": "m"}
    path, saved = tmp_path / "chat.json", {"format": "zephyra-chat", "version": 99, "system": None, "turns": [turn]}
    path.write_text(json.dumps(saved))
    chat.ask("one")
    with pytest.raises(ZephyraError, match="newer zephyra: version 99"):
        slash.run(f"/load {path}", chat)
    assert kept(chat) == ["one"], "the chat goes on as it was"
    path.write_text(json.dumps(saved | {"version": 1, "turns": [turn | {"replay": ""}]}))
    slash.run(f"/load {path}", chat)
    assert kept(chat) == ["q"]


def test_a_summary_of_the_conversation(chat: Chat) -> None:
    with pytest.raises(ZephyraError, match="nothing to summarize"):
        slash.run("/compact", chat)
    assert chat.log.conversation is None, "and what is refused is not kept"
    chat.ask("one")
    slash.run("/compact", chat)
    assert kept(chat) == ["one", SUMMARIZE] and chat.session.turns[-1].summary
    assert chat.log.conversations.read(chat.log.conversation)[0][1].summary
    slash.run("/undo", chat)
    assert kept(chat) == ["one"]


def test_a_summary_is_written_anew_and_not_edited(chat: Chat) -> None:
    chat.ask("one")
    slash.run("/compact", chat)
    slash.run("/retry", chat)
    assert kept(chat) == ["one", SUMMARIZE] and chat.session.turns[-1].summary
    for line in ("/edit", "/edit better"):
        with pytest.raises(ZephyraError, match="is a summary"):
            slash.run(line, chat)
    backend = chat.session.engine.backend
    assert isinstance(backend, ScriptedBackend)
    backend.pieces = (b" ",)
    with pytest.raises(ZephyraError, match="no summary to give"):
        slash.run("/retry", chat)
    assert kept(chat) == ["one", SUMMARIZE] and chat.session.turns[-1].summary and not chat.draft


def test_a_file_goes_with_the_next_question_alone(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("some notes\n")
    slash.run(f"/file {tmp_path}/notes.txt", chat)
    chat.ask("what is this?")
    chat.ask("and now?")
    assert kept(chat) == ["what is this?\n\nsome notes", "and now?"]


def test_completion(chat: Chat, tmp_path: Path) -> None:
    assert slash.completions("/he", chat) == [("/help ", 3)]
    assert slash.completions("/domain s", chat) == [("shell", 1)]
    assert slash.completions("/domain sql=0.5,s", chat) == [("sql=0.5,shell", len("sql=0.5,s"))]
    assert ("temperature", 2) in slash.completions("/set te", chat)
    assert slash.completions(f"/file {tmp_path}/she", chat) == [(f"{tmp_path}/shell.gguf", len(f"{tmp_path}/she"))]
    assert slash.completions("hello", chat) == [] == slash.completions("/unknown x", chat)


def test_what_was_set_stays_with_another_model(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    old = chat.session.engine.pack
    other = replace(old, name="other", generation=SamplingParams(top_p=0.5, temperature=0.9))
    monkeypatch.setattr(store, "find", lambda reference, *, offline: other)
    monkeypatch.setattr(Engine, "open", lambda pack, settings: Engine(pack, ScriptedBackend(b"yes")))
    for line in ("temperature 0.7", "seed 42", 'schema {"type": "string"}'):
        slash.run(f"/set {line}", chat)
    slash.run("/model other", chat)
    params = chat.session.params
    assert (params.temperature, params.seed, params.schema) == (0.7, 42, '{"type":"string"}')
    assert params.top_p == 0.5, "what was not set is the new model's own"


def test_answers_drawn_by_chance_have_a_seed_of_their_own(chat: Chat) -> None:
    seeds = set()
    for _ in range(3):
        chat.session.params = SamplingParams()
        slash.run("/set temperature 0.7", chat)
        seeds.add(chat.session.params.seed)
    assert len(seeds) > 1
    slash.run("/set seed 7", chat)
    slash.run("/set temperature 0.8", chat)
    assert chat.session.params.seed == 7


def test_a_schema_is_read_when_it_is_set_and_none_takes_it_away(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "form.json").write_text('{"enum": ["yes", "no"]}')
    (tmp_path / "form.gbnf").write_text('root ::= "a" | "b"')
    slash.run(f"/set schema {tmp_path / 'form.json'}", chat)
    assert json.loads(chat.session.params.schema) == {"enum": ["yes", "no"]}
    slash.run(f"/set grammar {tmp_path / 'form.gbnf'}", chat)
    assert chat.session.params.grammar.startswith("root") and not chat.session.params.schema
    for wrong in ("schema 3", 'schema {"type": 3}', "grammar nowhere.gbnf", "schema ["):
        with pytest.raises(ZephyraError):
            slash.run(f"/set {wrong}", chat)
    assert chat.session.params.grammar.startswith("root")
    slash.run("/set grammar none", chat)
    assert not chat.session.params.grammar and not chat.session.params.schema
