"""Invariant: whatever is in the files of a state directory, only StartError leaves, a sentence that names the file. What is read can be used
and saved, and reads the same again.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from fastrelay.auth import KEY_SIZE, MAX_PINS, Token
from fastrelay.config import PortRange
from fastrelay.errors import StartError
from fastrelay.net.tls import load_identity, make_identity, server_context
from fastrelay.policy import FIRST_GRANT, Key, standing
from fastrelay.roles.registry import Registry
from fastrelay.state import ClientState, Reservation, ServerState
from fastrelay.state.tokens import TokenStore
from tests.fuzz.fuzzer import Fuzzer
from tests.fuzz.texts import odd_json, slip
from tests.support.pair import refusal

NOW = 1_700_000_000.0
PORTS = PortRange(20_000, 20_009)
OWN = 20_009
FIRST = Key.made(Token("k3yID_-0", bytes(32)), "first", FIRST_GRANT, NOW)
RESERVATIONS = {
    "home": Reservation("inst-1", NOW - 100, {"tcp-22": 20_000, "web": 20_003}),
    "nas": Reservation("inst-2", NOW - 90_000, {"ssh": 20_001}),
    "empty": Reservation("inst-3", NOW, {}),
}
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # fsync costs nothing there
SERVER_FILES = ("tokens.json", "reservations.json", "tokens.json", "reservations.json", "first-token", "seed")
PEM = ("relay.crt", "relay.key")
PINS = f"{hashlib.sha256(b'tls://h:1' + bytes([10]) + b'home').hexdigest()[:32]}.pins"
CLIENT_FILES = ("instance", PINS)
TOKEN = Token("k3yID_-0", bytes(KEY_SIZE), (b"0" * KEY_SIZE,))


class Fuzz(Fuzzer):
    """One broken file after the other in an otherwise sound directory."""

    counted = "files"

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._home = tempfile.TemporaryDirectory(prefix="fastrelay-fuzz-", dir=MEMORY)
        self._server = Path(self._home.name) / "server"
        self._client = Path(self._home.name) / "client"
        self._sound = {Path(self._home.name) / name: raw for name, raw in sound().items()}
        for path, raw in self._sound.items():
            path.parent.mkdir(exist_ok=True)
            _put(path, raw)

    def close(self) -> None:
        self._home.cleanup()

    def step(self) -> None:
        random = self.random
        self.count += 1
        name = random.choice((*SERVER_FILES, *PEM, *CLIENT_FILES))
        path = (self._client if name in CLIENT_FILES else self._server) / name
        sound = self._sound[path]
        raw = random.choice(WAYS)(random, sound)
        self.mutated += raw != sound
        _put(path, raw)
        said = ""
        try:
            self._use_client() if name in CLIENT_FILES else self._use_identity() if name in PEM else self._use_server()
        except StartError as error:
            said = str(error)
        finally:
            _put(path, sound)
        # Of a certificate with a broken end OpenSSL says what it says of a broken key.
        assert said.isprintable() and (not said or str(path.with_suffix("") if name in PEM else path) in said), said
        self.ended(f"{name} {'refused' if said else 'read'}")

    def _use_client(self) -> None:
        state = ClientState.open(self._client, "tls://h:1", "home")
        try:
            assert state.instance.isascii() and state.instance
            pins = state.pins(TOKEN)
            assert 1 <= len(pins) <= MAX_PINS and all(len(pin) == KEY_SIZE for pin in pins)
            state.save_pins(TOKEN, pins)
            assert state.pins(TOKEN) == pins, "what was saved reads otherwise"
        finally:
            state.close()

    def _use_identity(self) -> None:
        cert, key = (self._server / name for name in PEM)
        identity = load_identity(cert, key)
        server_context(identity)
        assert len(identity.pin) == len(identity.fingerprint) == KEY_SIZE

    def _use_server(self) -> None:
        state = ServerState.open(self._server)
        try:
            state.token(())
            assert not state.reload(), "a file that nobody touched has changed"
            for key in state.keys.values():
                self._use_key(key)
            allowed = FIRST.ports(PORTS, OWN)
            kept = state.reservations()
            registry = Registry(kept)
            for name in (*kept, "new"):
                if refusal(lambda name=name: registry.claim(name, "inst-1", object(), NOW)) is None:  # type: ignore[misc]
                    offer = registry.offer(name, "tcp-22", 0, allowed, NOW)
                    for port in itertools.islice(offer.ports, 1):
                        assert port in PORTS and port != OWN
                        registry.grant(name, "tcp-22", port)
            saved = registry.reservations(NOW)
            state.save_reservations(saved)
            assert state.reservations() == saved, "what was saved reads otherwise"
        finally:
            state.close()
            for name in ("tokens.json", "reservations.json"):
                _put(self._server / name, self._sound[self._server / name])

    def _use_key(self, key: Key) -> None:
        """A key that was read is asked everything that a client can make a relay ask; it is saved, and reads the same."""
        random = self.random
        allowed = key.ports(PORTS, OWN)
        for port in (1, 443, 20_005, OWN, 65_535):
            granted = allowed.refusal(port) is None
            assert granted is (port in allowed), f"{key.grant} is not of one mind about {port}"
        for refused in (key.expired(NOW), key.refuse_name("home"), key.refuse_service("tcp-22"), allowed.nothing()):
            assert refused is None or refused.text.isprintable()
        assert 1 <= key.streams(1000) <= 1000
        assert standing(key, key, 0.0) is None
        store = TokenStore(self._server)
        with store.edit() as keys:
            if random.random() < 0.1 and all(one.key_id != TOKEN.key_id for one in keys):
                keys.append(Key.made(Token("k3yID_-0", bytes(32)), "added", FIRST_GRANT, NOW))
            expected = list(keys)
        assert store.all() == expected, "what was saved reads otherwise"


@functools.cache
def sound() -> dict[str, bytes]:
    """Path and content of the files of a relay and a client."""
    with tempfile.TemporaryDirectory(prefix="fastrelay-fuzz-") as home:
        relay = ServerState.open(Path(home) / "server")
        relay.save_reservations(RESERVATIONS)
        relay.close()
        make_identity(*relay.identity_paths)
        with TokenStore(relay.path).edit() as keys:
            keys.append(Key.made(Token("bound--0", bytes(32)), "bound", FIRST_GRANT, NOW, bytes(KEY_SIZE)))
            keys.append(Key.for_certificate("certs--0", bytes(KEY_SIZE), "certs", FIRST_GRANT, NOW))
        client = ClientState.open(Path(home) / "client", "tls://h:1", "home")
        client.save_pins(TOKEN, (b"1" * KEY_SIZE, b"2" * KEY_SIZE))
        assert client.pins_path.name == PINS
        client.close()
        names = (*(f"server/{name}" for name in (*SERVER_FILES, *PEM)), *(f"client/{name}" for name in CLIENT_FILES))
        return {name: (Path(home) / name).read_bytes() for name in names}


def _put(path: Path, raw: bytes) -> None:
    """Without fsync, and for its owner only."""
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(raw)


def _nothing(random: Random, raw: bytes) -> bytes:
    return raw


def _bytes(random: Random, raw: bytes) -> bytes:
    changed = bytearray(raw)
    for _ in range(random.choice((1, 1, 2, 8))):
        at = random.randint(0, len(changed))
        changed[at : at + random.randint(0, 3)] = random.randbytes(random.randint(0, 3))
    return bytes(changed)


def _cut(random: Random, raw: bytes) -> bytes:
    return raw[: random.randint(0, len(raw))]


def _text(random: Random, raw: bytes) -> bytes:
    return slip(random, raw.decode("utf-8", "replace")).encode("utf-8", "surrogatepass")


def _values(random: Random, raw: bytes) -> bytes:
    return odd_json(random, raw) or _text(random, raw)


def _deep(random: Random, raw: bytes) -> bytes:
    return random.choice((b"[", b'{"a":')) * random.choice((1, 100, 100_000))


WAYS: tuple[Callable[[Random, bytes], bytes], ...] = (
    *(_nothing, _deep, _cut),
    *(_bytes, _text) * 3,
    *(_values,) * 8,
)
