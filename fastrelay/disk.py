"""Files that are written whole or not at all, with their mode from the start."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, data: bytes, mode: int = 0o600) -> bytes:
    """Put `data` into the file, so that a crash leaves the old content or the new; gives `data` back. Raises OSError.

    There may be one writer of a file at a time.
    """
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)  # of a run that was killed
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            hand_over(fd, path)
            file.write(data)
            file.flush()
            os.fsync(fd)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    settle(path.parent)
    return data


def settle(directory: Path) -> None:
    """Or a power cut could undo that a file in it was replaced. Raises OSError."""
    if os.name != "nt":
        fd = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def hand_over(fd: int, path: Path) -> None:
    """A file that root made just now belongs to the directory's owner: the relay could not read it otherwise."""
    if os.name == "nt" or os.geteuid() != 0:
        return
    owner = path.parent.stat()
    if owner.st_uid != 0:
        os.fchown(fd, owner.st_uid, owner.st_gid)
