"""tokens.json and the kept first token: what the relay reads, and the command line writes, also while the relay runs.

Readers need no lock, for the file is replaced whole. Writers hold tokens.lock from reading to writing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec

from fastrelay import disk
from fastrelay.auth import KEY_SIZE, Token
from fastrelay.errors import StartError, UsageError
from fastrelay.policy import FIRST_GRANT, FIRST_LABEL, Key
from fastrelay.state import files

FILE = "tokens.json"


class _Form(msgspec.Struct, frozen=True):
    """The form of tokens.json."""

    tokens: tuple[Key, ...]


def new_token() -> Token:
    """A key id and a secret that nobody has seen; without pins."""
    return Token(secrets.token_urlsafe(6), secrets.token_bytes(KEY_SIZE))


class TokenStore:
    """The tokens of the state directory `path`. What cannot be used is a StartError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path / FILE
        self._first = path / "first-token"
        self._seen: tuple[int, ...] | None = None

    # --- the relay -----------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> dict[str, Key]:
        """All tokens by key id; at the first start that is a new one, the first, which is kept in clear as well. `now` is unix time."""
        with self._writing():
            keys = self._load()
            if keys is not None:
                return keys
            # Also after a start that ended between these two writes. A first token is never made beside tokens.json: there its absence
            # means that it was replaced or revoked.
            token = self.first()
            if token is None:
                token = new_token()
                disk.write(self._first, f"{token.text()}\n".encode())
            key = Key.made(token, FIRST_LABEL, FIRST_GRANT, now)
            self._save([key])
            return {key.key_id: key}

    def poll(self) -> dict[str, Key] | None:
        """All tokens by key id if the file is another one than when it was read last, else None. What is wrong with it is told once."""
        if self._look() == self._seen:
            return None
        with files.sentences(self.path):
            keys = self._load()
        if keys is None:
            raise StartError(f"The file {self._file} is not there any more: put it back from a copy.")
        return keys

    # --- the command line ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def edit(self) -> Iterator[list[Key]]:
        """All tokens, in the order in which they were made: what the caller makes of the list is saved when the block ends well.

        The first token is kept in clear only as long as its record stays as it is.
        """
        with files.sentences(self.path), self._writing():
            before = self._load()
            if before is None:
                raise not_started(self.path)
            keys = list(before.values())
            yield keys
            after = {key.key_id: key for key in keys}
            if after == before:
                return
            with contextlib.suppress(StartError):  # one that is damaged shows nothing
                first = self.first()
                if first is not None and after.get(first.key_id) != before.get(first.key_id):
                    self._first.unlink()
            self._save(keys)

    def all(self) -> list[Key]:
        """As they are now, in the order in which they were made."""
        with files.sentences(self.path):
            keys = self._load()
        if keys is None:
            raise not_started(self.path)
        return list(keys.values())

    def first(self) -> Token | None:
        """The first token, if it is still kept; without pins."""
        raw = files.read(self._first)
        if raw is None:
            return None
        try:
            return Token.parse(raw.decode())
        except (UsageError, UnicodeDecodeError):
            raise files.damaged(self._first, "it holds no token") from None

    # --- the file ------------------------------------------------------------------------------------------------------

    def _load(self) -> dict[str, Key] | None:
        self._seen = self._look()
        files.check_private(self.path, [FILE])
        kept = files.read_json(self._file, _Form)
        if kept is None:
            return None
        keys = {key.key_id: key for key in kept.tokens}
        if len(keys) < len(kept.tokens):
            raise files.damaged(self._file, "two tokens in it have the same key id")
        return keys

    def _save(self, keys: list[Key]) -> None:
        files.write_json(self._file, _Form(tuple(keys)))
        self._seen = self._look()

    def _look(self) -> tuple[int, ...] | None:
        """What is different when the file, its owner or its mode has changed; None where there is none."""
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        lock = files.lock(self.path / "tokens.lock", wait=True)
        try:
            yield
        finally:
            if lock is not None:
                os.close(lock)


def not_started(path: Path) -> StartError:
    return StartError(
        f"No relay has been started with the state directory {path}: start `fastrelay server` there first, "
        "or name its directory with --state."
    )
