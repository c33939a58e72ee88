"""A pack on its way to the Hugging Face Hub: verified, with a model card, in one commit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zephyra_cli import install, store
from zephyra_cli.download import beginning
from zephyra_cli.hub import Reference, Repository, explained, look_up
from zephyra_cli.model_card import MARK, model_card
from zephyra_cli.pack import MANIFEST, Pack, load_manifest
from zephyra_cli.pull import PAPERS
from zephyra_cli.ui import fancy
from zephyra_fusion.errors import ZephyraError


@dataclass(frozen=True)
class Pushed:
    """A commit on the hub: where it is, its hash, the files that it holds and those that it removed."""

    url: str
    commit: str
    files: tuple[str, ...]
    removed: tuple[str, ...]


def push(model: str, to: str, *, private: bool = False, message: str = "", note: Callable[[str], None]) -> Pushed:
    """Put a pack into the repository `hf:owner/name[@branch]`, made where there is none, in one commit: all or nothing.

    ZephyraError: no pack, a damaged one, not logged in, no right to, no network.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    reference = Reference.parse(to)
    if reference.part:
        raise ZephyraError(f"'{to}' names a file, a pack goes to a whole repository", hint=f"hf:{reference.repository}")
    pack = store.find(model, offline=True)
    manifest, texts = _checked(pack, reference)
    if not get_token():
        raise ZephyraError("nobody is logged in to the hub", hint="log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    with explained(reference):
        api.create_repo(reference.repository, private=private or None, exist_ok=True)
        there = look_up(reference)
        removed = _stale(there, {*manifest["files"], *texts})
        operations: list[Any] = [CommitOperationAdd(name, text) for name, text in texts.items()]
        operations += [CommitOperationAdd(name, pack.path(name)) for name in manifest["files"]]
        operations += [CommitOperationDelete(name) for name in removed]
        note(f"pushes {len(operations) - len(removed)} files to {to}")
        commit = _commit(api, reference, operations, message or f"{pack.name}, by zephyra push")
    return Pushed(commit.commit_url, commit.oid, tuple(sorted({*manifest["files"], *texts})), tuple(removed))


def _checked(pack: Pack, reference: Reference) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest, and the texts that go beside the files: itself, the card, licences. The pack is whole and true."""
    if not pack.files:
        raise ZephyraError(
            f"'{pack.root / pack.base}' is no pack with a manifest", hint="zephyra convert makes one of it: --name NAME"
        )
    if wrong := store.verify(pack):
        raise ZephyraError(f"'{pack.name}' is damaged and was not pushed: {'; '.join(wrong)}")
    manifest = load_manifest(pack.root / MANIFEST)
    install.check_names([*manifest["files"], "README.md"])
    source = manifest.pop("source", None)  # where it was pulled from; where it goes is another place
    papers = [name for name in PAPERS if name not in manifest["files"] and (pack.root / name).is_file()]
    texts = {name: pack.path(name).read_bytes() for name in papers}  # path(): no hash vouches for what a link leads to
    try:
        card = (pack.root / "README.md").read_text(encoding="utf-8") if (pack.root / "README.md").is_file() else MARK
    except UnicodeDecodeError:  # huggingface-hub reads its head
        raise ZephyraError("README.md is not UTF-8, and the hub takes no other card", hint="save it as UTF-8") from None
    if "README.md" not in manifest["files"] and MARK in card:
        texts["README.md"] = model_card(pack, manifest | {"source": source}, reference.repository).encode()
    texts[MANIFEST] = (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()
    return manifest, texts


def _stale(there: Repository, ours: set[str]) -> list[str]:
    """Files of the pack that is there now which ours has no more."""
    if (file := there.files.get(MANIFEST)) is None or file.size > 4 * 2**20:
        return []
    try:
        files = json.loads(beginning(there, file, lambda data: False)).get("files", {})
    except (ValueError, AttributeError, RecursionError):
        return []
    return sorted(set(files) & set(there.files) - ours) if isinstance(files, dict) else []


def _commit(api: Any, reference: Reference, operations: list[Any], message: str) -> Any:
    import sys

    from huggingface_hub.utils import disable_progress_bars

    if not fancy(sys.stderr):
        disable_progress_bars()
    try:
        return api.create_commit(
            reference.repository, operations, commit_message=message, revision=reference.revision or "main"
        )
    except RuntimeError as error:  # huggingface-hub wraps what happened to one file
        raise (error.__cause__ or error) from None
