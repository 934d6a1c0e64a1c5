"""All streams of one authenticated tunnel (protocol.md sections 5 to 12): ids, liveness, go-away, and what is owed.

A session knows no transport, no clock and no task. `feed` brings bytes, `tick` brings time; frames leave through `write`, which takes one
whole frame that is valid only during the call. It raises ProtocolError; `net.link` alone turns that into a goodbye.

What a session owes in WINDOW and PONG frames is kept as marks, one per stream and one in all, and written by `flush`: it never queues.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fastrelay import wire
from fastrelay.auth import pin_texts, read_pins
from fastrelay.errors import Code, ProtocolError
from fastrelay.limits import DEFAULTS, Limits
from fastrelay.mux import floods
from fastrelay.mux.credit import Pool, first_window
from fastrelay.mux.decoder import Decoder
from fastrelay.mux.pace import Pace
from fastrelay.mux.stream import RECEIVING, Outlet, Recv, Send, Stream
from fastrelay.wire import CODE, Kind

_RTT_EVERY = 2.0
_OVER_LIMIT = 1024
_ID_MARK = (1 << 32) * 3 // 4
_LISTED = 16
"""Services that fit into one LISTED, however long their names are."""


class Owner(Protocol):
    """Who decides: a role. Called from inside `feed`."""

    def on_open(self, stream: Stream, request: wire.Open) -> None:
        """The other side opened a stream: attach an outlet, then accept() or reset(code), now or later."""

    def on_expose(self, request: wire.Expose) -> None: ...
    def on_exposed(self, answer: wire.Exposed) -> None: ...
    def on_list(self) -> None: ...
    def on_listed(self, answer: wire.Listed) -> None: ...
    def on_pins(self, pins: tuple[bytes, ...]) -> None:
        """The relay's keys have changed, or will (protocol.md 4.3)."""

    def on_goaway(self, code: Code, text: str) -> None: ...
    def on_idle(self) -> None:
        """The last stream is gone."""


class _Nobody:
    """The owner of a session that is over."""

    def on_open(self, stream: Stream, request: wire.Open) -> None: ...
    def on_expose(self, request: wire.Expose) -> None: ...
    def on_exposed(self, answer: wire.Exposed) -> None: ...
    def on_list(self) -> None: ...
    def on_listed(self, answer: wire.Listed) -> None: ...
    def on_pins(self, pins: tuple[bytes, ...]) -> None: ...
    def on_goaway(self, code: Code, text: str) -> None: ...
    def on_idle(self) -> None: ...


def _nobody(*_: object) -> None:
    """Whom it called."""


class Session:
    """`dialer` is true at the client; a session that is not the dialer is the relay's, and charges as such (protocol.md section 12)."""

    def __init__(
        self,
        owner: Owner,
        decoder: Decoder,
        streams: dict[int, Stream],
        write: Callable[[bytes], None],
        wake: Callable[[], None],
        *,
        dialer: bool,
        ours: wire.Settings,
        theirs: wire.Settings,
        pool: Pool,
        now: float,
        limits: Limits = DEFAULTS,
    ) -> None:
        self.owner = owner
        self.write = write
        self.ours = ours
        self.theirs = theirs
        self.pool = pool
        self.now = now
        self.dialer = dialer
        self.streams = streams  # the decoder's sinks
        self.going_away = False  # SHUTDOWN was sent or received: nothing new is opened

        self.pace = Pace(theirs.max_data)
        self.decoder = decoder
        decoder.hand_to(self._control, self._stray, self._empty, ours.max_data)
        self.on_refused: Callable[[Stream, wire.Open, Code], None] = lambda stream, request, code: None
        """Told of each stream that is reset here, before the owner is asked."""
        self._wake = wake
        self._next_id = 1 if dialer else 2
        self.highest = 0  # the highest id that the other side has opened
        self.their_streams = 0  # open now
        self._floods = floods.Floods(limits)
        self._half_open_time = limits.half_open_time
        self._marked: list[Stream] = []
        self._pong: bytes | None = None
        self.heard = now
        self._pinged = -1e9
        self._ping: bytes | None = None
        self.reaped = 0  # streams that were half-open and idle for too long
        self._half_open: dict[Stream, tuple[int, float]] = {}
        self._handlers: dict[int, Callable[[bytes], None]] = {
            Kind.PING: self._on_ping,
            Kind.PONG: self._on_pong,
            Kind.GOAWAY: self._on_goaway,
            Kind.EXPOSE: self._on_expose,
            Kind.EXPOSED: self._on_exposed,
            Kind.LIST: self._on_list,
            Kind.LISTED: self._on_listed,
            Kind.PINS: self._on_pins,
        }
        self._stream_handlers: dict[int, Callable[[Stream, bytes], None]] = {
            Kind.TRUNC: Stream.receive_trunc,
            Kind.ACCEPT: Stream.receive_accept,
            Kind.WINDOW: Stream.receive_window,
            Kind.RESET: self._on_reset,
            Kind.STOP: Stream.receive_stop,
        }

    # --- doors ---------------------------------------------------------------------------------------------------------

    def feed(self, chunk: memoryview, now: float) -> None:
        """Bytes of the tunnel, and when they came (seconds of any steady clock). Raises ProtocolError."""
        self.now = self.heard = now
        self.pace.look(now)
        self.decoder.feed(chunk)

    def open(self, outlet: Outlet, service: int, visitor: str, target: str = "") -> Stream | None:
        """Open a stream and announce it; None when the other side takes no more."""
        ours = len(self.streams) - self.their_streams
        if self.going_away or ours >= self.theirs.max_streams:
            return None
        number = self._next_id
        self._next_id += 2
        stream = self._new(number, opener=True)
        stream.attach(outlet)
        window = stream.window
        request = wire.Open(wire.STREAM_TCP, window, service, visitor, target)
        self.write(wire.frame(Kind.OPEN, number, wire.pack_open(request)))
        if number > _ID_MARK:
            self.goaway(Code.SHUTDOWN, "the ids of this session are used up")
        return stream

    def expose(self, request: wire.Expose) -> None:
        self.write(wire.frame(Kind.EXPOSE, 0, wire.pack_json(request)))

    def exposed(self, answer: wire.Exposed) -> None:
        self.write(wire.frame(Kind.EXPOSED, 0, wire.pack_json(answer)))

    def ask(self) -> None:
        """Ask what there is to reach."""
        self.write(wire.frame(Kind.LIST, 0, wire.pack_json(wire.List())))

    def listed(self, services: list[wire.Listing]) -> None:
        """The answer to LIST, in as many frames as it takes."""
        for at in range(0, len(services) or 1, _LISTED):
            answer = wire.Listed(services=services[at : at + _LISTED], more=at + _LISTED < len(services))
            self.write(wire.frame(Kind.LISTED, 0, wire.pack_json(answer)))

    def tell_pins(self, pins: tuple[bytes, ...]) -> None:
        """What the relay's keys are from now on."""
        self.write(wire.frame(Kind.PINS, 0, wire.pack_json(wire.Pins(pins=pin_texts(pins)))))

    def goaway(self, code: Code, text: str) -> None:
        """Say GOAWAY. After SHUTDOWN the streams go on; after any other code the caller closes the tunnel."""
        self.going_away = True
        self.write(wire.frame(Kind.GOAWAY, 0, wire.pack_goaway(self.highest, code, text)))

    def lose(self) -> None:
        """The tunnel is gone: every stream is reset (protocol.md 9.3), and none is opened any more."""
        self.decoder.stopped = True
        self.going_away = True
        streams = list(self.streams.values())
        self.streams.clear()
        self._half_open.clear()
        self._marked.clear()
        for stream in streams:
            stream.lose()
        self.pace.busy = None  # it was one of them
        # Nobody calls us any more, and we call nobody: without these cycles all of it is freed now, not when the collector comes.
        self._handlers.clear()
        self._stream_handlers.clear()
        self.decoder.hand_to(_nobody, _nobody, _nobody, 0)
        self.write = self._wake = self.on_refused = _nobody
        self.owner = _Nobody()

    def flush(self) -> None:
        """Write what is owed. Called when the tunnel can take it."""
        if self._pong is not None:
            self.write(wire.frame(Kind.PONG, 0, self._pong))
            self._pong = None
        if self._marked:
            marked, self._marked = self._marked, []
            for stream in marked:
                stream.marked = False
                if stream.recv is RECEIVING:
                    self.write(stream.credit())

    # --- time ----------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> float | None:
        """Do what is due. Returns when to come again, or None when the tunnel must be given up as lost."""
        self.now = now
        if now - self.heard >= wire.DEAD_AFTER:
            return None
        if now - self.heard >= wire.PING_AFTER and now - self._pinged >= wire.PING_AFTER:
            self.ping()
        self._reap(now)
        due = self.heard + wire.PING_AFTER
        return min(due if due > now else now + 1.0, now + min(wire.PING_AFTER, self._half_open_time))

    def ping(self) -> None:
        """Measure the round-trip time, or see whether the other side lives."""
        self._pinged = self.now
        self._ping = int(self.now * 1e9).to_bytes(8, "big")
        self.write(wire.frame(Kind.PING, 0, self._ping))

    def _reap(self, now: float) -> None:
        """Half-open streams on which nothing moves (protocol.md 9.4)."""
        for stream, (moved, since) in list(self._half_open.items()):
            if stream.moved != moved:
                self._half_open[stream] = (stream.moved, now)
            elif now - since >= self._half_open_time:
                self.reaped += 1
                stream.abort(Code.TIMEOUT)

    # --- called by streams ---------------------------------------------------------------------------------------------

    def mark(self, stream: Stream) -> None:
        """A WINDOW is due for this stream."""
        if not stream.marked:
            stream.marked = True
            if not self._marked and self._pong is None:
                self._wake()
            self._marked.append(stream)
            drained = self.pace.ping_after()
            if (self._ping is None and self.now - self._pinged >= _RTT_EVERY) or self._pinged < drained <= self.now:
                self.ping()  # credit flows: the window needs to know the path

    def watch_half_open(self, stream: Stream) -> None:
        self._half_open.setdefault(stream, (-1, self.now))

    def charge_idle_window(self) -> None:
        self._floods.charge(floods.WINDOW, self.now)

    def forget(self, stream: Stream) -> None:
        if self.streams.pop(stream.id, None) is None:
            return
        self._half_open.pop(stream, None)
        if self.pace.busy is stream:
            self.pace.busy = None
        if self._is_theirs(stream.id):
            self.their_streams -= 1
        if not self.streams:
            self.owner.on_idle()

    # --- frames that arrive --------------------------------------------------------------------------------------------

    def _control(self, kind: int, number: int, payload: bytes) -> None:
        if kind >= wire.OPTIONAL and kind not in self._handlers:
            self._floods.charge(floods.OPTIONAL, self.now)
            return
        if number:
            stream = self.streams.get(number)
            handle = self._stream_handlers.get(kind)
            if handle is None:
                self._on_open(number, payload)
            elif stream is not None:
                handle(stream, payload)
            elif kind not in (Kind.WINDOW, Kind.STOP, Kind.RESET) or not self._was_open(number):
                self._stray(number)
            return
        handler = self._handlers.get(kind)
        if handler is None:
            raise ProtocolError(Code.PROTOCOL, f"{Kind(kind).name} after the handshake")
        handler(payload)

    def _on_open(self, number: int, payload: bytes) -> None:
        request = wire.unpack_open(payload)
        if not self._is_theirs(number) or number <= self.highest:
            raise ProtocolError(Code.PROTOCOL, f"OPEN with stream id {number} after {self.highest}")
        if request.limit > wire.MAX_OFFSET:
            raise ProtocolError(Code.FLOW_CONTROL, f"stream {number}: a limit of {request.limit} bytes cannot be")
        if not self.dialer:
            self._floods.charge(floods.OPEN, self.now)
        self.highest = number
        stream = self._new(number, opener=False)
        stream.send_limit = request.limit
        self.their_streams += 1
        if self.their_streams > self.ours.max_streams + _OVER_LIMIT:
            raise ProtocolError(Code.CALM, f"{self.their_streams} streams open, {self.ours.max_streams} are allowed")
        if self.going_away:
            self._refuse(stream, request, Code.SHUTDOWN)
        elif self.their_streams > self.ours.max_streams:
            self._refuse(stream, request, Code.LIMIT)
        elif request.kind != wire.STREAM_TCP:
            self._refuse(stream, request, Code.NO_SERVICE)
        else:
            self.owner.on_open(stream, request)

    def _refuse(self, stream: Stream, request: wire.Open, code: Code) -> None:
        stream.reset(code)
        self.on_refused(stream, request, code)

    def _on_reset(self, stream: Stream, payload: bytes) -> None:
        # One that answers our own RESET is owed, not done of its own accord; and a stream that had its target was a visitor's.
        if not self.dialer and self._is_theirs(stream.id) and stream.send is Send.PENDING:
            self._floods.charge(floods.RESET, self.now)
        stream.receive_reset(Code.of(CODE.unpack(payload)[0]))

    def _on_ping(self, payload: bytes) -> None:
        self._floods.charge(floods.PING, self.now)
        if self._pong is None and not self._marked:
            self._wake()
        self._pong = payload

    def _on_pong(self, payload: bytes) -> None:
        if payload != self._ping:
            return  # an answer to an older PING
        self._ping = None
        self.pace.measured(self.now - self._pinged, self.now)

    def _on_goaway(self, payload: bytes) -> None:
        _, code, text = wire.unpack_goaway(payload)
        self.going_away = True
        self.owner.on_goaway(code, text)

    def _on_expose(self, payload: bytes) -> None:
        if self.dialer:
            raise ProtocolError(Code.PROTOCOL, "EXPOSE from a relay")
        self._floods.charge(floods.EXPOSE, self.now)
        self.owner.on_expose(wire.unpack_json(payload, wire.Expose))

    def _on_exposed(self, payload: bytes) -> None:
        if not self.dialer:
            raise ProtocolError(Code.PROTOCOL, "EXPOSED from a client")
        self.owner.on_exposed(wire.unpack_json(payload, wire.Exposed))

    def _on_list(self, payload: bytes) -> None:
        if self.dialer:
            raise ProtocolError(Code.PROTOCOL, "LIST from a relay")
        self._floods.charge(floods.LIST, self.now)
        wire.unpack_json(payload, wire.List)
        self.owner.on_list()

    def _on_listed(self, payload: bytes) -> None:
        if not self.dialer:
            raise ProtocolError(Code.PROTOCOL, "LISTED from a client")
        self.owner.on_listed(wire.unpack_json(payload, wire.Listed))

    def _on_pins(self, payload: bytes) -> None:
        if not self.dialer:
            raise ProtocolError(Code.PROTOCOL, "PINS from a client")
        self._floods.charge(floods.PINS, self.now)
        self.owner.on_pins(read_pins(wire.unpack_json(payload, wire.Pins).pins))

    def _stray(self, number: int) -> None:
        """A frame for a stream that is not there; the three that may come late never get here."""
        if not number:
            raise ProtocolError(Code.PROTOCOL, "DATA with stream id 0")
        was = "is over" if self._was_open(number) else "was never opened"
        raise ProtocolError(Code.STREAM_STATE, f"a frame for stream {number}, which {was}")

    def _empty(self, number: int) -> None:
        stream = self.streams[number]
        if stream.recv not in (Recv.OPEN, Recv.DRAIN):
            raise ProtocolError(Code.STREAM_STATE, f"stream {number}: DATA while {stream.recv.value}")
        self._floods.charge(floods.EMPTY, self.now)

    # --- ids -----------------------------------------------------------------------------------------------------------

    def _is_theirs(self, number: int) -> bool:
        return (number % 2 == 0) is self.dialer

    def _was_open(self, number: int) -> bool:
        return number <= self.highest if self._is_theirs(number) else number < self._next_id

    def _new(self, number: int, *, opener: bool) -> Stream:
        borrowed = self.pool.take(first_window(len(self.streams) + 1) - wire.WINDOW_FLOOR)
        window = (
            wire.WINDOW_FLOOR + borrowed if borrowed else wire.WINDOW_FLOOR
        )  # thousands of streams share that one number
        stream = Stream(self, number, window, opener=opener)
        self.streams[number] = stream
        return stream
