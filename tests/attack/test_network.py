"""Faults of the network while data flow: a stream ends in a reset or has carried every byte, and the client is back by itself."""

from __future__ import annotations

import contextlib
import random
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest

from tests.attack.conftest import PLAIN
from tests.attack.neighbours import unharmed
from tests.attack.proxy import Crossing
from tests.support.payload import Checker, Keystream
from tests.support.peers import TIMEOUT, End, background, read_to_end, until
from tests.support.processes import BEST, Pair, Way

STREAMS = 4
BACK = 5.0
"""Seconds within which the client is back: the first wait is below 1 s, and one more try may be needed."""


@pytest.fixture(scope="module", params=[BEST, PLAIN], ids=repr)
def way(request: pytest.FixtureRequest) -> Way:
    made = request.param
    assert isinstance(made, Way)
    return made


@pytest.fixture(scope="module")
def crossing(way: Way, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crossing]:
    with Crossing(tmp_path_factory.mktemp("crossing"), way) as made:
        yield made


class Flow:
    """One stream that sends until it is told to stop, and then ends; and who reads it."""

    def __init__(self, pair: Pair, seed: object, *, upwards: bool, checked: bool) -> None:
        self._source, self._sink = (pair.visitor, pair.target) if upwards else (pair.target, pair.visitor)
        self._stop = threading.Event()
        self.checker = Checker(seed)
        self._checked = checked
        self._sent: Future[int] = background(self._send, Keystream(seed))
        self._end: Future[End] = (
            background(read_to_end, self._sink, self.checker) if checked else background(self._drain)
        )

    def _send(self, stream: Keystream) -> int:
        """How many bytes were sent, all of them followed by an end; -1 when that was not possible."""
        try:
            while not self._stop.is_set():
                self._source.sendall(stream.take(16_384))
            self._source.shutdown(socket.SHUT_WR)
        except OSError:
            return -1
        return stream.offset

    def _drain(self) -> End:
        try:
            while self._sink.recv(65_536):
                pass
        except ConnectionError:
            return End.RESET
        return End.EOF

    def stop(self) -> None:
        self._stop.set()

    def end(self, timeout: float = TIMEOUT) -> End:
        """How it ended; a clean end must be one of the sender's, behind every byte."""
        end = self._end.result(timeout)
        self._stop.set()
        sent = self._sent.result(timeout)
        if end is End.EOF and self._checked:
            assert sent == self.checker.received, f"a clean end after {self.checker.received} of {sent} bytes"
        return end

    def over(self) -> bool:
        return self._end.done()


@contextlib.contextmanager
def flowing(crossing: Crossing, seed: object, *, checked: bool = True) -> Iterator[list[Flow]]:
    """Streams in both directions, with a good deal of data under way."""
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(crossing.pair()) for _ in range(STREAMS)]
        flows = [Flow(pair, (seed, n), upwards=n % 2 == 0, checked=checked) for n, pair in enumerate(pairs)]
        time.sleep(random.uniform(0.01, 0.1))
        yield flows
        for flow in flows:
            flow.stop()


def back(crossing: Crossing) -> float:
    """Seconds until a new connection works."""
    start = time.monotonic()
    with crossing.pair_again(start + BACK) as pair:
        pair.visitor.sendall(b"again")
        assert pair.target.recv(5) == b"again"
    return time.monotonic() - start


# --- faults that a tunnel survives --------------------------------------------------------------------------------------


def stall(crossing: Crossing) -> None:
    crossing.proxy.up.stalled = crossing.proxy.down.stalled = True


def stall_up(crossing: Crossing) -> None:
    crossing.proxy.up.stalled = True


def stall_down(crossing: Crossing) -> None:
    crossing.proxy.down.stalled = True


def dribble(crossing: Crossing) -> None:
    for fault in (crossing.proxy.up, crossing.proxy.down):
        fault.piece = (1, 1)


def split(crossing: Crossing) -> None:
    for fault in (crossing.proxy.up, crossing.proxy.down):
        fault.piece = (1, 1400)


def delay(crossing: Crossing) -> None:
    for fault in (crossing.proxy.up, crossing.proxy.down):
        fault.piece, fault.pause = (1, 20_000), 0.005


BAD: list[Callable[[Crossing], None]] = [stall, stall_up, stall_down, dribble, split, delay]


@pytest.mark.slow
def test_what_a_tunnel_survives(crossing: Crossing, long: int) -> None:
    """Every stream comes to its clean end with every byte, and the tunnel is the same."""
    made = crossing.proxy.made
    times = 30 * long or 1
    moved = 0
    for turn in range(times):
        for fault in BAD:
            with flowing(crossing, (fault.__name__, turn)) as flows:
                fault(crossing)
                time.sleep(random.uniform(0.05, 0.3) if long else 0.05)
                crossing.heal()
                time.sleep(0.02)
                for flow in flows:
                    flow.stop()
                assert [flow.end() for flow in flows] == [End.EOF] * STREAMS, fault.__name__
                moved += sum(flow.checker.received for flow in flows)
    assert crossing.proxy.made == made, "a new tunnel was made"
    unharmed(crossing.server, crossing.client)
    print(
        f"\n{crossing.way}: {times * len(BAD)} faults that end ({', '.join(fault.__name__ for fault in BAD)}): "
        f"{moved / 1e6:.0f} MB, all {times * len(BAD) * STREAMS} streams whole, the same tunnel"
    )


# --- faults that it does not --------------------------------------------------------------------------------------------


def fin(crossing: Crossing) -> None:
    crossing.proxy.cut(reset=False)


def rst(crossing: Crossing) -> None:
    crossing.proxy.cut(reset=True)


def rst_to_the_client(crossing: Crossing) -> None:
    """The relay still holds the old connection when the client is back."""
    crossing.proxy.cut(reset=True, relay=False)


def flip_up(crossing: Crossing) -> None:
    crossing.proxy.up.falsify(random.randrange(200_000))


def flip_down(crossing: Crossing) -> None:
    crossing.proxy.down.falsify(random.randrange(200_000))


def repeat_up(crossing: Crossing) -> None:
    crossing.proxy.up.repeat(random.randrange(200_000))


def repeat_down(crossing: Crossing) -> None:
    crossing.proxy.down.repeat(random.randrange(200_000))


CUTS: list[Callable[[Crossing], None]] = [fin, rst, rst_to_the_client]
FORGERIES: list[Callable[[Crossing], None]] = [flip_up, flip_down, repeat_up, repeat_down]


@pytest.mark.slow
def test_what_ends_a_tunnel(crossing: Crossing, way: Way, long: int) -> None:
    """Streams are reset at both ends, what arrived before is right, and the client is back. Under TLS whatever was falsified ends it too."""
    faults = CUTS + (FORGERIES if way.tls else [])
    if not long:
        faults = random.sample(faults, 2)  # each time the client waits for up to a second
    times = 30 * long or 1
    waits: list[float] = []
    arrived = whole = 0
    for turn in range(times):
        for fault in faults:
            with flowing(crossing, (fault.__name__, turn)) as flows:
                before = crossing.proxy.made
                for flow in flows[::2] if fault in CUTS else ():
                    flow.stop()  # its end and the fault are under way together
                time.sleep(random.choice((0, 0, 0.001, 0.01)))
                fault(crossing)
                ends = [flow.end() for flow in flows]
                crossing.heal()
                waits.append(back(crossing))
                assert crossing.proxy.made > before, "the tunnel was never lost"
                assert End.EOF not in ends[1::2] + (ends if fault in FORGERIES else []), fault.__name__
                arrived += sum(flow.checker.received for flow in flows)
                whole += ends.count(End.EOF)
    unharmed(crossing.server, crossing.client)
    print(
        f"\n{way}: {len(waits)} faults that end a tunnel ({', '.join(fault.__name__ for fault in faults)}): {arrived / 1e6:.0f} MB arrived, "
        f"0 wrong bytes; of {len(waits) * STREAMS} streams {whole} had come to their end before, with every byte, the others were reset; "
        f"back after {statistics.median(waits):.2f} s (median), {max(waits):.2f} s (longest)"
    )


@pytest.mark.slow
@pytest.mark.parametrize("way", [PLAIN], ids=repr, indirect=True, scope="module")
def test_what_is_falsified_on_a_plain_tunnel(crossing: Crossing, way: Way, long: int) -> None:
    """Nothing protects its bytes, so streams may carry wrong ones; but neither side fails, and a cut puts all right."""
    faults = FORGERIES * 50 * long or random.sample(FORGERIES, 2)
    noticed = sum(falsified(crossing, fault, turn) for turn, fault in enumerate(faults))
    unharmed(crossing.server, crossing.client)
    print(f"\n{way}: {len(faults)} times something was falsified: noticed at once {noticed} times, and nobody failed")


def falsified(crossing: Crossing, fault: Callable[[Crossing], None], turn: int) -> bool:
    """Whether the tunnel has ended at once."""
    with flowing(crossing, (fault.__name__, turn), checked=False) as flows:
        made, said, hits = crossing.proxy.made, len(crossing.client.err), crossing.proxy.hits
        fault(crossing)
        until(lambda: crossing.proxy.hits > hits, "a byte was falsified")
        time.sleep(0.1)
        noticed = crossing.proxy.made > made or len(crossing.client.err) > said
        if not noticed:
            crossing.proxy.cut(reset=True)  # it was payload, or a length that has not come to its end
        for flow in flows:
            flow.end()
    back(crossing)
    return noticed
