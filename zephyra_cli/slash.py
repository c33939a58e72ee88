"""The commands of a chat. One table drives what they do, how they are completed and what /help says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from zephyra_cli import store, transcript, ui
from zephyra_cli.domain import AUTO
from zephyra_cli.follow import show_figures
from zephyra_cli.interruption import allowing
from zephyra_cli.prompt import read_text
from zephyra_cli.settings import WORDS, fresh_seed
from zephyra_cli.text import counted
from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.router import NONE
from zephyra_fusion.types import SamplingParams
from zephyra_fusion.values import dataclass

if TYPE_CHECKING:
    from zephyra_cli.chat import Chat

BAR = 30  # cells of a probability of 1
KEYS = (
    ('"""', "begins a text of several lines; at the end of a line, ends it"),
    ("Esc Enter", "a new line"),
    ("Tab", "completes a command, a name, a path"),
    ("Ctrl-R", "searches what you typed before, in earlier chats too"),
    ("Ctrl-X Ctrl-E", "opens the line in your editor ($EDITOR)"),
    ("Ctrl-C", "stops the answer and keeps what there is of it"),
    ("Ctrl-D", "leaves"),
)


@dataclass(frozen=True)
class Command:
    """`argument` as /help shows it; `complete` gives what may stand there, given its beginning."""

    argument: str
    help: str
    run: Callable[[Chat, str], None]
    complete: Callable[[Chat, str], Iterable[str]] = lambda chat, begun: ()


def run(line: str, chat: Chat) -> None:
    """Do what a line that begins with a slash says. ZephyraError: unknown, or it cannot be done."""
    name, _, argument = line.removeprefix("/").partition(" ")
    if name not in COMMANDS:
        raise ZephyraError(f"unknown command '/{name}'", hint=did_you_mean(name, COMMANDS))
    COMMANDS[name].run(chat, argument.strip())


def completions(text: str, chat: Chat) -> list[tuple[str, int]]:
    """What may stand where `text` ends, each with how many characters of `text` it replaces."""
    if not text.startswith("/"):
        return []
    name, space, argument = text[1:].partition(" ")
    if not space:
        return [(f"/{known} ", len(text)) for known in COMMANDS if known.startswith(name)]
    if name not in COMMANDS:
        return []
    found = COMMANDS[name].complete(chat, argument)
    return [(word, len(argument)) for word in found if word.startswith(argument)]


def _help(chat: Chat, argument: str) -> None:
    rows = [(f"/{name} {command.argument}", command.help) for name, command in COMMANDS.items()]
    ui.note(ui.table([*rows, ("", ""), *KEYS], width=ui.columns(sys.stderr)).rstrip("\n"))


def _domain(chat: Chat, argument: str) -> None:
    if argument:
        chat.session.pin(argument)
    ui.note(f"domain: {chat.session.domain}")


def _domains(chat: Chat, begun: str) -> list[str]:
    names, (blend, comma, _) = sorted(chat.session.engine.pack.adapters), begun.rpartition(",")
    return [f"{blend},{name}" for name in names] if comma else [AUTO, NONE, *names]


def _why(chat: Chat, argument: str) -> None:
    session = chat.session
    if session.answering is None:
        raise ZephyraError("nothing was asked yet")
    if session.route is not None:
        ranked = sorted(session.route.probabilities.items(), key=lambda item: -item[1])
        left = (ui.columns(sys.stderr) or 80) - max(len(name) for name, _ in ranked) - len("  100.0 %  ")
        rows = [(name, f"{100 * share:.1f} %", "#" * round(min(BAR, left) * share)) for name, share in ranked]
        ui.note(ui.table([row[:2] if chat.plain else row for row in rows], right=(1,)).rstrip("\n"))
    ui.note(session.reason)
    if (answer := session.answer) is not None:
        usage = answer.usage
        price = f"switch {answer.switch_ms:.1f} ms, {usage.prompt_tokens - usage.cached_tokens} of "
        price += f"{usage.prompt_tokens} tokens read ({usage.prefill_ms:.0f} ms)"
        router = f"router {session.route.router_ms:.1f} ms, " if session.route is not None else ""
        ui.note(f"price: {router}{price}")


def _system(chat: Chat, argument: str) -> None:
    if argument:
        chat.session.system = None if argument == NONE else argument
    ui.note(f"system prompt: {chat.session.system or 'none'}")


def _retry(chat: Chat, argument: str) -> None:
    session = chat.session
    if not session.turns:
        raise ZephyraError("there is no question to answer again")
    if session.params.temperature == 0.0:
        ui.note("note: the temperature is 0, so the answer will be the same; /set temperature 0.7 varies it")
    session.params = replace(session.params, seed=fresh_seed())
    chat.retry()


def _edit(chat: Chat, argument: str) -> None:
    if not chat.session.turns:
        raise ZephyraError("there is no question to edit")
    if (last := chat.session.turns[-1]).summary:
        raise ZephyraError("the last turn is a summary", hint="/retry writes it anew, /undo takes it back")
    if argument:
        chat.replace_last(argument)
    else:
        chat.draft = last.question


def _undo(chat: Chat, argument: str) -> None:
    turn = chat.undo()
    ui.note(f"taken back: {turn.question.splitlines()[0][:60]} ({counted(len(chat.session.turns), 'turn')} left)")


def _save(chat: Chat, argument: str) -> None:
    path = Path(_needed(argument, "/save chat.md, or chat.json, which /load reads")).expanduser()
    session = chat.session
    form = transcript.to_json if path.suffix == ".json" else transcript.to_markdown
    allowing(lambda: transcript.write(path, form(session.turns, session.system)))
    ui.note(f"{counted(len(session.turns), 'turn')} written to {path}")


def _load(chat: Chat, argument: str) -> None:
    wanted = _needed(argument, "/load chat.json, or the number of a conversation; see zephyra chat --list")
    if wanted.isdecimal() and chat.log.conversations is not None:
        turns, system = chat.log.conversations.read(int(wanted))
        chat.begin()
        chat.log.conversation = int(wanted)
    else:
        read, system = allowing(lambda: transcript.read_json(Path(wanted).expanduser()))
        chat.begin()
        turns = [chat.log.add(turn, system) for turn in read]
    chat.session.turns, chat.session.system = turns, system
    ui.note(f"going on after {counted(len(turns), 'turn')}")


def _compact(chat: Chat, argument: str) -> None:
    count = len(chat.session.turns)
    chat.compact()
    ui.note(f"this summary stands for {counted(count, 'turn')} from now on; /undo takes it back")


def _clear(chat: Chat, argument: str) -> None:
    chat.begin()
    ui.note("a new conversation; the old one stays in zephyra chat --list")


def _stats(chat: Chat, argument: str) -> None:
    if argument in ("on", "off"):
        chat.stats = argument == "on"
    elif argument:
        raise ZephyraError(f"/stats takes on or off, not '{argument}'")
    elif chat.session.answer is None:
        raise ZephyraError("nothing was answered yet")
    else:
        show_figures(chat.session.answer)


def _set(chat: Chat, argument: str) -> None:
    params = chat.session.params
    kinds = _kinds()
    name, _, text = argument.replace("=", " ", 1).partition(" ")
    if not argument:
        ui.note(ui.table([(key, str(getattr(params, key))) for key in kinds]).rstrip("\n"))
        return
    if name not in kinds:
        raise ZephyraError(f"unknown setting '{name}'", hint=did_you_mean(name, kinds))
    text = text.strip()
    if name in ("schema", "grammar"):
        chat.session.params = _structured(params, name, text)
    else:
        try:
            value = kinds[name](text)
        except ValueError:
            raise ZephyraError(f"{name} is '{text}', must be {WORDS[kinds[name]]}") from None
        chat.choose(**{name: value})
    ui.note(f"{name} = {getattr(chat.session.params, name)}")


def _structured(params: SamplingParams, name: str, text: str) -> SamplingParams:
    """With this schema (JSON or a file) or this grammar (a file) and no other; `none`: with neither."""
    from zephyra_cli.structure import structured

    free = replace(params, schema="", grammar="")
    if text in ("", NONE):
        return free
    if name == "schema":
        return allowing(lambda: structured(free, text, None))
    return allowing(lambda: structured(free, None, Path(text).expanduser()))


def _kinds() -> dict[str, type]:
    return {field.name: type(field.default) for field in fields(SamplingParams)}


def _model(chat: Chat, argument: str) -> None:
    if argument:
        chat.change_model(argument)
    ui.note(f"model: {chat.session.engine.pack.name}, domain: {chat.session.domain}")


def _file(chat: Chat, argument: str) -> None:
    path = Path(_needed(argument, "/file notes.txt")).expanduser()
    text = allowing(lambda: read_text(path))
    chat.files.append(text)
    ui.note(f"{path}, {len(text)} characters, goes with the next question")


def _copy(chat: Chat, argument: str) -> None:
    import base64

    if not chat.session.turns:
        raise ZephyraError("there is no answer to copy")
    if not ui.fancy(sys.stdout):
        raise ZephyraError("only a terminal that takes control sequences can copy")
    ui.draw(f"\x1b]52;c;{base64.b64encode(chat.session.turns[-1].answer.encode()).decode()}\x07")
    ui.note("the answer was given to the terminal's clipboard (OSC 52)")


def _quit(chat: Chat, argument: str) -> None:
    chat.leaving = True


def _needed(argument: str, example: str) -> str:
    if not argument:
        raise ZephyraError("a name is missing", hint=f"as in {example}")
    return argument


def _paths(chat: Chat, begun: str) -> list[str]:
    folder, _, name = begun.rpartition("/")
    start = Path(folder + "/" if folder or begun.startswith("/") else ".").expanduser()
    try:
        found = sorted(start.iterdir())[:500]
    except OSError:
        return []
    prefix = begun[: len(begun) - len(name)]
    return [prefix + path.name + ("/" if path.is_dir() else "") for path in found]


COMMANDS = {
    "help": Command("", "this list", _help),
    "domain": Command("[auto|none|NAME|NAME=W,…]", "who answers from now on", _domain, _domains),
    "why": Command("", "what the router said, and why this one answered", _why),
    "system": Command("[TEXT|none]", "show or set the system prompt", _system),
    "retry": Command("", "answer the last question again", _retry),
    "edit": Command("[TEXT]", "change the last question and ask it instead", _edit),
    "undo": Command("", "take the last turn back", _undo),
    "save": Command("FILE.md|FILE.json", "write the conversation to a file", _save, _paths),
    "load": Command("ID|FILE.json", "go on with another conversation", _load, _paths),
    "compact": Command("", "let a summary stand for the conversation so far", _compact),
    "clear": Command("", "begin a new conversation", _clear),
    "stats": Command(
        "[on|off]", "figures of the last answer, or of every one", _stats, lambda chat, begun: ("on", "off")
    ),
    "set": Command("[NAME VALUE]", "show or change how answers are sampled", _set, lambda chat, begun: _kinds()),
    "model": Command(
        "[NAME|PATH]",
        "go on with another model",
        _model,
        lambda chat, begun: [model.name for model in store.installed()],
    ),
    "file": Command("PATH", "add a text file to the next question", _file, _paths),
    "copy": Command("", "the last answer to the clipboard", _copy),
    "quit": Command("", "leave (as Ctrl-D does)", _quit),
}
