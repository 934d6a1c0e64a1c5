"""Two sessions joined in memory: no sockets, the clock is a number, and bytes move when the test says so, cut as it likes.

Tap     the local end of a stream: remembers what it is told, and can hold back consumption
Side    one session with its owner; alone it is fed by hand, and `sent` shows the frames that it wrote
Pair    a dialer and a listener; `deliver` moves bytes, `pump` moves them until nobody has anything to say
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from fastrelay import wire
from fastrelay.errors import Code, ProtocolError
from fastrelay.mux.credit import Pool
from fastrelay.mux.decoder import Decoder
from fastrelay.mux.session import Session
from fastrelay.mux.stream import Stream
from fastrelay.wire import HEADER, HEADER_SIZE, WINDOW_FLOOR, Kind

DEFAULTS = wire.Settings()
POOL = 1 << 62


class Frame(NamedTuple):
    kind: int
    stream: int
    payload: bytes

    @property
    def raw(self) -> bytes:
        return wire.frame(*self)


# --- frames of a peer that is played by hand ---------------------------------------------------------------------------


def data(stream: int, payload: bytes) -> bytes:
    return wire.frame(Kind.DATA, stream, payload)


def fin(stream: int, payload: bytes = b"") -> bytes:
    return wire.frame(Kind.FIN, stream, payload)


def trunc(stream: int) -> bytes:
    return wire.frame(Kind.TRUNC, stream)


def open_(stream: int, limit: int = 100_000, kind: int = wire.STREAM_TCP) -> bytes:
    return wire.frame(Kind.OPEN, stream, wire.pack_open(wire.Open(kind, limit, 1, "192.0.2.9:51544")))


def visit(stream: int, target: str, limit: int = 100_000) -> bytes:
    """OPEN of a client, to a private service."""
    return wire.frame(Kind.OPEN, stream, wire.pack_open(wire.Open(wire.STREAM_TCP, limit, target=target)))


def accept(stream: int, limit: int = 100_000) -> bytes:
    return wire.frame(Kind.ACCEPT, stream, wire.LIMIT.pack(limit))


def window(stream: int, limit: int, consumed: int = 0) -> bytes:
    return wire.window_frame(stream, limit, consumed)


def reset(stream: int, code: int = Code.CONNECTION_RESET) -> bytes:
    return wire.code_frame(Kind.RESET, stream, code)


def stop(stream: int, code: int = Code.CANCEL) -> bytes:
    return wire.code_frame(Kind.STOP, stream, code)


def ping(payload: bytes = b"12345678") -> bytes:
    return wire.frame(Kind.PING, 0, payload)


def pong(payload: bytes) -> bytes:
    return wire.frame(Kind.PONG, 0, payload)


def goaway(code: int, text: str = "", last: int = 0) -> bytes:
    return wire.frame(Kind.GOAWAY, 0, wire.pack_goaway(last, code, text))


def expose(service: int) -> bytes:
    return wire.frame(Kind.EXPOSE, 0, wire.pack_json(wire.Expose(service=service, name=f"s{service}")))


def list_() -> bytes:
    return wire.frame(Kind.LIST, 0, wire.pack_json(wire.List()))


def frames(raw: bytes | bytearray) -> list[Frame]:
    """Whole frames; what is left over is an error."""
    found = []
    at = 0
    while at < len(raw):
        word, stream = HEADER.unpack_from(raw, at)
        stop = at + HEADER_SIZE + (word & 0xFFFFFF)
        assert stop <= len(raw), "half a frame was written"
        found.append(Frame(word >> 24, stream, bytes(raw[at + HEADER_SIZE : stop])))
        at = stop
    return found


def refusal(call: Callable[[], object]) -> Code | None:
    """The code of the ProtocolError that `call` raises, None when it raises nothing."""
    raised: ProtocolError | None = None
    try:
        call()
    except ProtocolError as error:
        raised = error
    assert raised is None or raised.text.isprintable()
    return None if raised is None else raised.code


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now


class Tap:
    """An outlet. While `held` everything that is delivered stays queued until `release`. After the end nothing may be called."""

    def __init__(self, stream: Stream | None = None, *, held: bool = False) -> None:
        self.stream = stream
        self.held = held
        self.received = bytearray()
        self.accepted = False
        self.fin = False
        self.code: Code | None = None  # of on_reset
        self.lost = False
        self.stopped = False
        self.rooms = 0

    @property
    def over(self) -> bool:
        return self.code is not None or self.lost

    def deliver(self, piece: memoryview) -> None:
        assert not self.over and not self.fin, "data after the end"
        assert len(piece) > 0
        self.received += piece
        if self.held:
            assert self.stream is not None
            self.stream.queued += len(piece)

    def on_accept(self) -> None:
        assert not self.over and not self.accepted
        self.accepted = True

    def on_fin(self) -> None:
        assert not self.over and not self.fin, "a second end"
        self.fin = True

    def on_reset(self, code: Code) -> None:
        assert not self.over, "a reset after the end"
        self.code = code

    def on_lost(self) -> None:
        assert not self.over, "lost after the end"
        self.lost = True

    def on_stop(self) -> None:
        assert not self.over and not self.stopped
        self.stopped = True

    def on_room(self) -> None:
        assert not self.over and not self.stopped
        assert self.stream is not None and self.stream.room() > 0
        self.rooms += 1

    def release(self, size: int | None = None) -> None:
        """The socket takes `size` of what is queued, or all of it."""
        assert self.stream is not None
        self.stream.queued -= self.stream.queued if size is None else min(size, self.stream.queued)
        self.stream.drained()


class Side:
    """One end of a tunnel, and the role that decides. Streams that arrive get a Tap, and are accepted at once unless `accepts` is off."""

    def __init__(
        self,
        clock: Clock,
        *,
        dialer: bool,
        ours: wire.Settings = DEFAULTS,
        theirs: wire.Settings = DEFAULTS,
        pool: int = POOL,
    ) -> None:
        self.clock = clock
        self.out = bytearray()
        self.wakes = 0
        self.accepts = True
        self.holds = False
        self.pool = Pool(pool, Pool(POOL))
        self.taps: dict[int, Tap] = {}
        self.opens: list[wire.Open] = []
        self.asked: list[wire.Expose] = []
        self.answers: list[wire.Exposed] = []
        self.lists = 0
        self.listed: list[wire.Listed] = []
        self.pins: list[tuple[bytes, ...]] = []
        self.goaways: list[tuple[Code, str]] = []
        self.idles = 0
        streams: dict[int, Stream] = {}
        self.decoder = Decoder(streams)
        self.session = Session(
            self,
            self.decoder,
            streams,
            self._write,
            self._wake,
            dialer=dialer,
            ours=ours,
            theirs=theirs,
            pool=self.pool,
            now=clock.now,
        )

    def _write(self, frame: bytes) -> None:
        self.out += frame

    def _wake(self) -> None:
        self.wakes += 1

    # --- the owner -----------------------------------------------------------------------------------------------------

    def on_open(self, stream: Stream, request: wire.Open) -> None:
        self.opens.append(request)
        tap = self.taps[stream.id] = Tap(stream, held=self.holds)
        stream.attach(tap)
        if self.accepts:
            stream.accept()

    def on_expose(self, request: wire.Expose) -> None:
        self.asked.append(request)

    def on_exposed(self, answer: wire.Exposed) -> None:
        self.answers.append(answer)

    def on_list(self) -> None:
        self.lists += 1

    def on_listed(self, answer: wire.Listed) -> None:
        self.listed.append(answer)

    def on_pins(self, pins: tuple[bytes, ...]) -> None:
        self.pins.append(pins)

    def on_goaway(self, code: Code, text: str) -> None:
        self.goaways.append((code, text))

    def on_idle(self) -> None:
        assert not self.session.streams
        self.idles += 1

    # --- what a test does ----------------------------------------------------------------------------------------------

    def feed(self, raw: bytes | bytearray) -> None:
        """Bytes arrive. The slab is overwritten behind them: whoever keeps a view keeps rubbish."""
        slab = bytearray(raw)
        try:
            self.session.feed(memoryview(slab), self.clock.now)
        finally:
            slab[:] = b"\xee" * len(slab)

    def refuses(self, raw: bytes | bytearray) -> Code | None:
        """Feed bytes that may break a rule; the code if they do."""
        return refusal(lambda: self.feed(raw))

    def open(self, *, held: bool = False, service: int = 1, visitor: str = "192.0.2.9:51544") -> Stream | None:
        tap = Tap(held=held)
        stream = self.session.open(tap, service, visitor)
        if stream is not None:
            tap.stream = stream
            self.taps[stream.id] = tap
        return stream

    def must_open(self, *, held: bool = False) -> Stream:
        stream = self.open(held=held)
        assert stream is not None
        return stream

    def send(self, stream: Stream, data: bytes) -> int:
        """Send as much of `data` as there is room for, in one frame; returns how much that was."""
        size = min(len(data), stream.room())
        if size:
            slab = bytearray(HEADER_SIZE) + data[:size]
            self._write(bytes(stream.seal(memoryview(slab), size)))
        return size

    def send_all(self, stream: Stream, data: bytes) -> int:
        """Send while there is room."""
        done = 0
        while done < len(data) and (size := self.send(stream, data[done:])):
            done += size
        return done

    def sent(self) -> list[Frame]:
        """The frames written since the last call."""
        found = frames(self.out)
        self.out.clear()
        return found

    def lose(self) -> None:
        """The tunnel is gone. Outlets that still drained are told by their sockets, sooner or later."""
        self.session.lose()
        self.out.clear()

    def detach_all(self) -> None:
        for tap in self.taps.values():
            if tap.stream is not None:
                tap.stream.detach()

    def check(self) -> None:
        """What holds at any time: credit, and the pool to the byte."""
        session = self.session
        known = set(session.streams.values()) | {tap.stream for tap in self.taps.values() if tap.stream is not None}
        for stream in known:
            assert 0 <= stream.sent <= stream.send_limit, stream
            assert 0 <= stream.received <= stream.recv_limit, stream
            assert stream.room() >= 0, stream
            assert 0 <= stream.queued <= stream.received, stream
            assert stream.ended is (stream.id not in session.streams), stream
            # The memory bound of protocol.md 8.3: what may come and what is queued fit the window, or the early allowance.
            if not stream.ended:
                owed = stream.recv_limit - stream.received + stream.queued
                assert owed <= max(stream.window, session.ours.early), stream
        pool = session.pool
        assert pool.used == sum(stream.window - WINDOW_FLOOR for stream in known)
        assert 0 <= pool.used <= pool.limit
        assert pool.parent is not None and pool.parent.used == pool.used


def relay(max_streams: int = wire.MAX_STREAMS) -> Side:
    """A relay's session, alone."""
    return Side(Clock(), dialer=False, ours=wire.Settings(max_streams=max_streams))


def client(max_streams: int = wire.MAX_STREAMS, theirs: wire.Settings = DEFAULTS) -> Side:
    return Side(Clock(), dialer=True, ours=wire.Settings(max_streams=max_streams), theirs=theirs)


class Pair:
    """A dialer and a listener. Bytes wait in `out` of the side that wrote them until `deliver`."""

    def __init__(
        self,
        *,
        dialer: wire.Settings = DEFAULTS,
        listener: wire.Settings = DEFAULTS,
        dialer_pool: int = POOL,
        listener_pool: int = POOL,
    ) -> None:
        self.clock = Clock()
        self.dialer = Side(self.clock, dialer=True, ours=dialer, theirs=listener, pool=dialer_pool)
        self.listener = Side(self.clock, dialer=False, ours=listener, theirs=dialer, pool=listener_pool)

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.dialer, self.listener

    def other(self, side: Side) -> Side:
        return self.listener if side is self.dialer else self.dialer

    def deliver(self, source: Side, size: int | None = None) -> None:
        """Move the next `size` bytes that `source` wrote, or all of them, in one chunk."""
        chunk = bytes(source.out[:size])
        del source.out[: len(chunk)]
        if chunk:
            self.other(source).feed(chunk)

    def pump(self, cuts: Random | None = None) -> None:
        """Move bytes both ways until nothing is left to say; with `cuts` in chunks of random sizes."""
        while True:
            for side in self.sides:
                side.session.flush()
            if not (self.dialer.out or self.listener.out):
                return
            for side in self.sides:
                self.deliver(side, None if cuts is None else cuts.choice((1, 7, 9, 4000, 70_000)))

    def check(self) -> None:
        for side in self.sides:
            side.check()
