"""Key bindings: the line that is typed becomes the command that it describes, to be looked at and run by Enter."""

from __future__ import annotations

KEYS = {
    "bash": r"""# Alt-Z turns the line into the command it describes. In ~/.bashrc: eval "$(zephyra shell --keys bash)"
_zephyra_shell() {
  local command
  [ -n "$READLINE_LINE" ] || return
  command=$(zephyra shell -- "$READLINE_LINE" </dev/null) || return
  READLINE_LINE=$command
  READLINE_POINT=${#command}
}
bind -x '"\ez": _zephyra_shell'
""",
    "zsh": r"""# Alt-Z turns the line into the command it describes. In ~/.zshrc: eval "$(zephyra shell --keys zsh)"
_zephyra_shell() {
  local command
  [[ -n $BUFFER ]] || return
  zle -I
  command=$(zephyra shell -- "$BUFFER" </dev/null) || return
  BUFFER=$command
  CURSOR=${#BUFFER}
}
zle -N _zephyra_shell
bindkey '\ez' _zephyra_shell
""",
    "fish": r"""# Alt-Z turns the line into the command it describes. In config.fish: zephyra shell --keys fish | source
function _zephyra_shell
    set -l line (commandline | string collect)
    test -n "$line"; or return
    set -l command (zephyra shell -- $line </dev/null | string collect)
    test -n "$command"; and commandline --replace -- $command
    commandline --function repaint
end
bind \ez _zephyra_shell
""",
}
