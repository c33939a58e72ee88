"""What `--schema` and `--grammar` say: the form that an answer must have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from zephyra_cli.prompt import read_text
from zephyra_cli.text import utf8
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import SamplingParams


def structured(params: SamplingParams, schema: str | None, grammar: Path | None) -> SamplingParams:
    """`params` with the schema (JSON itself, or the file it is in) or the grammar (a file).

    ZephyraError: both, unreadable, not valid, or nothing can satisfy it. It is found before a model is loaded.
    """
    if schema is None and grammar is None:
        return params
    if schema is not None and grammar is not None:
        raise ZephyraError("--schema and --grammar exclude each other")
    from zephyra_fusion.constraint import check

    text = _schema(schema) if schema is not None else ""
    form = replace(params, schema=text, grammar=_not_empty(grammar) if grammar is not None else "")
    check(form)
    return form


def _schema(given: str) -> str:
    import json

    utf8(given, "--schema")
    if not given.strip():
        raise ZephyraError("--schema is empty", hint='as in {"type": "object"}, or a file')
    inline = given.lstrip().startswith(("{", "[", '"')) or given.strip() in ("true", "false")
    text = given if inline else _not_empty(Path(given))
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        source = "--schema" if inline else f"'{given}'"
        raise ZephyraError(f"{source} is no valid JSON: {error}", hint='as in {"type": "object"}, or a file') from None


def _not_empty(path: Path) -> str:
    text = read_text(path)
    if not text.strip():
        raise ZephyraError(f"'{path}' is empty")
    return text
