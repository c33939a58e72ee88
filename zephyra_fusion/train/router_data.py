"""What the router learns from: prompts with the name of their domain, and text of no domain."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from zephyra_fusion.sources import read_lines, read_records, source_file
from zephyra_fusion.train.config import RouterRecipe

NONE = "none"
_LEADS = ("please ", "hey, ", "hi, ", "can you help? ", "I need help: ", "quick question: ", "could you ", "so, ")
_TAILS = (" please", " thanks", " thank you", " asap", "?", ".", " now", " for me", " today")


def labelled_prompts(recipe: RouterRecipe) -> dict[str, list[str]]:
    """Training prompts by label; `none` gets the prompts and sentences of `none_sources`."""
    data = Path(recipe.data)
    prompts: dict[str, list[str]] = {label: [] for label in recipe.labels}
    for label in recipe.labels:
        if label != NONE:
            prompts[label] = [r.prompt for r in read_records(data, f"domains/{label}") if r.prompt]
    chance = random.Random(recipe.seed)
    for name, count in recipe.none_sources.items():
        texts = [r.prompt if r.prompt else sentence(r.text, chance) for r in read_records(data, name)]
        chance.shuffle(texts)
        prompts[NONE] += texts[:count]
    return prompts


# Not to be passed on as text: shared under terms of their own, or gathered from unnamed places.
WITHHELD = ("alexa/Topical-Chat", "uberspot/OpenTriviaQA", "nishkalavallabhi/OneStopEnglishCorpus")
_NONE_TEXTS = ("pretrain/dialogues", "pretrain/wikipedia", "pretrain/news_misc")
_LONGEST = 400  # characters of an example


def drawn_examples(data: Path, labels: Sequence[str], count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(prompt, label): whose features a pack carries, for newcomers to its router; `count` a domain, thrice for none.

    Half of what stands for none is chat, half sentences; only what may be passed on.
    """
    chance, found = random.Random(seed), []

    def take(name: str, label: str, number: int) -> None:
        most = 3000 if name in _NONE_TEXTS else None  # those are long
        lines = [line for line in islice(read_lines(source_file(data, name)), most) if allowed(line)]
        for line in chance.sample(lines, min(number, len(lines))):
            found.append(((line.get("prompt") or sentence(line["text"], chance))[:_LONGEST], label))

    def allowed(line: Mapping[str, Any]) -> bool:
        return not str(line.get("source", "")).startswith(WITHHELD)

    for label in labels:
        if label != NONE:
            take(f"domains/{label}", label, count)
    take("chat", NONE, 3 * count // 2)
    for name in _NONE_TEXTS:
        take(name, NONE, count // 2)
    return list(dict.fromkeys(found))


def sentence(text: str, chance: random.Random) -> str:
    """One to three consecutive sentences from anywhere in the text, without a speaker's label; or a piece of one."""
    parts = [p for p in re.split(r"(?<=[.!?])\s+|\n+", text[:20000]) if len(p) > 8] or [text[:200]]
    start = chance.randrange(len(parts))
    if chance.random() < 0.3:
        return fragment(parts[start], chance, chance.randrange(2, 9))
    words = " ".join(parts[start : start + chance.choice((1, 1, 1, 2, 3))])
    return re.sub(r"^[AB]: ", "", words)


def fragment(text: str, chance: random.Random, length: int) -> str:
    """`length` consecutive words of the text."""
    words = text.split()
    start = chance.randrange(max(1, len(words) - length + 1))
    return " ".join(words[start : start + length]) or text


def framed(frame: str, prompts: Mapping[str, list[str]], label: str, chance: random.Random) -> str:
    """A wording that the data never use: the frame, then words of the label's own prompts or of no domain's."""
    source = prompts[label if chance.random() < 0.4 else NONE]
    words = fragment(chance.choice(source), chance, chance.randrange(1, 7)).rstrip("?.!:,")
    return f"{frame} {words}"


def disturb(prompt: str, chance: random.Random) -> str:
    """The prompt as people would type it: other case, words left out, no punctuation, a typo, a polite frame."""
    words = prompt.split()
    if len(words) > 3 and chance.random() < 0.3:
        prompt = " ".join(word for word in words if chance.random() < 0.75) or prompt
    if len(words) > 6 and chance.random() < 0.1:
        prompt = fragment(prompt, chance, chance.randrange(5, len(words)))
    kind = chance.random()
    if kind < 0.20:
        prompt = prompt.lower()
    elif kind < 0.30:
        prompt = prompt.rstrip("?.!:")
    elif kind < 0.42:
        prompt = chance.choice(_LEADS) + prompt[:1].lower() + prompt[1:]
    elif kind < 0.52:
        prompt = prompt.rstrip("?.!") + chance.choice(_TAILS)
    elif kind < 0.62:
        prompt = prompt[:1].lower() + prompt[1:]
    if chance.random() < 0.2 and len(prompt) > 12:
        for _ in range(chance.choice((1, 1, 2))):
            at = chance.randrange(1, len(prompt) - 2)
            swap, drop = prompt[at + 1] + prompt[at], prompt[at + 1]
            prompt = prompt[:at] + chance.choice((swap, drop)) + prompt[at + 2 :]
    return prompt


def truncate(ids: Sequence[int], limit: int) -> list[int]:
    """The first and the last half of `limit` ids: where a prompt says what it wants."""
    if len(ids) <= limit:
        return list(ids)
    return [*ids[: limit // 2], *ids[len(ids) - (limit - limit // 2) :]]
