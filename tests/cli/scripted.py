"""A backend that says what it is told to: for the logic above the tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from zephyra_cli.backends.protocol import GenerationUsage
from zephyra_cli.chat import Chat
from zephyra_cli.conversations import Conversations
from zephyra_cli.engine import Engine
from zephyra_cli.log import Log
from zephyra_cli.pack import Adapter, Pack
from zephyra_cli.session import Session
from zephyra_cli.settings import Settings
from zephyra_fusion.chat import SPECIAL_TOKENS
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.types import SamplingParams, Token

FIRST_BYTE = len(SPECIAL_TOKENS)  # ids: the special tokens, then the 256 bytes, then the script's pieces
STOP = SPECIAL_TOKENS.index("<|end|>")


class ScriptedBackend:
    """Byte tokens in; out come `pieces`, one a token, then the stop token. An exception among them is raised there."""

    name, device, context_length, threads = "scripted", "cpu", 4096, 1
    stop_ids = frozenset({STOP})

    def __init__(self, *pieces: bytes | BaseException) -> None:
        self.pieces = pieces
        self.vocab_size = FIRST_BYTE + 256 + len(pieces)
        self.usage = GenerationUsage()
        self.prompts: list[list[int]] = []
        self.resident: list[str] = []
        self.weights: dict[str, float] = {}
        self.closed_early = False

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        if special and text in SPECIAL_TOKENS:
            return [SPECIAL_TOKENS.index(text)]
        return [FIRST_BYTE + byte for byte in text.encode()]

    def token_bytes(self, token_id: int) -> bytes:
        if token_id < FIRST_BYTE:
            return b""
        piece = self.pieces[token_id - FIRST_BYTE - 256]
        assert isinstance(piece, bytes)
        return piece

    def add_adapter(self, name: str, path: Path) -> None:
        if name in self.resident:
            raise ZephyraError(f"adapter '{name}' is resident twice")
        self.resident.append(name)

    def set_adapters(self, weights: Mapping[str, float]) -> float:
        assert set(weights) <= set(self.resident)
        self.weights = dict(weights)
        return 0.25

    def cached_tokens(self, prompt: Sequence[int], weights: Mapping[str, float]) -> int:
        """As if nothing but the last prompt were kept, and only for the last weights."""
        if weights != self.weights or not self.prompts:
            return 0
        same = zip(prompt[:-1], self.prompts[-1], strict=False)
        return next((at for at, (a, b) in enumerate(same) if a != b), min(len(prompt) - 1, len(self.prompts[-1])))

    def speculate(self, draft: object) -> None:
        raise NotImplementedError

    def generate(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[Token]:
        self.prompts.append(list(prompt))
        given, ended = 0, False
        try:
            for at, piece in enumerate(self.pieces):
                if isinstance(piece, BaseException):
                    raise piece
                given += 1
                if given == params.max_tokens:
                    ended = True
                    yield Token(FIRST_BYTE + 256 + at, "length")
                    return
                yield Token(FIRST_BYTE + 256 + at)
            given, ended = given + 1, True
            yield Token(STOP, "stop")
        finally:
            self.closed_early = not ended
            self.usage = GenerationUsage(
                prompt_tokens=len(prompt), completion_tokens=given, prefill_ms=2.0, decode_ms=4.0
            )

    def logits(self, prompt: Sequence[int]) -> list[list[float]]:
        raise NotImplementedError

    def close(self) -> None:
        pass


def scripted_chat(root: Path, home: Path) -> Chat:
    """A chat that answers "yes", with a domain `shell`; it is kept in `home`."""
    for name in ("base.gguf", "shell.gguf"):
        (root / name).touch()
    pack = Pack(root=root, name="test", base="base.gguf", adapters={"shell": Adapter(file="shell.gguf")})
    session = Session(Engine(pack, ScriptedBackend(b"yes")), SamplingParams(), lambda text: None, domain="none")
    log = Log(Conversations(home / "conversations.db", lambda text: None))
    return Chat(session=session, settings=Settings(), log=log)


def kept(chat: Chat) -> list[str]:
    """The questions in the log of the conversation."""
    assert chat.log.conversations is not None and chat.log.conversation is not None
    return [turn.question for turn in chat.log.conversations.read(chat.log.conversation)[0]]
