"""Every exception of fastrelay, and the codes that travel in RESET, STOP and GOAWAY (protocol.md section 11).

    FastrelayError
    ├── UsageError          what a person typed cannot be understood        (exit code 2)
    ├── StartError          the process cannot start, or was refused        (exit code 3)
    ├── PinError            the relay's key is not one that this client knows
    ├── MessageError        an HTTP message cannot be passed on
    ├── AskError            a program asked a proxy for something that it does not do
    ├── ProxyError          the proxy on the way out does not let us through
    └── ProtocolError       the other side broke protocol.md; carries the code that GOAWAY will name
        ├── LimitError           it went beyond a limit that a person may set; carries the limit's name
        ├── HandshakeError       what it said in HTTP is no handshake of WebSocket; carries the status
        └── RefusedError         the other side said GOAWAY before the session began

The texts are sentences for a person: what, why, what next.
"""

from __future__ import annotations

import enum


class Code(enum.IntEnum):
    """Why a stream or a session ended (protocol.md section 11)."""

    NO_ERROR = 0
    PROTOCOL = 1
    FLOW_CONTROL = 2
    FRAME_SIZE = 3
    STREAM_STATE = 4
    INTERNAL = 5
    CALM = 6
    UNAUTHORIZED = 7
    SUPERSEDED = 8
    NAME_TAKEN = 9
    VERSION = 10
    SHUTDOWN = 11
    TIMEOUT = 12
    DENIED = 13
    REFUSED = 32
    UNREACHABLE = 33
    DIAL_TIMEOUT = 34
    NO_SERVICE = 35
    LIMIT = 36
    CONNECTION_RESET = 37
    CANCEL = 38
    AWAY = 39

    @classmethod
    def of(cls, number: int) -> Code:
        """The code of a number from the wire; one that is unknown is INTERNAL."""
        try:
            return cls(number)
        except ValueError:
            return cls.INTERNAL


class FastrelayError(Exception):
    """The base of all."""


class UsageError(FastrelayError):
    """Something that a person typed cannot be understood."""


class StartError(FastrelayError):
    """The process cannot start, or the relay refused it for good: trying again would not help."""


class PinError(FastrelayError):
    """The relay's key is not one that this client knows: nothing was sent."""


class ProxyError(FastrelayError):
    """The proxy on the way out (HTTPS_PROXY) does not let us through: half a sentence says why."""


class ProtocolError(FastrelayError):
    """The other side broke a rule of protocol.md. Only `net.link` turns it into a goodbye. `fields` are for the log."""

    def __init__(self, code: Code, text: str, **fields: object) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.fields = fields

    def __str__(self) -> str:
        return f"{self.code.name}: {self.text}"


class LimitError(ProtocolError):
    """The other side went beyond a limit that a person may set, `fastrelay.limits` says which."""

    def __init__(self, code: Code, text: str, limit: str) -> None:
        super().__init__(code, text)
        self.limit = limit


class HandshakeError(ProtocolError):
    """What the other side said in HTTP does not begin a tunnel (protocol.md 2.1); `status` is that of the answer, 0 without one."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(Code.PROTOCOL, text)
        self.status = status


class RefusedError(ProtocolError):
    """The other side said GOAWAY before the session began."""


class MessageError(FastrelayError):
    """An HTTP message cannot be passed on, or has no answer: a visitor gets `status` and `text`, as a page or `plain`.

    `fields` are more lines of the head, each with its CRLF.
    """

    def __init__(self, status: int, text: str, *, plain: bool = False, fields: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.plain = plain
        self.fields = fields


class AskError(FastrelayError):
    """It is no SOCKS5 or CONNECT request that is served; `reply` is what to say before the connection ends."""

    def __init__(self, text: str, reply: bytes) -> None:
        super().__init__(text)
        self.reply = reply
