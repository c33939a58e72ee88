"""The local hub beside the real huggingface-hub client: what the client sees is what the hub on the net would say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub.repositories import git_hash, sha256
from tests.hub.server import Hub

WEIGHTS = bytes(range(256)) * 4096
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": WEIGHTS}


def test_facts_name_every_files_size_and_hash(hub: Hub) -> None:
    from huggingface_hub import HfApi

    commit = hub.add("ada/tiny", FILES).refs["main"]
    info = HfApi().model_info("ada/tiny", revision="main", files_metadata=True)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    assert info.sha == commit
    assert siblings["model.safetensors"].lfs and siblings["model.safetensors"].lfs.sha256 == sha256(WEIGHTS)
    assert siblings["config.json"].lfs is None
    assert siblings["config.json"].blob_id == git_hash(FILES["config.json"])
    assert siblings["config.json"].size == len(FILES["config.json"])


def test_the_client_downloads_through_the_redirect(hub: Hub) -> None:
    from huggingface_hub import hf_hub_download

    hub.add("ada/tiny", FILES)
    for name, content in FILES.items():
        assert Path(hf_hub_download("ada/tiny", name)).read_bytes() == content
    assert [seen.path for seen in hub.seen if seen.path.startswith("/cdn/")] == [f"/cdn/{sha256(WEIGHTS)}"]


def test_a_range_and_a_range_beyond_the_end(hub: Hub) -> None:
    from huggingface_hub.utils import get_session

    hub.add("ada/tiny", FILES)
    url = f"{hub.endpoint}/ada/tiny/resolve/main/model.safetensors"
    part = get_session().get(url, headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, WEIGHTS[5:10])
    assert get_session().get(url, headers={"Range": f"bytes={len(WEIGHTS)}-"}).status_code == 416


def test_the_client_survives_a_cut_connection(hub: Hub) -> None:
    from huggingface_hub import hf_hub_download

    hub.add("ada/tiny", FILES)
    hub.fail("GET /cdn/", cut_after=300_000)
    assert Path(hf_hub_download("ada/tiny", "model.safetensors")).read_bytes() == WEIGHTS
    assert hub.sent("/cdn/") < 2 * len(WEIGHTS)


def test_errors_are_those_of_the_hub(hub: Hub) -> None:
    from huggingface_hub import HfApi, errors, hf_hub_download

    hub.users |= {"hf_ada": "ada", "hf_eve": "eve"}
    hub.add("ada/tiny", FILES)
    hub.add("ada/gated", FILES, gated=True, readers={"ada"})
    hub.add("ada/private", FILES, readers={"ada"})
    with pytest.raises(errors.RepositoryNotFoundError):
        HfApi(token="hf_eve").model_info("ada/nothing")
    with pytest.raises(errors.RevisionNotFoundError):
        HfApi().model_info("ada/tiny", revision="v9")
    with pytest.raises(errors.RemoteEntryNotFoundError):
        hf_hub_download("ada/tiny", "absent.bin")
    assert HfApi().model_info("ada/gated").gated == "manual"
    with pytest.raises(errors.GatedRepoError):
        hf_hub_download("ada/gated", "config.json", token="hf_eve")
    assert Path(hf_hub_download("ada/gated", "config.json", token="hf_ada")).read_bytes() == FILES["config.json"]
    with pytest.raises(errors.RepositoryNotFoundError):
        HfApi(token="hf_eve").model_info("ada/private")
    hub.fail("GET /api/models/ada/tiny", status=503)
    with pytest.raises(errors.HfHubHTTPError, match="503"):
        HfApi().model_info("ada/tiny")


def test_the_client_uploads_a_folder(hub: Hub, tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    hub.users["hf_ada"] = "ada"
    for name, content in FILES.items():
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content)
    api = HfApi(token="hf_ada")
    api.create_repo("ada/new")
    commit = api.upload_folder(repo_id="ada/new", folder_path=tmp_path / "model", commit_message="first")
    assert hub.repositories["ada/new"].commits[commit.oid] == FILES
    assert [model.id for model in api.list_models(search="new")] == ["ada/new"]
