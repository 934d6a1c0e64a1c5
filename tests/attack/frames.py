"""Bytes of protocol.md, written from its text alone: sections 3, 4.2, 4.3 and 6.1."""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import json
import struct
from typing import Any, NamedTuple

HEADER_SIZE = 8


class Kind(enum.IntEnum):
    DATA = 0x00
    FIN = 0x01
    TRUNC = 0x02
    OPEN = 0x03
    ACCEPT = 0x04
    WINDOW = 0x05
    RESET = 0x06
    STOP = 0x07
    PING = 0x08
    PONG = 0x09
    GOAWAY = 0x0A
    HELLO = 0x10
    AUTH = 0x11
    WELCOME = 0x12
    EXPOSE = 0x13
    EXPOSED = 0x14
    LIST = 0x15
    LISTED = 0x16
    UNKNOWN = 0x80


class Code(enum.IntEnum):
    NO_ERROR = 0
    PROTOCOL = 1
    FLOW_CONTROL = 2
    FRAME_SIZE = 3
    STREAM_STATE = 4
    INTERNAL = 5
    CALM = 6
    UNAUTHORIZED = 7
    SUPERSEDED = 8
    SHUTDOWN = 11
    REFUSED = 32
    DIAL_TIMEOUT = 34
    NO_SERVICE = 35
    LIMIT = 36
    CONNECTION_RESET = 37
    DIAL_DENIED = 40


class Frame(NamedTuple):
    kind: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """Of a RESET or STOP."""
        return int.from_bytes(self.payload, "big")


def frame(kind: int, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">II", kind << 24 | len(payload), stream) + payload


def field(type_: int, value: bytes) -> bytes:
    """One field of OPEN; its length is cut to what a byte can say."""
    return struct.pack("BB", type_, len(value[:255])) + value[:255]


def service(number: int) -> bytes:
    return field(1, struct.pack(">I", number))


def open_(stream: int, *fields: bytes, limit: int = 65_536, kind: int = 0) -> bytes:
    return frame(Kind.OPEN, stream, struct.pack(">BQ", kind, limit) + b"".join(fields))


def accept(stream: int, limit: int = 65_536) -> bytes:
    return frame(Kind.ACCEPT, stream, struct.pack(">Q", limit))


def window(stream: int, limit: int, consumed: int = 0) -> bytes:
    return frame(Kind.WINDOW, stream, struct.pack(">QQ", limit, consumed))


def reset(stream: int, code: int = Code.CONNECTION_RESET) -> bytes:
    return frame(Kind.RESET, stream, struct.pack(">I", code))


def stop(stream: int, code: int = 38) -> bytes:
    return frame(Kind.STOP, stream, struct.pack(">I", code))


def data(stream: int, payload: bytes) -> bytes:
    return frame(Kind.DATA, stream, payload)


def ping(payload: bytes = b"hostile!") -> bytes:
    return frame(Kind.PING, 0, payload)


def said(kind: int, /, **members: Any) -> bytes:
    """A frame of JSON."""
    return frame(kind, 0, json.dumps(members, separators=(",", ":")).encode())


def expose(number: int, **members: Any) -> bytes:
    return said(Kind.EXPOSE, **{"service": number, "name": f"s{number}", "kind": "tcp"} | members)


def exposed(number: int, **members: Any) -> bytes:
    return said(Kind.EXPOSED, service=number, **members)


class Splitter:
    """Bytes that arrive, cut into frames."""

    def __init__(self) -> None:
        self._raw = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not whole yet."""
        return len(self._raw)

    def feed(self, chunk: bytes) -> list[Frame]:
        raw = self._raw
        raw += chunk
        found = []
        at = 0
        while len(raw) - at >= HEADER_SIZE:
            word, stream = struct.unpack_from(">II", raw, at)
            stop = at + HEADER_SIZE + (word & 0xFFFFFF)
            if stop > len(raw):
                break
            found.append(Frame(word >> 24, stream, bytes(raw[at + HEADER_SIZE : stop])))
            at = stop
        del raw[:at]
        return found


# --- section 4 ----------------------------------------------------------------------------------------------------------


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Token(NamedTuple):
    key_id: str
    secret: bytes
    pins: tuple[bytes, ...]

    @classmethod
    def parse(cls, text: str) -> Token:
        _, key_id, secret, *pins = text.strip().split(".")
        return cls(key_id, unb64(secret), tuple(unb64(pin) for pin in pins))

    def text(self) -> str:
        return ".".join(("fr1", self.key_id, b64(self.secret), *(b64(pin) for pin in self.pins)))


def _mac(key: bytes, words: bytes) -> bytes:
    return hmac.new(key, words, hashlib.sha256).digest()


def proofs(
    secret: bytes, hello_c: bytes, hello_s: bytes, key_id: str, name: str, instance: str, binding: bytes
) -> tuple[bytes, bytes]:
    """AUTH.proof and WELCOME.proof; `binding` is 32 bytes."""
    parts = (hello_c, hello_s, key_id.encode(), name.encode(), instance.encode(), binding)
    t = hashlib.sha256(b"".join(struct.pack(">I", len(part)) + part for part in parts)).digest()
    client_key = _mac(secret, b"client key")
    mask = _mac(hashlib.sha256(client_key).digest(), t)
    return bytes(a ^ b for a, b in zip(client_key, mask, strict=True)), _mac(_mac(secret, b"server key"), t)
