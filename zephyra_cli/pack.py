"""A pack: the folder of one model, described by its manifest `zephyra.json`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from zephyra_cli.detectors import Detector
from zephyra_cli.manifest import check, leads_out, shown, take
from zephyra_fusion.chat import ZEPHYRA, ChatTemplate
from zephyra_fusion.errors import ZephyraError, did_you_mean
from zephyra_fusion.router import NONE, Router
from zephyra_fusion.types import SamplingParams
from zephyra_fusion.values import dataclass

MANIFEST = "zephyra.json"
FORMAT, VERSION = "zephyra-pack", 1
_MOST_BYTES = 4 * 2**20  # of a manifest
LONGEST_DOMAIN = 64  # characters of its name
LONGEST_NAME, LONGEST_PATH = 200, 1000  # of a file: bytes of one name, characters of all


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What the manifest says of one file: sha256 (hex), size in bytes, licence and where it came from."""

    sha256: str
    size: int
    license: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    file: str
    description: str = ""
    rank: int = 0


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a pulled pack came from: repository, the commit that it is pinned to, and the reference that was given."""

    repository: str
    commit: str
    reference: str = ""


@dataclass(frozen=True, kw_only=True)
class Pack:
    """One base, any number of adapters, at most one router and one draft, a chat template, defaults, hashes.

    `chat` is None for a bare .gguf (null in a manifest): its own template, if it has one, is inside the file.
    """

    root: Path
    name: str
    base: str
    description: str = ""
    license: str = ""
    architecture: str = ""
    parameters: int = 0
    context_length: int = 0
    quantization: str = ""
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    router: Router | None = None
    router_file: str = ""
    newcomers: tuple[Detector, ...] = ()
    newcomers_file: str = ""
    features_file: str = ""
    draft: str | None = None
    chat: ChatTemplate | None = ZEPHYRA
    generation: SamplingParams = SamplingParams()
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    source: Source | None = None

    @classmethod
    def read(cls, root: Path) -> Pack:
        """The pack in the folder `root`. ZephyraError: no manifest, a damaged one, or one of a newer zephyra."""
        return cls.parse(load_manifest(root / MANIFEST), root)

    @classmethod
    def parse(cls, values: Mapping[str, Any], root: Path) -> Pack:
        """The pack that a manifest describes, as it would be in the folder `root`. ZephyraError: as `read`."""
        if values.get("format") != FORMAT:
            found = shown(values.get("format"))
            raise ZephyraError(f"'{root / MANIFEST}' is no manifest: format is {found}, not '{FORMAT}'")
        if (version := take(values, "version", int, "")) > VERSION:
            raise ZephyraError(
                f"'{root}' was made by a newer zephyra: pack version {version}, this one reads up to {VERSION}",
                hint="update zephyra",
            )
        try:
            return cls._from_manifest(root, values)
        except ZephyraError as error:
            raise ZephyraError(f"'{root / MANIFEST}': {error.message}", hint=error.hint) from None

    @classmethod
    def _from_manifest(cls, root: Path, values: Mapping[str, Any]) -> Pack:
        base = take(values, "base", dict, "")
        adapters = {}
        for name, entry in take(values, "adapters", dict, "", {}).items():
            check_domain_name(name)
            where = f"adapters.{name}."
            adapters[name] = Adapter(
                file=_file(check(entry, dict, where[:-1]), where),
                description=take(entry, "description", str, where, ""),
                rank=take(entry, "rank", int, where, 0),
            )
        router = take(values, "router", dict, "") if values.get("router") is not None else None
        records = {
            safe_path(name): FileRecord(
                sha256=take(check(entry, dict, f"files.{name}"), "sha256", str, f"files.{name}."),
                size=take(entry, "size", int, f"files.{name}."),
                license=take(entry, "license", str, f"files.{name}.", ""),
                source=take(entry, "source", str, f"files.{name}.", ""),
            )
            for name, entry in take(values, "files", dict, "", {}).items()
        }
        check_cases(adapters, "domains")
        check_cases(records, "files")
        draft = values.get("draft")
        return cls(
            root=root,
            name=take(values, "name", str, "", root.name),
            description=take(values, "description", str, "", ""),
            license=take(values, "license", str, "", ""),
            base=_file(base, "base."),
            architecture=take(base, "architecture", str, "base.", ""),
            parameters=take(base, "parameters", int, "base.", 0),
            context_length=take(base, "context_length", int, "base.", 0),
            quantization=take(base, "quantization", str, "base.", ""),
            adapters=adapters,
            **({} if router is None else _routing(router, adapters)),
            draft=None if draft is None else _file(check(draft, dict, "draft"), "draft."),
            chat=None if (chat := values.get("chat", asdict(ZEPHYRA))) is None else _chat(check(chat, dict, "chat")),
            generation=_generation(take(values, "generation", dict, "", {})),
            files=records,
            source=_source(take(values, "source", dict, "")) if "source" in values else None,
        )

    @property
    def used(self) -> list[str]:
        """The files that an answer may need."""
        named = [self.base, *(adapter.file for adapter in self.adapters.values()), self.router_file]
        named += [self.newcomers_file, self.features_file, self.draft or ""]
        return [name for name in named if name]

    @property
    def routed(self) -> frozenset[str]:
        """The domains that the router can choose."""
        if self.router is None:
            return frozenset()
        domains = {self.router.answers.get(label, label) for label in self.router.labels}
        return frozenset(domains | {newcomer.name for newcomer in self.newcomers}) - {NONE}

    @classmethod
    def bare(cls, file: Path) -> Pack:
        """A base and nothing else: one .gguf, or a checkpoint folder."""
        name = file.resolve().name if file.is_dir() else file.stem
        return cls(root=file.parent, name=name, base=file.name, chat=None)

    def path(self, file: str) -> Path:
        """Where a file of the pack lies. ZephyraError: it is missing, or a link leads out of the pack."""
        path = self.root / file
        if not path.is_file() and not path.is_dir():  # a pipe is no file: who opens it waits for ever
            hint = f"zephyra models verify {self.root}"
            raise ZephyraError(f"model '{self.name}' lacks its file '{path}'", hint=hint)
        if self.files and leads_out(self.root, path):
            raise ZephyraError(
                f"'{path}' is a link that leads out of the pack, to '{path.resolve()}'",
                hint="put the file itself there",
            )
        return path


def check_domain_name(name: str) -> None:
    """A domain's name must be sayable on the command line: `-d NAME=W,NAME=W`."""
    plain = name.replace("-", "").replace("_", "").replace(".", "").isalnum()
    if name in ("auto", NONE) or not plain or name[0] in "-." or len(name) > LONGEST_DOMAIN:
        raise ZephyraError(
            f"'{name[: LONGEST_DOMAIN + 1]}' cannot be the name of a domain",
            hint=f"at most {LONGEST_DOMAIN} letters, digits, '-', '_' and '.', neither '-' nor '.' first; "
            "not 'auto' or 'none'",
        )


def check_cases(names: Iterable[str], what: str) -> None:
    """ZephyraError: two names are one on a file system that does not tell upper from lower case."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise ZephyraError(f"the {what} '{other}' and '{name}' differ in upper and lower case alone")


def safe_path(file: str) -> str:
    """`file` if it stays inside the pack on every system. ZephyraError otherwise."""
    check(file, str, "a file's path")
    parts = PurePosixPath(file).parts
    if len(file) > LONGEST_PATH or any(len(part.encode("utf-8", "replace")) > LONGEST_NAME for part in parts):
        raise ZephyraError(
            f"path '{file[:60]}…' is too long: at most {LONGEST_NAME} bytes a name and {LONGEST_PATH} in all"
        )
    if not parts or file != "/".join(parts) or parts[0] == "/" or ".." in parts or set(file) & set("\\:\0"):
        raise ZephyraError(f"path '{file}' is not a plain relative path inside the pack")
    return file


def load_manifest(path: Path) -> dict[str, Any]:
    """The object that a manifest's file holds, not yet looked at. ZephyraError: not there, too long, no JSON."""
    from zephyra_converters.json_file import parse_json

    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise ZephyraError(f"'{path.parent}' is no model: it has no {MANIFEST}") from None
    except OSError as error:
        raise ZephyraError(f"cannot read '{path}': {error.strerror}") from None
    try:
        return check(parse_json(data, "it", _MOST_BYTES), dict, "the manifest")
    except ZephyraError as error:
        raise ZephyraError(f"'{path}' is damaged: {error.message}") from None


def _file(entry: Mapping[str, Any], where: str) -> str:
    return safe_path(take(entry, "file", str, where))


def _routing(entry: Mapping[str, Any], adapters: Mapping[str, Adapter]) -> dict[str, Any]:
    """The fields of a pack that say how it routes."""
    labels = tuple(check(label, str, "router.labels") for label in take(entry, "labels", list, "router."))
    answers = {
        label: check(domain, str, f"router.answers.{label}")
        for label, domain in take(entry, "answers", dict, "router.", {}).items()
    }
    newcomers = take(entry, "newcomers", dict, "router.") if entry.get("newcomers") is not None else {}
    detectors = tuple(_detector(item, labels) for item in take(newcomers, "domains", list, "router.newcomers.", []))
    domains = {answers.get(label, label) for label in labels} | {detector.name for detector in detectors}
    if homeless := sorted(domains - set(adapters) - {NONE}):
        raise ZephyraError(f"the router names domains without an adapter: {', '.join(homeless)}")
    router = Router(
        labels=labels,
        temperature=take(entry, "temperature", float, "router.", 1.0),
        threshold=take(entry, "threshold", float, "router."),
        max_tokens=take(entry, "max_tokens", int, "router."),
        answers=answers,
    )
    return {
        "router": router,
        "router_file": _file(entry, "router."),
        "newcomers": detectors,
        "newcomers_file": _file(newcomers, "router.newcomers.") if detectors else "",
        "features_file": safe_path(take(entry, "features", str, "router.")) if "features" in entry else "",
    }


def _detector(entry: Any, labels: tuple[str, ...]) -> Detector:
    where = "router.newcomers.domains."
    check(entry, dict, where[:-1])
    by_label = {}
    for key, default in (("shares", None), ("logs", [0.0] * len(labels))):  # the first packs had no logs
        numbers = [check(number, float, where + key) for number in take(entry, key, list, where, default)]
        if len(numbers) != len(labels):
            raise ZephyraError(f"{where}{key} has {len(numbers)} numbers for {len(labels)} labels")
        by_label[key] = dict(zip(labels, numbers, strict=True))
    bias, sharpness = take(entry, "bias", float, where), take(entry, "sharpness", float, where)
    every = [bias, *(number for numbers in by_label.values() for number in numbers.values())]
    if not all(map(math.isfinite, every)) or not 0.0 < sharpness <= 1000.0:
        raise ZephyraError(f"{where[:-1]}: a number is not finite, or the sharpness is not between 0 and 1000")
    return Detector(name=take(entry, "name", str, where), **by_label, bias=bias, sharpness=sharpness)


def _chat(entry: Mapping[str, Any]) -> ChatTemplate:
    sides = {}
    for side in ("before", "after"):
        sides[side] = {
            role: check(text, str, f"chat.{side}.{role}") for role, text in take(entry, side, dict, "chat.").items()
        }
        if missing := {"system", "user", "assistant"} - set(sides[side]):
            raise ZephyraError(f"chat.{side} lacks {', '.join(sorted(missing))}")
    return ChatTemplate(
        **sides, answer=take(entry, "answer", str, "chat."), start=take(entry, "start", str, "chat.", "")
    )


def _source(entry: Mapping[str, Any]) -> Source:
    repository, commit = (take(entry, key, str, "source.") for key in ("repository", "commit"))
    return Source(repository=repository, commit=commit, reference=take(entry, "reference", str, "source.", ""))


def _generation(entry: Mapping[str, Any]) -> SamplingParams:
    kinds: dict[str, type] = {field.name: type(field.default) for field in fields(SamplingParams)}
    if unknown := sorted(set(entry) - set(kinds)):
        raise ZephyraError(f"unknown key generation.{unknown[0]}", hint=did_you_mean(unknown[0], kinds))
    values: dict[str, Any] = {name: take(entry, name, kinds[name], "generation.") for name in entry}
    return SamplingParams(**values)
