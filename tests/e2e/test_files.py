"""Descriptors run out: visitors wait and none is lost, tunnels live, nothing spins, and one line says so."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import TWICE
from tests.support.crowd import Crowd, cpu
from tests.support.peers import ask, connect, until
from tests.support.processes import Client, Echo, Process, Relay, Server, Way, spec

CPU = 0.05
"""The most that a relay may use of a core while it is full."""
RECOVERY = 1.0
"""Seconds until visitors come in again once there is room."""

THIEF = """
import os, threading, time
from pathlib import Path

def steal(sign=Path(os.environ["THIEF"])):
    loot = []
    while True:
        try:
            while sign.exists():
                loot.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        if not sign.exists():
            while loot:
                os.close(loot.pop())
        time.sleep(0.02)

threading.Thread(target=steal, daemon=True).start()
"""


@pytest.fixture
def greeter() -> Iterator[Echo]:
    with Echo("--greet") as made:
        yield made


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as made:
        yield made


def is_idle(process: Process, seconds: float) -> float:
    """The share of a core that a process uses, which must be little."""
    before, start = cpu(process), time.monotonic()
    time.sleep(seconds)
    share = (cpu(process) - before) / (time.monotonic() - start)
    assert share < CPU, f"it uses {share:.0%} of a core"
    return share


def lines(process: Process, limit: str) -> int:
    """How often it said that the limit is reached."""
    return sum('"limit.reached"' in line and f'"{limit}"' in line for line in process.err)


@pytest.mark.slow
@pytest.mark.parametrize("way", TWICE, ids=repr)
def test_more_visitors_than_descriptors(tmp_path: Path, greeter: Echo, echo: Echo, way: Way, long: int) -> None:
    number, seconds = (1000 * long, 3.0) if long else (400, 0.5)
    start = time.monotonic()
    with (
        Relay(tmp_path, way, greeter.target, echo.target, options=("--limit", "files=256")) as relay,
        Crowd(relay.addresses[0]) as crowd,
        connect(relay.addresses[1]) as early,
    ):
        ask(early, b"before")
        crowd.knock(number)
        relay.server.logs("limit.reached", '"files"')
        inside = crowd.settled()
        assert 100 < inside < 192 and relay.server.files() <= 256 - 32, "what is kept for tunnels is not touched"
        share = is_idle(relay.server, seconds)
        ask(early, b"the tunnel lives")

        left = time.monotonic()
        crowd.leave(20)
        crowd.greeted(inside)  # twenty others have come in their place
        took = time.monotonic() - left
        assert took < RECOVERY
        seen = inside
        while crowd.waiting:
            seen += len(crowd.inside)
            crowd.leave(len(crowd.inside))
            crowd.greeted(min(crowd.waiting, 50))
        assert not crowd.lost
        ask(early, b"after")
        assert 1 <= lines(relay.server, "files") <= 1 + (time.monotonic() - start) / 10
    print(
        f"\n{way}: {number} visitors, {inside} at once, CPU {share:.1%} while full, others in after {took * 1e3:.0f} ms"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("way", "how"), [(TWICE[0], "thief"), (TWICE[0], "prlimit"), (TWICE[1], "thief")])
def test_descriptors_are_taken_away(
    tmp_path: Path, greeter: Echo, echo: Echo, way: Way, how: str, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = tmp_path / "steal"
    if how == "thief":
        (tmp_path / "sitecustomize.py").write_text(THIEF)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setenv("THIEF", str(sign))
    number, seconds = (1000 * long, 3.0) if long else (100, 0.5)
    with Relay(tmp_path, way, greeter.target, echo.target, options=("--limit", "files=1024")) as relay:
        before = resource.prlimit(relay.server.pid, resource.RLIMIT_NOFILE)
        with Crowd(relay.addresses[0]) as crowd, connect(relay.addresses[1]) as early:
            ask(early, b"before")
            crowd.knock(5)
            crowd.greeted(5)
            time.sleep(0.05)
            if how == "thief":
                sign.touch()
            else:
                now = relay.server.files()
                resource.prlimit(relay.server.pid, resource.RLIMIT_NOFILE, (now, before[1]))
            if how == "thief":
                relay.server.logs("limit.reached", '"files"', timeout=3)
            crowd.knock(number)
            assert crowd.settled(0.2) == 5
            relay.server.logs("limit.reached", '"files"', timeout=3)
            share = is_idle(relay.server, seconds)
            ask(early, b"the tunnel lives")
            if how == "thief":
                sign.unlink()
            else:
                resource.prlimit(relay.server.pid, resource.RLIMIT_NOFILE, before)
            took = crowd.greeted(6, RECOVERY)
            if long:
                crowd.greeted(700)
                crowd.leave(700)
                crowd.greeted(number + 5 - 700)
            else:
                crowd.greeted(number + 5)
            assert not crowd.lost and not crowd.waiting
            ask(early, b"after")
            assert lines(relay.server, "files") <= 2
    print(f"\n{way}, {how}: CPU {share:.1%} while full, visitors in {took * 1e3:.0f} ms after there was room")


@pytest.mark.slow
def test_a_client_without_descriptors_resets_new_visitors(tmp_path: Path, greeter: Echo) -> None:
    """It cannot let them wait: they are with the relay. Those who are in stay, and when some leave others come in."""
    with (
        Server(tmp_path / "server") as server,
        Client(
            server.url, server.token(), tmp_path / "client", "--limit", "files=128", expose=[spec(greeter.target)]
        ) as client,
        Crowd(client.addresses()[0]) as crowd,
    ):
        crowd.knock(100)
        client.logs("limit.reached", '"files"')
        until(lambda: crowd.settled(0.1) + crowd.lost == 100, "every one was let in or reset")
        inside = len(crowd.inside)
        assert 30 < inside <= 80 and client.files() <= 128 - 32
        crowd.leave(20)
        until(lambda: client.files() < inside, "they have left")
        time.sleep(0.3)  # in which it sees that there is room
        crowd.knock(10)
        crowd.greeted(inside - 20 + 10)
        assert lines(client, "files") <= 2
