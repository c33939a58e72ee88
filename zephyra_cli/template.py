"""The Jinja chat template inside a bare .gguf: a stranger's program, run in a fenced process of its own.

The template sees placeholders instead of the messages. What it writes around them is control text, what stands in
their place is the user's and is never parsed for control tokens.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import Message, Segment

SECONDS = 5
MEMORY = 512 * 2**20
MOST_CHARACTERS = 2**20  # of the template and of what it writes


def render(template: str, messages: Sequence[Message], names: Mapping[str, str]) -> list[Segment]:
    """The conversation with the answer opened; `names` are bos_token and eos_token.

    ZephyraError: the template is broken, refuses the messages, loses one of them, or takes too long or too much.
    """
    if len(template) > MOST_CHARACTERS:
        raise ZephyraError(f"the chat template has {len(template)} characters, more than {MOST_CHARACTERS}", hint=_RAW)
    placeholders = {f"z{secrets.token_hex(12)}z": message for message in messages}
    job = {
        "template": template,
        "values": {
            **names,
            "messages": [{"role": message.role, "content": mark} for mark, message in placeholders.items()],
            "add_generation_prompt": True,
        },
    }
    rest = _render_fenced(job)
    segments = []
    for mark, message in placeholders.items():
        before, found, rest = rest.partition(mark)
        if not found:
            raise ZephyraError(f"the model's chat template has no place for the {message.role} message", hint=_RAW)
        segments += [Segment(before, control=True), Segment(message.content)]
    if any(mark in rest for mark in placeholders):
        raise ZephyraError("the model's chat template repeats or reorders the messages", hint=_RAW)
    return [segment for segment in (*segments, Segment(rest, control=True)) if segment.text]


_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "SYSTEMROOT", "TZ")  # no secrets go there
_RAW = "--raw continues the text without a template"


def _render_fenced(job: Mapping[str, Any]) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _FENCED, str(MEMORY), str(SECONDS), str(MOST_CHARACTERS)],
            input=json.dumps(job).encode(),
            env={name: value for name, value in os.environ.items() if name in _KEPT},
            capture_output=True,
            timeout=SECONDS * 2,
        )
    except subprocess.TimeoutExpired:
        raise ZephyraError(f"the model's chat template ran longer than {SECONDS} s", hint=_RAW) from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1][:300]
        raise ZephyraError(
            f"the model's chat template failed: {reason or f'it took more than {SECONDS} s or {MEMORY // 2**20} MiB'}",
            hint=_RAW,
        )
    return done.stdout.decode()


_FENCED = """
import json, sys
memory, seconds, most = map(int, sys.argv[1:])
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
except (ImportError, ValueError, OSError):
    pass  # no such fence on this system: the time limit outside still holds
import datetime
from jinja2.sandbox import ImmutableSandboxedEnvironment
def refuse(message):
    raise ValueError(message)
def main():
    job = json.loads(sys.stdin.buffer.read())
    extensions = ["jinja2.ext.loopcontrols"]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.globals.update(raise_exception=refuse, strftime_now=lambda form: datetime.datetime.now().strftime(form))
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    size = 0
    for piece in environment.from_string(job["template"]).generate(**job["values"]):
        size += len(piece)
        if size > most:
            refuse(f"it writes more than {most} characters")
        sys.stdout.buffer.write(piece.encode())
try:
    main()
except Exception as error:  # in a few words: what a template says of itself may be long
    sys.exit(f"{type(error).__name__}: {str(error)[:300]}")
"""
