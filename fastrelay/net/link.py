"""One tunnel connection (protocol.md sections 2, 10 and 11): the only writer to it, one timer, and the goodbye.

Writing. Small frames of one loop turn are gathered and leave in one system call; a lone one, and everything large, is written through. A
plain tunnel is written on its descriptor, for the same reasons as an edge; a TLS tunnel through its transport, which encrypts at once and so
keeps no view. While the tunnel takes no more it is `blocked`: edges stop reading, what they have read already waits in `_pending`, and
WINDOW and PONG stay marks in the session.

Invariants: reading is never paused because of a stream; a ProtocolError ends here, in a GOAWAY that the other side can read.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from typing import TYPE_CHECKING, Protocol, cast

from fastrelay import wire
from fastrelay.errors import Code, FastrelayError, ProtocolError
from fastrelay.mux.credit import tunnel_pool
from fastrelay.mux.decoder import Decoder
from fastrelay.mux.session import Owner, Session
from fastrelay.mux.stream import Stream
from fastrelay.wire import HEADER_SIZE

if TYPE_CHECKING:
    from fastrelay.net.edge import Edge
    from fastrelay.net.runtime import Runtime

SMALL = 16_384
"""Frames up to this size are worth a copy to save a system call."""
_BUSY = 0.00006
"""Seconds since the last write within which the next small frame probably has company."""
_TLS_HIGH = 262_144
_TLS_LOW = 65_536
NOTSENT_FIRST = 262_144
NOTSENT_LEAST = 32_768
NOTSENT_MOST = 8_388_608
"""TCP_NOTSENT_LOWAT: what the kernel may hold unsent, so that a queue builds in the streams, where it is fair, and not in the socket."""
_QUEUE_TIME = 0.01
"""Seconds that the unsent queue may last. In bytes it is 125 KB at 100 Mbit/s and 8 MiB on loopback, where 256 KiB cost 8 % more CPU."""
_MOST_CONTROL = 8 << 20
"""Bytes that may wait while the tunnel is blocked, beyond which the peer is not reading at all."""


class Core(Protocol):
    """What is fed: first a greeting, then a session."""

    def feed(self, chunk: memoryview, now: float) -> None: ...


class Role(Protocol):
    """What a link tells whom it works for."""

    def on_connected(self, link: Link) -> Core:
        """The connection stands, TLS included; nothing was sent. Returns the greeting. May raise FastrelayError: the connection is dropped."""

    def on_closed(self, link: Link, error: Exception | None) -> None:
        """The tunnel is gone; `error` says why, None for an end that both sides wanted. Called once for each link that was connected."""


class Link(asyncio.BufferedProtocol):
    def __init__(self, runtime: Runtime, role: Role) -> None:
        self.runtime = runtime
        self.role = role
        self.session: Session | None = None
        self.streams: dict[int, Stream] = {}
        self.decoder = Decoder(self.streams)
        self.blocked = False
        # What edges read at once: a view of their slab behind the header, smaller while the tunnel is shared or blocked.
        self.read_size = 0
        self.read_view = runtime.edge_slab[HEADER_SIZE:HEADER_SIZE]
        self.waiting: list[Edge] = []  # edges that stopped because the tunnel is blocked
        self.first_bytes = b""  # what the other side said first, for an explanation when it does not speak our protocol
        self.error: Exception | None = None
        self._core: Core
        self._fd = -1  # of a plain tunnel
        self._slab = runtime.tunnel_slab
        self._pending = bytearray()
        self._flush_due = False
        self._feeding = False
        self._written = 0.0
        self._crowded = False  # turns carry several small frames: gather them
        self._lone = False  # what is gathered is one frame that came after a pause
        self._yielded: list[Edge] = []
        self._taken = 0  # bytes that the socket took since it was last full, at `_full_at`
        self._full_at = time.monotonic()
        self._notsent = NOTSENT_FIRST
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._gone = False
        self._ending = False  # `close` waits until what was written has left

    # --- asyncio -------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.peer = address(transport.get_extra_info("peername"))
        tune(transport.get_extra_info("socket"))
        if transport.get_extra_info("ssl_object") is None:
            self._fd = transport.get_extra_info("socket").fileno()
        else:
            self.transport.set_write_buffer_limits(_TLS_HIGH, _TLS_LOW)
        # The time of TLS counts as well: a link is made when the connection is.
        left = self._full_at + wire.HANDSHAKE_TIME - time.monotonic()
        self._timer = self.runtime.loop.call_later(max(0.0, left), self._too_slow)
        try:
            self._core = self.role.on_connected(self)
        except FastrelayError as error:
            self.abort(error)

    def certificate(self) -> bytes | None:
        """The other side's certificate (DER), None without TLS."""
        tls: ssl.SSLObject | None = self.transport.get_extra_info("ssl_object")
        return None if tls is None else tls.getpeercert(binary_form=True)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._slab

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing:
            return
        if self.session is None and not self.first_bytes:
            self.first_bytes = bytes(self._slab[: min(nbytes, 16)])
        self._feeding = True
        try:
            self._core.feed(self._slab[:nbytes], time.monotonic())
        except ProtocolError as error:
            self.goodbye(error)
        finally:
            self._feeding = False
        if not self.blocked and not self._closing:
            if self.session is not None:
                self.session.flush()
                if self.session.turns.cap != self.read_size:
                    self._set_read_size()
            if self._pending and not self._flush_due:
                self._flush()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._gone:
            return  # told twice: see `Client`
        self._gone = True
        self.runtime.watch.remove(self._fd)
        self._closing = True
        self._fd = -1
        self._pending.clear()
        self.waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self.session is not None:
            self.session.lose()
        self.role.on_closed(self, self.error or exc)

    def pause_writing(self) -> None:
        self.blocked = True
        self._limit_queue()
        self._set_read_size()

    def resume_writing(self) -> None:
        self._unblock()

    # --- the session ---------------------------------------------------------------------------------------------------

    def begin(self, owner: Owner, *, dialer: bool, ours: wire.Settings, theirs: wire.Settings) -> Session:
        """The greeting is done: what arrives from now on is the session's."""
        now = time.monotonic()
        session = Session(
            owner,
            self.decoder,
            self.streams,
            self.write,
            self._wake,
            dialer=dialer,
            ours=ours,
            theirs=theirs,
            pool=tunnel_pool(self.runtime.pool),
            now=now,
        )
        self.session = session
        self._core = session
        self._set_read_size()
        assert self._timer is not None
        self._timer.cancel()
        session.ping()
        self._tick()
        return session

    def _tick(self) -> None:
        session = self.session
        if session is None or self._closing:
            return
        now = time.monotonic()
        due = session.tick(now)
        if due is None:
            self.abort(ConnectionAbortedError(f"nothing heard for {wire.DEAD_AFTER} s"))
        else:
            self._timer = self.runtime.loop.call_later(due - now, self._tick)

    def probe(self, within: float) -> None:
        """Ask for a sign of life; the tunnel is given up when none comes `within` seconds."""
        session = self.session
        if session is None or self._closing:
            return
        asked = session.now = time.monotonic()
        session.ping()

        def judge() -> None:
            if not self._closing and session.heard < asked:
                self.abort(ConnectionAbortedError(f"no answer for {within:g} s after the network changed"))

        self.runtime.loop.call_later(within, judge)

    # --- writing -------------------------------------------------------------------------------------------------------

    def write(self, frame: bytes | memoryview) -> None:
        """Send one frame, valid only during the call."""
        pending = self._pending
        size = len(frame)
        if self._flush_due and size <= SMALL:
            self._lone = False
            pending += frame
            return
        if self.blocked or self._closing:
            if not self._closing:
                pending += frame
                if len(pending) > _MOST_CONTROL + len(self.streams) * wire.WINDOW_FLOOR:
                    self.abort(ConnectionAbortedError("the other side takes nothing off the tunnel"))
            return
        if size <= SMALL:
            if pending or self._feeding:
                self._lone = False
                pending += frame
                if not self._feeding:
                    self._wake()
                return
            now = time.perf_counter()
            quick = now - self._written < _BUSY
            self._written = now
            if quick or self._crowded:
                self._lone = not quick
                self._crowded = True
                pending += frame
                self._wake()
                return
        if pending:
            pending += frame
            self._flush()
        elif self._fd >= 0:
            try:
                done = os.write(self._fd, frame)
            except BlockingIOError:
                done = 0
            except OSError as error:
                self.abort(error)
                return
            self._taken += done
            if done < size:
                pending += frame[done:]
                self._block()
        else:
            self._taken += size
            self.transport.write(frame)

    def _flush(self) -> None:
        """Write what was gathered."""
        pending = self._pending
        if self._fd < 0:
            self._pending = bytearray()
            self._taken += len(pending)
            self.transport.write(pending)
            return
        try:
            done = os.write(self._fd, pending)
        except BlockingIOError:
            done = 0
        except OSError as error:
            self.abort(error)
            return
        self._taken += done
        if done == len(pending):
            pending.clear()
        else:
            del pending[:done]
            self._block()

    def _wake(self) -> None:
        """Something is to be written at the end of this turn."""
        if not self._flush_due and not self._feeding and not self._closing:
            self._flush_due = True
            self.runtime.loop.call_soon(self._turn_over)

    def _turn_over(self) -> None:
        self._flush_due = False
        if self.blocked or self._closing:
            return
        if self.session is not None:
            self._feeding = True  # gather what it owes
            self.session.flush()
            self._feeding = False
        if self._pending:
            if self._lone:  # waiting for company was in vain
                self._crowded = self._lone = False
            self._flush()

    def _set_read_size(self) -> None:
        if self.session is not None:
            size = self.session.turns.cap
            self.read_size = size = min(size, wire.WINDOW_FLOOR) if self.blocked else min(size, wire.MAX_DATA)
            self.read_view = self.runtime.edge_slab[HEADER_SIZE : HEADER_SIZE + size]

    def _limit_queue(self) -> None:
        """The tunnel is full: let its unsent queue last as long as it should at the rate since it was full last."""
        now = time.monotonic()
        span = now - self._full_at
        if span < _QUEUE_TIME:
            return
        wanted = int(self._taken / span * _QUEUE_TIME)
        self._full_at = now
        self._taken = 0
        wanted = max(NOTSENT_LEAST, min(NOTSENT_MOST, wanted))
        if not self._notsent // 2 < wanted < self._notsent * 2:
            self._notsent = wanted
            limit_unsent(self.transport.get_extra_info("socket"), wanted)

    def _block(self) -> None:
        self.blocked = True
        self._limit_queue()
        self._set_read_size()
        self.runtime.watch.add(self._fd, self)

    def on_writable(self) -> None:
        if not self.blocked or self._fd < 0:
            return
        self.blocked = False
        if self._pending:
            self._flush()
        if not self.blocked:
            self._unblock()

    def on_hang_up(self, reset: bool, both: bool) -> None:
        """The transport is always reading: it tells by itself."""

    def _unblock(self) -> None:
        """The tunnel takes more: what is owed first, then everybody who waited gets one read."""
        self.blocked = False
        self._set_read_size()
        if self._closing:
            return
        self._turn_over()
        self._resume(self.waiting)
        if self._ending:
            self.close()

    def yielded(self, edge: Edge) -> None:
        """An edge has had its turn: it goes on when the others have had theirs."""
        if not self._yielded:
            self.runtime.loop.call_soon(self._next_round)
        self._yielded.append(edge)

    def _next_round(self) -> None:
        yielded, self._yielded = self._yielded, []
        self._resume(yielded)

    def _resume(self, edges: list[Edge]) -> None:
        """Let edges go on, those who find the tunnel blocked again later."""
        self.waiting = [] if edges is self.waiting else self.waiting
        for edge in edges:
            if self.blocked:
                self.waiting.append(edge)
            else:
                edge.on_room()

    # --- ends ----------------------------------------------------------------------------------------------------------

    def goodbye(self, error: ProtocolError) -> None:
        """Tell the other side why, make sure that it can hear it, and close."""
        if self._closing:
            return
        self.error = error
        self.decoder.stopped = True
        highest = 0 if self.session is None else self.session.highest
        last = wire.frame(wire.Kind.GOAWAY, 0, wire.pack_goaway(highest, error.code, error.text))
        if self._fd >= 0:
            try:
                os.write(self._fd, self._pending + last)
            except OSError:
                pass
        else:
            self.transport.write(bytes(self._pending) + last)
        self._pending.clear()
        self._closing = True  # what still comes is read and thrown away, so that no RST overtakes the GOAWAY
        if self.session is not None:
            self.session.lose()
        self._end_output()

    def close(self) -> None:
        """An end that both sides wanted, once what was written has left: a RST for what the other side still says must not destroy it."""
        if self._closing:
            return
        self._turn_over()
        self._ending = True
        if self.blocked or self._closing:
            return
        self._closing = True
        if self._fd < 0:
            self.transport.close()
        else:
            self._end_output()

    def _end_output(self) -> None:
        """No more is written; what still comes is read and thrown away until the other side closes, or for a moment."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.runtime.loop.call_later(wire.GOODBYE_TIME, self._transport_abort)
        if self.transport.can_write_eof():
            try:
                self.transport.write_eof()
            except OSError:
                pass

    def abort(self, error: Exception) -> None:
        """The tunnel is lost: streams are reset now, the connection is dropped."""
        if self._closing:
            self._transport_abort()  # it was about to end in order: no more time for that
            return
        self.error = error
        self._closing = True
        self.decoder.stopped = True
        if self.session is not None:
            self.session.lose()
        self._transport_abort()

    def _transport_abort(self) -> None:
        self.transport.abort()

    def _too_slow(self) -> None:
        self.goodbye(ProtocolError(Code.TIMEOUT, f"the handshake took longer than {wire.HANDSHAKE_TIME} s"))


def tune(sock: socket.socket) -> None:
    """Socket options of a tunnel. TCP_USER_TIMEOUT belongs here and never on a visitor: it ends peers that merely do not read."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, wire.UNACKED_TIME * 1000)
    except (OSError, AttributeError):
        pass  # not Linux
    limit_unsent(sock, NOTSENT_FIRST)


def limit_unsent(sock: socket.socket, size: int) -> None:
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, size)
    except (OSError, AttributeError):
        pass  # not Linux


def address(peer: object) -> str:
    """`host:port` or `[host]:port` of a socket address; an IPv4 address in IPv6 form is shown as IPv4."""
    if not isinstance(peer, tuple):
        return "unix"
    host, port = str(peer[0]), peer[1]
    host = host.removeprefix("::ffff:") if host.count(".") == 3 else host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
