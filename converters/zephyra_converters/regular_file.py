"""Files of strangers, opened: a pipe would keep us waiting for ever, a device would never end."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(path: Path) -> BufferedReader:
    """The file's bytes. OSError, as `open`: also where it is a pipe, a socket or a device."""
    if not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode):  # of a folder, open says so itself
        raise OSError(errno.EINVAL, "it is a pipe or a device", str(path))
    return open(path, "rb")
