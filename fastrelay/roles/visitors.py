"""The public ports of a relay, and who comes to them: each visitor becomes a stream of the tunnel whose service it is.

Where a service has a list of visitors, another class of connection asks it: one without a list asks nothing.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from fastrelay import log
from fastrelay.mux.stream import NOTHING, Stream
from fastrelay.net.door import VisitorDoor
from fastrelay.net.edge import Edge
from fastrelay.net.link import address
from fastrelay.net.runtime import Runtime
from fastrelay.net.telling import TellingEdge, Totals
from fastrelay.networks import Networks
from fastrelay.roles.services import Service

if TYPE_CHECKING:
    from fastrelay.roles.tunnel import Tunnel


class PublicPort(Service):
    """A service with a public port."""

    __slots__ = ("door",)

    def __init__(
        self,
        tunnel: Tunnel,
        number: int,
        name: str,
        since: float,
        runtime: Runtime,
        sock: socket.socket,
        visitors: Networks | None = None,
        balancers: Networks | None = None,
    ) -> None:
        super().__init__(tunnel, number, name, "tcp", since, runtime.notices, visitors)
        make = Visitor if visitors is None else ListedVisitor
        if log.audited():
            make = AuditedVisitor if visitors is None else AuditedListedVisitor
        self.door = VisitorDoor(runtime, sock, lambda: make(runtime, self), balancers)
        self.port = self.door.port

    def leave(self) -> socket.socket:
        """Serve nobody any more; the port is the caller's."""
        sock = self.door.leave()
        del self.door  # which knows how to make visitors of this service: a cycle
        return sock


class Visitor(Edge):
    """The connection of a visitor: joined with a stream as soon as it is made."""

    __slots__ = ("_service",)

    def __init__(self, runtime: Runtime, service: PublicPort) -> None:
        super().__init__(runtime)
        self._service = service

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        service = self._service
        tunnel = service.tunnel
        stream = tunnel.session.open(NOTHING, service.number, address(transport.get_extra_info("peername")))
        if stream is None:
            self.turn_away("shutdown" if tunnel.session.going_away else "limit")
            tunnel.full()
        else:
            self.join(stream, tunnel.link)

    def turn_away(self, cause: str) -> None:
        """Nobody is there for this visitor, and this is why."""
        self.refuse()


class ListedVisitor(Visitor):
    """A visitor of a service with a list: reset before there is a stream, if it is not in it."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        service = self._service
        peer = transport.get_extra_info("peername")
        if peer is not None and service.admits(peer[0]):
            super().connection_made(transport)
            return
        Edge.connection_made(self, transport)
        self.turn_away("denied")
        if peer is not None:  # else it has gone before it could be asked
            service.deny(address(peer))


class ToldVisitor(TellingEdge):
    """A visitor of whom the audit log is told, as whom `introduce` says."""

    near, far = "visitor-reset", "target-reset"

    who: dict[str, object]
    _totals: Totals

    def introduce(self, title: str, who: dict[str, object], totals: Totals) -> None:
        self._text = f"visitor {who['visitor']} of {title}"
        self.who = who
        self._totals = totals

    def turn_away(self, cause: str) -> None:
        log.note("visitor.refused", f"Refused {self._text}: {cause}.", **self.who, cause=cause)
        self.refuse()

    def on_joined(self, stream: Stream) -> None:
        log.note("visitor.opened", f"Accepted {self._text}.", **self.who, stream=stream.id)

    def on_parted(self, stream: Stream, cause: str, seconds: float) -> None:
        self._totals.add(stream.sent, stream.received)
        log.note(
            "visitor.closed",
            f"Closed {self._text}: {cause}.",
            **self.who,
            stream=stream.id,
            bytes_in=stream.sent,
            bytes_out=stream.received,
            seconds=round(seconds, 6),
            cause=cause,
        )


class AuditedVisitor(ToldVisitor, Visitor):
    """A visitor of whom the audit log is told."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        service = self._service
        who = service.who(address(transport.get_extra_info("peername")))
        self.introduce(service.title, who, service.tunnel.totals)
        super().connection_made(transport)


class AuditedListedVisitor(AuditedVisitor, ListedVisitor):
    """The same, of a service with a list."""
