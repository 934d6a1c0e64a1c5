"""ASGI apps as services of a tunnel, without a port of their own: uvicorn's protocols on the streams of visitors (`pip install 'fastrelay[asgi]'`).

async with fastrelay.connect(relay, token=token) as tunnel, fastrelay.asgi.serve(app, tunnel, "web") as service:
    print(service.url)
    await tunnel.wait_closed()
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import uvicorn

from fastrelay.api import Service, Tunnel
from fastrelay.api.making import to_the_end
from fastrelay.errors import StartError


@contextlib.asynccontextmanager
async def serve(
    app: Callable[..., Any] | str,
    tunnel: Tunnel,
    name: str,
    *,
    kind: str = "tcp",
    port: int = 0,
    visitors: Iterable[str] = (),
    drain: int = 2,
    **options: Any,
) -> AsyncIterator[Service]:
    """Serve an app under `name`, for as long as the block lasts: HTTP/1.1, and WebSocket where `websockets` or `wsproto` is installed.

    `scope["client"]` is the visitor. `kind`, `port` and `visitors` are as for `Tunnel.listen`; requests that are under way at the end have `drain` seconds.
    `options` are those of uvicorn.Config; nothing sets up logging, and the app's lifespan begins and ends with the block. Raises StartError when
    the app does not start, and what `Tunnel.listen` raises.
    """
    # Headers that say who came are the visitor's own words, unless the relay has written them.
    trusted = {"proxy_headers": True, "forwarded_allow_ips": "*"} if kind == "http" else {"proxy_headers": False}
    options = {**trusted, "log_config": None, "timeout_graceful_shutdown": drain, **options}
    server = _Server(uvicorn.Config(app, **options))
    running = asyncio.ensure_future(server.serve(sockets=[]))
    try:
        await asyncio.wait({running, server.up}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        async with tunnel.listen_protocol(name, server.protocol, kind=kind, port=port, visitors=visitors) as service:
            yield service
    finally:
        server.should_exit = True
        await to_the_end(running)


class _Server(uvicorn.Server):
    """A server that listens nowhere, and leaves the signals to the program."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise StartError("The app has not started: its lifespan failed, and its log says why.")
        self.servers = []
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        done = await super().on_tick(counter)
        if not self.up.done():
            self.up.set_result(None)
        return done

    def protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made
