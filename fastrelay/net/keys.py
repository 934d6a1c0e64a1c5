"""The relay's keys: a change of its own in two steps, and what a running relay shows (protocol.md section 4.3).

    prepare     makes relay.next.crt and relay.next.key beside relay.crt and relay.key: clients are told the next pin from now on
    switch      puts them in the place of the current ones; of the old key nothing is kept

Invariant: whenever the process is killed, the current files fit each other, or `settle` makes them.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

from fastrelay import disk, log
from fastrelay.auth import pin_texts
from fastrelay.errors import StartError
from fastrelay.net.tls import Identity, load_identity, make_identity, server_context, stamp, web_context

Pair = tuple[Path, Path]
"""The paths of a certificate and of its key."""

_SOON: Final = 2
"""Looks in a row that must see the same files before they are read: a pair is not replaced in one step."""


def next_pair(current: Pair) -> Pair:
    """Where the next certificate and key are, or belong."""
    cert, key = current
    return cert.with_suffix(f".next{cert.suffix}"), key.with_suffix(f".next{key.suffix}")


def prepare(current: Pair) -> Identity:
    """Make the next key. Raises StartError when there is one already, or it cannot be written."""
    settle(current)
    cert, key = next_pair(current)
    if cert.exists() and key.exists():
        raise StartError(
            f"There is a next key already, in {key}: take it with `fastrelay key switch`, or remove {cert.name} and {key.name} first to have "
            "another one made."
        )
    make_identity(cert, key)
    return load_identity(cert, key)


def switch(current: Pair) -> Identity:
    """Make the next key the current one. Raises StartError when there is none, or the files cannot be replaced."""
    settle(current)
    cert, key = next_pair(current)
    if not (cert.exists() and key.exists()):
        raise StartError(
            "There is no next key: make one with `fastrelay key prepare`, and give clients time to hear of it."
        )
    _following((cert, key))
    _replace(key, current[1])
    settle(current)
    return load_identity(*current)


def settle(current: Pair) -> Pair:
    """Make a key where there is none, and end a switch that was interrupted: then the next key has its new place, and its certificate has
    not. Gives back `current`. Raises StartError.
    """
    cert, key = next_pair(current)
    if not current[0].exists():
        make_identity(*current)
    elif cert.exists() and not key.exists() and _fits(cert, current[1]):  # else the key was removed by hand
        _replace(cert, current[0])
    return current


def _fits(cert: Path, key: Path) -> bool:
    try:
        load_identity(cert, key)
    except StartError:
        return False
    return True


def _replace(source: Path, target: Path) -> None:
    try:
        source.replace(target)
        disk.settle(target.parent)
    except OSError as error:
        raise StartError(
            f"The file {target} cannot be replaced, because the system says {error.strerror or error}: "
            "give this user the right to write there."
        ) from error


class Shown:
    """What a relay shows to clients in TLS, and is told about itself by `pins`. Raises StartError when the files cannot serve.

    `own` says that the key is the relay's own, which may have a next one; `client_ca` is a file of CAs of clients' certificates. With `web` it is
    the HTTPS front that shows them, to visitors.
    """

    identity: Identity
    context: ssl.SSLContext
    """For handshakes from now on."""
    pins: tuple[bytes, ...]
    """What clients know the relay by, now and next; nothing where CAs vouch for it."""

    def __init__(self, current: Pair, *, own: bool, client_ca: Path | None = None, web: bool = False) -> None:
        self._current = current
        self._next = next_pair(current) if own else None
        self._client_ca = client_ca
        self._web = web
        self._files = [*current, *(self._next or ()), *([client_ca] if client_ca else ())]
        self._identities: WeakKeyDictionary[ssl.SSLContext, Identity] = WeakKeyDictionary()
        self._loaded = self._seen = stamp(self._files)
        self._looks = 0
        self._take(*self._load())

    def of(self, context: ssl.SSLContext) -> Identity:
        """What was shown in a handshake with this context, which may be an earlier one."""
        return self._identities[context]

    def look(self) -> bool:
        """Whether the files have changed and were loaded. What cannot serve is logged, once, and the relay goes on with what it has."""
        now = stamp(self._files)
        self._looks = self._looks + 1 if now == self._seen else 1
        self._seen = now
        if now == self._loaded or self._looks < _SOON:
            return False
        before, pins = self.identity.fingerprint, self.pins
        try:
            found, why = self._load(), ""
        except StartError as error:
            found, why = None, str(error)
        if stamp(self._files) != now:
            return False  # what was read may be half of the former files and half of the next
        self._loaded = now
        if found is None:
            log.error("certificate.not_loaded", f"The relay goes on with its former certificate. {why}")
            return False
        self._take(*found)
        if self.pins != pins:
            told = "the key and the next one" if len(self.pins) > 1 else "one key" if self.pins else "no key"
            log.info("key.announced", f"Clients are told of {told} from now on.", pins=pin_texts(self.pins))
        if self.identity.fingerprint != before or self.pins == pins:
            log.info(
                "certificate.loaded",
                f"{'Visitors' if self._web else 'Clients'} that connect from now on see the certificate in {self.identity.cert_path}, which is valid until "
                f"{self.identity.until:%Y-%m-%d}{f', and are judged by the CAs in {self._client_ca}' if self._client_ca else ''}.",
                path=str(self.identity.cert_path),
                until=f"{self.identity.until:%Y-%m-%dT%H:%M:%SZ}",
                fingerprint=self.identity.fingerprint.hex(),
            )
        return True

    def _load(self) -> tuple[Identity, ssl.SSLContext, tuple[bytes, ...]]:
        """Raises StartError."""
        if self._web:
            identity = load_identity(*self._current, "--http-cert", "--http-key")
            return identity, web_context(identity), ()
        identity = load_identity(*self._current)
        return identity, server_context(identity, self._client_ca), known_by(identity, self._next)

    def _take(self, identity: Identity, context: ssl.SSLContext, pins: tuple[bytes, ...]) -> None:
        self.identity, self.context, self.pins = identity, context, pins
        self._identities[context] = identity


def known_by(identity: Identity, following: Pair | None) -> tuple[bytes, ...]:
    """The pins that clients know a relay by, its current one first; none where a CA vouches for it. Raises StartError."""
    if not identity.self_signed:
        return ()
    if following is None or not all(path.exists() for path in following):
        return (identity.pin,)
    return (identity.pin, _following(following).pin)


def _following(pair: Pair) -> Identity:
    """The next identity. Raises StartError."""
    try:
        return load_identity(*pair)
    except StartError:
        cert, key = pair
        raise StartError(
            f"The next key cannot be used, because {cert} and {key.name} are damaged or do not belong together: remove both, and make "
            "another with `fastrelay key prepare`."
        ) from None
