"""One slow reader stalls nobody, and costs at most its window (protocol.md 8.3)."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastrelay import wire
from tests.e2e.conftest import SPREAD
from tests.support.payload import Checker, Keystream
from tests.support.peers import TIMEOUT, Pump, accept, ask, background, connect, read, until
from tests.support.processes import BEST, Echo, Relay, Way

PINGS = 1000
MOVED = 100_000_000  # bytes that the floods move before their readers stop, so that the windows have grown


def bound_kib(streams: int) -> float:
    """What all streams of a tunnel may hold in one process (protocol.md 8.3)."""
    return (streams * wire.WINDOW_FLOOR + wire.TUNNEL_POOL) / 1024


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as made:
        yield made


@pytest.mark.parametrize("way", SPREAD, ids=repr)
@pytest.mark.parametrize("flooding", ["targets", "visitors"])
def test_others_go_on_and_memory_is_bounded(tmp_path: Path, echo: Echo, way: Way, flooding: str) -> None:
    stall(tmp_path, echo, way, flooding, 50)


@pytest.mark.slow
@pytest.mark.parametrize("flooding", ["targets", "visitors"])
def test_so_it_is_with_a_thousand(tmp_path: Path, echo: Echo, flooding: str) -> None:
    stall(tmp_path, echo, BEST, flooding, 1000)


def stall(tmp_path: Path, echo: Echo, way: Way, flooding: str, slow: int) -> None:
    """Readers stop, and others are served; what both processes held at most is within the bound."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=slow) as listener,
        Relay(tmp_path, way, listener.getsockname(), echo.target) as relay,
        contextlib.ExitStack() as stack,
    ):
        flooded, echoing = relay.addresses
        with connect(echoing) as warm:
            ask(warm, b"x" * 1000)
        before = relay.server.rss(), relay.client.rss()

        visitors, targets = [], []
        for _ in range(slow):
            visitors.append(stack.enter_context(connect(flooded)))
            targets.append(stack.enter_context(accept(listener)))
        sources, sinks = (targets, visitors) if flooding == "targets" else (visitors, targets)
        seeds = [("slow", number) for number in range(slow)]
        with Pump([(source, Keystream(seed)) for source, seed in zip(sources, seeds, strict=True)]) as pump:
            first = [
                background(read, sink, Checker(seed), MOVED // slow) for sink, seed in zip(sinks, seeds, strict=True)
            ]
            for reading in first:
                reading.result(TIMEOUT)

            start = time.monotonic()
            with connect(echoing) as visitor:  # while the floods still fill what there is, and after it is full
                for number in range(PINGS):
                    ask(visitor, number.to_bytes(32, "big"))
            took = time.monotonic() - start
            until(pump.stuck, "every flood is stopped")
            gains = relay.server.peak() - before[0], relay.client.peak() - before[1]
            assert not pump.failed
        print(
            f"\n{way}, {flooding} flood, {slow} readers stopped: {PINGS} of {PINGS} pings in {took:.2f} s;"
            f" memory gained (peak) server {gains[0]} KiB, client {gains[1]} KiB = {sum(gains) / slow:.0f} KiB for each slow reader;"
            f" peak / bound {max(gains) / bound_kib(slow):.2f}"
        )
        assert max(gains) <= bound_kib(slow) * 1.15
        stack.close()
        with connect(echoing) as visitor:
            ask(visitor, b"still there")
