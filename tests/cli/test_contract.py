"""The names that scripts rely on: every command and option of the contract is there, and takes what it is said to."""

from __future__ import annotations

from typing import Any

import pytest

from zephyra_cli.command_line import command_line

COMMANDS = {
    "generate": """-m --model -d --domain -n --max-tokens -t --temperature --top-k --top-p --min-p --repeat-penalty
        --seed --stop -s --system --raw --schema --grammar --draft --backend --device --threads --context --input
        --output --json --stream-json --stats -f --file --offline""",
    "chat": """-m --model -d --domain -n --max-tokens -t --temperature --top-k --top-p --min-p --repeat-penalty
        --seed --stop -s --system --schema --grammar --draft --backend --device --threads --context --stats --offline
        -c --continue --list --id""",
    "route": "-m --model --input --json --offline",
    "convert": "-q --quantize --calibration --base --to --verify --no-verify --dry-run --force --json",
    "pull": "--json --offline",
    "models": "--json",
    "models show": "--json",
    "models remove": "",
    "models verify": "--json",
    "domains": "-m --model --json",
    "domains add": "--json",
    "domains remove": "--json",
    "domains merge": "--into --json",
    "domains prune": "--json",
    "train": "--set --resume",
    "eval": "--json",
    "bench": "--json",
    "serve": "",
    "doctor": "--json",
}
REPEATABLE = {"generate": {"stop", "file"}, "train": {"set"}}
CHOICES = {
    ("generate", "backend"): ["auto", "llama", "torch"],
    ("generate", "device"): ["auto", "cpu", "cuda", "mps"],
    ("convert", "to"): ["gguf", "hf"],
    ("train", "stage"): ["tokenizer", "base", "adapter", "router", "joint"],
}


def command(name: str) -> Any:
    found = command_line()
    for word in name.split():
        found = found.get_command(found.context_class(found), word)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_the_contract_is_there(name: str) -> None:
    parameters = command(name).params
    spelled = {text for parameter in parameters for text in (*parameter.opts, *parameter.secondary_opts)}
    assert set(COMMANDS[name].split()) <= spelled
    assert REPEATABLE.get(name, set()) <= {parameter.name for parameter in parameters if parameter.multiple}


@pytest.mark.parametrize(("name", "option"), CHOICES)
def test_every_choice_of_the_contract_is_there(name: str, option: str) -> None:
    (parameter,) = [parameter for parameter in command(name).params if parameter.name == option]
    assert list(parameter.type.choices) == CHOICES[name, option]
