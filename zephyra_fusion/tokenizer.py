"""Byte-level BPE: training it and reading it, on Hugging Face `tokenizers`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from zephyra_fusion.chat import SPECIAL_TOKENS
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    import tokenizers

# Qwen2's pre-tokenizer: single digits, contractions, runs of letters. llama.cpp knows it as `pre=qwen2`.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer:
    """Text to ids and back; control tokens only where a segment says so."""

    def __init__(self, path: Path, *, text: str | None = None) -> None:
        """The tokenizer of a `tokenizer.json`; `text` is its content where it is not in the file itself."""
        import tokenizers

        try:
            text = path.read_text(encoding="utf-8") if text is None else text
            self._plain = tokenizers.Tokenizer.from_str(text)
            self._special = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises bare Exception
            raise ZephyraError(f"{path} is not a tokenizer: {error}") from None
        self._plain.encode_special_tokens = True  # what looks like a control token is text

    @property
    def vocab_size(self) -> int:
        return int(self._plain.get_vocab_size())

    def vocabulary(self) -> dict[str, int]:
        """Every entry with its id."""
        return dict(self._plain.get_vocab())

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        tokenizer = self._special if special else self._plain
        with _panics_explained():
            return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        with _panics_explained():
            return [e.ids for e in self._plain.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._plain.decode(list(ids), skip_special_tokens=False))

    def words(self, size: int) -> list[str]:
        """The first `size` tokens as the file spells them; empty where an id has none."""
        return [self._plain.id_to_token(token) or "" for token in range(size)]

    def pieces(self) -> list[bytes]:
        """The bytes that every id stands for, none for control tokens; ids without a token have none either."""
        added = self._plain.get_added_tokens_decoder()
        pieces = [b""] * (max(self._plain.get_vocab(with_added_tokens=True).values()) + 1)
        for word, token in self._plain.get_vocab(with_added_tokens=True).items():
            if token in added:
                pieces[token] = b"" if added[token].special else word.encode()
            else:
                pieces[token] = bytes(_BYTES[letter] for letter in word)
        return pieces

    def id(self, token: str) -> int:
        found = self._plain.token_to_id(token)
        if found is None:
            raise ZephyraError(f"the tokenizer has no token '{token}'")
        return int(found)


@contextmanager
def _panics_explained() -> Iterator[None]:
    """A `tokenizer.json` may hold patterns that never end; its library then gives up by a panic of Rust.

    That is an exception of no importable type, and no `Exception`.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ZephyraError(
            f"the tokenizer fails on this text: {error}", hint="its tokenizer.json is at fault"
        ) from None


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: printable ones stand for themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_letters()


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE of `vocab_size` entries; special tokens take the first ids in their order.

    ZephyraError: they and the 256 bytes alone are more.
    """
    if vocab_size < (least := 256 + len(SPECIAL_TOKENS)):
        raise ZephyraError(f"vocab_size is {vocab_size}, bytes and special tokens alone are {least}")
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as HFTokenizer

    tokenizer = HFTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
