"""A connection through a tunnel, opened by a protocol of this program: a transport for it, or the exception that says why not."""

from __future__ import annotations

import asyncio
import ssl as tls
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from fastrelay.errors import (
    AwayError,
    Code,
    DeniedError,
    DialRefusedError,
    DialTimeoutError,
    NoServiceError,
    OpenError,
)
from fastrelay.front.opener import Opener
from fastrelay.mux.stream import Outlet, Stream
from fastrelay.net import transport as transports
from fastrelay.net.door import VisitorDoor
from fastrelay.net.link import Link
from fastrelay.net.runtime import Runtime
from fastrelay.net.transport import StreamTransport
from fastrelay.roles.visiting import why_missed

P = TypeVar("P", bound=asyncio.BaseProtocol)

VISITOR: Final = "program"
"""Who the visitor is when it is this program: it has no address."""
STREAM_LIMIT: Final = 65_536
"""Bytes: asyncio's own default for a StreamReader."""

_KINDS: Final[dict[Code, type[OpenError]]] = {
    Code.REFUSED: DialRefusedError,
    Code.DIAL_TIMEOUT: DialTimeoutError,
    Code.NO_SERVICE: NoServiceError,
    Code.DENIED: DeniedError,
    Code.DIAL_DENIED: DeniedError,
    Code.DIAL_FORBIDDEN: DeniedError,
    Code.AWAY: AwayError,
}


class Way(Opener, Protocol):
    """Where streams are opened: a tunnel of this program, or the relay that it is."""

    @property
    def runtime(self) -> Runtime: ...

    def pause(self) -> float:
        """Seconds until another stream should be opened; 0 for at once."""

    def why(self, target: str) -> Exception:
        """Why `open` has opened nothing."""

    def serve(self, door: VisitorDoor) -> None:
        """Let visitors of this program's machine in at a door."""

    def leave(self, door: VisitorDoor) -> None:
        """Close it. May be called again."""


def refusal(code: Code, target: str) -> OpenError:
    """The exception for a stream to `target` that was refused with `code`."""
    return _KINDS.get(code, OpenError)(code, f"{why_missed(target, code)}.")


async def opened(way: Way, outlet: Outlet, target: str) -> tuple[Stream, Link]:
    """A stream that is opened as soon as it should be. Raises what `why` says."""
    pause = way.pause()
    while pause:
        await asyncio.sleep(pause)
        pause = way.pause()
    found = way.open(outlet, target, VISITOR)
    if found is None:
        raise way.why(target)
    return found


async def create_connection(
    way: Way,
    target: str,
    factory: Callable[[], P],
    *,
    peername: tuple[str, int] | None = None,
    ssl: bool | tls.SSLContext | None = None,
    server_hostname: str | None = None,
    handshake_time: int | None = None,
) -> tuple[asyncio.Transport, P]:
    """Open a stream to `target` and connect it with a new protocol, as `loop.create_connection` does; under TLS if `ssl` is given.

    Raises OpenError, what `way` says when there is no tunnel, and ssl.SSLError.
    """
    context = tls.create_default_context() if ssl is True else ssl or None
    loop = way.runtime.loop
    protocol = factory()
    ready: asyncio.Future[None] | None = None
    outer: asyncio.BaseProtocol = protocol
    made: list[asyncio.Transport] = []
    if context is not None:
        ready = loop.create_future()
        outer, inner = transports.tls(
            loop,
            protocol,
            context,
            ready,
            server_hostname=server_hostname,
            handshake_time=handshake_time,
        )
        made.append(inner)
    transport = StreamTransport(way.runtime, outer, {"peername": peername, "target": target})
    transport.join(*await opened(way, transport, target))
    try:
        async with asyncio.timeout(way.runtime.limits.answer_time):
            code = await transport.accepted()
    except TimeoutError:
        code = Code.DIAL_TIMEOUT
    if code is not Code.NO_ERROR:
        raise refusal(code, target)
    if ready is None:
        return transport, protocol
    try:
        await ready
    except BaseException:
        transport.abort()
        raise
    return made[0], protocol


async def open_connection(
    way: Way,
    target: str,
    *,
    limit: int = STREAM_LIMIT,
    peername: tuple[str, int] | None = None,
    ssl: bool | tls.SSLContext | None = None,
    server_hostname: str | None = None,
    handshake_time: int | None = None,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The same as a pair of streams, as `asyncio.open_connection` does; `limit` is that of the reader, in bytes."""
    loop = way.runtime.loop
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    transport, protocol = await create_connection(
        way,
        target,
        lambda: asyncio.StreamReaderProtocol(reader, loop=loop),
        peername=peername,
        ssl=ssl,
        server_hostname=server_hostname,
        handshake_time=handshake_time,
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
