"""Every way from a visitor to a target, with both ends in the hands of the test: what holds for one of them holds for all.

A door is a context; `pair` makes one connection through it. Whoever builds another way in adds it to DOORS.
"""

from __future__ import annotations

import base64
import contextlib
import socket
from pathlib import Path
from typing import Self

from fastrelay.auth import Token
from tests.support import peers, web
from tests.support.grants import make_token
from tests.support.peers import Address
from tests.support.processes import Caller, Client, Forward, Pair, Relay, Server, Socks, Way, address, spec

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
        loop = self.way.loop
        self.server = stack.enter_context(Server(self.home / "server", self.way))
        url, token = self.server.url, self.server.token()
        expose = [f"{TARGET}=private://{spec(self.target)}"]
        self.client = stack.enter_context(Client(url, token, self.home / "client", expose=expose, loop=loop))
        assert self.client.line(0) == f"fastrelay://{TARGET}"
        self.forward = stack.enter_context(Forward(url, token, self.home / "visitor", TARGET, loop=loop))
        self.address = self.forward.address


class DialThrough(Door):
    """A local port of `fastrelay forward` that leads to a place behind a client."""

    name = "tested"
    proxy: Caller

    def open(self, stack: contextlib.ExitStack) -> None:
        server = stack.enter_context(Server(self.home / "server", self.way))
        visits = {"names": [], "services": [], "dial": ["127.0.0.0/8"], "through": [self.name]}
        first = Token.parse(server.token())
        made = make_token(server.state, "visitor", **visits)
        token = Token(made.key_id, made.secret, first.pins).text()
        options = ("--allow-dial", f"127.0.0.0/8:{self.target[1]}")
        client = Client(
            server.url, first.text(), self.home / "client", *options, expose=[], loop=self.way.loop, name=self.name
        )
        stack.enter_context(client).logs("dial.ready")
        server.logs("token.loaded")
        self.proxy = stack.enter_context(self.caller(server.url, token))
        self.address = self.proxy.address

    def caller(self, url: str, token: str) -> Caller:
        return Forward(url, token, self.home / "visitor", f"{self.name}/{spec(self.target)}", loop=self.way.loop)


class SocksProxy(DialThrough):
    """The same through `fastrelay socks`."""

    def caller(self, url: str, token: str) -> Caller:
        return Socks(url, token, self.home / "visitor", self.name, loop=self.way.loop)

    def connect(self) -> socket.socket:
        visitor = super().connect()
        host, port = socket.inet_aton(self.target[0]), self.target[1].to_bytes(2, "big")
        visitor.sendall(b"\x05\x01\x00" + b"\x05\x01\x00\x01" + host + port)
        return visitor

    def accept(self, visitor: socket.socket) -> socket.socket:
        target = super().accept(visitor)
        assert peers.exactly(visitor, 12) == b"\x05\x00" + b"\x05\x00\x00\x01" + bytes(6)
        return target


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


class TcpProxy(Door):
    """POST /tcpproxy at the HTTP front."""

    def open(self, stack: contextlib.ExitStack) -> None:
        server = stack.enter_context(Server(self.home / "server", self.way, "--http", "127.0.0.1:0"))
        grant = {"names": [], "services": [], "dial": ["127.0.0.0/8"], "through": ["home"]}
        self.token = make_token(server.state, "caller", **grant).text()
        rules = ("--allow-dial", spec(self.target))
        state = self.home / "client"
        client = Client(server.url, server.token(), state, *rules, expose=[], loop=self.way.loop, name="home")
        stack.enter_context(client).logs("dial.ready")
        self.address = address(server.line(1))

    def connect(self) -> socket.socket:
        visitor = super().connect()
        login = base64.b64encode(f"any:{self.token}".encode())
        visitor.sendall(
            b"POST /tcpproxy HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic %b\r\nX-Buildlet-Proxy: home\r\nX-Target-Port: %d\r\n\r\n"
            % (login, self.target[1])
        )
        assert web.head(visitor).startswith(b"HTTP/1.1 101 ")
        return visitor


class ViaHttp(TcpProxy):
    """A local port of `fastrelay forward --via-http`."""

    def open(self, stack: contextlib.ExitStack) -> None:
        super().open(stack)
        url = f"http://127.0.0.1:{self.address[1]}"
        goal = f"home/{spec(self.target)}"
        forward = Forward(f"--via-http={url}", self.token, self.home / "visitor", goal, loop=self.way.loop)
        self.address = stack.enter_context(forward).address

    def connect(self) -> socket.socket:
        return Door.connect(self)


DOORS: dict[str, type[Door]] = {
    "public port": PublicPort,
    "private service": PrivateService,
    "dial-through": DialThrough,
    "SOCKS": SocksProxy,
    "Upgrade": Upgrade,
    "/tcpproxy": TcpProxy,
    "forward --via-http": ViaHttp,
    "WebSocket tunnel": WebSocketTunnel,
}
SLOW = {"dial-through", "SOCKS", "/tcpproxy", "forward --via-http"}
"""Doors that have tests in one process of their own: among the slow tests."""
