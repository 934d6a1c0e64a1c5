"""Frames of WebSocket, held against those of the library: what we write it reads, what it reads we read, and what it refuses we refuse."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side

from fastrelay.errors import Code, ProtocolError
from fastrelay.net.framing import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Unframer, frame
from fastrelay.wire import MAX_MESSAGE


class Log(Unframer):
    """What a reader was told: payload in one, the rest in order."""

    def __init__(self, masked: bool) -> None:
        super().__init__(masked)
        self.payload = b""
        self.controls: list[tuple[int, bytes]] = []
        self.empties = 0
        self.error: Code | None = None

    def on_payload(self, piece: memoryview, now: float) -> None:
        assert len(piece) > 0
        self.payload += piece

    def on_control(self, opcode: int, payload: bytes, now: float) -> None:
        self.controls.append((opcode, payload))

    def on_empty(self, now: float) -> None:
        self.empties += 1

    def read(self, chunks: Iterator[bytes] | list[bytes]) -> Log:
        for chunk in chunks:
            try:
                self.unframe(memoryview(chunk), 0.0)
            except ProtocolError as error:
                self.error = error.code
                break
            assert len(self._carry) <= 139
        return self

    @property
    def told(self) -> tuple[bytes, list[tuple[int, bytes]], int, Code | None]:
        return self.payload, self.controls, self.empties, self.error


def cut(raw: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(place % (len(raw) + 1) for place in cuts), len(raw)]
    return [raw[one:two] for one, two in pairwise(places)]


def made(opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True) -> bytes:
    """A frame as the library writes it."""
    return Frame(Opcode(opcode), payload, fin).serialize(mask=masked)


frames = st.tuples(
    st.sampled_from((BINARY, BINARY, BINARY, CONTINUATION, PING, PONG)),
    st.one_of(st.binary(max_size=130), st.integers(120, 70_000).map(lambda size: Random(size).randbytes(size))),
    st.booleans(),
)


@given(st.lists(frames, max_size=6), st.booleans(), st.lists(st.integers(0, 1 << 20), max_size=12))
def test_cut_anywhere_it_is_the_same(sequence: list[tuple[int, bytes, bool]], masked: bool, cuts: list[int]) -> None:
    raw = b"".join(
        made(opcode, payload[:125], masked=masked)
        if opcode in (PING, PONG)
        else made(opcode, payload, fin=fin, masked=masked)
        for opcode, payload, fin in sequence
    )
    whole = Log(masked).read([raw])
    assert Log(masked).read(cut(raw, cuts)).told == whole.told
    if len(raw) < 2000:
        assert Log(masked).read([raw[at : at + 1] for at in range(len(raw))]).told == whole.told


LAST = b"are you there?"


def check(log: Log, raw: bytes, masked: bool) -> None:
    """`log` has read `raw`; the library must read the same, and refuse what it refuses unless it waits for more to say so."""
    reader = Protocol(Side.SERVER if masked else Side.CLIENT, max_size=MAX_MESSAGE)
    reader.receive_data(raw)
    taken = reader.parser_exc is None
    events = [event for event in reader.events_received() if isinstance(event, Frame)]
    reader.receive_data(made(PING, LAST, masked=masked))  # which ends up in a frame that is not whole
    last = reader.events_received()
    if any(event.opcode is Opcode.CLOSE for event in events) or any(opcode == CLOSE for opcode, _ in log.controls):
        return  # the library looks into it, and here it is the layer that does
    text = any(event.opcode is Opcode.TEXT for event in events)
    whole = [bytes(event.data) for event in last if isinstance(event, Frame)] == [LAST]
    if log.error is None:
        assert taken and not text
        payload = b"".join(bytes(event.data) for event in events if event.opcode in (Opcode.BINARY, Opcode.CONT))
        assert log.payload == payload if whole else log.payload.startswith(payload)
    else:
        assert text or not taken or not whole, "the library takes it"


@given(st.lists(frames, min_size=1, max_size=4), st.booleans(), st.data())
def test_it_reads_what_the_library_reads(
    sequence: list[tuple[int, bytes, bool]], masked: bool, data: st.DataObject
) -> None:
    raw = bytearray(
        b"".join(
            made(opcode, payload[:125], masked=masked)
            if opcode in (PING, PONG)
            else made(opcode, payload, fin=fin, masked=masked)
            for opcode, payload, fin in sequence
        )
    )
    for _ in range(data.draw(st.integers(0, 2))):
        raw[data.draw(st.integers(0, min(len(raw), 12) - 1))] = data.draw(st.integers(0, 255))
    check(Log(masked).read([bytes(raw)]), bytes(raw), masked)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, MAX_MESSAGE])
def test_the_library_reads_what_is_written(size: int, masked: bool) -> None:
    payload = Random(size).randbytes(size)
    head, body = frame(BINARY, memoryview(payload), masked)
    assert (body == payload) is (not masked or not size)
    reader = Protocol(Side.SERVER if masked else Side.CLIENT, max_size=MAX_MESSAGE)
    reader.receive_data(head + body)
    (event,) = reader.events_received()
    assert isinstance(event, Frame) and event.opcode is Opcode.BINARY and event.fin
    assert bytes(event.data) == payload


def test_masks_differ() -> None:
    assert len({frame(BINARY, b"", True)[0] for _ in range(50)}) == 50


@pytest.mark.parametrize(
    ("raw", "masked", "code"),
    [
        (made(TEXT, b"hello"), True, Code.PROTOCOL),
        (made(BINARY, b"hello", masked=False), True, Code.PROTOCOL),
        (made(BINARY, b"hello"), False, Code.PROTOCOL),
        (made(CONTINUATION, b"hello"), True, Code.PROTOCOL),
        (made(BINARY, b"a", fin=False) + made(BINARY, b"b"), True, Code.PROTOCOL),
        (b"\xc2\x80" + bytes(4), True, Code.PROTOCOL),
        (b"\x83\x80" + bytes(4), True, Code.PROTOCOL),
        (b"\x8b\x80" + bytes(4), True, Code.PROTOCOL),
        (b"\x09\x80" + bytes(4), True, Code.PROTOCOL),
        (b"\x89\xfe\x00\x7e" + bytes(200), True, Code.PROTOCOL),
        (b"\x82\xff" + (MAX_MESSAGE + 1).to_bytes(8) + bytes(4), True, Code.FRAME_SIZE),
        (b"\x82\xff" + b"\xff" * 8 + bytes(4), True, Code.FRAME_SIZE),
    ],
    ids=[
        *(
            "text",
            "not masked",
            "masked",
            "nothing to continue",
            "not continued",
            "reserved bit",
            "opcode 3",
            "opcode 11",
        ),
        *("control in pieces", "control too long", "too large", "length above 2^63"),
    ],
)
def test_what_is_refused(raw: bytes, masked: bool, code: Code) -> None:
    assert Log(masked).read([raw]).error is code
    assert Log(masked).read([raw[at : at + 1] for at in range(len(raw))]).error is code


def test_a_message_in_pieces_is_bounded_as_well() -> None:
    log = Log(True)
    part = MAX_MESSAGE // 2
    raw = [made(BINARY, bytes(part), fin=False), made(CONTINUATION, bytes(part), fin=False)]
    assert log.read(raw).error is None and len(log.payload) == MAX_MESSAGE
    assert log.read([made(CONTINUATION, b"!")]).error is Code.FRAME_SIZE


def test_control_frames_come_between_fragments() -> None:
    raw = (
        made(BINARY, b"one ", fin=False)
        + made(PING, b"?")
        + made(CONTINUATION, b"", fin=False)
        + made(CONTINUATION, b"two")
    )
    assert Log(True).read([raw]).told == (b"one two", [(PING, b"?")], 1, None)


def test_nothing_is_told_once_it_is_stopped() -> None:
    class Once(Log):
        def on_control(self, opcode: int, payload: bytes, now: float) -> None:
            super().on_control(opcode, payload, now)
            self.stopped = True

    log = Once(False).read([made(CLOSE, b"\x03\xe8", masked=False) + made(BINARY, b"more", masked=False)])
    assert log.told == (b"", [(CLOSE, b"\x03\xe8")], 0, None)
