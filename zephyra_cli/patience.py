"""Errors of the way to the hub that pass, and how long they are waited out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

ATTEMPTS = 6  # in a row without any progress
FIRST_WAIT_S = 0.5  # between two of them; each time it doubles
LONGEST_WAIT_S = 120.0  # that a server may ask for
_PASSING = {408, 425, 429, 500, 502, 503, 504}

T = TypeVar("T")


class Patience:
    """Forgives errors that pass, a limited number of times in a row, and waits longer each time."""

    def __init__(self, attempts: int = ATTEMPTS, sleep: Callable[[float], Any] = time.sleep) -> None:
        self.attempts, self._left, self._sleep = attempts, attempts, sleep

    def renew(self) -> None:
        """There was progress."""
        self._left = self.attempts

    def forgive(self, error: Exception) -> None:
        """Wait and return, or raise the error."""
        self._left -= 1
        asked = asked_to_wait(error)
        if not _passes(error) or self._left <= 0 or asked > LONGEST_WAIT_S:
            raise error
        self._sleep(max(asked, FIRST_WAIT_S * 2 ** (self.attempts - self._left - 1)))


def patiently(call: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """The call's result; errors that pass are waited out."""
    patience = Patience(attempts)
    while True:
        try:
            return call()
        except Exception as error:
            patience.forgive(error)


def _passes(error: Exception) -> bool:
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        status, url = error.response.status_code, str(error.response.url)
        expired = status == 403 and not url.startswith(constants.ENDPOINT)  # a signed address of the CDN
        return status in _PASSING or expired
    return isinstance(error, httpx2.TransportError) and not isinstance(error, httpx2.UnsupportedProtocol)


def asked_to_wait(error: Exception) -> float:
    """Seconds that the server wants us to wait (`Retry-After`, `RateLimit`)."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    after = str(headers.get("retry-after", ""))
    limit = re.search(r"r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", str(headers.get("ratelimit", "")))
    return float(after) if re.fullmatch(r"[0-9]+", after) else float(limit[1]) if limit else 0.0
