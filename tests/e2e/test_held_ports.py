"""The public port of a client that is away, in whole processes: a crowd at it costs the relay nothing, and the client finds it free."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.attack.neighbours import cpu
from tests.support.payload import Checker
from tests.support.peers import End, connect, echoes, read_to_end, until, ways_in
from tests.support.processes import BEST, Client, Echo, Server

RETURN = 0.3


@pytest.mark.slow
def test_a_crowd_at_the_port_of_a_client_that_is_away(tmp_path: Path, long: int) -> None:
    """While it is waited for, and after that."""
    with Server(tmp_path / "server", BEST, "--limit", f"return-time={RETURN:g}s") as server, Echo() as echo:
        assert not isinstance(echo.target, str)
        token = server.token()

        def client() -> Client:
            return Client(server.url, token, tmp_path / "client", expose=[str(echo.target[1])], name="home")

        with client() as home:
            (where,) = home.addresses()
            echoes(where)
            home.kill()
        server.logs("client.gone")
        used, start, refused = cpu(server), time.monotonic(), 0
        with contextlib.ExitStack() as stack:
            waiting = [stack.enter_context(connect(where)) for _ in range(500)]
            for visitor in waiting:
                assert read_to_end(visitor, Checker("nothing")) is End.RESET
            assert time.monotonic() - start < 2
        while time.monotonic() - start < (60 * long or 1.5):
            with pytest.raises(ConnectionRefusedError):
                connect(where)
            refused += 1
        share = (cpu(server) - used) / (time.monotonic() - start)
        print(f"\n500 waited, {refused} came later; CPU of the relay {share:.1%}, {server.files()} descriptors")
        assert refused > 500 and share < 0.05
        assert not ways_in(where[1])
        with client() as home:
            assert home.addresses() == [where]
            echoes(where)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_client_that_starts_anew_loses_no_visitor(tmp_path: Path, number: signal.Signals) -> None:
    with Server(tmp_path / "server") as server, Echo() as echo:
        assert not isinstance(echo.target, str)
        token = server.token()

        def client() -> Client:
            return Client(server.url, token, tmp_path / "client", expose=[str(echo.target[1])], name="home")

        with client() as home:
            (where,) = home.addresses()
            home.signal(number)
            home.wait()
        until(lambda: "client.gone" in server.stderr, "the relay knows")
        with contextlib.ExitStack() as stack:
            visitors = [stack.enter_context(connect(where)) for _ in range(20)]
            for visitor in visitors:
                visitor.sendall(b"are you back?")
                visitor.shutdown(socket.SHUT_WR)
            with client() as home:
                assert home.addresses() == [where]
                for visitor in visitors:
                    assert visitor.recv(100) == b"are you back?" and visitor.recv(100) == b""
