"""Windows and pools: nothing is lent twice, and a window finds the size that its path needs."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay import wire
from fastrelay.mux import credit, pace
from fastrelay.mux.credit import RATE_SPAN, Meter, Pool, first_window, process_pool, step, tunnel_pool
from fastrelay.mux.pace import Pace
from fastrelay.wire import CREDIT_STEP, PROCESS_POOL, TUNNEL_POOL, WINDOW_FIRST, WINDOW_FLOOR, WINDOW_MAX, Kind
from tests.support import pair
from tests.support.pair import Clock, Side

# --- pools -------------------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 1000),
    st.lists(st.integers(0, 600), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 400)), max_size=60),
)
def test_pools_lend_what_they_have(limit: int, limits: list[int], steps: list[tuple[int, bool, int]]) -> None:
    parent = Pool(limit)
    pools = [Pool(own, parent) for own in limits]
    for which, takes, size in steps:
        pool = pools[which % len(pools)]
        if takes:
            free = min(pool.limit - pool.used, parent.limit - parent.used)
            assert pool.take(size) == min(size, free)
        else:
            pool.give(min(size, pool.used))
        assert all(0 <= one.used <= one.limit for one in (*pools, parent))
        assert parent.used == sum(one.used for one in pools)


@given(st.integers(-1000, 0))
def test_nothing_is_taken_for_less_than_nothing(size: int) -> None:
    pool = Pool(10)
    assert pool.take(size) == 0
    assert pool.used == 0


def test_giving_back_too_much_is_an_error_of_ours() -> None:
    pool = Pool(10)
    pool.take(3)
    with pytest.raises(AssertionError, match="1 bytes more than it lent"):
        pool.give(4)


def test_the_documented_pools() -> None:
    process = process_pool()
    tunnels = [tunnel_pool(process) for _ in range(9)]
    assert [tunnel.take(1 << 40) for tunnel in tunnels] == [TUNNEL_POOL] * 8 + [0]
    assert process.used == process.limit == PROCESS_POOL


# --- sizes -------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 100_000))
def test_first_windows_fit_their_share(streams: int) -> None:
    window = first_window(streams)
    assert WINDOW_FLOOR <= window <= WINDOW_FIRST
    assert window == WINDOW_FLOOR or window * streams <= wire.FIRST_SHARE


@given(st.integers(WINDOW_FLOOR, WINDOW_MAX))
def test_a_step_is_a_sixteenth_within_bounds(window: int) -> None:
    assert step(window) == min(max(window // 16, 4096), CREDIT_STEP)


def path_of(min_rtt: float, alone: bool = True) -> Pace:
    """A tunnel whose path has shown its length at the time 0."""
    tunnel = Pace(wire.MAX_DATA)
    tunnel.measured(min_rtt, 0.0)
    tunnel.measured(min_rtt, 0.0)
    tunnel.alone = alone
    return tunnel


def formula(rate: float, gain: float, min_rtt: float, alone: bool = True) -> float:
    """protocol.md 8.2, within the bounds of 8.3."""
    queue = credit._QUEUE_ALONE if alone else 0.0
    base = max(WINDOW_FLOOR, min(credit._BASE_MOST, rate * credit._BASE_TIME))
    return max(WINDOW_FLOOR, min(WINDOW_MAX, rate * (gain * min_rtt + queue) + base))


@given(
    st.lists(st.tuples(st.floats(0, 10), st.integers(0, 1 << 34)), min_size=1, max_size=30),
    st.floats(0, 2),
    st.booleans(),
)
def test_a_window_never_leaves_its_bounds(steps: list[tuple[float, int]], min_rtt: float, alone: bool) -> None:
    meter, tunnel = Meter(0, 0.0), path_of(min_rtt, alone)
    window, consumed, now = WINDOW_FIRST, 0, 0.0
    for seconds, size in steps:
        now += seconds
        consumed += size
        window = meter.window(consumed, now, tunnel, window)
        assert WINDOW_FLOOR <= window <= WINDOW_MAX


@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(0, 1 << 30), st.booleans()), min_size=1, max_size=30),
    st.floats(0.001, 2),
    st.booleans(),
)
def test_a_window_has_one_of_four_gains(steps: list[tuple[float, int, bool]], min_rtt: float, alone: bool) -> None:
    meter, tunnel = Meter(0, 0.0), path_of(min_rtt, alone)
    consumed, now = 0, 0.0
    for seconds, size, lost in steps:
        now += seconds
        consumed += size
        if lost:
            tunnel.lost(now)
        window = meter.window(consumed, now, tunnel, WINDOW_FIRST)
        gains = (pace._DRAIN, pace.STEADY, credit._GROWING, pace._LOSSY)
        sizes = [formula(meter.rate, gain, min_rtt, alone) for gain in gains]
        if meter.rate:
            assert any(window == pytest.approx(size, abs=2) for size in sizes)
        else:
            assert window == WINDOW_FIRST


def test_no_verdict_before_the_span_is_over() -> None:
    meter = Meter(0, 10.0)
    assert meter.window(10**9, 10.0 + RATE_SPAN * 0.9, path_of(0.0001), 12345) == 12345
    assert meter.window(10**9, 10.0 + 0.0799, path_of(0.04), 12345) == 12345
    assert meter.window(10**9, 10.0 + 0.0801, path_of(0.04), 12345) == WINDOW_MAX


@given(st.floats(0.001, 0.2), st.booleans())
def test_while_the_rate_grows_the_window_is_not_what_limits_it(min_rtt: float, alone: bool) -> None:
    meter, tunnel = Meter(0, 0.0), path_of(min_rtt, alone)
    fast, slow = credit._GROWING, pace.STEADY
    rate, consumed, now = 1e5, 0, 0.0
    for gain, factor in ((fast, 1.0), (fast, 1.5), (fast, 2.0), (slow, 1.0), (slow, 1.02), (fast, 1.5)):
        rate *= factor
        now += 3 * min_rtt + RATE_SPAN
        consumed += int(rate * (3 * min_rtt + RATE_SPAN))
        window = meter.window(consumed, now, tunnel, WINDOW_FIRST)
        assert window == pytest.approx(formula(rate, gain, min_rtt, alone), rel=0.01)


def test_a_loss_makes_windows_larger_and_a_drain_smaller_than_growth() -> None:
    meter, tunnel = Meter(0, 0.0), path_of(0.1)
    assert meter.window(10**6, 1.0, tunnel, 0) == pytest.approx(formula(1e6, credit._GROWING, 0.1), abs=1)
    tunnel.lost(1.0)
    assert meter.window(10**6, 1.01, tunnel, 0) == pytest.approx(formula(1e6, pace._LOSSY, 0.1), abs=1)
    drain = pace._DRAIN_EVERY + 0.1
    meter = Meter(0, drain - 3.0)
    assert meter.window(10**6, drain - 2.0, tunnel, 0) == pytest.approx(formula(1e6, credit._GROWING, 0.1), abs=1)
    assert meter.window(2 * 10**6, drain - 1.0, tunnel, 0) == pytest.approx(formula(1e6, pace.STEADY, 0.1), abs=1)
    tunnel.lost(drain)
    assert meter.window(3 * 10**6, drain, tunnel, 0) == pytest.approx(formula(1e6, pace._DRAIN, 0.1), abs=1)


@given(st.lists(st.integers(0, 1 << 24), min_size=1, max_size=60))
def test_a_rate_that_falls_is_believed_slowly(sizes: list[int]) -> None:
    meter, tunnel = Meter(0, 0.0), path_of(0.05)
    every = 0.25
    consumed, rate = 0, 0.0
    for n, size in enumerate(sizes, 1):
        consumed += size
        meter.window(consumed, n * every, tunnel, WINDOW_FIRST)
        rate = max(size / every, credit._RATE_DECAY * rate)
        assert meter.rate == pytest.approx(rate)


def test_a_path_of_unknown_length_is_not_taken_for_a_short_one() -> None:
    meter = Meter(0, 0.0)
    assert meter.window(10_000, 1.0, Pace(wire.MAX_DATA), WINDOW_FIRST) == WINDOW_FIRST
    assert meter.window(20_000, 2.0, path_of(0.02), WINDOW_FIRST) < WINDOW_FIRST


# --- whole paths -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Path:
    """Bytes a second, seconds there and back, seconds to simulate, and in how many RTT a window must have grown."""

    rate: float
    rtt: float
    seconds: float = 0.0
    grown: float = 8
    queues: bool = False
    """Whether all that the window allows is under way at once, as with cubic: what the path cannot carry yet waits in it, and what is sent
    later behind that. Else it waits in the sender, and a PONG overtakes it."""
    losses: float = 0.0
    """Seconds between two lost packets: what follows arrives an RTT later, with the lost one."""

    @property
    def needed(self) -> float:
        return self.rate * self.rtt

    @property
    def full(self) -> float:
        """The part of the rate that a stream gets at least: all of it but for drains, 4 RTT at half of it."""
        return 0.98 - 2 * self.rtt / (pace._DRAIN_EVERY + 4 * self.rtt)

    def formula(self, gain: float) -> float:
        return formula(self.rate, gain, self.rtt)


PATHS = {
    "LAN, 10 Gbit/s, 0.2 ms": Path(1.25e9, 0.0002, 0.1),
    "LAN, 1 Gbit/s, 0.5 ms": Path(1.25e8, 0.0005, 0.2),
    "100 Mbit/s, 40 ms": Path(1.25e7, 0.04, 4),
    "20 Mbit/s, 80 ms": Path(2.5e6, 0.08, 6),
    "satellite, 50 Mbit/s, 600 ms": Path(6.25e6, 0.6, 24, 15),
}
LONG = {name: path for name, path in PATHS.items() if path.rtt >= 0.01}
ZEROS = memoryview(bytes(1 << 20))


class Transfer:
    """A sender that always has more, unless it `pauses`, a path that may change on the way, and a socket that takes all."""

    def __init__(self, path: Path, pool: int = pair.POOL) -> None:
        self.path = path
        self.side = Side(Clock(0.0), dialer=True, pool=pool)
        self.stream = self.side.must_open()
        self.side.feed(pair.accept(self.stream.id))
        self.stream.detach()  # consumed at once
        self.side.sent()
        self.pauses = False
        self.told = True  # whether the tunnel sees its losses
        self.log: list[tuple[float, int, int]] = []  # seconds, received, window
        self.min_rtts: list[tuple[float, float]] = []
        self._events: list[tuple[float, int, str, int]] = []
        self._number = 0
        self._limit = self.stream.recv_limit
        self._sent = 0
        self._free = 0.0  # when the path has carried what it was given
        self._last = 0.0  # when that arrives: nothing overtakes it
        self._held = 0.0  # until what was lost has come
        self._next_loss = math.inf
        self.side.session.ping()  # a link does so before the first stream
        self._react()
        self.run(path.rtt)
        if path.losses:
            self._next_loss = self.now + path.losses
        self._send()

    @property
    def now(self) -> float:
        return self.side.clock.now

    @property
    def min_rtt(self) -> float:
        return self.side.session.pace.min_rtt

    def run(self, seconds: float = 0.0) -> Self:
        end = self.now + (seconds or self.path.seconds)
        while self._events and self._events[0][0] <= end:
            at, number, what, value = heapq.heappop(self._events)
            if what in ("DATA", "PONG"):
                if at >= self._next_loss:
                    self._held = at + self.path.rtt
                    self._next_loss = at + self.path.losses
                if at < self._held:
                    heapq.heappush(self._events, (self._held, number, what, value))
                    continue
            self.side.clock.now = at
            getattr(self, f"_on_{what.lower()}")(value)
        self.side.clock.now = end
        return self

    def go_on(self) -> None:
        self.pauses = False
        self._send()

    def rate(self, begin: float, end: float) -> float:
        """The part of the path's rate that was used between two times."""
        part = [(now, received) for now, received, _ in self.log if begin <= now <= end]
        return (part[-1][1] - part[0][1]) / (end - begin) / self.path.rate

    def windows(self, begin: float = 0.0) -> list[int]:
        return [window for now, _, window in self.log if now >= begin]

    def _put(self, at: float, what: str, value: int) -> None:
        self._number += 1
        heapq.heappush(self._events, (at, self._number, what, value))

    def _send(self) -> None:
        piece = max(1448, int(self.path.needed / 20))
        while not self.pauses and self._sent < self._limit:
            size = min(piece, self._limit - self._sent)
            self._sent += size
            self._free = max(self._free, self.now) + size / self.path.rate
            self._last = max(self._last, self._free + self.path.rtt / 2)
            self._put(self._last, "DATA", size)

    def _react(self) -> None:
        """What the receiver has to say goes back to the sender."""
        self.side.session.flush()
        for frame in self.side.sent():
            if frame.kind == Kind.WINDOW:
                self._put(self.now + self.path.rtt / 2, "WINDOW", wire.WINDOW.unpack(frame.payload)[0])
            elif frame.kind == Kind.PING:
                self._put(self.now + self.path.rtt / 2, "PING", int.from_bytes(frame.payload, "big"))
        self.side.check()

    def _on_window(self, limit: int) -> None:
        self._limit = max(self._limit, limit)
        self._send()

    def _on_ping(self, payload: int) -> None:
        begin = max(self.now, self._free) if self.path.queues else self.now
        self._put(begin + self.path.rtt / 2, "PONG", payload)

    def _on_pong(self, payload: int) -> None:
        self.side.feed(pair.pong(payload.to_bytes(8, "big")))
        self.min_rtts.append((self.now, self.min_rtt))

    def _on_data(self, size: int) -> None:
        session = self.side.session
        session.now = self.now
        if self._held and self.told:
            session.pace.lost(self.now)
        self._held = 0.0
        while size:
            piece = ZEROS[:size]
            self.stream.receive(piece)
            size -= len(piece)
        self._react()
        self.log.append((self.now, self.stream.received, self.stream.window))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_window_grows_to_what_the_path_needs_and_no_further(path: Path) -> None:
    transfer = Transfer(path).run()
    assert transfer.min_rtt == pytest.approx(path.rtt)
    grown = next(now for now, _, window in transfer.log if window >= path.needed)
    assert grown <= path.grown * path.rtt
    assert max(transfer.windows()) <= max(WINDOW_FIRST, path.formula(credit._GROWING) * 1.1)
    settled = sorted(transfer.windows(path.seconds / 2))
    usual = settled[len(settled) // 4 :]  # a drain is short
    assert usual[0] >= path.needed
    assert usual[len(usual) // 2] == pytest.approx(path.formula(pace.STEADY), rel=0.1)
    assert transfer.rate(path.seconds / 2, path.seconds) >= path.full, "the window must not be what limits the stream"


@pytest.mark.parametrize("path", LONG.values(), ids=LONG)
def test_no_queue_hides_the_length_of_the_path_for_long(path: Path) -> None:
    """Minutes of a sender that fills every window: each PING has the queue before it, and a longer path would mean larger windows."""
    transfer = Transfer(replace(path, queues=True)).run(240)
    begin = 2 * pace._RTT_MEMORY
    behind_least = 2 * (credit._QUEUE_ALONE + WINDOW_FLOOR / path.rate)  # what a window holds however short the path is
    assert max(min_rtt for now, min_rtt in transfer.min_rtts if now >= begin) <= max(path.rtt, behind_least) * 1.1
    assert max(transfer.windows(begin)) <= path.formula(pace.STEADY * 1.1) * 1.1
    assert transfer.rate(begin, 239) >= path.full


@pytest.mark.parametrize("queues", [False, True], ids=["in the sender", "on the path"])
@pytest.mark.parametrize("path", LONG.values(), ids=LONG)
def test_what_is_lost_does_not_slow_a_stream(path: Path, queues: bool) -> None:
    """A sender that does not slow down by itself, as with bbr: windows must not do it either."""
    path = replace(path, queues=queues, losses=5 * path.rtt)
    transfer = Transfer(path).run(50 * path.rtt)
    assert transfer.rate(25 * path.rtt, 50 * path.rtt) >= 0.97
    assert max(transfer.windows()) <= path.formula(pace._LOSSY) * 2


def test_a_loss_that_nobody_sees_does() -> None:
    rates = []
    for told in (True, False):
        transfer = Transfer(replace(PATHS["100 Mbit/s, 40 ms"], losses=0.2))
        transfer.told = told
        rates.append(transfer.run(4).rate(2, 4))
    assert rates[0] - rates[1] >= 0.02


@pytest.mark.parametrize("queues", [False, True], ids=["in the sender", "on the path"])
@pytest.mark.parametrize("path", LONG.values(), ids=LONG)
def test_a_path_twice_as_long_is_found_out(path: Path, queues: bool) -> None:
    transfer = Transfer(replace(path, queues=queues)).run(15)
    transfer.path = replace(transfer.path, rtt=2 * path.rtt)
    known = transfer.now + pace._RTT_MEMORY + pace._DRAIN_EVERY
    grown = known + 2 * path.grown * path.rtt
    transfer.run(grown + 20 - transfer.now)
    assert transfer.min_rtt == pytest.approx(2 * path.rtt, rel=0.1)
    assert transfer.rate(grown, transfer.now) >= transfer.path.full


@pytest.mark.parametrize("factor", [2, 3, 5, 20])
@pytest.mark.parametrize("path", LONG.values(), ids=LONG)
def test_a_path_that_carries_more_is_filled_soon(path: Path, factor: int) -> None:
    """Others have left it: the window that was enough must not be what hides that."""
    transfer = Transfer(replace(path, rate=path.rate / factor)).run(60)
    transfer.path = path
    begin = transfer.now
    transfer.run(32 * path.rtt)
    assert transfer.rate(begin + 24 * path.rtt, begin + 32 * path.rtt) >= 0.8


@pytest.mark.parametrize("path", LONG.values(), ids=LONG)
def test_a_path_half_as_long_is_found_out(path: Path) -> None:
    transfer = Transfer(replace(path, queues=True)).run(15)
    transfer.path = replace(path, queues=True, rtt=path.rtt / 2)
    transfer.run(2 * pace._DRAIN_EVERY)
    assert transfer.min_rtt == pytest.approx(path.rtt / 2, rel=0.1)


@pytest.mark.parametrize("seconds", [0.5, 3.0, 5.0, 9.0, 60.0])
def test_a_pause_makes_no_window_smaller(seconds: float) -> None:
    """A connection that is used again, after a thought: nothing has been learned about the path meanwhile."""
    path = PATHS["100 Mbit/s, 40 ms"]
    transfer = Transfer(path).run()
    window = transfer.stream.window
    transfer.pauses = True
    transfer.run(seconds)
    begin = transfer.now
    transfer.go_on()
    transfer.run(20 * path.rtt)
    assert min(transfer.windows(begin)) >= 0.4 * window, "a drain, at most"
    assert transfer.rate(begin + path.rtt, begin + 20 * path.rtt) >= 0.9


def test_an_empty_pool_keeps_a_window_small_but_not_still() -> None:
    path = PATHS["100 Mbit/s, 40 ms"]
    transfer = Transfer(path, pool=0).run()
    assert set(transfer.windows()) == {WINDOW_FLOOR}
    assert transfer.stream.received >= 0.5 * WINDOW_FLOOR * path.seconds / path.rtt


def test_a_window_shrinks_when_the_path_gets_slow() -> None:
    fast, slow = Path(1.25e7, 0.04), Path(1.25e6, 0.04)
    transfer = Transfer(fast).run(2)
    assert transfer.stream.window >= fast.needed
    transfer.path = slow
    transfer.run(10)
    assert transfer.stream.window <= slow.formula(1.3) < fast.needed
