"""The recorder of README's pictures: frames of a real terminal, drawn as well-formed SVG."""

from __future__ import annotations

import os
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("pyte")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "docs"))
    import recording

    return recording


def test_a_film_shows_what_was_typed_and_answered(recording: Any, tmp_path: Path) -> None:
    script = "name = input('who? '); print('\\x1b[32mhello', name, '<&>\\x1b[0m'); input('more? ')"
    steps = [recording.Step(r"who\? ", "me\r"), recording.Step(r"more\? ", "")]
    frames = recording.film([sys.executable, "-c", script], steps, columns=40, lines=5, folder=tmp_path)
    times = [time for time, _ in frames]
    last = ["".join(data for data, _, _ in row) for row in frames[-1][1]]
    assert times == sorted(times) and last == ["who? me", "hello me <&>", "more?", "", ""]
    picture = ElementTree.fromstring(recording.svg(frames, "a <title>", columns=40))
    texts = ["".join(text.itertext()) for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "hello me <&>" in texts and "who? m" in texts
    colours = {span.get("fill") for span in picture.iter("{http://www.w3.org/2000/svg}tspan")}
    assert recording.PALETTE["green"] in colours


def test_a_prompt_that_never_comes_stops_it(recording: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="never came"):
        recording.film(["true"], [recording.Step("never", "")], columns=20, lines=3, folder=tmp_path)
