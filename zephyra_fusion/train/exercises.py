"""Generated arithmetic with worked answers, as many exercises as training can use, in the forms of `domains/math`."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator

from zephyra_fusion.sources import Record

_NAMES = """
Ana Ben Carla Ella Farid Grace Hugo Ivy Jonas Kira Leo Mia Noah Olga Paul Rosa Sam Uma Victor Wen Yara Zane
""".split()
_THINGS = """
apples balloons books buttons candles cards coins cookies eggs flowers marbles muffins oranges pencils stamps stickers
stones tickets toys
""".split()
_UNITS = (
    ("weeks", "days", 7), ("days", "hours", 24), ("hours", "minutes", 60), ("minutes", "seconds", 60),
    ("years", "months", 12), ("feet", "inches", 12), ("meters", "centimeters", 100), ("kilometers", "meters", 1000),
    ("kilograms", "grams", 1000), ("liters", "milliliters", 1000),
)  # fmt: skip
Exercise = tuple[str, list[str], int]  # prompt, lines of working, answer


def exercises(seed: int, without: Collection[Record] = ()) -> Iterator[Record]:
    """Endless and fixed by the seed; none that asks what one of `without` asks, nor has its working."""
    chance = random.Random(seed)
    prompts, workings = {record.prompt for record in without}, {record.text for record in without}
    kinds, weights = zip(*_KINDS, strict=True)
    while True:
        prompt, lines, answer = chance.choices(kinds, weights)[0](chance)
        record = Record("\n".join([*lines, f"Answer: {answer}"]), prompt=prompt)
        if prompt not in prompts and record.text not in workings:
            yield record


def _number(chance: random.Random) -> tuple[int, int]:
    """Two numbers of two to four digits, small ones more often."""
    low, high = chance.choices(((2, 99), (100, 999), (1000, 9999)), (5, 3, 2))[0]
    return chance.randint(low, high), chance.randint(low, high)


def _sum(chance: random.Random) -> Exercise:
    a, b = _number(chance)
    form = chance.choice(("What is {} + {}?", "{} + {} = ?", "Add {} and {}.", "Calculate {} plus {}."))
    return form.format(a, b), [f"{a} + {b} = {a + b}"], a + b


def _difference(chance: random.Random) -> Exercise:
    a, b = _number(chance)
    form = chance.choice(("What is {} - {}?", "{} - {} = ?", "Subtract {1} from {0}.", "Calculate {} minus {}."))
    return form.format(a, b), [f"{a} - {b} = {a - b}"], a - b


def _product(chance: random.Random) -> Exercise:
    x, y = (chance.randint(2, chance.choice((12, 99, 99))) for _ in "xy")
    form = chance.choice(("What is {} * {}?", "What is {} times {}?", "{} x {} = ?", "Multiply {} by {}."))
    tens, ones = y // 10 * 10, y % 10
    lines = [f"{x} * {y} = {x * y}"]
    if x > 12 and tens and ones:
        lines = [f"{x} * {tens} = {x * tens}", f"{x} * {ones} = {x * ones}", f"{x * tens} + {x * ones} = {x * y}"]
    return form.format(x, y), lines, x * y


def _quotient(chance: random.Random) -> Exercise:
    by, result = chance.randint(2, 12), chance.randint(2, 60)
    form = chance.choice(("What is {} / {}?", "{} divided by {} = ?", "Divide {} by {}."))
    return form.format(by * result, by), [f"{by * result} / {by} = {result}"], result


def _remainder(chance: random.Random) -> Exercise:
    a, b = chance.randint(20, 200), chance.randint(2, 12)
    form = chance.choice(("What is {} mod {}?", "What is the remainder when {} is divided by {}?"))
    whole = a // b * b
    return form.format(a, b), [f"{b} * {a // b} = {whole}", f"{a} - {whole} = {a - whole}"], a - whole


def _divisor(chance: random.Random) -> Exercise:
    a, b = chance.randint(4, 90), chance.randint(4, 90)
    answer = math.gcd(a, b)
    return f"What is the greatest common divisor of {a} and {b}?", [f"gcd({a}, {b}) = {answer}"], answer


def _multiple(chance: random.Random) -> Exercise:
    a, b = chance.randint(2, 20), chance.randint(2, 20)
    answer = math.lcm(a, b)
    return f"What is the least common multiple of {a} and {b}?", [f"lcm({a}, {b}) = {answer}"], answer


def _brackets(chance: random.Random) -> Exercise:
    a, b, c = chance.randint(2, 20), chance.randint(2, 20), chance.randint(2, 12)
    form = chance.choice(("Evaluate ({} + {}) * {}.", "What is ({} + {}) * {}?"))
    return form.format(a, b, c), [f"{a} + {b} = {a + b}", f"{a + b} * {c} = {(a + b) * c}"], (a + b) * c


def _precedence(chance: random.Random) -> Exercise:
    a, b, c, sign = chance.randint(2, 60), chance.randint(2, 12), chance.randint(2, 12), chance.choice((1, -1))
    form = chance.choice(("Evaluate {} {} {} * {}.", "What is {} {} {} * {}?"))
    operator, answer = "+" if sign > 0 else "-", a + sign * b * c
    lines = [f"{b} * {c} = {b * c}", f"{a} {operator} {b * c} = {answer}"]
    return form.format(a, operator, b, c), lines, answer


def _equation(chance: random.Random) -> Exercise:
    a, b, x, sign = chance.randint(2, 12), chance.randint(1, 40), chance.randint(-12, 20), chance.choice((1, -1))
    there, back = ("+", "-") if sign > 0 else ("-", "+")
    right = a * x + sign * b
    asked = f"{a}x {there} {b} = {right}"
    form = chance.choice(("Solve for x: {}", "If {}, what is x?" if sign > 0 else "If {}, find x."))
    lines = [f"{a}x = {right} {back} {b} = {a * x}", f"x = {a * x} / {a} = {x}"]
    return form.format(asked), lines, x


def _rectangle(chance: random.Random) -> Exercise:
    a, b = chance.randint(2, 40), chance.randint(2, 40)
    if chance.random() < 0.5:
        return f"What is the area of a rectangle with length {a} and width {b}?", [f"area = {a} * {b} = {a * b}"], a * b
    half = a + b
    lines = [f"{a} + {b} = {half}", f"perimeter = 2 * {half} = {2 * half}"]
    return f"What is the perimeter of a rectangle with length {a} and width {b}?", lines, 2 * half


def _list(chance: random.Random) -> Exercise:
    kind = chance.choice(("sum", "largest", "smallest", "average", "average", "average"))
    numbers = [chance.randint(1, 50) for _ in range(chance.randint(3, 5))]
    if kind == "average":
        numbers = [chance.randint(2, 20) for _ in range(chance.randint(2, 5))]
        numbers[-1] += -sum(numbers) % len(numbers)
    listed, total, count = ", ".join(map(str, numbers)), sum(numbers), len(numbers)
    added = f"{' + '.join(map(str, numbers))} = {total}"
    if kind == "sum":
        return f"What is the sum of the numbers {listed}?", [added], total
    if kind == "average":
        return f"What is the average of {listed}?", [added, f"{total} / {count} = {total // count}"], total // count
    answer = max(numbers) if kind == "largest" else min(numbers)
    return f"What is the {kind} of the numbers {listed}?", [f"The {kind} number is {answer}."], answer


def _sequence(chance: random.Random) -> Exercise:
    first, step = chance.randint(1, 30), chance.randint(2, 12)
    shown = [first + step * n for n in range(4)]
    form = chance.choice(("What is the next number in the sequence {}?", "Continue the sequence: {}, ..."))
    answer = shown[-1] + step
    lines = [f"Each step adds {step}.", f"{shown[-1]} + {step} = {answer}"]
    return form.format(", ".join(map(str, shown))), lines, answer


def _percentage(chance: random.Random) -> Exercise:
    share, whole = 5 * chance.randint(1, 16), 20 * chance.randint(1, 50)
    answer = whole * share // 100
    form = chance.choice(("What is {}% of {}?", "Find {} percent of {}."))
    return form.format(share, whole), [f"{share}% of {whole} = {whole} * {share} / 100 = {answer}"], answer


def _conversion(chance: random.Random) -> Exercise:
    large, small, factor = chance.choice(_UNITS)
    n = chance.randint(2, 40)
    prompt = chance.choice((f"Convert {n} {large} to {small}.", f"How many {small} are in {n} {large}?"))
    return prompt, [f"{n} * {factor} = {n * factor}"], n * factor


def _story(chance: random.Random) -> Exercise:
    (who, other), what = chance.sample(_NAMES, 2), chance.choice(_THINGS)
    return chance.choice((_gained, _lost, _grouped, _shared, _paid, _eaten))(chance, who, other, what)


def _gained(chance: random.Random, who: str, other: str, what: str) -> Exercise:
    a, b = chance.randint(3, 90), chance.randint(2, 60)
    prompts = (
        f"{who} has {a} {what}. {other} gives {who} {b} more. How many {what} does {who} have now?",
        f"There are {a} {what} in a box. {who} puts in {b} more. How many {what} are in the box?",
    )
    return chance.choice(prompts), [f"{a} + {b} = {a + b}"], a + b


def _lost(chance: random.Random, who: str, other: str, what: str) -> Exercise:
    a = chance.randint(10, 99)
    b = chance.randint(2, a - 1)
    prompts = (
        f"{who} has {a} {what} and gives {b} of them to {other}. How many {what} does {who} have left?",
        f"{who} had {a} {what} but lost {b}. How many {what} are left?",
    )
    return chance.choice(prompts), [f"{a} - {b} = {a - b}"], a - b


def _grouped(chance: random.Random, who: str, other: str, what: str) -> Exercise:
    a, b = chance.randint(2, 12), chance.randint(2, 15)
    prompts = (
        f"{who} buys {a} bags with {b} {what} in each bag. How many {what} is that in total?",
        f"There are {a} boxes. Each box holds {b} {what}. How many {what} are there?",
    )
    return chance.choice(prompts), [f"{a} * {b} = {a * b}"], a * b


def _shared(chance: random.Random, who: str, other: str, what: str) -> Exercise:
    by, answer = chance.randint(2, 12), chance.randint(2, 20)
    prompts = (
        f"{who} shares {by * answer} {what} equally among {by} friends. How many {what} does each friend get?",
        f"{by * answer} {what} are packed into {by} equal boxes. How many {what} go in each box?",
    )
    return chance.choice(prompts), [f"{by * answer} / {by} = {answer}"], answer


def _paid(chance: random.Random, who: str, other: str, what: str) -> Exercise:
    a, each, extra = chance.randint(2, 9), chance.randint(2, 12), chance.randint(1, 50)
    answer = a * each + extra
    prompt = (
        f"{who} buys {a} {what} for ${each} each and pays an extra ${extra} for delivery. How much does {who} spend?"
    )
    return prompt, [f"{a} * {each} = {a * each}", f"{a * each} + {extra} = {answer}"], answer


def _eaten(chance: random.Random, who: str, other: str, what: str) -> Exercise:
    jars, each = chance.randint(2, 9), chance.randint(2, 12)
    eaten = chance.randint(1, min(50, jars * each))
    answer = jars * each - eaten
    prompt = f"{who} fills {jars} jars with {each} {what} each and then eats {eaten}. How many {what} are left?"
    return prompt, [f"{jars} * {each} = {jars * each}", f"{jars * each} - {eaten} = {answer}"], answer


_KINDS = (
    (_sum, 13), (_difference, 13), (_product, 10), (_quotient, 5), (_remainder, 4), (_divisor, 2), (_multiple, 1),
    (_brackets, 4), (_precedence, 4), (_equation, 8), (_rectangle, 4), (_list, 8), (_sequence, 2), (_percentage, 1),
    (_conversion, 2), (_story, 19),
)  # fmt: skip
