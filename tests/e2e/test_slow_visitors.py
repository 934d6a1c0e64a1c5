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
from tests.support.processes import Echo, Relay, Way

SLOW = 50
PINGS = 1000
FIRST = 2_000_000  # bytes that each flood moves before its reader stops, so that the windows have grown
BOUND_KIB = (SLOW * wire.WINDOW_FLOOR + wire.TUNNEL_POOL) * 1.15 / 1024


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as made:
        yield made


@pytest.mark.parametrize("way", SPREAD, ids=repr)
@pytest.mark.parametrize("flooding", ["targets", "visitors"])
def test_others_go_on_and_memory_is_bounded(tmp_path: Path, echo: Echo, way: Way, flooding: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=SLOW) as listener,
        Relay(tmp_path, way, listener.getsockname(), echo.target) as relay,
        contextlib.ExitStack() as stack,
    ):
        flooded, echoing = relay.addresses
        with connect(echoing) as warm:
            ask(warm, b"x" * 1000)
        before = relay.server.rss(), relay.client.rss()

        visitors, targets = [], []
        for _ in range(SLOW):
            visitors.append(stack.enter_context(connect(flooded)))
            targets.append(stack.enter_context(accept(listener)))
        sources, sinks = (targets, visitors) if flooding == "targets" else (visitors, targets)
        seeds = [("slow", number) for number in range(SLOW)]
        with Pump([(source, Keystream(seed)) for source, seed in zip(sources, seeds, strict=True)]) as pump:
            first = [background(read, sink, Checker(seed), FIRST) for sink, seed in zip(sinks, seeds, strict=True)]
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
            f"\n{way}, {flooding} flood, {SLOW} readers stopped: {PINGS} of {PINGS} pings in {took:.2f} s;"
            f" memory gained (peak) server {gains[0]} KiB, client {gains[1]} KiB = {sum(gains) / SLOW:.0f} KiB for each slow reader"
        )
        assert max(gains) <= BOUND_KIB
        stack.close()
        with connect(echoing) as visitor:
            ask(visitor, b"still there")
