"""What the tests of the API share: a relay of this process, tunnels to it, and a local service that answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from fastrelay.api import Server, Tunnel, connect
from fastrelay.api.making import Making

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def relay(state: Path, **options: Any) -> Server:
    """Without TLS: what is under test is above it. What is still open when it ends is reset at once."""
    return Server(bind="127.0.0.1:0", state=state / "relay", plaintext=True, drain=options.pop("drain", 0), **options)


def tunnel(server: Server, state: Path, name: str = "home", **options: Any) -> Making[Tunnel]:
    options = {"token": server.token, "drain": 0, **options}
    return connect(server.url, name=name, state=state / "client", **options)


@contextlib.asynccontextmanager
async def joined(state: Path, **options: Any) -> AsyncIterator[tuple[Server, Tunnel]]:
    async with relay(state) as server, tunnel(server, state, **options) as home:
        yield server, home


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What comes goes back, the end too."""
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
    writer.close()
    await writer.wait_closed()


@contextlib.asynccontextmanager
async def local(handler: Handler, **options: Any) -> AsyncIterator[int]:
    """A service of this machine; its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError):
                await handler(reader, writer)
                writer.close()
                await writer.wait_closed()
        finally:
            writer.transport.abort()
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        if tasks:
            await asyncio.wait(tasks, timeout=0.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # what was aborted in the last turn


async def visit(host: str, port: int, said: bytes) -> bytes:
    """Say something, end, and read to the end."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(said)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
