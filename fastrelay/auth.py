"""Tokens, verifiers and the two sides of the handshake, side by side (protocol.md section 4).

Pure: no clock and no dice inside. Nonces, secrets and the certificate's hash are passed in; the steps take and give payloads of frames.
Comparisons of proofs take constant time, and no repr shows a key.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import msgspec

from fastrelay import config, wire
from fastrelay.errors import Code, ProtocolError, UsageError

KEY_SIZE: Final = 32
"""Bytes of a secret, a key, a nonce, a proof, a pin and a binding."""

KEY_ID: Final = re.compile(r"[A-Za-z0-9_-]{8}")
"""The form of a key id; for `fullmatch`."""

INSTANCE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""The form of an instance; for `fullmatch`."""

_AGENT_LENGTH: Final = 64
MAX_PINS: Final = 2
"""Pins in a token, in WELCOME and in PINS: the current key's and the next one's."""

_REFUSED: Final = "the token is not valid on this relay; get the current one with `fastrelay token show` there"
_OTHER_CERTIFICATE: Final = "the client sees another certificate than this relay's, so something between the two reads the tunnel; connect to the relay directly"
_PROXY_UNSAID: Final = "this relay runs behind a proxy that ends TLS, and the client does not know that; connect with wss:// and --behind-proxy"
_NO_PROXY: Final = "this relay ends TLS itself, and the client was told that a proxy does; leave out --behind-proxy"
_NO_CERTIFICATE: Final = (
    "this relay admits only clients with a certificate of its CA; give this one with --client-cert and --client-key"
)
_NEEDS_CERTIFICATE: Final = (
    "the token is valid only together with the client certificate that it was made for; give that one with --client-cert and "
    "--client-key, and the relay its CA with --client-ca"
)
_UNKNOWN_CERTIFICATE: Final = (
    "the client has no token, and shows no certificate that this relay knows; "
    "`fastrelay token new LABEL --client-cert FILE --no-token` there makes one known, if it runs with --client-ca"
)
_IMPOSTOR: Final = (
    "the relay does not know the token, so it is not the one that made it; check the relay's address and its token with "
    "`fastrelay token show` there"
)


# --- tokens and verifiers (protocol.md sections 4.2 and 4.3) -----------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Token:
    """What a client holds: who it is (`key_id`), the proof of it (`secret`, 32 bytes) and whom to trust (`pins`, up to two of 32 bytes).

    A pin is the SHA-256 of the relay's public key; without one the CAs decide. Raises UsageError for parts that cannot be.
    """

    key_id: str
    secret: bytes
    pins: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if not KEY_ID.fullmatch(self.key_id):
            raise UsageError(_damaged("its key id does not have 8 characters of a-z A-Z 0-9 _ -"))
        if len(self.secret) != KEY_SIZE:
            raise UsageError(_damaged("its secret does not have the right length"))
        if len(self.pins) > MAX_PINS:
            raise UsageError(_damaged(f"it has more than {MAX_PINS} pins"))
        if any(len(pin) != KEY_SIZE for pin in self.pins):
            raise UsageError(_damaged("a pin in it does not have the right length"))

    @classmethod
    def parse(cls, text: str) -> Token:
        """A token from its text; white space, also within, is what copying from a terminal adds, and is dropped.

        Raises UsageError, which never quotes the text.
        """
        version, *parts = "".join(text.split()).split(".")
        if not version and not parts:
            raise UsageError("The token is empty: get one with `fastrelay token show` on the relay.")
        if version != "fr1":
            raise UsageError(
                "The token is not a token of fastrelay, which begins with fr1: get one with `fastrelay token show` on the relay."
            )
        if not 2 <= len(parts) <= 2 + MAX_PINS:
            raise UsageError(_damaged('it does not have three to five parts between "."'))
        key_id, secret, *pins = parts
        return cls(key_id, _decode(secret) or b"", tuple(_decode(pin) or b"" for pin in pins))

    def text(self) -> str:
        """The whole token, secret and all."""
        return ".".join(("fr1", self.key_id, _encode(self.secret), *map(_encode, self.pins)))

    def __repr__(self) -> str:
        return f"fr1.{self.key_id}.…"


class Verifier(msgspec.Struct, frozen=True):
    """What a relay keeps of a client's right to come in: enough to check it, not enough to log in (sections 4.2 and 4.6).

    The keys of a token, 32 bytes each; or `cert`, the SHA-256 of a client certificate's public key; or both. What is not there is empty.
    """

    key_id: str
    stored_key: bytes = b""
    server_key: bytes = b""
    cert: bytes = b""

    def __post_init__(self) -> None:
        if not KEY_ID.fullmatch(self.key_id):
            raise ValueError("key_id is not 8 characters of the base64url alphabet")
        sizes = [len(self.stored_key), len(self.server_key), len(self.cert)]
        if sizes not in ([KEY_SIZE, KEY_SIZE, 0], [KEY_SIZE, KEY_SIZE, KEY_SIZE], [0, 0, KEY_SIZE]):
            raise ValueError(f"stored_key and server_key, or cert, or all of them, are not of {KEY_SIZE} bytes")

    @classmethod
    def of(cls, token: Token, cert: bytes = b"") -> Verifier:
        return cls(token.key_id, sha256(client_key(token.secret)).digest(), server_key(token.secret), cert)

    @property
    def by_certificate(self) -> bool:
        """Whether there is no token: the certificate alone admits."""
        return not self.stored_key

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.key_id})"


_NOBODY: Final = Verifier("nobody--", bytes(KEY_SIZE), bytes(KEY_SIZE))
"""Is looked at where there is no verifier; its keys are not used."""


def holds(token: Token, kept: Verifier | None) -> bool:
    """Whether this is the token that a relay keeps `kept` of; whether there is one takes the same time to say."""
    shown = sha256(client_key(token.secret)).digest()
    return hmac.compare_digest(shown, (kept or _NOBODY).stored_key)


def _damaged(why: str) -> str:
    return f"The token is damaged, {why}: copy the whole of it again from `fastrelay token show` on the relay."


# --- the proof (protocol.md section 4.2) -------------------------------------------------------------------------------


def client_key(secret: bytes) -> bytes:
    return _hmac(secret, b"client key")


def server_key(secret: bytes) -> bytes:
    return _hmac(secret, b"server key")


def transcript(hello_c: bytes, hello_s: bytes, key_id: str, name: str, instance: str, binding: bytes | None) -> bytes:
    """`t`: the SHA-256 over all that both sides have said. `binding` is 32 bytes, or None for `none`."""
    parts = (hello_c, hello_s, key_id.encode(), name.encode(), instance.encode(), binding or bytes(KEY_SIZE))
    return sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()


def client_proof(secret: bytes, t: bytes) -> bytes:
    """The proof of AUTH, 32 bytes."""
    key = client_key(secret)
    return _xor(key, _hmac(sha256(key).digest(), t))


def relay_proof(server: bytes, t: bytes) -> bytes:
    """The proof of WELCOME, 32 bytes; `server` is the server key."""
    return _hmac(server, t)


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes | None:
    """32 bytes from base64url, or None if `text` is anything else, another spelling of the same bytes included."""
    if len(text) != 43 or not text.isascii():
        return None
    try:
        raw = base64.urlsafe_b64decode(text + "=")
    except binascii.Error:
        return None
    return raw if _encode(raw) == text else None


# --- pins (protocol.md section 4.3) ------------------------------------------------------------------------------------


def parse_pin(text: str) -> bytes:
    """A pin as typed, 32 bytes. Raises UsageError."""
    pin = _decode(text.strip())
    if pin is None:
        raise UsageError(
            f"The pin {text!r} is not 43 characters of base64url: copy it from `fastrelay key show` on the relay."
        )
    return pin


def login_text(login: bytes) -> str:
    """The SHA-256 of a login (protocol.md section 5.3) as it is written; "" for none."""
    return _encode(login) if login else ""


def read_login(text: str) -> bytes:
    """The same from the wire. Raises ValueError."""
    login = _decode(text)
    if text and login is None:
        raise ValueError("it is not a SHA-256 in base64url")
    return login or b""


def pin_texts(pins: Iterable[bytes]) -> list[str]:
    """Pins as they are written."""
    return [_encode(pin) for pin in pins]


def read_pins(texts: list[str]) -> tuple[bytes, ...]:
    """Pins from the wire. Raises ProtocolError (PROTOCOL) for more than two, and for what is none."""
    pins = tuple(_decode(text) or b"" for text in texts)
    if len(pins) > MAX_PINS or not all(pins):
        raise ProtocolError(
            Code.PROTOCOL, f"the relay's pins are not up to {MAX_PINS} times {KEY_SIZE} bytes in base64url"
        )
    return pins


# --- the client's side (protocol.md section 4.1) -----------------------------------------------------------------------


class ClientLogin:
    """The client's three steps, each called once and in order: `hello`, `auth`, `welcome`.

    `binding` is the SHA-256 of the certificate that the relay showed, or None on a plaintext tunnel; `nonce` is 32 fresh random bytes.
    The caller has compared the pin before it sends the first byte. Without a token the certificate that TLS has shown must do.
    """

    peer: wire.RelayHello
    """What the relay said of itself; there after `auth`."""
    pins: tuple[bytes, ...]
    """What the relay's keys are and will be; there after `welcome`."""

    def __init__(
        self,
        token: Token | None,
        name: str,
        instance: str,
        binding: bytes | None,
        nonce: bytes,
        settings: wire.Settings,
        agent: str,
    ) -> None:
        self._token = token
        self._name = name
        self._instance = instance
        self._binding = binding
        self._hello = wire.pack_json(
            wire.ClientHello(
                versions=(wire.VERSION, wire.VERSION),
                agent=agent[:_AGENT_LENGTH],
                nonce=_encode(nonce),
                binding=_binding_text(binding),
                settings=settings,
            )
        )
        self._t = b""

    def hello(self) -> bytes:
        """The payload of HELLO."""
        return self._hello

    def auth(self, relay_hello: bytes) -> bytes:
        """The payload of AUTH, as the answer to the relay's HELLO.

        Raises ProtocolError: VERSION for a version that was not offered, PROTOCOL for a HELLO that breaks section 4.1.
        """
        peer = wire.unpack_json(relay_hello, wire.RelayHello)
        if peer.version != wire.VERSION:
            raise ProtocolError(
                Code.VERSION,
                f"the relay chose a version that was not offered, only {wire.VERSION} was; upgrade the older of the two",
            )
        _check_hello(peer)
        self.peer = peer
        token = self._token
        if token is None:
            return wire.pack_json(wire.Auth(key_id="", proof="", name=self._name, instance=self._instance))
        self._t = transcript(self._hello, relay_hello, token.key_id, self._name, self._instance, self._binding)
        proof = _encode(client_proof(token.secret, self._t))
        return wire.pack_json(wire.Auth(key_id=token.key_id, proof=proof, name=self._name, instance=self._instance))

    def welcome(self, payload: bytes) -> wire.Welcome:
        """The relay's WELCOME, once it has proved that it knows the token; without a token TLS alone has proved the relay.

        Raises ProtocolError: UNAUTHORIZED for a wrong proof, PROTOCOL for a payload that is not a WELCOME.
        """
        welcome = wire.unpack_json(payload, wire.Welcome)
        if self._token is None:
            if welcome.proof:
                raise ProtocolError(Code.PROTOCOL, "WELCOME has a proof that nobody asked for")
        else:
            proof = relay_proof(server_key(self._token.secret), self._t)
            if not hmac.compare_digest(_decode(welcome.proof) or b"", proof):
                raise ProtocolError(Code.UNAUTHORIZED, _IMPOSTOR)
        self.pins = read_pins(welcome.pins)
        if not (welcome.session + welcome.host).isprintable():  # both are shown to people
            raise ProtocolError(Code.PROTOCOL, "session or host in WELCOME is not printable")
        if welcome.host and not config.is_host(welcome.host):  # people copy it into commands
            raise ProtocolError(Code.PROTOCOL, "the host in WELCOME is not a host name or address")
        return welcome


# --- the relay's side (protocol.md section 4.1) ------------------------------------------------------------------------


class RelayLogin:
    """The relay's three steps, each called once and in order: `hello`, `auth`, `welcome`.

    `find` looks up the verifier of a key id, `seed` is the relay's own secret for key ids that it does not know, `binding` is the SHA-256
    of its certificate, or None for tunnels without TLS; `nonce` is 32 fresh random bytes. `shown` is the SHA-256 of the public key of the
    client certificate that TLS has accepted, None without one; `find_cert` looks up whom it admits; `required`: nobody comes in without one.
    `pins` says what clients know the relay by.
    """

    peer: wire.ClientHello
    """What the client said of itself; there after `hello`. Nothing in it is proved before `auth` returns."""
    admitted: Verifier
    """By what right the client came in; there after `auth`."""

    def __init__(
        self,
        find: Callable[[str], Verifier | None],
        seed: bytes,
        binding: bytes | None,
        nonce: bytes,
        settings: wire.Settings,
        agent: str,
        *,
        shown: bytes | None = None,
        find_cert: Callable[[bytes], Verifier | None] = lambda _: None,
        required: bool = False,
        pins: Callable[[], tuple[bytes, ...]] = lambda: (),
    ) -> None:
        self._find = find
        self._find_cert = find_cert
        self._shown = shown
        self._required = required
        self._pins = pins
        self._seed = seed
        self._binding = binding
        self._hello_s = wire.pack_json(
            wire.RelayHello(version=wire.VERSION, agent=agent[:_AGENT_LENGTH], nonce=_encode(nonce), settings=settings)
        )
        self._hello_c = b""
        self._proof = ""

    def hello(self, payload: bytes) -> bytes:
        """The payload of the relay's HELLO, as the answer to the client's.

        Raises ProtocolError: VERSION without a common version, UNAUTHORIZED for another binding than the relay's own and without a
        certificate that is required, PROTOCOL for a HELLO that breaks section 4.1.
        """
        if self._required and self._shown is None:
            raise ProtocolError(Code.UNAUTHORIZED, _NO_CERTIFICATE)
        peer = wire.unpack_json(payload, wire.ClientHello)
        lowest, highest = peer.versions
        if lowest > highest:
            raise ProtocolError(Code.PROTOCOL, "the versions in HELLO are not a range")
        if not lowest <= wire.VERSION <= highest:
            raise ProtocolError(
                Code.VERSION,
                f"this relay speaks version {wire.VERSION} and the client does not; upgrade the older of the two",
            )
        _check_hello(peer)
        if peer.binding != _binding_text(self._binding):
            none = peer.binding == _binding_text(None)
            why = _PROXY_UNSAID if self._binding is None else _NO_PROXY if none else _OTHER_CERTIFICATE
            raise ProtocolError(Code.UNAUTHORIZED, why)
        self.peer = peer
        self._hello_c = payload
        return self._hello_s

    def auth(self, payload: bytes) -> wire.Auth:
        """Who the client is, once it has proved it.

        Raises ProtocolError: UNAUTHORIZED, with the same text after the same work, for an unknown key id and for a wrong proof, and with
        texts of their own for certificates (section 4.6); PROTOCOL for an AUTH that breaks section 4.1.
        """
        auth = wire.unpack_json(payload, wire.Auth)
        if auth.name and not config.NAME.fullmatch(auth.name):
            raise ProtocolError(Code.PROTOCOL, "the name in AUTH does not have the form of a name")
        if not INSTANCE.fullmatch(auth.instance):
            raise ProtocolError(Code.PROTOCOL, "the instance in AUTH does not have the form of an instance")
        if auth.key_id or auth.proof:
            self.admitted = self._by_token(auth)
        else:
            self.admitted = self._by_certificate()
        return auth

    def _by_token(self, auth: wire.Auth) -> Verifier:
        t = transcript(self._hello_c, self._hello_s, auth.key_id, auth.name, auth.instance, self._binding)
        # Made up for every key id, known or not, and looked at in the same way, so that the time does not tell which ids exist.
        stored = _hmac(self._seed, b"stored key " + auth.key_id.encode())
        server = _hmac(self._seed, b"server key " + auth.key_id.encode())
        verifier = self._find(auth.key_id)
        kept = verifier or _NOBODY
        usable = not kept.by_certificate and verifier is not None
        stored, server = ((stored, server), (kept.stored_key, kept.server_key))[usable]
        key = _xor(_decode(auth.proof) or bytes(KEY_SIZE), _hmac(stored, t))
        proof = relay_proof(server, t)
        proved = hmac.compare_digest(sha256(key).digest(), stored)
        if not (proved and usable) or verifier is None:
            raise ProtocolError(Code.UNAUTHORIZED, _REFUSED)
        # Only who has the token learns that it needs a certificate.
        if verifier.cert and not hmac.compare_digest(verifier.cert, self._shown or b""):
            raise ProtocolError(Code.UNAUTHORIZED, _NEEDS_CERTIFICATE)
        self._proof = _encode(proof)
        return verifier

    def _by_certificate(self) -> Verifier:
        shown = self._shown if self._binding is not None else None  # a plaintext tunnel has shown nothing
        verifier = self._find_cert(shown) if shown else None
        if verifier is None or not verifier.by_certificate or verifier.cert != shown:
            raise ProtocolError(Code.UNAUTHORIZED, _UNKNOWN_CERTIFICATE)
        return verifier

    def welcome(self, session: str, host: str) -> bytes:
        """The payload of WELCOME; `host` is what visitors type, or ""."""
        return wire.pack_json(wire.Welcome(proof=self._proof, session=session, host=host, pins=pin_texts(self._pins())))


def _binding_text(binding: bytes | None) -> str:
    return "none" if binding is None else _encode(binding)


def _check_hello(hello: wire.ClientHello | wire.RelayHello) -> None:
    """Raises ProtocolError (PROTOCOL)."""
    if _decode(hello.nonce) is None:
        raise ProtocolError(Code.PROTOCOL, f"the nonce in HELLO is not {KEY_SIZE} bytes in base64url")
    if len(hello.agent) > _AGENT_LENGTH:
        raise ProtocolError(Code.PROTOCOL, f"the agent in HELLO has more than {_AGENT_LENGTH} characters")
