"""A stream that somebody opened gets its target: resolve, connect, join (protocol.md sections 6.3 and 9.1).

Dialling is the one task between a tunnel and a socket, and it is over before the first byte is written to the target.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import select
import socket
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from types import TracebackType
from typing import Any, Protocol

from fastrelay.config import Target
from fastrelay.dialling import Place, Rules, refused
from fastrelay.errors import Code, DialDeniedError
from fastrelay.mux.stream import Stream
from fastrelay.net.edge import Edge
from fastrelay.net.link import Link
from fastrelay.net.options import LINGER_RESET, unpace
from fastrelay.net.runtime import Runtime
from fastrelay.wire import RESET_DRAIN

_CACHE_TIME = 30.0
_MOST_KNOWN = 1024
Address = tuple[int, Any]  # family, sockaddr


class Resolver:
    """Names to addresses, kept for 30 s: a thread for every visitor would cost more than the dial. The one that worked last is first.

    `threads` do the asking, those of the loop if there are none.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: Executor | None = None) -> None:
        self._loop = loop
        self._threads = threads
        self._known: dict[Target, tuple[float, list[Address]]] = {}

    def known(self, target: Target) -> list[Address] | None:
        """The addresses of a target, None when somebody has to be asked."""
        known = self._known.get(target)
        if known is not None and known[0] > self._loop.time():
            return known[1]
        return [(socket.AF_UNIX, target.path)] if target.path else None

    async def ask(self, target: Target) -> list[Address]:
        """The same, by asking. Raises OSError when the name cannot be resolved."""
        addresses = _literal(target)
        if addresses is None:
            if self._threads is None:
                found = await self._loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            else:
                ask = partial(socket.getaddrinfo, target.host, target.port, type=socket.SOCK_STREAM)
                found = await self._loop.run_in_executor(self._threads, ask)
            addresses = [(family, address) for family, _, _, _, address in found]
        self._known.pop(target, None)
        if len(self._known) >= _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[target] = (self._loop.time() + _CACHE_TIME, addresses)
        return addresses

    def worked(self, target: Target, address: Address) -> None:
        known = self._known.get(target)
        if known is not None and known[1][0] != address:
            self._known[target] = (known[0], sorted(known[1], key=lambda one: one != address))


def _literal(target: Target) -> list[Address] | None:
    """The address that stands there already; a link-local one still has to be looked up for its link."""
    try:
        address = ipaddress.ip_address(target.host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return [(socket.AF_INET, (target.host, target.port))]
    return None if address.scope_id is not None else [(socket.AF_INET6, (target.host, target.port, 0, 0))]


class Turn(Protocol):
    """How many may dial at once: `async with` waits for one's turn."""

    async def __aenter__(self) -> object: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None: ...


class Share:
    """A turn among so many, who have their turns among all: they can never take every turn."""

    def __init__(self, all_: asyncio.Semaphore, most: int) -> None:
        self._all = all_
        self._own = asyncio.Semaphore(most)

    async def __aenter__(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._own)
            await self._all.acquire()
            stack.pop_all()

    async def __aexit__(self, *_: object) -> None:
        self._all.release()
        self._own.release()


class Dial:
    """The outlet of a stream whose target is not there yet. It keeps early data, and cancels when the stream is reset.

    The target is sent `first(address)` before anything else, at the socket address at which it was reached.

    `make` makes the target's edge. With `permit` only addresses are connected to that these rules allow for this place. `done(code, error)` is
    called once: with an error when the target cannot be reached, with NO_ERROR when it is joined, with CANCEL when the tunnel was lost first,
    and else with the code with which the stream was reset.
    """

    __slots__ = (
        "_code",
        "_done",
        "_early",
        "_error",
        "_fin",
        "_first",
        "_limit",
        "_link",
        "_make",
        "_permit",
        "_reset",
        "_resolver",
        "_runtime",
        "_stream",
        "_target",
        "_task",
    )

    def __init__(
        self,
        runtime: Runtime,
        resolver: Resolver,
        limit: Turn,
        link: Link,
        stream: Stream,
        target: Target,
        done: Callable[[Code, Exception | None], None],
        make: Callable[[Runtime, socket.socket], Edge] = Edge,
        first: Callable[[Any], bytes] | None = None,
        permit: tuple[Rules, Place] | None = None,
    ) -> None:
        self._runtime = runtime
        self._resolver = resolver
        self._limit = limit
        self._link = link
        self._stream = stream
        self._target = target
        self._done = done
        self._make = make
        self._first = first
        self._permit = permit
        self._early = bytearray()
        self._fin = False
        self._reset: Code | None = None  # the stream was reset behind its early data
        self._code = Code.CANCEL
        self._error: Exception | None = None
        stream.attach(self)
        self._task = runtime.spawn(runtime.loop.create_task(self._dial()))
        # Not at the end of the task's own code: a task that is cancelled before its first step runs none of it.
        self._task.add_done_callback(self._over)

    def deliver(self, piece: memoryview) -> None:
        self._early += piece
        self._stream.queued = len(self._early)
        if not self._stream.cover(len(self._early)):
            self._failed(Code.LIMIT, OSError(errno.ENOBUFS, "no room for early data"))
            self._early.clear()
            self._task.cancel()

    def on_accept(self) -> None:
        """Cannot come: it is this side that accepts."""

    def on_fin(self) -> None:
        self._fin = True

    def on_reset(self, code: Code) -> None:
        """What came before the reset is still delivered, if the target is there in time; without early data nobody waits for it."""
        self._code = code
        if not self._early:
            self._stream.detach()
            self._task.cancel()
            return
        self._reset = code  # the stream keeps its share of the pool for as long as its early data are kept
        self._runtime.loop.call_later(RESET_DRAIN, self._task.cancel)

    def _over(self, _: asyncio.Task[None]) -> None:
        if self._reset is not None:
            self._stream.detach()
        error, self._error = self._error, None
        del self._task  # its exception, and this error, know where they were raised, and so us: two cycles
        self._done(self._code, error)

    def on_lost(self) -> None:
        self._task.cancel()

    def on_stop(self) -> None:
        """Cannot come before ACCEPT."""

    def on_room(self) -> None:
        """There is nothing to send yet."""

    async def _dial(self) -> None:
        try:
            async with self._limit:  # whoever has to wait for others does not pay for them with time of his own
                edge = await self._connect(self._runtime.loop.time() + self._runtime.limits.dial_time)
        except TimeoutError as failure:
            self._failed(Code.DIAL_TIMEOUT, failure)
        except DialDeniedError as failure:
            self._failed(refused(failure.rule), failure)
        except ConnectionRefusedError as failure:
            self._failed(Code.REFUSED, failure)
        except OSError as failure:
            if failure.errno in (errno.EMFILE, errno.ENFILE):
                self._runtime.starve()
            full = failure.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
            self._failed(Code.LIMIT if full else Code.UNREACHABLE, failure)
        except UnicodeError as failure:  # a name that cannot even be asked for
            self._failed(Code.UNREACHABLE, OSError(errno.EINVAL, str(failure)))
        else:
            self._join(edge)

    def _failed(self, code: Code, error: Exception) -> None:
        if self._reset is not None:
            return  # nobody is left who would ask why
        self._code = code
        self._error = error
        self._stream.reset(code)

    async def _connect(self, deadline: float) -> Edge:
        """Try one address after the other; raises the last one's OSError, or TimeoutError, or DialDeniedError where none is allowed."""
        last: OSError = OSError(errno.EHOSTUNREACH, "no address")
        addresses = self._resolver.known(self._target)
        if addresses is None:
            async with asyncio.timeout_at(deadline):
                addresses = await self._resolver.ask(self._target)
        if self._permit is not None:
            addresses = _allowed(addresses, *self._permit)
        for address in addresses:
            try:
                edge = await self._connect_to(address, deadline)
            except OSError as error:
                if self._runtime.loop.time() >= deadline:
                    raise
                last = error
                continue
            self._resolver.worked(self._target, address)
            return edge
        raise last

    async def _connect_to(self, address: Address, deadline: float) -> Edge:
        loop = self._runtime.loop
        sock = socket.socket(address[0], socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if sock.fileno() >= self._runtime.top:  # there was room when the stream was opened
            sock.close()
            self._runtime.look()
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        edge = self._make(self._runtime, sock)
        try:
            if address[0] != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
                unpace(sock, address[1])
            try:
                await connect(loop, sock, address[1], deadline)
                if self._first is not None:
                    sock.send(self._first(address[1]))  # nothing is in its queue, so it takes all of it
            except ConnectionResetError:
                edge.was_reset()  # it was connected, spoke perhaps, and was reset before we looked
        except BaseException:
            sock.close()
            raise
        try:
            await loop.connect_accepted_socket(lambda: edge, sock)  # from here on the transport closes it
        except BaseException:
            edge.connection_lost(None)  # uvloop's transport, cancelled here, ends without a word
            raise
        return edge

    def _join(self, edge: Edge) -> None:
        stream = self._stream
        if self._reset is not None:
            edge.deliver(memoryview(self._early))
            edge.on_reset(self._reset)
            return
        if stream.outlet is not self:  # reset while the last step was under way
            edge.refuse()
            return
        self._code = Code.NO_ERROR
        stream.accept()
        edge.join(stream, self._link)
        if edge.stream is not stream:
            return
        if self._early:
            stream.queued = 0
            edge.deliver(memoryview(self._early))
            stream.drained()
        if self._fin:
            edge.on_fin()


def _allowed(addresses: list[Address], rules: Rules, place: Place) -> list[Address]:
    """Those that the rules allow: they are numbers, and nobody resolves them again. Raises DialDeniedError when there are none."""
    judged = [(rules.refuse_address(place, address[1][0]), address) for address in addresses]
    refusals = [refusal for refusal, _ in judged if refusal is not None]
    if len(refusals) == len(judged) and refusals:
        raise DialDeniedError(*refusals[0])
    return [address for refusal, address in judged if refusal is None]


async def connect(loop: asyncio.AbstractEventLoop, sock: socket.socket, address: Any, deadline: float) -> None:
    """Connect a non-blocking socket to an address that needs no look-up; raises OSError, or TimeoutError at `deadline` of the loop's time.

    The loops' own `sock_connect` is not used: it waits for the next turn at least, and uvloop's asks a thread to resolve what is a number
    already: a third of what a short connection costs.
    """
    error = sock.connect_ex(address)
    if error == errno.EINPROGRESS:
        # Asked by poll, as connect() throws away what a target that is reset by now had said before.
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        if not poll.poll(0):  # to a target on this machine it is done by now
            ready = asyncio.Event()
            loop.add_writer(sock, ready.set)
            try:
                async with asyncio.timeout_at(deadline):
                    await ready.wait()
            finally:
                loop.remove_writer(sock)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))
