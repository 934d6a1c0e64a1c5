"""Every way from a visitor to a target, with both ends in the hands of the test: what holds for one of them holds for all.

A door is a context; `pair` makes one connection through it. Whoever builds another way in adds it to DOORS.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Self

from tests.support import peers, web
from tests.support.peers import Address
from tests.support.processes import Client, Forward, Pair, Relay, Server, Way, address, spec

TARGET = "t0"
"""The name of the service, where it has one."""


class Door:
    """Processes between a visitor and `listener`, where targets come out; they end with the context."""

    address: Address
    """Where visitors connect."""

    def __init__(self, home: Path, way: Way) -> None:
        self.home = home
        self.way = way
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.target: Address = self.listener.getsockname()
        self._stack = contextlib.ExitStack()
        self._stack.callback(self.listener.close)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as failed:
            failed.push(self._stack)
            self.open(self._stack)
            failed.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    def open(self, stack: contextlib.ExitStack) -> None:
        """Start what is needed, with `stack.enter_context`."""
        raise NotImplementedError

    def connect(self) -> socket.socket:
        """A visitor who has said what this door asks for, but need not have been answered yet."""
        return peers.connect(self.address)

    def accept(self, visitor: socket.socket) -> socket.socket:
        """Its target: bytes from now on are those of the connection."""
        return peers.accept(self.listener)

    def pair(self) -> Pair:
        """A visitor and its target. One at a time: the targets come in the order of the visitors."""
        visitor = self.connect()
        return Pair(visitor, self.accept(visitor))


class PublicPort(Door):
    def open(self, stack: contextlib.ExitStack) -> None:
        relay = stack.enter_context(Relay(self.home, self.way, self.target))
        self.address = relay.addresses[0]


class PrivateService(Door):
    """A local port of `fastrelay forward`."""

    def open(self, stack: contextlib.ExitStack) -> None:
        server = stack.enter_context(Server(self.home / "server", self.way))
        token = server.token()
        expose = [f"{TARGET}=private://{spec(self.target)}"]
        client = stack.enter_context(Client(server.url, token, self.home / "client", expose=expose, loop=self.way.loop))
        assert client.line(0) == f"fastrelay://{TARGET}"
        forward = stack.enter_context(Forward(server.url, token, self.home / "visitor", TARGET, loop=self.way.loop))
        self.address = forward.address


class WebSocketTunnel(Door):
    """A public port whose tunnel is inside a WebSocket."""

    def open(self, stack: contextlib.ExitStack) -> None:
        web = Way(self.way.tls, self.way.loop, websocket=True)
        self.address = stack.enter_context(Relay(self.home, web, self.target)).addresses[0]


class Upgrade(Door):
    """The HTTP front, behind a 101."""

    def open(self, stack: contextlib.ExitStack) -> None:
        front = ("--http", "127.0.0.1:0", "--domain", web.DOMAIN)
        server = stack.enter_context(Server(self.home / "server", self.way, *front))
        expose = [f"web=http://{spec(self.target)}"]
        client = Client(server.url, server.token(), self.home / "client", expose=expose, loop=self.way.loop)
        assert stack.enter_context(client).line(0).startswith(f"http://web.{web.DOMAIN}:")
        self.address = address(server.line(1))

    def connect(self) -> socket.socket:
        visitor = super().connect()
        visitor.sendall(web.upgrade())
        return visitor

    def accept(self, visitor: socket.socket) -> socket.socket:
        target = super().accept(visitor)
        web.head(target)
        target.sendall(web.switched())
        web.head(visitor)
        return target


DOORS: dict[str, type[Door]] = {
    "public port": PublicPort,
    "private service": PrivateService,
    "Upgrade": Upgrade,
    "WebSocket tunnel": WebSocketTunnel,
}
