"""A network that swallows: nothing is ended, nothing is answered. How long until the two sides know, and how fast a new tunnel takes over."""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.attack.conftest import PLAIN
from tests.attack.namespace import Road, inside
from tests.attack.neighbours import unharmed
from tests.attack.proxy import Crossing
from tests.attack.test_network import Flow, back
from tests.support.peers import End, accept, connect, until
from tests.support.processes import BEST, Client, Pair, Process, Server, Way, spec

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
            return seconds(entry)
    return None


def seconds(entry: dict[str, str]) -> float:
    return datetime.datetime.fromisoformat(entry["ts"]).timestamp()


@pytest.fixture
def crossing(tmp_path: Path) -> Iterator[Crossing]:
    with Crossing(tmp_path, BEST) as made:
        yield made


def take_over(crossing: Crossing, turn: int) -> float:
    """Seconds from the new login to the first visitor who is served."""
    since = len(crossing.server.err)
    old = sessions(crossing, "client.connected")[-1][0]
    with crossing.pair() as pair:
        flow = Flow(pair, turn, upwards=turn % 2 == 0, checked=True)
        until(lambda: flow.checker.received, "data flow")
        crossing.proxy.cut(reset=True, relay=False)
        until(lambda: when(crossing.server, "client.connected", since), "the client is back")
        login = when(crossing.server, "client.connected", since)
        back(crossing)
        now = time.time()
        assert flow.end() is End.RESET
    assert login is not None
    gone = [at for session, at in sessions(crossing, "client.gone") if session == old]
    assert not gone or gone[0] >= login, "the old session was over before the new one came"
    return now - login


def sessions(crossing: Crossing, event: str) -> list[tuple[str, float]]:
    """The session and the time of each such event of the relay."""
    entries = [json.loads(line) for line in crossing.server.err]
    return [(entry["session"], seconds(entry)) for entry in entries if entry["event"] == event]


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
def test_with_data_queued(tmp_path: Path, upload: bool) -> None:
    """Packets themselves are swallowed: who has data to send gives up after 30 s without an acknowledgement."""
    with contextlib.ExitStack() as stack:
        road = stack.enter_context(Road())
        listener = stack.enter_context(inside(road.client, lambda: socket.create_server(("127.0.0.1", 0))))
        server = stack.enter_context(inside(road.relay, lambda: Server(tmp_path / "server", bind=f"{road.RELAY}:0")))
        token, expose = server.token(), [spec(listener.getsockname())]
        client = stack.enter_context(
            inside(road.client, lambda: Client(server.url, token, tmp_path / "client", expose=expose, name="far"))
        )
        where = client.addresses()[0]
        visitor = stack.enter_context(inside(road.relay, lambda: connect(where)))
        target = stack.enter_context(accept(listener))
        for sock in (visitor, target):
            sock.settimeout(2 * IDLE)
        flow = Flow(Pair(visitor, target), "queued", upwards=upload, checked=True)
        until(lambda: flow.checker.received > 10_000_000, "data flow")
        lines = len(server.err), len(client.err)
        start = time.time()
        road.forward(False)
        sides = (server, "client.gone", lines[0]), (client, "tunnel.retry", lines[1])
        sender, other = sides if upload else reversed(sides)
        until(lambda: when(*sender), "the sender has noticed", IDLE + MORE)
        until(lambda: when(*other), "the other side has noticed", IDLE + MORE)
        road.forward(True)
        noticed, late = when(*sender), when(*other)
        assert noticed is not None and late is not None
        assert flow.end(IDLE) is End.RESET
        back = client.logs("tunnel.up", since=lines[1], timeout=40)
    print(
        f"\ndata queued, {'upload' if upload else 'download'}: the sender noticed after {noticed - start:.1f} s, "
        f"the other side after {late - start:.1f} s; back by itself: {bool(back)}"
    )
    assert noticed - start <= QUEUED + MORE
