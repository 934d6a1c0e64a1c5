"""A relay with an HTTP front, a client behind it, and visitors and targets in the hands of the test."""

from __future__ import annotations

import socket
import ssl
from functools import partial
from pathlib import Path
from typing import Self, cast

from tests.support import peers
from tests.support.certificates import Authority
from tests.support.peers import Address
from tests.support.processes import BEST, Client, Server, Way, address

DOMAIN = "home.example"


class Web:
    """One server with `--http` and `--https`, and one client that exposes `web`, or what is named in `expose`; `{port}` there is the port of
    `listener`, which answers for all of them.
    """

    def __init__(
        self,
        home: Path,
        *client: str,
        way: Way = BEST,
        server: tuple[str, ...] = (),
        expose: tuple[str, ...] = ("web=http://127.0.0.1:{port}",),
    ) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self.listener.getsockname()[1]
        self.authority = Authority(home / "certificates")
        self._pair = cert, key = self.authority.issue("web", host=f"*.{DOMAIN}")
        secure = ("--https", "127.0.0.1:0", "--http-cert", str(cert), "--http-key", str(key))
        self.server = Server(home / "server", way, "--http", "127.0.0.1:0", "--domain", DOMAIN, *secure, *server)
        try:
            self.http: Address = address(self.server.line(1))
            self.https: Address = address(self.server.line(2))
            self._make = partial(
                Client,
                self.server.url,
                self.server.token(),
                home / "client",
                *client,
                expose=[spec.format(port=self.port) for spec in expose],
                loop=way.loop,
                name="web",
            )
            self.client = self._make()
            try:
                self.urls = [self.client.line(number) for number in range(len(expose))]
            except BaseException:
                self.client.__exit__(AssertionError)
                raise
        except BaseException:
            self.server.__exit__(AssertionError)
            raise

    def restart_client(self) -> None:
        """After the one before has ended."""
        self.client = self._make()
        self.client.line(0)

    def renew(self) -> None:
        """Give the relay a certificate of another authority, whose certificate takes the place of the former one."""
        self.authority = Authority(self.authority.home / "renewed")
        for new, old in zip(self.authority.issue("web", host=f"*.{DOMAIN}"), self._pair, strict=True):
            new.replace(old)

    def visitor(self, tls: bool = False) -> socket.socket:
        """A connection to the front."""
        if not tls:
            return peers.connect(self.http)
        context = ssl.create_default_context(cafile=self.authority.path)
        return cast("socket.socket", TlsSocket(peers.connect(self.https), context, f"web.{DOMAIN}"))

    def target(self) -> socket.socket:
        """The next connection to the target."""
        return peers.accept(self.listener)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.listener.close()
        try:
            self.client.__exit__(*error)
        finally:
            self.server.__exit__(*error)


class TlsSocket:
    """A socket under TLS that can end one direction and not the other, which those of `ssl` cannot. An end without close_notify is a reset."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self.sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._more()
        self._flush()

    def sendall(self, data: bytes) -> None:
        with memoryview(data) as view:
            for at in range(0, len(view), 65_536):
                self._tls.write(view[at : at + 65_536])
                self._flush()

    def recv(self, size: int) -> bytes:
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLWantReadError:
                self._flush()
                self._more()

    def shutdown(self, how: int) -> None:
        assert how == socket.SHUT_WR
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        self._flush()

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _flush(self) -> None:
        self.sock.sendall(self._out.read())

    def _more(self) -> None:
        raw = self.sock.recv(1 << 18)
        if not raw:
            raise ConnectionResetError("the end of the connection came before that of TLS")
        self._in.write(raw)


def head(sock: socket.socket) -> bytes:
    """A head, up to its blank line and no further."""
    raw = b""
    while not raw.endswith(b"\r\n\r\n"):
        piece = sock.recv(1)
        assert piece, f"a clean end after {raw!r}"
        raw += piece
    return raw


def request(path: str = "/", *fields: str, host: str = f"web.{DOMAIN}", method: str = "GET") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", f"Host: {host}", *fields, "", "")).encode()


def upgrade(protocol: str = "echo/1", path: str = "/up") -> bytes:
    return request(path, "Connection: Upgrade", f"Upgrade: {protocol}")


def switched(protocol: str = "echo/1") -> bytes:
    """A target's answer."""
    return f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n".encode()
