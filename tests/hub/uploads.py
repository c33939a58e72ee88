"""The writing half of the local hub: new repositories, pre-upload, git LFS batches and commits."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from tests.hub.repositories import LARGE, Repository, git_hash, sha256

Refusal = tuple[int, str, str]  # status, X-Error-Code, message


class Uploads:
    """Objects that were uploaded but are in no commit yet, and the commits that take them in."""

    def __init__(self, repositories: dict[str, Repository]) -> None:
        self.repositories = repositories
        self.objects: dict[str, bytes] = {}

    def store(self, digest: str, data: bytes) -> dict[str, Any]:
        assert sha256(data) == digest
        self.objects[digest] = data
        return {}

    def answer(self, route: str, body: bytes, user: str | None, cdn: str, endpoint: str) -> dict[str, Any] | Refusal:
        """The answer to a POST."""
        if route == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if user is None:
            return 401, "", "Invalid username or password."
        if route == "/api/repos/create":
            return self._create(json.loads(body), user, endpoint)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", route):
            return self._preupload(match[1], match[2], json.loads(body))
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", route):
            return {"transfer": "basic", "objects": [self._action(entry, cdn) for entry in json.loads(body)["objects"]]}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", route):
            return self._commit(match[1], match[2], body, endpoint)
        return 404, "", "Not Found"

    def _create(self, wanted: dict[str, Any], user: str, endpoint: str) -> dict[str, Any] | Refusal:
        name = f"{wanted.get('organization') or user}/{wanted['name']}"
        if not name.startswith(user + "/"):
            return 403, "", "You don't have the rights to create a model under this namespace"
        if name in self.repositories:
            return {"status": 409, "error": "You already created this model repo", "url": f"{endpoint}/{name}"}
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.repositories[name] = Repository(name, readers={user} if private else None)
        self.repositories[name].commit({})
        return {"url": f"{endpoint}/{name}", "name": name, "id": name}

    def _preupload(self, name: str, revision: str, wanted: dict[str, Any]) -> dict[str, Any] | Refusal:
        repository = self.repositories.get(name)
        if repository is None:
            return 404, "RepoNotFound", "Repository not found"
        tree = repository.commits[repository.resolve(revision) or ""]
        modes = {True: "lfs", False: "regular"}
        files = []
        for entry in wanted["files"]:
            held, large = tree.get(entry["path"]), entry["path"].endswith(LARGE)
            oid = None if held is None else sha256(held) if large else git_hash(held)
            files.append({"path": entry["path"], "uploadMode": modes[large], "shouldIgnore": False, "oid": oid})
        return {"files": files}

    def _action(self, entry: dict[str, Any], cdn: str) -> dict[str, Any]:
        upload = {"actions": {"upload": {"href": f"{cdn}/cdn/{entry['oid']}"}}}
        return {"oid": entry["oid"], "size": entry["size"], **({} if entry["oid"] in self.objects else upload)}

    def _commit(self, name: str, revision: str, body: bytes, endpoint: str) -> dict[str, Any] | Refusal:
        repository = self.repositories.get(name)
        if repository is None:
            return 404, "RepoNotFound", "Repository not found"
        files, gone = {}, []
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif operation["key"] == "deletedFile":
                gone.append(value["path"])
        commit = repository.commit(files, delete=tuple(gone), ref=revision)
        return {"commitUrl": f"{endpoint}/{name}/commit/{commit}", "commitOid": commit, "success": True}
