"""What `fastrelay demo` serves when it is given nothing else: one small page, by a target as plain as can be."""

from __future__ import annotations

import asyncio
from typing import cast

_PAGE = """\
This page came through fastrelay: your request went to a public port of the relay, through one encrypted
tunnel to the client, and from there to a small web server on this machine. The answer came back the same way.
"""


class Page(asyncio.Protocol):
    """Answers every HTTP request with the page, one a connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._seen = b""

    def data_received(self, data: bytes) -> None:
        self._seen = (self._seen + data)[-65536:]
        if b"\r\n\r\n" not in self._seen:
            return
        body = _PAGE.encode()
        head = (
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self._transport.write(head.encode() + body)
        self._transport.close()
