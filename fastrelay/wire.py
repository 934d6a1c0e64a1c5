"""The bytes of protocol.md sections 3, 6.1 and 12: frame kinds, limits, headers and payloads. Pure functions, no state.

Numbers here equal those of protocol.md; tests/test_protocol_md.py reads both.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple, TypeVar

import msgspec

from fastrelay.errors import Code, ProtocolError

M = TypeVar("M")

VERSION: Final = 1
ALPN: Final = "fastrelay/1"
ALPN_HTTP: Final = "http/1.1"
"""Of a WebSocket tunnel (protocol.md section 2.1)."""
WEBSOCKET: Final = "fastrelay.1"
"""The subprotocol of WebSocket tunnels."""
WEBSOCKET_PATH: Final = "/fastrelay"
"""Where a relay takes them unless it is told otherwise."""

# --- limits (protocol.md section 12) -----------------------------------------------------------------------------------

HEADER_SIZE: Final = 8
MAX_DATA: Final = 1_048_576
MIN_MAX_DATA: Final = 16_384
MAX_MAX_DATA: Final = 16_777_215
EARLY: Final = 65_536
MAX_EARLY: Final = 1_048_576
MAX_STREAMS: Final = 65_535
MAX_SERVICES: Final = 64
MAX_NETWORKS: Final = 64
MAX_CONTROL: Final = 4_096
MAX_HEAD: Final = 8_192
MAX_MESSAGE: Final = 2_097_152
MAX_OFFSET: Final = 1 << 62

WINDOW_FLOOR: Final = 16_384
WINDOW_FIRST: Final = 262_144
WINDOW_MAX: Final = 16_777_216
FIRST_SHARE: Final = 8_388_608
CREDIT_STEP: Final = 65_536
TUNNEL_POOL: Final = 67_108_864
PROCESS_POOL: Final = 536_870_912

HANDSHAKE_TIME: Final = 10
PING_AFTER: Final = 15
DEAD_AFTER: Final = 45
UNACKED_TIME: Final = 30
DRAIN_TIME: Final = 30
RESET_DRAIN: Final = 2
RESET_DRAIN_MOST: Final = 30
DISCARD_TIME: Final = 30
GOODBYE_TIME: Final = 2
HALF_OPEN_IDLE: Final = 300
RESERVED_TIME: Final = 86_400
DIAL_TIME: Final = 10
ANSWER_TIME: Final = 15
MAX_DIALS: Final = 1_024

# --- frames (section 3) ------------------------------------------------------------------------------------------------


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
    PINS = 0x81


OPTIONAL: Final = 0x80
"""Kinds from here on may be skipped by a receiver that does not know them."""

STREAM_TCP: Final = 0
"""The stream kind of OPEN for a TCP stream."""

# (smallest, largest) payload of each control frame, and whether it belongs to a stream.
SIZES: Final[dict[int, tuple[int, int, bool]]] = {
    Kind.TRUNC: (0, 0, True),
    Kind.OPEN: (9, MAX_CONTROL, True),
    Kind.ACCEPT: (8, 8, True),
    Kind.WINDOW: (16, 16, True),
    Kind.RESET: (4, 4, True),
    Kind.STOP: (4, 4, True),
    Kind.PING: (8, 8, False),
    Kind.PONG: (8, 8, False),
    Kind.GOAWAY: (8, MAX_CONTROL, False),
    Kind.HELLO: (0, MAX_CONTROL, False),
    Kind.AUTH: (0, MAX_CONTROL, False),
    Kind.WELCOME: (0, MAX_CONTROL, False),
    Kind.EXPOSE: (0, MAX_CONTROL, False),
    Kind.EXPOSED: (0, MAX_CONTROL, False),
    Kind.LIST: (0, MAX_CONTROL, False),
    Kind.LISTED: (0, MAX_CONTROL, False),
    Kind.PINS: (0, MAX_CONTROL, False),
}

HEADER: Final = struct.Struct(">II")  # kind << 24 | length, stream
OPEN_HEAD: Final = struct.Struct(">BQ")
LIMIT: Final = struct.Struct(">Q")
WINDOW: Final = struct.Struct(">QQ")
CODE: Final = struct.Struct(">I")
GOAWAY_HEAD: Final = struct.Struct(">II")
SERVICE: Final = struct.Struct(">I")
_WINDOW_FRAME: Final = struct.Struct(">4sIQQ")
_WINDOW_HEAD: Final = bytes((Kind.WINDOW, 0, 0, WINDOW.size))
_CODE_FRAME: Final = struct.Struct(">III")


def check_size(kind: int, length: int, stream: int) -> None:
    """Refuse a control frame (every kind but DATA and FIN) that cannot be, from its header alone.

    Raises ProtocolError: PROTOCOL for a kind or stream id that cannot be, FRAME_SIZE for a length that cannot be.
    """
    row = SIZES.get(kind)
    if row is None:
        if kind < OPTIONAL:
            raise ProtocolError(Code.PROTOCOL, f"frame of unknown kind 0x{kind:02x}")
        if length > MAX_CONTROL:
            raise ProtocolError(Code.FRAME_SIZE, f"optional frame 0x{kind:02x} with {length} bytes")
        return
    smallest, largest, of_stream = row
    if of_stream is not (stream != 0):
        raise ProtocolError(Code.PROTOCOL, f"{Kind(kind).name} with stream id {stream}")
    if not smallest <= length <= largest:
        raise ProtocolError(Code.FRAME_SIZE, f"{Kind(kind).name} with {length} bytes")


def frame(kind: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return HEADER.pack(kind << 24 | len(payload), stream) + payload


def window_frame(stream: int, limit: int, consumed: int) -> bytes:
    return _WINDOW_FRAME.pack(_WINDOW_HEAD, stream, limit, consumed)


def code_frame(kind: int, stream: int, code: int) -> bytes:
    """RESET or STOP."""
    return _CODE_FRAME.pack(kind << 24 | 4, stream, code)


# --- OPEN and GOAWAY (sections 6.1 and 11) -----------------------------------------------------------------------------

FIELD_SERVICE: Final = 1
FIELD_TARGET: Final = 2
FIELD_VISITOR: Final = 3
FIELD_TRACEPARENT: Final = 4


class Open(NamedTuple):
    """The payload of OPEN. `limit` in bytes; `service` 0, `visitor` "" and `target` "" where the field is absent."""

    kind: int
    limit: int
    service: int = 0
    visitor: str = ""
    target: str = ""


def pack_open(request: Open) -> bytes:
    """Of `visitor` the first 255 bytes are sent; a longer `target` is left out, for cut it would be another one."""
    visitor = request.visitor.encode()[:255]
    target = request.target.encode() if request.target else b""
    if len(target) > 255:
        target = b""
    return b"".join(
        (
            OPEN_HEAD.pack(request.kind, request.limit),
            bytes((FIELD_SERVICE, 4)),
            SERVICE.pack(request.service),
            bytes((FIELD_VISITOR, len(visitor))) + visitor if visitor else b"",
            bytes((FIELD_TARGET, len(target))) + target if target else b"",
        )
    )


def unpack_open(payload: bytes) -> Open:
    """Raises ProtocolError (PROTOCOL) when a field ends after the payload or has a form that it cannot have."""
    kind, limit = OPEN_HEAD.unpack_from(payload)
    fields: dict[int, bytes] = {}
    at = OPEN_HEAD.size
    while at < len(payload):
        if at + 2 > len(payload) or at + 2 + payload[at + 1] > len(payload):
            raise ProtocolError(Code.PROTOCOL, "a field of OPEN ends after its frame")
        stop = at + 2 + payload[at + 1]
        fields.setdefault(payload[at], payload[at + 2 : stop])
        at = stop
    service = fields.get(FIELD_SERVICE, bytes(4))
    if len(service) != 4:
        raise ProtocolError(Code.PROTOCOL, f"the service field of OPEN has {len(service)} bytes, not 4")
    visitor, target = text(fields.get(FIELD_VISITOR, b"")), text(fields.get(FIELD_TARGET, b""))
    return Open(kind, limit, SERVICE.unpack(service)[0], visitor, target)


def pack_goaway(last: int, code: int, reason: str) -> bytes:
    return GOAWAY_HEAD.pack(last, code) + reason.encode()[: MAX_CONTROL - GOAWAY_HEAD.size]


def unpack_goaway(payload: bytes) -> tuple[int, Code, str]:
    last, code = GOAWAY_HEAD.unpack_from(payload)
    return last, Code.of(code), text(payload[GOAWAY_HEAD.size :])


def text(raw: bytes) -> str:
    """Text from the wire, made safe to print: what is not printable is replaced."""
    decoded = raw.decode("utf-8", "replace")
    if decoded.isprintable():
        return decoded
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in decoded)


# --- JSON payloads (sections 4.1 and 5) --------------------------------------------------------------------------------


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the sender accepts: largest DATA payload, early bytes per stream, streams open at once."""

    max_data: int = MAX_DATA
    early: int = EARLY
    max_streams: int = MAX_STREAMS

    def __post_init__(self) -> None:
        for name, low, high in (
            ("max_data", MIN_MAX_DATA, MAX_MAX_DATA),
            ("early", 0, MAX_EARLY),
            ("max_streams", 1, MAX_STREAMS),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is not from {low} to {high}")


class ClientHello(msgspec.Struct, frozen=True, kw_only=True):
    versions: tuple[int, int]
    nonce: str
    binding: str
    agent: str = ""
    features: list[str] = msgspec.field(default_factory=list)
    settings: Settings = msgspec.field(default_factory=Settings)


class RelayHello(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    nonce: str
    agent: str = ""
    features: list[str] = msgspec.field(default_factory=list)
    settings: Settings = msgspec.field(default_factory=Settings)


class Auth(msgspec.Struct, frozen=True, kw_only=True):
    key_id: str
    proof: str
    name: str
    instance: str


class Welcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    proof: str
    session: str
    host: str = ""
    pins: list[str] = msgspec.field(default_factory=list)


class Pins(msgspec.Struct, frozen=True, kw_only=True):
    """The relay's pins have changed (section 4.3)."""

    pins: list[str]


class Expose(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A client asks for a service of a `kind` of protocol.md section 5; `port` 0 is any. `visitors` are the networks that may come, none of them\n    is everybody.\n"""

    service: int
    name: str
    kind: str = "tcp"
    port: int = 0
    visitors: tuple[str, ...] = ()
    pool: bool = False
    login: str = ""


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """A service that is reached by its name. `since` is unix time: when it was exposed, or its client was last seen if it is not `here`."""

    name: str
    kind: str
    client: str
    since: int
    here: bool


class List(msgspec.Struct, frozen=True, kw_only=True):
    """What is there to reach?"""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """The answer, or a part of it: `more` parts follow."""

    services: list[Listing]
    more: bool


class Exposed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The relay's answer: a port or a `url` for a kind that has one, held to so many networks of visitors; or an error with a sentence for the
    person.
    """

    service: int
    port: int = 0
    visitors: int = 0
    pool: bool = False
    url: str = ""
    error: str = ""
    text: str = ""


def pack_json(message: msgspec.Struct) -> bytes:
    return msgspec.json.encode(message)


def unpack_json(payload: bytes, form: type[M]) -> M:
    """Raises ProtocolError (PROTOCOL) when the payload is not such a message."""
    try:
        return msgspec.json.decode(payload, type=form)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(Code.PROTOCOL, f"not a {form.__name__}: {error}") from None
