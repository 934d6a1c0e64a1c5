"""What a relay keeps from one run to the next: its seed, the first token, the verifiers of all tokens, and reservations."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from fastrelay.auth import KEY_SIZE, Token, Verifier
from fastrelay.errors import StartError, UsageError
from fastrelay.state import files

_SECRET_FILES: Final = ("seed", "first-token", "tokens.json", "relay.key")


class Reservation(msgspec.Struct, frozen=True):
    """What stays reserved for a client that is away (protocol.md section 4.4): `seen` is unix time, `ports` maps service names to ports."""

    instance: str
    seen: float
    ports: dict[str, int]


class _Tokens(msgspec.Struct, frozen=True):
    """The form of tokens.json."""

    tokens: list[Verifier]


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
        with files.sentences(path):
            if read_only:
                if files.read(path / "first-token") is None and files.read(path / "tokens.json") is None:
                    raise StartError(
                        f"No relay has been started with the state directory {path}: start `fastrelay server` there first, "
                        "or name its directory with --state."
                    )
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

    def token(self, pin: bytes | None) -> Token:
        """The first token, with `pin` (32 bytes) in it if there is one. Raises StartError when it is no longer kept."""
        with files.sentences(self.path):
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
        with files.sentences(self.path):
            return files.read_json(self.path / "reservations.json", dict[str, Reservation]) or {}

    def save_reservations(self, reservations: Mapping[str, Reservation]) -> None:
        """Raises OSError when the disk does not take them; the former ones are then still there."""
        files.write_json(self.path / "reservations.json", dict(reservations))

    def _load(self) -> None:
        self.seed = files.read(self.path / "seed") or files.write(self.path / "seed", secrets.token_bytes(KEY_SIZE))
        if len(self.seed) != KEY_SIZE:
            raise files.damaged(self.path / "seed", f"it has {len(self.seed)} bytes, not {KEY_SIZE}")
        kept = files.read_json(self.path / "tokens.json", _Tokens)
        if kept is None:
            # The first start, or one that ended between these two writes. A first token is never made beside tokens.json: there its
            # absence means that it was replaced or revoked.
            token = self._first_token()
            if token is None:
                token = Token(secrets.token_urlsafe(6), secrets.token_bytes(KEY_SIZE))
                files.write(self.path / "first-token", f"{token.text()}\n".encode())
            kept = _Tokens([Verifier.of(token)])
            files.write_json(self.path / "tokens.json", kept)
        self._verifiers = {verifier.key_id: verifier for verifier in kept.tokens}

    def _first_token(self) -> Token | None:
        path = self.path / "first-token"
        raw = files.read(path)
        if raw is None:
            return None
        try:
            return Token.parse(raw.decode())
        except (UsageError, UnicodeDecodeError):
            raise files.damaged(path, "it holds no token") from None
