"""fastrelay for programs without a loop: the same names, each in a thread with a loop of its own. Calls block, and may come from any thread."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from fastrelay import api

T = TypeVar("T")

_CLOSE_TIME: Final = 10.0


class _Thread:
    """A loop in a thread."""

    def __init__(self) -> None:
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="fastrelay", daemon=True)
        self._thread.start()
        self._loop = started.result()

    def _run(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        async def main() -> None:
            self._stop = asyncio.Event()
            started.set_result(asyncio.get_running_loop())
            await self._stop.wait()

        asyncio.run(main())

    def call(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine there and wait for it. Whoever interrupts the wait cancels it."""

        async def run() -> T:
            return await work()

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_CLOSE_TIME)


class _Closing:
    """What `with` closes. `close` may be called again."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Service(_Closing):
    """What a tunnel serves: see `fastrelay.Service`."""

    def __init__(self, thread: _Thread, service: api.Service) -> None:
        self._thread = thread
        self._service = service

    @property
    def name(self) -> str:
        return self._service.name

    @property
    def host(self) -> str:
        return self._service.host

    @property
    def port(self) -> int:
        return self._service.port

    @property
    def url(self) -> str:
        return self._service.url

    def close(self) -> None:
        async def close() -> None:
            self._service.close()

        self._thread.call(close)


class Listener(_Closing):
    """A local port that leads through a tunnel: see `fastrelay.Listener`."""

    def __init__(self, thread: _Thread, make: Callable[[], api.Listener]) -> None:
        async def listen() -> api.Listener:
            return make()

        self._thread = thread
        self._listener = thread.call(listen)
        self.host = self._listener.host
        self.port = self._listener.port
        self.url = self._listener.url

    def close(self) -> None:
        async def close() -> None:
            self._listener.close()

        self._thread.call(close)


class Peer:
    """The network of one client: see `fastrelay.Peer`."""

    def __init__(self, thread: _Thread, peer: api.Peer) -> None:
        self._thread = thread
        self._peer = peer
        self.name = peer.name

    def create_connection(self, host: str, port: int) -> socket.socket:
        """As `socket.create_connection`: a socket whose other end is at that host and port of the client's network. Raises OpenError."""
        return self._thread.call(lambda: self._peer.open_socket(host, port))

    def forward(self, remote_host: str, remote_port: int, host: str = "127.0.0.1", port: int = 0) -> Listener:
        """A local port whose connections come out at the client, to that host and port."""
        return Listener(self._thread, lambda: self._peer.forward(remote_host, remote_port, host, port))

    def socks(self, host: str = "127.0.0.1", port: int = 0) -> Listener:
        """A local proxy for SOCKS5 and HTTP CONNECT whose connections come out at the client."""
        return Listener(self._thread, lambda: self._peer.socks(host, port))


class _Reaching(_Closing):
    """What opens connections to named services of clients: see `fastrelay.Tunnel` and `fastrelay.Server`."""

    def __init__(self, thread: _Thread, inside: api.Tunnel | api.Server) -> None:
        self._thread = thread
        self._inside = inside
        self._open = True

    def create_connection(self, service: str) -> socket.socket:
        """As `socket.create_connection`: a socket whose other end is a named service of a client. Raises OpenError."""
        return self._thread.call(lambda: self._inside.open_socket(service))

    def forward(self, service: str, host: str = "127.0.0.1", port: int = 0) -> Listener:
        """A local port that leads to a named service of a client."""
        return Listener(self._thread, lambda: self._inside.forward(service, host, port))

    def client(self, name: str) -> Peer:
        """A client of the relay."""
        return Peer(self._thread, self._inside.client(name))

    def close(self) -> None:
        if self._open:
            self._open = False
            try:
                self._thread.call(self._inside.aclose)
            finally:
                self._thread.stop()


class Tunnel(_Reaching):
    """A tunnel: see `fastrelay.Tunnel`. Made by `connect`."""

    def __init__(self, thread: _Thread, tunnel: api.Tunnel) -> None:
        super().__init__(thread, tunnel)
        self._tunnel = tunnel
        self.name = tunnel.name
        self.relay = tunnel.relay

    @property
    def is_up(self) -> bool:
        """There is a connection to the relay at this moment."""
        return self._tunnel.is_up

    def expose(
        self,
        target: int | str,
        *,
        name: str | None = None,
        port: int | None = None,
        visitors: Iterable[str] = (),
        pool: bool = False,
        proxy_protocol: str = "off",
    ) -> Service:
        """Let visitors reach a local service."""

        async def expose() -> api.Service:
            return await self._tunnel.expose(
                target, name=name, port=port, visitors=visitors, pool=pool, proxy_protocol=proxy_protocol
            )

        return Service(self._thread, self._thread.call(expose))


def connect(
    relay: str,
    *,
    token: str = "",
    name: str | None = None,
    state: Path | str | None = None,
    client_cert: Path | str | None = None,
    client_key: Path | str | None = None,
    pins: Iterable[str] = (),
    behind_proxy: bool = False,
    allow_dial: Iterable[str] = (),
    limits: Iterable[str] = (),
    drain: float = 2.0,
) -> Tunnel:
    """A tunnel to `relay`: arguments and exceptions as of `fastrelay.connect`. Close it, best by `with`."""

    async def make() -> api.Tunnel:
        return await api.connect(
            relay,
            token=token,
            name=name,
            state=state,
            client_cert=client_cert,
            client_key=client_key,
            pins=pins,
            behind_proxy=behind_proxy,
            allow_dial=allow_dial,
            limits=limits,
            drain=drain,
        )

    thread = _Thread()
    try:
        return Tunnel(thread, thread.call(make))
    except BaseException:
        thread.stop()
        raise


class Server(_Reaching):
    """A relay, which runs from its making to `close`: arguments and exceptions as of `fastrelay.Server`."""

    def __init__(self, **options: Any) -> None:
        server = api.Server(**options)
        super().__init__(_Thread(), server)
        try:
            self._thread.call(server.start)
        except BaseException:
            self._thread.stop()
            raise
        self.port = server.port
        self.url = server.url
        self.token = server.token
