"""HTTP through a tunnel: a transport for httpx2 (`pip install 'fastrelay[httpx]'`).

async with httpx2.AsyncClient(transport=fastrelay.httpx.Transport(server.client("home"))) as http:
    await http.get("http://10.0.0.5:8080/")         # as the client `home` reaches it
async with httpx2.AsyncClient(transport=fastrelay.httpx.Transport(tunnel)) as http:
    await http.get("http://jobs/")                  # the named service `jobs`
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from typing import Any

import httpcore2
import httpx2

from fastrelay.api import Peer, Server, Tunnel
from fastrelay.api.opening import STREAM_LIMIT
from fastrelay.net.transport import StreamTransport, start_tls


class Transport(httpx2.AsyncBaseTransport):
    """Sends requests through a Peer, to hosts as that client reaches them, or through a Tunnel or Server, whose hosts are named services.

    `verify` is the context for https. Connections are pooled, `max_connections` of them. A connection that is refused is an
    httpx2.ConnectError with the text of the OpenError; all else is as with any transport of httpx2.
    """

    def __init__(
        self, way: Peer | Tunnel | Server, *, verify: ssl.SSLContext | None = None, max_connections: int = 100
    ) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=verify or ssl.create_default_context(),
            max_connections=max_connections,
            network_backend=_Backend(way),
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        url = request.url
        with _errors(_CORE):
            answer = await self._pool.handle_async_request(
                httpcore2.Request(
                    method=request.method,
                    url=httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        assert isinstance(answer.stream, AsyncIterable)
        return httpx2.Response(
            answer.status, headers=answer.headers, stream=_Body(answer.stream), extensions=answer.extensions
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Body(httpx2.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _errors(_CORE):
            async for part in self._stream:
                yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Backend(httpcore2.AsyncNetworkBackend):
    def __init__(self, way: Peer | Tunnel | Server) -> None:
        self._way = way

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        with _errors(_CONNECT):
            async with asyncio.timeout(timeout):
                way = self._way
                pair = await (way.open_connection(host, port) if isinstance(way, Peer) else way.open_connection(host))
        return _Stream(*pair)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Stream(httpcore2.AsyncNetworkStream):
    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, under: asyncio.StreamWriter | None = None
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._under = under  # of what TLS goes over: forgotten, it would close that

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _errors(_READ):
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _errors(_WRITE):
            async with asyncio.timeout(timeout):
                self._writer.write(buffer)
                await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        transport = self._writer.transport
        assert isinstance(transport, StreamTransport)
        reader = asyncio.StreamReader(limit=STREAM_LIMIT, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        with _errors(_CONNECT):
            async with asyncio.timeout(timeout):
                over = await start_tls(transport, protocol, ssl_context, server_hostname=server_hostname)
        return _Stream(reader, asyncio.StreamWriter(over, protocol, reader, loop), self._writer)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # asked of a connection that is idle: has the other side ended it?
            return self._reader.at_eof() or self._writer.is_closing()
        return self._writer.get_extra_info({"server_addr": "peername"}.get(info, info))


_Errors = Mapping[type[Exception], type[Exception]]
_CONNECT: _Errors = {TimeoutError: httpcore2.ConnectTimeout, OSError: httpcore2.ConnectError}
_READ: _Errors = {TimeoutError: httpcore2.ReadTimeout, OSError: httpcore2.ReadError}
_WRITE: _Errors = {TimeoutError: httpcore2.WriteTimeout, OSError: httpcore2.WriteError}
_CORE: _Errors = {
    error: getattr(httpx2, error.__name__)
    for error in (
        httpcore2.ConnectTimeout,
        httpcore2.ReadTimeout,
        httpcore2.WriteTimeout,
        httpcore2.PoolTimeout,
        httpcore2.ConnectError,
        httpcore2.ReadError,
        httpcore2.WriteError,
        httpcore2.UnsupportedProtocol,
        httpcore2.LocalProtocolError,
        httpcore2.RemoteProtocolError,
    )
}


@contextlib.contextmanager
def _errors(known: _Errors) -> Iterator[None]:
    """What the layer below raises as what the one above expects; the first that fits."""
    try:
        yield
    except tuple(known) as error:
        kind = next(kind for base, kind in known.items() if isinstance(error, base))
        raise kind(str(error)) from error
