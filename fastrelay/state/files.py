"""Files of a state directory: written whole or not at all, readable by their owner only, with locks between processes.

What cannot be used is a StartError, a sentence that names the file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from fastrelay import disk, wire
from fastrelay.errors import StartError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

T = TypeVar("T")


def default_state(role: Literal["server", "client"]) -> Path:
    """`fastrelay/<role>` under XDG_STATE_HOME, or under ~/.local/state. Raises StartError where there is no home."""
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():  # the XDG specification: ignore what is unset, empty or relative
        try:
            base = Path.home() / ".local" / "state"
        except RuntimeError:
            raise StartError(
                "There is no home directory to keep the state in: name a directory with --state."
            ) from None
    return base / "fastrelay" / role


@contextlib.contextmanager
def sentences(path: Path) -> Iterator[None]:
    """Make a StartError of what the system refuses below the directory `path`."""
    try:
        yield
    except OSError as error:
        raise StartError(
            f"The state directory {path} cannot be used, because {error.filename or path} says {error.strerror or error}: give this user "
            "the right to read and write there, or name another directory with --state."
        ) from error


def damaged(path: Path, why: str) -> StartError:
    return StartError(
        f"The file {path} is damaged, {why}: restore it from a copy, or move it away to have a new one made."
    )


def make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None
    check_directory(path)


def check_directory(path: Path) -> None:
    """Refuse a directory in which others may put files: whom to trust is written there."""
    if os.name != "nt" and path.stat().st_mode & 0o022:
        raise StartError(
            f"The state directory {path} can be changed by others, who could put tokens and keys of theirs there: "
            f"run `chmod go-w {path}`, or name another directory with --state."
        )


def check_private(path: Path, names: Iterable[str]) -> None:
    """Refuse secrets that others may read: they may have been read already. `names` are files of the directory `path`."""
    if os.name == "nt":  # its permissions are not in the mode
        return
    check_directory(path)
    for name in names:
        file = path / name
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_mode & 0o077:
                raise StartError(
                    f"The secret file {file} can be read by others: run `chmod 600 {file}`, and replace it if it may have been read."
                )


def lock(path: Path, *, wait: bool = False) -> int | None:
    """A descriptor that holds the lock on `path` until it is closed, or None when another one does."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        disk.hand_over(fd, path)
    except FileExistsError:
        fd = os.open(path, os.O_RDWR)
    try:
        if sys.platform == "win32":
            msvcrt.locking(fd, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def read(path: Path) -> bytes | None:
    """What the file holds, or None where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def read_json(path: Path, form: type[T]) -> T | None:
    """What the file holds, or None where there is none. Raises StartError when it is not of that form."""
    raw = read(path)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=form)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(path, f"it says {wire.text(str(error).encode(errors='replace'))}") from None


def write_json(path: Path, value: object) -> None:
    disk.write(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
