"""The core alone, without sockets: what a frame, a stream and a credit cost.

    python -m pytest bench/test_micro.py --benchmark-only [-k receive] [--benchmark-json=figures.json]

Every benchmark prints a line with its rate, also found in the JSON as `extra_info`; the table of pytest-benchmark shows the time of a
round. A rate is that of the fastest round: what else happens on a machine only ever makes one slower. For the same reason no rate is a
gate. What can fail is the result: bytes that arrived, streams that are forgotten, credit and pools to the byte.

Payload is handed on and never looked at, so MB/s of large frames are what the core would allow, not what a machine can move; only in
`round_trip` is every frame copied once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastrelay import wire
from fastrelay.errors import Code, ProtocolError
from fastrelay.mux import floods
from fastrelay.mux.credit import process_pool, step, tunnel_pool
from fastrelay.mux.decoder import Decoder
from fastrelay.mux.session import Session
from fastrelay.mux.stream import Stream
from fastrelay.wire import CREDIT_STEP, HEADER_SIZE, MAX_DATA, MAX_OFFSET, WINDOW_FLOOR, Kind

ROUNDS = 50
FRAMES = 500
"""How many there are in a round, at least."""
TURN = 0.0005
"""Seconds that the clock goes on with every turn; a round trip takes two."""
BURST = 262_144
"""Bytes that a busy stream moves in one turn."""

SIZES = {"32 B": 32, "1 KiB": 1024, "16 KiB": 16_384, "128 KiB": 131_072, "1 MiB": MAX_DATA}
each_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


def group(name: str) -> pytest.MarkDecorator:
    """A table of its own; without the collector, whose turn would fall into some rounds and not into others."""
    return pytest.mark.benchmark(group=name, disable_gc=True)


# --- measuring ---------------------------------------------------------------------------------------------------------


class Gauge:
    """Runs a piece of work for `ROUNDS` rounds, keeps its rates and prints them."""

    def __init__(self, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
        self._benchmark = benchmark
        self._capsys = capsys

    def __call__(
        self, work: Callable[[], object], per_round: dict[str, float], setup: Callable[[], None] | None = None
    ) -> None:
        """`per_round` is how much of what one call of `work` does: {"frames": 64, "MB": 1.05}."""
        self._benchmark.pedantic(work, setup=setup, rounds=ROUNDS, warmup_rounds=2)  # type: ignore[no-untyped-call]
        if self._benchmark.stats is None:  # --benchmark-disable: the work was done once, for its result
            return
        fastest = self._benchmark.stats.stats.min
        rates = {f"{unit}/s": round(amount / fastest) for unit, amount in per_round.items()}
        self._benchmark.extra_info.update(rates)
        with self._capsys.disabled():
            figures = "".join(f"{rate:14,} {unit:9}" for unit, rate in rates.items())
            print(f"\n{self._benchmark.name.removeprefix('test_'):34}{figures}", end="")


@pytest.fixture
def gauge(benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> Gauge:
    return Gauge(benchmark, capsys)


# --- two sessions without a transport ----------------------------------------------------------------------------------


class Local:
    """The local end of a stream, or the sink of a bare decoder: counts, and takes everything at once."""

    def __init__(self) -> None:
        self.taken = 0
        self.ends = 0

    def deliver(self, piece: memoryview) -> None:
        self.taken += len(piece)

    receive = deliver

    def on_accept(self) -> None: ...

    def on_fin(self) -> None:
        self.ends += 1

    receive_fin = on_fin

    def on_reset(self, code: Code) -> None:
        self.ends += 1

    def on_lost(self) -> None: ...
    def on_stop(self) -> None: ...
    def on_room(self) -> None: ...


class Slow(Local):
    """Its socket never takes anything at once."""

    stream: Stream

    def deliver(self, piece: memoryview) -> None:
        self.taken += len(piece)
        self.stream.queued += len(piece)


class Side:
    """One session and its role, which accepts every stream at once. What it writes is copied, as on its way into a tunnel."""

    def __init__(self, *, dialer: bool) -> None:
        self._slab = memoryview(bytearray(4 * MAX_DATA))  # one for good: new pages would cost more than the rest
        self._filled = 0
        self.local = Local()  # of every stream
        self.idle = 0
        self.pool = tunnel_pool(process_pool())
        streams: dict[int, Stream] = {}
        self.session = Session(
            self,
            Decoder(streams),
            streams,
            self.write,
            lambda: None,
            dialer=dialer,
            ours=wire.Settings(),
            theirs=wire.Settings(),
            pool=self.pool,
            now=0.0,
        )

    def on_open(self, stream: Stream, request: wire.Open) -> None:
        stream.attach(self.local)
        stream.accept()

    def on_expose(self, request: wire.Expose) -> None: ...
    def on_exposed(self, answer: wire.Exposed) -> None: ...
    def on_list(self) -> None: ...
    def on_listed(self, answer: wire.Listed) -> None: ...
    def on_pins(self, pins: tuple[bytes, ...]) -> None: ...
    def on_goaway(self, code: Code, text: str) -> None: ...

    def on_idle(self) -> None:
        self.idle += 1

    def write(self, frame: bytes | memoryview) -> None:
        start, self._filled = self._filled, self._filled + len(frame)
        self._slab[start : self._filled] = frame

    def written(self) -> memoryview:
        """What was written since the last call, valid until the next `write`."""
        written, self._filled = self._slab[: self._filled], 0
        return written

    def read(self, raw: bytes | memoryview, now: float) -> None:
        for chunk in chunks(raw, MAX_DATA):
            self.session.feed(chunk, now)

    def open(self) -> Stream:
        stream = self.session.open(self.local, 1, "192.0.2.9:51544")
        assert stream is not None
        return stream


class Tunnel:
    """The relay, which opens streams as for visitors, and the client, which accepts them."""

    def __init__(self, streams: int = 0) -> None:
        self.now = 0.0
        self.relay = Side(dialer=False)
        self.client = Side(dialer=True)
        for side in (self.relay, self.client):
            side.session.ping()  # as a tunnel does when it begins
        self.opened = [self.relay.open() for _ in range(streams)]
        self.settle()

    def turn(self) -> bool:
        """Both say what they owe and read what the other has written; False when that was nothing."""
        self.now += TURN
        self.relay.session.flush()
        self.client.session.flush()
        moved = False
        for source, reader in ((self.relay, self.client), (self.client, self.relay)):
            if written := source.written():
                reader.read(written, self.now)
                moved = True
        return moved

    def settle(self) -> None:
        """Turns until nobody has anything to say."""
        while self.turn():
            pass

    def widen(self, stream: Stream, credit: int) -> None:
        """Move data until the window of a relay's stream has grown to `credit`."""
        slab = memoryview(bytearray(HEADER_SIZE + MAX_DATA))
        while stream.send_limit - stream.sent < credit:
            self.relay.write(stream.seal(slab, stream.room()))
            self.turn()
            self.turn()
            assert self.now < 10, "the window does not grow"

    def check(self) -> None:
        """Everything that was sent has arrived, the two sides agree about credit, and the pools about what is lent."""
        self.settle()
        ours, theirs = self.relay.session.streams, self.client.session.streams
        assert ours.keys() == theirs.keys()
        for number, one in ours.items():
            other = theirs[number]
            for sender, receiver in ((one, other), (other, one)):
                assert sender.sent == receiver.received
                assert sender.send_limit == receiver.recv_limit
                owed = receiver.recv_limit - receiver.received + receiver.queued
                assert owed <= max(receiver.window, wire.EARLY)
        for side in (self.relay, self.client):
            assert side.pool.used == sum(s.window - WINDOW_FLOOR for s in side.session.streams.values())


def chunks(raw: bytes | memoryview, size: int) -> Iterator[memoryview]:
    """What arrives, in reads of `size`."""
    view = memoryview(raw)
    return (view[at : at + size] for at in range(0, len(view), size))


def data(stream: int, size: int) -> bytes:
    return wire.frame(Kind.DATA, stream, bytes(size))


# --- bytes to calls ----------------------------------------------------------------------------------------------------


@group("decoder")
@each_size
def test_decode(gauge: Gauge, size: int) -> None:
    """DATA in reads of the size of the tunnel's slab: frames are cut where a read ends."""
    each = max(4, BURST // size)
    times = -(-FRAMES // each)
    reads = list(chunks(data(1, size) * each, MAX_DATA))
    sink = Local()
    decoder = bare_decoder(sink)
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1
        for _ in range(times):
            for chunk in reads:
                decoder.feed(chunk)

    gauge(work, {"frames": times * each, "MB": times * each * size / 1e6})
    assert sink.taken == calls * times * each * size


@group("decoder")
@pytest.mark.parametrize("cut", [1, 7, 1021, 65_537], ids="cut {}".format)
def test_decode_cut(gauge: Gauge, cut: int) -> None:
    """Reads that end anywhere, also in headers and in control frames."""
    lot = b"".join((data(1, 1000), wire.window_frame(1, 9, 0), wire.frame(Kind.FIN, 1), data(1, 1), data(1, 1448)))
    lots = 2 if cut < 1000 else 200
    raw = lot * lots
    sink = Local()
    controls = calls = 0

    def control(kind: int, stream: int, payload: bytes) -> None:
        nonlocal controls
        controls += kind == Kind.WINDOW and stream == 1 and len(payload) == 16

    decoder = bare_decoder(sink, control)

    def work() -> None:
        nonlocal calls
        calls += 1
        for chunk in chunks(raw, cut):
            decoder.feed(chunk)

    gauge(work, {"frames": 5 * lots, "MB": len(raw) / 1e6, "reads": -(-len(raw) // cut)})
    assert sink.taken == calls * lots * 2449
    assert sink.ends == controls == calls * lots


def bare_decoder(sink: Local, control: Callable[[int, int, bytes], None] | None = None) -> Decoder:
    def unexpected(*_: object) -> None:
        raise AssertionError("a frame that was not sent")

    decoder = Decoder({1: sink})
    decoder.hand_to(control or unexpected, unexpected, unexpected, MAX_DATA)
    return decoder


# --- data --------------------------------------------------------------------------------------------------------------


@group("data")
@each_size
def test_receive(gauge: Gauge, size: int) -> None:
    """Decoder, stream and outlet for what arrives; the credit that is due is written after each read."""
    tunnel = Tunnel(streams=1)
    tunnel.widen(tunnel.opened[0], 2 * MAX_DATA)
    client, number = tunnel.client, tunnel.opened[0].id
    stream = client.session.streams[number]
    each = max(1, BURST // size)
    times = -(-FRAMES // each)
    raw = data(number, size) * each
    before = client.local.taken
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1
        for _ in range(times):
            tunnel.now += TURN
            client.read(raw, tunnel.now)
            client.session.flush()
            client.written()

    gauge(work, {"frames": times * each, "MB": times * each * size / 1e6})
    assert client.local.taken - before == calls * times * each * size
    assert stream.received == client.local.taken
    assert stream.window - step(stream.window) < stream.recv_limit - stream.received <= stream.window
    assert client.pool.used == stream.window - WINDOW_FLOOR


@group("data")
@pytest.mark.parametrize("streams", [1, 2], ids=["alone", "shared"])
def test_send(gauge: Gauge, streams: int) -> None:
    """Room, sealing and writing; what is sealed is not looked at, so its size does not matter."""
    relay = Side(dialer=False)
    opened = [relay.open() for _ in range(streams)]
    relay.read(b"".join(wire.frame(Kind.ACCEPT, s.id, wire.LIMIT.pack(MAX_OFFSET)) for s in opened), 0.0)
    slab = memoryview(bytearray(HEADER_SIZE + 1024))
    in_turn = [s for _ in range(2000 // streams) for s in opened]
    written = calls = 0

    def write(frame: memoryview) -> None:
        nonlocal written
        written += len(frame)

    def work() -> None:
        nonlocal calls
        calls += 1
        for stream in in_turn:
            write(stream.seal(slab, min(stream.room(), 1024)))

    gauge(work, {"frames": len(in_turn)})
    assert written == calls * len(in_turn) * (HEADER_SIZE + 1024)
    assert sum(s.sent for s in opened) == calls * len(in_turn) * 1024
    assert slab[:HEADER_SIZE] == wire.HEADER.pack(1024, opened[-1].id)


@group("data")
@each_size
def test_round_trip(gauge: Gauge, size: int) -> None:
    """From one session's stream through frames to the other's outlet, and the credit back."""
    tunnel = Tunnel(streams=1)
    stream = tunnel.opened[0]
    tunnel.widen(stream, 2 * MAX_DATA)
    slab = memoryview(bytearray(HEADER_SIZE + size))
    each = max(1, BURST // size)
    times = -(-FRAMES // each)
    before, calls = tunnel.client.local.taken, 0
    write = tunnel.relay.write

    def work() -> None:
        nonlocal calls
        calls += 1
        for _ in range(times):
            for _ in range(each):
                assert stream.room() >= size, "credit does not come back"
                write(stream.seal(slab, size))
            tunnel.turn()
            tunnel.turn()

    gauge(work, {"frames": times * each, "MB": times * each * size / 1e6})
    assert tunnel.client.local.taken - before == calls * times * each * size
    tunnel.check()


# --- streams -----------------------------------------------------------------------------------------------------------


@group("streams")
@pytest.mark.parametrize("others", [0, 10_000], ids="{} others".format)
@pytest.mark.parametrize("end", ["fin", "reset"])
def test_life(gauge: Gauge, end: str, others: int) -> None:
    """Open, accept, a request and an answer of 100 bytes, and the end, at both sides; beside idle streams it costs the same."""
    tunnel = Tunnel(streams=others)
    relay, client = tunnel.relay, tunnel.client
    slab = memoryview(bytearray(HEADER_SIZE + 100))
    count, calls = 100, 0

    def work() -> None:
        nonlocal calls
        calls += 1
        ours = [relay.open() for _ in range(count)]
        tunnel.turn()
        theirs = [client.session.streams[stream.id] for stream in ours]
        for side, streams in ((relay, ours), (client, theirs)):
            for stream in streams:
                side.write(stream.seal(slab, 100))
                if end == "fin":
                    stream.fin()
            tunnel.turn()
        if end == "reset":
            for stream in ours:
                stream.reset(Code.CONNECTION_RESET)
            tunnel.turn()
            tunnel.turn()

    gauge(work, {"streams": count})
    assert len(relay.session.streams) == len(client.session.streams) == others
    assert relay.local.taken == client.local.taken == calls * count * 100
    assert client.local.ends == calls * count
    assert relay.local.ends == (calls * count if end == "fin" else 0)
    assert relay.idle == client.idle == (0 if others else calls)
    tunnel.check()


# --- credit ------------------------------------------------------------------------------------------------------------


@group("credit")
@pytest.mark.parametrize("every", [0.0, 0.004], ids=["within a span", "a new span"])
def test_refill(gauge: Gauge, every: float) -> None:
    """Frames of which each makes credit due; where time goes on, each is measured as well and its window sized anew."""
    tunnel = Tunnel(streams=1)
    client, number = tunnel.client, tunnel.opened[0].id
    stream = client.session.streams[number]
    raw = data(number, CREDIT_STEP)
    calls = written = 0

    def work() -> None:
        nonlocal calls, written
        calls += 1
        for _ in range(FRAMES):
            tunnel.now += every
            client.read(raw, tunnel.now)
            client.session.flush()
        written += len(client.written())

    gauge(work, {"windows": FRAMES})
    assert stream.received == client.local.taken == calls * FRAMES * CREDIT_STEP
    assert stream.window - step(stream.window) < stream.recv_limit - stream.received <= stream.window
    assert client.pool.used == stream.window - WINDOW_FLOOR
    # While the window shrinks a few are saved, and a PING now and then is written as well.
    assert written >= (calls * FRAMES - 10) * len(wire.window_frame(2, 0, 0))


@group("credit")
def test_consume(gauge: Gauge) -> None:
    """Data that a slow socket takes later: queued, drained, and the credit for it written each time it is due."""
    tunnel = Tunnel(streams=1)
    client, number = tunnel.client, tunnel.opened[0].id
    stream = client.session.streams[number]
    local = Slow()
    local.stream = stream
    stream.attach(local)
    size, count = 4096, FRAMES
    raw = data(number, size) * 4
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1
        for _ in range(count // 4):
            tunnel.now += TURN
            client.read(raw, tunnel.now)
            for _ in range(4):
                stream.queued -= size
                stream.drained()
            client.session.flush()
        client.written()

    gauge(work, {"frames": count, "MB": count * size / 1e6})
    assert local.taken == stream.received == calls * count * size
    assert stream.queued == 0
    assert stream.window - step(stream.window) < stream.recv_limit - stream.received <= stream.window
    assert client.pool.used == stream.window - WINDOW_FLOOR


@group("credit")
def test_flush_windows(gauge: Gauge) -> None:
    """A blocked tunnel is free again: 1,000 streams owe a WINDOW, each has owed it several times, and gets one."""
    count = 1000
    tunnel = Tunnel(streams=count)
    client = tunnel.client
    times = CREDIT_STEP // step(WINDOW_FLOOR)  # after so many of the smallest steps credit is due for every stream
    raw = b"".join(data(stream.id, step(WINDOW_FLOOR)) for stream in tunnel.opened)
    written = calls = 0

    def owe() -> None:
        for _ in range(times):  # the clock stands, so the windows stay as they are
            client.read(raw, tunnel.now)

    def work() -> None:
        nonlocal calls, written
        calls += 1
        client.session.flush()
        written += len(client.written())

    gauge(work, {"windows": count}, owe)
    assert written == calls * count * len(wire.window_frame(2, 0, 0))
    for stream in client.session.streams.values():
        assert stream.received == calls * CREDIT_STEP
        assert stream.window - step(stream.window) < stream.recv_limit - stream.received <= stream.window
    assert client.pool.used == sum(s.window - WINDOW_FLOOR for s in client.session.streams.values())


@group("credit")
def test_take_windows(gauge: Gauge) -> None:
    """1,000 streams whose credit was used up get more."""
    count = 1000
    relay = Tunnel(streams=count).relay
    streams = list(relay.session.streams.values())
    slab = memoryview(bytearray(HEADER_SIZE + MAX_DATA))
    raw = b""

    def use_up() -> None:
        nonlocal raw
        for stream in streams:
            stream.seal(slab, stream.room())
        raw = b"".join(wire.window_frame(s.id, s.sent + WINDOW_FLOOR, s.sent) for s in streams)

    def work() -> None:
        relay.read(raw, 1.0)

    gauge(work, {"windows": count}, use_up)
    assert all(s.send_limit - s.sent == s.room() == WINDOW_FLOOR for s in streams)


@group("credit")
def test_idle_windows(gauge: Gauge) -> None:
    """As many WINDOW frames that raise nothing as a peer is allowed at once; one more is a flood."""
    _, burst, rate = floods.WINDOW
    relay = Side(dialer=False)
    stream = relay.open()
    idle = wire.window_frame(stream.id, 0, 0)
    raw = idle * burst
    now = 0.0

    def work() -> None:
        nonlocal now
        now += burst / rate  # what was charged before is forgiven
        relay.read(raw, now)

    gauge(work, {"windows": burst})
    with pytest.raises(ProtocolError) as flood:
        relay.read(idle, now)
    assert flood.value.code is Code.CALM
