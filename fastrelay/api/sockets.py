"""A connection through a tunnel as a socket, for what can use nothing else."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from fastrelay.api.opening import Way, opened, refusal
from fastrelay.errors import Code
from fastrelay.mux.stream import NOTHING
from fastrelay.net.edge import Edge
from fastrelay.net.options import LINGER_RESET

_PAIR_TIME: Final = 1.0
"""Seconds for a connection of this process with itself."""


class _Inside(Edge):
    """The far end of the socket: tells what became of the stream, then does as every edge."""

    __slots__ = ("_answer",)

    def __init__(self, way: Way, answer: asyncio.Future[Code]) -> None:
        super().__init__(way.runtime)
        self._answer = answer

    def on_accept(self) -> None:
        self._say(Code.NO_ERROR)

    def on_reset(self, code: Code) -> None:
        self._say(code or Code.CONNECTION_RESET)
        super().on_reset(code)

    def on_lost(self) -> None:
        self._say(Code.CONNECTION_RESET)
        super().on_lost()

    def connection_lost(self, exc: Exception | None) -> None:
        self._say(Code.CONNECTION_RESET)
        super().connection_lost(exc)

    def _say(self, code: Code) -> None:
        if not self._answer.done():
            self._answer.set_result(code)


async def open_socket(way: Way, target: str) -> socket.socket:
    """A connected socket, which blocks, to `target`; half-close and reset are exact. Raises as `create_connection` does."""
    loop = way.runtime.loop
    answer: asyncio.Future[Code] = loop.create_future()
    outside, inside = _pair()
    edge = _Inside(way, answer)
    try:
        try:
            await loop.connect_accepted_socket(lambda: edge, inside)
        except BaseException:
            inside.close()
            edge.connection_lost(None)  # uvloop's transport, cancelled here, ends without a word
            raise
        edge.join(*await opened(way, NOTHING, target))
        try:
            async with asyncio.timeout(way.runtime.limits.answer_time):
                code = await answer
        except TimeoutError:
            code = Code.DIAL_TIMEOUT
        if code is not Code.NO_ERROR:
            raise refusal(code, target)
    except BaseException:
        outside.close()
        edge.refuse()
        raise
    return outside


def _pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection of this process with itself: of a unix socket no end could be a reset."""
    with socket.create_server(("127.0.0.1", 0), backlog=8) as listener:
        outside = socket.create_connection(listener.getsockname(), _PAIR_TIME)
        while True:
            inside, who = listener.accept()
            if who == outside.getsockname():
                break
            inside.close()  # of somebody else on this machine
    outside.settimeout(None)
    inside.setblocking(False)
    for one in (outside, inside):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    inside.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    return outside, inside
