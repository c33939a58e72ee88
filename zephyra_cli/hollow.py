"""A repository on the hub as a local folder without weights: enough to say what a conversion of it would do.

Configs and vocabularies come whole; of every safetensors file comes the header, and the rest is a hole of its size.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zephyra_cli.download import beginning
from zephyra_cli.hub import Reference, RemoteFile, Repository, look_up
from zephyra_fusion.errors import ZephyraError

_WHOLE = (".json", ".jinja", "tokenizer.model", "README.md")
_LARGEST = 2**27  # bytes of a file that comes whole
_MOST_SHARDS = 2000
_LONGEST_HEADER = 100_000_000  # the limit of safetensors itself


@contextmanager
def hollow_folder(text: str) -> Iterator[Path]:
    """The folder of `hf:owner/name[@revision]`, for as long as it is looked at.

    ZephyraError: it holds no checkpoint and no adapter, or only pickles, whose headers cannot be read from afar.
    """
    reference = Reference.parse(text)
    repository = look_up(reference)
    here = {name: file for name, file in repository.files.items() if "/" not in name}
    shards = [file for name, file in here.items() if name.endswith(".safetensors")]
    if "config.json" not in here and "adapter_config.json" not in here or reference.part:
        raise ZephyraError(
            f"'{text}' is no checkpoint and no adapter", hint="`zephyra pull` takes what is GGUF already"
        )
    if not 0 < len(shards) <= _MOST_SHARDS:
        raise ZephyraError(
            f"'{repository.name}' has {len(shards)} safetensors files: nothing can be read of its weights from afar",
            hint="fetch it and give the folder",
        )
    with tempfile.TemporaryDirectory(prefix="zephyra-") as scratch:
        folder = Path(scratch) / repository.name.split("/")[1]
        folder.mkdir()
        for name, file in here.items():
            if name.endswith(_WHOLE):
                (folder / name).write_bytes(_whole(repository, file))
        for file in shards:
            _without_values(hollow_file(repository, file, folder, has_header))
        yield folder


def hollow_file(repository: Repository, file: RemoteFile, folder: Path, enough: Callable[[bytes], bool]) -> Path:
    """A file of which the beginning is in `folder` (as many bytes as are `enough`), the rest a hole."""
    path = folder / Path(file.name).name
    path.write_bytes(beginning(repository, file, enough))
    os.truncate(path, file.size)
    return path


def _without_values(path: Path) -> None:
    """Empty a safetensors file behind its header: half of the values would look like a model."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.truncate(min(size, 8 + int.from_bytes(file.read(8), "little")))
        file.truncate(size)


def _whole(repository: Repository, file: RemoteFile) -> bytes:
    if file.size > _LARGEST:
        raise ZephyraError(f"'{file.name}' of '{repository.name}' has {file.size} bytes, which is no config")
    return beginning(repository, file, lambda data: False)


def has_header(data: bytes) -> bool:
    """Whether the header of a safetensors file is whole: 8 bytes of length, then so much JSON, of 100 MB at most."""
    return len(data) >= 8 and len(data) >= 8 + min(int.from_bytes(data[:8], "little"), _LONGEST_HEADER)
