"""`zephyra generate`: one answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zephyra_cli.commands import options as opt
from zephyra_cli.complete import template_names

if TYPE_CHECKING:
    from zephyra_cli.engine import Answer, Request
    from zephyra_cli.pack import Pack
    from zephyra_cli.settings import Settings


def generate(
    prompt: opt.Prompt = None,
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
    raw: Annotated[bool, typer.Option("--raw", help="No chat template: continue the prompt.")] = False,
    file: opt.Files = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            "-T",
            metavar="NAME|FILE.toml",
            help="A stored prompt; see zephyra templates.",
            autocompletion=template_names,
        ),
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", "-p", metavar="NAME=VALUE", help="A variable of the template (repeatable)."),
    ] = None,
    extract: Annotated[
        bool, typer.Option("--extract", "-x", help="The first code block alone; the whole answer where there is none.")
    ] = False,
    input: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE.jsonl", help='Many prompts: {"prompt": …} a line, with its own options.'),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE.jsonl", help="Where their results go, in order. [default: stdout]"),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            "--parallel",
            min=1,
            help="Prompts of --input computed together; 1: exactly the texts of single runs. [default: as pays]",
        ),
    ] = None,
    backend: opt.Backend = None,
    device: opt.Device = None,
    threads: opt.Threads = None,
    context: opt.Context = None,
    kv_type: opt.KVType = None,
    kv_memory: opt.KVMemory = None,
    draft: opt.Draft = None,
    prompt_cache: opt.PromptCache = None,
    isolate: opt.Isolate = None,
    json: opt.Json = False,
    stream_json: Annotated[
        bool, typer.Option("--stream-json", help="One JSON object a line: pieces, then the result.")
    ] = False,
    stats: opt.Stats = None,
    log: opt.Log = None,
    offline: opt.Offline = None,
    profile: opt.Profile = None,
) -> None:
    """Answer one prompt.

    The prompt is the argument, standard input where it is a pipe or a file, and the files, joined by blank lines.
    """
    options = {name: value for name, value in locals().items() if name in opt.SETTINGS}
    from zephyra_cli import ahead, settings, store
    from zephyra_cli.loading import load
    from zephyra_cli.progress import Waiting
    from zephyra_cli.prompt import read_prompt
    from zephyra_cli.structure import structured
    from zephyra_fusion.types import Message

    if json and stream_json:
        raise typer.BadParameter("--json and --stream-json exclude each other")
    if output is not None and input is None:
        raise typer.BadParameter("--output is where the answers to --input go")
    if parallel is not None and input is None:
        raise typer.BadParameter("--parallel is for the prompts of --input")
    if input is not None and (prompt is not None or file or template or extract or json or stream_json):
        raise typer.BadParameter("--input excludes a PROMPT, --file, --template, --extract, --json and --stream-json")
    if input is not None and (prompt_cache is not None or draft not in (None, "auto", "none")):
        raise typer.BadParameter(
            "--prompt-cache and --draft are for single prompts: those of --input share their steps"
        )
    if schema is not None and grammar is not None:
        raise typer.BadParameter("--schema and --grammar exclude each other")
    if extract and (json or stream_json):
        raise typer.BadParameter("--extract excludes --json and --stream-json")
    if set and template is None:
        raise typer.BadParameter("--set gives a value to a template: name one with -T")
    if raw and system is not None:
        raise typer.BadParameter("--raw has no place for a --system prompt")
    stored = None
    if template is not None:
        from zephyra_cli import prompt_template

        stored = prompt_template.find(template).bind(prompt_template.parse_values(set or ()))
        if raw and "system" in stored.settings:
            raise typer.BadParameter(f"--raw has no place for the system prompt of template '{stored.name}'")
    chosen = settings.load(stored.over(options) if stored else options)
    pack = store.find(chosen.model, offline=chosen.offline)
    params = structured(chosen.sampling(pack.generation), schema, grammar)
    if input is not None:
        from zephyra_cli.engine import Request

        system_first = (Message("system", chosen.system),) if chosen.system and not raw else ()
        base = Request(messages=system_first, params=params, raw=raw, domain=chosen.domain, stop=tuple(stop or ()))
        _answer_many(pack, chosen, base, input, None if output == Path("-") else output, parallel)
        return
    with Waiting("reading standard input", silent=chosen.plain or prompt is not None or bool(file)):
        text = read_prompt(prompt, file or (), optional=stored is not None and not stored.takes_input)
    question = Message("user", stored.render(text) if stored else text)
    messages = (question,) if raw or not chosen.system else (Message("system", chosen.system), question)
    if chosen.log:
        ahead.later("zephyra_cli.log", "zephyra_cli.conversations")
    if pack.router is not None:
        ahead.later("zephyra_cli.prompt_router", "zephyra_cli.backends.classifier")
    ahead.later("zephyra_cli.engine", "zephyra_cli.follow")
    with Waiting(f"loading {pack.name}", silent=chosen.plain):
        loaded = load(pack, chosen)
        from zephyra_cli.engine import Engine, Request
        from zephyra_cli.follow import follow, show_text

        engine = Engine.of(pack, chosen, loaded)
    request = Request(messages=messages, params=params, raw=raw, domain=chosen.domain, stop=tuple(stop or ()))
    show = _show_json if json else _show_json_lines if stream_json else _show_code if extract else show_text

    def keep(answer: Answer) -> None:
        from zephyra_cli import ui

        if answer.finish_reason == "length" and (params.schema or params.grammar):
            form, count = "schema" if params.schema else "grammar", answer.usage.completion_tokens
            ui.note(f"note: cut after {count} tokens, the {form} is not satisfied yet; --max-tokens allows more")
        if chosen.log:
            from zephyra_cli.log import keep_answer

            keep_answer(question.content, messages[0].content if len(messages) > 1 else None, answer, pack)

    follow(
        engine.generate(request),
        show,
        stats=chosen.stats,
        keep=keep,
        plain=chosen.plain,
        streams=not (json or extract),
    )


def _answer_many(
    pack: Pack, chosen: Settings, base: Request, source: Path, target: Path | None, at_once: int | None
) -> None:
    """`base` has all that a line does not say."""
    import sys
    from dataclasses import replace

    from zephyra_cli import ui
    from zephyra_cli.batch import Batch
    from zephyra_cli.engine import Engine
    from zephyra_cli.progress import Progress, Waiting

    with Waiting(f"loading {pack.name}"):
        engine = Engine.open(pack, replace(chosen, draft="none", prompt_cache=None))
    engine.draft_note = "a batch drafts nothing"
    fresh_seeds = chosen.seed is None and base.params.temperature > 0
    batch = Batch(engine, base, source, target, at_once, fresh_seeds)
    try:
        with Progress(silent=target is None and ui.is_terminal(sys.stdout)) as progress:
            batch.run(progress)
    except KeyboardInterrupt:
        kept = f", kept in '{target}'; the same command goes on from there" if target else ""
        ui.note(f"note: {batch.answered} answered{kept}")
        raise
    ui.note(f"{batch.answered} answered" + (f", {batch.failed} with errors of their own" if batch.failed else ""))


def _show_code(event: str | Answer) -> None:
    from zephyra_cli import ui
    from zephyra_cli.code_block import first_code_block

    if not isinstance(event, str):
        found = first_code_block(event.text)
        text = event.text if found is None else found
        ui.write(text if not text or text.endswith("\n") else text + "\n")


def _show_json(event: str | Answer) -> None:
    from zephyra_cli import ui

    if not isinstance(event, str):
        ui.write_json(event.to_dict())


def _show_json_lines(event: str | Answer) -> None:
    from zephyra_cli import ui

    ui.write_json({"type": "text", "text": event} if isinstance(event, str) else {"type": "result", **event.to_dict()})
