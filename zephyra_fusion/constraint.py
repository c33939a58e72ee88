"""Structured output: a JSON Schema or a GBNF grammar as a mask over the next token, by llguidance."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from zephyra_fusion.depth import check_depth, schema_levels
from zephyra_fusion.endless import endless
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.gbnf import lark_from_gbnf
from zephyra_fusion.types import SamplingParams

if TYPE_CHECKING:
    import numpy as np

SECONDS = 20.0  # to build a constraint; ordinary ones take milliseconds
# Of the parser for one token (Earley). An object has four for each property that it may lack, so some 1200 of these;
# ambiguous grammars grow without end, to 0.1 s a token here.
MOST_ITEMS = 5000
MOST_CHARACTERS = 2**20
STACK = 64 * 2**20  # bytes for the thread that builds: llguidance recurses, a few KiB for each level
# Between the parts of JSON, as in llama.cpp: a small model that may write any white space writes nothing else.
WHITESPACE = r"( |\n{1,2}[ \t]{0,20})?"
INSTALL_HINT = "pip install 'llguidance>=1.3'"
_STARTING = threading.Lock()  # the size of the next thread's stack is one for the whole process

# Where only one text can follow, its tokens are still the model's choice, not a tokenizer's.
_HEAD = '%llguidance {"no_forcing": true}\n'


class TokenTable:
    """All tokens of a model as llguidance wants them. Making one costs about 2 µs a token: keep it.

    token_bytes: gives none for control tokens; those a constraint never allows, but for `stop_ids` at the end.
    """

    def __init__(self, size: int, token_bytes: Callable[[int], bytes], stop_ids: Collection[int]) -> None:
        llguidance = _llguidance()
        if not stop_ids:
            raise ZephyraError("this model has no end token, so no answer of a given form could end")
        ends = sorted(stop_ids)
        pieces = [b"" if token in stop_ids else token_bytes(token) for token in range(size)]
        source = _Pieces([piece or f"<{token}>".encode() for token, piece in enumerate(pieces)], ends[0])
        source.special_token_ids = [token for token, piece in enumerate(pieces) if not piece]
        self.tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(source), n_vocab=size, eos_token=ends)


class _Pieces:
    """What llguidance asks of a tokenizer. It never encodes, because nothing is forced."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], eos_token_id: int) -> None:
        self.tokens, self.eos_token_id = tokens, eos_token_id
        self.special_token_ids: list[int] = []

    def __call__(self, text: bytes) -> list[int]:
        return []


class Constraint:
    """Where one answer stands in its schema or grammar. ZephyraError: bad, unsatisfiable, or too large to build."""

    def __init__(self, params: SamplingParams, table: TokenTable) -> None:
        llguidance = _llguidance()
        self.what = "schema" if params.schema else "grammar"
        if len(params.schema or params.grammar) > MOST_CHARACTERS:
            raise ZephyraError(f"the {self.what} is longer than {MOST_CHARACTERS} characters")
        rules = _json_rules(params.schema) if params.schema else lark_from_gbnf(params.grammar)
        matcher = llguidance.LLMatcher
        source = matcher.grammar_from_lark(_HEAD + rules)
        limits = llguidance.LLParserLimits(max_items_in_row=MOST_ITEMS)

        def build() -> Any:
            return matcher(table.tokenizer, source, log_level=0, limits=limits)

        self._matcher = _within(SECONDS, build, self.what)
        if self._matcher.is_error():
            raise ZephyraError(f"the {self.what} cannot be used: {self._reason()}")
        if params.schema and endless(json.loads(params.schema)):
            raise ZephyraError("nothing satisfies the schema: a value would have to hold itself")

    def mask(self) -> bytes:
        """One bit a token, the lowest first: which may come next. ZephyraError: none may, or it takes too much."""
        mask: bytes = self._matcher.compute_bitmask()
        if self._matcher.is_error() or not any(mask):
            raise ZephyraError(f"the {self.what} is too complex to follow: {self._reason()}")
        return mask

    def accept(self, token: int) -> None:
        """`token`, one that the mask allowed, has been chosen."""
        if not self._matcher.consume_token(token):
            raise ZephyraError(f"the {self.what} cannot go on after token {token}: {self._reason()}")

    def _reason(self) -> str:
        """llguidance's words without its position in our wrapping, the excerpts and the dumps of its state."""
        lines = re.split(r"\n<state>|<backtrace>", str(self._matcher.get_error()))[0].split("\n")
        told = itertools.takewhile(lambda line: not re.match(r"\s*\d+ \|", line), lines)
        reason = " ".join(line.strip() for line in told if line.strip())
        reason = re.sub(r"^at \d+\(\d+\): |failed to compile JSON schema: |\. Enable '.*", "", reason)
        return reason[:300] or "no token is possible"


def _json_rules(text: str) -> str:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ZephyraError(f"the schema is no valid JSON: {error}") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ZephyraError(
            "nothing satisfies the schema 'false'" if schema is False else "a JSON Schema is an object, or true",
            hint='as in {"type": "object"}',
        )
    check_depth(schema_levels(schema), "schema")
    return "start: %json " + json.dumps({"x-guidance": {"whitespace_pattern": WHITESPACE}, **schema})


def check(params: SamplingParams) -> None:
    """Refuse a bad schema or grammar before anything is loaded."""
    if params.schema or params.grammar:
        Constraint(params, TokenTable(257, lambda token: bytes([token]) if token < 256 else b"", (256,)))


def allowed(mask: bytes, size: int) -> np.ndarray:
    """The mask spread out: one truth a token, `[size]`."""
    import numpy as np

    bits: np.ndarray = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[:size].view(bool)
    return bits


def _within(seconds: float, build: Callable[[], Any], what: str) -> Any:
    """What `build` gives. It runs beside, so that neither time nor Ctrl-C are lost in it."""
    results: list[Any] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(build())
        except BaseException as error:  # a panic in Rust is no Exception
            failures.append(error)

    worker = threading.Thread(target=run, daemon=True)
    with _STARTING:
        before = threading.stack_size(STACK)
        try:
            worker.start()
        finally:
            threading.stack_size(before)
    worker.join(seconds)
    if failures:
        raise ZephyraError(f"the {what} cannot be used: {str(failures[0])[:300]}")
    if not results:
        raise ZephyraError(
            f"the {what} takes longer than {seconds:g} s to prepare", hint="fewer properties, values or repetitions"
        )
    return results[0]


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ZephyraError("structured output needs llguidance, which is not installed", hint=INSTALL_HINT) from None
    return llguidance
