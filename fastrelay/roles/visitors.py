"""The public ports of a relay, and who comes to them: each visitor becomes a stream of the tunnel whose service it is."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from fastrelay.mux.stream import NOTHING
from fastrelay.net.edge import Edge
from fastrelay.net.link import address
from fastrelay.net.listen import VisitorDoor
from fastrelay.net.runtime import Runtime

if TYPE_CHECKING:
    from fastrelay.roles.server import Tunnel


class Service:
    """One public port of a client."""

    __slots__ = ("door", "name", "number", "tunnel")

    def __init__(self, tunnel: Tunnel, number: int, name: str, runtime: Runtime, sock: socket.socket) -> None:
        self.tunnel = tunnel
        self.number = number
        self.name = name
        self.door = VisitorDoor(runtime, sock, lambda: Visitor(runtime, self))


class Visitor(Edge):
    """The connection of a visitor: joined with a stream as soon as it is made."""

    __slots__ = ("_service",)

    def __init__(self, runtime: Runtime, service: Service) -> None:
        super().__init__(runtime)
        self._service = service

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        service = self._service
        tunnel = service.tunnel
        stream = tunnel.session.open(NOTHING, service.number, address(transport.get_extra_info("peername")))
        if stream is None:
            self.refuse()
        else:
            self.join(stream, tunnel.link)
