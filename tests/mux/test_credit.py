"""Windows and pools: nothing is lent twice, and a window finds the size that its path needs."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay import wire
from fastrelay.mux import credit
from fastrelay.mux.credit import RATE_SPAN, Meter, Pool, first_window, process_pool, step, tunnel_pool
from fastrelay.mux.stream import Stream
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
def test_a_step_is_a_quarter_or_64_kib(window: int) -> None:
    assert step(window) == min(window // 4, CREDIT_STEP)


@given(
    st.lists(st.tuples(st.floats(0, 10), st.integers(0, 1 << 34)), min_size=1, max_size=30),
    st.floats(0, 2),
    st.booleans(),
)
def test_a_window_never_leaves_its_bounds(steps: list[tuple[float, int]], min_rtt: float, alone: bool) -> None:
    meter = Meter(0, 0.0)
    window, consumed, now = WINDOW_FIRST, 0, 0.0
    for seconds, size in steps:
        now += seconds
        consumed += size
        window = meter.window(consumed, now, min_rtt, alone, window)
        assert WINDOW_FLOOR <= window <= WINDOW_MAX


def test_no_verdict_before_the_span_is_over() -> None:
    meter = Meter(0, 10.0)
    assert meter.window(10**9, 10.0 + RATE_SPAN * 0.9, 0.0001, True, 12345) == 12345
    assert meter.window(10**9, 10.0 + 0.0799, 0.04, True, 12345) == 12345
    assert meter.window(10**9, 10.0 + 0.0801, 0.04, True, 12345) == WINDOW_MAX


@given(st.floats(0.001, 1), st.booleans())
def test_while_the_rate_grows_the_window_is_not_what_limits_it(min_rtt: float, alone: bool) -> None:
    meter = Meter(0, 0.0)
    queue = credit._QUEUE_ALONE if alone else credit._QUEUE_SHARED
    fast, slow = credit._GROWING, credit._STEADY
    rate, consumed, now = 1e5, 0, 0.0
    for gain, factor in ((fast, 1.0), (fast, 1.2), (fast, 2.0), (slow, 1.0), (slow, 1.05), (fast, 1.2)):
        rate *= factor
        now += 3 * min_rtt + RATE_SPAN
        consumed += int(rate * (3 * min_rtt + RATE_SPAN))
        window = meter.window(consumed, now, min_rtt, alone, WINDOW_FIRST)
        assert window == pytest.approx(rate * (gain * min_rtt + queue) + CREDIT_STEP, rel=0.01)


def test_a_rate_that_falls_is_believed_slowly() -> None:
    meter = Meter(0, 0.0)
    first = meter.window(10**6, 1.0, 0.1, True, 0)
    idle = [meter.window(10**6, 1.0 + n, 0.1, True, 0) for n in (1, 2, 3)]
    expected = [1e6 * 0.9**n * (credit._STEADY * 0.1 + credit._QUEUE_ALONE) for n in (1, 2, 3)]
    assert [window - CREDIT_STEP for window in idle] == pytest.approx(expected, rel=0.01)
    assert first > idle[0]


def test_a_path_of_unknown_length_is_not_taken_for_a_short_one() -> None:
    meter = Meter(0, 0.0)
    assert meter.window(10_000, 1.0, 0.0, True, WINDOW_FIRST) == WINDOW_FIRST
    assert meter.window(20_000, 2.0, 0.02, True, WINDOW_FIRST) < WINDOW_FIRST


# --- whole paths -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Path:
    """Bytes a second, seconds there and back, seconds to simulate, and in how many RTT a window must have grown."""

    rate: float
    rtt: float
    seconds: float
    grown: float = 8

    @property
    def needed(self) -> float:
        return self.rate * self.rtt

    def formula(self, gain: float) -> float:
        """protocol.md 8.2, for a stream that is alone."""
        return self.rate * (gain * self.rtt + credit._QUEUE_ALONE) + CREDIT_STEP


PATHS = {
    "LAN, 10 Gbit/s, 0.2 ms": Path(1.25e9, 0.0002, 0.1),
    "LAN, 1 Gbit/s, 0.5 ms": Path(1.25e8, 0.0005, 0.3),
    "100 Mbit/s, 40 ms": Path(1.25e7, 0.04, 4),
    "20 Mbit/s, 80 ms": Path(2.5e6, 0.08, 6),
    "satellite, 50 Mbit/s, 600 ms": Path(6.25e6, 0.6, 60),  # long, for a window shrinks by one step in 2 RTT
}
ZEROS = memoryview(bytes(1 << 20))


def transfer(path: Path, side: Side, stream: Stream) -> list[tuple[float, int, int]]:
    """A sender that always has more, a link with a rate and a length, a socket that takes all: (seconds, received, window) at each step."""
    clock = side.clock
    start = clock.now
    tick = max(path.rtt / 40, 0.00005)
    under_way: list[tuple[float, int, str, int]] = []
    limit, sent, may_send, number = stream.recv_limit, stream.received, 0.0, 0
    log = []
    while clock.now < start + path.seconds:
        clock.now += tick
        while under_way and under_way[0][0] <= clock.now:
            _, _, what, value = heapq.heappop(under_way)
            if what == "PONG":
                side.feed(pair.pong(value.to_bytes(8, "big")))
            elif what == "WINDOW":
                limit = value
            else:
                side.session.now = clock.now
                while value:
                    size = min(value, len(ZEROS))
                    stream.receive(ZEROS[:size])
                    value -= size
        side.session.flush()
        for frame in side.sent():
            number += 1
            if frame.kind == Kind.WINDOW:
                limit_then = wire.WINDOW.unpack(frame.payload)[0]
                heapq.heappush(under_way, (clock.now + path.rtt / 2, number, "WINDOW", limit_then))
            elif frame.kind == Kind.PING:
                heapq.heappush(under_way, (clock.now + path.rtt, number, "PONG", int.from_bytes(frame.payload, "big")))
        may_send = min(may_send, 1.0) + path.rate * tick
        size = min(limit - sent, int(may_send))
        may_send -= size
        if size:
            number += 1
            sent += size
            heapq.heappush(under_way, (clock.now + path.rtt / 2, number, "DATA", size))
        log.append((clock.now - start, stream.received, stream.window))
        side.check()
    return log


def receiver(pool: int = pair.POOL) -> tuple[Side, Stream]:
    side = Side(Clock(), dialer=True, pool=pool)
    stream = side.must_open()
    side.feed(pair.accept(stream.id))
    stream.detach()  # consumed at once
    side.sent()
    return side, stream


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_window_grows_to_what_the_path_needs_and_no_further(path: Path) -> None:
    side, stream = receiver()
    log = transfer(path, side, stream)
    assert side.session.min_rtt == pytest.approx(path.rtt, rel=0.3)
    measured = side.session.min_rtt / path.rtt  # the clock here is coarse

    grown = next(seconds for seconds, _, window in log if window >= path.needed)
    assert grown <= path.grown * path.rtt
    settled = [window for seconds, _, window in log if seconds > path.seconds / 2]
    assert min(settled) >= path.needed
    assert max(window for _, _, window in log) <= max(WINDOW_FIRST, path.formula(credit._GROWING * measured) * 1.1)
    assert log[-1][2] <= path.formula(credit._STEADY * measured) * 1.1

    (begin, before, _), (end, after, _) = log[len(log) // 2], log[-1]
    assert (after - before) / (end - begin) >= 0.98 * path.rate, "the window must not be what limits the stream"


def test_an_empty_pool_keeps_a_window_small_but_not_still() -> None:
    path = PATHS["100 Mbit/s, 40 ms"]
    side, stream = receiver(pool=0)
    log = transfer(path, side, stream)
    assert {window for _, _, window in log} == {WINDOW_FLOOR}
    assert log[-1][1] >= 0.5 * WINDOW_FLOOR * path.seconds / path.rtt


def test_a_window_shrinks_when_the_path_gets_slow() -> None:
    side, stream = receiver()
    fast, slow = Path(1.25e7, 0.04, 2), Path(1.25e6, 0.04, 10)
    transfer(fast, side, stream)
    assert stream.window >= fast.needed
    transfer(slow, side, stream)
    assert stream.window <= slow.formula(1.3) < fast.needed
