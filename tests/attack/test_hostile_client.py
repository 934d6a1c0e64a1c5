"""A client that floods: it is cut off at the number that protocol.md section 12 names, and nobody else notices."""

from __future__ import annotations

import contextlib
import itertools
import math
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import pytest

from tests.attack import frames
from tests.attack.client import attacker, public_port
from tests.attack.conftest import PLAIN, Field
from tests.attack.frames import Code, Kind
from tests.attack.line import Line, batches
from tests.attack.neighbours import PRIVATE
from tests.support.payload import Keystream
from tests.support.peers import TIMEOUT, Pump, background, connect, hang_up, until
from tests.support.processes import BEST

pytestmark = pytest.mark.parametrize(
    "field", [PLAIN, pytest.param(BEST, marks=pytest.mark.slow)], ids=repr, indirect=True, scope="module"
)
MEMORY = 24 * 1024
"""KiB that a relay may grow by while one client without visitors floods it."""
SESSION = 20_000
"""Frames that are sent on one session, though it is cut off long before."""


class Flood(NamedTuple):
    """What is sent without end, and the row of protocol.md section 12 that ends it: `burst`, and `rate` a second."""

    one: Callable[[Line, int], bytes]  # the n-th frame of the flood, from 0
    burst: int
    rate: int
    row: str
    visitor: bool = False  # it needs a stream of the relay's


def mine(number: int) -> int:
    """The id of the n-th stream that a client opens."""
    return 2 * number + 1


THEIRS = 2
"""The id of the first stream that the relay opens."""

FLOODS = {
    "PING": Flood(lambda line, n: frames.ping(n.to_bytes(8, "big")), 20, 1, "PING"),
    "WINDOW": Flood(lambda line, n: frames.window(THEIRS, 65_536), 1000, 10, "WINDOW that raises nothing", True),
    "smaller WINDOW": Flood(lambda line, n: frames.window(THEIRS, 0), 1000, 10, "WINDOW that raises nothing", True),
    "empty DATA": Flood(lambda line, n: frames.data(mine(0), b""), 1000, 10, "empty DATA"),
    "EXPOSE": Flood(lambda line, n: frames.expose(n + 2), 128, 1, "EXPOSE"),
    "EXPOSE of nonsense": Flood(lambda line, n: frames.expose(2, kind="udp", name="/"), 128, 1, "EXPOSE"),
    "EXPOSE of taken ports": Flood(lambda line, n: frames.expose(n + 2, port=1), 128, 1, "EXPOSE"),
    "unknown frames": Flood(lambda line, n: frames.frame(0xC0 + n % 64, n % 3, bytes(n % 9)), 1000, 100, "optional"),
}


def counted(flood: Flood, line: Line) -> Iterator[bytes]:
    """The flood, with an OPEN behind each frame: the `last` of GOAWAY then says how many were taken.

    OPEN has a bucket of its own, as large as the largest of the others and filled faster: it is never the first that is empty.
    """
    for number in itertools.count():
        yield flood.one(line, number) + frames.open_(mine(number + 1))


def opens(line: Line) -> Iterator[bytes]:
    """OPEN of what a relay does not serve: refused, one by one."""
    for number in itertools.count():
        yield frames.open_(mine(number), frames.service(number))


def rapid_reset(line: Line) -> Iterator[bytes]:
    for number in itertools.count():
        yield frames.open_(mine(number), frames.service(1)) + frames.reset(mine(number))


def cut_off(line: Line, words: Iterable[bytes], row: str, *, deaf: bool) -> tuple[int, int]:
    """Flood until it is over, for the reason of this row of section 12; frames sent, and the last OPEN that was taken."""
    sent = line.flood(batches(itertools.islice(words, SESSION)), deaf=deaf)
    line.to_end()
    assert line.goaway is not None, f"not cut off: {line.ended}, {line.heard}"
    last, code, text = line.goaway
    assert code == Code.CALM and row in text, text
    return sent, last


@pytest.fixture
def enemy(field: Field) -> Iterator[Callable[[], Line]]:
    """Makes sessions of an attacker, one after the other."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(attacker(field.address, field.token, tls=field.server.way.tls))


def figures(long: int) -> int:
    """Sessions of SESSION frames each: with --long a million frames of each flood."""
    return 1_000_000 // SESSION * long or 1


@pytest.mark.slow
@pytest.mark.parametrize("deaf", [False, True], ids=["reads", "deaf"])
@pytest.mark.parametrize("name", FLOODS)
def test_flood_is_cut_off(field: Field, enemy: Callable[[], Line], long: int, name: str, deaf: bool) -> None:
    flood = FLOODS[name]
    sent = taken = 0
    with field.neighbours.watch() as seen:
        for _ in range(figures(long)):
            with enemy() as line, contextlib.ExitStack() as stack:
                if flood.visitor:
                    stack.enter_context(connect(("127.0.0.1", public_port(line))))
                    assert line.frame(Kind.OPEN).stream == THEIRS
                    line.send(frames.accept(THEIRS, 65_536))
                line.send(frames.open_(mine(0)))
                line.until(1, Kind.RESET)
                time.sleep(0.05)  # until what that OPEN has cost is paid
                start = time.monotonic()
                out, last = cut_off(line, counted(flood, line), flood.row, deaf=deaf)
                took = time.monotonic() - start
                stood = (last - 1) // 2  # OPENs behind frames of the flood; the first one came before
                # The service that a visitor needs has been charged as an EXPOSE, not as anything that floods here.
                assert flood.burst <= stood <= flood.burst + flood.rate * took, (stood, took)
                sent += out
                taken += stood
    print(
        f"\n{name}, {'deaf' if deaf else 'reading'}: {sent} frames sent, {taken} taken in {figures(long)} sessions; {seen}"
    )
    assert seen.gained <= MEMORY


@pytest.mark.slow
@pytest.mark.parametrize("deaf", [False, True], ids=["reads", "deaf"])
@pytest.mark.parametrize("words", [opens, rapid_reset], ids=["OPEN to the relay", "rapid reset"])
def test_open_is_cut_off(
    field: Field, enemy: Callable[[], Line], long: int, words: Callable[[Line], Iterator[bytes]], deaf: bool
) -> None:
    sent = taken = refused = 0
    with field.neighbours.watch() as seen:
        for _ in range(figures(long)):
            with enemy() as line:
                start = time.monotonic()
                out, last = cut_off(line, words(line), "OPEN by a client", deaf=deaf)
                stood = (last + 1) // 2
                assert 4000 <= stood <= 4000 + math.ceil(2000 * (time.monotonic() - start))
                assert line.resets == {Code.NO_SERVICE: stood}, "each of them is answered, and none twice"
                sent += out
                taken += stood
                refused += line.resets[Code.NO_SERVICE]
    name = "rapid reset" if words is rapid_reset else "OPEN"
    print(f"\n{name}, {'deaf' if deaf else 'reading'}: {sent} sent, {taken} taken, {refused} refused; {seen}")
    assert seen.gained <= MEMORY


# --- frames that nobody charges -----------------------------------------------------------------------------------------


def visit(number: int, name: str) -> bytes:
    return frames.open_(mine(number), frames.field(2, name.encode()))


def visits_that_hang(line: Line) -> Iterator[bytes]:
    """To a private service of its own, which it never answers for."""
    line.send(frames.expose(1, name="hole", kind="private"))
    assert b"error" not in line.frame(Kind.EXPOSED).payload
    return (visit(number, "hole") for number in itertools.count())


def visits_reset_at_once(line: Line) -> Iterator[bytes]:
    """To the neighbours' private service: each is a dial of theirs."""
    return (visit(number, PRIVATE) + frames.reset(mine(number)) for number in itertools.count())


@pytest.mark.slow
@pytest.mark.parametrize("deaf", [False, True], ids=["reads", "deaf"])
@pytest.mark.parametrize(
    ("words", "row", "burst", "rate"),
    [
        (visits_that_hang, "OPEN by a client", 4000, 2000),
        (visits_reset_at_once, "RESET by a client before ACCEPT", 2000, 500),
    ],
    ids=["hanging visits", "rapid reset of visits"],
)
def test_visits_are_cut_off(
    field: Field,
    enemy: Callable[[], Line],
    long: int,
    words: Callable[[Line], Iterator[bytes]],
    row: str,
    burst: int,
    rate: int,
    deaf: bool,
) -> None:
    taken = 0
    with field.neighbours.watch() as seen:
        for _ in range(figures(long)):
            with enemy() as line:
                flood = words(line)
                start = time.monotonic()
                _, last = cut_off(line, flood, row, deaf=deaf)
                stood = (last + 1) // 2
                assert burst <= stood <= burst + 1 + math.ceil(rate * (time.monotonic() - start))
                taken += stood
    print(f"\n{row}, {'deaf' if deaf else 'reading'}: {taken} taken in {figures(long)} sessions; {seen}")
    assert seen.gained <= 4 * MEMORY, "two streams for each visit"


def tiny_data(line: Line, number: int) -> Iterator[list[bytes]]:
    """A byte in each DATA, as far as the relay's credit goes."""
    limit, sent, patience = 0, 0, time.monotonic()
    while sent < number and time.monotonic() - patience < 2:
        while line.frames:
            one = line.frames.popleft()
            if one.stream == THEIRS and one.kind == Kind.OPEN:
                limit = int.from_bytes(one.payload[1:9], "big")
            elif one.stream == THEIRS and one.kind == Kind.WINDOW:
                limit = int.from_bytes(one.payload[:8], "big")
        size = min(limit - sent, number - sent, 10_000)
        if size:
            yield [frames.data(THEIRS, b"x")] * size
            sent += size
            patience = time.monotonic()
        else:
            line.read(0.05)


def windows(line: Line, number: int) -> Iterator[list[bytes]]:
    """Credit in the smallest steps."""
    return iter(batches(frames.window(THEIRS, 65_536 + n + 1) for n in range(number)))


def late(*words: bytes) -> Callable[[Line, int], Iterator[list[bytes]]]:
    """What may come late for a stream that is over, again and again."""

    def make(line: Line, number: int) -> Iterator[list[bytes]]:
        line.send(frames.open_(mine(0)) + frames.reset(mine(0)))
        line.until(1, Kind.RESET)
        return iter(batches(itertools.islice(itertools.cycle(words), number)))

    return make


FREE: dict[str, Callable[[Line, int], Iterator[list[bytes]]]] = {
    "tiny DATA": tiny_data,
    "tiny WINDOW": windows,
    "late frames": late(frames.reset(1), frames.window(1, 1 << 40), frames.stop(1)),
    "PONG": late(frames.frame(Kind.PONG, 0, b"unasked!")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FREE)
def test_frames_without_a_price(field: Field, enemy: Callable[[], Line], long: int, name: str) -> None:
    """They make nothing grow, and cost what their bytes cost: the session stands, and nobody else notices."""
    number = 1_000_000 * long or 50_000
    with field.neighbours.watch() as seen, enemy() as line, connect(("127.0.0.1", public_port(line))) as visitor:
        reading = Drain(visitor)
        line.until(1, Kind.OPEN)
        line.send(frames.accept(THEIRS, 65_536))
        sent = line.flood(FREE[name](line, number))
        assert line.alive(), line.goaway
        assert sent == number
        reading.stop()
    if name == "tiny DATA":
        assert reading.size == number
    print(f"\n{name}: {sent} frames sent, all taken, {seen.cpu / sent * 1e6:.1f} µs of CPU each; {seen}")
    assert seen.gained <= MEMORY


class Drain:
    """Reads a socket in a thread, and counts."""

    def __init__(self, sock: socket.socket) -> None:
        self.size = 0
        self._sock = sock
        self._end = background(self._run)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while chunk := self._sock.recv(1 << 16):
                self.size += len(chunk)

    def stop(self) -> None:
        """When nothing comes any more."""
        while (before := self.size) >= 0:
            time.sleep(0.2)
            if self.size == before:
                break
        self._sock.shutdown(socket.SHUT_RDWR)
        self._end.result(TIMEOUT)


@pytest.mark.slow
def test_data_nobody_reads_ends_with_the_credit(field: Field, enemy: Callable[[], Line]) -> None:
    """A stream that the relay has refused takes the early data that were promised, to the byte, in frames of one."""
    with enemy() as line:
        line.send(frames.open_(mine(0)) + frames.data(mine(0), b"x") * 16_384)
        assert line.alive()
        line.send(frames.data(mine(0), b"x"))
        line.to_end()
        assert line.goaway is not None and line.goaway[1] == Code.FLOW_CONTROL, line.goaway


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (frames.data(2, b"x"), Code.STREAM_STATE),
        (frames.accept(2), Code.STREAM_STATE),
        (frames.accept(4), Code.STREAM_STATE),
        (frames.reset(2), Code.STREAM_STATE),
        (frames.window(6, 1 << 40), Code.STREAM_STATE),
        (frames.open_(2), Code.PROTOCOL),
        (frames.open_(1) + frames.open_(1), Code.PROTOCOL),
        (frames.open_(3) + frames.open_(1), Code.PROTOCOL),
        (frames.open_(1) + frames.frame(Kind.FIN, 1) + frames.data(1, b"x"), Code.STREAM_STATE),
        (frames.open_(1) + frames.frame(Kind.TRUNC, 1) + frames.data(1, b"x"), Code.STREAM_STATE),
        (frames.open_(1) + frames.reset(1) + frames.data(1, b"x"), Code.STREAM_STATE),
        (frames.exposed(1, port=1), Code.PROTOCOL),
        (frames.frame(Kind.AUTH, 0, b"{}"), Code.PROTOCOL),
    ],
    ids=lambda value: value.name if isinstance(value, Code) else value.hex()[:40],
)
def test_streams_of_others_and_of_nobody(field: Field, enemy: Callable[[], Line], words: bytes, code: Code) -> None:
    """The ids of a session are its own: what a neighbour has open, and what is over, cannot be touched."""
    with field.neighbours.watch(), enemy() as line:
        line.send(words)
        line.to_end()
        assert line.goaway is not None and line.goaway[1] == code, line.goaway


@pytest.mark.slow
def test_made_you_reset(field: Field, enemy: Callable[[], Line], long: int) -> None:
    """Frames after which the relay itself resets a stream: an unasked TRUNC for a visitor, many times; any other ends the tunnel."""
    number = 10_000 * long or 200
    with field.neighbours.watch() as seen, enemy() as line:
        where = ("127.0.0.1", public_port(line))
        for _ in range(number):
            with connect(where) as visitor:
                stream = line.frame(Kind.OPEN).stream
                line.send(frames.accept(stream) + frames.frame(Kind.TRUNC, stream))
                assert hang_up(visitor), "the visitor of half an answer is reset"
        line.until(number, Kind.RESET)
        assert line.alive()
    with field.neighbours.watch() as more:
        for _ in range(number // 10):
            with enemy() as line:
                line.send(frames.open_(1) + frames.frame(Kind.FIN, 1) * 2)
                line.to_end()
                assert line.goaway is not None and line.goaway[1] == Code.STREAM_STATE
    print(f"\nmade you reset: {number} visitors reset by the relay; {seen}\n  {number // 10} tunnels; {more}")
    assert seen.gained <= MEMORY


@pytest.mark.slow
def test_credit_without_end_and_nobody_reads(field: Field, enemy: Callable[[], Line], long: int) -> None:
    """The client allows 2^62 bytes for each visitor and reads no more: visitors are stopped, the relay keeps a read of each at most."""
    number = 1000 if long else 100
    with field.neighbours.watch() as seen, enemy() as line, contextlib.ExitStack() as stack:
        where = ("127.0.0.1", public_port(line))
        visitors = [stack.enter_context(connect(where)) for _ in range(number)]
        line.until(number, Kind.OPEN)
        line.send(b"".join(frames.accept(2 * n, 1 << 62) for n in range(1, number + 1)))
        with Pump((visitor, Keystream(("deaf", n))) for n, visitor in enumerate(visitors)) as pump:
            until(lambda: pump.stuck(1.0), "every visitor is stopped")
            assert not pump.failed
        sent = pump.sent
    print(f"\n2^62 bytes of credit, nobody reads: {number} visitors sent {sent / 1e6:.0f} MB in all; {seen}")
    assert seen.gained <= number * 16 + MEMORY
