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
    for typers, ours in _CHANGES.get(shell, ()):
        script = script.replace(typers, ours)
    ui.write((_BASH if shell == "bash" else script) + "\n")


# bash takes `--domain=sh` and `sql=0.5,sh` apart at each `=`, if it is among COMP_WORDBREAKS, and replaces what stands
# behind the last one: the program is asked with the line itself, as fish asks it, and only the end is offered.
_BASH = r"""_zephyra_completion() {
    local IFS=$'\n' line="${COMP_LINE:0:COMP_POINT}" at
    local word="${line##* }"
    local kept="${word%"${word##*=}"}"
    if [[ "$COMP_WORDBREAKS" == *=* ]]; then kept=; fi
    COMPREPLY=( $( _ZEPHYRA_COMPLETE=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args \
                   _TYPER_COMPLETE_ARGS="$line" $1 ) )
    for at in "${!COMPREPLY[@]}"; do
        COMPREPLY[at]="${COMPREPLY[at]%%$'\t'*}"
        COMPREPLY[at]="$kept${COMPREPLY[at]##*=}"
    done
}

complete -o default -F _zephyra_completion zephyra"""
_CHANGES = {
    "zsh": (
        # Typer's file only defines the function when zsh loads it at the first Tab, which then completes nothing.
        (
            "compdef _zephyra_completion zephyra",
            'if [ "${funcstack[1]}" = _zephyra ]; then _zephyra_completion "$@"; '
            "else compdef _zephyra_completion zephyra; fi",
        ),
        # Of `--domain=sh` the program answers what stands behind the `=`.
        ("  eval $(env", "  local line=\"${words[1,$CURRENT]}\"\n  compset -P 1 '--*='\n  eval $(env"),
        ('"${words[1,$CURRENT]}" _ZEPHYRA', '"$line" _ZEPHYRA'),
    ),
    "fish": (
        (
            "get-args _TYPER_COMPLETE_ARGS=(commandline -cp) zephyra)",
            "get-args _TYPER_COMPLETE_ARGS=(commandline -cp) zephyra "
            "| string replace -r '^' -- (string match -r '^--[^=]+=' -- (commandline -ct); or echo))",
        ),
    ),
}
