"""Joins the rooms: a configuration becomes a running relay, client or demo. No logic of its own but the order of starting and ending.

A client does not load the relay's rooms: each function imports its own. Each `run_…` returns when it has been stopped: the first call of the function that it hands to `on_stop` drains, the second ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastrelay.config import ClientConfig, Exposure, PortRange, Public, Relay, ServerConfig, Target, join_host
from fastrelay.errors import StartError
from fastrelay.state import ClientState, ServerState

if TYPE_CHECKING:
    from fastrelay.errors import Code
    from fastrelay.front.http.front import HttpFront
    from fastrelay.front.via_http import Call
    from fastrelay.net.edge import Edge
    from fastrelay.roles.caller import Caller
    from fastrelay.roles.server import Server
    from fastrelay.wire import Listing

Stop = Callable[[], None]
OnStop = Callable[[Stop], None]

_GOODBYE = 1.0
"""Seconds that a session for one purpose has to end in order."""


async def run_server(config: ServerConfig, ready: Callable[[Server, str], None], on_stop: OnStop) -> None:
    """`ready(server, token)` is called when clients are accepted; `token` is the first token's text, "" if it is no longer kept."""
    relay = WholeRelay(config)
    try:
        relay.start()
    except BaseException:
        await relay.close()
        raise
    ready(relay.server, relay.server.token())
    await _until_stopped(on_stop, relay.drain, relay.close)


class WholeRelay:
    """A relay with its fronts. Raises StartError when it cannot be made."""

    def __init__(self, config: ServerConfig) -> None:
        from fastrelay.roles.server import Server

        state = ServerState.open(config.state)
        try:
            self.server = Server(config, state)
        except BaseException:
            state.close()
            raise
        self._web: HttpFront | None = None

    def start(self) -> None:
        """Listen. Raises StartError when it cannot: `close` is due then as well."""
        config = self.server.config
        if config.http or config.https:
            self._web = _web(self.server)
        self.server.start()
        if self._web is not None:
            self._web.start()

    async def drain(self) -> None:
        if self._web is not None:
            self._web.drain()
        await self.server.drain()

    async def close(self) -> None:
        if self._web is not None:
            self._web.close()
        await self.server.close()


def _web(server: Server) -> HttpFront:
    from fastrelay.front.http.front import HttpFront

    return HttpFront(server)


async def run_client(config: ClientConfig, reachable: Callable[[Exposure, Public], None], on_stop: OnStop) -> None:
    from fastrelay.roles.client import Client

    state = ClientState.open(config.state, config.relay.url, config.name)
    try:
        client = Client(config, state, reachable)
    except BaseException:
        state.close()
        raise
    running = asyncio.ensure_future(client.run())

    async def drain() -> None:
        client.drain()
        await running

    await _until_stopped(on_stop, drain, client.close, running)


async def run_forward(
    config: ClientConfig, target: str, bind: tuple[str, int], ready: Callable[[str, int], None], on_stop: OnStop
) -> None:
    """`ready(host, port)` is called once, when a local port leads to `target`: a service of another client, or a place behind one."""
    from fastrelay.front.forward import ForwardVisitor

    await _run_door(
        config, bind, lambda caller: ForwardVisitor(caller.runtime, caller.visiting, target), ready, on_stop
    )


async def run_via_http(
    call: Call, bind: tuple[str, int], drain_time: float, ready: Callable[[str, int], None], on_stop: OnStop
) -> None:
    """`ready(host, port)` is called when a local port leads there. Whether the relay agrees is seen by who comes."""
    from fastrelay.front.via_http import HttpForward, told

    sock = _local_port(bind)
    try:
        forward = HttpForward(asyncio.get_running_loop(), call, told)
    except BaseException:
        sock.close()
        raise
    await forward.start(sock)
    ready(bind[0], forward.port)

    async def drain() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_time):
                await forward.drain()

    await _until_stopped(on_stop, drain, forward.close)


def _local_port(bind: tuple[str, int]) -> socket.socket:
    """A listening socket for visitors of this machine. Raises StartError."""
    from fastrelay.net.listen import listen

    try:
        return listen(*bind)
    except OSError as error:
        raise StartError(
            f"Cannot listen on {join_host(*bind)}, because the system says {error.strerror or error}: name another LOCAL, or none for any "
            "free port."
        ) from None


async def run_socks(
    config: ClientConfig, client: str, bind: tuple[str, int], ready: Callable[[str, int], None], on_stop: OnStop
) -> None:
    """`ready(host, port)` is called once, when there is a SOCKS5 and HTTP CONNECT proxy on a local port whose connections `client` makes."""
    from fastrelay.front.opener import Through
    from fastrelay.front.proxy import ProxyVisitor

    await _run_door(
        config, bind, lambda caller: ProxyVisitor(caller.runtime, Through(caller.visiting, client)), ready, on_stop
    )


async def _run_door(
    config: ClientConfig,
    bind: tuple[str, int],
    make: Callable[[Caller], Edge],
    ready: Callable[[str, int], None],
    on_stop: OnStop,
) -> None:
    """Run a client whose visitors come to a local port; `make` makes the edge of each."""
    from fastrelay.net.door import VisitorDoor

    sock = _local_port(bind)
    told = False

    def stands() -> None:
        nonlocal told
        if not told:
            told = True
            ready(bind[0], door.port)

    try:
        caller = _caller(config, stands)
    except BaseException:
        sock.close()
        raise
    door = VisitorDoor(caller.runtime, sock, lambda: make(caller))
    caller.visiting.serve(door)
    running = asyncio.ensure_future(caller.run())

    async def drain() -> None:
        caller.drain()
        await running

    await _until_stopped(on_stop, drain, caller.close, running)


async def run_dial(config: ClientConfig, target: str, sock: socket.socket, on_stop: OnStop) -> tuple[Code, bool] | None:
    """Join `sock` with the service `target` of another client. Returns how that ended, NO_ERROR if both directions did on their own, and whether
    the target was reached; None if it was stopped.
    """
    from fastrelay.front.forward import DialVisitor

    async with _session(config) as caller:
        visitor = DialVisitor(caller.runtime, caller.visiting, target)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: visitor, sock)
        stopped = asyncio.Event()
        on_stop(stopped.set)
        over = asyncio.ensure_future(asyncio.wait_for(visitor.over, None))
        await _first(over, stopped.wait())
        return over.result() if over.done() and not over.cancelled() else None


async def run_list(config: ClientConfig) -> list[Listing]:
    """The private services that may be reached."""
    async with _session(config) as caller:
        return await caller.visiting.listing()


@contextlib.asynccontextmanager
async def _session(config: ClientConfig) -> AsyncIterator[Caller]:
    """A session for one purpose: whoever loses it, or does not get it, is told and does not try again."""
    stands = asyncio.Event()
    caller = _caller(config, stands.set, again=False)
    running = asyncio.ensure_future(caller.run())
    try:
        await _first(stands.wait(), running)
        yield caller
        if not caller.streams:
            caller.drain()
            await asyncio.wait([running], timeout=_GOODBYE)
    finally:
        await caller.close()
        await asyncio.gather(running, return_exceptions=True)


def _caller(config: ClientConfig, stands: Callable[[], None], *, again: bool = True) -> Caller:
    from fastrelay.roles.caller import Caller

    state = ClientState.open(config.state, config.relay.url, config.name)
    try:
        return Caller(config, state, stands, again=again)
    except BaseException:
        state.close()
        raise


async def run_demo(
    exposures: tuple[Exposure, ...], reachable: Callable[[Exposure, Public], None], on_stop: OnStop
) -> None:
    """Relay, client and, without exposures, a page to look at, all on loopback and in a state directory of their own."""
    from fastrelay.demo import Page
    from fastrelay.net.listen import listen
    from fastrelay.roles.client import Client
    from fastrelay.roles.server import Server

    directory = Path(tempfile.mkdtemp(prefix="fastrelay-demo-"))
    page: asyncio.Server | None = None
    try:
        if not exposures:
            sock = listen("127.0.0.1", 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(8))
            page = await asyncio.get_running_loop().create_server(Page, sock=sock)
            exposures = (Exposure("demo", 0, Target("127.0.0.1", sock.getsockname()[1])),)
        server_state = ServerState.open(directory / "server")
        server = Server(
            ServerConfig(
                bind_host="127.0.0.1",
                bind_port=0,
                ports=PortRange(20000, 20999),
                advertise="",
                state=directory / "server",
                cert=None,
                key=None,
                plaintext=False,
            ),
            server_state,
        )
        server.start()
        relay = Relay("127.0.0.1", server.port, tls=True)
        config = ClientConfig(
            relay=relay, token=server.token(), exposures=exposures, name="demo", state=directory / "client"
        )
        client = Client(config, ClientState.open(config.state, relay.url, config.name), reachable)
        running = asyncio.ensure_future(client.run())

        async def drain() -> None:
            client.drain()
            await running
            await server.drain()

        async def close() -> None:
            await client.close()
            await server.close()

        await _until_stopped(on_stop, drain, close, running)
    finally:
        if page is not None:
            page.close()
        shutil.rmtree(directory, ignore_errors=True)


async def _until_stopped(
    on_stop: OnStop,
    drain: Callable[[], Awaitable[None]],
    close: Callable[[], Awaitable[None]],
    running: asyncio.Future[None] | None = None,
) -> None:
    """Wait until somebody stops us, or `running` ends by itself (its exception is raised); then drain, until stopped again; then close."""
    stopped, again = asyncio.Event(), asyncio.Event()
    on_stop(lambda: again.set() if stopped.is_set() else stopped.set())
    try:
        await _first(stopped.wait(), running)
        if stopped.is_set():
            await _first(drain(), again.wait())
    finally:
        await close()
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def _first(*ways: Awaitable[object] | None) -> None:
    """Wait for the first of these, cancel the others; raises what it raised."""
    futures = [asyncio.ensure_future(way) for way in ways if way is not None]
    try:
        done, _ = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        for future in done:
            future.result()
    finally:
        for future, way in zip(futures, (way for way in ways if way is not None), strict=True):
            if future is not way:  # what was handed in as a future is its owner's to cancel
                future.cancel()
