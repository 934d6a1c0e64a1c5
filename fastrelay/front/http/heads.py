"""Heads written anew: what is of one hop is left out, and whose request it is is said (RFC 9110 7.6.1, RFC 7239). Pure.

What a visitor says about who it is, is not believed: X-Forwarded-* and Forwarded are the relay's own.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from fastrelay.front.http.messages import Fields, Request, Response, members

_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"upgrade",
        b"proxy-authenticate",
        b"proxy-authorization",
    )
)
"""Of one hop. Transfer-Encoding and Trailer are too, but a body is passed on in the coding that it has."""
_OURS: Final = frozenset(
    (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port", b"x-real-ip")
)
_NOT_FORWARDED: Final = _HOP | _OURS
_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding", b"host"))
"""What Connection may not name: left out, the message would be another."""


def request(
    head: Request, visitor: str, scheme: str, *, without: frozenset[bytes] = frozenset(), host: bytes = b""
) -> bytes:
    """The head for the target. `visitor` is an address without port, `scheme` http or https; `without` names more fields (lower case)
    to leave out; `host` stands in place of Host where it is given.
    """
    lines = [b"%b %b HTTP/%b" % (head.method, head.target, head.version.encode())]
    drop = _NOT_FORWARDED
    if host:
        lines.append(b"Host: " + host)
        drop = drop | {b"host"}
    lines += _kept(head.fields, drop | without if without else drop)
    lines.append(_whose(visitor, head.host, scheme))
    if b"trailers" in members(head.fields, b"te"):
        lines.append(b"TE: trailers")
    return _whole(lines, head.upgrade, head.keep_alive, head.version)


@lru_cache(1024)
def _whose(visitor: str, raw: bytes, scheme: str) -> bytes:
    """Lines that say who has asked whom; most visitors come again."""
    host = raw.decode()
    shown = f"[{visitor}]" if ":" in visitor else visitor
    quote = '"' if ":" in shown + host else ""
    return (
        f"X-Forwarded-For: {visitor}\r\nX-Forwarded-Host: {host}\r\nX-Forwarded-Proto: {scheme}\r\n"
        f"Forwarded: for={quote}{shown}{quote};host={quote}{host}{quote};proto={scheme}"
    ).encode()


def response(head: Response) -> bytes:
    """The head for the visitor."""
    lines = [b"HTTP/%b %d %b" % (head.version.encode(), head.status, head.reason)]
    lines += _kept(head.fields, _HOP)
    return _whole(lines, head.upgrade, head.keep_alive or head.status < 200, head.version)


def _kept(fields: Fields, drop: frozenset[bytes]) -> list[bytes]:
    """The lines of those that are not to drop, nor named in Connection."""
    if b"connection" in fields.names:
        drop |= frozenset(members(fields, b"connection")) - _FRAMING
    return [b": ".join(field) for field in fields if field[0].lower() not in drop]


def _whole(lines: list[bytes], upgrade: bytes, keep_alive: bool, version: str) -> bytes:
    if upgrade:
        lines += (b"Upgrade: " + upgrade, b"Connection: upgrade")
    elif not keep_alive:
        lines.append(b"Connection: close")
    elif version == "1.0":
        lines.append(b"Connection: keep-alive")
    lines += (b"", b"")
    return b"\r\n".join(lines)
