"""The proof of a conversion: logits of source and result on fixed texts, adapters off and on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zephyra_converters.adapter import Adapter
from zephyra_converters.checkpoint import Checkpoint
from zephyra_converters.comparison import NO_FIGURES, NO_TEXT_FIGURES, Comparison, Tally, TextFigures, log_softmax
from zephyra_converters.decoder_reference import (
    Delta,
    head_logits,
    no_adapter,
    reference_hidden,
    reference_logits,
    split_texts,
)
from zephyra_converters.loaded import LoadedGGUF
from zephyra_converters.router import RouterCheckpoint
from zephyra_converters.router_reference import router_logits
from zephyra_converters.texts import LENGTH, chunks, prompt_texts, random_texts, read_text
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    import numpy as np

EXACT = 1e-3  # of an F32 file: largest logit difference, times their spread where that is above 1
ROUTER_EXACT = 1e-2  # llama.cpp's GELU in the router's head is a table of half-precision values
TEXT_TOKENS = 4096  # of the user's text that are read, at most
_CHUNK, _CHUNK_LOGITS = 512, 2**24  # tokens of the text read in one go, fewer where the vocabulary is large
_AT_ONCE = 1024  # tokens that go through the reference together

PREFIX = "zephyra.verification."


class Proof:
    """A checkpoint's own logits on the fixed texts, computed once, and the files held against them.

    `text`: a file on which perplexity and KL divergence are measured besides.
    """

    def __init__(self, checkpoint: Checkpoint, text: Path | None = None) -> None:
        self.texts = prompt_texts(checkpoint)
        self._checkpoint = checkpoint
        self._logits: list[np.ndarray] | None = None
        self._text = read_text(text) if text is not None else None
        self._chunk = min(_CHUNK, checkpoint.config.max_position_embeddings, max(LENGTH, self._chunk_limit()))

    def _chunk_limit(self) -> int:
        return _CHUNK_LOGITS // self._checkpoint.config.vocab_size

    def placeholders(self, *, adapter: bool = False) -> dict[str, Any]:
        """The metadata keys that `gguf_file.patch_numbers` fills once the file is proven."""
        effect, text = 0.0 if adapter else None, NO_TEXT_FIGURES if self._text is not None else None
        return dict(figures(replace(NO_FIGURES, effect=effect, text=text)))

    def base(self, gguf: Path, quantization: str, *, with_text: bool = True) -> Comparison:
        """Hold a GGUF base against the checkpoint.

        ZephyraError: an F32 file is further off than `EXACT`, or any file is so far off that it is another model.
        """
        if self._logits is None:
            self._logits = reference_logits(self._checkpoint.config, self._checkpoint.tensors, self.texts)
        tally, text = Tally(), None
        with LoadedGGUF(gguf, max(LENGTH, self._chunk)) as loaded:
            for ids, ours in zip(self.texts, self._logits, strict=True):
                tally.add(ours, loaded.logits(ids))
            if with_text and self._text is not None:
                text = self._text_figures(loaded, self._text, no_adapter)
        result = tally.result(text=text)
        _judge(result, quantization, gguf.name)
        return result

    def adapter(self, base: Path, adapter: Adapter, gguf: Path, quantization: str) -> Comparison:
        """The same with the adapter on at weight 1; one that changes nothing, or changes everything, is an error.

        `quantization` is F32 where both the base and the adapter are, and else the coarser one's.
        """
        config, tensors = self._checkpoint.config, self._checkpoint.tensors
        tally, moved, text = Tally(), Tally(), None
        ours = reference_logits(config, tensors, self.texts, adapter.delta)
        with LoadedGGUF(base, max(LENGTH, self._chunk)) as loaded:
            loaded.add_adapter("adapter", gguf)
            for ids, expected in zip(self.texts, ours, strict=True):
                loaded.set_adapters({})
                without = loaded.logits(ids)
                loaded.set_adapters({"adapter": 1.0})
                switched_on = loaded.logits(ids)
                tally.add(expected, switched_on)
                moved.add(without, switched_on)
            if self._text is not None:
                text = self._text_figures(loaded, self._text, adapter.delta)
        _judge_effect(moved, adapter)
        result = tally.result(effect=moved.mean_abs_diff, text=text)
        _judge(result, quantization, gguf.name)
        return result

    def _text_figures(self, loaded: LoadedGGUF, text: str, delta: Delta) -> TextFigures:
        """Perplexity of both and what lies between them, on the first `TEXT_TOKENS` tokens."""
        import numpy as np

        config, tensors = self._checkpoint.config, self._checkpoint.tensors
        pieces = list(chunks(loaded.tokenize(text, False)[:TEXT_TOKENS], self._chunk, loaded.first_token))
        if sum(map(len, pieces)) < LENGTH:
            raise ZephyraError(f"the text to verify on has fewer than {LENGTH} tokens", hint="give a longer one")
        tally, losses, count = Tally(), np.zeros(2), 0
        together = max(1, _AT_ONCE // self._chunk)
        for at in range(0, len(pieces), together):
            group = pieces[at : at + together]
            hidden = split_texts(reference_hidden(config, tensors, group, delta), group)
            for ids, states in zip(group, hidden, strict=True):
                ours, theirs = head_logits(config, tensors, states, delta), loaded.logits(ids)
                tally.add(ours, theirs)
                losses += [_loss(ours, ids), _loss(theirs, ids)]
                count += len(ids) - 1
        source, result = np.exp(losses / count)
        return TextFigures(
            perplexity_source=float(source),
            perplexity=float(result),
            text_kl_divergence=tally.kl_divergence,
            text_top1_agreement=tally.top1_agreement,
            text_tokens=count,
        )


def verify_router(router: RouterCheckpoint, gguf: Path, quantization: str) -> Comparison:
    """Hold the classifier's logits against the router's own arithmetic."""
    texts = random_texts(router.config.vocab_size, router.config.max_tokens)
    labels, tally = len(router.config.labels), Tally()
    with LoadedGGUF(gguf, LENGTH, classifier=True) as loaded:
        for ids, ours in zip(texts, router_logits(router, texts), strict=True):
            tally.add(ours[None], loaded.class_logits(ids, labels)[None])
    _judge(tally.result(), quantization, gguf.name, ROUTER_EXACT)
    return tally.result()


def figures(comparison: Comparison) -> Mapping[str, float | int]:
    """As the metadata of the file that they are about."""
    return {PREFIX + key: value for key, value in comparison.to_dict().items()}


def _loss(logits: np.ndarray, ids: list[int]) -> float:
    """Negative log-likelihood of each next token, summed up."""
    import numpy as np

    total = 0.0
    for at in range(0, len(ids) - 1, 16):
        wanted = ids[at + 1 : at + 17]
        rows = log_softmax(logits[at : at + len(wanted)].astype(np.float64))
        total -= float(rows[np.arange(len(wanted)), wanted].sum())
    return total


def _judge_effect(moved: Tally, adapter: Adapter) -> None:
    if moved.mean_abs_diff == 0.0:
        raise ZephyraError(
            f"the adapter {adapter.path} changes nothing: every logit is the base's own",
            hint="its weights are too small beside the base's for any logit to move",
        )
    spread = moved.result().spread
    if moved.mean_abs_diff > spread and moved.top1_agreement < 0.05:
        raise ZephyraError(
            f"the adapter {adapter.path} changes everything: logits move by {moved.mean_abs_diff:.2g} on average, "
            f"their own spread is {spread:.2g}, and {moved.top1_agreement:.0%} of the choices stay",
            hint="it belongs to another base, or its scale (lora_alpha) is wrong",
        )


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
