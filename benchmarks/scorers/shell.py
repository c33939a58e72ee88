"""Shell commands: which program runs, and is it the same command?"""

from __future__ import annotations

import re

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=\S*")
_SUDO_WITH_VALUE = {"-u", "-g", "-h", "-p", "-C", "-r", "-t", "-U", "--user", "--group", "--host", "--prompt"}


def program(command: str) -> str:
    """The first word that names a program: after assignments, after sudo and its options; without its folder."""
    words = command.strip().splitlines()[0].split() if command.strip() else []
    at, after_sudo = 0, False
    while at < len(words):
        word = words[at].strip("\"'(){};`")
        if word == "sudo":
            after_sudo = True
        elif after_sudo and word.startswith("-"):
            at += word in _SUDO_WITH_VALUE
        elif word and not _ASSIGNMENT.fullmatch(word):
            return re.split(r"[|&;<>]", word)[0].rpartition("/")[2]
        at += 1
    return "sudo" if after_sudo else ""


def same_command(answer: str, reference: str) -> bool:
    """The same but for the amount of white space."""
    return answer.split() == reference.split()
