"""How deep a schema or grammar may lead into itself; beyond, native code overflows its stack and ends the process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from zephyra_fusion import depth
from zephyra_fusion.constraint import check
from zephyra_fusion.depth import MOST_LEVELS, deepest, schema_levels
from zephyra_fusion.endless import endless
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.gbnf import lark_from_gbnf
from zephyra_fusion.types import SamplingParams

Link = Callable[[dict[str, Any]], dict[str, Any]]
LINKS: dict[str, Link] = {
    "reference": lambda next: next,
    "object": lambda next: {"type": "object", "properties": {"x": next}, "required": ["x"]},
    "choice": lambda next: {"anyOf": [next, {"type": "string"}]},
    "list": lambda next: {"type": "array", "items": next},
}


def chain(count: int, link: Link, reference: str = "#/$defs/d{}", **last: Any) -> str:
    links = {f"d{n}": link({"$ref": reference.format(n + 1)}) for n in range(count)} | {f"d{count}": last}
    return json.dumps({"$ref": "#/$defs/d0", "$defs": {n: {**one, "$anchor": n} for n, one in links.items()}})


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("reference", ["#/$defs/d{}", "#/%24defs/d{}", "#d{}", "json-schema:///#/$defs/d{}"])
def test_a_chain_of_references_is_refused(link: str, reference: str) -> None:
    with pytest.raises(ZephyraError, match=f"the schema can be [0-9]+ levels deep, the limit is {MOST_LEVELS}"):
        check(SamplingParams(schema=chain(MOST_LEVELS + 50, LINKS[link], reference, type="null")))


def test_a_ring_of_references_is_a_chain() -> None:
    with pytest.raises(ZephyraError, match="levels deep"):
        check(SamplingParams(schema=chain(MOST_LEVELS, LINKS["choice"], **{"$ref": "#/$defs/d0"})))


@pytest.mark.parametrize("link", LINKS)
def test_what_is_almost_too_deep_is_built(link: str) -> None:
    count = next(n for n in range(MOST_LEVELS, 0, -1) if schema_levels(json.loads(chain(n, LINKS[link]))) < MOST_LEVELS)
    check(SamplingParams(schema=chain(count, LINKS[link], type="null")))


def test_many_schemas_beside_each_other_are_not_deep() -> None:
    properties = {f"p{n}": {"$ref": "#/$defs/s"} for n in range(150)}
    schema = {"type": "object", "properties": properties, "$defs": {"s": {"type": "array", "items": {"$ref": "#"}}}}
    assert schema_levels(schema) == 5  # the object, its properties, one; the list, its items
    check(SamplingParams(schema=json.dumps(schema)))


def test_a_reference_by_anchor_is_followed() -> None:
    check(SamplingParams(schema=chain(9, LINKS["object"], "#d{}", type="null")))


@pytest.mark.parametrize("rule", ["r{}", '"(" r{} ")" | "x"', "r{}*", '("a" (r{} | "b"))'])
def test_a_chain_of_rules_is_refused(rule: str) -> None:
    rules = "".join(f"r{n} ::= {rule.format(n + 1)}\n" for n in range(MOST_LEVELS))
    with pytest.raises(ZephyraError, match=f"the grammar can be [0-9]+ levels deep, the limit is {MOST_LEVELS}"):
        check(SamplingParams(grammar=f'root ::= r0\n{rules}r{MOST_LEVELS} ::= "a"\n'))


def test_a_grammar_is_read_in_the_time_that_its_length_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round over all rules, to find those that end, would be minutes here."""
    monkeypatch.setattr(depth, "MOST_LEVELS", 10**9)
    rules = "".join(f"r{n} ::= r{n + 1}\n" for n in range(20_000))
    start = time.monotonic()
    assert lark_from_gbnf(f'root ::= r0\n{rules}r20000 ::= "a"\n').startswith("start: r0\n")
    assert time.monotonic() - start < 10


def test_whether_a_schema_ends_is_found_in_the_time_that_its_length_takes() -> None:
    names = [f"c{chain}d{link}" for chain in range(40) for link in range(400)]
    links = {name: {"$ref": f"#/$defs/{after}"} for name, after in pairwise(names) if not after.endswith("d0")}
    firsts = {name: {"$ref": f"#/$defs/{name}"} for name in names if name.endswith("d0")}
    start = time.monotonic()
    schema = {"type": "object", "properties": firsts, "required": list(firsts), "$defs": links}
    lasts = {name: {"type": "null"} for name in names if name not in links}
    assert not endless({**schema, "$defs": links | lasts})
    assert endless({**schema, "$defs": links | lasts | {"c7d399": {"$ref": "#/$defs/c7d9"}}})
    assert time.monotonic() - start < 10


def test_the_deepest_walk_enters_no_part_twice() -> None:
    levels = {"a": 1, "b": 2, "c": 3, "d": 10, "e": 1}
    leads = {"a": ["b", "d"], "b": ["c", "e"], "c": ["b"], "d": ["e"], "e": []}
    assert deepest(levels, leads) == 12  # a, d, e; b and c lead to each other: a, b, c, e are 7
    assert deepest(levels, leads | {"e": ["a"]}) == 17
    assert deepest({}, {}) == 0
