"""Generated exercises: right, in the forms of the data, the same for the same seed, and none that is held back."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

from zephyra_fusion.train import stages
from zephyra_fusion.train.exercises import exercises

WORKED = re.compile(r"^(?:area = |perimeter = |x = |\d+% of \d+ = )?(-?\d+(?: [-+*/] \d+)*) = (-?\d+)$")


def test_every_line_of_the_working_is_right_and_the_answer_is_its_end() -> None:
    checked = 0
    for record in islice(exercises(3), 4000):
        *working, last = record.text.split("\n")
        answer = last.removeprefix("Answer: ")
        assert answer in re.findall(r"-?\d+", working[-1])[-1:] or "number is" in working[-1], record
        for line in working:
            if match := WORKED.match(line):
                assert eval(match[1]) == int(match[2]), record
                checked += 1
    assert checked > 3500


def test_answers_are_those_of_the_question() -> None:
    """The kinds whose working does not show by itself that the right thing was worked out."""
    seen = set()
    for record in islice(exercises(4), 4000):
        prompt, answer = record.prompt or "", int(record.text.rpartition(" ")[2])
        numbers = [int(number) for number in re.findall(r"-?\d+", prompt)]
        if " mod " in prompt or "remainder" in prompt:
            assert answer == numbers[0] % numbers[1]
            seen.add("remainder")
        elif found := re.search(r"(\d+)x ([-+]) (\d+) = (-?\d+)", prompt):
            assert int(found[1]) * answer + int(found[2] + found[3]) == int(found[4])
            seen.add("equation")
        elif "largest" in prompt or "smallest" in prompt:
            assert answer == (max(numbers) if "largest" in prompt else min(numbers))
            seen.add("extreme")
        elif "average" in prompt:
            assert answer * len(numbers) == sum(numbers)
            seen.add("average")
    assert seen == {"remainder", "equation", "extreme", "average"}


def test_the_seed_fixes_them_and_what_is_held_back_stays_out() -> None:
    first = list(islice(exercises(1), 300))
    assert first == list(islice(exercises(1), 300)) != list(islice(exercises(2), 300))
    without = {record.prompt for record in first[:100]}
    assert not without & {record.prompt for record in islice(exercises(1, without=first[:100]), 3000)}


def test_an_adapter_learns_from_them_and_goes_on_from_an_earlier_one(runs: Path, data: Path, tmp_path: Path) -> None:
    recipe = runs / "adapter.toml"
    options = ["domains={shell=2}", "checkpoint_every=1000", "exercises={shell=1.0}"]
    stages.run("adapter", recipe, [f"output={tmp_path / 'exercises'}", *options])
    stages.run("adapter", recipe, [f"output={tmp_path / 'plain'}", *options[:2]])
    learned, plain = (
        (tmp_path / n / "shell" / "adapter_model.safetensors").read_bytes() for n in ("exercises", "plain")
    )
    assert learned != plain
    initial = [f"output={tmp_path / 'more'}", f"initial={runs / 'adapters'}", "optimizer.lr=0.0", *options[:2]]
    stages.run("adapter", recipe, initial)
    before, after = (
        (f / "shell" / "adapter_model.safetensors").read_bytes() for f in (runs / "adapters", tmp_path / "more")
    )
    assert before == after
