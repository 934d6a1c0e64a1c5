"""The session: ids, limits, liveness, and what is owed. What is charged is in test_floods.py, whose turn it is in test_pace.py."""

from __future__ import annotations

import pytest

from fastrelay import wire
from fastrelay.errors import Code
from fastrelay.mux import floods, pace, session
from fastrelay.wire import DEAD_AFTER, HALF_OPEN_IDLE, PING_AFTER, WINDOW_FIRST, Kind, Settings
from tests.support import pair
from tests.support.pair import Frame, Pair, Side, client, relay

PIECE = bytes(wire.CREDIT_STEP)


def kinds(side: Side) -> list[int]:
    return [frame.kind for frame in side.sent()]


# --- ids ---------------------------------------------------------------------------------------------------------------


def test_the_dialer_opens_odd_ids_and_the_listener_even_ones() -> None:
    for side, ids in ((client(), [1, 3, 5]), (relay(), [2, 4, 6])):
        assert [side.must_open().id for _ in ids] == ids


@pytest.mark.parametrize("side", [relay(), client()], ids=["relay", "client"])
def test_open_with_the_wrong_parity(side: Side) -> None:
    assert side.refuses(pair.open_(1 if side.session.dialer else 2)) is Code.PROTOCOL


@pytest.mark.parametrize("number", [5, 3, 1])
def test_open_with_an_id_not_above_all_earlier_ones(number: int) -> None:
    side = relay()
    side.feed(pair.open_(5) + pair.reset(5))
    assert side.refuses(pair.open_(number)) is Code.PROTOCOL


def test_ids_may_be_skipped_and_are_then_over() -> None:
    side = relay()
    side.feed(pair.open_(2**32 - 1))
    side.feed(pair.window(3, 1) + pair.stop(3) + pair.reset(3))
    assert side.refuses(pair.data(3, b"x")) is Code.STREAM_STATE


@pytest.mark.parametrize("late", [pair.window(7, 1), pair.stop(7), pair.reset(7)], ids=["WINDOW", "STOP", "RESET"])
def test_the_three_late_frames_are_errors_for_an_id_that_was_never_opened(late: bytes) -> None:
    side = relay()
    side.feed(pair.open_(5))
    assert side.refuses(late) is Code.STREAM_STATE
    side = client()
    for _ in range(3):
        side.must_open()
    assert side.refuses(late) is Code.STREAM_STATE


def test_both_sides_open_at_the_same_time() -> None:
    both = Pair()
    for side in both.sides:
        for _ in range(3):
            side.must_open()
    both.pump()
    assert set(both.dialer.session.streams) == set(both.listener.session.streams) == {1, 2, 3, 4, 5, 6}


def test_ids_run_out_before_they_do() -> None:
    side = client()
    side.session._next_id = 2**32 * 3 // 4 + 1
    assert side.open() is not None
    assert side.open() is None


# --- how many streams --------------------------------------------------------------------------------------------------


def test_no_more_streams_than_the_other_side_takes() -> None:
    side = client(theirs=Settings(max_streams=2))
    stream = side.must_open()
    side.must_open()
    side.feed(pair.open_(2))  # theirs do not count
    assert side.open() is None
    side.feed(pair.reset(stream.id))
    assert side.open() is not None


def test_an_open_too_many_is_answered_with_limit_and_costs_nothing() -> None:
    side = client(max_streams=2)
    side.feed(pair.open_(2) + pair.open_(4))
    side.sent()
    side.feed(pair.open_(6))
    assert side.sent() == [Frame(Kind.RESET, 6, wire.CODE.pack(Code.LIMIT))]
    assert len(side.opens) == 2
    side.feed(pair.reset(6) + pair.reset(4))
    side.sent()
    side.feed(pair.open_(8))
    assert kinds(side) == [Kind.ACCEPT]
    side.check()


def test_1024_too_many_at_a_time_are_calm_and_one_more_is_not() -> None:
    side = client(max_streams=1)
    ids = range(2, 2 + 2 * 1025, 2)
    side.feed(b"".join(map(pair.open_, ids)))
    assert side.refuses(pair.open_(ids[-1] + 2)) is Code.CALM


def test_a_stream_kind_that_is_not_known() -> None:
    side = relay()
    side.feed(pair.open_(1, kind=9))
    assert side.sent() == [Frame(Kind.RESET, 1, wire.CODE.pack(Code.NO_SERVICE))]
    assert not side.opens


def test_streams_that_nobody_is_asked_about_are_told() -> None:
    side = client(max_streams=1)
    told: list[tuple[int, str, Code]] = []
    side.session.on_refused = lambda stream, request, code: told.append((stream.id, request.visitor, code))
    side.feed(pair.open_(2, kind=9) + pair.reset(2) + pair.open_(4) + pair.open_(6))
    side.session.goaway(Code.SHUTDOWN, "going down")
    side.feed(pair.open_(8))
    visitor = "192.0.2.9:51544"
    assert told == [(2, visitor, Code.NO_SERVICE), (6, visitor, Code.LIMIT), (8, visitor, Code.SHUTDOWN)]
    assert len(side.opens) == 1


def test_first_windows_shrink_as_streams_grow() -> None:
    side = client(theirs=Settings())
    limits = [side.must_open().window for _ in range(600)]
    assert limits[0] == limits[31] == WINDOW_FIRST
    assert limits[63] == 131072
    assert limits[-1] == wire.WINDOW_FLOOR
    side.check()


# --- ping and liveness -------------------------------------------------------------------------------------------------


def test_only_the_newest_ping_is_answered() -> None:
    side = relay()
    side.feed(b"".join(pair.ping(bytes((n,)) * 8) for n in range(10)))
    assert side.wakes == 1
    assert side.sent() == []
    side.session.flush()
    assert side.sent() == [Frame(Kind.PONG, 0, b"\x09" * 8)]
    side.session.flush()
    assert side.sent() == []


def test_silence_is_asked_about_and_then_it_is_death() -> None:
    side = relay()
    start = side.clock.now
    due = side.session.tick(start)
    assert due == start + PING_AFTER
    assert side.session.tick(start + PING_AFTER - 0.01) is not None
    assert kinds(side) == []
    pings = 0
    now: float | None = due
    while now is not None:
        assert now <= start + DEAD_AFTER
        last, now = now, side.session.tick(now)
        pings += kinds(side).count(Kind.PING)
    assert last == pytest.approx(start + DEAD_AFTER)
    assert 1 <= pings <= 3


@pytest.mark.parametrize("raw", [pair.pong(bytes(8)), b"\0"], ids=["a frame", "a byte"])
def test_any_byte_proves_life(raw: bytes) -> None:
    side = relay()
    side.clock.now += DEAD_AFTER - 1
    side.feed(raw)
    side.clock.now += PING_AFTER - 1
    due = side.session.tick(side.clock.now)
    assert due == side.clock.now + 1
    assert kinds(side) == []
    side.clock.now += DEAD_AFTER - PING_AFTER
    assert side.session.tick(side.clock.now) is not None
    assert kinds(side) == [Kind.PING]


def test_two_quiet_sessions_keep_each_other_alive() -> None:
    both = Pair()
    frames = 0
    for _ in range(600):
        both.clock.now += 1
        for side in both.sides:
            assert side.session.tick(both.clock.now) is not None
            frames += len(pair.frames(side.out))
        both.pump()
    assert frames <= 2 * 600 / PING_AFTER


def round_trip(side: Side, seconds: float) -> None:
    side.session.now = side.clock.now
    side.session.ping()
    *_, frame = side.sent()
    side.clock.now += seconds
    side.feed(pair.pong(frame.payload))


def test_a_pong_measures_the_path() -> None:
    side = relay()
    assert side.session.pace.min_rtt == 0
    for seconds, least in ((0.05, 0.05), (0.03, 0.03), (0.2, 0.03)):
        round_trip(side, seconds)
        assert side.session.pace.min_rtt == pytest.approx(least)
    side.clock.now += pace._RTT_MEMORY
    round_trip(side, 0.4)
    assert side.session.pace.min_rtt == pytest.approx(0.4), "the path has changed"


def test_a_pong_that_nobody_asked_for_measures_nothing() -> None:
    side = relay()
    side.session.ping()
    (old,) = side.sent()
    side.clock.now = side.session.now = side.clock.now + 1
    side.session.ping()
    (new,) = side.sent()
    side.feed(pair.pong(old.payload) + pair.pong(b"whatever"))
    assert side.session.pace.min_rtt == 0
    side.feed(pair.pong(new.payload) * 2)
    assert len(side.session.pace._rtts) == 1


def test_pings_that_measure_are_rare() -> None:
    side = relay()
    side.feed(pair.open_(1))
    for _ in range(1000):
        side.clock.now += 0.01
        side.feed(pair.data(1, bytes(70_000)))
    assert 1 <= kinds(side).count(Kind.PING) <= 10 / session._RTT_EVERY + 1


def test_an_answer_that_takes_long_counts_as_well() -> None:
    side = relay()
    side.feed(pair.open_(1))
    rtt = 1.5 * session._RTT_EVERY
    asked: list[tuple[float, bytes]] = []
    for _ in range(100):
        side.clock.now += 0.1
        answered = b"".join(pair.pong(payload) for when, payload in asked if when + rtt <= side.clock.now)
        asked = [(when, payload) for when, payload in asked if when + rtt > side.clock.now]
        side.feed(answered + pair.data(1, bytes(70_000)))
        side.session.flush()
        asked += [(side.clock.now, frame.payload) for frame in side.sent() if frame.kind == Kind.PING]
    assert side.session.pace.min_rtt == pytest.approx(rtt, abs=0.2)


def test_a_drained_path_is_measured_once() -> None:
    """Two RTT after windows began to shrink, however lately the path was measured before."""
    rtt, tick = 0.1, 0.01
    side = relay()
    side.feed(pair.open_(1))
    round_trip(side, 1.1 * rtt)
    round_trip(side, rtt)
    tunnel, stream = side.session.pace, side.session.streams[1]

    def pings(seconds: float) -> list[float]:
        """When PINGs were sent while data came; nobody answers them."""
        found = []
        end = side.clock.now + seconds
        while side.clock.now < end:
            side.clock.now += tick
            if size := min(70_000, stream.recv_limit - stream.received):
                side.feed(pair.data(1, bytes(size)))
            side.session.flush()
            found += [side.clock.now for frame in side.sent() if frame.kind == Kind.PING]
        return found

    pings(1.0)
    side.clock.now += pace._DRAIN_EVERY - 1.0
    begin = side.clock.now + tick
    asked = pings(4 * rtt)
    assert tunnel.ping_after() == pytest.approx(begin + 2 * rtt)
    drained = begin + 2 * rtt - tick / 2
    assert any(when < drained for when in asked), "the usual one came in between"
    assert [when for when in asked if when >= drained] == pytest.approx([begin + 2 * rtt], abs=3 * tick)


# --- half-open streams -------------------------------------------------------------------------------------------------


def watch(side: Side, seconds: float) -> None:
    """Time passes, with a tick a second; the other side is alive."""
    stop = side.clock.now + seconds
    while side.clock.now < stop:
        side.clock.now += 1
        side.feed(b"")
        assert side.session.tick(side.clock.now) is not None


def test_a_half_open_stream_on_which_nothing_moves_is_reset() -> None:
    side = relay()
    stream = side.must_open()
    side.feed(pair.accept(stream.id))
    stream.fin()
    side.sent()
    watch(side, HALF_OPEN_IDLE - 1)
    assert kinds(side) == []
    watch(side, PING_AFTER + 1)
    assert side.sent() == [Frame(Kind.RESET, stream.id, wire.CODE.pack(Code.TIMEOUT))]
    assert side.taps[stream.id].code is Code.TIMEOUT
    side.feed(pair.reset(stream.id))
    assert not side.session.streams and not side.session._half_open


@pytest.mark.parametrize("direction", ["in", "out", "drain"])
def test_any_byte_starts_the_time_anew(direction: str) -> None:
    side = relay()
    side.holds = True
    stream = side.must_open(held=True)
    side.feed(pair.accept(stream.id))
    if direction == "out":
        side.feed(pair.fin(stream.id))
    else:
        side.feed(pair.data(stream.id, bytes(100)))
        stream.fin()
    for _ in range(20):
        watch(side, HALF_OPEN_IDLE - 20)
        if direction == "in":
            side.feed(pair.data(stream.id, b"x"))
        elif direction == "out":
            assert side.send(stream, b"x")
        else:
            side.taps[stream.id].release(1)
    assert side.taps[stream.id].code is None
    watch(side, HALF_OPEN_IDLE + PING_AFTER)
    assert side.taps[stream.id].code is Code.TIMEOUT
    side.check()


def test_an_open_stream_has_no_limit() -> None:
    side = relay()
    stream = side.must_open()
    side.feed(pair.accept(stream.id))
    watch(side, 10 * HALF_OPEN_IDLE)
    assert side.taps[stream.id].code is None
    assert not side.session._half_open


def test_what_a_timed_out_stream_has_queued_may_drain() -> None:
    side = relay()
    stream = side.must_open(held=True)
    side.feed(pair.accept(stream.id) + pair.data(stream.id, bytes(1000)))
    stream.fin()
    watch(side, HALF_OPEN_IDLE + PING_AFTER)
    side.feed(pair.reset(stream.id))
    side.check()
    assert side.pool.used > 0
    side.taps[stream.id].release()
    assert side.pool.used == 0


# --- GOAWAY and the end ------------------------------------------------------------------------------------------------


def test_goaway_names_the_highest_stream_taken_up() -> None:
    side = relay()
    side.feed(pair.open_(1) + pair.open_(7))
    side.sent()
    side.session.goaway(Code.SHUTDOWN, "restarting")
    assert side.sent() == [Frame(Kind.GOAWAY, 0, wire.pack_goaway(7, Code.SHUTDOWN, "restarting"))]


def test_after_goaway_nothing_is_opened_and_what_exists_goes_on() -> None:
    both = Pair()
    stream = both.dialer.must_open()
    both.pump()
    both.listener.session.goaway(Code.SHUTDOWN, "restarting")
    late = both.dialer.must_open()  # before it has heard
    assert both.listener.open() is None
    both.pump()
    assert both.dialer.goaways == [(Code.SHUTDOWN, "restarting")]
    assert both.dialer.taps[late.id].code is Code.SHUTDOWN
    assert both.dialer.open() is None
    both.dialer.send(stream, b"still here")
    both.pump()
    assert both.listener.taps[stream.id].received == b"still here"
    assert both.listener.idles == 0
    stream.fin()
    both.listener.session.streams[stream.id].fin()
    both.pump()
    assert both.listener.idles == both.dialer.idles == 1


def test_lost_streams_are_told_once_and_give_everything_back() -> None:
    side = relay()
    side.holds = True
    for n in range(5):
        side.feed(pair.open_(2 * n + 1) + pair.data(2 * n + 1, bytes(100)))
    side.feed(pair.fin(1) + pair.reset(3))
    half = side.session.streams[5]
    half.stop()
    side.session.streams[7].reset(Code.CANCEL)
    side.lose()
    assert [tap.lost for tap in side.taps.values()] == [True, False, True, False, True]
    assert side.session.streams == {}
    assert side.open() is None
    side.session.flush()
    side.feed(pair.open_(11) + pair.ping())
    assert side.sent() == []
    side.taps[3].release()  # it was reset before, and drains
    assert side.pool.used == 0
    side.check()
    side.session.lose()


def test_frames_of_the_handshake_are_over() -> None:
    for kind in (Kind.HELLO, Kind.AUTH, Kind.WELCOME):
        assert relay().refuses(wire.frame(kind, 0, b"{}")) is Code.PROTOCOL


def test_services_are_asked_for_by_clients_and_given_by_relays() -> None:
    both = Pair()
    both.dialer.session.expose(wire.Expose(service=1, name="tcp-22", port=20022))
    both.pump()
    assert both.listener.asked == [wire.Expose(service=1, name="tcp-22", port=20022)]
    both.listener.session.exposed(wire.Exposed(service=1, port=20022))
    both.pump()
    assert both.dialer.answers == [wire.Exposed(service=1, port=20022)]
    exposed = wire.frame(Kind.EXPOSED, 0, wire.pack_json(wire.Exposed(service=1, port=20022)))
    assert relay().refuses(exposed) is Code.PROTOCOL
    assert client().refuses(pair.expose(1)) is Code.PROTOCOL
    assert relay().refuses(wire.frame(Kind.EXPOSE, 0, b"{")) is Code.PROTOCOL


def test_pins_are_told_by_relays() -> None:
    both = Pair()
    pins = (b"1" * 32, b"2" * 32)
    both.listener.session.tell_pins(pins)
    both.listener.session.tell_pins(pins[:1])
    both.pump()
    assert both.dialer.pins == [pins, pins[:1]]
    told = wire.frame(Kind.PINS, 0, b'{"pins":[]}')
    assert relay().refuses(told) is Code.PROTOCOL
    assert client().refuses(wire.frame(Kind.PINS, 0, b'{"pins":["x"]}')) is Code.PROTOCOL
    assert client().refuses(told * floods.PINS[1]) is None
    assert client().refuses(told * (floods.PINS[1] + 1)) is Code.CALM


@pytest.mark.parametrize("stream", [0, 1, 2, 3])
def test_optional_frames_are_skipped_whatever_their_stream(stream: int) -> None:
    side = relay()
    side.feed(pair.open_(1))
    side.feed(wire.frame(0x80, stream, b"??") + wire.frame(0xFF, stream, bytes(wire.MAX_CONTROL)))
    assert side.refuses(wire.frame(0x80, stream, bytes(wire.MAX_CONTROL + 1))) is Code.FRAME_SIZE


# --- what is owed ------------------------------------------------------------------------------------------------------


def test_10000_refills_while_blocked_are_one_frame_for_each_stream() -> None:
    side = relay()
    side.feed(pair.open_(1) + pair.open_(3))
    side.sent()
    for stream in side.session.streams.values():
        stream.detach()  # what arrives is consumed at once, and not kept by the test
    for _ in range(10_000):
        for stream in side.session.streams.values():
            stream.receive(memoryview(PIECE))
    assert side.wakes == 1
    assert kinds(side) == [Kind.PING]  # to measure the path, once in 2 s
    side.session.flush()
    frames = side.sent()
    assert [(frame.kind, frame.stream) for frame in frames] == [(Kind.WINDOW, 1), (Kind.WINDOW, 3)]
    assert wire.WINDOW.unpack(frames[0].payload)[1] == 10_000 * len(PIECE)
    side.feed(pair.data(1, PIECE))
    assert side.wakes == 2


def test_credit_for_a_half_that_has_ended_meanwhile_is_not_sent() -> None:
    side = relay()
    side.feed(pair.open_(1) + pair.open_(3) + pair.data(1, PIECE) + pair.data(3, PIECE))
    side.sent()
    side.feed(pair.fin(1))
    side.session.streams[3].stop()
    side.session.flush()
    assert kinds(side) == [Kind.STOP]
