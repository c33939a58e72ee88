from __future__ import annotations

import pytest

from zephyra_cli.domain import parse_domain
from zephyra_fusion.errors import ZephyraError

KNOWN = {"shell", "sql", "law"}


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("auto", None),
        ("none", {}),
        ("shell", {"shell": 1.0}),
        ("shell=0.5", {"shell": 0.5}),
        ("shell=.7, sql=3e-1", {"shell": 0.7, "sql": 0.3}),
        ("shell=1,sql=0", {"shell": 1.0}),
        ("shell=0", {}),
    ],
)
def test_what_the_option_means(text: str, weights: dict[str, float] | None) -> None:
    assert parse_domain(text, KNOWN) == weights


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("shel", "unknown domain 'shel'", "did you mean 'shell'"),
        ("", "unknown domain ''", "known: auto"),
        ("auto=1", "'auto' stands alone", "law=0.7"),
        ("shell=1,none=0", "'none' stands alone", ""),
        ("shell,sql", "no weight", "law=0.7"),
        ("shell=1,", "unknown domain ''", ""),
        ("shell=", "'', not a number", ""),
        ("shell=much", "'much', not a number", ""),
        ("shell=nan", "is nan", "0 to 100"),
        ("shell=inf", "is inf", "0 to 100"),
        ("shell=-0.5", "is -0.5", "0 to 100"),
        ("shell=1e9", "is 1000000000.0", "0 to 100"),
        ("shell=1,shell=2", "twice", ""),
    ],
)
def test_what_it_cannot_mean(text: str, message: str, hint: str) -> None:
    with pytest.raises(ZephyraError, match=message) as error:
        parse_domain(text, KNOWN)
    assert hint in (error.value.hint or "")
