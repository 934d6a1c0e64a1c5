"""Visitors come all at once, or while the relay looks away: the kernel drops none of them, and each is served."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import TWICE
from tests.support.crowd import Crowd, dropped
from tests.support.peers import ask, connect
from tests.support.processes import Echo, Relay, Way


@pytest.fixture
def greeter() -> Iterator[Echo]:
    """A service that speaks first: a visitor of whom the relay does not know waits for ever."""
    with Echo("--greet") as made:
        yield made


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as made:
        yield made


@pytest.mark.parametrize("way", [TWICE[0], pytest.param(TWICE[1], marks=pytest.mark.slow)], ids=repr)
def test_all_at_once(tmp_path: Path, greeter: Echo, echo: Echo, way: Way, long: int) -> None:
    number = 10_000 if long else 1000
    for _ in range(max(long, 1)):
        with Relay(tmp_path, way, greeter.target, echo.target) as relay, Crowd(relay.addresses[0]) as crowd:
            with connect(relay.addresses[1]) as early:
                ask(early, b"before")
                start = time.monotonic()
                crowd.knock(number)
                knocked = time.monotonic() - start
                crowd.greeted(number, 60)
                took = time.monotonic() - start
                assert not crowd.lost and not dropped(relay.addresses[0][1])
                ask(early, b"after")
        print(f"\n{way}: {number} knocked in {knocked:.2f} s and were served in {took:.2f} s, 0 dropped, 0 lost")


@pytest.mark.slow
@pytest.mark.parametrize("way", TWICE, ids=repr)
def test_while_the_relay_stalls(tmp_path: Path, greeter: Echo, echo: Echo, way: Way, long: int) -> None:
    number = 1000 if long else 300
    for _ in range(max(long, 1)):
        with Relay(tmp_path, way, greeter.target, echo.target) as relay, Crowd(relay.addresses[0]) as crowd:
            with connect(relay.addresses[1]) as early:
                ask(early, b"before")
                relay.server.signal(signal.SIGSTOP)
                stopped = time.monotonic()
                crowd.knock(number)
                time.sleep(max(0.0, stopped + 0.4 - time.monotonic()))
                relay.server.signal(signal.SIGCONT)
                took = crowd.greeted(number)
                assert not crowd.lost and not dropped(relay.addresses[0][1])
                ask(early, b"after")
        print(f"\n{way}: {number} came during a stall, all served {took:.2f} s after it, 0 dropped, 0 lost")
