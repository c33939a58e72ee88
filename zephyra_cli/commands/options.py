"""Options that several commands take, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from zephyra_cli import complete

Prompt = Annotated[
    str | None,
    typer.Argument(metavar="[PROMPT]", help="The prompt. Standard input is added where it is a pipe or a file."),
]
Files = Annotated[
    list[Path] | None, typer.Option("--file", "-f", metavar="PATH", help="Add a text file to the prompt (repeatable).")
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|PATH",
        help="A model's name, a pack's folder, a .gguf or hf:owner/name. [default: zephyra-nano]",
        autocompletion=complete.models,
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", metavar="N", help="CPU threads. [default: all cores]")]
Offline = Annotated[bool | None, typer.Option("--offline", help="Never touch the network.")]
Profile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME",
        help="Settings from [profile.NAME] of config.toml.",
        autocompletion=complete.profiles,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]
Domain = Annotated[
    str | None,
    typer.Option(
        "--domain",
        "-d",
        metavar="auto|none|NAME|NAME=W,…",
        help="Who answers. [default: auto where there is a router]",
        autocompletion=complete.domains,
    ),
]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", "-n", metavar="N", help="Longest answer.")]
Temperature = Annotated[
    float | None, typer.Option("--temperature", "-t", metavar="T", help="0 is greedy and reproducible.")
]
TopK = Annotated[int | None, typer.Option(metavar="K", help="Only the K likeliest tokens; 0: all.")]
TopP = Annotated[float | None, typer.Option(metavar="P", help="Only the likeliest, up to this sum.")]
MinP = Annotated[float | None, typer.Option(metavar="P", help="Only what is P times as likely as the likeliest.")]
RepeatPenalty = Annotated[float | None, typer.Option(metavar="X", help="Above 1: fewer repetitions.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="The same seed gives the same answer.")]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End before this text (repeatable).")]
Schema = Annotated[
    str | None, typer.Option(metavar="JSON|FILE", help="The answer is JSON that follows this JSON Schema.")
]
Grammar = Annotated[Path | None, typer.Option(metavar="FILE", help="The answer follows this GBNF grammar.")]
System = Annotated[str | None, typer.Option("--system", "-s", metavar="TEXT", help="System prompt.")]
Backend = Annotated[Literal["auto", "llama", "torch"] | None, typer.Option(help="What computes.")]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"] | None, typer.Option(help="Where it runs.")]
Context = Annotated[int | None, typer.Option(metavar="N", help="Most tokens of prompt and answer together.")]
KVType = Annotated[
    Literal["f32", "f16", "q8_0"] | None,
    typer.Option("--kv-type", help="Of the cache; q8_0 saves memory. [default: f16]"),
]
KVMemory = Annotated[
    int | None,
    typer.Option("--kv-memory", metavar="MB", help="Most for caches of recent mixes. [default: a quarter of all]"),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="auto|none|ngram|PATH",
        help="Guess ahead, where that pays: by what the text repeats, or by a small model. [default: auto]",
    ),
]
PromptCache = Annotated[
    str | None,
    typer.Option(
        "--prompt-cache", metavar="DIR", help="Keep what was read of long prompts here; a second reading costs nothing."
    ),
]
Isolate = Annotated[
    bool | None,
    typer.Option(
        "--isolate/--no-isolate", help="Run the engine in a process of its own. [default: for models named by a path]"
    ),
]
Stats = Annotated[bool | None, typer.Option("--stats", help="A line of figures on standard error.")]
Log = Annotated[bool | None, typer.Option("--log/--no-log", help="Keep question and answer; see zephyra log.")]

SETTINGS = frozenset(
    ("model", "domain", "max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "system")
    + ("backend", "device", "threads", "context", "kv_type", "kv_memory", "draft", "prompt_cache", "isolate")
    + ("stats", "offline", "log", "plain", "profile")
)
"""Options that are settings too, and the profile, which is a set of them."""


def subcommand_follows(context: typer.Context) -> bool:
    """Whether a subcommand does the work. Options that stand before its name would be ignored: wrong usage."""
    if context.invoked_subcommand is None:
        return False
    sources = {name: context.get_parameter_source(name) for name in context.params}
    if any(source is not None and source.name == "COMMANDLINE" for source in sources.values()):
        raise typer.BadParameter(f"options of '{context.invoked_subcommand}' stand behind its name")
    return True
