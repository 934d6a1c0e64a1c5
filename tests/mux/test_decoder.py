"""The decoder against a reference that is too simple to be wrong, with the bytes cut in every way."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay import wire
from fastrelay.errors import Code, ProtocolError
from fastrelay.mux.decoder import Decoder
from fastrelay.wire import MAX_CONTROL, Kind

KNOWN = (1, 2, 9)
"""Ids with a sink."""
MAX_DATA = 300
"""Tiny, so that limits are met often."""

Event = tuple[str, int, object]


def add(events: list[Event], event: Event) -> None:
    """Append an event; neighbouring pieces of a stream count as one, as only their cutting may differ."""
    name, stream, payload = event
    if name == "data" and events and events[-1][:2] == ("data", stream):
        before = events.pop()[2]
        assert isinstance(before, bytes) and isinstance(payload, bytes)
        payload = before + payload
    events.append((name, stream, payload))


class Log:
    """All calls of a decoder, in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.decoder = Decoder({number: Sink(self, number) for number in KNOWN})
        self.decoder.hand_to(
            lambda kind, stream, payload: self.events.append((f"0x{kind:02x}", stream, payload)),
            lambda stream: self.events.append(("stray", stream, None)),
            lambda stream: self.events.append(("empty", stream, None)),
            MAX_DATA,
        )

    def feed(self, chunks: Iterable[bytes]) -> None:
        """Feed chunks; each is overwritten when the call is over, so a view that is kept shows."""
        for chunk in chunks:
            slab = bytearray(chunk)
            try:
                self.decoder.feed(memoryview(slab))
            except ProtocolError as error:
                self.events.append(("error", 0, error.code))
                return
            finally:
                slab[:] = bytes(len(slab))
            assert len(self.decoder._carry) < wire.HEADER_SIZE + MAX_CONTROL


class Sink:
    def __init__(self, log: Log, number: int) -> None:
        self.log = log
        self.number = number

    def receive(self, piece: memoryview) -> None:
        assert piece, "an empty piece"
        add(self.log.events, ("data", self.number, bytes(piece)))

    def receive_fin(self) -> None:
        self.log.events.append(("fin", self.number, None))


def reference(raw: bytes) -> Iterator[Event]:
    """Section 3 of protocol.md, read frame by frame from one string."""
    while len(raw) >= 8:
        kind, high, low, stream = struct.unpack(">BBHI", raw[:8])
        length = high << 16 | low
        payload, whole = raw[8 : 8 + length], len(raw) >= 8 + length
        if kind in (0, 1):
            if length > MAX_DATA:
                yield "error", 0, Code.FRAME_SIZE
                return
            if stream not in KNOWN:
                yield "stray", stream, None
            elif payload:
                yield "data", stream, payload
            if kind == 0 and not length:
                yield "empty", stream, None
            if kind == 1 and whole and stream in KNOWN:
                yield "fin", stream, None
        else:
            exact = {2: 0, 4: 8, 5: 16, 6: 4, 7: 4, 8: 8, 9: 8}
            known = kind in exact or kind in (3, 10, *range(16, 23), 129)
            if (not known and kind < 128) or (known and (stream == 0) is not (kind > 7)):
                yield "error", 0, Code.PROTOCOL
                return
            smallest = {3: 9, 10: 8}.get(kind, 0)
            if length != exact.get(kind, length) or not smallest <= length <= MAX_CONTROL:
                yield "error", 0, Code.FRAME_SIZE
                return
            if whole:
                yield f"0x{kind:02x}", stream, payload
        raw = raw[8 + length :]


def joined(events: Iterable[Event]) -> list[Event]:
    found: list[Event] = []
    for event in events:
        add(found, event)
    return found


def cut(raw: bytes, places: Iterable[int]) -> list[bytes]:
    at = sorted({0, len(raw), *(place % (len(raw) + 1) for place in places)})
    return [raw[start:stop] for start, stop in pairwise(at)]


SIZES = st.one_of(st.integers(0, 20), st.sampled_from((MAX_DATA, MAX_DATA + 1, MAX_CONTROL, MAX_CONTROL + 1, 70_000)))
STREAMS = st.sampled_from((0, *KNOWN, *KNOWN, 77))


@st.composite
def any_frame(draw: st.DrawFn) -> bytes:
    """A frame that may be anything: mostly what a peer would send, sometimes not."""
    kind = draw(st.sampled_from((*Kind, Kind.DATA, Kind.DATA, Kind.DATA, Kind.FIN, 0x18, 0x80, 0xFF)))
    row = wire.SIZES.get(kind)
    if row is not None and draw(st.integers(0, 19)):
        size = draw(st.integers(row[0], min(row[1], row[0] + 40)))
        return wire.frame(
            kind, draw(st.sampled_from(KNOWN)) if row[2] else 0, draw(st.binary(min_size=size, max_size=size))
        )
    size = draw(SIZES)
    if not draw(st.integers(0, 9)):  # a header that promises more than comes
        return wire.HEADER.pack(kind << 24 | size, draw(STREAMS))
    return wire.frame(kind, draw(STREAMS), bytes(range(256)) * (size // 256) + bytes(range(size % 256)))


TALK = st.lists(any_frame(), max_size=12).map(b"".join) | st.binary(max_size=60)


@given(TALK, st.lists(st.integers(0, 1 << 20), max_size=20))
def test_same_calls_whole_byte_by_byte_and_cut_anywhere(raw: bytes, places: list[int]) -> None:
    expected = joined(reference(raw))
    for chunks in ([raw], cut(raw, places), [raw[:9], raw[9:]], cut(raw, range(min(len(raw), 6000)))):
        log = Log()
        log.feed(chunks)
        assert log.events == expected


def test_the_reference_is_not_blind() -> None:
    frames = (
        wire.frame(Kind.DATA, 1, b"a"),
        wire.frame(Kind.DATA, 2),
        wire.frame(Kind.FIN, 2, b"b"),
        wire.frame(Kind.PING, 0, bytes(8)),
        wire.frame(Kind.DATA, 77, b"nobody's"),
        wire.frame(Kind.FIN, 1),
    )
    assert joined(reference(b"".join(frames))) == [
        ("data", 1, b"a"),
        ("empty", 2, None),
        ("data", 2, b"b"),
        ("fin", 2, None),
        ("0x08", 0, bytes(8)),
        ("stray", 77, None),
        ("fin", 1, None),
    ]


def test_payload_is_passed_on_as_a_view_of_the_chunk() -> None:
    views: list[memoryview] = []

    class Keep:
        def receive(self, piece: memoryview) -> None:
            views.append(piece)

        def receive_fin(self) -> None: ...

    log = Log()
    log.decoder.sinks = {1: Keep()}
    chunk = memoryview(wire.frame(Kind.DATA, 1, b"whole") + wire.frame(Kind.DATA, 1, b"in two")[:-3])
    log.decoder.feed(chunk)
    assert [bytes(view) for view in views] == [b"whole", b"in "]
    assert all(view.obj is chunk.obj for view in views)


def test_only_a_cut_header_or_control_frame_is_carried() -> None:
    log = Log()
    log.feed([wire.frame(Kind.GOAWAY, 0, bytes(MAX_CONTROL))[:-1]])
    assert len(log.decoder._carry) == wire.HEADER_SIZE + MAX_CONTROL - 1
    log.feed([b"\0", wire.HEADER.pack(200, 1), bytes(199)])
    assert not log.decoder._carry
    assert log.decoder._rest == 1


@pytest.mark.parametrize("kind", [Kind.DATA, Kind.FIN])
def test_the_length_is_judged_before_the_payload_comes(kind: Kind) -> None:
    log = Log()
    log.feed([wire.HEADER.pack(kind << 24 | MAX_DATA + 1, 1)])
    assert log.events == [("error", 0, Code.FRAME_SIZE)]


def test_a_payload_for_nobody_is_skipped_when_stray_lets_it_pass() -> None:
    log = Log()
    log.feed([wire.frame(Kind.FIN, 77, b"x" * 50)[:20], b"x" * 38 + wire.frame(Kind.FIN, 1)])
    assert log.events == [("stray", 77, None), ("fin", 1, None)]


@pytest.mark.parametrize("size", [1, 8, 13, 1000])
def test_stopped_from_inside_a_call_throws_the_rest_away(size: int) -> None:
    log = Log()

    def stop(kind: int, stream: int, payload: bytes) -> None:
        log.events.append(("control", stream, payload))
        log.decoder.stopped = True

    log.decoder.control = stop
    raw = wire.frame(Kind.DATA, 1, b"before") + wire.frame(Kind.PING, 0, bytes(8)) + wire.frame(Kind.FIN, 1, b"after")
    log.feed(raw[at : at + size] for at in range(0, len(raw), size))
    assert log.events == [("data", 1, b"before"), ("control", 0, bytes(8))]


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("cuts", [[], [9], [11]])
def test_stopped_by_a_payload_is_not_followed_by_its_fin(size: int, cuts: list[int]) -> None:
    log = Log()

    class Last(Sink):
        def receive(self, piece: memoryview) -> None:
            super().receive(piece)
            got = log.events[-1][2]
            log.decoder.stopped = isinstance(got, bytes) and len(got) >= size

    log.decoder.sinks = {1: Last(log, 1)}
    log.feed(cut(wire.frame(Kind.FIN, 1, b"abcde"), cuts))
    assert [name for name, *_ in log.events] == ["data"]


def test_hand_to_holds_for_the_rest_of_the_chunk() -> None:
    log = Log()
    later: list[int] = []

    def never(stream: int) -> None:
        raise AssertionError

    def hand_over(kind: int, stream: int, payload: bytes) -> None:
        log.decoder.hand_to(lambda kind, stream, payload: later.append(kind), never, later.append, wire.MAX_DATA)

    log.decoder.control = hand_over
    big = wire.frame(Kind.DATA, 2, bytes(MAX_DATA + 1))
    log.feed([wire.frame(Kind.WELCOME, 0, b"{}") + wire.frame(Kind.PING, 0, bytes(8)) + big + wire.frame(Kind.DATA, 9)])
    assert later == [Kind.PING, 9]
    assert log.events == [("data", 2, bytes(MAX_DATA + 1))]
