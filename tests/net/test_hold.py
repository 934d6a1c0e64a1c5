"""Ports of clients that are away: no other program gets them, who comes waits for a moment, and nobody is asked then."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fastrelay.limits import Limits
from fastrelay.net.hold import Holder
from fastrelay.net.listen import listen
from fastrelay.net.options import LINGER_RESET
from fastrelay.net.runtime import Runtime
from tests.conftest import Run
from tests.roles.test_server import LOCALHOST, five_ports
from tests.support.peers import End, ways_in
from tests.support.tunnel import Local, turns, until


@asynccontextmanager
async def holder(**limits: Any) -> AsyncIterator[Holder]:
    runtime = Runtime(Limits(**limits), "the test")
    made = Holder(runtime, LOCALHOST)
    try:
        yield made
    finally:
        made.close()
        await runtime.close()


def given_up(held: Holder, port: int, **how: bool) -> socket.socket:
    """A client had the port, and has gone."""
    sock = listen(LOCALHOST, port)
    held.hold(sock, "home", **how)
    return sock


def listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def visit(port: int) -> Local:
    """Somebody who does not wait for the answer, which may be a reset."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex((LOCALHOST, port))
    return Local(sock)


async def refused(port: int) -> bool:
    sock = socket.socket()
    sock.setblocking(False)
    with sock:
        try:
            await asyncio.get_running_loop().sock_connect(sock, (LOCALHOST, port))
        except ConnectionRefusedError:
            return True
    return False


def reached(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    fields = [vars(record)["fields"] for record in caplog.records if vars(record)["event"] == "limit.reached"]
    return [(one["limit"], one["who"]) for one in fields]


def test_who_comes_waits_for_the_client(run: Run) -> None:
    async def main() -> None:
        async with holder() as held:
            port = five_ports().first
            sock = given_up(held, port)
            visitor = visit(port)
            await turns()
            await visitor.send(b"are you there?")
            assert not ways_in(port)
            with held.take(port, "home") as back:
                assert back is sock
                inside, _ = back.accept()
                with inside:
                    assert inside.recv(100) == b"are you there?"
            visitor.close()

    run(main())


def test_but_not_for_long(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with holder(return_time=0.02) as held:
            port = five_ports().first
            sock = given_up(held, port)
            visitors = [visit(port) for _ in range(3)]
            for visitor in visitors:
                assert await visitor.to_end() == (b"", End.RESET)
                visitor.close()
            assert not listens(sock)
            assert await refused(port)
            assert not ways_in(port)
            # With nobody who waited it is the same, and there is nothing to tell.
            other = five_ports().first
            given_up(held, other)
            await until(lambda: not listens(sock), "its time is over")
            assert not ways_in(other)

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    assert reached(caplog) == [("return-time", "home")]


def test_a_client_that_comes_late(run: Run) -> None:
    """The port listens again, and its connections have what they had."""

    async def main() -> None:
        async with holder() as held:
            port = five_ports().first
            sock = given_up(held, port, awaited=False)
            assert not listens(sock) and await refused(port)
            with held.take(port, "home") as back:
                assert back is sock and not ways_in(port)
                visitor = visit(port)
                await turns()
                inside, _ = back.accept()
                with inside:
                    assert inside.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == LINGER_RESET
                    assert inside.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                visitor.close()
                # A second time, with connections of the first one about.
                held.hold(back.dup(), "home", awaited=False)
            assert not ways_in(port)
            held.take(port, "home").close()
            assert ways_in(port), "nobody has it any more"

    run(main())


def test_who_comes_to_somebody_who_will_not_return(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with holder() as held:
            port = five_ports().first
            sock = listen(LOCALHOST, port)
            visitor = visit(port)
            await turns()
            held.hold(sock, "home", awaited=False)
            assert await visitor.to_end() == (b"", End.RESET)
            assert await refused(port)
            visitor.close()

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    assert not reached(caplog), "nobody has waited"


def test_ports_from_before_we_began(run: Run) -> None:
    async def main() -> None:
        async with holder() as held:
            mine, others = list(five_ports())[:2]
            with listen(LOCALHOST, others):
                held.bind(mine, "home")
                with pytest.raises(OSError):
                    held.bind(others, "home")
            assert not ways_in(mine) and ways_in(others)
            held.take(others, "home").close()
            held.take(mine, "home").close()

    run(main())


def test_let_go_of(run: Run) -> None:
    async def main() -> None:
        async with holder() as held:
            one, two, three, four = list(five_ports())[:4]
            for port in (one, two):
                given_up(held, port)
            given_up(held, three, awaited=False)
            held.keep({one: "home"})
            assert not ways_in(one) and ways_in(two) and ways_in(three)
            held.close()
            assert ways_in(one)
            given_up(held, four)
            assert ways_in(four), "it holds nothing any more"

    run(main())


@pytest.mark.parametrize("files", [None, 128])
def test_how_many_are_held(run: Run, caplog: pytest.LogCaptureFixture, files: int | None) -> None:
    """As many as the limit says, and never more than a quarter of the descriptors."""

    async def main() -> None:
        async with holder(held_ports=3) as held:
            if files:
                held._runtime.files = 8
            most = 2 if files else 3
            ports = list(five_ports())
            for port in ports:
                given_up(held, port)
            assert [bool(ways_in(port)) for port in ports] == [False] * most + [True] * (5 - most)
            held.bind(ports[-1], "home")
            assert ways_in(ports[-1])
            held.take(ports[0], "home").close()
            held.bind(ports[-1], "home")
            assert not ways_in(ports[-1]), "there is room again"

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    assert reached(caplog)[0] == ("held-ports", "the test")


def test_who_waits_for_one_client_never_gets_to_another(run: Run) -> None:
    """Reservations may end sooner than the wait."""

    async def main() -> None:
        async with holder() as held:
            port = five_ports().first
            given_up(held, port)
            visitor = visit(port)
            await turns()
            with held.take(port, "another") as sock:
                assert await visitor.to_end() == (b"", End.RESET)
                with pytest.raises(BlockingIOError):
                    sock.accept()
            visitor.close()

    run(main())
