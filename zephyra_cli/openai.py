"""OpenAI's dialect: a JSON body to the engine's `Request`, its `Answer` to JSON objects."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from zephyra_cli.domain import AUTO, parse_domain
from zephyra_cli.engine import Answer, Request
from zephyra_cli.pack import Pack
from zephyra_cli.settings import Settings
from zephyra_fusion import __version__
from zephyra_fusion.errors import ZephyraError
from zephyra_fusion.router import NONE
from zephyra_fusion.types import Message, SamplingParams

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed")
INDIFFERENT = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")  # to the answer
# What we do not do, and the values by which a client says that it does not want it.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}
FORMS = ("response_format", "grammar")  # what the answer must follow; `grammar` is GBNF
ONLY = {True: ("messages", "max_completion_tokens"), False: ("prompt",)}  # by "is it a chat?"


class Refusal(Exception):
    """An answer with an HTTP status that is no success; `to_dict` is OpenAI's error object."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @classmethod
    def of(
        cls, error: ZephyraError, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> Refusal:
        message = f"{error.message} ({error.hint})" if error.hint else error.message
        return cls(status, message, param=param, code=code)

    def to_dict(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What a client asked for: a chat's next turn, or the continuation of a text."""

    request: Request
    model: str
    chat: bool
    stream: bool
    include_usage: bool
    id: str
    created: int

    def whole(self, answer: Answer) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": answer.finish_reason}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": answer.text, "refusal": None}
        else:
            choice["text"] = answer.text
        return {**self._head(chunk=False), "choices": [choice], "usage": _usage(answer), "zephyra": _ours(answer)}

    def opening(self) -> list[dict[str, Any]]:
        """The chunks before the first piece."""
        return [self._chunk({"role": "assistant", "content": ""})] if self.chat else []

    def piece(self, text: str) -> dict[str, Any]:
        return self._chunk({"content": text} if self.chat else text)

    def closing(self, answer: Answer) -> list[dict[str, Any]]:
        """The chunks after the last piece."""
        last = {**self._chunk({} if self.chat else "", answer.finish_reason), "zephyra": _ours(answer)}
        if not self.include_usage:
            return [last]
        return [last, {**self._head(chunk=True), "choices": [], "usage": _usage(answer)}]

    def _chunk(self, content: object, finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta" if self.chat else "text": content, "logprobs": None}
        return {**self._head(chunk=True), "choices": [{**choice, "finish_reason": finish_reason}]}

    def _head(self, *, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        named = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**named, "system_fingerprint": f"zephyra-{__version__}"}


def read_completion(body: Mapping[str, Any], *, chat: bool, pack: Pack, settings: Settings) -> Completion:
    """The body of `/v1/chat/completions` or `/v1/completions`. Refusal: anything that we would not do as it says."""
    values = {name: value for name, value in body.items() if value is not None}
    for name, value in values.items():
        if name in UNSUPPORTED and value not in UNSUPPORTED[name]:
            raise Refusal(400, f"'{name}' is not supported", param=name, code="unsupported_parameter")
        known = (
            *SAMPLING,
            *INDIFFERENT,
            *UNSUPPORTED,
            *FORMS,
            *ONLY[chat],
            "model",
            "stop",
            "stream",
            "stream_options",
        )
        if name not in known:
            raise Refusal(400, f"unknown parameter '{name}'", param=name, code="unknown_parameter")
    model, domain = _model(values, pack, settings)
    options = _take(values, "stream_options", dict, {})
    if "max_completion_tokens" in values:
        values["max_tokens"] = values["max_completion_tokens"]
    messages = _messages(values) if chat else (Message("user", _prompt(values)),)
    if chat and settings.system and all(message.role != "system" for message in messages):
        messages = (Message("system", settings.system), *messages)
    request = Request(
        messages=messages,
        params=_params(values, pack, settings),
        raw=not chat,
        domain=domain,
        stop=_stop(values),
    )
    return Completion(
        request=request,
        model=model,
        chat=chat,
        stream=_take(values, "stream", bool, False),
        include_usage=_take(options, "include_usage", bool, False),
        id=f"{'chatcmpl' if chat else 'cmpl'}-{uuid4().hex}",
        created=int(time.time()),
    )


def models(pack: Pack, created: int) -> list[dict[str, Any]]:
    """What a client may name as its model: `auto`, `none`, every domain, and the pack itself (the default)."""
    described = {name: adapter.description for name, adapter in pack.adapters.items()}
    if pack.router is not None:
        described = {AUTO: "the router chooses", **described}
    described = {pack.name: pack.description, NONE: "the bare base", **described}
    entry = {"object": "model", "created": created, "owned_by": "zephyra"}
    return [{"id": name, **entry, "description": text} for name, text in described.items()]


def _model(values: Mapping[str, Any], pack: Pack, settings: Settings) -> tuple[str, str | None]:
    """The model's name as the client gave it, and the domain that it means; a blend is `law=0.7,code=0.3`."""
    name = _take(values, "model", str, pack.name)
    if name == pack.name and name not in pack.adapters:
        return name, settings.domain
    try:
        weights = parse_domain(name, pack.adapters)
        if weights is None and pack.router is None:
            raise ZephyraError(f"model '{pack.name}' has no router, nothing is chosen by '{AUTO}'")
    except ZephyraError as error:
        raise Refusal.of(error, status=404, param="model", code="model_not_found") from None
    return name, name


def _messages(values: Mapping[str, Any]) -> tuple[Message, ...]:
    found = []
    for number, entry in enumerate(_take(values, "messages", list, [])):
        where = f"messages[{number}]"
        if not isinstance(entry, dict) or entry.get("role") not in ROLES:
            raise Refusal(400, f"{where} needs a role: {', '.join(ROLES)}", param=where)
        found.append(Message(ROLES[entry["role"]], _content(entry.get("content"), where)))
    if not any(message.role == "user" for message in found):
        raise Refusal(400, "messages holds no message of the user", param="messages")
    return tuple(found)


def _content(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(_is_text(part) for part in content):
        return "".join(part["text"] for part in content)
    raise Refusal(400, f"{where}.content must be a text, or parts of type text", param=f"{where}.content")


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _prompt(values: Mapping[str, Any]) -> str:
    prompt = values.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise Refusal(400, "prompt must be one text (no token ids, no several texts)", param="prompt")
    return prompt


def _stop(values: Mapping[str, Any]) -> tuple[str, ...]:
    stop = values.get("stop", [])
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or len(texts) > 16 or not all(isinstance(text, str) and text for text in texts):
        raise Refusal(400, "stop must be a text or a list of at most 16 texts, none of them empty", param="stop")
    return tuple(texts)


def _sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    kinds: dict[str, type] = {"max_tokens": int, "top_k": int, "seed": int}
    given = {name: _take(values, name, kinds.get(name, float), None) for name in SAMPLING if name in values}
    if "seed" in given:
        given["seed"] %= 2**32  # clients send 64 bits, signed
    return given


def _params(values: Mapping[str, Any], pack: Pack, settings: Settings) -> SamplingParams:
    form = _form(values)
    try:
        params = replace(settings, **_sampling(values)).sampling(pack.generation)
        if form:
            from zephyra_fusion.constraint import check

            params = replace(params, schema=form.get("schema", ""), grammar=form.get("grammar", ""))
            check(params)
    except ZephyraError as error:
        raise Refusal.of(error, param="response_format" if form else None) from None
    except OverflowError:
        raise Refusal(400, "a number is too large") from None
    return params


def _form(values: Mapping[str, Any]) -> dict[str, str]:
    """`response_format` as OpenAI has it (`text`, `json_object`, `json_schema`), `grammar` as llama.cpp's server."""
    form = {"grammar": grammar} if (grammar := _take(values, "grammar", str, "")) else {}
    wanted = _take(values, "response_format", dict, {"type": "text"})
    if wanted.get("type") == "json_object":
        return {**form, "schema": '{"type":"object"}'}
    if wanted.get("type") == "json_schema":
        named = wanted.get("json_schema")
        schema = named.get("schema") if isinstance(named, dict) else None
        if not isinstance(schema, dict):
            raise Refusal(400, "response_format.json_schema.schema must be an object", param="response_format")
        return {**form, "schema": json.dumps(schema, ensure_ascii=False, separators=(",", ":"))}
    if wanted.get("type") != "text":
        raise Refusal(400, "response_format.type must be text, json_object or json_schema", param="response_format")
    return form


def _take(values: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = values.get(name, default)
    if kind is float and type(value) is int:
        value = float(value)
    if name in values and type(value) is not kind:
        raise Refusal(400, f"'{name}' is {value!r:.60}, must be {_WORDS[kind]}", param=name)
    return value


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _ours(answer: Answer) -> dict[str, Any]:
    """What OpenAI's objects have no place for: who answered and why, how long it took, how to get it again."""
    whole = answer.to_dict()
    return {"weights": dict(answer.weights), **{name: whole[name] for name in ("route", "timings", "seed", "replay")}}


_WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}
