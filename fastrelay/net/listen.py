"""Listening sockets: for visitors, paused when descriptors run out, and for tunnels, where TLS begins before anything else is said."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable

from fastrelay.net.options import LINGER_RESET, unpace
from fastrelay.net.runtime import Runtime
from fastrelay.wire import GOODBYE_TIME, HANDSHAKE_TIME

BACKLOG = 4096
"""With the usual 100, a stall of 0.4 s loses two thirds of 1,000 visitors."""
_ACCEPTS_PER_TURN = 64
_COME_BACK = 0.1
"""Seconds until the next try when no descriptor was left."""
_MOST_GREETINGS = 1000
"""Tunnel connections that may be in their handshake at once."""


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket on `host` and `port` (0: any); "::" takes IPv4 as well. Raises OSError.

    Connections that it accepts are reset when the process dies (SO_LINGER is inherited).
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if host == "::" and not socket.has_dualstack_ipv6():
        family, host = socket.AF_INET, "0.0.0.0"
    address = socket.getaddrinfo(host, port, family if ":" in host else 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)[0]
    sock = socket.socket(address[0], socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        unpace(sock, address[4])
        if address[0] == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        sock.bind(address[4])
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


class VisitorDoor:
    """A public port. While paused nothing is accepted and nothing is lost: visitors wait in the backlog of the socket."""

    def __init__(self, runtime: Runtime, sock: socket.socket, make: Callable[[], asyncio.BaseProtocol]) -> None:
        self._runtime = runtime
        self._sock = sock
        self._make = make
        self._server: asyncio.Server | None = None
        self._wanted = False
        self._changing = False

    @property
    def port(self) -> int:
        return int(self._sock.getsockname()[1])

    def open(self) -> None:
        self._want(True)

    def pause(self) -> None:
        self._want(False)

    def close(self) -> None:
        self._want(False)
        self._sock.close()

    def _want(self, serving: bool) -> None:
        self._wanted = serving
        if not serving and self._server is not None:
            self._server.close()
            self._server = None
        if serving and self._server is None and not self._changing:
            self._changing = True
            self._runtime.spawn(self._runtime.loop.create_task(self._serve()))

    async def _serve(self) -> None:
        while self._wanted:
            try:
                # The loop serves a dup() of the socket, so that closing its server leaves ours listening.
                self._server = await self._runtime.loop.create_server(
                    self._make, sock=self._sock.dup(), backlog=BACKLOG, start_serving=False
                )
                break
            except OSError:  # no descriptor was left: come back in a moment
                await asyncio.sleep(_COME_BACK)
        self._changing = False
        if self._server is not None:
            await self._server.start_serving()


class TunnelDoor:
    """Where clients connect. The TLS handshake runs before a protocol exists; failed ones are told to `failed(address, error)`."""

    def __init__(
        self,
        runtime: Runtime,
        sock: socket.socket,
        context: ssl.SSLContext | None,
        make: Callable[[], asyncio.BaseProtocol],
        failed: Callable[[object, Exception], None],
    ) -> None:
        self._runtime = runtime
        self._sock = sock
        self._context = context
        self._make = make
        self._failed = failed
        self._greeting = 0
        runtime.loop.add_reader(sock.fileno(), self._accept)

    @property
    def port(self) -> int:
        return int(self._sock.getsockname()[1])

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._runtime.loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, address = self._sock.accept()
            except OSError as error:
                if not isinstance(error, BlockingIOError):
                    self._failed("", error)
                    self._pause()
                return
            if self._greeting >= _MOST_GREETINGS:
                sock.close()
                continue
            self._greeting += 1
            self._runtime.spawn(self._runtime.loop.create_task(self._greet(sock, address)))

    def _pause(self) -> None:
        """No descriptor was left: come back in a moment instead of spinning."""
        loop, fd = self._runtime.loop, self._sock.fileno()
        loop.remove_reader(fd)

        def again() -> None:
            if self._sock.fileno() == fd:
                loop.add_reader(fd, self._accept)

        loop.call_later(_COME_BACK, again)

    async def _greet(self, sock: socket.socket, address: object) -> None:
        try:
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                # SO_LINGER of the listener is for visitors: a tunnel's GOAWAY must not be cut off by a reset.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
            timeouts = (
                {"ssl_handshake_timeout": HANDSHAKE_TIME, "ssl_shutdown_timeout": GOODBYE_TIME} if self._context else {}
            )
            await self._runtime.loop.connect_accepted_socket(self._make, sock, ssl=self._context, **timeouts)
        except (OSError, ssl.SSLError, TimeoutError) as error:
            sock.close()
            self._failed(address, error)
        finally:
            self._greeting -= 1
