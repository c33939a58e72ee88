"""Chats as segments: control tokens by id, what people wrote never parsed for them.

A template is data (four pieces per role), so that rendering needs no template language and no text can forge a turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.types import Message, Segment
from zephyra_fusion.values import dataclass, field

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD, SYSTEM, USER, ASSISTANT, END)


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """What stands before and after each role's content, and what opens the answer."""

    before: dict[str, str] = field(default_factory=lambda: {"system": SYSTEM, "user": USER, "assistant": ASSISTANT})
    after: dict[str, str] = field(default_factory=lambda: {"system": END, "user": END, "assistant": END})
    answer: str = ASSISTANT
    start: str = ""

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> list[Segment]:
        """The conversation as segments; with `answer`, the assistant's turn is opened at the end."""
        segments = [Segment(self.start, control=True)] if self.start else []
        for message in messages:
            if message.role not in self.before:
                raise ZephyraError(f"unknown role '{message.role}'", hint=did_you_mean(message.role, self.before))
            segments.append(Segment(self.before[message.role], control=True))
            segments.append(Segment(message.content))
            segments.append(Segment(self.after[message.role], control=True))
        if answer:
            segments.append(Segment(self.answer, control=True))
        return [segment for segment in segments if segment.text]


ZEPHYRA = ChatTemplate()

# The same template for other tools (tokenizer_config.json, GGUF's tokenizer.chat_template).
ZEPHYRA_JINJA = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
