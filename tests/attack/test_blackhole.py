"""A network that swallows: nothing is ended, nothing is answered. How long until the two sides know, and how fast a new tunnel takes over."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.attack.conftest import PLAIN
from tests.attack.neighbours import unharmed
from tests.attack.proxy import Crossing
from tests.attack.test_network import Flow, back
from tests.support.peers import End, until
from tests.support.processes import BEST, Process, Way

IDLE = 45.0
QUEUED = 30.0
MORE = 3.0
"""Seconds on top: a timer of TCP comes round, a line is written."""
TAKEOVER = 1.0


def when(process: Process, event: str, since: int) -> float | None:
    """The time of the first such event after line `since` of stderr."""
    for line in process.err[since:]:
        entry = json.loads(line)
        if entry["event"] == event:
            return datetime.datetime.fromisoformat(entry["ts"]).timestamp()
    return None


@pytest.fixture
def crossing(tmp_path: Path) -> Iterator[Crossing]:
    with Crossing(tmp_path, BEST) as made:
        yield made


def take_over(crossing: Crossing, turn: int) -> float:
    """Seconds from the new login to the first visitor who is served."""
    since = len(crossing.server.err)
    with crossing.pair() as pair:
        flow = Flow(pair, turn, upwards=turn % 2 == 0, checked=True)
        until(lambda: flow.checker.received, "data flow")
        crossing.proxy.cut(reset=True, relay=False)
        until(lambda: when(crossing.server, "client.connected", since), "the client is back")
        login = when(crossing.server, "client.connected", since)
        back(crossing)
        now = time.time()
        gone = when(crossing.server, "client.gone", since)
        assert flow.end() is End.RESET
    assert login is not None
    assert gone is None or gone >= login, "the old session was over before the new one came"
    return now - login


@pytest.mark.slow
@pytest.mark.parametrize("way", [BEST, PLAIN], ids=repr)
def test_a_new_tunnel_takes_over(tmp_path: Path, way: Way, long: int) -> None:
    """The relay still holds the old connection, which is dead: visitors reach the new one at once, the old streams are reset."""
    with Crossing(tmp_path, way) as crossing:
        waits = [take_over(crossing, turn) for turn in range(20 * long or 1)]
        unharmed(crossing.server, crossing.client)
    print(f"\n{way}: taken over {len(waits)} times, visitors served {max(waits):.2f} s after the new login at most")
    assert max(waits) <= TAKEOVER


# --- by the clock -------------------------------------------------------------------------------------------------------


def both(crossing: Crossing) -> None:
    crossing.proxy.abandon()


def up(crossing: Crossing) -> None:
    crossing.proxy.up.stalled = True


def down(crossing: Crossing) -> None:
    crossing.proxy.down.stalled = True


@pytest.mark.slow
@pytest.mark.usefixtures("only_long")
@pytest.mark.parametrize("swallow", [both, up, down])
def test_idle(crossing: Crossing, swallow: Callable[[Crossing], None]) -> None:
    """Who hears nothing for 45 s gives up; the other side is told, or hears nothing either."""
    lines = len(crossing.server.err), len(crossing.client.err)
    start = time.time()
    swallow(crossing)
    until(lambda: when(crossing.server, "client.gone", lines[0]), "the relay has noticed", IDLE + MORE)
    if swallow is not both:
        time.sleep(1)
        crossing.heal()
    until(lambda: when(crossing.client, "tunnel.retry", lines[1]), "the client has noticed", IDLE + MORE)
    gone, retry = when(crossing.server, "client.gone", lines[0]), when(crossing.client, "tunnel.retry", lines[1])
    assert gone is not None and retry is not None
    waited = back(crossing)
    print(
        f"\nidle, {swallow.__name__}: relay {gone - start:.1f} s, client {retry - start:.1f} s, back {waited:.1f} s after"
    )
    assert min(gone, retry) - start <= IDLE + MORE


@pytest.mark.slow
@pytest.mark.usefixtures("only_long")
@pytest.mark.parametrize("upload", [True, False], ids=["upload", "download"])
def test_with_data_queued(crossing: Crossing, upload: bool) -> None:
    """Who has data to send gives up after 30 s without an acknowledgement."""
    with crossing.pair() as pair:
        flow = Flow(pair, "queued", upwards=upload, checked=True)
        until(lambda: flow.checker.received > 10_000_000, "data flow")
        lines = len(crossing.server.err), len(crossing.client.err)
        start = time.time()
        crossing.proxy.abandon()
        sender = (crossing.server, "client.gone", lines[0]) if upload else (crossing.client, "tunnel.retry", lines[1])
        until(lambda: when(*sender), "the sender has noticed", IDLE + MORE)
        noticed = when(*sender)
        assert noticed is not None
        print(f"\ndata queued, {'upload' if upload else 'download'}: the sender noticed after {noticed - start:.1f} s")
        assert noticed - start <= QUEUED + MORE
        assert flow.end(IDLE) is End.RESET
    back(crossing)
