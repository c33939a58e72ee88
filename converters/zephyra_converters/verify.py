"""The proof of a conversion: logits of source and result on fixed texts, adapters off and on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_converters.adapter import Adapter
from zephyra_converters.checkpoint import Checkpoint
from zephyra_converters.decoder_reference import reference_logits
from zephyra_converters.loaded import LoadedGGUF
from zephyra_converters.router import RouterCheckpoint
from zephyra_converters.router_reference import router_logits
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    import numpy as np

TEXTS, LENGTH = 32, 48
EXACT = 1e-3  # of an F32 file: largest logit difference, times their spread where that is above 1
ROUTER_EXACT = 1e-2  # llama.cpp's GELU in the router's head is a table of half-precision values

Source = Callable[[Sequence[Sequence[int]]], "list[np.ndarray]"]  # texts to logits [tokens, vocabulary] each


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Source against result. `effect` is how far the adapter moves the result's logits from the base's."""

    max_abs_diff: float
    mean_abs_diff: float
    top1_agreement: float
    kl_divergence: float  # nats per token, of the source from the result
    spread: float  # standard deviation of the source's logits: the scale of the differences
    tokens: int
    effect: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


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
    """PROMPTS in the checkpoint's own ids, and fixed random ids that reach the corners of the vocabulary."""
    context = checkpoint.config.max_position_embeddings
    texts = []
    if checkpoint.tokenizer is not None:
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(checkpoint.tokenizer.tokenizer))
        encoded = tokenizer.encode_batch(list(PROMPTS), add_special_tokens=False)
        texts = [encoding.ids[: min(LENGTH, context)] for encoding in encoded]
    return texts + random_texts(checkpoint.config.vocab_size, context, TEXTS - len(texts))


def random_texts(vocab_size: int, context: int, count: int = TEXTS) -> list[list[int]]:
    """Always the same token ids for a vocabulary: long and short texts, all ids alike."""
    draw = random.Random(f"zephyra {vocab_size}")
    longest = min(LENGTH, context)
    lengths = [1, longest] + [draw.randint(1, longest) for _ in range(count - 2)]
    return [[draw.randrange(vocab_size) for _ in range(n)] for n in lengths]


class Proof:
    """A checkpoint's own logits on the fixed texts, computed once, and the files held against them.

    `source` stands in for the reference where another implementation is to be the judge (the torch model).
    """

    def __init__(self, checkpoint: Checkpoint, source: Source | None = None) -> None:
        self.texts = prompt_texts(checkpoint)
        self._checkpoint, self._source = checkpoint, source
        self._logits: list[np.ndarray] | None = None

    def base(self, gguf: Path, quantization: str) -> Comparison:
        """Hold a GGUF base against the checkpoint.

        ZephyraError: an F32 file is further off than `EXACT`, or any file is so far off that it is another model.
        """
        with LoadedGGUF(gguf, LENGTH) as loaded:
            theirs = [loaded.logits(ids) for ids in self.texts]
        if self._logits is None:
            tensors = self._checkpoint.tensors
            own = self._source or (lambda texts: reference_logits(self._checkpoint.config, tensors, texts))
            self._logits = own(self.texts)
        result = compare(self._logits, theirs)
        _judge(result, quantization, gguf.name)
        return result

    def adapter(
        self, base: Path, adapter: Adapter, gguf: Path, quantization: str, source: Source | None = None
    ) -> Comparison:
        """The same with the adapter on at weight 1; one that changes nothing, or breaks everything, is an error.

        `quantization` is F32 where both the base and the adapter are, and else the coarser one's.
        """
        import numpy as np

        with LoadedGGUF(base, LENGTH) as loaded:
            without = [loaded.logits(ids) for ids in self.texts]
            loaded.add_adapter("adapter", gguf)
            loaded.set_adapters({"adapter": 1.0})
            theirs = [loaded.logits(ids) for ids in self.texts]
        effect = float(np.mean([np.abs(on - off).mean() for on, off in zip(theirs, without, strict=True)]))
        if effect == 0.0:
            raise ZephyraError(
                f"the adapter {adapter.path} changes nothing: every logit is the base's own",
                hint="it was never trained (B is zero), or its weights are lost",
            )
        config, tensors = self._checkpoint.config, self._checkpoint.tensors
        ours = source(self.texts) if source else reference_logits(config, tensors, self.texts, adapter.delta)
        result = compare(ours, theirs, effect)
        _judge(result, quantization, gguf.name)
        return result


def verify_router(router: RouterCheckpoint, gguf: Path, quantization: str) -> Comparison:
    """Hold the classifier's logits against the router's own arithmetic."""
    texts = random_texts(router.config.vocab_size, router.config.max_tokens)
    labels = len(router.config.labels)
    with LoadedGGUF(gguf, LENGTH, classifier=True) as loaded:
        theirs = [loaded.class_logits(ids, labels)[None] for ids in texts]
    result = compare([logits[None] for logits in router_logits(router, texts)], theirs)
    _judge(result, quantization, gguf.name, ROUTER_EXACT)
    return result


def compare(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], effect: float | None = None) -> Comparison:
    """`ours` are the source's logits, `theirs` the result's, `[tokens, choices]` each."""
    import numpy as np

    source, result = np.concatenate(ours).astype(np.float64), np.concatenate(theirs).astype(np.float64)
    if not np.isfinite(result).all():
        raise ZephyraError("the converted model computes NaN or infinite logits")
    diff = np.abs(source - result)
    log_p, log_q = _log_softmax(source), _log_softmax(result)
    return Comparison(
        max_abs_diff=float(diff.max()),
        mean_abs_diff=float(diff.mean()),
        top1_agreement=float((source.argmax(-1) == result.argmax(-1)).mean()),
        kl_divergence=max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())),
        spread=float(source.std()),
        tokens=len(source),
        effect=effect,
    )


def _log_softmax(x: np.ndarray) -> np.ndarray:
    import numpy as np

    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _judge(result: Comparison, quantization: str, name: str, exact: float = EXACT) -> None:
    limit = exact * max(1.0, result.spread)
    if quantization == "F32" and result.max_abs_diff > limit:
        raise ZephyraError(
            f"{name} is not exact: logits differ by up to {result.max_abs_diff:.2g}, the limit of F32 is {limit:.2g}",
            hint="this is a fault of the converter: please report it; nothing was written",
        )
    if result.mean_abs_diff > 0.5 * result.spread:
        raise ZephyraError(
            f"{name} is another model: logits differ by {result.mean_abs_diff:.2g} on average, "
            f"their own spread is {result.spread:.2g}",
            hint=f"the quantization {quantization} is too coarse for this model, or the converter is at fault",
        )
