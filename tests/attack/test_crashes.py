"""The relay is killed, again and again, with many clients: all of them come back, by and by and not all at once."""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from pathlib import Path

import pytest

from tests.attack.neighbours import unharmed
from tests.support.peers import Address, echoes, free_port, until
from tests.support.processes import BEST, Client, Echo, Server

BACK = 30.0
"""Seconds: a client that has failed some times waits up to 8 s, once more than that."""
CROWD = 0.1
"""Seconds in which new logins are counted together."""


def logins(server: Server) -> list[float]:
    """When each client connected."""
    entries = [json.loads(line) for line in server.err]
    return [
        datetime.datetime.fromisoformat(entry["ts"]).timestamp()
        for entry in entries
        if entry["event"] == "client.connected"
    ]


def crowd(times: list[float]) -> int:
    """The most logins within CROWD seconds."""
    times = sorted(times)
    return max(sum(start <= other < start + CROWD for other in times) for start in times)


def served(where: Address) -> bool:
    with contextlib.suppress(OSError, AssertionError):
        echoes(where)
        return True
    return False


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def all_back(server: Server, number: int) -> list[float]:
    """When each of the clients was back, and could be visited."""
    until(lambda: sum("service.ready" in line for line in list(server.err)) >= number, "all clients are back", BACK)
    times = logins(server)
    assert len(times) == number, "a client came more than once"
    return times


@pytest.mark.slow
def test_the_relay_is_killed(tmp_path: Path, long: int) -> None:
    kills, number = (100 * long, 50) if long else (2, 5)
    bind = f"127.0.0.1:{free_port()}"
    waits: list[float] = []
    crowds: list[int] = []
    with contextlib.ExitStack() as stack:
        echo = stack.enter_context(Echo())
        server = Server(tmp_path / "server", BEST, bind=bind)
        stack.callback(lambda: server.__exit__(None))
        token, ports = server.token(), server.ports
        clients = [
            stack.enter_context(
                Client(
                    server.url, token, tmp_path / f"c{n}", expose=[f"127.0.0.1:{echo.target[1]}"], name=f"client-{n}"
                )
            )
            for n in range(number)
        ]
        addresses = [client.addresses()[0] for client in clients]
        assert len(set(addresses)) == number
        for _ in range(kills):
            server.kill()
            assert not served(addresses[0])
            server = Server(tmp_path / "server", BEST, bind=bind, ports=ports)
            start = time.time()
            times = all_back(server, number)
            waits.append(max(times) - start)
            crowds.append(crowd(times))
            assert all(served(where) for where in addresses), "every port is as before"
            unharmed(server, *clients)
    print(
        f"\nkill -9 of the relay, {kills} times with {number} clients: all back after {quantile(waits, 0.5):.2f} s (median), "
        f"{quantile(waits, 0.99):.2f} s (99 of 100); at most {max(crowds)} logins in {CROWD * 1e3:.0f} ms; every port as before"
    )
