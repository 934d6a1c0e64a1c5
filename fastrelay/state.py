"""The state directory: what a relay and a client keep from one run to the next.

    relay     lock, seed, first-token, tokens.json, reservations.json, relay.crt, relay.key
    client    instance, lock (while `instance` is made), <hash>.lock for each relay and name

Every file is readable by its owner only, and written whole or not at all: a temporary file, fsync, rename. What cannot be used is a
StartError, a sentence that names the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, TypeVar

import msgspec

from fastrelay.auth import INSTANCE, KEY_SIZE, Token, Verifier
from fastrelay.errors import StartError, UsageError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

T = TypeVar("T")

_SECRET_FILES: Final = ("seed", "first-token", "tokens.json", "relay.key")


class Reservation(msgspec.Struct, frozen=True):
    """What stays reserved for a client that is away (protocol.md section 4.4): `seen` is unix time, `ports` maps service names to ports."""

    instance: str
    seen: float
    ports: dict[str, int]


class _Tokens(msgspec.Struct, frozen=True):
    """The form of tokens.json."""

    tokens: list[Verifier]


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


# --- the relay ---------------------------------------------------------------------------------------------------------


class ServerState:
    """The state of one relay. Made by `open`; holds the directory's lock until `close`."""

    seed: bytes
    """32 random bytes, made once; for the verifiers of key ids that do not exist (protocol.md section 4.2)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._verifiers: dict[str, Verifier] = {}

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> ServerState:
        """The state in the directory `path`, which is made, with a seed and a first token, if it is not there.

        With `read_only` nothing is made or locked: only `token` and `identity_paths` are for use then. Raises StartError when the directory
        or a file in it cannot be used, another relay uses it, others may read its secrets, or, read only, no token is there yet.
        """
        state = cls(path)
        with _sentences(path):
            if read_only:
                if _read(path / "first-token") is None and _read(path / "tokens.json") is None:
                    raise StartError(
                        f"No relay has been started with the state directory {path}: start `fastrelay server` there first, "
                        "or name its directory with --state."
                    )
                _check_private(path)
                return state
            _make_directory(path)
            state._lock = _lock(path / "lock")
            if state._lock is None:
                raise StartError(
                    f"Another relay uses the state directory {path}: stop that one first, or give this one another with --state."
                )
            try:
                _check_private(path)
                state._load()
            except BaseException:
                state.close()
                raise
        return state

    def close(self) -> None:
        """Let the next relay use the directory. May be called again."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def token(self, pin: bytes | None) -> Token:
        """The first token, with `pin` (32 bytes) in it if there is one. Raises StartError when it is no longer kept."""
        with _sentences(self.path):
            token = self._first_token()
        if token is None:
            raise StartError(
                f"The first token is no longer kept in {self.path}: use a token that was made later, or move tokens.json away and "
                "start the relay anew for a new first token."
            )
        return Token(token.key_id, token.secret, () if pin is None else (pin,))

    def find(self, key_id: str) -> Verifier | None:
        """The verifier of a key id."""
        return self._verifiers.get(key_id)

    @property
    def identity_paths(self) -> tuple[Path, Path]:
        """Where the relay's own certificate and key are, or belong."""
        return self.path / "relay.crt", self.path / "relay.key"

    def reservations(self) -> dict[str, Reservation]:
        """By client name, as saved last. Raises StartError when the file cannot be read."""
        with _sentences(self.path):
            return _read_json(self.path / "reservations.json", dict[str, Reservation]) or {}

    def save_reservations(self, reservations: Mapping[str, Reservation]) -> None:
        """Raises OSError when the disk does not take them; the former ones are then still there."""
        _write_json(self.path / "reservations.json", dict(reservations))

    def _load(self) -> None:
        self.seed = _read(self.path / "seed") or _write(self.path / "seed", secrets.token_bytes(KEY_SIZE))
        if len(self.seed) != KEY_SIZE:
            raise _damaged(self.path / "seed", f"it has {len(self.seed)} bytes, not {KEY_SIZE}")
        kept = _read_json(self.path / "tokens.json", _Tokens)
        if kept is None:
            # The first start, or one that ended between these two writes. A first token is never made beside tokens.json: there its
            # absence means that it was replaced or revoked.
            token = self._first_token()
            if token is None:
                token = Token(secrets.token_urlsafe(6), secrets.token_bytes(KEY_SIZE))
                _write(self.path / "first-token", f"{token.text()}\n".encode())
            kept = _Tokens([Verifier.of(token)])
            _write_json(self.path / "tokens.json", kept)
        self._verifiers = {verifier.key_id: verifier for verifier in kept.tokens}

    def _first_token(self) -> Token | None:
        path = self.path / "first-token"
        raw = _read(path)
        if raw is None:
            return None
        try:
            return Token.parse(raw.decode())
        except (UsageError, UnicodeDecodeError):
            raise _damaged(path, "it holds no token") from None


# --- the client --------------------------------------------------------------------------------------------------------


class ClientState:
    """The state of one client. Made by `open`; holds the lock of its relay and name until `close`."""

    def __init__(self, path: Path, instance: str, lock: int) -> None:
        self.path = path
        self.instance = instance
        """Which installation this is (protocol.md section 4.1): 22 random characters, made once for the directory."""
        self._lock: int | None = lock

    @classmethod
    def open(cls, path: Path, relay_url: str, name: str) -> ClientState:
        """The state in the directory `path`, which is made if it is not there, for the client `name` of the relay `relay_url`.

        Raises StartError when the directory or a file in it cannot be used, or a client with this name and relay already runs from it:
        two would take the session from each other for ever (protocol.md section 4.4).
        """
        own = hashlib.sha256(f"{relay_url}\n{name}".encode()).hexdigest()[:32]
        with _sentences(path):
            _make_directory(path)
            lock = _lock(path / f"{own}.lock")
            if lock is None:
                raise StartError(
                    f"Another fastrelay client named {name!r} already runs here for {relay_url}: stop that one, or give this one "
                    "another name with --name."
                )
            try:
                return cls(path, _instance(path), lock)
            except BaseException:
                os.close(lock)
                raise

    def close(self) -> None:
        """Let the next client use the name. May be called again."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _instance(path: Path) -> str:
    file = path / "instance"
    # Clients with other names may start at the same time; they must agree on one instance.
    lock = _lock(path / "lock", wait=True)
    try:
        raw = _read(file) or _write(file, f"{secrets.token_urlsafe(16)}\n".encode())
    finally:
        if lock is not None:
            os.close(lock)
    instance = raw.decode("ascii", "replace").strip()
    if not INSTANCE.fullmatch(instance):
        raise _damaged(file, "it holds no instance")
    return instance


# --- files -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _sentences(path: Path) -> Iterator[None]:
    """Make a StartError of what the system refuses below the directory `path`."""
    try:
        yield
    except OSError as error:
        raise StartError(
            f"The state directory {path} cannot be used, because {error.filename or path} says {error.strerror or error}: give this user "
            "the right to read and write there, or name another directory with --state."
        ) from error


def _damaged(path: Path, why: str) -> StartError:
    return StartError(
        f"The file {path} is damaged, {why}: restore it from a copy, or move it away to have a new one made."
    )


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None


def _check_private(path: Path) -> None:
    """Refuse secrets that others may read: they may have been read already."""
    if os.name == "nt":  # its permissions are not in the mode
        return
    for name in _SECRET_FILES:
        file = path / name
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_mode & 0o077:
                raise StartError(
                    f"The secret file {file} can be read by others: run `chmod 600 {file}`, and replace it if it may have been read."
                )


def _lock(path: Path, *, wait: bool = False) -> int | None:
    """A descriptor that holds the lock on `path` until it is closed, or None when another one does."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
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


def _read(path: Path) -> bytes | None:
    """What the file holds, or None where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _read_json(path: Path, form: type[T]) -> T | None:
    """What the file holds, or None where there is none. Raises StartError when it is not of that form."""
    raw = _read(path)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=form)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, f"it says {error}") from None


def _write(path: Path, data: bytes) -> bytes:
    """Put `data` into the file, for its owner only, so that a crash leaves the old content or the new; gives `data` back."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)  # of a run that was killed; the lock keeps others out
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name != "nt":
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)  # or a power cut could undo the rename
        finally:
            os.close(directory)
    return data


def _write_json(path: Path, value: object) -> None:
    _write(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
