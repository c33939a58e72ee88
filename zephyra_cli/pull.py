"""`hf:owner/name` made a model of this machine: what a repository holds, what of it is wanted, and the checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyra_cli import install, store
from zephyra_cli.bare import header_facts
from zephyra_cli.disk import digest
from zephyra_cli.download import Progress, beginning, fetched
from zephyra_cli.hub import Reference, RemoteFile, Repository, look_up
from zephyra_cli.pack import MANIFEST, Pack, load_manifest
from zephyra_cli.quantization import Candidate, candidates, choose, named, quantization_of, unknown
from zephyra_fusion.errors import ZephyraError

PAPERS = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.txt", "LICENCE")
_MOST_SMALL = 64 * 2**20  # bytes of a file that only describes others
_CHECKPOINT: tuple[str, ...] = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_CHECKPOINT += ("special_tokens_map.json", "chat_template.jinja", "model.safetensors.index.json")
Note = Callable[[str], None]


@dataclass(frozen=True)
class Pulled:
    """What a pull brought: `kind` is pack, gguf, checkpoint or adapter, `size` its bytes on the disk.

    `before`: the commit that lay there, if any; `fetched`: bytes of its files that were not on this machine.
    """

    name: str
    kind: str
    root: Path
    commit: str
    size: int
    before: str | None
    fetched: int


@dataclass
class Job:
    """One pull: where from, how it speaks to the user, and how many bytes had to be fetched so far."""

    reference: Reference
    repository: Repository
    name: str | None
    progress: Progress
    note: Note
    fetched: int = 0
    file: str = ""  # that was chosen; nothing where the whole repository is one model

    @property
    def source(self) -> dict[str, str]:
        return {
            "repository": self.repository.name,
            "commit": self.repository.commit,
            "reference": str(self.reference),
            "file": self.file,
        }

    def fetch(self, files: Iterable[RemoteFile], *, quiet: bool = False) -> Any:
        """`fetched`, of names that were checked. `quiet`: small files, before the size of the whole is known."""

        begun = False

        def progress(done: int, total: int | None, text: str) -> None:
            nonlocal begun
            if quiet:
                return
            if not begun:
                begun, self.fetched = True, self.fetched + (total or 0) - done
            self.progress(done, total, text or self.repository.name)

        files = list(files)
        install.check_names((file.name for file in files), () if quiet else install.OWN)
        for file in files if quiet else ():
            if file.size > _MOST_SMALL:
                raise ZephyraError(f"'{file.name}' has {file.size / 1e6:.0f} MB, it is not what its name says")
        return fetched(self.repository, files, progress, here=store.contents, note=self.note)

    def records(self, paths: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
        """The manifest's entries for files that were fetched, by their names there."""
        origin = f"hf:{self.repository.name}@{self.repository.commit}"
        return {
            name: {
                "sha256": digest(path, ""),
                "size": path.stat().st_size,
                "license": self.repository.license,
                "source": origin,
            }
            for name, path in paths.items()
        }


def pull(
    text: str, *, name: str | None = None, base: str | None = None, progress: Progress, note: Note = lambda text: None
) -> Pulled:
    """Fetch what `hf:owner/name[@revision][:quant-or-file]` means and install it. ZephyraError: it cannot be, and why.

    `name`: what it shall be called here. `base`: the installed model that an adapter belongs to.
    """
    reference = Reference.parse(text)
    try:
        install.recover()
        return _pull(Job(reference, look_up(reference), name, progress, note), base)
    except KeyboardInterrupt:
        note("stopped; what arrived is kept, and the same command goes on there")
        raise


def _pull(job: Job, base: str | None) -> Pulled:
    reference, repository, files = job.reference, job.repository, job.repository.files
    if MANIFEST in files and not reference.part:
        return _pull_pack(job)
    if "adapter_config.json" in files and not reference.part:
        from zephyra_cli.pull_adapter import pull_peft

        return pull_peft(job, base)
    found, weights = candidates(files), any(name.endswith(".safetensors") for name in files)
    checkpoint = "config.json" in files and not reference.part
    if found and not (checkpoint and weights and not any(candidate.is_model for candidate in found)):
        return _pull_gguf(job, found, base)
    if reference.part:
        raise unknown(reference.part, found)
    if checkpoint:
        return _pull_checkpoint(job)
    held = ", ".join(sorted(files)[:6]) or "nothing"
    raise ZephyraError(
        f"'{repository.name}' holds no model that zephyra knows: {held}",
        hint=f"wanted is {MANIFEST}, a .gguf, config.json with .safetensors, or adapter_config.json",
    )


def _pull_pack(job: Job) -> Pulled:
    """The manifest first; then, of the files that it names, those that are not here yet."""
    files, where = job.repository.files, Path(f"hf:{job.repository.name}")
    with job.fetch([files[MANIFEST]], quiet=True) as paths:
        values = load_manifest(paths[MANIFEST])
    pack = Pack.parse(values, where)
    wrong = [f"{name}: used, but without a hash" for name in sorted(set(pack.used) - set(pack.files))]
    for name, record in pack.files.items():
        file = files.get(name)
        if file is None:
            wrong.append(f"{name}: not in the repository")
        elif file.size != record.size:
            wrong.append(f"{name}: {file.size} bytes, the manifest says {record.size}")
        elif not file.digest.startswith("git:") and file.digest != record.sha256:
            wrong.append(f"{name}: sha256 {file.digest}, the manifest says {record.sha256}")
    if wrong:
        more = f"; and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise ZephyraError(
            f"the pack '{job.repository.name}' is damaged on the hub: {'; '.join(wrong[:6])}{more}",
            hint="its owner must push it again; nothing was fetched",
        )
    wanted = [files[name] for name in files if name in pack.files or name in PAPERS]
    with job.fetch(wanted) as paths:
        for name, record in pack.files.items():
            if (found := digest(paths[name], "")) != record.sha256:
                raise ZephyraError(f"'{name}' has sha256 {found}, the manifest says {record.sha256}")
        return settle(job, "pack", job.repository.name.split("/")[1], paths, values | {"source": job.source})


def _pull_gguf(job: Job, found: list[Candidate], base: str | None) -> Pulled:
    """One model: its header is read and judged before its weights come."""
    from zephyra_converters.gguf_check import check_header
    from zephyra_converters.gguf_split import joined

    if part := job.reference.part:
        chosen = named(found, part)
        if chosen is None:
            raise unknown(part, found)
    else:
        from zephyra_cli.devices import usable_memory

        chosen, why = choose(found, usable_memory())
        if len(found) > 1:
            job.note(f"takes {why}")
    first = chosen.files[0]
    job.file = first.name
    headers = [remote_header(job.repository, file) for file in chosen.files]
    header = joined(headers) if len(headers) > 1 else headers[0]
    if header.metadata.get("general.type") == "adapter":
        from zephyra_cli.pull_adapter import pull_lora

        return pull_lora(job, first, base)
    check_header(header)
    with job.fetch(chosen.files) as paths:
        kept = {Path(name).name: path for name, path in paths.items()}
        facts = header_facts(header)
        manifest = {
            "format": "zephyra-pack",
            "version": 1,
            "name": Path(chosen.name).name,
            "description": facts["description"],
            "license": job.repository.license or facts["license"],
            "base": {
                "file": Path(first.name).name,
                **{key: facts[key] for key in ("architecture", "parameters", "context_length")},
                "quantization": chosen.quantization or quantization_of(chosen.name) or facts["quantization"],
            },
            "chat": None,  # the file's own
            "source": job.source,
            "files": job.records(kept),
        }
        return settle(job, "gguf", chosen.name, kept, manifest)


def remote_header(repository: Repository, file: RemoteFile) -> Any:
    """The header of a GGUF file on the hub (`GGUFHeader`); its weights stay there."""
    from zephyra_converters.gguf_header import parse_header

    where = Path(f"hf:{repository.name}/{file.name}")
    data = beginning(repository, file, lambda data: parse_header(data, file.size, where) is not None)
    header = parse_header(data, file.size, where)
    assert header is not None  # parse_header refuses what does not end
    return header


def _pull_checkpoint(job: Job) -> Pulled:
    """Configuration, tokenizer and safetensors; nothing that would have to be unpickled or executed."""
    files = job.repository.files
    weights = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    if not weights:
        pickled = next((name for name in files if name.endswith((".bin", ".pt", ".pth"))), None)
        why = f"only pickled weights ({pickled}), which may run code when they are read" if pickled else "no weights"
        raise ZephyraError(f"'{job.repository.name}' has {why}", hint="wanted are .safetensors or .gguf files")
    if "model.safetensors.index.json" in files:
        with job.fetch([files["model.safetensors.index.json"]], quiet=True) as paths:
            weights = _shards(paths["model.safetensors.index.json"], job.repository)
    elif "model.safetensors" in files:
        weights = ["model.safetensors"]
    wanted = [name for name in files if name in {*_CHECKPOINT, *PAPERS, *weights}]
    with job.fetch(files[name] for name in wanted) as paths:
        receipt = {"source": job.source, "license": job.repository.license, "files": job.records(paths)}
        return settle(job, "checkpoint", job.repository.name.split("/")[1], paths, receipt)


def _shards(index: Path, repository: Repository) -> list[str]:
    from zephyra_converters.json_file import read_json

    named = read_json(index).get("weight_map")
    shards = sorted({str(name) for name in named.values()}) if isinstance(named, dict) else []
    if missing := [name for name in shards if name not in repository.files] or not shards:
        raise ZephyraError(f"'{repository.name}': its index names shards that it has not: {missing}")
    return shards


def settle(job: Job, kind: str, named: str, paths: Mapping[str, Path], record: dict[str, Any]) -> Pulled:
    """Install what was fetched, under a name, with what is known of it."""
    root = install.place(kind, job.name, named, job.source)
    before = install.source_of(root).get("commit")
    install.install(root, {name: path for name, path in paths.items() if name != MANIFEST}, record, job.note)
    return Pulled(root.name, kind, root, job.repository.commit, store.size_of([root]), before, job.fetched)
