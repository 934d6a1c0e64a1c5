"""Services of several clients: a visitor goes to the least loaded one, and to another if that one does not take it (protocol.md section 5.2)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastrelay import log, wire
from fastrelay.auth import read_login
from fastrelay.errors import Code
from fastrelay.mux.stream import Stream
from fastrelay.net.door import VisitorDoor
from fastrelay.net.edge import Edge
from fastrelay.net.link import address
from fastrelay.net.runtime import Runtime
from fastrelay.net.telling import Totals
from fastrelay.networks import Networks
from fastrelay.roles.registry import pool_owner
from fastrelay.roles.ring import Ring
from fastrelay.roles.services import Service, tell_denied
from fastrelay.roles.sites import User
from fastrelay.roles.visitors import ToldVisitor

if TYPE_CHECKING:
    from fastrelay.roles.tunnel import Tunnel


class Member(Service):
    """A client's part in a pool."""

    __slots__ = ("pool",)

    def __init__(self, tunnel: Tunnel, number: int, pool: Pool, since: float, runtime: Runtime) -> None:
        super().__init__(tunnel, number, pool.name, pool.kind, since, runtime.notices, pool.visitors)
        self.port = pool.port
        self.pool = pool

    def close(self) -> None:
        self.pool.leave(self)

    def failed(self) -> None:
        self.pool.failed(self)


class Pool:
    """One service of all clients with tokens of this label that ask for it. It is there for as long as one of them is.

    `owner` is the name by which the registry keeps what belongs to it: no client can have that. `ended` is called when the last one has left, with the socket of its port, if it had one.
    """

    def __init__(
        self,
        runtime: Runtime,
        label: str,
        request: wire.Expose,
        visitors: Networks | None,
        ended: Callable[[Pool, socket.socket | None], None],
    ) -> None:
        self.owner = pool_owner(label, request.name)
        self.name = request.name
        self.kind = request.kind
        self.visitors = visitors
        self.login = _login(request)
        """The SHA-256 of the `user:password` that visitors of an HTTP service must show, b"" for none."""
        self.port = 0
        self.users: set[User] = set()
        self.ring: Ring[Member] = Ring(lambda member: len(member.tunnel.session.streams))
        self.runtime = runtime
        self._ended = ended
        self._door: VisitorDoor | None = None

    def open(self, sock: socket.socket, balancers: Networks | None) -> None:
        """Visitors come to this listening socket."""
        runtime = self.runtime
        make: type[PoolVisitor] = AuditedPoolVisitor if log.audited() else PoolVisitor
        self._door = VisitorDoor(runtime, sock, lambda: make(runtime, self), balancers)
        self.port = self._door.port
        self._door.open()

    def differs(self, request: wire.Expose, visitors: Networks | None) -> str:
        """What a client that asks for it must ask for in another way, "" if nothing: half a sentence."""
        if request.kind != self.kind:
            return f"the pool {self.name!r} is of kind {self.kind}, not {request.kind}"
        if request.port not in (0, self.port):
            return f"the pool {self.name!r} has port {self.port}, not {request.port}; ask for that, or for any"
        if visitors != self.visitors:
            if self.visitors is None:
                return f"the pool {self.name!r} is for everybody; ask for the same, without --visitors"
            return f"the pool {self.name!r} is for visitors from {self.visitors}; ask for the same with --visitors"
        if _login(request) != self.login:
            return f"the pool {self.name!r} asks its visitors for {'another' if self.login else 'no'} password; ask for the same with --auth"
        return ""

    def join(self, tunnel: Tunnel, number: int, now: float) -> Member:
        """A client is one of them from now on; `number` is what it calls the service."""
        member = Member(tunnel, number, self, now, self.runtime)
        self.ring.add(member)
        return member

    def leave(self, member: Member) -> None:
        self.ring.discard(member)
        for user in list(self.users):
            user.on_withdrawn()
        if not self.ring:
            door, self._door = self._door, None  # which knows how to make visitors of this pool: a cycle
            self._ended(self, None if door is None else door.leave())

    def failed(self, member: Member) -> None:
        """It has not taken a visitor."""
        self.ring.failed(member, self.runtime.loop.time())

    def take(self) -> Member | None:
        """Who serves the next visitor."""
        return self.ring.take(self.runtime.loop.time())

    def parts(self) -> list[Member]:
        """All who serve it."""
        return list(self.ring)

    def admits(self, host: str) -> bool:
        """Whether a visitor from this address may come."""
        return self.visitors is None or host in self.visitors

    def deny(self, visitor: str) -> None:
        """Tell of a visitor that was refused because it is not in the list."""
        tell_denied(self.runtime.notices, self.title, self.newcomer(visitor))

    @property
    def title(self) -> str:
        """For sentences."""
        return f"the pool {self.name}"

    def newcomer(self, visitor: str) -> dict[str, object]:
        """A visitor, for events, who has no client yet."""
        return {"service": self.name, "port": self.port or None, "visitor": visitor}


def _login(request: wire.Expose) -> bytes:
    return read_login(request.login) if request.kind == "http" else b""


class PoolVisitor(Edge):
    """A visitor of a pool: joined when a client has accepted its stream."""

    __slots__ = ("_asking", "_pool", "_who")

    def __init__(self, runtime: Runtime, pool: Pool) -> None:
        super().__init__(runtime)
        self._pool = pool
        self._asking: Asking | None = None
        self._who = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        pool = self._pool
        peer = transport.get_extra_info("peername")
        self._who = visitor = address(peer)
        self.begin(visitor)
        if pool.visitors is None or (peer is not None and peer[0] in pool.visitors):
            self._asking = Asking(self._runtime, pool, visitor, self._met, self._not_met)
            self._asking.ask()
            return
        self.turn_away("denied")
        if peer is not None:  # else it has gone before it could be asked
            pool.deny(visitor)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        super().connection_lost(exc)

    def begin(self, visitor: str) -> None:
        """It is there."""

    def meet(self, member: Member, visitor: str) -> None:
        """A client has accepted it."""

    def _met(self, member: Member, stream: Stream, stopped: bool) -> None:
        self._asking = None
        self.meet(member, self._who)
        self.join(stream, member.tunnel.link)
        if stopped and self.stream is stream:
            self.on_stop()

    def _not_met(self, code: Code, cause: str) -> None:
        self._asking = None
        self.turn_away(cause)

    def turn_away(self, cause: str) -> None:
        """Nobody takes it, and this is why."""
        self.refuse()


class AuditedPoolVisitor(ToldVisitor, PoolVisitor):
    """The same, of whom the audit log is told."""

    def begin(self, visitor: str) -> None:
        self.introduce(self._pool.title, self._pool.newcomer(visitor), Totals())

    def meet(self, member: Member, visitor: str) -> None:
        self.introduce(member.title, member.who(visitor), member.tunnel.totals)


class Asking:
    """The outlet of a visitor's streams until one of them is accepted. Nothing that the visitor says is sent before, so another client can be asked.

    `met(member, stream, stopped)` is called when a client has accepted, `stopped` if it reads no more all the same; `failed(code, cause)` when nobody
    has: with why the last one did not. One of the two, once, unless `cancel` comes first.
    """

    __slots__ = (
        "_cause",
        "_code",
        "_failed",
        "_member",
        "_met",
        "_pool",
        "_runtime",
        "_stopped",
        "_stream",
        "_timer",
        "_tried",
        "_who",
    )

    _member: Member
    _timer: asyncio.TimerHandle

    def __init__(
        self,
        runtime: Runtime,
        pool: Pool,
        who: str,
        met: Callable[[Member, Stream, bool], None],
        failed: Callable[[Code, str], None],
    ) -> None:
        self._runtime = runtime
        self._pool = pool
        self._who = who
        self._met = met
        self._failed = failed
        self._tried: list[Member] = []
        self._stream: Stream | None = None  # that has no answer yet
        self._stopped = False
        self._code = Code.SHUTDOWN
        self._cause = log.CAUSES[Code.SHUTDOWN]

    def ask(self, first: Member | None = None) -> None:
        """Ask one client after the other, `first` as the first."""
        loop, ring = self._runtime.loop, self._pool.ring
        member = first or ring.take(loop.time(), self._tried)
        while member is not None:
            self._tried.append(member)
            tunnel = member.tunnel
            stream = tunnel.session.open(self, member.number, self._who)
            if stream is None:
                self._code = Code.SHUTDOWN if tunnel.session.going_away else Code.LIMIT
                self._cause = log.CAUSES[self._code]
                tunnel.full()
            elif stream.ended:  # its tunnel has failed under the OPEN of this very stream
                self._code, self._cause = Code.CONNECTION_RESET, log.cause(tunnel.link.error)
            else:
                self._member, self._stream = member, stream
                self._timer = loop.call_later(self._runtime.limits.answer_time, self._late)
                return
            member = ring.take(loop.time(), self._tried)
        self._failed(self._code, self._cause)

    def cancel(self) -> None:
        """The visitor has gone."""
        stream, self._stream = self._stream, None
        if stream is not None:
            self._timer.cancel()
            stream.reset(Code.CONNECTION_RESET)

    def _late(self) -> None:
        stream = self._stream
        if stream is not None:
            self._runtime.reached("answer-time", self._member.tunnel.name)
            stream.reset(Code.DIAL_TIMEOUT)
            self._next(Code.DIAL_TIMEOUT, log.CAUSES[Code.DIAL_TIMEOUT])

    def _next(self, code: Code, cause: str) -> None:
        self._timer.cancel()
        self._stream = None
        self._stopped = False
        self._member.failed()
        self._code, self._cause = code, cause
        self.ask()

    # --- from the stream -----------------------------------------------------------------------------------------------

    def on_accept(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            self._timer.cancel()
            self._met(self._member, stream, self._stopped)

    def on_reset(self, code: Code) -> None:
        self._next(code, "target-reset" if code is Code.CONNECTION_RESET else log.CAUSES[code or Code.CANCEL])

    def on_lost(self) -> None:
        if self._stream is not None:  # else it is lost while it is opened
            self._next(Code.CONNECTION_RESET, log.cause(self._member.tunnel.link.error))

    def on_stop(self) -> None:
        self._stopped = True

    def on_room(self) -> None:
        """There is nothing to send yet."""

    def deliver(self, piece: memoryview) -> None:
        """Cannot come before ACCEPT."""

    def on_fin(self) -> None:
        """Cannot come before ACCEPT."""
