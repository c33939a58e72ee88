"""The Hugging Face Hub, through huggingface-hub: what a reference means there, what a repository holds, and why not.

Its endpoint (`HF_ENDPOINT`), its token and its offline switch are huggingface-hub's own. Nothing here writes a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from zephyra_cli.patience import asked_to_wait, patiently
from zephyra_fusion.errors import ZephyraError

TIMEOUT_S = 15.0  # without a byte from the hub
_REFERENCE = re.compile(r"hf:(?P<repository>[^/@:]+/[^/@:]+)(?:@(?P<revision>[^:]+))?(?::(?P<part>.+))?")
_ADDRESS = re.compile(
    r"(?:https?://[^/]+/)?(?P<repository>[\w.-]+/[\w.-]+)(?:/(?:tree|blob|resolve)/(?P<revision>[^/]+).*)?/?"
)
_NONSENSE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)  # huggingface-hub believes what it reads


@dataclass(frozen=True)
class Reference:
    """`hf:owner/name[@revision][:quant-or-file]`."""

    repository: str
    revision: str | None = None
    part: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """ZephyraError: it is none."""
        match = _REFERENCE.fullmatch(text)
        if match is None:
            forms = "hf:owner/name, hf:owner/name@revision, hf:owner/name:Q4_K_M"
            address = _ADDRESS.fullmatch(text)
            revision = f"@{address['revision']}" if address and address["revision"] else ""
            meant = f"did you mean hf:{address['repository']}{revision}?" if address else forms
            raise ZephyraError(f"'{text}' is no reference to the hub", hint=meant)
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        try:
            validate_repo_id(match["repository"])
        except HFValidationError:
            raise ZephyraError(
                f"'{match['repository'][:100]}' cannot be the name of a repository",
                hint="owner/name, of letters, digits, '-', '_' and '.', each at most 96 characters",
            ) from None
        return cls(match["repository"], match["revision"], match["part"] or "")

    def __str__(self) -> str:
        revision, part = self.revision and f"@{self.revision}", self.part and f":{self.part}"
        return f"hf:{self.repository}{revision or ''}{part}"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository at one commit. `digest`: its sha256, or, small ones, git's sha1 ("git:…")."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Repository:
    """A repository at one commit, as the hub describes it."""

    name: str
    commit: str
    files: Mapping[str, RemoteFile]
    license: str = ""
    base: str = ""  # the repository of the base that an adapter says it was trained on

    def url(self, file: str) -> str:
        from huggingface_hub import constants, hf_hub_url

        return hf_hub_url(self.name, file, revision=self.commit, endpoint=constants.ENDPOINT)


def look_up(reference: Reference) -> Repository:
    """What the hub holds under a reference now. ZephyraError: nothing, or nothing for us; the hint says what to do."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    def ask() -> Any:
        return HfApi().model_info(
            reference.repository, revision=reference.revision or "main", files_metadata=True, timeout=TIMEOUT_S
        )

    with explained(reference):
        try:
            return _described(patiently(ask, attempts=3))
        except (HfHubHTTPError, UnicodeEncodeError):  # some are ValueErrors too
            raise
        except _NONSENSE as error:
            raise ZephyraError(
                f"what '{reference.repository}' is described by cannot be read: {error!r}"[:300],
                hint="something between here and the hub (a proxy, a login page, a mirror) answers for it",
            ) from None


def _described(info: Any) -> Repository:
    """What the hub answered, its values checked. One of _NONSENSE, or ZephyraError: they cannot be true."""
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(info.id)
    if str(info.id).count("/") != 1 or not re.fullmatch(r"[0-9a-f]{40}", str(info.sha)):
        raise ValueError(f"repository {info.id!r}, commit {info.sha!r}")
    card = info.card_data.to_dict() if info.card_data else {}
    files = {file.name: file for file in map(_remote_file, info.siblings or ())}
    return Repository(info.id, info.sha, files, license=_text(card.get("license")), base=_text(card.get("base_model")))


def check_status(response: Any) -> None:
    """HfHubHTTPError: an error's status. Redirects that lead nowhere, and errors in words without sense, pass."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import hf_raise_for_status

    try:
        hf_raise_for_status(response)
    except HfHubHTTPError:  # some are ValueErrors too
        raise
    except _NONSENSE:
        return


def _remote_file(sibling: Any) -> RemoteFile:
    digest = sibling.lfs.sha256 if sibling.lfs else f"git:{sibling.blob_id}"
    size = sibling.lfs.size if sibling.lfs else sibling.size
    if not isinstance(sibling.rfilename, str) or re.search("[\ud800-\udfff]", sibling.rfilename):
        raise ZephyraError(f"the hub names a file {sibling.rfilename!r}"[:300])
    if (
        not isinstance(size, int)
        or not 0 <= size < 2**50
        or not re.fullmatch(r"[0-9a-f]{64}|git:[0-9a-f]{40}", digest or "")
    ):
        raise ZephyraError(f"the hub does not say size and hash of '{sibling.rfilename}'")
    return RemoteFile(sibling.rfilename, size, digest)


def _text(value: Any) -> str:
    """A field of a model card: a text, or the first of a list."""
    value = value[0] if isinstance(value, list) and value else value
    return value[:200].encode(errors="replace").decode() if isinstance(value, str) else ""


@contextmanager
def explained(reference: Reference) -> Iterator[None]:
    """Errors of the hub and of the way to it as errors that a user can act upon."""
    import httpx2
    from huggingface_hub import constants, errors

    repository, endpoint = reference.repository, constants.ENDPOINT
    login = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError:
        where = f"accept its terms at {endpoint}/{repository}, then {login}"
        raise ZephyraError(
            f"'{repository}' is gated: it is given only to users who were admitted", hint=where
        ) from None
    except errors.RepositoryNotFoundError:
        raise ZephyraError(
            f"there is no repository '{repository}' on {endpoint}, or it is private", hint=_nearest(repository, login)
        ) from None
    except errors.RevisionNotFoundError:
        raise ZephyraError(
            f"'{repository}' has no revision '{reference.revision}'", hint=_revisions(reference)
        ) from None
    except errors.RemoteEntryNotFoundError as error:
        raise ZephyraError(f"'{repository}' lacks a file that it lists: {_shown(error.response.url)}") from None
    except errors.OfflineModeIsEnabled:
        raise ZephyraError(
            f"'{reference}' is on the hub, and the network is forbidden (HF_HUB_OFFLINE)", hint="unset HF_HUB_OFFLINE"
        ) from None
    except errors.HfHubHTTPError as error:
        raise _refused(error, login) from None
    except httpx2.TimeoutException:
        raise ZephyraError(f"{endpoint} does not answer", hint="try again; what arrived is kept") from None
    except httpx2.TransportError as error:
        reason = str(error) or type(error).__name__
        certificate = "CERTIFICATE" in reason.upper()
        hint = "is this machine's clock right?" if certificate else "is there a network? (HF_ENDPOINT, HTTPS_PROXY)"
        raise ZephyraError(f"cannot reach {endpoint}: {reason}", hint=f"{hint}; what arrived is kept") from None
    except (httpx2.TooManyRedirects, httpx2.DecodingError, httpx2.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        broken = "something between here and the hub (a proxy, a mirror) is broken"
        raise ZephyraError(f"{endpoint} cannot be understood: {reason}", hint=broken) from None
    except UnicodeEncodeError:  # of a header; its text would show the token
        raise ZephyraError("the token holds letters that no token has", hint=login) from None


def _refused(error: Any, login: str) -> ZephyraError:
    status, server = error.response.status_code, _without_token((error.server_message or "").strip())
    said = f" ({server[:200]})" if server else ""
    where = f"{error.response.url.scheme}://{error.response.url.netloc.decode()}"
    if status == 401:
        return ZephyraError(f"{where} does not accept the token{said}", hint=login)
    if status == 403:
        return ZephyraError(f"{where} forbids it{said}", hint=f"has the token the right to it? {login}")
    if status == 429:
        wait = asked_to_wait(error)
        soon = f"in {wait:.0f} seconds" if wait else "later"
        return ZephyraError(f"{where} has had too many requests{said}", hint=f"try again {soon}; what arrived is kept")
    hint = "that is the server's fault; try again later, what arrived is kept" if status >= 500 else None
    return ZephyraError(f"{where} answers {status} {error.response.reason_phrase}{said}", hint=hint)


def _shown(url: Any) -> str:
    """An address without its query: signatures are worth as much as tokens."""
    return str(url.copy_with(query=None, userinfo=b""))


def _without_token(text: str) -> str:
    """What a server says, should it repeat our token."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "(the token)") if token else text


def _nearest(repository: str, login: str) -> str:
    """Names like it that the hub has."""
    import difflib

    from huggingface_hub import HfApi

    owner, name = repository.split("/")
    words = [name, *re.split(r"[-_.]", name)[:2]]
    found: dict[str, None] = {}
    try:
        ask = partial(HfApi().list_models, limit=50)
        for answer in (ask(author=owner), *(ask(search=word) for word in words)):
            found |= dict.fromkeys(model.id for model in answer)
        near = difflib.get_close_matches(repository.lower(), [name.lower() for name in found], n=3, cutoff=0.6)
    except Exception:  # only a hint
        return f"check the name; if it is private, {login}"
    names = [f"'{name}'" for name in found if name.lower() in near]
    meant = f"did you mean {' or '.join(names)}? " if names else ""
    return f"{meant}If it is private, {login}"


def _revisions(reference: Reference) -> str | None:
    from huggingface_hub import HfApi

    from zephyra_fusion.errors import did_you_mean

    try:
        refs = HfApi().list_repo_refs(reference.repository)
        return did_you_mean(reference.revision or "", [ref.name for ref in (*refs.branches, *refs.tags)])
    except Exception:  # only a hint
        return None
