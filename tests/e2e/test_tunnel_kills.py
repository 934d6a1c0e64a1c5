"""The tunnel is killed again and again while data flows: what arrived is right, nothing ends cleanly, and the client comes back."""

from __future__ import annotations

import contextlib
import random
import socket
import statistics
import subprocess
import time

import pytest

from tests.support import need
from tests.support.payload import Checker, Keystream
from tests.support.peers import TIMEOUT, End, background, read_to_end, send_for_ever
from tests.support.processes import BEST, Link, Pair, Way

BACK = 2.0  # seconds from the kill to the first connection that works again
STREAMS = 6


def kill(ss: str, link: Link) -> None:
    port = link.processes().server.address[1]
    subprocess.run([ss, "-K", "-t", "-n", "dport", "=", f":{port}"], check=True, capture_output=True, timeout=30)


def one_kill(link: Link, ss: str, turn: int, chance: random.Random) -> tuple[float, int]:
    """Streams in both directions, a kill in the middle, a new connection. Seconds until that, and bytes that had arrived."""
    with contextlib.ExitStack() as stack:
        return cut(link, ss, turn, chance, [stack.enter_context(link.pair()) for _ in range(STREAMS)])


def cut(link: Link, ss: str, turn: int, chance: random.Random, pairs: list[Pair]) -> tuple[float, int]:
    flows: list[tuple[socket.socket, socket.socket]] = []
    for number, pair in enumerate(pairs):
        flows.append((pair.visitor, pair.target) if number % 2 else (pair.target, pair.visitor))
    checkers = [Checker((turn, number)) for number in range(STREAMS)]
    sending = [background(send_for_ever, source, Keystream((turn, number))) for number, (source, _) in enumerate(flows)]
    reading = [background(read_to_end, sink, checker) for (_, sink), checker in zip(flows, checkers, strict=True)]
    time.sleep(chance.uniform(0.01, 0.2))
    kill(ss, link)
    start = time.monotonic()
    back: Pair = link.pair_again(start + TIMEOUT)
    seconds = time.monotonic() - start
    with back:
        back.visitor.sendall(b"again")
        assert back.target.recv(5) == b"again"
    for read, sent in zip(reading, sending, strict=True):
        assert read.result(TIMEOUT) is End.RESET
        assert isinstance(sent.result(TIMEOUT), ConnectionError)
    return seconds, sum(checker.received for checker in checkers)


@pytest.mark.parametrize(
    ("way", "kills"),
    [pytest.param(BEST, 5, id="5"), pytest.param(BEST, 200, id="200", marks=pytest.mark.slow)],
    scope="module",
)
def test_tunnel_kills(own_link: Link, way: Way, kills: int) -> None:
    ss = need.socket_kill()
    chance = random.Random(kills)
    done = [one_kill(own_link, ss, turn, chance) for turn in range(kills)]
    times = [seconds for seconds, _ in done]
    total = sum(size for _, size in done)
    print(
        f"\n{way}: {kills} tunnel kills under {STREAMS} flowing streams, {total / 1e9:.2f} GB arrived, 0 wrong bytes, 0 clean ends;"
        f" back after {statistics.median(times):.2f} s (median), {max(times):.2f} s (longest)"
    )
    assert max(times) < BACK
