"""The network of one client, as seen from its machine: connections that come out there (protocol.md section 6.6)."""

from __future__ import annotations

import asyncio
import socket
import ssl as tls
from collections.abc import Callable
from typing import TypeVar

from fastrelay.api import opening
from fastrelay.api.locals import Listener
from fastrelay.api.sockets import open_socket
from fastrelay.config import join_host, parse_host
from fastrelay.errors import UsageError
from fastrelay.front.forward import ForwardVisitor
from fastrelay.front.opener import Through
from fastrelay.front.proxy import ProxyVisitor

P = TypeVar("P", bound=asyncio.BaseProtocol)


class Peer:
    """One client, whether it is connected or not: each call finds the session that it has then.

    Hosts are names or addresses as that client resolves them; it alone decides what it dials. Raises OpenError: AwayError where the client is
    not connected, DeniedError where it or the token does not allow it, DialRefusedError, DialTimeoutError; UsageError for what is no host or port.
    """

    def __init__(self, name: str, way: opening.Way) -> None:
        self.name = name
        self._way = way

    async def open_connection(
        self,
        host: str,
        port: int,
        *,
        limit: int = opening.STREAM_LIMIT,
        ssl: bool | tls.SSLContext | None = None,
        server_hostname: str | None = None,
        ssl_handshake_timeout: int | None = None,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As `asyncio.open_connection`: a StreamReader with a buffer of `limit` bytes, and a StreamWriter."""
        return await opening.open_connection(
            self._way,
            self._target(host, port),
            limit=limit,
            peername=(host, port),
            ssl=ssl,
            server_hostname=server_hostname or (host if ssl else None),
            handshake_time=ssl_handshake_timeout,
        )

    async def create_connection(
        self,
        protocol_factory: Callable[[], P],
        host: str,
        port: int,
        *,
        ssl: bool | tls.SSLContext | None = None,
        server_hostname: str | None = None,
        ssl_handshake_timeout: int | None = None,
    ) -> tuple[asyncio.Transport, P]:
        """As `loop.create_connection`: the protocol is called with what comes as it comes, without a task in between."""
        return await opening.create_connection(
            self._way,
            self._target(host, port),
            protocol_factory,
            peername=(host, port),
            ssl=ssl,
            server_hostname=server_hostname or (host if ssl else None),
            handshake_time=ssl_handshake_timeout,
        )

    async def open_socket(self, host: str, port: int) -> socket.socket:
        """The same as a connected socket, which blocks: for libraries that take nothing else, in a thread."""
        return await open_socket(self._way, self._target(host, port))

    def forward(self, remote_host: str, remote_port: int, host: str = "127.0.0.1", port: int = 0) -> Listener:
        """A local port (0: any) whose connections come out at the client, to that host and port. Raises OSError if it cannot be opened."""
        way, target = self._way, self._target(remote_host, remote_port)
        return Listener(way, lambda: ForwardVisitor(way.runtime, way, target), host, port, "tcp")

    def socks(self, host: str = "127.0.0.1", port: int = 0) -> Listener:
        """A local proxy for SOCKS5 and HTTP CONNECT whose connections come out at the client. Raises OSError if it cannot be opened."""
        way, opener = self._way, Through(self._way, self.name)
        return Listener(way, lambda: ProxyVisitor(way.runtime, opener), host, port, "socks5h")

    def _target(self, host: str, port: int) -> str:
        if not 0 < port < 65_536:
            raise UsageError(f"{port} is not a port: use a number from 1 to 65535.")
        return f"{self.name}/{join_host(parse_host(host), port)}"

    def __repr__(self) -> str:
        return f"<fastrelay.Peer {self.name}>"
