"""POST /tcpproxy: raw TCP to a port of a client, as Go's build coordinator had it. What is asked, in the order in which it is judged. Pure.

the head                                    400 no credentials, 401 wrong ones, 502 no such client, 401 not this token's,
                                            500 not HTTP/1.1, 400 no port
the dial                                    400 not allowed, 500 failed
what the caller sent behind its head        400, in HTTP/1.0
else                                        101, and from there on the two are one TCP connection
"""

from __future__ import annotations

import re
from typing import Final

from fastrelay.config import join_host, parse_host
from fastrelay.errors import Code, MessageError, UsageError
from fastrelay.front.http.messages import Fields, Request

PATH: Final = b"/tcpproxy"
CLIENT: Final = (b"x-buildlet-proxy", b"x-fastrelay-client")
PORT: Final = b"x-target-port"
HOST: Final = b"x-target-host"

SWITCHED: Final = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tcpproxy\r\nConnection: upgrade\r\n\r\n"
BUFFERED: Final = b"HTTP/1.0 400 Bad Request\r\n\r\nUnexpected buffered data.\n"

_PORT: Final = re.compile(rb"[0-9]{1,5}")


def no_auth() -> MessageError:
    return MessageError(400, "missing required authentication")


def bad_auth() -> MessageError:
    return MessageError(401, "bad username or password")


def client(fields: Fields) -> str:
    """Whom the head names, whether there is such a client or not. Raises MessageError."""
    found = {value for name in CLIENT for value in fields.values(name)}
    if len(found) != 1:
        raise MessageError(400, "one X-Buildlet-Proxy or X-Fastrelay-Client must name the client")
    return found.pop().decode("latin-1")


def unknown(name: str) -> MessageError:
    return MessageError(502, f"unknown or expired buildlet: no client {name!r} is connected")


def foreign(name: str) -> MessageError:
    return MessageError(401, f"you don't own that buildlet: the token dials nothing through {name!r}")


def target(head: Request) -> str:
    """What the client is to dial. Raises MessageError."""
    if head.version != "1.1":
        raise MessageError(500, f"unexpected HTTP/{head.version} request")
    ports = head.fields.values(PORT)
    port = int(ports[0]) if len(ports) == 1 and _PORT.fullmatch(ports[0]) else 0
    if not 0 < port < 65_536:
        raise MessageError(400, "invalid or missing X-Target-Port")
    hosts = head.fields.values(HOST) or [b"127.0.0.1"]
    try:
        if len(hosts) != 1:
            raise UsageError
        return join_host(parse_host(hosts[0].decode("latin-1")), port)
    except UsageError:
        raise no_host() from None


def no_host() -> MessageError:
    return MessageError(400, "invalid X-Target-Host")


def denied(what: object, why: str) -> MessageError:
    return MessageError(400, f"dialling {what} is not allowed: {why}")


_REASONS: Final = {
    Code.REFUSED: "connection refused",
    Code.UNREACHABLE: "no route to host",
    Code.DIAL_TIMEOUT: "i/o timeout",
    Code.LIMIT: "the client takes no more connections now",
    Code.CONNECTION_RESET: "the client has lost its connection",
    Code.AWAY: "the client is not connected",
    Code.NO_SERVICE: "the client does not dial for others",
}


def reason(code: Code) -> str:
    """Why a dial failed, in the words that Go has for it."""
    return _REASONS.get(code, "the connection was lost")
