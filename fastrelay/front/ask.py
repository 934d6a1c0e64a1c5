"""What a program asks of a proxy, SOCKS5 (RFC 1928) or HTTP CONNECT (RFC 9110, 9.3.6) on one port, and what it is told. Pure.

An Ask is fed what was read until `target` is there; what came behind the request is `rest`. Only CONNECT is known of either: no BIND, no
UDP, no plain requests through the proxy. Nobody logs in: such a door is for programs of this machine.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from typing import Final

import httptools

from fastrelay.config import join_host
from fastrelay.dialling import read_place
from fastrelay.errors import AskError, Code

MOST: Final = 16_384
"""Bytes that a program may say before it is joined."""

_SOCKS: Final = 5
_AUTHORITY: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9_.-]{1,253})):([0-9]{1,5})")
_NO_METHOD: Final = b"\x05\xff"
_METHOD: Final = b"\x05\x00"
_HTTP: Final = {
    200: "200 Connection established",
    400: "400 Bad Request",
    403: "403 Forbidden",
    405: "405 Method Not Allowed",
    502: "502 Bad Gateway",
    504: "504 Gateway Timeout",
}
# What became of the dial, as (SOCKS reply, HTTP status, sentence). Whatever is not here is a general failure.
_ANSWERS: Final = {
    Code.NO_ERROR: (0, 200, ""),
    Code.DENIED: (2, 403, "The relay does not let you reach that: the token does not grant it."),
    Code.DIAL_DENIED: (2, 403, "The client that should dial does not: its --allow-dial does not have that."),
    Code.DIAL_FORBIDDEN: (2, 403, "The client that should dial does not: its --deny-dial has that."),
    Code.NO_SERVICE: (3, 502, "The relay has no client of that name."),
    Code.AWAY: (3, 502, "The client that should dial is not connected to the relay."),
    Code.UNREACHABLE: (4, 502, "The target cannot be reached."),
    Code.REFUSED: (5, 502, "The target refused the connection."),
    Code.DIAL_TIMEOUT: (4, 504, "The target did not answer."),
}


class Ask:
    """One program's request. `target` is (host, port) as soon as it is known: a name, or an address in its usual form."""

    def __init__(self) -> None:
        self.target: tuple[str, int] | None = None
        self.rest = b""
        self._said = b""  # of SOCKS, what was not understood yet
        self._size = 0
        self._socks = False
        self._greeted = False
        self._head = _Head()
        self._parser: httptools.HttpRequestParser | None = None

    def feed(self, data: bytes) -> bytes:
        """Take what was read; returns what to write. Raises AskError."""
        if not self._size:
            self._socks = data[0] == _SOCKS
        self._size += len(data)
        if self._socks:
            self._said += data
            reply = self._feed_socks()
        else:
            reply = b""
            self._feed_http(data)
        if self.target is None and self._size > MOST:
            raise AskError(f"it says more than {MOST} bytes and no request", self.answer(Code.PROTOCOL))
        return reply

    def answer(self, code: Code) -> bytes:
        """What the program is told about the dial: NO_ERROR when bytes may flow, else why it failed."""
        reply, status, text = _ANSWERS.get(code, (1, 502, f"The connection failed ({code.name})."))
        if self._socks:
            return bytes((_SOCKS, reply, 0, 1)) + bytes(6)
        return _response(status, text)

    # --- SOCKS ---------------------------------------------------------------------------------------------------------

    def _feed_socks(self) -> bytes:
        reply = b""
        if not self._greeted:
            if len(self._said) < 2 or len(self._said) < 2 + self._said[1]:
                return reply
            methods, self._said = self._said[2 : 2 + self._said[1]], self._said[2 + self._said[1] :]
            if 0 not in methods:
                raise AskError("it wants to log in, and nobody can here", _NO_METHOD)
            self._greeted = True
            reply = _METHOD
        said = self._said
        if len(said) < 5:
            return reply
        version, command, _, kind = said[:4]
        if version != _SOCKS:
            raise AskError("its request is not one of SOCKS5", bytes((_SOCKS, 1, 0, 1)) + bytes(6))
        if command != 1:
            raise AskError("it asks for BIND or UDP, only CONNECT is served", bytes((_SOCKS, 7, 0, 1)) + bytes(6))
        size = {1: 4, 3: 1 + said[4], 4: 16}.get(kind)
        if size is None:
            raise AskError("its address is of a kind that SOCKS5 does not have", bytes((_SOCKS, 8, 0, 1)) + bytes(6))
        if len(said) < 4 + size + 2:
            return reply
        raw = said[4 : 4 + size]
        (port,) = struct.unpack_from(">H", said, 4 + size)
        host = _host(raw[1:].decode("latin-1") if kind == 3 else str(ipaddress.ip_address(raw)))
        if not host or not port:
            raise AskError("its host or port cannot be", bytes((_SOCKS, 1, 0, 1)) + bytes(6))
        self.target = host, port
        self.rest = said[4 + size + 2 :]
        return reply

    # --- HTTP ----------------------------------------------------------------------------------------------------------

    def _feed_http(self, data: bytes) -> None:
        head = self._head
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(head)
        parser = self._parser
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._connect(head, parser.get_method(), data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            raise AskError(
                "it speaks neither SOCKS5 nor HTTP", _response(400, "This port is a SOCKS5 and HTTP CONNECT proxy.")
            ) from error
        else:
            if head.complete:
                raise AskError(
                    f"it sends {parser.get_method().decode('latin-1')}, only CONNECT is served",
                    _response(405, "Only CONNECT is served here."),
                )

    def _connect(self, head: _Head, method: bytes, rest: bytes) -> None:
        found = _AUTHORITY.fullmatch(head.url.decode("latin-1")) if method == b"CONNECT" else None
        if found is None:
            raise AskError("it asks for something else than HOST:PORT", _response(400, "CONNECT takes HOST:PORT."))
        host = _host(found[1] or found[2])
        port = int(found[3])
        if not host or not 0 < port <= 65_535:
            raise AskError("its host or port cannot be", _response(400, "CONNECT takes HOST:PORT."))
        self.target = host, port
        self.rest = rest


class _Head:
    def __init__(self) -> None:
        self.url = b""
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_headers_complete(self) -> None:
        self.complete = True


def _response(status: int, text: str) -> bytes:
    if status == 200:
        return f"HTTP/1.1 {_HTTP[status]}\r\n\r\n".encode()
    body = f"{text}\n"
    return (
        f"HTTP/1.1 {_HTTP[status]}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    ).encode()


def _host(text: str) -> str:
    """A host name or address as places have it (protocol.md section 6.6), "" for what is none. Some programs write IPv6 addresses as names."""
    try:
        return read_place(join_host(text, 1)).host
    except ValueError:
        return ""
