"""Every event in every pair of states that a stream can be in, at both ends: what is sent, what follows, what the outlet is told.

The tables are held against protocol.md by tests/test_protocol_md.py; here a real session is driven by real frames, and must do what they say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from fastrelay.errors import Code
from fastrelay.mux.stream import RECV, SEND, Recv, Send, Stream
from fastrelay.wire import Kind
from tests.support import pair
from tests.support.pair import Clock, Side, Tap, refusal

ID = 1  # odd: the dialer is the opener
Step = Callable[[Side, Stream], object]

EVENTS: dict[str, Step] = {
    "accept": lambda side, stream: stream.accept(),
    "data": lambda side, stream: side.send(stream, b"x"),
    "fin": lambda side, stream: stream.fin(),
    "stop": lambda side, stream: stream.stop(),
    "reset": lambda side, stream: stream.reset(Code.CONNECTION_RESET),
    "ACCEPT": lambda side, stream: side.feed(pair.accept(ID)),
    "WINDOW": lambda side, stream: side.feed(pair.window(ID, 500_000)),
    "STOP": lambda side, stream: side.feed(pair.stop(ID)),
    "RESET": lambda side, stream: side.feed(pair.reset(ID)),
    "DATA": lambda side, stream: side.feed(pair.data(ID, b"y")),
    "FIN": lambda side, stream: side.feed(pair.fin(ID)),
    "TRUNC": lambda side, stream: side.feed(pair.trunc(ID)),
}

# How to get into each pair of states that there is; no other pair can be reached, for `reset` and RESET move both machines.
OPENER: dict[tuple[Send, Recv], tuple[str, ...]] = {
    (Send.OPEN, Recv.PENDING): (),
    (Send.OPEN, Recv.OPEN): ("ACCEPT",),
    (Send.OPEN, Recv.DRAIN): ("ACCEPT", "stop"),
    (Send.OPEN, Recv.ENDED): ("ACCEPT", "FIN"),
    (Send.ENDED, Recv.PENDING): ("fin",),
    (Send.ENDED, Recv.OPEN): ("ACCEPT", "STOP"),
    (Send.ENDED, Recv.DRAIN): ("ACCEPT", "stop", "fin"),
    (Send.ENDED, Recv.ENDED): ("ACCEPT", "fin", "FIN"),
    (Send.RESET, Recv.DRAIN): ("reset",),
    (Send.RESET, Recv.ENDED): ("ACCEPT", "FIN", "reset"),
    (Send.RESET, Recv.RESET): ("RESET",),
}
ACCEPTOR: dict[tuple[Send, Recv], tuple[str, ...]] = {
    (Send.PENDING, Recv.OPEN): (),
    (Send.PENDING, Recv.DRAIN): ("stop",),
    (Send.PENDING, Recv.ENDED): ("FIN",),
    (Send.OPEN, Recv.OPEN): ("accept",),
    (Send.OPEN, Recv.DRAIN): ("accept", "stop"),
    (Send.OPEN, Recv.ENDED): ("accept", "FIN"),
    (Send.ENDED, Recv.OPEN): ("accept", "fin"),
    (Send.ENDED, Recv.DRAIN): ("accept", "STOP", "stop"),
    (Send.ENDED, Recv.ENDED): ("accept", "fin", "FIN"),
    (Send.RESET, Recv.DRAIN): ("reset",),
    (Send.RESET, Recv.ENDED): ("accept", "FIN", "reset"),
    (Send.RESET, Recv.RESET): ("RESET",),
}
SEND_END = (Send.ENDED, Send.RESET)
RECV_END = (Recv.ENDED, Recv.RESET)
CASES = [
    pytest.param(role, *states, event, id=f"{role}-{states[0].value}-{states[1].value}-{event}")
    for role, paths in (("opener", OPENER), ("acceptor", ACCEPTOR))
    for states in paths
    for event in EVENTS
]


def arrive(role: str, send: Send, recv: Recv) -> tuple[Side, Stream, Tap]:
    """A stream in these states, as the side that opened or took it sees it."""
    side = Side(Clock(), dialer=role == "opener")
    if role == "opener":
        stream = side.must_open()
    else:
        side.accepts = False
        side.feed(pair.open_(ID))
        stream = side.session.streams[ID]
    for event in (OPENER if role == "opener" else ACCEPTOR)[send, recv]:
        EVENTS[event](side, stream)
    assert (stream.send, stream.recv) == (send, recv)
    side.sent()
    side.check()
    return side, stream, side.taps[ID]


class Outcome(NamedTuple):
    """What is to be seen of an event: the states behind it, the frames that were sent, what the outlet was told."""

    send: Send
    recv: Recv
    frames: tuple[Kind, ...] = ()
    told: str = ""
    wrong: Code | None = None  # the tunnel error
    refused: bool = False  # an error of the local program


def outcome(send: Send, recv: Recv, event: str) -> Outcome:
    """The two tables and section 7.3, put together."""
    over = send in SEND_END and recv in RECV_END
    if over and event in ("ACCEPT", "DATA", "FIN", "TRUNC"):
        return Outcome(send, recv, wrong=Code.STREAM_STATE)
    if over and (event.isupper() or event == "reset"):
        return Outcome(send, recv)  # it is forgotten: late frames are ignored, and there is nothing to reset
    frames: list[Kind] = []
    to_send, to_recv = send, recv
    if any(name == event for _, name in RECV):
        row = RECV.get((recv, event))
        if row is None:
            return Outcome(send, recv, refused=True)
        if isinstance(row, Code):
            return Outcome(send, recv, wrong=row)
        to_recv = row[1]
        frames += [row[0]] if row[0] is not None else []
    if any(name == event for _, name in SEND):
        line = SEND.get((send, event))
        if line is None:
            return Outcome(send, recv, refused=True)
        if isinstance(line, Code):
            return Outcome(send, recv, wrong=line)
        to_send = line[1]
        frames += [line[0]] if line[0] is not None else []
    if event == "TRUNC" and recv is Recv.OPEN and send not in SEND_END:
        to_send = Send.RESET  # 7.2: the half is incomplete, so the receiver resets the stream
        frames.append(Kind.RESET)
    return Outcome(to_send, to_recv, tuple(frames), news(send, recv, event))


def news(send: Send, recv: Recv, event: str) -> str:
    """What the outlet hears of an event; nothing more once this side has reset the stream."""
    if send is Send.RESET:
        return ""
    if recv is Recv.OPEN and event in ("DATA", "FIN", "TRUNC"):
        return {"DATA": "data", "FIN": "fin", "TRUNC": "CANCEL"}[event]
    if event == "RESET":
        return "CONNECTION_RESET"
    return "stop" if event == "STOP" and send is Send.OPEN else ""


def told(tap: Tap) -> set[str]:
    words = {"data": bool(tap.received), "fin": tap.fin, "stop": tap.stopped, "lost": tap.lost}
    return {word for word, said in words.items() if said} | ({tap.code.name} if tap.code is not None else set())


@pytest.mark.parametrize(("role", "send", "recv", "event"), CASES)
def test_step(role: str, send: Send, recv: Recv, event: str) -> None:
    side, stream, tap = arrive(role, send, recv)
    before = told(tap)
    wrong: Code | None = None
    refused = False
    try:
        wrong = refusal(lambda: EVENTS[event](side, stream))
    except AssertionError:
        refused = True
    expected = outcome(send, recv, event)
    if event in ("data", "fin"):  # in other states than open nothing is sent: there is no room, and no half to end
        expected = expected._replace(refused=False)
    seen = " ".join(told(tap) - before)
    kinds = tuple(Kind(frame.kind) for frame in side.sent())
    assert Outcome(stream.send, stream.recv, kinds, seen, wrong, refused) == expected

    ended = stream.send in SEND_END and stream.recv in RECV_END
    assert stream.ended is ended
    assert (ID in side.session.streams) is not ended
    assert side.idles == int(ended)
    side.check()


def test_all_cells_were_met() -> None:
    """Each cell of both tables is reached from a pair of states that exists, but for those of a stream that is forgotten."""
    live = [states for states in (*OPENER, *ACCEPTOR) if not (states[0] in SEND_END and states[1] in RECV_END)]
    assert {state for state, _ in SEND} == {send for send, _ in live}
    assert {state for state, _ in RECV} - {recv for _, recv in live} == {Recv.RESET}
