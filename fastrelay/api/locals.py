"""Local ports of a program that lead through a tunnel: to one target, or wherever whoever comes wants to go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from fastrelay.api.opening import Way
from fastrelay.config import join_host
from fastrelay.net.door import VisitorDoor
from fastrelay.net.listen import listen


class Listener:
    """A local port, open until `close` or the end of its tunnel. Connections that are there when it closes go on.

    `async with` closes it. `host` and `port` say where it is.
    """

    def __init__(self, way: Way, make: Callable[[], asyncio.BaseProtocol], host: str, port: int, scheme: str) -> None:
        self._way = way
        self._door = VisitorDoor(way.runtime, listen(host, port), make)
        self.host = host
        self.port = self._door.port
        self._scheme = scheme
        self._open = True
        way.serve(self._door)

    @property
    def url(self) -> str:
        """`tcp://HOST:PORT`, or `socks5h://HOST:PORT` of a proxy, which speaks HTTP CONNECT on the same port."""
        return f"{self._scheme}://{join_host(self.host, self.port)}"

    def close(self) -> None:
        """Nobody comes in any more. May be called again."""
        if self._open:
            self._open = False
            self._way.leave(self._door)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<fastrelay.Listener {self.url}{'' if self._open else ' closed'}>"
