"""Ten thousand connections that wait on one tunnel: all open, all answering, and what they cost."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest

from tests.support import need
from tests.support.payload import Checker, Keystream
from tests.support.peers import TIMEOUT, End, background, connect, echoes, exactly, read_to_end, send_and_end, until
from tests.support.processes import WAYS, Echo, Relay, Way

BUDGET_KIB = 4.0  # for each stream, both processes together
BATCH = 500
FAST = [way for way in WAYS if way.loop == "uvloop"]


@pytest.mark.parametrize(
    ("way", "number"),
    [
        (FAST[0], 1000),
        pytest.param(FAST[0], 10_000, marks=pytest.mark.slow),
        pytest.param(FAST[1], 10_000, marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_idle_streams(tmp_path: Path, way: Way, number: int) -> None:
    need.files(2 * number if number < 5000 else number + 2000)
    with Echo() as echo, Relay(tmp_path, way, echo.target) as relay, contextlib.ExitStack() as stack:
        processes = (relay.server, relay.client)
        open_ = [process.files() for process in processes]
        for _ in range(100):  # what the first streams cost once, buffers and all, is not what a stream costs
            echoes(relay.addresses[0])
        with connect(relay.addresses[0]) as sock:
            sending = background(send_and_end, sock, Keystream("warm"), 20_000_000)
            assert read_to_end(sock, Checker("warm")) is End.EOF
            sending.result(TIMEOUT)
        until(lambda: [process.files() for process in processes] == open_, "the first streams are gone")
        time.sleep(1)
        before = [process.rss() for process in processes]

        start = time.monotonic()
        visitors: list[socket.socket] = []
        while len(visitors) < number:  # in batches, each of which has answered before the next
            batch = [connect(relay.addresses[0], source=f"127.0.0.{index % 4 + 1}") for index in range(BATCH)]
            visitors += [stack.enter_context(visitor) for visitor in batch]
            answered(batch, "first")
        opened = time.monotonic() - start
        time.sleep(2)
        gained = [process.rss() - start for process, start in zip(processes, before, strict=True)]
        files = [process.files() - start for process, start in zip(processes, open_, strict=True)]
        assert files == [number, number], "as many sockets as streams in both processes"
        answered(visitors, "again")
        each = sum(gained) / number
        print(
            f"\n{way}: {number} idle streams on one tunnel, all answering, opened and answered at {number / opened:.0f} a second;"
            f" {gained[0] / number:.2f} + {gained[1] / number:.2f} = {each:.2f} KiB for each in server and client"
        )
        if number >= 10_000:  # with fewer, what the allocator holds at once counts for too much
            assert each <= BUDGET_KIB


def answered(visitors: list[socket.socket], word: str) -> None:
    """Every stream answers its own question."""
    for index, visitor in enumerate(visitors):
        visitor.sendall(f"{word}{index:08}".encode())
    for index, visitor in enumerate(visitors):
        assert exactly(visitor, len(word) + 8) == f"{word}{index:08}".encode()
