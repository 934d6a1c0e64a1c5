"""Joins the rooms: a configuration becomes a running relay, client or demo. No logic of its own but the order of starting and ending.

A client does not load the relay's rooms: each function imports its own. Each `run_…` returns when it has been stopped: the first call of the function that it hands to `on_stop` drains, the second ends at once.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastrelay.config import ClientConfig, Exposure, PortRange, Relay, ServerConfig, Target
from fastrelay.state import ClientState, ServerState

if TYPE_CHECKING:
    from fastrelay.roles.server import Server

Stop = Callable[[], None]
OnStop = Callable[[Stop], None]


async def run_server(config: ServerConfig, ready: Callable[[Server, str], None], on_stop: OnStop) -> None:
    """`ready(server, token)` is called when clients are accepted; `token` is the first token's text, "" if it is no longer kept."""
    from fastrelay.roles.server import Server

    state = ServerState.open(config.state)
    try:
        server = Server(config, state)
        server.start()
    except BaseException:
        state.close()
        raise
    ready(server, server.token())
    await _until_stopped(on_stop, server.drain, server.close)


async def run_client(config: ClientConfig, reachable: Callable[[Exposure, str, int], None], on_stop: OnStop) -> None:
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


async def run_demo(
    exposures: tuple[Exposure, ...], reachable: Callable[[Exposure, str, int], None], on_stop: OnStop
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
