"""`zephyra chat`: a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zephyra_cli.commands import options as opt

if TYPE_CHECKING:
    from zephyra_cli.conversations import Turn
    from zephyra_cli.log import Log as KeptLog


def chat(
    continue_: Annotated[bool, typer.Option("--continue", "-c", help="Go on with the last conversation.")] = False,
    conversation: Annotated[int | None, typer.Option("--id", metavar="ID", help="Go on with this one.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the conversations and leave.")] = False,
    model: opt.Model = None,
    domain: opt.Domain = None,
    max_tokens: opt.MaxTokens = None,
    temperature: opt.Temperature = None,
    top_k: opt.TopK = None,
    top_p: opt.TopP = None,
    min_p: opt.MinP = None,
    repeat_penalty: opt.RepeatPenalty = None,
    seed: opt.Seed = None,
    stop: opt.Stop = None,
    schema: opt.Schema = None,
    grammar: opt.Grammar = None,
    system: opt.System = None,
    backend: opt.Backend = None,
    device: opt.Device = None,
    threads: opt.Threads = None,
    context: opt.Context = None,
    kv_type: opt.KVType = None,
    kv_memory: opt.KVMemory = None,
    draft: opt.Draft = None,
    prompt_cache: opt.PromptCache = None,
    isolate: opt.Isolate = None,
    plain: Annotated[
        bool | None, typer.Option("--plain", help="For screen readers: text as it comes, words in place of drawings.")
    ] = None,
    stats: opt.Stats = None,
    log: opt.Log = None,
    offline: opt.Offline = None,
    profile: opt.Profile = None,
) -> None:
    """Talk, turn by turn; every turn is routed anew.

    With standard input not a terminal, each line is a turn. Ctrl-C stops an answer, Ctrl-D leaves, /help shows the
    commands.
    """
    options = {name: value for name, value in locals().items() if name in opt.SETTINGS}
    from dataclasses import replace

    from zephyra_cli import settings, store, talk, ui
    from zephyra_cli.chat import Chat
    from zephyra_cli.engine import Engine
    from zephyra_cli.progress import Waiting
    from zephyra_cli.session import Session
    from zephyra_cli.structure import structured

    if continue_ and conversation is not None:
        raise typer.BadParameter("--continue and --id exclude each other")
    if list_:
        _list()
        return
    chosen = settings.load(options)
    kept, turns, kept_system = _log(continue_, conversation, chosen.log)
    if model is None and (before := _model_of(kept)) is not None:
        chosen = replace(chosen, model=before)
    pack = store.find(chosen.model, offline=chosen.offline)
    with Waiting(f"loading {pack.name}", silent=chosen.plain):
        engine = Engine.open(pack, chosen)
    session = Session(
        engine=engine,
        params=structured(chosen.sampling(pack.generation), schema, grammar),
        say=lambda text: ui.note(f"note: {text}"),
        domain=chosen.domain or ("auto" if pack.router else "none"),
        system=chosen.system or kept_system,
        stop=tuple(stop or ()),
        turns=turns,
    )
    talking = Chat(session=session, settings=chosen, log=kept, stats=chosen.stats, plain=chosen.plain)
    if not talk.talk(talking):
        raise typer.Exit(1)


def _log(last: bool, conversation: int | None, keep: bool) -> tuple[KeptLog, list[Turn], str | None]:
    """The log, and the turns and the system prompt of the conversation that goes on."""
    from zephyra_cli import ui
    from zephyra_cli.database import CannotKeep
    from zephyra_cli.log import Log, open_conversations
    from zephyra_cli.text import shorten

    goes_on = last or conversation is not None
    if not keep and not goes_on:
        return Log(None), [], None
    try:
        kept = open_conversations()
    except CannotKeep as error:
        if goes_on:
            raise
        ui.note(f"warning: {error.message}; nothing of this chat is kept")
        return Log(None), [], None
    if last:
        conversation = kept.last()
    if conversation is None:
        return Log(kept), [], None
    turns, system = kept.read(conversation)
    if (unanswered := kept.unanswered(conversation)) is not None:
        ui.note(f"note: the last question was never answered: {shorten(unanswered, 60)}")
    return Log(kept if keep else None, conversation), turns, system


def _model_of(kept: KeptLog) -> str | None:
    """The model that answered last in the conversation, while it is there."""
    from zephyra_cli import replay, ui
    from zephyra_fusion.errors import ZephyraError

    if kept.conversations is None or kept.conversation is None:
        return None
    answered = [row for row in kept.conversations.turns(kept.conversation) if row.replay and not row.undone]
    if not answered:
        return None
    try:
        replay.pack_of(answered[-1])
    except ZephyraError as error:
        ui.note(f"note: {error.message}")
        return None
    return replay.reference_of(answered[-1])


def _list() -> None:
    from zephyra_cli import ui
    from zephyra_cli.log import open_conversations, show_list

    if not show_list(open_conversations(readable=True).summaries(source="chat")):
        ui.note("there are no conversations yet")
