"""The texts that models are compared on and calibrated with: fixed ones, and the user's own files."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from zephyra_converters.checkpoint import Checkpoint
from zephyra_fusion.errors import ZephyraError

TEXTS, LENGTH = 32, 48
_LOGITS = 2**25  # of all fixed texts together: 128 MB of float32, whatever the vocabulary
_LONGEST = 2**26  # bytes of a text file

PROMPTS = (
    "List the ten largest files below the current folder, human readable.",
    "SELECT name, count(*) FROM orders GROUP BY name HAVING count(*) > 3;",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "A regular expression that matches an ISO date is ^\\d{4}-",
    "What is 17 * 23? Think step by step.",
    "The patient reports a headache and a temperature of 38.5 degrees since",
    "serendipity (noun): the occurrence of",
    "What is the capital of Australia, and on which river does Paris lie?",
    "Once upon a time there was a little fox who could not sleep, so",
    "Der schnelle braune Fuchs springt über den faulen Hund. 你好，世界 👋",
    '{"name": "zephyra", "version": 1, "files": ["base.gguf", "router.gguf"',
    "Hello! How are you today?",
)


def prompt_texts(checkpoint: Checkpoint) -> list[list[int]]:
    """PROMPTS in the checkpoint's own ids, and fixed random ids that reach the corners of the vocabulary.

    32 texts; fewer, 8 at least, where a large vocabulary's logits would fill the memory.
    """
    context = checkpoint.config.max_position_embeddings
    texts = []
    if checkpoint.tokenizer is not None:
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(checkpoint.tokenizer.tokenizer))
        encoded = tokenizer.encode_batch(list(PROMPTS), add_special_tokens=False)
        texts = [encoding.ids[: min(LENGTH, context)] for encoding in encoded]
    texts += random_texts(checkpoint.config.vocab_size, context, TEXTS - len(texts))
    while len(texts) > 8 and sum(map(len, texts)) * checkpoint.config.vocab_size > _LOGITS:
        texts.pop()
    return texts


def random_texts(vocab_size: int, context: int, count: int = TEXTS) -> list[list[int]]:
    """Always the same token ids for a vocabulary: long and short texts, all ids alike."""
    draw = random.Random(f"zephyra {vocab_size}")
    longest = min(LENGTH, context)
    lengths = [1, longest] + [draw.randint(1, longest) for _ in range(count - 2)]
    return [[draw.randrange(vocab_size) for _ in range(n)] for n in lengths]


def read_text(path: Path) -> str:
    """A text for calibration or verification. ZephyraError: not there, no UTF-8, longer than 64 MB."""
    try:
        if path.stat().st_size > _LONGEST:
            raise ZephyraError(f"'{path}' has {path.stat().st_size} bytes, at most {_LONGEST} of text are read")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ZephyraError(f"cannot read '{path}': {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ZephyraError(f"'{path}' is no UTF-8 text ({error.reason} at byte {error.start})") from None


def chunks(ids: Sequence[int], length: int, start: int | None) -> Iterator[list[int]]:
    """The text in pieces that are read from an empty cache; `start`, a model's first token, takes the place of each
    piece's first, as in llama-imatrix and llama-perplexity."""
    for at in range(0, len(ids), length):
        chunk = list(ids[at : at + length])
        if len(chunk) > 1:
            yield chunk if start is None else [start, *chunk[1:]]
