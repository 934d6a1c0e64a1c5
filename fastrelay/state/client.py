"""What a client keeps from one run to the next: which installation it is, and for each relay and name a lock and the relay's pins."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

import msgspec

from fastrelay import disk
from fastrelay.auth import INSTANCE, KEY_SIZE, MAX_PINS, Token
from fastrelay.errors import StartError
from fastrelay.state import files


class _Told(msgspec.Struct, frozen=True):
    """The form of <hash>.pins: what the relay told a client with this key id, whose token names `token_pins` (protocol.md section 4.3)."""

    key_id: str
    token_pins: tuple[bytes, ...]
    pins: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.pins) <= MAX_PINS or any(len(pin) != KEY_SIZE for pin in self.pins):
            raise ValueError(f"pins are not one to {MAX_PINS} times {KEY_SIZE} bytes")


class ClientState:
    """The state of one client. Made by `open`; holds the lock of its relay and name, if it has a name, until `close`."""

    def __init__(self, path: Path, instance: str, own: str, lock: int | None) -> None:
        self.path = path
        self.pins_path = path / f"{own}.pins"
        self.instance = instance
        """Which installation this is (protocol.md section 4.1): 22 random characters, made once for the directory."""
        self._lock = lock

    @classmethod
    def open(cls, path: Path, relay_url: str, name: str) -> ClientState:
        """The state in the directory `path`, which is made if it is not there, for the client `name` of the relay `relay_url`.

        Raises StartError when the directory or a file in it cannot be used, or a client with this name and relay already runs from it:
        two would take the session from each other for ever (protocol.md section 4.4). Of those without a name there may be many.
        """
        own = hashlib.sha256(f"{relay_url}\n{name}".encode()).hexdigest()[:32]
        with files.sentences(path):
            files.make_directory(path)
            lock = files.lock(path / f"{own}.lock") if name else None
            if lock is None and name:
                raise StartError(
                    f"Another fastrelay client named {name!r} already runs here for {relay_url}: stop that one, or give this one "
                    "another name with --name."
                )
            try:
                return cls(path, _instance(path), own, lock)
            except BaseException:
                if lock is not None:
                    os.close(lock)
                raise

    def pins(self, token: Token) -> tuple[bytes, ...]:
        """The pins to hold the relay against: what it told last to this token, else the token's. Raises StartError for a damaged file."""
        with files.sentences(self.path):
            told = files.read_json(self.pins_path, _Told)
        if told is None or (told.key_id, told.token_pins) != (token.key_id, token.pins):
            return token.pins
        return told.pins

    def save_pins(self, token: Token, pins: tuple[bytes, ...]) -> None:
        """Keep what the relay told, one or two pins. Raises OSError when the disk does not take it; the former ones are then still there."""
        files.write_json(self.pins_path, _Told(token.key_id, token.pins, pins))

    def close(self) -> None:
        """Let the next client use the name. May be called again."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _instance(path: Path) -> str:
    file = path / "instance"
    # Clients with other names may start at the same time; they must agree on one instance.
    lock = files.lock(path / "lock", wait=True)
    try:
        raw = files.read(file) or disk.write(file, f"{secrets.token_urlsafe(16)}\n".encode())
    finally:
        if lock is not None:
            os.close(lock)
    instance = raw.decode("ascii", "replace").strip()
    if not INSTANCE.fullmatch(instance):
        raise files.damaged(file, "it holds no instance")
    return instance
