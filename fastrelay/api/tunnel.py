"""`connect`: one tunnel of a program to a relay, through which it serves, and reaches what others serve."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from fastrelay import wire
from fastrelay.api import opening
from fastrelay.api.client import Accept, Embedded, Program
from fastrelay.api.making import Making, to_the_end
from fastrelay.api.reaching import Reaching
from fastrelay.auth import Token, parse_pin
from fastrelay.config import ClientConfig, Exposure, assign_proxy, host_name, parse_expose, parse_relay
from fastrelay.dialling import Rules
from fastrelay.errors import Code, UnreachableError, UsageError
from fastrelay.limits import Side, parse_limits
from fastrelay.mux.stream import Stream
from fastrelay.net import files
from fastrelay.net.link import Link
from fastrelay.net.transport import StreamTransport
from fastrelay.networks import read
from fastrelay.state import ClientState, default_state

KINDS: Final = ("private", "tcp", "http")
"""How a service of the program may be reached."""

Accepted = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]
"""What `asyncio.start_server` calls `client_connected_cb`."""


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
) -> Making[Tunnel]:
    """A tunnel to `relay`, on the running loop: `async with connect(…) as tunnel`, or `await connect(…)` and `aclose` later.

    `relay` is written as for `fastrelay client`: `HOST[:PORT]`, `tls://…`, `wss://…`, on this machine also `tcp://…` and `ws://…`. `token` is the
    token's text. `name` says who this client is, the host name if it is None; with "" it serves nothing and only reaches others. `state` is a
    directory that says which installation this is and keeps the relay's pins; without it that of `fastrelay client` is used. `client_cert`,
    `client_key` (PEM files), `pins`, `behind_proxy` and `allow_dial` are as its options. `limits` are texts such as `streams=500`. When the
    `async with` block ends well, visitors have `drain` seconds to end by themselves.

    The first connection is tried once; a tunnel that is lost later comes back by itself. Raises UnreachableError, AuthError, NameInUseError,
    StartError for any other refusal, UsageError for arguments that cannot be understood.
    """

    async def make() -> Tunnel:
        if token:
            Token.parse(token)
        bounds = parse_limits(limits, Side.CLIENT)
        config = ClientConfig(
            relay=parse_relay(relay),
            token=token,
            exposures=(),
            name=host_name(socket.gethostname()) if name is None else name,
            state=default_state("client") if state is None else Path(state),
            # A library leaves the limit of descriptors as it is.
            limits=replace(bounds, drain_time=drain, files=files.limit() if bounds.files is None else bounds.files),
            client_cert=None if client_cert is None else Path(client_cert),
            client_key=None if client_key is None else Path(client_key),
            pins=tuple(parse_pin(pin) for pin in pins),
            behind_proxy=behind_proxy,
            allow_dial=Rules.parse(allow_dial),
        )
        kept = ClientState.open(config.state, config.relay.url, config.name)
        try:
            client = Embedded(config, kept)
        except BaseException:
            kept.close()
            raise
        tunnel = Tunnel(client)
        try:
            await client.up
        except BaseException:
            await tunnel.abort()
            raise
        return tunnel

    return Making(make)


class Tunnel(Reaching):
    """A tunnel that `connect` has made. It comes back by itself when it was lost, with all that it serves; connections do not."""

    def __init__(self, client: Embedded) -> None:
        self._client = client
        self._loop = client.runtime.loop
        self._handlers: set[asyncio.Task[None]] = set()
        self._ending: asyncio.Task[None] | None = None
        self._running = self._loop.create_task(client.run())
        self._running.add_done_callback(self._over)

    @property
    def name(self) -> str:
        """Who this client is."""
        return self._client.config.name

    @property
    def relay(self) -> str:
        """`tls://HOST:PORT` or what else was connected to."""
        return self._client.config.relay.url

    @property
    def is_up(self) -> bool:
        """There is a connection to the relay at this moment."""
        return self._client.linked

    # --- serving -------------------------------------------------------------------------------------------------------

    def expose(
        self,
        target: int | str,
        *,
        name: str | None = None,
        port: int | None = None,
        visitors: Iterable[str] = (),
        pool: bool = False,
        proxy_protocol: str = "off",
    ) -> Making[Service]:
        """Let visitors reach a local service: a port, or a SPEC of `fastrelay client --expose`, such as `ssh=20022:192.168.1.7:22`.

        `name` and `port`, the public one, count instead of those of the SPEC; `visitors` are networks that may come, everybody if there are
        none. With `pool` it is shared with other clients of the same token. `proxy_protocol` is `v1` or `v2` for a target that is to be told in a PROXY
        header who the visitor is. `await` it, or `async with` it to end it with the block. Raises ExposeError, UsageError, UnreachableError.
        """

        async def make() -> Service:
            exposure = parse_expose(str(target))
            if name is not None:
                exposure = replace(exposure, name=name)
            if port is not None:
                exposure = replace(exposure, port=port)
            versions = assign_proxy((proxy_protocol,), (exposure.name,))
            exposure = replace(exposure, pool=pool, proxy=versions[exposure.name])
            return await self._serve(exposure, visitors, None)

        return Making(make)

    def listen(
        self,
        name: str,
        client_connected_cb: Accepted,
        *,
        kind: str = "private",
        port: int = 0,
        visitors: Iterable[str] = (),
        limit: int = opening.STREAM_LIMIT,
    ) -> Making[Service]:
        """Be a service without a local port: each visitor becomes a pair of streams, as with `asyncio.start_server`.

        It is reached by its name alone, through the tunnels of others; with `kind` "tcp" by a public port, `port` or any if that is 0;
        with "http" by its host name, NAME.DOMAIN, where the relay has a domain.
        `client_connected_cb(reader, writer)` is a coroutine, which gets a task, or a plain function; a coroutine that raises resets its visitor
        and is told to the loop's exception handler. `writer.get_extra_info` knows `peername` (host, port), `visitor` (the same as text) and
        `service`. `limit` is the reader's, in bytes. Else as `expose`.
        """

        def make() -> asyncio.BaseProtocol:
            reader = asyncio.StreamReader(limit=limit, loop=self._loop)
            return asyncio.StreamReaderProtocol(reader, lambda r, w: self._begin(client_connected_cb, r, w), self._loop)

        return self.listen_protocol(name, make, kind=kind, port=port, visitors=visitors)

    def listen_protocol(
        self,
        name: str,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        *,
        kind: str = "private",
        port: int = 0,
        visitors: Iterable[str] = (),
    ) -> Making[Service]:
        """The same with a protocol for each visitor, as with `loop.create_server`: it is called with what comes as it comes."""

        def accept(stream: Stream, link: Link, request: wire.Open) -> None:
            try:
                protocol = protocol_factory()
            except Exception as error:
                stream.reset(Code.INTERNAL)
                self._loop.call_exception_handler({"message": f"no protocol for {name}", "exception": error})
                return
            extra = {"peername": _address(request.visitor), "visitor": request.visitor, "service": name}
            transport = StreamTransport(self._client.runtime, protocol, extra)
            stream.accept()
            transport.join(stream, link)

        async def make() -> Service:
            if kind not in KINDS:
                raise UsageError(f"There is no kind {kind!r} of services: use one of {', '.join(KINDS)}.")
            return await self._serve(Exposure(name, port, Program(), kind=kind), visitors, accept)

        return Making(make)

    async def _serve(self, exposure: Exposure, visitors: Iterable[str], accept: Accept | None) -> Service:
        texts = tuple(visitors)
        if texts:
            try:
                exposure = replace(exposure, visitors=read(texts))
            except ValueError as why:
                raise UsageError(f"The visitors of {exposure.name} are not understood: {why}.") from None
        if not self.name:
            raise UsageError(
                f"This tunnel has no name, so it serves nothing: give `connect` one to expose {exposure.name}."
            )
        if self._running.done():
            raise UnreachableError(f"The tunnel to {self.relay} is closed.")
        return Service(self._client, await self._client.expose(exposure, accept), exposure)

    def _begin(self, accepted: Accepted, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        work = accepted(reader, writer)
        if not asyncio.iscoroutine(work):
            return
        task = self._loop.create_task(work)
        self._handlers.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._handlers.discard(task)
            error = None if task.cancelled() else task.exception()
            if task.cancelled() or error is not None:
                writer.transport.abort()  # what is not whole must not look like it
            if error is not None and not isinstance(error, ConnectionError):
                context = {"message": "a visitor's task failed", "exception": error, "task": task}
                self._loop.call_exception_handler(context)

        task.add_done_callback(done)

    @property
    def _way(self) -> opening.Way:
        return self._client

    # --- the end -------------------------------------------------------------------------------------------------------

    async def wait_closed(self) -> None:
        """Wait until the tunnel has ended for good. Raises what ended it, if it was not this side."""
        await asyncio.wait({self._running})
        if not self._running.cancelled():
            self._running.result()

    async def aclose(self) -> None:
        """End the tunnel: connections that this program has opened and not closed are reset, visitors have `drain` seconds to end."""
        self._client.abort_own()
        try:
            if not self._running.done() and self._client.config.limits.drain_time > 0:
                self._client.drain()
                await asyncio.wait({self._running})
        finally:
            await self.abort()

    async def abort(self) -> None:
        """End the tunnel at once: every connection is reset."""
        if self._ending is None:
            self._ending = self._loop.create_task(self._end())
        await to_the_end(self._ending)

    async def _end(self) -> None:
        await self._client.close()
        self._running.cancel()
        handlers = list(self._handlers)
        for task in handlers:
            task.cancel()
        await asyncio.gather(self._running, *handlers, return_exceptions=True)

    def _over(self, running: asyncio.Task[None]) -> None:
        error = None if running.cancelled() else running.exception()
        self._client.give_up(
            error if isinstance(error, Exception) else UnreachableError(f"The tunnel to {self.relay} is closed.")
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await (self.aclose() if kind is None else self.abort())

    def __repr__(self) -> str:
        return f"<fastrelay.Tunnel {self.name} at {self.relay}{'' if self.is_up else ', not connected'}>"


class Service:
    """What a tunnel serves, until `close` or the end of the tunnel. `async with` closes it."""

    def __init__(self, client: Embedded, number: int, exposure: Exposure) -> None:
        self._client = client
        self._number = number
        self._exposure = exposure
        self.name = exposure.name

    @property
    def host(self) -> str:
        """Where visitors reach it; another one perhaps after the tunnel was lost."""
        return self._client.where(self._number).host

    @property
    def port(self) -> int:
        """The public port, 0 of a private service; of an HTTP service that of its `url`."""
        return self._client.where(self._number).port

    @property
    def url(self) -> str:
        """`tcp://HOST:PORT`, `fastrelay://NAME` of a private service, or `https://NAME.DOMAIN` of an HTTP service."""
        return self._client.where(self._number).url

    def close(self) -> None:
        """Refuse visitors from now on; those who are here go on. May be called again.

        The relay keeps name and port for this tunnel as long as it lasts: what is exposed again in the same way gets them back.
        """
        self._client.drop(self._number)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<fastrelay.Service {self.name} at {self.url}>"


def _address(visitor: str) -> tuple[str, int] | None:
    """HOST:PORT of OPEN as asyncio's (host, port); None where the visitor has no address."""
    host, colon, port = visitor.rpartition(":")
    return (host.removeprefix("[").removesuffix("]"), int(port)) if colon and port.isdecimal() else None
