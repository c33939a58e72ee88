"""Files made odd: bytes of GGUF and safetensors, values of JSON, pieces of templates. Same dice, same file."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from copy import deepcopy
from struct import pack
from typing import Any

NUMBERS = (0, 1, 2, 3, 7, 8, 9, 31, 32, 63, 64, 127, 255, 256, 2**16, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**40)
LONG = (*NUMBERS, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 32)


def mutated_bytes(
    data: bytes, others: Sequence[bytes], dice: random.Random, *, header: int, marks: Sequence[int]
) -> bytes:
    """One to three changes, most of them before `header`, many of them near `marks`."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 1, 2, 3))):
        end = min(header, len(changed)) if dice.random() < 0.8 else len(changed)
        if end < 16:
            break
        at = (
            min(dice.choice(marks) + dice.randrange(-4, 60), end - 9)
            if dice.random() < 0.6
            else dice.randrange(end - 8)
        )
        at = max(at, 0)
        kind = dice.choice((0, 0, 0, 0, 1, 2, 2, 3, 4, 5, 6, 7))
        if kind == 0:
            changed[at] = dice.randrange(256)
        elif kind == 1:
            changed[at : at + 8] = pack("<Q", dice.choice(LONG) % 2**64)
        elif kind == 2:
            changed[at : at + 4] = pack("<I", dice.choice(NUMBERS) % 2**32)
        elif kind == 3:
            changed[at : at + 4] = pack("<f", dice.choice((0.0, -1.0, float("nan"), float("inf"), 1e38)))
        elif kind == 4:
            del changed[at : at + dice.randrange(1, 65)]
        elif kind == 5:
            changed[at:at] = changed[at : at + dice.randrange(1, 65)]
        elif kind == 6:
            other = dice.choice(others)
            start = dice.randrange(len(other))
            changed[at : at + 16] = other[start : start + 16]
        else:
            del changed[dice.randrange(len(changed)) if dice.random() < 0.5 else at :]
    return bytes(changed)


ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, -0.0, 1e308, float("nan"), float("inf"), "", "x", "none",
    "../x", "/etc/passwd", "\0", "\ud800", "é" * 9, "x" * 5000, [], {}, [[]], [None], {"": None}, {"file": "a"},
    [1] * 2000,
)  # fmt: skip


def mutated_json(value: Any, dice: random.Random) -> bytes:
    """JSON of the value with one to three of its parts replaced, removed, doubled or wrapped; sometimes broken text."""
    value = json.loads(json.dumps(value))
    for _ in range(dice.choice((1, 1, 2, 3))):
        places = [(value, key) for key in _keys(value)]
        for holder, key in places:
            if len(places) < 4000:
                places += [(holder[key], below) for below in _keys(holder[key])]
        if not places:
            break
        shallow = places[: max(8, len(places) // 20)]
        holder, key = dice.choice(shallow if dice.random() < 0.7 else places)
        kind = dice.randrange(6)
        if kind < 3:
            holder[key] = deepcopy(dice.choice(ODD))
        elif kind == 3:
            del holder[key]
        elif kind == 4:
            holder[key] = [holder[key]] * dice.choice((1, 2, 300)) if dice.random() < 0.5 else {"x": holder[key]}
        elif isinstance(holder, dict):
            holder[dice.choice(("", "x", "\0", "__class__", "file", "9" * 300))] = holder[key]
    text = json.dumps(value).encode()
    if dice.random() < 0.1:
        text = b"[" * dice.choice((10, 3000, 200_000)) + text
    if dice.random() < 0.15:
        text = mutated_bytes(text, [text], dice, header=len(text), marks=[0])
    return text


def _keys(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value)
    return list(range(min(len(value), 50))) if isinstance(value, list) else []


PIECES = (
    *r"""
{{ messages }}
{{ messages[0].content }}
{% for m in messages %}
{% endfor %}
{{ m.role }}
{% if m %}
{% endif %}
{% set x = 'a' * 100000 %}
{% set x = x ~ x %}
{{ x }}
{% for i in range(99999) %}
{{ i }}
{{ ''.__class__ }}
{{ m.content | upper }}
{{ m['content'] * 999999 }}
{% macro f(n) %}{{ f(n) }}{% endmacro %}
{{ f(1) }}
{{ 9 ** 9 ** 9 }}
{{ '%999999999d' % 1 }}
{{ 'x'.ljust(10**8) }}
{{ messages | tojson }}
<|end|>
{{ cycler.__init__ }}
{{ lipsum(n=99999) }}
{{ namespace(a=1) }}
{%- break %}
{{ raise_exception('no') }}
{{ strftime_now('%' * 9999) }}
{% raw %}
{% endraw %}
{{ [0] * 10**8 }}
{{
{{ messages.append(1) }}
{{ ('a,' * 9999).split(',') | length }}
{{ dict.fromkeys('ab') }}
{% include 'x' %}
""".strip().splitlines(),
    "\0",
    "\ud800",
    "{# ",
    " #}",
)


def mutated_template(template: str, dice: random.Random) -> str:
    """Pieces of Jinja put in, left out and cut in two."""
    for _ in range(dice.choice((1, 1, 2, 3, 5))):
        at = dice.randrange(len(template) + 1)
        if dice.random() < 0.7:
            template = template[:at] + dice.choice(PIECES) + template[at:]
        else:
            template = template[:at] + template[at + dice.randrange(1, 30) :]
    return template
