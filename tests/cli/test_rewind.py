"""What a chat asks again is not read again: /retry, /edit and /undo on the real backend, counted in cached tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from zephyra_cli import slash
from zephyra_cli.backends.protocol import GenerationUsage
from zephyra_cli.chat import Chat
from zephyra_cli.conversations import Conversations
from zephyra_cli.engine import Engine
from zephyra_cli.log import Log
from zephyra_cli.pack import Pack
from zephyra_cli.session import Session
from zephyra_cli.settings import Settings
from zephyra_fusion.types import SamplingParams


@pytest.fixture
def chat(tiny_pack: Path, home: Path) -> Iterator[Chat]:
    engine = Engine.open(Pack.read(tiny_pack), Settings(threads=1))
    session = Session(engine, SamplingParams(max_tokens=8), lambda text: None, domain="shell", system="be brief")
    yield Chat(session=session, settings=Settings(), log=Log(Conversations(home / "conversations.db", pytest.fail)))
    engine.close()


def cost(chat: Chat) -> GenerationUsage:
    assert chat.session.answer is not None
    return chat.session.answer.usage


def test_a_retry_reads_one_token(chat: Chat) -> None:
    chat.ask("find all files")
    first = cost(chat)
    assert first.cached_tokens == 0
    slash.run("/retry", chat)
    again = cost(chat)
    assert again.prompt_tokens == first.prompt_tokens and again.cached_tokens == first.prompt_tokens - 1


def test_an_edit_reads_what_is_new(chat: Chat) -> None:
    chat.ask("find all the files")
    slash.run("/edit find all the names", chat)
    usage, read = cost(chat), cost(chat).prompt_tokens - cost(chat).cached_tokens
    assert 1 < read < usage.prompt_tokens / 2, "system prompt and the beginning of the question are there already"


def test_undo_goes_back_to_what_was_read(chat: Chat) -> None:
    chat.ask("find all files")
    one = cost(chat)
    chat.ask("and the names of them")
    slash.run("/undo", chat)
    chat.ask("and the other one")
    assert cost(chat).cached_tokens >= one.prompt_tokens
    slash.run("/undo", chat)
    slash.run("/retry", chat)
    assert (cost(chat).prompt_tokens, cost(chat).cached_tokens) == (one.prompt_tokens, one.prompt_tokens - 1)


def test_a_domain_that_one_comes_back_to_is_still_read(chat: Chat) -> None:
    chat.ask("find all files")
    one = cost(chat)
    slash.run("/domain sql", chat)
    slash.run("/retry", chat)
    assert cost(chat).cached_tokens == 0, "a cache is never shared between specialists"
    slash.run("/domain shell", chat)
    slash.run("/retry", chat)
    assert cost(chat).cached_tokens == one.prompt_tokens - 1
