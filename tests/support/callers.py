"""A caller in this process: a local port that leads to a service of a client of a relay."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastrelay.config import ClientConfig, Relay
from fastrelay.errors import FastrelayError
from fastrelay.front.forward import ForwardVisitor
from fastrelay.net.door import VisitorDoor
from fastrelay.net.listen import listen
from fastrelay.roles.caller import Caller
from fastrelay.state import ClientState
from tests.support.tunnel import PATIENCE, Local, until

LOCALHOST = "127.0.0.1"


class CallerBench:
    """Logs in with `token` at the plaintext relay on `port`; local visitors reach `target`."""

    def __init__(self, home: Path, port: int, token: str, target: str, *, again: bool = True) -> None:
        config = ClientConfig(
            relay=Relay(LOCALHOST, port, tls=False), token=token, exposures=(), name="", state=home
        )  # fmt: skip
        self.stood = 0  # how often a session has begun
        self.locals: list[Local] = []
        self.caller = Caller(config, ClientState.open(home, config.relay.url, ""), self._stands, again=again)
        runtime = self.caller.runtime
        self.door = VisitorDoor(
            runtime, listen(LOCALHOST, 0), lambda: ForwardVisitor(runtime, self.caller.visiting, target)
        )
        self.port = self.door.port
        self.caller.visiting.serve(self.door)
        self.running = asyncio.ensure_future(self.caller.run())

    def _stands(self) -> None:
        self.stood += 1

    async def stands(self, times: int = 1) -> None:
        await until(lambda: self.stood >= times or self.running.done(), "a session has begun")
        assert not self.running.done(), self.running.exception()

    async def visit(self) -> Local:
        sock = socket.socket()
        sock.setblocking(False)
        local = Local(sock)
        self.locals.append(local)
        async with asyncio.timeout(PATIENCE):
            await local.loop.sock_connect(sock, (LOCALHOST, self.port))
        return local


@asynccontextmanager
async def caller(home: Path, port: int, token: str, target: str = "db") -> AsyncIterator[CallerBench]:
    """With a session that stands."""
    bench = CallerBench(home, port, token, target)
    try:
        await bench.stands()
        yield bench
    finally:
        for local in bench.locals:
            local.close()
        await bench.caller.close()
        await asyncio.gather(bench.running, return_exceptions=True)
    runtime = bench.caller.runtime
    await until(lambda: not runtime.edges, "every edge has ended", 3)
    assert runtime.pool.used == 0 and not runtime.watch._watched
    error = bench.running.exception() if not bench.running.cancelled() else None
    assert error is None or isinstance(error, FastrelayError)
