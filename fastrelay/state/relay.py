"""What a relay keeps from one run to the next: its seed, its tokens, and reservations."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from fastrelay import disk
from fastrelay.auth import KEY_SIZE, Token
from fastrelay.errors import StartError
from fastrelay.policy import Key
from fastrelay.state import files
from fastrelay.state.tokens import TokenStore, not_started

_SECRET_FILES: Final = ("seed", "first-token", "tokens.json", "relay.key", "relay.next.key")


class Reservation(msgspec.Struct, frozen=True):
    """What stays reserved for a client that is away (protocol.md section 4.4): `seen` is unix time, `ports` maps service names to ports, and
    `named` the names of private services to the labels of the tokens that they came with.
    """

    instance: str
    seen: float
    ports: dict[str, int]
    named: dict[str, str] = {}


class ServerState:
    """The state of one relay. Made by `open`; holds the directory's lock until `close`."""

    seed: bytes
    """32 random bytes, made once; for the verifiers of key ids that do not exist (protocol.md section 4.2)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokens = TokenStore(path)
        self.keys: Mapping[str, Key] = {}
        """All tokens by key id, as `open` and `reload` found them."""
        self._lock: int | None = None

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> ServerState:
        """The state in the directory `path`, which is made, with a seed and a first token, if it is not there.

        With `read_only` nothing is made or locked: only `token`, `tokens`, `address` and `identity_paths` are for use then. Raises StartError when
        the directory or a file in it cannot be used, another relay uses it, others may change it or read its secrets, or, read only, no token is
        there yet.
        """
        state = cls(path)
        with files.sentences(path):
            if read_only:
                if files.read(path / "first-token") is None and files.read(path / "tokens.json") is None:
                    raise not_started(path)
                files.check_private(path, _SECRET_FILES)
                return state
            files.make_directory(path)
            state._lock = files.lock(path / "lock")
            if state._lock is None:
                raise StartError(
                    f"Another relay uses the state directory {path}: stop that one first, or give this one another with --state."
                )
            try:
                files.check_private(path, _SECRET_FILES)
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

    def token(self, pins: tuple[bytes, ...]) -> Token:
        """The first token, with `pins` (32 bytes each) in it. Raises StartError when it is no longer kept."""
        with files.sentences(self.path):
            token = self.tokens.first()
        if token is None:
            raise StartError(
                f"The first token is no longer kept in {self.path}: make another with `fastrelay token new LABEL`, or use one that was "
                "made later."
            )
        return Token(token.key_id, token.secret, pins)

    def find(self, key_id: str) -> Key | None:
        """The token of a key id, expired or not."""
        return self.keys.get(key_id)

    def reload(self) -> bool:
        """Whether tokens.json has changed since it was read last; then `keys` is what it says now.

        Raises StartError, once for each change, when it cannot be used; `keys` stays as it is.
        """
        keys = self.tokens.poll()
        if keys is None:
            return False
        self.keys = keys
        return True

    def find_cert(self, cert: bytes) -> Key | None:
        """What a client certificate whose public key has this SHA-256 admits by itself (protocol.md section 4.6), expired or not."""
        return next((key for key in self.keys.values() if key.by_certificate and key.cert == cert), None)

    @property
    def identity_paths(self) -> tuple[Path, Path]:
        """Where the relay's own certificate and key are, or belong."""
        return self.path / "relay.crt", self.path / "relay.key"

    def reservations(self) -> dict[str, Reservation]:
        """By client name, as saved last. Raises StartError when the file cannot be read."""
        with files.sentences(self.path):
            return files.read_json(self.path / "reservations.json", dict[str, Reservation]) or {}

    def save_reservations(self, reservations: Mapping[str, Reservation]) -> None:
        """Raises OSError when the disk does not take them; the former ones are then still there."""
        files.write_json(self.path / "reservations.json", dict(reservations))

    def address(self) -> str:
        """Where clients reached this relay when it was started last, as `save_address` was told; "" if that is not known."""
        with files.sentences(self.path):
            return (files.read(self.path / "address") or b"").decode("utf-8", "replace").strip()

    def save_address(self, text: str) -> None:
        """Keep one line for `address`. Raises OSError when the disk does not take it."""
        disk.write(self.path / "address", f"{text}\n".encode())

    def _load(self) -> None:
        self.seed = files.read(self.path / "seed") or disk.write(self.path / "seed", secrets.token_bytes(KEY_SIZE))
        if len(self.seed) != KEY_SIZE:
            raise files.damaged(self.path / "seed", f"it has {len(self.seed)} bytes, not {KEY_SIZE}")
        self.keys = self.tokens.begin(time.time())
