"""Heads written anew: what is of one hop is left out, and whose request it is is said (RFC 9110 7.6.1, RFC 7239). Pure.

What a visitor says about who it is, is not believed: X-Forwarded-* and Forwarded are the relay's own.
"""

from __future__ import annotations

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
_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding", b"host"))
"""What Connection may not name: left out, the message would be another."""


def request(
    head: Request, visitor: str, scheme: str, *, without: frozenset[bytes] = frozenset(), host: bytes = b""
) -> bytes:
    """The head for the target. `visitor` is an address without port, `scheme` http or https; `without` names more fields (lower case)
    to leave out; `host` stands in place of Host where it is given.
    """
    shown = f"[{visitor}]" if ":" in visitor else visitor
    forwarded = (
        f'for="{shown}";host="{head.host.decode()}";proto={scheme}'
        if ":" in shown + head.host.decode()
        else (f"for={shown};host={head.host.decode()};proto={scheme}")
    )
    lines = [b"%b %b HTTP/%b" % (head.method, head.target, head.version.encode())]
    if host:
        without |= {b"host"}
        lines.append(b"Host: " + host)
    lines += _kept(head.fields, _OURS | without)
    lines += (
        b"X-Forwarded-For: " + visitor.encode(),
        b"X-Forwarded-Host: " + head.host,
        b"X-Forwarded-Proto: " + scheme.encode(),
        b"Forwarded: " + forwarded.encode(),
    )
    if b"trailers" in members(head.fields, b"te"):
        lines.append(b"TE: trailers")
    return _whole(lines, head.upgrade, head.keep_alive, head.version)


def response(head: Response) -> bytes:
    """The head for the visitor."""
    lines = [b"HTTP/%b %d %b" % (head.version.encode(), head.status, head.reason)]
    lines += _kept(head.fields, frozenset())
    return _whole(lines, head.upgrade, head.keep_alive or head.status < 200, head.version)


def _kept(fields: Fields, without: frozenset[bytes]) -> list[bytes]:
    named = frozenset(members(fields, b"connection")) - _FRAMING
    return [
        b"%b: %b" % field
        for field in fields
        if (name := field[0].lower()) not in _HOP and name not in named and name not in without
    ]


def _whole(lines: list[bytes], upgrade: bytes, keep_alive: bool, version: str) -> bytes:
    if upgrade:
        lines += (b"Upgrade: " + upgrade, b"Connection: upgrade")
    elif not keep_alive:
        lines.append(b"Connection: close")
    elif version == "1.0":
        lines.append(b"Connection: keep-alive")
    lines += (b"", b"")
    return b"\r\n".join(lines)
