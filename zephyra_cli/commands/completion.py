"""`zephyra completion`: the file that teaches a shell to complete our command lines."""

from __future__ import annotations

from typing import Annotated, Literal

import typer


def completion(
    shell: Annotated[
        Literal["bash", "zsh", "fish", "powershell"], typer.Argument(metavar="bash|zsh|fish|powershell", help="Which.")
    ],
) -> None:
    """Print the completion file for a shell.

    \b
    bash        zephyra completion bash > ~/.local/share/bash-completion/completions/zephyra
    zsh         zephyra completion zsh > DIR/_zephyra, with DIR a folder of $fpath
    fish        zephyra completion fish > ~/.config/fish/completions/zephyra.fish
    powershell  zephyra completion powershell >> $PROFILE
    """
    from typer.completion import get_completion_script

    from zephyra_cli import ui

    script = get_completion_script(prog_name="zephyra", complete_var="_ZEPHYRA_COMPLETE", shell=shell)
    if shell == "zsh":
        script = script.replace(*_FIRST_TAB)
    ui.write(script + "\n")


# Typer's file only defines the function when zsh loads it at the first Tab, which then completes nothing.
_FIRST_TAB = (
    "compdef _zephyra_completion zephyra",
    'if [ "${funcstack[1]}" = _zephyra ]; then _zephyra_completion "$@"; else compdef _zephyra_completion zephyra; fi',
)
