"""Structured output: the masks, against llama.cpp's own reading of GBNF, and what is refused."""

from __future__ import annotations

import ctypes
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zephyra_cli.backends.llama import LlamaBackend
from zephyra_fusion import constraint
from zephyra_fusion.constraint import Constraint, TokenTable, allowed
from zephyra_fusion.endless import endless
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import SamplingParams

END = 256
ARITHMETIC = r"""
root  ::= (expr "=" ws term "\n")+   # llama.cpp's example
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""
GRAMMARS = {
    "arithmetic": ARITHMETIC,
    "greedy terminals": r'root ::= [a-z]* "end" | "e" [a-f]{2,3} "x"? root?',
    "characters": r'root ::= ([^"\\\x00-\x1f] | "\\" ["nrt] | "ü" | "\u20ac" | [à-ï])+ "\"" .',
    "lines": 'root ::=\n  "a" (\n "b" |\n "c" # or\n )* |\n  item\nitem ::= "- " [^\\n]{1,4} ("\\n" item)?\n',
    "repetitions": r'root ::= ("ab"{2} | [x-z]{3,} | "q"{0,2})+ "."',
    "empty": r'root ::= "" | "(" root ")" root',
}


@pytest.fixture(scope="module")
def bytewise() -> TokenTable:
    """A vocabulary of the 256 bytes and an end."""
    return TokenTable(257, lambda token: bytes([token]) if token < 256 else b"", (END,))


@pytest.fixture
def follow(bytewise: TokenTable) -> Callable[[SamplingParams, bytes], str]:
    """follow(params, text) -> "whole", "part" (it may go on) or "no"."""

    def verdict(params: SamplingParams, text: bytes) -> str:
        state = Constraint(params, bytewise)
        for byte in text:
            if not allowed(state.mask(), 257)[byte]:
                return "no"
            state.accept(byte)
        return "whole" if allowed(state.mask(), 257)[END] else "part"

    return verdict


@pytest.fixture(scope="module")
def vocabulary(tiny_gguf: Path) -> Iterator[tuple[Any, Any, LlamaBackend]]:
    """llama_cpp, its vocabulary of the tiny model, and our backend."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    options = llama_cpp.llama_model_default_params()
    options.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(tiny_gguf).encode(), options)
    backend = LlamaBackend(tiny_gguf, threads=1)
    yield llama_cpp, llama_cpp.llama_model_get_vocab(model), backend
    backend.close()
    llama_cpp.llama_model_free(model)


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_grammar_is_read_as_llama_cpp_reads_it(name: str, vocabulary: tuple[Any, Any, LlamaBackend]) -> None:
    """Random walks over the tiny model's tokens: the same tokens are allowed at every step."""
    llama_cpp, vocab, backend = vocabulary
    token_bytes = backend.token_bytes
    ours = TokenTable(backend.vocab_size, token_bytes, backend.stop_ids)
    text, dice = GRAMMARS[name], random.Random(4)
    # llama.cpp lets a control token stand for its name, lets in bytes that are in no UTF-8, and keeps NUL out.
    odd = {1, 2, 3, 4} | {
        token for token in range(6, 320) if token_bytes(token)[0] in (0, 0xC0, 0xC1, *range(0xF5, 256))
    }
    for _ in range(6):
        theirs = llama_cpp.llama_sampler_init_grammar(vocab, text.encode(), b"root")
        state = Constraint(SamplingParams(grammar=text), ours)
        for _ in range(12):
            data = (llama_cpp.llama_token_data * 320)(*[(token, 0.0, 0.0) for token in range(320)])
            array = llama_cpp.llama_token_data_array(data, 320, -1, False)
            llama_cpp.llama_sampler_apply(theirs, ctypes.byref(array))
            expected = {entry.id for entry in data if entry.logit == 0.0} - odd
            got = set(np.flatnonzero(allowed(state.mask(), 320)).tolist()) - odd
            assert got == expected
            # Nor after half a character: there llama.cpp lets in overlong forms.
            if not (going_on := [token for token in sorted(got - {0, 5}) if max(token_bytes(token)) < 0x80]):
                break
            token = dice.choice(going_on)
            llama_cpp.llama_sampler_accept(theirs, token)
            state.accept(token)
        llama_cpp.llama_sampler_free(theirs)


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name":"Ada","age":36}', "whole"),
        ('{"name": "Ada",\n  "age": 36}', "whole"),
        ('{"name":"A\\"a\\né","age":0}', "whole"),
        ('{"name":"Ada"', "part"),
        ('{"age"', "no"),
        ('{"name":"Ada","age":121', "no"),
        ('{"name":"much too long', "no"),
        ('{"name":"Ada","age":36,', "no"),
        ('{      "', "no"),
    ],
)
def test_a_schema_allows_what_it_says(text: str, expected: str, follow: Callable[[SamplingParams, bytes], str]) -> None:
    assert follow(SamplingParams(schema=json.dumps(PERSON)), text.encode()) == expected


@pytest.mark.parametrize(
    ("schema", "cause"),
    [
        ("{", "no valid JSON"),
        ("false", "nothing satisfies"),
        ("[]", "is an object"),
        ('{"enum": []}', "Unsatisfiable"),
        ('{"type": "integer", "minimum": 5, "maximum": 3}', "greater than maximum"),
        ('{"allOf": [{"type": "string"}, {"type": "integer"}]}', "incompatible types"),
        ('{"type": "frob"}', "Invalid type: frob"),
        ('{"not": {}}', 'Unimplemented keys: ."not".'),
        ('{"$ref": "https://example.org/x"}', "retrieving it failed"),
        ('{"type": "string", "pattern": "(?=a)"}', "look-around"),
        ("[" * 100000, "no valid JSON"),
        (
            '{"oneOf": [{"type": "integer", "multipleOf": 3}, {"multipleOf": 5}]}',
            "oneOf constraints are not supported$",
        ),
        ('{"$ref": "#"}', "hold itself"),
        ('{"type": "array", "minItems": 1, "items": {"$ref": "#"}}', "hold itself"),
        ('{"type": ["object"], "properties": {"x": {"$ref": "#"}}, "required": ["x"]}', "hold itself"),
        ('{"type": "array", "minItems": 2, "prefixItems": [true], "items": {"anyOf": [{"$ref": "#"}]}}', "hold itself"),
        (
            '{"$defs": {"a/b": {"type": "object", "properties": {"x": {"$ref": "#/$defs/c"}}, "required": ["x"]}, '
            '"c": {"allOf": [{"$ref": "#/$defs/a~1b"}]}}, "$ref": "#/$defs/c"}',
            "hold itself",
        ),
        ('{"anyOf": [' * 300 + "{}" + "]}" * 300, "recursion limit"),
    ],
)
def test_refuses_a_schema(schema: str, cause: str) -> None:
    with pytest.raises(ZephyraError, match=cause):
        constraint.check(SamplingParams(schema=schema))


@pytest.mark.parametrize(
    "schema",
    [
        '{"type": "array", "items": {"$ref": "#"}}',
        '{"type": "array", "minItems": 1, "items": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}',
        '{"type": "array", "minItems": 1, "prefixItems": [true], "items": {"$ref": "#"}}',
        '{"type": "object", "properties": {"x": {"$ref": "#"}}}',
        '{"type": ["object", "null"], "properties": {"x": {"$ref": "#"}}, "required": ["x"]}',
        '{"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"], "enum": [{"x": 1}]}',
        '{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": {"type": "null"}}, '
        '"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["x"]}',
    ],
)
def test_a_schema_that_leads_back_to_itself_may_have_an_end(schema: str) -> None:
    assert not endless(json.loads(schema))


@pytest.mark.parametrize(
    ("grammar", "cause"),
    [
        ('start ::= "a"', "no rule 'root'"),
        ("root ::= item", "does not have: item"),
        ('root ::= "a" root', "no text can ever satisfy the grammar: these rules have no end: root"),
        ('root ::= (a | b) "x"\na ::= a "y"\nb ::= [x] (a | b)', "have no end: a, b, root"),
        ('root ::= "a', "line 1, near .* ends inside a text"),
        ('root ::= "a"\n\nroot = "b"', "line 3, .* expected '::='"),
        ("root ::= [z-a]", "the range from 'z' to 'a' is empty"),
        ("root ::= []", "without characters"),
        (r'root ::= "\q"', r"unknown escape \\q"),
        (r'root ::= "\u12"', "wants 4 hexadecimal digits"),
        ('root ::= ("a"', r"expected '\)'"),
        ('root ::= "a" )', "expected the end of the line"),
        ('root ::= "a"{3,2}', "from 3 to 2"),
        ('root ::= "a"{1000000}', "the limit is 2000"),
        ('root ::= "a"{,2}', "expected a repetition"),
        ("root ::= " + "(" * 200 + '"a"' + ")" * 200, "more than 100 parentheses"),
        ('root ::= "a"\nroot ::= "b"', "there twice"),
        ("root ::= <think>", "not supported"),
    ],
)
def test_refuses_a_grammar(grammar: str, cause: str) -> None:
    with pytest.raises(ZephyraError, match=cause):
        constraint.check(SamplingParams(grammar=grammar))


def test_a_panic_is_told_without_its_backtrace() -> None:
    with pytest.raises(ZephyraError, match="symbols") as caught:
        constraint.check(SamplingParams(grammar=f'root ::= "{"a" * 70_000}"'))
    assert "backtrace" not in caught.value.message and "unknown" not in caught.value.message


def test_what_takes_too_long_to_build_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraint, "SECONDS", 0.0)
    properties = {f"p{number}": {"type": "string"} for number in range(200)}
    with pytest.raises(ZephyraError, match="the schema takes longer than 0 s to prepare"):
        constraint.check(SamplingParams(schema=json.dumps({"type": "object", "properties": properties})))


def test_a_fault_in_the_library_is_an_error() -> None:
    def fail() -> None:
        raise BaseException("a panic")

    with pytest.raises(ZephyraError, match="the schema cannot be used: a panic"):
        constraint._within(5.0, fail, "schema")


def test_what_explodes_while_it_is_followed_is_given_up(bytewise: TokenTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraint, "MOST_ITEMS", 100)
    state = Constraint(SamplingParams(grammar="root ::= a*\na ::= b*\nb ::= [x]*"), bytewise)
    with pytest.raises(ZephyraError, match="the grammar .*(too complex|cannot go on).*100"):
        for _ in range(200):
            state.mask()
            state.accept(ord("x"))


def test_an_object_may_have_a_thousand_optional_properties(follow: Callable[[SamplingParams, bytes], str]) -> None:
    properties = {f"p{number}": {"type": "integer"} for number in range(1000)}
    schema = json.dumps({"type": "object", "properties": properties, "additionalProperties": False})
    assert follow(SamplingParams(schema=schema), b'{"p0": 1, "p998": 2, "p999": 3}') == "whole"


def test_control_tokens_are_no_text(follow: Callable[[SamplingParams, bytes], str]) -> None:
    """A grammar that spells a control token's name does not reach the token."""
    assert follow(SamplingParams(grammar='root ::= "<256>"'), b"<256>") == "whole"


def test_a_model_without_an_end_is_refused() -> None:
    with pytest.raises(ZephyraError, match="no end token"):
        TokenTable(256, lambda token: bytes([token]), ())


def test_schema_and_grammar_exclude_each_other() -> None:
    with pytest.raises(ZephyraError, match="can follow one of them"):
        SamplingParams(schema="{}", grammar='root ::= "a"')
