"""Heads written anew: what is of one hop is left out, and whose request it is is said (RFC 9110 7.6.1, RFC 7239). Pure.

What a visitor says about who it is, is not believed: X-Forwarded-* and Forwarded are the relay's own. All other lines stay as they came.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from fastrelay.front.http.messages import REPEATED, Fields, Request, Response, members


def _lines(*names: bytes) -> re.Pattern[bytes]:
    """All lines of these fields, each with the CRLF before it."""
    return re.compile(rb"(?i)\r\n(?:%b):[^\r]*" % b"|".join(map(re.escape, names)))


_RESPONSE: Final = _lines(b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade", b"proxy-authenticate")
"""Of one hop. Transfer-Encoding and Trailer are too, but a body is passed on in the coding that it has."""
_REQUEST: Final = _lines(
    *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade", b"proxy-authorization"),
    *(b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port", b"x-real-ip"),
)
_STAYS: Final = frozenset((b"content-length", b"transfer-encoding", b"host", b"close", b"keep-alive", b"upgrade"))
"""What Connection may not name, as the message would be another without; and what it names that is no field, or is gone anyway."""


def request(
    head: Request, visitor: str, scheme: str, *, without: frozenset[bytes] = frozenset(), host: bytes = b""
) -> bytes:
    """The head for the target. `visitor` is an address without port, `scheme` http or https; `without` names more fields (lower case)
    to leave out; `host` stands in place of Host where it is given.
    """
    small = len(head.target) + len(head.fields.raw) <= REPEATED
    return (_request_again if small else _request)(head, visitor, scheme, without, host)


def response(head: Response) -> bytes:
    """The head for the visitor."""
    return (_response_again if len(head.reason) + len(head.fields.raw) <= REPEATED else _response)(head)


def _request(head: Request, visitor: str, scheme: str, without: frozenset[bytes], host: bytes) -> bytes:
    kept = _without(head.fields, _REQUEST)
    if without or host:
        kept = _lines(*without, *((b"host",) if host else ())).sub(b"", kept)
    return b"".join(
        (
            *(head.method, b" ", head.target, b" HTTP/", head.version.encode()),
            b"\r\nHost: " + host if host else b"",
            kept,
            _whose(visitor, head.host, scheme),
            b"TE: trailers\r\n" if b"te" in head.fields.known and b"trailers" in members(head.fields, b"te") else b"",
            _connection(head.upgrade, head.keep_alive, head.version),
        )
    )


def _response(head: Response) -> bytes:
    line = b"HTTP/%b %d %b" % (head.version.encode(), head.status, head.reason)
    end = _connection(head.upgrade, head.keep_alive or head.status < 200, head.version)
    return b"".join((line, _without(head.fields, _RESPONSE), end))


_request_again = lru_cache(REPEATED)(_request)
_response_again = lru_cache(REPEATED)(_response)
"""Most visitors and services say the same again."""


@lru_cache(1024)
def _whose(visitor: str, raw: bytes, scheme: str) -> bytes:
    """Lines that say who has asked whom; most visitors come again."""
    host = raw.decode()
    shown = f"[{visitor}]" if ":" in visitor else visitor
    quote = '"' if ":" in shown + host else ""
    return (
        f"X-Forwarded-For: {visitor}\r\nX-Forwarded-Host: {host}\r\nX-Forwarded-Proto: {scheme}\r\n"
        f"Forwarded: for={quote}{shown}{quote};host={quote}{host}{quote};proto={scheme}\r\n"
    ).encode()


def _without(fields: Fields, lines: re.Pattern[bytes]) -> bytes:
    """The fields but these lines, and those that Connection names: a CRLF before each and one behind the last."""
    kept = lines.sub(b"", fields.raw)
    if b"connection" not in fields.known:
        return kept
    named = [member for member in members(fields, b"connection") if member not in _STAYS]
    return _lines(*named).sub(b"", kept) if named else kept


def _connection(upgrade: bytes, keep_alive: bool, version: str) -> bytes:
    """The last lines of a head."""
    if upgrade:
        return b"Upgrade: %b\r\nConnection: upgrade\r\n\r\n" % upgrade
    if not keep_alive:
        return b"Connection: close\r\n\r\n"
    return b"Connection: keep-alive\r\n\r\n" if version == "1.0" else b"\r\n"
