"""The code in an answer that is Markdown."""

from __future__ import annotations


def first_code_block(text: str) -> str | None:
    """The text of the first fenced block, ended by a line end; None where there is none. One cut short counts."""
    if "```" not in text and "~~~" not in text:
        return None
    from markdown_it import MarkdownIt

    fences = (token.content for token in MarkdownIt().parse(text) if token.type == "fence")
    return next(fences, None)
