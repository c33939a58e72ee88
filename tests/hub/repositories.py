"""What the local hub holds: repositories, their commits, and the contents by hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

LARGE = (".gguf", ".safetensors", ".bin", ".pt")  # kept as git LFS does: addressed by sha256, served by the "CDN"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    """A model repository. `readers`: who may read it; None: everybody. `gated`: files need a reader, facts none."""

    id: str
    readers: set[str] | None = None
    gated: bool = False
    card: dict[str, Any] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit -> path -> content
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], *, delete: tuple[str, ...] = (), ref: str = "main") -> str:
        """A new commit on `ref`: its tree with these files changed. Its hash depends on nothing but content."""
        tree = {**self.commits.get(self.refs.get(ref, ""), {}), **files}
        tree = {path: data for path, data in sorted(tree.items()) if path not in delete}
        listing = "".join(f"{path} {sha256(data)}\n" for path, data in tree.items())
        commit = hashlib.sha1(f"{self.id}\n{self.refs.get(ref)}\n{listing}".encode()).hexdigest()
        self.commits[commit], self.refs[ref] = tree, commit
        return commit

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a hash means."""
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    def listing(self, commit: str) -> list[dict[str, Any]]:
        """What `/api/models/…/tree/…?recursive=true` says."""
        entries = []
        for sibling in self.facts(commit)["siblings"]:
            lfs = sibling.get("lfs")
            entry = {"type": "file", "path": sibling["rfilename"], "size": sibling["size"], "oid": sibling["blobId"]}
            entries.append(entry | ({"lfs": lfs | {"oid": lfs["sha256"]}} if lfs else {}))
        return entries

    def facts(self, commit: str) -> dict[str, Any]:
        """What `/api/models/…?blobs=true` says."""
        siblings = []
        for path, data in self.commits[commit].items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_hash(data)}
            if path.endswith(LARGE):
                entry["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        return {
            "_id": "0" * 24,
            "id": self.id,
            "modelId": self.id,
            "sha": commit,
            "private": self.readers is not None and not self.gated,
            "gated": "manual" if self.gated else False,
            "tags": [],
            "downloads": 0,
            "cardData": self.card,
            "siblings": siblings,
        }
