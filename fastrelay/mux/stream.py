"""One stream: two halves, each with its own table, and the credit of both directions (protocol.md sections 7 and 8).

What matters per frame of control is a row in a table. What matters per byte is an object: `sink` is the outlet while data is wanted and
NOTHING when it is not, and a limit that is frozen where the half ended catches what must not come.

Invariants: a half changes only in `_step_send` and `_step_recv`, only by its table; 0 <= sent <= send_limit; received <= recv_limit;
the stream is forgotten as soon as both halves are terminal, and its share of the pool is given back when the last byte has left.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Protocol

from fastrelay.errors import Code, ProtocolError
from fastrelay.mux.credit import Meter, step
from fastrelay.wire import (
    HEADER,
    HEADER_SIZE,
    LIMIT,
    MAX_OFFSET,
    WINDOW,
    WINDOW_FLOOR,
    Kind,
    code_frame,
    frame,
    window_frame,
)

if TYPE_CHECKING:
    from fastrelay.mux.session import Session


class Send(enum.Enum):
    PENDING = "pending"
    OPEN = "open"
    ENDED = "ended"
    RESET = "reset"

    __hash__ = object.__hash__  # that of Enum is written in Python, and every step of a stream asks for it


class Recv(enum.Enum):
    PENDING = "pending"
    OPEN = "open"
    DRAIN = "drain"
    ENDED = "ended"
    RESET = "reset"

    __hash__ = object.__hash__


_BAD = Code.STREAM_STATE

# (state, event) -> (frame to send, next state), or the code of the tunnel error. An absent row cannot happen: a local error.
# Events in capitals are frames that arrive. tests/test_protocol_md.py holds these against the tables of protocol.md 7.1 and 7.2.
SEND: dict[tuple[Send, str], tuple[Kind | None, Send] | Code] = {
    (Send.PENDING, "accept"): (Kind.ACCEPT, Send.OPEN),
    (Send.PENDING, "reset"): (Kind.RESET, Send.RESET),
    (Send.PENDING, "WINDOW"): (None, Send.PENDING),
    (Send.PENDING, "STOP"): _BAD,
    (Send.PENDING, "RESET"): (Kind.RESET, Send.RESET),
    (Send.OPEN, "data"): (Kind.DATA, Send.OPEN),
    (Send.OPEN, "fin"): (Kind.FIN, Send.ENDED),
    (Send.OPEN, "reset"): (Kind.RESET, Send.RESET),
    (Send.OPEN, "WINDOW"): (None, Send.OPEN),
    (Send.OPEN, "STOP"): (Kind.TRUNC, Send.ENDED),
    (Send.OPEN, "RESET"): (Kind.RESET, Send.RESET),
    (Send.ENDED, "reset"): (Kind.RESET, Send.RESET),
    (Send.ENDED, "WINDOW"): (None, Send.ENDED),
    (Send.ENDED, "STOP"): (None, Send.ENDED),
    (Send.ENDED, "RESET"): (None, Send.RESET),
    (Send.RESET, "reset"): (None, Send.RESET),
    (Send.RESET, "WINDOW"): (None, Send.RESET),
    (Send.RESET, "STOP"): (None, Send.RESET),
    (Send.RESET, "RESET"): (None, Send.RESET),
}

RECV: dict[tuple[Recv, str], tuple[Kind | None, Recv] | Code] = {
    (Recv.PENDING, "reset"): (None, Recv.DRAIN),
    (Recv.PENDING, "ACCEPT"): (None, Recv.OPEN),
    (Recv.PENDING, "DATA"): _BAD,
    (Recv.PENDING, "FIN"): _BAD,
    (Recv.PENDING, "TRUNC"): _BAD,
    (Recv.PENDING, "RESET"): (None, Recv.RESET),
    (Recv.OPEN, "stop"): (Kind.STOP, Recv.DRAIN),
    (Recv.OPEN, "reset"): (None, Recv.DRAIN),
    (Recv.OPEN, "ACCEPT"): _BAD,
    (Recv.OPEN, "DATA"): (None, Recv.OPEN),
    (Recv.OPEN, "FIN"): (None, Recv.ENDED),
    (Recv.OPEN, "TRUNC"): (None, Recv.ENDED),
    (Recv.OPEN, "RESET"): (None, Recv.RESET),
    (Recv.DRAIN, "stop"): (None, Recv.DRAIN),
    (Recv.DRAIN, "reset"): (None, Recv.DRAIN),
    (Recv.DRAIN, "ACCEPT"): (None, Recv.DRAIN),
    (Recv.DRAIN, "DATA"): (None, Recv.DRAIN),
    (Recv.DRAIN, "FIN"): (None, Recv.ENDED),
    (Recv.DRAIN, "TRUNC"): (None, Recv.ENDED),
    (Recv.DRAIN, "RESET"): (None, Recv.RESET),
    (Recv.ENDED, "stop"): (None, Recv.ENDED),
    (Recv.ENDED, "reset"): (None, Recv.ENDED),
    (Recv.ENDED, "ACCEPT"): _BAD,
    (Recv.ENDED, "DATA"): _BAD,
    (Recv.ENDED, "FIN"): _BAD,
    (Recv.ENDED, "TRUNC"): _BAD,
    (Recv.ENDED, "RESET"): (None, Recv.RESET),
    (Recv.RESET, "stop"): (None, Recv.RESET),
    (Recv.RESET, "reset"): (None, Recv.RESET),
    (Recv.RESET, "ACCEPT"): _BAD,
    (Recv.RESET, "DATA"): _BAD,
    (Recv.RESET, "FIN"): _BAD,
    (Recv.RESET, "TRUNC"): _BAD,
    (Recv.RESET, "RESET"): (None, Recv.RESET),
}

# Until Python 3.12 a member of an enum is found by way of two classes: what is asked for often has a name of its own.
SENDING: Final = Send.OPEN
RECEIVING: Final = Recv.OPEN
_ACCEPT = Kind.ACCEPT
_WITH_CODE = frozenset((Kind.RESET, Kind.STOP))
_SEND_END = frozenset((Send.ENDED, Send.RESET))
_RECV_END = frozenset((Recv.ENDED, Recv.RESET))
_NEVER = MAX_OFFSET * 2
"""An offset that no stream reaches: no credit is due."""


class Outlet(Protocol):
    """The local end of a stream; `net.edge` is one, tests have others. None of these may raise."""

    def deliver(self, piece: memoryview) -> None:
        """Take a piece that is valid only during the call. What is not passed on at once is counted in `stream.queued`."""

    def on_accept(self) -> None:
        """The acceptor's target is there. Told to the opener's outlet only."""

    def on_fin(self) -> None:
        """The other side's direction has ended cleanly: every byte of it was delivered."""

    def on_reset(self, code: Code) -> None:
        """Both directions are over. What was delivered before may drain, then the local connection is reset.

        While `queued` is not 0 the stream keeps its share of the pool: `drained` or `detach` must follow.
        """

    def on_lost(self) -> None:
        """The tunnel is gone: the local connection is reset at once."""

    def on_stop(self) -> None:
        """The other side reads no more; the half has been ended. Input is to be thrown away."""

    def on_room(self) -> None:
        """`room()` was 0 and is no longer."""


class Nothing:
    """The outlet of a stream that has none: what arrives is thrown away."""

    def deliver(self, piece: memoryview) -> None: ...
    def on_accept(self) -> None: ...
    def on_fin(self) -> None: ...
    def on_reset(self, code: Code) -> None: ...
    def on_lost(self) -> None: ...
    def on_stop(self) -> None: ...
    def on_room(self) -> None: ...


NOTHING: Outlet = Nothing()


class Stream:
    """One stream of a session. Made by `Session.open`, or by the session for an OPEN that arrived.

    Offsets and limits are bytes from the start of a half. `queued` is set by the outlet: bytes delivered that its socket has not taken.
    """

    __slots__ = (
        "_meter",
        "_refill_at",
        "id",
        "marked",
        "outlet",
        "pace",
        "queued",
        "received",
        "recv",
        "recv_limit",
        "send",
        "send_limit",
        "sent",
        "session",
        "sink",
        "window",
    )

    def __init__(self, session: Session, number: int, window: int, *, opener: bool) -> None:
        self.session = session
        self.pace = session.pace
        self.id = number
        self.outlet = NOTHING
        self.sink = NOTHING
        self.send = Send.OPEN if opener else Send.PENDING
        self.recv = Recv.PENDING if opener else Recv.OPEN
        self.sent = 0
        self.send_limit = session.theirs.early if opener else 0
        self.received = 0
        self.queued = 0
        # The acceptor's early allowance stands until ACCEPT; the opener must not be sent anything before it.
        self.recv_limit = 0 if opener else session.ours.early
        self.window = window
        self._refill_at = _NEVER
        self._meter: Meter | None = None
        self.marked = False

    def __repr__(self) -> str:
        return f"<Stream {self.id} send={self.send.value} {self.sent}/{self.send_limit} recv={self.recv.value} {self.received}/{self.recv_limit}>"

    # --- doors ---------------------------------------------------------------------------------------------------------

    def attach(self, outlet: Outlet) -> None:
        """Bind the local end. Data that arrives from now on goes to it."""
        self.outlet = outlet
        if self.recv not in _RECV_END and self.recv is not Recv.DRAIN:
            self.sink = outlet

    def detach(self) -> None:
        """The local end is gone: nothing is called on it any more, and what it had queued is gone with it."""
        self.outlet = NOTHING
        self.sink = NOTHING
        self.queued = 0
        self.drained()

    def accept(self) -> None:
        """The acceptor's target is there: answer with ACCEPT and the first window."""
        if self.recv is RECEIVING:  # a half that has ended early keeps its frozen limit
            self.recv_limit = max(self.recv_limit, self.received - self.queued + self.window)
            self._refill_at = self.recv_limit - self.window + step(self.window)
        self._step_send("accept")

    @property
    def ended(self) -> bool:
        """Both halves are terminal: the session has forgotten the stream."""
        return self.send in _SEND_END and self.recv in _RECV_END

    @property
    def half_open(self) -> bool:
        """One direction has ended and the other has not (protocol.md 9.4)."""
        return (self.send in _SEND_END) is not (self.recv in _RECV_END)

    @property
    def moved(self) -> int:
        """Grows with every byte that is sent, arrives, or is taken by the local socket."""
        return self.sent + 2 * self.received - self.queued

    # --- sending -------------------------------------------------------------------------------------------------------

    def room(self) -> int:
        """How many bytes the next frame may carry; 0 when there is no credit. Negative never."""
        return min(self.send_limit - self.sent, self.pace.cap) if self.send is SENDING else 0

    def seal(self, slab: memoryview, size: int) -> memoryview:
        """Make the `size` bytes at slab[8:] a DATA frame in place; 0 < size <= room(). Returns the frame, a view of the slab."""
        pace = self.pace
        if pace.busy is not self:
            pace.switches += pace.busy is not None
            pace.busy = self
        self.sent += size
        HEADER.pack_into(slab, 0, size, self.id)  # Kind.DATA is 0
        return slab[: HEADER_SIZE + size]

    def fin(self) -> None:
        """End this side's direction: everything before it was sealed and written."""
        if self.send is SENDING:
            self._step_send("fin")

    def stop(self, code: Code = Code.CANCEL) -> None:
        """Read no more: the other side is to end its direction."""
        self._step_recv("stop", code)
        self.sink = NOTHING

    def reset(self, code: Code) -> None:
        """End both directions abruptly. Nothing is called on the outlet after this."""
        self.queued = 0
        self._end(code)

    def abort(self, code: Code) -> None:
        """`reset` for a reason that the outlet does not know of yet: it is told, and may let drain what it has queued."""
        outlet = self.outlet
        self._end(code)
        outlet.on_reset(code)

    def _end(self, code: Code) -> None:
        self.outlet = NOTHING
        self.sink = NOTHING
        if not self.ended:
            if self.recv is Recv.PENDING:
                self.recv_limit = self.window  # what OPEN has named: ACCEPT and data may be under way
            self._step_recv("reset")
            self._step_send("reset", code)
        elif not self.queued:
            self._settle()

    # --- receiving (called by the decoder and the session; raise ProtocolError) ----------------------------------------

    def receive(self, piece: memoryview) -> None:
        received = self.received + len(piece)
        if received > self.recv_limit:
            raise self._overrun(received)
        self.received = received
        self.sink.deliver(piece)
        if received - self.queued >= self._refill_at:
            self._refill()

    def receive_fin(self) -> None:
        whole = self.recv is RECEIVING  # what came while draining was thrown away: not a clean end
        outlet = self.outlet
        self._step_recv("FIN")
        if whole:
            outlet.on_fin()

    def receive_trunc(self, payload: bytes) -> None:
        asked = self.recv is Recv.DRAIN
        self._step_recv("TRUNC")
        if not asked:  # an incomplete half that nobody stopped: the local connection must not see a clean end
            self.abort(Code.CANCEL)

    def receive_accept(self, payload: bytes) -> None:
        (limit,) = LIMIT.unpack(payload)
        was = self.recv
        self._step_recv("ACCEPT")
        if was is Recv.PENDING:
            self.recv_limit = self.window
            self._refill_at = step(self.window)
            self.outlet.on_accept()
        self._raise(limit)

    def receive_window(self, payload: bytes) -> None:
        limit, consumed = WINDOW.unpack(payload)
        if consumed > self.sent:
            raise ProtocolError(Code.PROTOCOL, f"stream {self.id}: {consumed} bytes consumed of {self.sent} sent")
        self._step_send("WINDOW")
        if not self._raise(limit) and self.send not in _SEND_END:  # after the end they are late, not idle
            self.session.charge_idle_window()

    def receive_stop(self, payload: bytes) -> None:
        was = self.send
        self._step_send("STOP")
        if was is Send.OPEN:
            self.outlet.on_stop()

    def receive_reset(self, code: Code) -> None:
        outlet = self.outlet
        self.sink = NOTHING
        self._step_recv("RESET")
        self._step_send("RESET", Code.CANCEL)
        outlet.on_reset(code)

    def lose(self) -> None:
        """The tunnel is gone (protocol.md 9.3). No frame is sent."""
        outlet = self.outlet
        self.outlet = NOTHING
        self.sink = NOTHING
        self.queued = 0
        self.send = Send.RESET
        self.recv = Recv.RESET
        self.recv_limit = self.received
        self._refill_at = _NEVER
        self._settle()
        outlet.on_lost()

    # --- credit --------------------------------------------------------------------------------------------------------

    def drained(self) -> None:
        """The outlet's socket took queued bytes (`queued` fell): return credit, or what was borrowed when all is over."""
        if self.received - self.queued >= self._refill_at:
            self._refill()
        elif not self.queued and self.recv in _RECV_END:
            self._settle()

    def cover(self, size: int) -> bool:
        """Early data count as the window (protocol.md 8.3): borrow until it has `size` bytes; whether the pool had enough."""
        if size > self.window:
            self.window += self.session.pool.take(size - self.window)
        return size <= self.window

    def credit(self) -> bytes:
        """The WINDOW frame that is due."""
        return window_frame(self.id, self.recv_limit, self.received - self.queued)

    def _refill(self) -> None:
        """Consumption has passed the mark: size the window anew and raise the limit."""
        session = self.session
        pace = self.pace
        if pace.busy is not self:  # what is received counts as well, but not every frame of it
            pace.switches += pace.busy is not None
            pace.busy = self
        consumed = self.received - self.queued
        if self._meter is None:
            self._meter = Meter(consumed, session.now)
        else:
            wanted = self._meter.window(consumed, session.now, pace, self.window)
            self._resize(wanted, self.recv_limit - consumed)
        limit = consumed + self.window
        if limit >= self.recv_limit + step(self.window):
            self.recv_limit = limit
            session.mark(self)
        # Else the window has shrunk: a WINDOW that raises nothing would be charged to us.
        self._refill_at = self.recv_limit - self.window + step(self.window)

    def _resize(self, wanted: int, outstanding: int) -> None:
        pool = self.session.pool
        if wanted > self.window:
            self.window += pool.take(wanted - self.window)
        elif wanted < self.window:
            # Credit that was given cannot be taken back: the window shrinks only as far as what is outstanding has.
            smaller = max(wanted, outstanding, WINDOW_FLOOR)
            if smaller < self.window:
                pool.give(self.window - smaller)
                self.window = smaller

    def _settle(self) -> None:
        """Give back what the window had borrowed."""
        borrowed = self.window - WINDOW_FLOOR
        if borrowed > 0:
            self.window = WINDOW_FLOOR
            self.session.pool.give(borrowed)

    def _raise(self, limit: int) -> bool:
        if limit > MAX_OFFSET:
            raise ProtocolError(Code.FLOW_CONTROL, f"stream {self.id}: a limit of {limit} bytes cannot be")
        if limit <= self.send_limit or self.send in _SEND_END:
            return False
        stuck = self.sent >= self.send_limit
        self.send_limit = limit
        if stuck and self.send is SENDING:
            self.outlet.on_room()
        return True

    def _overrun(self, received: int) -> ProtocolError:
        if self.recv not in (Recv.OPEN, Recv.DRAIN):
            return ProtocolError(_BAD, f"stream {self.id}: DATA while {self.recv.value}")
        return ProtocolError(Code.FLOW_CONTROL, f"stream {self.id}: {received - self.recv_limit} bytes past the limit")

    # --- the tables ----------------------------------------------------------------------------------------------------

    def _step_send(self, event: str, code: Code = Code.NO_ERROR) -> None:
        row = SEND.get((self.send, event))
        if row is None:
            raise AssertionError(f"{self}: {event} is not allowed now")
        if isinstance(row, Code):
            raise ProtocolError(row, f"stream {self.id}: {event} while sending is {self.send.value}")
        kind, after = row
        if after is self.send and kind is None:
            return
        self.send = after
        if kind is not None:
            self._emit(kind, code)
        if self.send in _SEND_END:
            self.send_limit = self.sent  # nothing more can be sent, whoever asks
        self._after()

    def _step_recv(self, event: str, code: Code = Code.NO_ERROR) -> None:
        row = RECV.get((self.recv, event))
        if row is None:
            raise AssertionError(f"{self}: {event} is not allowed now")
        if isinstance(row, Code):
            raise ProtocolError(row, f"stream {self.id}: {event} while receiving is {self.recv.value}")
        kind, self.recv = row
        if kind is not None:
            self._emit(kind, code)
        if self.recv is not RECEIVING:
            self._refill_at = _NEVER
        if self.recv in _RECV_END:
            self.recv_limit = self.received  # what comes after the end is an overrun
            if not self.queued:
                self._settle()
        self._after()

    def _emit(self, kind: Kind, code: Code) -> None:
        if kind is _ACCEPT:
            self.session.write(frame(kind, self.id, LIMIT.pack(self.recv_limit)))
        elif kind in _WITH_CODE:
            self.session.write(code_frame(kind, self.id, code))
        else:
            self.session.write(frame(kind, self.id))

    def _after(self) -> None:
        over = (self.send in _SEND_END) + (self.recv in _RECV_END)
        if over == 2:
            self.session.forget(self)
        elif over:
            self.session.watch_half_open(self)
