"""Records to rows of token ids: encoded once, kept on the disk, drawn in an order that the seed fixes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zephyra_fusion.chat import ASSISTANT, END, END_OF_TEXT, USER
from zephyra_fusion.sources import Record, read_records, source_file
from zephyra_fusion.tokenizer import Tokenizer

IGNORED = -100  # the label that cross-entropy skips
Ids = NDArray[np.uint16]


class TokenizedSource:
    """One source as flat ids with document borders and, per document, where its response begins."""

    def __init__(self, ids: Ids, ends: NDArray[np.int64], responses: NDArray[np.int64]) -> None:
        self.ids, self.ends, self.responses = ids, ends, responses
        self.starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    @classmethod
    def load(cls, data: Path, name: str, tokenizer_path: Path, cache: Path, *, split: str = "train") -> TokenizedSource:
        """From the cache folder, or encoded now and put there (keyed by source file and tokenizer)."""
        file = source_file(data, name, split)
        key = hashlib.sha256(tokenizer_path.read_bytes() + f"{file.resolve()} {file.stat().st_size}".encode())
        kept = cache / f"{name.replace('/', '-')}-{split}-{key.hexdigest()[:16]}.npz"
        if not kept.exists():
            source = cls.encode(read_records(data, name, split), Tokenizer(tokenizer_path))
            cache.mkdir(parents=True, exist_ok=True)
            partial = kept.with_suffix(".partial.npz")
            np.savez(partial, ids=source.ids, ends=source.ends, responses=source.responses)
            partial.rename(kept)
        with np.load(kept) as arrays:
            return cls(arrays["ids"], arrays["ends"], arrays["responses"])

    @classmethod
    def encode(cls, records: Iterable[Record], tokenizer: Tokenizer) -> TokenizedSource:
        end_of_text, user, assistant, end = (tokenizer.id(t) for t in (END_OF_TEXT, USER, ASSISTANT, END))
        pieces, lengths, responses = [], [], []
        batch: list[Record] = []

        def flush() -> None:
            prompts = tokenizer.encode_batch([r.prompt or "" for r in batch])
            texts = tokenizer.encode_batch([r.text for r in batch])
            for record, prompt, text in zip(batch, prompts, texts, strict=True):
                if record.prompt is None:
                    ids = [*text, end_of_text]
                    responses.append(0)
                else:
                    ids = [user, *prompt, end, assistant, *text, end]
                    responses.append(len(prompt) + 3)
                pieces.append(np.array(ids, dtype=np.uint16))
                lengths.append(len(ids))
            batch.clear()

        for record in records:
            batch.append(record)
            if len(batch) == 1024:
                flush()
        if batch:
            flush()
        return cls(np.concatenate(pieces), np.cumsum(lengths), np.array(responses, dtype=np.int64))

    def rows(self, length: int, seed: int, *, response_only: bool, pad: int) -> Iterator[tuple[Ids, NDArray[np.int64]]]:
        """Endless rows of `length` inputs and labels; each epoch in an order of its own, fixed by the seed.

        Whole documents are laid one after another; one that does not fit any more opens the next row, and one longer
        than a row is cut into pieces. Labels of padding (and of prompts, with `response_only`) are `IGNORED`.
        """
        epoch = 0
        inputs, labels, filled = self._empty(length, pad)
        while True:
            order = np.random.default_rng([seed, epoch]).permutation(len(self))
            for document in order:
                start, end = int(self.starts[document]), int(self.ends[document])
                ids = self.ids[start:end]
                targets = ids[1:].astype(np.int64)
                if response_only:
                    targets[: max(0, int(self.responses[document]) - 1)] = IGNORED
                ids = ids[:-1]
                while len(ids):
                    room = length - filled
                    if room < len(ids) and (room < 32 or len(ids) <= length):
                        yield inputs, labels
                        inputs, labels, filled = self._empty(length, pad)
                        room = length
                    taken = min(room, len(ids))
                    inputs[filled : filled + taken] = ids[:taken]
                    labels[filled : filled + taken] = targets[:taken]
                    filled += taken
                    ids, targets = ids[taken:], targets[taken:]
            epoch += 1

    @staticmethod
    def _empty(length: int, pad: int) -> tuple[Ids, NDArray[np.int64], int]:
        return np.full(length, pad, dtype=np.uint16), np.full(length, IGNORED, dtype=np.int64), 0


class Mixture:
    """Rows drawn from several sources by their shares; the same seed gives the same rows."""

    def __init__(
        self,
        sources: Mapping[str, TokenizedSource],
        shares: Mapping[str, float],
        *,
        length: int,
        seed: int,
        pad: int,
        response_only: bool = False,
    ) -> None:
        self.names = sorted(shares)
        total = sum(shares.values())
        self.shares = [shares[name] / total for name in self.names]
        self.random = np.random.default_rng([seed, 1])
        self.streams = {
            name: sources[name].rows(length, seed + index, response_only=response_only, pad=pad)
            for index, name in enumerate(self.names)
        }

    def batch(self, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`size` rows: inputs and labels `[size, length]`."""
        names = self.random.choice(len(self.names), size=size, p=self.shares)
        rows = [next(self.streams[self.names[n]]) for n in names]
        return np.stack([r[0] for r in rows]).astype(np.int64), np.stack([r[1] for r in rows])
