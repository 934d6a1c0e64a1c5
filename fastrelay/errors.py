"""Every exception of fastrelay, and the codes that travel in RESET, STOP and GOAWAY (protocol.md section 11).

    FastrelayError
    ├── UsageError          what a person typed cannot be understood        (exit code 2)
    ├── StartError          the process cannot start, or was refused        (exit code 3)
    │   ├── AuthError            the relay does not take this token, certificate or name
    │   └── NameInUseError       another installation uses the name
    ├── PinError            the relay's key is not one that this client knows
    ├── MessageError        an HTTP message cannot be passed on
    ├── AskError            a program asked a proxy for something that it does not do
    ├── ProxyError          the proxy on the way out does not let us through
    ├── DialDeniedError     what was to be dialled may not be
    └── ProtocolError       the other side broke protocol.md; carries the code that GOAWAY will name
        ├── LimitError           it went beyond a limit that a person may set; carries the limit's name
        ├── HandshakeError       what it said in HTTP is no handshake of WebSocket; carries the status
        └── RefusedError         the other side said GOAWAY before the session began
    In programs (fastrelay.api) also:
    ├── UnreachableError    there is no relay there, or no tunnel to it           (a ConnectionError)
    ├── ExposeError         the relay does not give out a service; carries the error of protocol.md 5
    └── OpenError           a connection was refused; carries the code            (a ConnectionError)
        ├── DialRefusedError     by the target                                    (a ConnectionRefusedError)
        ├── DialTimeoutError     the target did not answer                        (a TimeoutError)
        ├── DeniedError          the token, or the client, does not allow it      (a PermissionError)
        ├── NoServiceError       there is no such service or client
        └── AwayError            the client is not connected

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
    DIAL_DENIED = 40
    DIAL_FORBIDDEN = 41

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


class DialDeniedError(FastrelayError):
    """No rule of this client allows what was to be dialled; `rule` is what said no."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(text)
        self.rule = rule


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


class AuthError(StartError):
    """The relay does not take this token, certificate or name, or its key is not one that the token names."""


class NameInUseError(StartError):
    """Another installation uses the client's name, or has taken it over."""


class UnreachableError(FastrelayError, ConnectionError):
    """There is no relay at that address, or at this moment no tunnel to it."""


class ExposeError(FastrelayError):
    """The relay does not give out a service. `error` is one of protocol.md section 5, such as `port-taken`."""

    def __init__(self, error: str, text: str) -> None:
        super().__init__(text)
        self.error = error


class OpenError(FastrelayError, ConnectionError):
    """A connection through the relay was refused; `code` says with what (protocol.md section 11)."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


class DialRefusedError(OpenError, ConnectionRefusedError):
    """The target refused the connection."""


class DialTimeoutError(OpenError, TimeoutError):
    """The target did not answer."""


class DeniedError(OpenError, PermissionError):
    """The token does not reach that, or the client does not dial it."""


class NoServiceError(OpenError):
    """There is no such service, or no such client."""


class AwayError(OpenError):
    """The client that serves it is not connected."""
