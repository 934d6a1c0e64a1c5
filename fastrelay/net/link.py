"""One tunnel connection (protocol.md sections 2, 10 and 11): it reads, keeps time, and says goodbye; `net.outbox` is the half that writes.

Invariants: reading is never paused because of a stream; a ProtocolError ends here, in a GOAWAY that the other side can read.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from typing import TYPE_CHECKING, Protocol, cast

from fastrelay import wire
from fastrelay.errors import Code, FastrelayError, LimitError, ProtocolError, RefusedError
from fastrelay.mux.credit import tunnel_pool
from fastrelay.mux.decoder import Decoder
from fastrelay.mux.pace import SHARED_FRAME, UNSENT_FIRST
from fastrelay.mux.session import Owner, Session
from fastrelay.net.options import disorder, tune_tunnel, unpace
from fastrelay.net.outbox import Outbox

if TYPE_CHECKING:
    from fastrelay.net.runtime import Runtime

_LOOK_EVERY = 0.1
"""Seconds between two looks at what the path does to packets."""
_LONG_READ = 0.005
"""Seconds for a MiB: what takes longer are small frames, with a byte of data each a hundred times as long as large ones."""
_READ_TIME = 0.001
"""Seconds that one read of small frames should take: all other tunnels wait meanwhile."""
_LEAST_READ = 4096


class Core(Protocol):
    """What is fed: first a greeting, then a session."""

    def feed(self, chunk: memoryview, now: float) -> None: ...


class _Deaf:
    """What is fed before there is somebody, and after."""

    def feed(self, chunk: memoryview, now: float) -> None: ...


_DEAF = _Deaf()


class Layer(asyncio.Transport):
    """What may stand between a link and its transport, see `net.websocket`."""

    core: Core | None
    """Who is fed what has come through it."""


class Role(Protocol):
    """What a link tells whom it works for."""

    def on_connected(self, link: Link) -> Core:
        """The connection stands, TLS included; nothing was sent. Returns the greeting. May raise FastrelayError: the connection is dropped."""

    def on_closed(self, link: Link, error: Exception | None) -> None:
        """The tunnel is gone; `error` says why, None for an end that both sides wanted. Called once for each link that was connected."""


class Link(Outbox, asyncio.BufferedProtocol):
    def __init__(self, runtime: Runtime, role: Role) -> None:
        super().__init__(runtime)
        self.role = role
        self.decoder = Decoder(self.streams)
        self.first_bytes = b""  # what the other side said first, for an explanation when it does not speak our protocol
        self.error: Exception | None = None  # why the tunnel ends, as soon as somebody knows
        self._core: Core = _DEAF
        self._layer: Layer | None = None
        self._read_at_most(SHARED_FRAME)
        self._long = 0.0  # the thread's time after the last read that was looked at, if that took long
        self._made = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._gone = False
        self._look_at = 0.0
        self._disorder = 0

    # --- asyncio -------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.peer = address(peer)
        sock = transport.get_extra_info("socket")
        self._socket = sock.fileno()
        tune_tunnel(sock)
        unpace(sock, peer)
        if transport.get_extra_info("ssl_object") is None:
            self._fd = self._socket
        else:  # the socket holds what may wait: a transport that holds more is full
            self.transport.set_write_buffer_limits(1, 0)
        self._limit_queue(UNSENT_FIRST)
        # The time of TLS counts as well: a link is made when the connection is.
        left = self._made + self.runtime.limits.handshake_time - time.monotonic()
        self._timer = self.runtime.loop.call_later(max(0.0, left), self.too_slow)
        try:
            self._core = self.role.on_connected(self)
        except FastrelayError as error:
            self.abort(error)

    def through(self, layer: Layer) -> None:
        """From now on frames do not go to the transport but through `layer`, which is a Core as well and feeds a core of its own."""
        if self._fd >= 0:
            self._fd = -1
            self.transport.set_write_buffer_limits(1, 0)
        self.transport = self._layer = layer

    def certificate(self) -> bytes | None:
        """The other side's certificate (DER), None without TLS."""
        tls: ssl.SSLObject | None = self.transport.get_extra_info("ssl_object")
        return None if tls is None else tls.getpeercert(binary_form=True)

    def get_buffer(self, sizehint: int) -> memoryview:
        # In company a chunk is short, for the same reason as a frame.
        return self._slab if self.session is None or self.session.pace.alone else self._short_slab

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing:
            return
        if self.session is None and not self.first_bytes:
            self.first_bytes = bytes(self._slab[: min(nbytes, 16)])
        self._feeding = True
        try:
            self._core.feed(self._slab[:nbytes], time.monotonic())
        except RefusedError as error:
            self.abort(error)  # that was a goodbye: no answer is due, least of all with a stranger's words
        except ProtocolError as error:
            self.goodbye(error)
        finally:
            self._feeding = False
        session = self.session
        if session is not None and session.now >= self._look_at:
            self._look(session, nbytes)
        if not self.blocked and not self._closing:
            if session is not None:
                session.flush()
                if session.pace.cap != self.read_size:
                    self._set_read_size()
            if self._pending and not self._flush_due:
                self._flush()

    def _look(self, session: Session, size: int) -> None:
        """See whether packets were lost on the way here, and what this read of `size` bytes has cost."""
        now = session.now
        took = time.monotonic() - now
        self._look_at = now + took + _LOOK_EVERY
        packets = disorder(self._socket)
        if packets != self._disorder:
            self._disorder = packets
            session.pace.lost(now)
        full, most = len(self.runtime.tunnel_slab), len(self._slab)
        if took <= max(_READ_TIME / 4, _LONG_READ * size / full):
            self._long = 0.0
            if size == most < full:
                self._read_at_most(most * 2)
                self._look_at = 0.0
        elif size > _LEAST_READ and took > 2 * _READ_TIME:
            # Perhaps others had the processor: two reads running must have taken long, the second one in this thread's time too.
            now = time.thread_time()
            cost = min(took, now - self._long)
            if self._long and cost > max(2 * _READ_TIME, _LONG_READ * size / full):
                self._read_at_most(int(size * _READ_TIME / cost))
            self._long = now
            self._look_at = 0.0
        if len(self._slab) < SHARED_FRAME and size >= len(self._slab):
            # There is more, and the loop would read on many times before it serves others.
            self._look_at = 0.0
            self.transport.pause_reading()
            self.runtime.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if not self._gone and not self.transport.is_closing():
            self.transport.resume_reading()

    def _read_at_most(self, size: int) -> None:
        slab = self.runtime.tunnel_slab
        self._slab = slab[: max(_LEAST_READ, size)]
        self._short_slab = self._slab[:SHARED_FRAME]

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
        # The collector may be long in coming: what we hold, and the buffers of TLS, half a MiB after a flood, do not wait for it.
        del self.transport
        self._layer = None
        self._core = _DEAF
        self.session = None

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
            limits=self.runtime.limits,
        )
        self.session = session
        if self._layer is None:
            self._core = session
        else:
            self._layer.core = session
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
        if session.reaped:
            self.runtime.reached("half-open-time", self.peer)
            session.reaped = 0
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

    # --- ends ----------------------------------------------------------------------------------------------------------

    def goodbye(self, error: ProtocolError) -> None:
        """Tell the other side why, make sure that it can hear it, and close."""
        if self._closing:
            return
        self.error = error.with_traceback(None)  # its frames know us: a cycle
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
        self.error = error.with_traceback(None)
        self._closing = True
        self.decoder.stopped = True
        if self.session is not None:
            self.session.lose()
        self._transport_abort()

    def _transport_abort(self) -> None:
        if not self._gone:
            self.transport.abort()

    def too_slow(self) -> None:
        """The time for the handshake is over."""
        time_ = self.runtime.limits.handshake_time
        self.goodbye(LimitError(Code.TIMEOUT, f"the handshake took longer than {time_:g} s", "handshake-time"))


def address(peer: object) -> str:
    """`host:port` or `[host]:port` of a socket address; an IPv4 address in IPv6 form is shown as IPv4.

    None is that of a connection that was gone before it could be asked.
    """
    if not isinstance(peer, tuple):
        return "unknown" if peer is None else "unix"
    host, port = str(peer[0]), peer[1]
    host = host.removeprefix("::ffff:") if host.count(".") == 3 else host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
