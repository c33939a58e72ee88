"""An adapter from the hub: checked against the base that is installed here before its weights are fetched."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from zephyra_cli import store
from zephyra_cli.hollow import has_header, hollow_file
from zephyra_cli.hub import Reference, RemoteFile
from zephyra_fusion.errors import ZephyraError

if TYPE_CHECKING:
    from zephyra_cli.pull import Job, Pulled

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def pull_peft(job: Job, base: str | None) -> Pulled:
    """A PEFT adapter: configuration first, then the header of its weights, then they themselves."""
    from zephyra_cli.pull import PAPERS, settle
    from zephyra_converters.adapter import check_belongs
    from zephyra_converters.peft import read_peft
    from zephyra_converters.source import read_base

    files = job.repository.files
    if _WEIGHTS not in files:
        raise ZephyraError(
            f"the adapter '{job.repository.name}' has no {_WEIGHTS}", hint="pickled weights (.bin) are never loaded"
        )
    with job.fetch([files[_CONFIG]], quiet=True) as paths:
        config = paths[_CONFIG].read_bytes()
    try:
        trained_on = json.loads(config).get("base_model_name_or_path")
    except (ValueError, AttributeError, RecursionError):
        raise ZephyraError(f"{_CONFIG} of '{job.repository.name}' is damaged") from None
    root = _base(base, str(trained_on or job.repository.base))
    with tempfile.TemporaryDirectory(prefix="zephyra-") as place:
        (Path(place) / _CONFIG).write_bytes(config)
        hollow_file(job.repository, files[_WEIGHTS], Path(place), has_header)
        check_belongs(read_peft(Path(place)), read_base(root).config)
    job.note(f"the adapter fits {root}")
    wanted = [files[name] for name in files if name in (_CONFIG, _WEIGHTS, *PAPERS)]
    with job.fetch(wanted) as paths:
        record = {"source": job.source, "license": job.repository.license, "files": job.records(paths)}
        return settle(job, "adapter", job.repository.name.split("/")[1], paths, record)


def pull_lora(job: Job, file: RemoteFile, base: str | None) -> Pulled:
    """An adapter that is a GGUF file."""
    from zephyra_cli.pull import settle
    from zephyra_converters.gguf_check_lora import check_adapter
    from zephyra_converters.gguf_header import parse_header, read_header

    root = _base(base, job.repository.base)
    where = Path(job.repository.name)
    with tempfile.TemporaryDirectory(prefix="zephyra-") as place:
        hollow = hollow_file(
            job.repository, file, Path(place), lambda data: parse_header(data, file.size, where) is not None
        )
        check_adapter(hollow, read_header(_gguf(root)))
    job.note(f"the adapter fits {root}")
    with job.fetch([file]) as paths:
        kept = {Path(file.name).name: path for path in paths.values()}
        record = {"source": job.source, "license": job.repository.license, "files": job.records(kept)}
        return settle(job, "adapter", file.name.removesuffix(".gguf"), kept, record)


def _base(named: str | None, trained_on: str) -> Path:
    """The installed base: what `--base` names, or what came from the repository that the adapter was trained on."""
    if named is not None:
        pack = store.find(named, offline=True)
        return pack.root if pack.files else pack.path(pack.base)
    try:
        wanted = Reference.parse(f"hf:{trained_on}")
    except ZephyraError:
        wanted = None  # a local path of its author's, or nothing
    if wanted is not None:
        for model in store.installed():
            if store.came_from(model.root, wanted):
                return model.root
    said = f"'{trained_on}'" if trained_on else "a base that it does not name"
    raise ZephyraError(
        f"the adapter was trained on {said}, which is not installed: it cannot be checked",
        hint=(f"zephyra pull hf:{trained_on} first, or " if wanted else "") + "name the base with --base",
    )


def _gguf(root: Path) -> Path:
    if root.is_file():
        return root
    pack = store.find(str(root), offline=True)
    return pack.path(pack.base)
