"""What clients of a relay serve by name, and where they dial: the same from another client, and from the relay itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TypeVar

from fastrelay.api import opening
from fastrelay.api.locals import Listener
from fastrelay.api.peers import Peer
from fastrelay.api.sockets import open_socket
from fastrelay.front.forward import ForwardVisitor

P = TypeVar("P", bound=asyncio.BaseProtocol)


class Reaching:
    """Base of what opens streams to named services of clients, and to places behind them (protocol.md sections 6.4 and 6.6)."""

    @property
    def _way(self) -> opening.Way:
        raise NotImplementedError

    async def open_connection(
        self, service: str, *, limit: int = opening.STREAM_LIMIT
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to a named service, as `asyncio.open_connection`: a StreamReader with a buffer of `limit` bytes, and a StreamWriter.

        Raises OpenError: NoServiceError, AwayError where its client is not connected, DeniedError where the token does not reach it; and
        UnreachableError where there is no tunnel at this moment.
        """
        return await opening.open_connection(self._way, service, limit=limit)

    async def create_connection(self, protocol_factory: Callable[[], P], service: str) -> tuple[asyncio.Transport, P]:
        """The same with a protocol, as `loop.create_connection`: it is called with what comes as it comes."""
        return await opening.create_connection(self._way, service, protocol_factory)

    async def open_socket(self, service: str) -> socket.socket:
        """The same as a connected socket, which blocks: for libraries that take nothing else, in a thread."""
        return await open_socket(self._way, service)

    def forward(self, service: str, host: str = "127.0.0.1", port: int = 0) -> Listener:
        """A local port (0: any) that leads to a named service. Raises OSError if it cannot be opened."""
        way = self._way
        return Listener(way, lambda: ForwardVisitor(way.runtime, way, service), host, port, "tcp")

    def client(self, name: str) -> Peer:
        """A client of the relay, from whose network connections can be opened if it allows that."""
        return Peer(name, self._way)
