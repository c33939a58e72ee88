"""`zephyra shell`: a command for what you want, looked at before it runs."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from zephyra_cli.commands import options as opt

SPECIALIST = "shell"
SYSTEM = "Answer with one command for {shell} on {system} that does what the user wants, and nothing else."


def shell(
    prompt: opt.Prompt = None,
    model: opt.Model = None,
    domain: opt.Domain = None,
    max_tokens: opt.MaxTokens = None,
    temperature: opt.Temperature = None,
    seed: opt.Seed = None,
    system: opt.System = None,
    file: opt.Files = None,
    backend: opt.Backend = None,
    device: opt.Device = None,
    threads: opt.Threads = None,
    context: opt.Context = None,
    stats: opt.Stats = None,
    offline: opt.Offline = None,
    profile: opt.Profile = None,
    keys: Annotated[
        Literal["bash", "zsh", "fish"] | None,
        typer.Option("--keys", help="Print a key binding for this shell, and nothing else."),
    ] = None,
) -> None:
    """Propose a shell command.

    On a terminal you edit it, run it or drop it; it runs only when you answer y. In a pipe it is printed, alone. The
    model's shell specialist answers, where it has one.
    """
    options = {name: value for name, value in locals().items() if name in opt.SETTINGS}
    import sys

    from zephyra_cli import proposal, ui

    if keys is not None:
        from zephyra_cli.shell_keys import KEYS

        ui.write(KEYS[keys])
        return
    from zephyra_cli import settings, store
    from zephyra_cli.engine import Answer, Engine, Request
    from zephyra_cli.follow import follow
    from zephyra_cli.progress import Waiting
    from zephyra_cli.prompt import read_prompt
    from zephyra_fusion.types import Message

    chosen = settings.load(options)
    pack = store.find(chosen.model, offline=chosen.offline)
    params = chosen.sampling(pack.generation)
    with Waiting("reading standard input", silent=chosen.plain or prompt is not None or bool(file)):
        question = Message("user", read_prompt(prompt, file or ()))
    trained = SPECIALIST in pack.adapters  # on bare requests: a system prompt would only be new to it
    system = chosen.system or (None if trained else _system())
    messages = (Message("system", system), question) if system else (question,)
    with Waiting(f"loading {pack.name}", silent=chosen.plain):
        engine = Engine.open(pack, chosen)
    who = chosen.domain or (SPECIALIST if trained else None)
    answers: list[Answer] = []

    def keep(answer: Answer) -> None:
        from zephyra_cli.log import keep_answer

        answers.append(answer)
        if chosen.log:
            keep_answer(question.content, system, answer, pack)

    events = engine.generate(Request(messages=messages, params=params, domain=who))
    follow(events, lambda event: None, stats=chosen.stats, keep=keep, plain=chosen.plain, streams=False)
    command = proposal.command_in(answers[-1].text)
    if not all(ui.is_terminal(stream) for stream in (sys.stdin, sys.stdout, sys.stderr)):
        ui.write(proposal.check(command) + "\n")
    elif (wanted := proposal.decide(command)) is not None:
        proposal.run(wanted)
    else:
        ui.note("not run")


def _system() -> str:
    import platform
    from pathlib import Path

    from zephyra_cli.proposal import user_shell

    return SYSTEM.format(shell=Path(user_shell()).name, system=platform.system())
