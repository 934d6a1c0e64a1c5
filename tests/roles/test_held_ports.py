"""A port belongs to its client while that is away too: no other program on the relay's machine gets it, and visitors wait for a moment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fastrelay.errors import Code
from fastrelay.limits import Limits
from fastrelay.net.listen import listen
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.roles.test_server import LOCALHOST, RelayBench, goaway, relay
from tests.support import pair
from tests.support.grants import change_grant, make_token, revoke
from tests.support.peers import End, ways_in
from tests.support.tunnel import Peer, until

SOON = Limits(return_time=0.02)
one_loop = pytest.mark.parametrize("loop_kind", ["uvloop"])
"""For what has nothing to do with the loop."""


async def leave(bench: RelayBench, peer: Peer) -> None:
    peer.close()
    await until(lambda: not bench.server._tunnels, "the client is gone")


async def shut(bench: RelayBench, port: int) -> None:
    await until(lambda: bench.server.held._held[port].shuts is None, "nobody is waited for any more")


async def is_refused(bench: RelayBench, port: int) -> bool:
    try:
        await bench.visit(port)
    except ConnectionRefusedError:
        return True
    return False


# --- other programs ------------------------------------------------------------------------------------------------------


async def here(bench: RelayBench, peer: Peer, port: int) -> None:
    """The client is there."""


async def left(bench: RelayBench, peer: Peer, port: int) -> None:
    await leave(bench, peer)


async def left_long_ago(bench: RelayBench, peer: Peer, port: int) -> None:
    await leave(bench, peer)
    await shut(bench, port)


async def was_superseded(bench: RelayBench, peer: Peer, port: int) -> None:
    """A new session of the client is there, and has not asked for its port."""
    await bench.client()


async def says_goodbye(bench: RelayBench, peer: Peer, port: int) -> None:
    """It takes no more visitors, and has one that stays."""
    await bench.joined(peer, port)
    await peer.send(pair.goaway(Code.SHUTDOWN))
    await until(lambda: port in bench.server.held._held, "the relay has heard it")


async def relay_restarts(bench: RelayBench, peer: Peer, port: int) -> None:
    peer.close()
    await bench.close()
    bench.start()


async def relay_restarted_long_ago(bench: RelayBench, peer: Peer, port: int) -> None:
    await relay_restarts(bench, peer, port)
    await shut(bench, port)


async def serves_less(bench: RelayBench, peer: Peer, port: int) -> None:
    """It is back, without this service."""
    await leave(bench, peer)
    peer, _ = await bench.client()
    await bench.expose(peer, 1, "other", port + 1)


STATES: list[tuple[Callable[[RelayBench, Peer, int], Awaitable[None]], Limits]] = [
    (here, SOON),
    (left, Limits()),
    (left_long_ago, SOON),
    (was_superseded, Limits()),
    (says_goodbye, SOON),
    (relay_restarts, Limits()),
    (relay_restarted_long_ago, SOON),
    (serves_less, SOON),
]


@one_loop
@pytest.mark.parametrize(("comes_to_be", "limits"), STATES, ids=[state.__name__ for state, _ in STATES])
def test_no_other_program_gets_the_port(
    run: Run, tmp_path: Path, comes_to_be: Callable[[RelayBench, Peer, int], Awaitable[None]], limits: Limits
) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r", limits) as bench:
            peer, _ = await bench.client()
            port = (await bench.expose(peer, 1, "ssh")).port
            await comes_to_be(bench, peer, port)
            assert ways_in(port) == []
            other, _ = await bench.client("other", "other")
            wanted = await bench.expose(other, 1, "ssh", port)
            assert wanted.error in ("port-taken", "port-reserved"), "nor does another client"
            assert (await bench.expose(other, 2, "any")).port not in (0, port)
            peer, _ = await bench.client()
            assert (await bench.expose(peer, 1, "ssh")).port == port
            await bench.joined(peer, port)

    run(main())


@one_loop
def test_a_port_that_another_program_had_first(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is told once, the relay starts all the same, and the client gets its port when that is free."""

    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            ports = [(await bench.expose(peer, number)).port for number in (1, 2, 3)]
            await bench.close()
            with listen(LOCALHOST, ports[0]), listen(LOCALHOST, ports[1]):
                bench.start()
                assert [bool(ways_in(port)) for port in ports] == [False] * 3
                assert list(bench.server.held._held) == ports[2:]
                peer, _ = await bench.client()
                assert (await bench.expose(peer, 1, port=ports[0])).error == "port-taken"
            assert (await bench.expose(peer, 1, "s1")).port == ports[0]
            assert (await bench.expose(peer, 2, "s2")).port == ports[1]
            assert not bench.server.held._held.keys() & set(ports[:2])

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    told = [record for record in caplog.records if vars(record)["event"] == "port.not_held"]
    assert len(told) == 2 and "for home" in told[0].getMessage() and "in use" in told[0].getMessage()
    assert [vars(one)["fields"].get("count") for one in told] == [None, 1], "the second one when the relay ends"


# --- visitors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("away", [left, was_superseded, relay_restarts])
def test_visitors_wait_for_the_client(
    run: Run, tmp_path: Path, away: Callable[[RelayBench, Peer, int], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            port = (await bench.expose(peer)).port
            await away(bench, peer, port)
            visitors = [await bench.visit(port) for _ in range(5)]
            for visitor in visitors:
                await visitor.send(b"hello")
            peer, _ = await bench.client()
            assert (await bench.expose(peer)).port == port
            for number in [(await peer.frame(Kind.OPEN)).stream for _ in visitors]:
                await peer.send(pair.accept(number, 100))
                assert await peer.data(number, 5) == b"hello"
                await peer.send(pair.fin(number, b"welcome"))
            for visitor in visitors:
                assert await visitor.to_end() == (b"welcome", End.EOF)

    run(main())


@one_loop
def test_nobody_waits_for_a_client_whose_token_was_revoked(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            port = (await bench.expose(peer)).port
            revoke(bench.home, "first")
            assert await goaway(peer) is Code.UNAUTHORIZED
            peer.close()
            assert await is_refused(bench, port)
            assert ways_in(port) == []

    run(main())


@one_loop
def test_nobody_waits_for_a_port_that_its_client_does_not_get(run: Run, tmp_path: Path) -> None:
    """Its token grants less than before. Who waits for its other port goes on to wait."""

    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            first, last = bench.ports.first, bench.ports.first + 4
            home = make_token(bench.home, "home", ports=f"{first}-{last}")
            peer, _ = await bench.client("home", "inst", home)
            for number, port in enumerate((first, last)):
                assert (await bench.expose(peer, number + 1, port=port)).port == port
            change_grant(bench.home, "home", ports=f"{first}")
            assert await goaway(peer) is Code.NO_ERROR
            peer.close()
            stays, goes = [await bench.visit(port) for port in (first, last)]
            peer, _ = await bench.client("home", "inst", home)
            assert (await bench.expose(peer, 2, port=last)).error == "not-granted"
            assert await goes.to_end() == (b"", End.RESET)
            assert await is_refused(bench, last) and ways_in(last) == []
            assert stays.quiet()
            assert (await bench.expose(peer, 1, port=first)).port == first
            assert (await peer.frame(Kind.OPEN)).stream == 2

    run(main())


# --- the end of it -------------------------------------------------------------------------------------------------------


@one_loop
def test_what_is_no_longer_reserved_is_let_go(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r", Limits(reserved_time=0.1, return_time=0)) as bench:
            peer, _ = await bench.client()
            port = (await bench.expose(peer)).port
            peer.close()
            await until(lambda: port in bench.server.held._held, "it is away")
            await asyncio.sleep(0.12)
            bench.server._still_here()  # as it does every hour
            await until(lambda: ways_in(port), "anybody may have it")
            assert not bench.server.held._held

    run(main())


@one_loop
def test_a_drained_relay_holds_nothing(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            ports = [(await bench.expose(peer, number)).port for number in (1, 2)]
            await leave(bench, peer)
            peer, _ = await bench.client()
            await bench.expose(peer, 1)
            draining = asyncio.ensure_future(bench.server.drain())
            assert await goaway(peer) is Code.SHUTDOWN
            assert ways_in(ports[0]) and ways_in(ports[1])
            peer.close()
            await draining

    run(main())
