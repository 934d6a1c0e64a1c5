"""One stream: early data, credit, ends, and its share of the pool. The states by themselves are in test_transitions.py."""

from __future__ import annotations

import pytest

from fastrelay import wire
from fastrelay.errors import Code
from fastrelay.mux.credit import step
from fastrelay.mux.stream import Recv, Send, Stream
from fastrelay.wire import EARLY, MAX_OFFSET, WINDOW_FIRST, WINDOW_FLOOR, Kind, Settings
from tests.support import pair
from tests.support.pair import Clock, Frame, Side, Tap

ID = 1
KIB = 1024


def opener(*, early: int = EARLY, held: bool = False) -> tuple[Side, Stream, Tap]:
    """A client that has opened a stream; OPEN is sent and nothing has come back."""
    side = Side(Clock(), dialer=True, theirs=Settings(early=early))
    stream = side.must_open(held=held)
    side.sent()
    return side, stream, side.taps[ID]


def acceptor(*, early: int = EARLY, accepts: bool = True, held: bool = False) -> tuple[Side, Stream, Tap]:
    """A relay that was sent OPEN with a limit of 100,000; the frames of the answer are taken away."""
    side = Side(Clock(), dialer=False, ours=Settings(early=early))
    side.accepts = accepts
    side.holds = held
    side.feed(pair.open_(ID, 100_000))
    side.sent()
    return side, side.session.streams[ID], side.taps[ID]


def windows(side: Side) -> list[tuple[int, int]]:
    """The (limit, consumed) of the WINDOW frames that are due."""
    side.session.flush()
    return [wire.WINDOW.unpack(frame.payload) for frame in side.sent() if frame.kind == Kind.WINDOW]


# --- opening -----------------------------------------------------------------------------------------------------------


def test_open_names_service_visitor_and_the_first_window() -> None:
    side = Side(Clock(), dialer=True)
    stream = side.open(service=7, visitor="[2001:db8::1]:443")
    assert stream is not None
    (frame,) = side.sent()
    request = wire.unpack_open(frame.payload)
    assert (frame.kind, frame.stream) == (Kind.OPEN, stream.id)
    assert request == wire.Open(0, WINDOW_FIRST, 7, "[2001:db8::1]:443")
    assert stream.window == WINDOW_FIRST


def test_early_data_up_to_the_setting_then_what_accept_says() -> None:
    side, stream, tap = opener(early=10)
    assert side.send_all(stream, b"0123456789ab") == 10
    assert stream.room() == 0
    side.feed(pair.accept(ID, 12))
    assert tap.rooms == 1
    assert side.send_all(stream, b"abc") == 2
    assert [frame.payload for frame in side.sent()] == [b"0123456789", b"ab"]


def test_no_early_data_when_the_acceptor_wants_none() -> None:
    side, stream, tap = opener(early=0)
    assert stream.room() == 0
    side.feed(pair.accept(ID, 5))
    assert (tap.rooms, stream.room()) == (1, 5)


def test_room_is_told_only_when_there_was_none() -> None:
    side, stream, tap = opener()
    side.send(stream, b"x")
    side.feed(pair.accept(ID, EARLY + 1) + pair.window(ID, EARLY + 2))
    assert tap.rooms == 0
    side.send_all(stream, bytes(EARLY + 2))
    side.feed(pair.window(ID, EARLY + 3, EARLY))
    assert tap.rooms == 1


def test_data_before_accept_is_kept_by_the_outlet_and_bounded() -> None:
    side, stream, tap = acceptor(early=100, accepts=False, held=True)
    side.feed(pair.data(ID, b"x" * 100))
    assert (stream.queued, bytes(tap.received)) == (100, b"x" * 100)
    assert stream.room() == 0, "the acceptor sends nothing before ACCEPT"
    assert side.refuses(pair.data(ID, b"y")) is Code.FLOW_CONTROL


def test_accept_names_what_the_window_allows_beyond_the_early_data() -> None:
    side, stream, tap = acceptor(early=100, accepts=False, held=True)
    side.feed(pair.data(ID, b"x" * 100))
    stream.accept()
    assert side.sent() == [Frame(Kind.ACCEPT, ID, wire.LIMIT.pack(WINDOW_FIRST))]
    tap.release()
    assert windows(side) == []
    side.check()


def test_accept_never_names_less_than_was_allowed_early() -> None:
    side = Side(Clock(), dialer=False, ours=Settings(early=wire.MAX_EARLY))
    side.feed(pair.open_(ID))
    assert side.sent() == [Frame(Kind.ACCEPT, ID, wire.LIMIT.pack(wire.MAX_EARLY))]
    side.feed(pair.data(ID, bytes(wire.MAX_DATA)))
    ((limit, consumed),) = windows(side)
    assert (limit, consumed) == (wire.MAX_DATA + WINDOW_FIRST, wire.MAX_DATA)
    side.check()


def test_a_half_that_ended_before_accept_stays_ended() -> None:
    side, stream, tap = acceptor(accepts=False)
    side.feed(pair.fin(ID, b"all of it"))
    stream.accept()
    assert side.sent() == [Frame(Kind.ACCEPT, ID, wire.LIMIT.pack(9))]
    assert side.refuses(pair.data(ID, b"more")) is Code.STREAM_STATE
    assert (bytes(tap.received), tap.fin) == (b"all of it", True)


def test_accept_crosses_the_openers_reset() -> None:
    """The acceptor had begun to send: what OPEN allowed is thrown away, more is still an error."""
    side, stream, _ = opener()
    stream.reset(Code.CANCEL)
    assert side.sent() == [Frame(Kind.RESET, ID, wire.CODE.pack(Code.CANCEL))]
    side.feed(pair.accept(ID) + pair.data(ID, bytes(WINDOW_FIRST)) + pair.window(ID, 200_000))
    assert stream.recv is Recv.DRAIN
    assert not side.taps[ID].received
    assert windows(side) == []
    assert side.refuses(pair.data(ID, b"x")) is Code.FLOW_CONTROL
    side.check()


def test_accept_with_a_limit_that_cannot_be() -> None:
    side, stream, _ = opener()
    assert side.refuses(pair.accept(ID, MAX_OFFSET + 1)) is Code.FLOW_CONTROL
    assert stream.send_limit <= MAX_OFFSET


# --- sending -----------------------------------------------------------------------------------------------------------


def test_seal_makes_a_frame_in_place() -> None:
    _, stream, _ = opener()
    slab = memoryview(bytearray(8) + b"hello and more")
    frame = stream.seal(slab, 5)
    assert frame.obj is slab.obj
    assert bytes(frame) == pair.data(ID, b"hello")
    assert stream.sent == 5


def test_room_is_bounded_by_the_largest_frame_of_the_peer() -> None:
    side = Side(Clock(), dialer=True, theirs=Settings(max_data=wire.MIN_MAX_DATA))
    assert side.must_open().room() == wire.MIN_MAX_DATA


def test_limits_never_fall() -> None:
    side, stream, _ = opener()
    side.feed(pair.accept(ID, 200_000) + pair.window(ID, 300_000) + pair.window(ID, 250_000))
    assert stream.send_limit == 300_000


def test_a_window_that_cannot_be() -> None:
    side, stream, _ = opener()
    side.feed(pair.window(ID, MAX_OFFSET))
    assert stream.send_limit == MAX_OFFSET
    assert side.refuses(pair.window(ID, MAX_OFFSET + 1)) is Code.FLOW_CONTROL


def test_consumed_is_never_more_than_was_sent() -> None:
    side, stream, _ = opener()
    side.send(stream, b"12345")
    side.feed(pair.window(ID, 100_000, 5))
    assert side.refuses(pair.window(ID, 100_001, 6)) is Code.PROTOCOL


@pytest.mark.parametrize("end", ["fin", "STOP", "reset", "RESET"])
def test_after_the_end_there_is_no_room_for_anybody(end: str) -> None:
    side, stream, tap = opener()
    side.feed(pair.accept(ID))
    side.send(stream, b"12345")
    match end:
        case "fin":
            stream.fin()
        case "STOP":
            side.feed(pair.stop(ID))
        case "reset":
            stream.reset(Code.CANCEL)
        case _:
            side.feed(pair.reset(ID))
    side.feed(pair.window(ID, 200_000, 5))
    assert (stream.room(), stream.send_limit, stream.sent, tap.rooms) == (0, 5, 5, 0)


def test_fin_is_sent_once() -> None:
    side, stream, _ = opener()
    stream.fin()
    stream.fin()
    assert side.sent() == [Frame(Kind.FIN, ID, b"")]
    assert stream.room() == 0


def test_stop_from_the_other_side_ends_the_half_and_the_other_goes_on() -> None:
    side, stream, tap = opener()
    side.feed(pair.accept(ID) + pair.stop(ID))
    assert side.sent() == [Frame(Kind.TRUNC, ID, b"")]
    assert (tap.stopped, stream.room(), stream.send) == (True, 0, Send.ENDED)
    stream.fin()
    side.feed(pair.data(ID, b"still heard") + pair.window(ID, 200_000) + pair.fin(ID))
    assert (bytes(tap.received), tap.fin, side.sent()) == (b"still heard", True, [])
    assert not side.session.streams


# --- receiving ---------------------------------------------------------------------------------------------------------


def test_data_up_to_the_limit_and_not_a_byte_more() -> None:
    side, _, _ = acceptor(held=True)
    side.feed(pair.data(ID, bytes(WINDOW_FIRST)))
    assert side.refuses(pair.data(ID, b"x")) is Code.FLOW_CONTROL


def test_a_frame_beyond_the_limit_delivers_nothing() -> None:
    side, _, tap = acceptor(held=True)
    assert side.refuses(pair.data(ID, bytes(WINDOW_FIRST + 1))) is Code.FLOW_CONTROL
    assert not tap.received


@pytest.mark.parametrize("end", [pair.fin(ID), pair.fin(ID, b"z"), pair.trunc(ID)], ids=["FIN", "FIN+z", "TRUNC"])
@pytest.mark.parametrize(
    "late", [pair.data(ID, b"x"), pair.data(ID, b""), pair.fin(ID), pair.fin(ID, b"x"), pair.trunc(ID)]
)
def test_the_limit_is_frozen_where_the_half_ended(end: bytes, late: bytes) -> None:
    side, stream, _ = opener()
    side.feed(pair.accept(ID))
    stream.stop()  # TRUNC is asked for, so the stream lives on
    side.feed(end)
    assert stream.recv_limit == stream.received
    assert side.refuses(late) is Code.STREAM_STATE


def test_a_half_that_was_not_accepted_sends_nothing() -> None:
    for raw in (pair.data(ID, b"x"), pair.data(ID, b""), pair.fin(ID), pair.fin(ID, b"x"), pair.trunc(ID)):
        side, _, tap = opener()
        assert side.refuses(raw) is Code.STREAM_STATE
        assert not tap.received and not tap.fin


def test_stop_throws_away_what_still_comes_and_counts_it() -> None:
    side, stream, tap = acceptor()
    stream.stop(Code.CANCEL)
    assert side.sent() == [Frame(Kind.STOP, ID, wire.CODE.pack(Code.CANCEL))]
    stream.stop()
    side.feed(pair.data(ID, bytes(WINDOW_FIRST)))
    assert windows(side) == [], "no credit for what nobody wants"
    assert side.refuses(pair.data(ID, b"x")) is Code.FLOW_CONTROL
    assert not tap.received


@pytest.mark.parametrize("end", [pair.trunc(ID), pair.fin(ID)], ids=["TRUNC", "FIN"])
def test_the_end_of_a_stopped_half_is_not_told_as_a_clean_one(end: bytes) -> None:
    side, stream, tap = acceptor()
    stream.stop()
    side.feed(pair.data(ID, b"thrown away") + end)
    assert (stream.recv, tap.fin, tap.code, bytes(tap.received)) == (Recv.ENDED, False, None, b"")
    assert side.send(stream, b"the other direction goes on") > 0


def test_trunc_that_nobody_asked_for_resets_the_stream() -> None:
    side, stream, tap = acceptor(held=True)
    side.feed(pair.data(ID, b"incomplete") + pair.trunc(ID))
    assert side.sent() == [Frame(Kind.RESET, ID, wire.CODE.pack(Code.CANCEL))]
    assert (tap.code, tap.fin, stream.ended) == (Code.CANCEL, False, True)
    side.check()  # what is queued still counts
    assert side.pool.used > 0
    tap.release()
    assert side.pool.used == 0


def test_trunc_unasked_at_the_end_of_the_other_half() -> None:
    side, stream, tap = acceptor(held=True)
    stream.fin()
    side.sent()
    side.feed(pair.data(ID, b"incomplete") + pair.trunc(ID))
    assert (tap.code, tap.fin, side.sent(), stream.ended) == (Code.CANCEL, False, [], True)
    assert side.pool.used > 0
    tap.release()
    assert side.pool.used == 0


# --- resets ------------------------------------------------------------------------------------------------------------


def test_reset_here_is_answered_and_then_forgotten() -> None:
    side, stream, tap = acceptor()
    stream.reset(Code.CONNECTION_RESET)
    stream.reset(Code.CANCEL)
    assert side.sent() == [Frame(Kind.RESET, ID, wire.CODE.pack(Code.CONNECTION_RESET))]
    side.feed(pair.data(ID, b"under way") + pair.window(ID, 200_000) + pair.stop(ID))
    assert ID in side.session.streams
    side.feed(pair.reset(ID, Code.CANCEL))
    assert not side.session.streams and side.sent() == []
    assert (tap.code, bytes(tap.received)) == (None, b""), "who resets is not told"
    side.check()


def test_what_was_queued_behind_a_reset_from_here_is_gone() -> None:
    side, stream, _ = acceptor(held=True)
    side.feed(pair.data(ID, b"queued"))
    stream.reset(Code.CONNECTION_RESET)
    side.feed(pair.reset(ID))
    assert side.pool.used == 0


@pytest.mark.parametrize(("number", "code"), [(37, Code.CONNECTION_RESET), (4711, Code.INTERNAL), (0, Code.NO_ERROR)])
def test_reset_from_the_other_side_is_told_with_its_code(number: int, code: Code) -> None:
    side, stream, tap = acceptor()
    side.feed(pair.reset(ID, number))
    assert side.sent() == [Frame(Kind.RESET, ID, wire.CODE.pack(Code.CANCEL))]
    assert (tap.code, stream.ended) == (code, True)


def test_a_refused_stream_is_over_at_once_for_the_opener() -> None:
    side, stream, tap = opener()
    side.send(stream, b"early")
    side.feed(pair.reset(ID, Code.REFUSED))
    assert tap.code is Code.REFUSED
    assert [frame.kind for frame in side.sent()] == [Kind.DATA, Kind.RESET]
    assert not side.session.streams


def test_the_acceptor_refuses_instead_of_accepting() -> None:
    side, stream, _ = acceptor(accepts=False)
    side.feed(pair.data(ID, b"early"))
    stream.reset(Code.REFUSED)
    assert side.sent() == [Frame(Kind.RESET, ID, wire.CODE.pack(Code.REFUSED))]
    side.feed(pair.data(ID, b"more of it") + pair.reset(ID))
    assert not side.session.streams


# --- what the local end does in the middle of a call -------------------------------------------------------------------


def test_an_outlet_may_reset_while_it_is_delivered_to() -> None:
    side, stream, tap = acceptor()
    tap.deliver = lambda piece: stream.reset(Code.CONNECTION_RESET)  # type: ignore[method-assign]
    stream.attach(tap)
    side.feed(pair.data(ID, bytes(100_000)) + pair.fin(ID, bytes(100_000)))
    assert [frame.kind for frame in side.sent()] == [Kind.RESET]
    assert (stream.recv, tap.fin) == (Recv.ENDED, False)
    assert not side.session.streams
    side.check()


@pytest.mark.parametrize("kind", [Kind.DATA, Kind.FIN])
def test_the_tunnel_may_be_lost_while_data_is_delivered(kind: Kind) -> None:
    side, stream, tap = acceptor()
    tap.deliver = lambda piece: side.session.lose()  # type: ignore[method-assign]
    stream.attach(tap)
    side.feed(wire.frame(kind, ID, bytes(200_000)) + pair.open_(3))
    side.feed(pair.open_(5))
    assert tap.lost and not tap.fin
    assert len(side.opens) == 1
    side.check()
    assert side.pool.used == 0


# --- credit ------------------------------------------------------------------------------------------------------------


def test_credit_is_returned_in_small_steps() -> None:
    side, stream, _ = acceptor()
    due = step(WINDOW_FIRST)
    side.feed(pair.data(ID, bytes(due - 1)))
    assert windows(side) == []
    assert side.wakes == 0
    side.feed(pair.data(ID, b"x"))
    assert side.wakes == 1
    assert windows(side) == [(WINDOW_FIRST + due, due)]
    assert stream.recv_limit == WINDOW_FIRST + due
    side.check()


def test_what_is_queued_is_not_consumed() -> None:
    side, _, tap = acceptor(held=True)
    side.feed(pair.data(ID, bytes(WINDOW_FIRST)))
    assert windows(side) == []
    tap.release(70_000)
    assert windows(side) == [(WINDOW_FIRST + 70_000, 70_000)]
    side.check()


def test_a_detached_stream_goes_on_for_the_other_side() -> None:
    side, stream, tap = acceptor(held=True)
    side.feed(pair.data(ID, bytes(WINDOW_FIRST)))
    stream.detach()
    assert windows(side) == [(2 * WINDOW_FIRST, WINDOW_FIRST)]
    side.feed(pair.data(ID, bytes(WINDOW_FIRST)) + pair.reset(ID))
    assert (len(tap.received), tap.code) == (WINDOW_FIRST, None)
    side.check()


def test_a_window_that_shrinks_sends_nothing_that_raises_nothing() -> None:
    """The other side would charge it (protocol.md section 12)."""
    side, stream, _ = acceptor()
    side.session.pace.min_rtt = 0.0001
    last = WINDOW_FIRST
    for _ in range(120):  # 10 ms apart: so slow that the smallest window will do
        side.clock.now += 0.01
        side.feed(pair.data(ID, bytes(4096)))
        for limit, _ in windows(side):
            assert limit >= last + step(stream.window)
            last = limit
        side.check()
    assert stream.window < WINDOW_FIRST / 2


# --- the pool ----------------------------------------------------------------------------------------------------------


def test_the_share_is_given_back_at_the_end() -> None:
    side, stream, _ = acceptor()
    assert side.pool.used == WINDOW_FIRST - WINDOW_FLOOR
    stream.fin()
    side.feed(pair.fin(ID))
    assert (side.pool.used, side.session.streams) == (0, {})


@pytest.mark.parametrize("end", [pair.fin(ID), pair.reset(ID)], ids=["FIN", "RESET"])
def test_the_share_is_kept_until_the_last_byte_has_left(end: bytes) -> None:
    side, stream, tap = acceptor(held=True)
    side.feed(pair.data(ID, bytes(1000)) + end)
    stream.fin()
    assert stream.ended
    assert side.pool.used == WINDOW_FIRST - WINDOW_FLOOR
    tap.release(999)
    assert side.pool.used == WINDOW_FIRST - WINDOW_FLOOR
    tap.release()
    assert side.pool.used == 0
    stream.detach()
    stream.reset(Code.CANCEL)
    assert side.pool.used == 0


def test_the_share_is_given_back_when_the_local_end_goes_first() -> None:
    side, stream, _ = acceptor(held=True)
    side.feed(pair.data(ID, bytes(1000)) + pair.fin(ID))
    stream.fin()
    stream.detach()
    assert side.pool.used == 0


@pytest.mark.parametrize("size", [0, 1000, WINDOW_FIRST])
def test_after_the_tunnel_is_lost_nothing_is_borrowed_any_more(size: int) -> None:
    side, stream, tap = acceptor(held=True)
    side.feed(pair.data(ID, bytes(size)) if size else b"")
    side.lose()
    assert tap.lost and side.pool.used == 0
    wakes = side.wakes
    stream.queued = size  # a socket that still drains does not know better
    stream.drained()
    tap.release()
    stream.detach()
    stream.reset(Code.CONNECTION_RESET)
    stream.fin()
    assert (side.pool.used, side.wakes, side.sent(), stream.room()) == (0, wakes, [], 0)
    side.check()


def test_a_stream_describes_itself() -> None:
    _, stream, _ = acceptor()
    assert repr(stream) == "<Stream 1 send=open 0/100000 recv=open 0/262144>"
