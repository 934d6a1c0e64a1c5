"""What a tunnel knows of its path: whose turn it is, what may be under way at once, and how long the path is without its queue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay import wire
from fastrelay.mux import pace
from fastrelay.mux.pace import ALONE_AFTER, LEAST, SHARED_FRAME, UNSENT_FIRST, UNSENT_MOST, Pace
from fastrelay.wire import MAX_DATA, Settings
from tests.support import pair
from tests.support.pair import Side, client, relay

PIECE = bytes(wire.CREDIT_STEP)
RTT = 0.1
SOME_RTT = st.floats(0.001, 2.0)


def alone(side: Side) -> bool:
    return side.session.pace.alone


def drains(tunnel: Pace, now: float) -> bool:
    return tunnel.gain(now) == pace._DRAIN


def known(rtt: float) -> Pace:
    """A tunnel whose path has shown its length at the time 0."""
    tunnel = Pace(MAX_DATA)
    tunnel.measured(rtt, 0.0)
    tunnel.measured(rtt, 0.0)
    return tunnel


def draining(rtt: float = RTT) -> tuple[Pace, float]:
    """A tunnel that has just begun to drain, and when it did."""
    tunnel = known(rtt)
    begin = pace._DRAIN_EVERY + 0.001
    assert drains(tunnel, begin)
    return tunnel, begin


# --- turns -------------------------------------------------------------------------------------------------------------


def test_a_stream_alone_uses_large_frames_and_two_share() -> None:
    side = relay()
    first, second = side.must_open(), side.must_open()
    side.feed(pair.accept(first.id, 1 << 30) + pair.accept(second.id, 1 << 30))
    assert first.room() == MAX_DATA
    assert side.send(first, bytes(MAX_DATA)) == MAX_DATA
    assert alone(side)
    side.send(second, b"key press")
    side.feed(b"")
    assert not alone(side)
    assert first.room() == second.room() == SHARED_FRAME
    side.clock.now += ALONE_AFTER * 0.9
    side.feed(b"")
    assert first.room() == SHARED_FRAME
    side.clock.now += ALONE_AFTER * 0.2
    side.feed(b"")
    assert alone(side)
    assert first.room() == MAX_DATA


def test_what_arrives_counts_as_a_turn() -> None:
    side = relay()
    side.feed(pair.open_(1) + pair.open_(3))
    for stream, expected in ((1, True), (1, True), (3, False)):  # as much as credit is returned for
        side.feed(pair.data(stream, PIECE))
        side.feed(b"")
        assert alone(side) is expected


def test_a_stream_that_is_over_is_no_company() -> None:
    side = relay()
    for n in range(10):  # one after the other
        number = 2 * n + 1
        side.feed(pair.open_(number) + pair.data(number, b"request"))
        side.send(side.session.streams[number], b"answer")
        side.session.streams[number].fin()
        side.feed(pair.fin(number))
    side.feed(b"")
    assert alone(side)


def test_small_frames_of_the_peer_stay_small() -> None:
    side = client(theirs=Settings(max_data=wire.MIN_MAX_DATA))
    first, second = side.must_open(), side.must_open()
    side.send(first, b"x")
    side.send(second, b"x")
    assert first.room() == wire.MIN_MAX_DATA


# --- what the path takes -----------------------------------------------------------------------------------------------


@given(
    st.integers(wire.MIN_MAX_DATA, wire.MAX_MAX_DATA),
    st.lists(st.tuples(st.integers(0, 1 << 32), st.floats(0.01, 0.5), st.booleans()), min_size=1, max_size=20),
)
def test_frames_and_what_is_unsent_keep_their_bounds(largest: int, steps: list[tuple[int, float, bool]]) -> None:
    tunnel = Pace(largest)
    now = 0.0
    for size, seconds, shared in steps:
        now += seconds
        tunnel.switches += shared
        tunnel.look(now)
        before = tunnel.unsent
        assert tunnel.took(size, seconds) is (tunnel.unsent != before)
        assert LEAST <= tunnel.unsent <= UNSENT_MOST
        assert LEAST <= tunnel.cap <= largest
        assert tunnel.alone or tunnel.cap <= SHARED_FRAME


@given(st.lists(st.tuples(st.integers(0, 1 << 32), st.floats(0.01, 0.5)), min_size=1, max_size=20))
def test_what_waits_is_bounded_in_time(steps: list[tuple[int, float]]) -> None:
    tunnel = Pace(MAX_DATA)
    for size, seconds in steps:
        tunnel.took(size, seconds)
        rate = size / seconds
        wanted = max(LEAST, min(UNSENT_MOST, rate * pace._UNSENT_TIME))
        assert tunnel.unsent == pytest.approx(wanted, rel=0.34, abs=1), "a quarter more or less is worth no system call"
        assert tunnel.cap <= max(LEAST, rate * pace._FRAME_TIME * 1.34)


@given(st.floats(1e5, 2e9))
def test_both_follow_the_rate(rate: float) -> None:
    tunnel = Pace(MAX_DATA)
    for seconds in (0.01, 0.1, 0.4):  # from either side of it
        tunnel.took(int(rate * 2 * seconds), seconds)
        tunnel.took(int(rate * seconds), seconds)
    assert tunnel.unsent == pytest.approx(max(LEAST, min(UNSENT_MOST, rate * pace._UNSENT_TIME)), rel=0.34, abs=1)
    assert tunnel.cap == pytest.approx(max(LEAST, min(MAX_DATA, rate * pace._FRAME_TIME)), rel=0.34, abs=1)


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.0, 1.1, 1.2])
def test_small_changes_cost_no_system_call(factor: float) -> None:
    tunnel = Pace(MAX_DATA)
    rate = 10 * UNSENT_FIRST / pace._UNSENT_TIME
    assert tunnel.took(int(rate), 1.0)
    unsent = tunnel.unsent
    assert unsent == pytest.approx(10 * UNSENT_FIRST, rel=0.01)
    assert not tunnel.took(int(rate * factor), 1.0)
    assert tunnel.unsent == unsent
    assert tunnel.took(int(rate * 2), 1.0)
    assert tunnel.took(int(rate / 2), 1.0)


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.2])
def test_the_first_figure_bounds_frames_though_what_is_unsent_fits_it(factor: float) -> None:
    tunnel = Pace(MAX_DATA)
    rate = factor * UNSENT_FIRST / pace._UNSENT_TIME
    tunnel.took(int(rate), 1.0)
    assert tunnel.cap <= rate * pace._FRAME_TIME * 1.34


def test_frames_stay_small_in_company_whatever_the_path_takes() -> None:
    tunnel = Pace(MAX_DATA)
    tunnel.switches += 1
    tunnel.look(0.0)
    tunnel.took(1 << 40, 1.0)
    assert tunnel.cap == SHARED_FRAME
    tunnel.look(ALONE_AFTER * 1.1)
    assert tunnel.cap == MAX_DATA
    tunnel.took(1 << 10, 1.0)
    assert tunnel.cap == LEAST
    tunnel.switches += 1
    tunnel.look(1.0)
    assert tunnel.cap == LEAST


# --- how long the path is ----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0.0001, 3)), min_size=1, max_size=40))
def test_min_rtt_is_the_least_of_late(steps: list[tuple[float, float]]) -> None:
    tunnel = Pace(MAX_DATA)
    now = 0.0
    seen: list[tuple[float, float]] = []
    for seconds, rtt in steps:
        now += seconds
        seen.append((now, rtt))
        tunnel.measured(rtt, now)
        assert tunnel.min_rtt == min(rtt for when, rtt in seen if now - when <= pace._RTT_MEMORY)


@given(st.floats(0.0001, 1), st.floats(1.0, 20.0), st.floats(0.1, 10.0))
def test_a_path_that_got_longer_is_believed(rtt: float, factor: float, every: float) -> None:
    tunnel = Pace(MAX_DATA)
    changed = 100.0
    for n in range(int(changed / every) + 1):
        tunnel.measured(rtt, n * every)
    now = changed
    while now <= changed + pace._RTT_MEMORY + every:
        now += every
        tunnel.gain(now)
        tunnel.measured(rtt * factor, now)
    assert tunnel.min_rtt == rtt * factor


def test_a_path_of_unknown_length_is_not_drained() -> None:
    tunnel = Pace(MAX_DATA)
    assert tunnel.min_rtt == 0
    for now in (0.0, 1e3, 1e6):
        assert tunnel.gain(now) == pace.STEADY
        assert tunnel.ping_after() == 0


# --- gain --------------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.floats(0, 15), st.sampled_from(["gain", "measured", "lost"]), st.floats(0.0001, 2)), max_size=60
    )
)
def test_a_drain_ends_and_leaves_time_until_the_next(steps: list[tuple[float, str, float]]) -> None:
    tunnel = Pace(MAX_DATA)
    now = 1.0
    begin: float | None = None
    most = 0.0  # how long this drain may last
    ended = -1e9
    for seconds, event, rtt in steps:
        now += seconds
        if event == "measured":
            tunnel.measured(rtt, now)
        elif event == "lost":
            tunnel.lost(now)
        gain = tunnel.gain(now)
        assert gain in (pace._DRAIN, pace.STEADY, pace._LOSSY)
        assert tunnel.gain(now) == gain, "asking twice changes nothing"
        if gain == pace._DRAIN:
            if begin is None:
                assert now - ended >= pace._DRAIN_EVERY
                begin, most = now, 4 * tunnel.min_rtt
                assert most
            assert now < begin + most
            assert begin < tunnel.ping_after() < begin + most
        else:
            if begin is not None:
                begin, ended = None, now
            assert tunnel.ping_after() == 0


def test_the_first_answer_is_not_believed_for_long() -> None:
    """It met a tunnel that was being made: the first window that no longer grows lets the path be measured anew."""
    tunnel = Pace(MAX_DATA)
    tunnel.measured(RTT, 1.0)
    assert drains(tunnel, 1.1)
    tunnel = known(RTT)
    assert tunnel.gain(1.1) == pace.STEADY


@given(SOME_RTT, st.floats(pace.STEADY * 1.05, 5.0))
def test_a_path_that_seems_longer_for_a_while_is_drained(rtt: float, factor: float) -> None:
    tunnel = known(rtt)
    for now in range(1, int(pace._DRAIN_EVERY)):
        tunnel.measured(rtt * factor, now)
        assert tunnel.gain(now) == pace.STEADY
    assert drains(tunnel, pace._DRAIN_EVERY + 0.001)


@given(SOME_RTT, st.lists(st.floats(0.1, pace._DRAIN_EVERY), max_size=40))
def test_a_path_that_shows_its_length_is_not_drained(rtt: float, pauses: list[float]) -> None:
    tunnel = known(rtt)
    now = 0.0
    for pause in pauses:
        now += pause
        assert tunnel.gain(now) == pace.STEADY
        tunnel.measured(rtt, now)


@given(SOME_RTT, st.lists(st.floats(1, 1.03), min_size=20, max_size=60))
def test_no_two_answers_take_the_same_time(rtt: float, factors: list[float]) -> None:
    """What differs by less than the queue of a full window does not hide the path's length: a drain for it would cost rate for nothing."""
    tunnel = known(rtt)
    for n, factor in enumerate(factors, 1):
        tunnel.measured(rtt * factor, 2.0 * n)
        assert tunnel.gain(2.0 * n) == pace.STEADY


@given(SOME_RTT, st.floats(-1, 1.9), st.floats(0, 1))
def test_what_was_asked_before_the_queue_is_gone_ends_no_drain(rtt: float, turn: float, late: float) -> None:
    """Such a PING measures the queue. On a busy tunnel one is under way more often than not when a drain begins."""
    tunnel, begin = draining(rtt)
    asked = begin + turn * rtt
    soonest = asked + pace.STEADY * 1.05 * rtt  # behind the usual queue
    answered = soonest + late * (begin + 3.9 * rtt - soonest)
    tunnel.measured(answered - asked, answered)
    assert drains(tunnel, answered)


@given(SOME_RTT, st.floats(0, 0.9), st.floats(1, 1.09))
def test_what_was_asked_of_the_empty_path_ends_a_drain(rtt: float, late: float, longer: float) -> None:
    tunnel, _ = draining(rtt)
    asked = tunnel.ping_after() + late * rtt
    answered = asked + rtt * longer
    assert drains(tunnel, asked)
    tunnel.measured(answered - asked, answered)
    assert not drains(tunnel, answered)
    assert tunnel.ping_after() == 0
    assert not drains(tunnel, answered + pace._DRAIN_EVERY * 0.99)
    assert drains(tunnel, answered + pace._DRAIN_EVERY * 1.01)


def test_a_drain_without_an_answer_ends_as_well() -> None:
    tunnel, begin = draining()
    assert drains(tunnel, begin + 3.99 * RTT)
    assert not drains(tunnel, begin + 4.01 * RTT)
    assert not drains(tunnel, begin + 4.01 * RTT + pace._DRAIN_EVERY * 0.99)
    assert drains(tunnel, begin + 4.01 * RTT + pace._DRAIN_EVERY * 1.01)


def test_windows_are_larger_for_a_while_after_a_loss() -> None:
    tunnel = Pace(MAX_DATA)
    assert tunnel.gain(1.0) == pace.STEADY
    tunnel.lost(1.0)
    assert tunnel.gain(1.0) == pace._LOSSY > pace.STEADY
    tunnel.lost(3.0)
    assert tunnel.gain(3.0 + pace._LOSSY_FOR * 0.99) == pace._LOSSY
    assert tunnel.gain(3.0 + pace._LOSSY_FOR * 1.01) == pace.STEADY


def test_a_loss_does_not_hide_the_path() -> None:
    tunnel, begin = draining()
    tunnel.lost(begin)
    assert drains(tunnel, begin)
    assert tunnel.gain(begin + 4.01 * RTT) == pace._LOSSY
