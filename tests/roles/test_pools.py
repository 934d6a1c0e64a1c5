"""Several clients on one service: a relay in this process, visitors over real sockets, and the clients' frames by hand."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fastrelay import log, wire
from fastrelay.errors import Code
from fastrelay.limits import Limits
from fastrelay.roles.pools import Pool
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.roles.test_server import RelayBench, relay
from tests.support import pair
from tests.support.callers import caller as calling
from tests.support.grants import make_token
from tests.support.peers import End, ways_in
from tests.support.tunnel import Local, Peer, turns, until


class Asked(NamedTuple):
    """A visitor's stream, as its client sees it."""

    peer: Peer
    stream: int
    visitor: str


async def share(bench: RelayBench, peer: Peer, number: int = 1, name: str = "web", **request: Any) -> wire.Exposed:
    """Ask for a part in a pool."""
    raw = wire.pack_json(wire.Expose(service=number, name=name, pool=True, **request))
    await peer.send(wire.frame(Kind.EXPOSE, 0, raw))
    return wire.unpack_json((await peer.frame(Kind.EXPOSED)).payload, wire.Exposed)


async def members(bench: RelayBench, number: int) -> tuple[list[Peer], int]:
    """So many clients of one pool, and its port."""
    peers = [(await bench.client(f"c{index}", f"i{index}"))[0] for index in range(number)]
    answers = [await share(bench, peer) for peer in peers]
    assert len({answer.port for answer in answers}) == 1 and answers[0].port and not answers[0].error
    assert all(answer.pool for answer in answers)
    return peers, answers[0].port


async def asked(peer: Peer) -> Asked:
    frame = await peer.frame(Kind.OPEN)
    return Asked(peer, frame.stream, wire.unpack_open(frame.payload).visitor)


async def visits(bench: RelayBench, peers: list[Peer], port: int) -> list[tuple[Local, Asked]]:
    """A visitor for each client, joined; by client."""
    found = {}
    for _ in peers:
        local = await bench.visit(port)
        found["{}:{}".format(*local.sock.getsockname())] = local
    opened = [await asked(peer) for peer in peers]
    for one in opened:
        await one.peer.send(pair.accept(one.stream))
    return [(found[one.visitor], one) for one in opened]


def pools(bench: RelayBench) -> dict[str, Pool]:
    return bench.server.pools


# --- who gets whom -----------------------------------------------------------------------------------------------------------


def test_visitors_are_spread_over_the_members(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peers, port = await members(bench, 3)
            for _ in range(4):
                assert len(await visits(bench, peers, port)) == 3, "one for each"
            # Two leave the second: the next two are for it, wherever the turn is.
            [(local, one)] = [visit for visit in await visits(bench, peers, port) if visit[1].peer is peers[1]]
            local.reset()
            await peers[1].half(one.stream)
            await peers[1].send(pair.reset(one.stream, Code.CANCEL))
            await turns(10)
            await bench.visit(port)
            await asked(peers[1])

    run(main())


def test_who_does_not_take_a_visitor_is_left_alone(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peers, port = await members(bench, 2)
            went: Counter[Peer] = Counter()
            for _ in range(10):
                local = await bench.visit(port)
                await local.send(b"question")
                if not went:
                    refused = await asked(peers[0])
                    assert refused.visitor == "{}:{}".format(*local.sock.getsockname())
                    await peers[0].send(pair.reset(refused.stream, Code.REFUSED))
                    went[peers[0]] += 1
                other = await asked(peers[1])
                assert other.visitor == "{}:{}".format(*local.sock.getsockname())
                await peers[1].send(pair.accept(other.stream))
                assert await peers[1].data(other.stream, 8) == b"question", "it is asked only once it is accepted"
                await peers[1].send(pair.data(other.stream, b"answer"), pair.fin(other.stream))
                assert await local.to_end() == (b"answer", End.EOF)
                local.eof()
                assert await peers[1].half(other.stream) == (b"", Kind.FIN, None)
            assert went == {peers[0]: 1}, "it has the fewest streams, and is not asked again for a while"

    run(main())


def test_nobody_takes_the_visitor(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peers, port = await members(bench, 2)
            local = await bench.visit(port)
            for peer in peers:
                one = await asked(peer)
                await peer.send(pair.reset(one.stream, Code.UNREACHABLE))
            assert await local.to_end() == (b"", End.RESET)
            local = await bench.visit(port)
            assert {(await asked(peers[0])).visitor} == {"{}:{}".format(*local.sock.getsockname())}, (
                "all rest: all are asked"
            )

    run(main())


def test_a_silent_member(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r", Limits(answer_time=0.1)) as bench:
            peers, port = await members(bench, 2)
            local = await bench.visit(port)
            one = await asked(peers[0])
            two = await asked(peers[1])
            assert two.visitor == one.visitor
            assert await peers[0].half(one.stream) == (b"", Kind.RESET, Code.DIAL_TIMEOUT)
            await peers[1].send(pair.accept(two.stream), pair.data(two.stream, b"here"))
            assert await local.read(4) == b"here"
            await peers[0].send(pair.accept(one.stream))  # too late
            await turns(10)
            assert local.quiet()

    run(main())


@pytest.mark.parametrize("accepted", [True, False])
def test_a_member_that_dies(run: Run, tmp_path: Path, accepted: bool) -> None:
    """Visitors that it had are reset at once; those that it had not answered go to another."""

    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peers, port = await members(bench, 2)
            local = await bench.visit(port)
            one = await asked(peers[0])
            if accepted:
                await peers[0].send(pair.accept(one.stream), pair.data(one.stream, b"half an answ"))
                assert await local.read(12) == b"half an answ"
            Local(peers[0].sock).reset()
            if accepted:
                assert await local.to_end() == (b"", End.RESET)
                local = await bench.visit(port)
            two = await asked(peers[1])
            assert two.visitor == "{}:{}".format(*local.sock.getsockname())
            await peers[1].send(pair.accept(two.stream), pair.fin(two.stream, b"whole"))
            assert await local.to_end() == (b"whole", End.EOF)

    run(main())


def test_a_member_that_drains_loses_nobody(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peers, port = await members(bench, 2)
            here = await visits(bench, peers, port)
            crossing = await bench.visit(port)
            one = await asked(peers[0])  # it is on its way when the member says that it takes nobody any more
            await peers[0].send(pair.goaway(Code.SHUTDOWN), pair.reset(one.stream, Code.SHUTDOWN))
            assert await peers[0].half(one.stream) == (b"", Kind.RESET, Code.CANCEL)
            assert (await asked(peers[1])).visitor == "{}:{}".format(*crossing.sock.getsockname())
            for _ in range(3):
                await bench.visit(port)
                await asked(peers[1])
            for local, stays in here:
                await local.send(b"still here?")
                assert await stays.peer.data(stays.stream, 11) == b"still here?"
                await stays.peer.send(pair.fin(stays.stream, b"yes"))
                assert await local.to_end() == (b"yes", End.EOF)

    run(main())


# --- until it is accepted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["fin", "reset", "fin behind data", "reset behind data"])
def test_a_visitor_that_ends_before_it_is_accepted(run: Run, tmp_path: Path, way: str) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peers, port = await members(bench, 1)
            local = await bench.visit(port)
            one = await asked(peers[0])
            said = b"last words" if "data" in way else b""
            if said:
                await local.send(said)
            local.eof() if "fin" in way else local.reset()
            await turns(20)
            if way == "reset":
                assert await peers[0].half(one.stream) == (b"", Kind.RESET, Code.CONNECTION_RESET)
                return
            await peers[0].send(pair.accept(one.stream))
            data, end, code = await peers[0].half(one.stream)
            if way == "reset behind data":
                assert end is Kind.RESET and code is Code.CONNECTION_RESET
                return
            assert (data, end) == (said, Kind.FIN)
            await peers[0].send(pair.fin(one.stream, b"bye"))
            assert await local.to_end() == (b"bye", End.EOF)

    run(main())


def test_much_that_is_said_before_it_is_accepted(run: Run, tmp_path: Path) -> None:
    """It waits in the socket: of a visitor that is not accepted the relay keeps one read."""

    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peers, port = await members(bench, 2)
            local = await bench.visit(port)
            said = bytes(range(256)) * 1000
            one = await asked(peers[0])
            sending = local.loop.create_task(local.send(said))
            await turns(20)
            await peers[0].send(pair.reset(one.stream, Code.REFUSED))
            two = await asked(peers[1])
            await peers[1].send(pair.accept(two.stream, 1 << 20))
            assert await peers[1].data(two.stream, len(said)) == said
            await sending

    run(main())


def test_a_member_that_reads_no_more_before_it_accepts(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peers, port = await members(bench, 1)
            local = await bench.visit(port)
            one = await asked(peers[0])
            await local.send(bytes(100_000))
            await peers[0].send(pair.stop(one.stream), pair.accept(one.stream), pair.fin(one.stream, b"enough"))
            assert (await peers[0].frame(Kind.TRUNC)).stream == one.stream
            assert await local.read(6) == b"enough"
            await local.send(bytes(100_000))
            local.eof()
            assert await local.to_end() == (b"", End.EOF)

    run(main())


# --- whose it is ------------------------------------------------------------------------------------------------------------


def test_the_port_is_the_pools(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r", Limits(return_time=0)) as bench:
            peers, port = await members(bench, 2)
            other, _ = await bench.client("other", "other")
            assert (await bench.expose(other, 1, port=port)).error == "port-taken"
            for left, peer in ((1, peers[0]), (0, peers[1])):
                Local(peer.sock).reset()
                await until(lambda left=left: sum(len(pool.ring) for pool in pools(bench).values()) == left, "it left")  # type: ignore[misc]
                if left:
                    await bench.visit(port)
            assert not pools(bench)
            with pytest.raises(ConnectionRefusedError):
                await bench.visit(port)
            assert ways_in(port) == []
            refused = await bench.expose(other, 1, port=port)
            assert refused.error == "port-reserved" and "the pool 'web'" in refused.text
            assert (await bench.expose(other, 2)).port != port
            # Not even a client that was one of them gets it for itself.
            peer, _ = await bench.client("c0", "i0")
            assert (await bench.expose(peer, 1, name="web", port=port)).error == "port-reserved"
            assert (await share(bench, peer, 2, "web")).error == ""

    run(main())


def test_it_is_kept_over_a_restart(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            _, port = await members(bench, 2)
            await bench.close()
            bench.start()
            other, _ = await bench.client("other", "other")
            assert (await bench.expose(other, 1, port=port)).error == "port-reserved"
            assert (await bench.expose(other, 1)).port != port
            assert (await members(bench, 2))[1] == port

    run(main())


def test_a_clients_own_port_may_become_the_pools(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client("home", "h")
            port = (await bench.expose(peer, 1, name="web")).port
            assert (await share(bench, peer, 2, "web2", port=port)).error == "port-taken", "it serves it now"
            peer, _ = await bench.client("home", "h")
            assert (await share(bench, peer)).port == port
            other, _ = await bench.client("other", "o")
            assert (await share(bench, other)).port == port
            reservations = bench.server.registry.reservations(0.0)
            assert reservations["home"].ports == {} and reservations["first/web"].ports == {"web": port}

    run(main())


def test_members_agree(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            one, _ = await bench.client("one", "1")
            two, _ = await bench.client("two", "2")
            port = (await share(bench, one, visitors=("127.0.0.0/8",))).port
            for request, told in (
                ({"port": port + 1, "visitors": ("127.0.0.0/8",)}, f"has port {port}"),
                ({"visitors": ("10.0.0.0/8",)}, "is for visitors from 127.0.0.0/8"),
                ({}, "is for visitors from 127.0.0.0/8"),
                ({"kind": "private", "visitors": ("127.0.0.0/8",)}, "is of kind tcp"),
            ):
                answer = await share(bench, two, **request)
                assert answer.error == "pool-differs" and told in answer.text and not answer.port
            answer = await share(bench, two, port=port, visitors=("127.0.0.0/8",))
            assert (answer.port, answer.visitors, answer.pool) == (port, 1, True)
            assert (await share(bench, two, 2, "web")).error == "name-taken"

    run(main())


def test_who_may_visit_a_pool(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            port = (await share(bench, peer, visitors=("127.0.0.2/32",))).port
            assert await (await bench.visit(port)).to_end() == (b"", End.RESET)
            local = await bench.visit(port, source="127.0.0.2")
            assert (await asked(peer)).visitor == "{}:{}".format(*local.sock.getsockname())

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    [told] = [vars(one)["fields"] for one in caplog.records if vars(one).get("event") == "visitor.denied"]
    assert told["service"] == "web" and told["visitor"].startswith("127.0.0.1:")


def test_a_pool_is_of_one_token(run: Run, tmp_path: Path) -> None:
    """Another's clients get no visitor of it, whatever they ask for."""

    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            thief = make_token(bench.home, "thief", ports=f"{bench.ports.first}-{bench.ports.last}")
            bare = make_token(bench.home, "bare")
            _, port = await members(bench, 1)
            await until(lambda: bench.server.keyring._state.find(bare.key_id), "the tokens are known")
            peer, _ = await bench.client("thief", "t", thief)
            assert (await share(bench, peer, port=port)).error == "port-taken"
            answer = await share(bench, peer)
            assert answer.port not in (0, port) and set(pools(bench)) == {"first/web", "thief/web"}
            peer, _ = await bench.client("bare", "b", bare)
            assert (await share(bench, peer)).error == "not-granted" and len(pools(bench)) == 2
            assert not [name for name in bench.server.registry.reservations(0.0) if name.startswith("bare/")]

    run(main())


def test_each_member_needs_the_port(run: Run, tmp_path: Path) -> None:
    """While a token is replaced there are two of one label; one that grants less does not get in by the other's pool."""

    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            names = ["team-*"]
            full = make_token(bench.home, "team", names=names, ports=f"{bench.ports.first}-{bench.ports.last}")
            less = make_token(bench.home, "team", names=names, ports=str(bench.ports.last))
            await until(lambda: bench.server.keyring._state.find(less.key_id), "the tokens are known")
            one, _ = await bench.client("team-1", "1", full)
            two, _ = await bench.client("team-2", "2", less)
            port = (await share(bench, one)).port
            assert port == bench.ports.first
            assert (await share(bench, two)).error == "not-granted"
            assert (await share(bench, one, 2, "db", port=bench.ports.last)).port == bench.ports.last
            assert (await share(bench, two, 2, "db")).port == bench.ports.last

    run(main())


def test_pools_that_nobody_comes_back_to(run: Run, tmp_path: Path) -> None:
    """What a pool had is free a day after its last client was here, as a client's is."""

    async def main() -> None:
        async with relay(tmp_path / "r", Limits(reserved_time=0.3)) as bench:
            [peer], port = await members(bench, 1)
            other, _ = await bench.client("other", "o")
            Local(peer.sock).reset()
            await until(lambda: not pools(bench), "the pool is gone")
            assert (await bench.expose(other, 1, port=port)).error == "port-reserved"
            await asyncio.sleep(0.4)
            assert (await bench.expose(other, 1, port=port)).port == port

    run(main())


# --- private services ---------------------------------------------------------------------------------------------------------


def test_a_private_pool(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peers = [(await bench.client(f"c{index}", f"i{index}"))[0] for index in range(2)]
            for peer in peers:
                answer = await share(bench, peer, kind="private")
                assert (answer.port, answer.error, answer.pool) == (0, "", True)
            assert (await bench.expose(peers[0], 2, "web")).error == "name-taken"
            caller, _ = await bench.client("caller", "c")
            await caller.send(wire.frame(Kind.LIST, 0, b"{}"))
            listed = wire.unpack_json((await caller.frame(Kind.LISTED)).payload, wire.Listed)
            assert [(one.name, one.client, one.here) for one in listed.services] == [
                ("web", "c0", True),
                ("web", "c1", True),
            ]
            for number, peer in ((1, peers[0]), (3, peers[1])):
                await caller.send(opening(number))
                one = await asked(peer)
                await peer.send(pair.accept(one.stream), pair.data(one.stream, b"hello"))
                assert await caller.data(number, 5) == b"hello"
            for peer in peers:
                Local(peer.sock).reset()
            assert {(await caller.frame(Kind.RESET)).stream for _ in peers} == {1, 3}
            await until(lambda: not pools(bench), "the pool is gone")
            await caller.send(opening(7))
            assert await caller.half(7) == (b"", Kind.RESET, Code.AWAY)
            await caller.send(wire.frame(Kind.LIST, 0, b"{}"))
            listed = wire.unpack_json((await caller.frame(Kind.LISTED)).payload, wire.Listed)
            assert [(one.name, one.client, one.here) for one in listed.services] == [("web", "", False)]
            async with calling(tmp_path / "c", bench.port, bench.server.token()) as there:
                assert [one.client for one in await there.caller.visiting.listing()] == [""]

    run(main())


async def private(bench: RelayBench) -> tuple[Peer, list[Peer]]:
    """A visiting client, and two that serve the pool `web`."""
    peers = [(await bench.client(f"c{index}", f"i{index}"))[0] for index in range(2)]
    for peer in peers:
        await share(bench, peer, kind="private")
    return (await bench.client("", "v"))[0], peers


def opening(number: int) -> bytes:
    return wire.frame(Kind.OPEN, number, wire.pack_open(wire.Open(wire.STREAM_TCP, 1 << 20, target="web")))


@pytest.mark.parametrize("way", ["refused", "dead", "silent"])
def test_a_visit_goes_to_another_member(run: Run, tmp_path: Path, way: str) -> None:
    """With all that was said meanwhile."""

    async def main() -> None:
        async with relay(tmp_path / "r", Limits(answer_time=0.1 if way == "silent" else 15)) as bench:
            caller, peers = await private(bench)
            await caller.send(opening(1), pair.data(1, b"early "), pair.fin(1, b"bird"))
            one = await asked(peers[0])
            if way == "refused":
                await peers[0].send(pair.reset(one.stream, Code.REFUSED))
            elif way == "dead":
                Local(peers[0].sock).reset()
            two = await asked(peers[1])
            assert two.visitor == one.visitor
            await peers[1].send(pair.accept(two.stream))
            assert await peers[1].half(two.stream) == (b"early bird", Kind.FIN, None)
            await peers[1].send(pair.fin(two.stream, b"worm"))
            assert (await caller.frame(Kind.ACCEPT, Kind.RESET)).kind == Kind.ACCEPT
            assert await caller.half(1) == (b"worm", Kind.FIN, None)
            await until(lambda: not bench.server.runtime.edges, "nothing of it is left")

    run(main())


def test_no_member_takes_the_visit(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            caller, peers = await private(bench)
            await caller.send(opening(1), pair.data(1, b"early"))
            for peer, code in zip(peers, (Code.REFUSED, Code.DIAL_TIMEOUT), strict=True):
                await peer.send(pair.reset((await asked(peer)).stream, code))
            assert await caller.half(1) == (b"", Kind.RESET, Code.DIAL_TIMEOUT), "why the last one did not"
            assert not bench.server.runtime.edges

    run(main())


@pytest.mark.parametrize("way", ["reset", "lost"])
def test_a_visit_that_ends_before_it_is_accepted(run: Run, tmp_path: Path, way: str) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            caller, peers = await private(bench)
            await caller.send(opening(1), pair.data(1, b"early"))
            one = await asked(peers[0])
            if way == "reset":
                await caller.send(pair.reset(1))
            else:
                Local(caller.sock).reset()
            assert await peers[0].half(one.stream) == (b"", Kind.RESET, Code.CONNECTION_RESET)
            await until(lambda: not bench.server.runtime.edges, "it is over")
            await peers[0].send(pair.accept(one.stream))  # it crossed
            other, _ = await bench.client("", "w")
            await other.send(opening(1))
            await asked(peers[1])

    run(main())


def test_visits_beyond_memory(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r", Limits(memory=2 << 20)) as bench:
            caller, peers = await private(bench)
            bench.server.runtime.budget = 1
            await caller.send(opening(1), opening(3))
            await asked(peers[0])
            assert await caller.half(3) == (b"", Kind.RESET, Code.LIMIT)

    run(main())


# --- what is told ---------------------------------------------------------------------------------------------------------------


def test_what_the_audit_log_is_told(run: Run, tmp_path: Path) -> None:
    told: list[tuple[str, dict[str, object]]] = []

    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peers, port = await members(bench, 2)
            local = await bench.visit(port)
            one = await asked(peers[0])
            await peers[0].send(pair.reset(one.stream, Code.REFUSED))
            two = await asked(peers[1])
            await peers[1].send(pair.accept(two.stream), pair.fin(two.stream, b"bye"))
            assert await local.to_end() == (b"bye", End.EOF)
            local.eof()
            await peers[1].half(two.stream)
            await turns(10)
            local = await bench.visit(port)
            for peer in (peers[1], peers[0]):
                await peer.send(pair.reset((await asked(peer)).stream, Code.REFUSED))
            assert await local.to_end() == (b"", End.RESET)

    log.audit(lambda event, text, fields: told.append((event, dict(fields))))
    try:
        run(main())
    finally:
        log.audit(None)
    told = [(event, fields) for event, fields in told if event.startswith("visitor.")]
    assert [event for event, _ in told] == ["visitor.opened", "visitor.closed", "visitor.refused"]
    assert told[0][1]["name"] == told[1][1]["name"] == "c1"
    assert (told[1][1]["cause"], told[1][1]["bytes_out"]) == ("fin", 3)
    assert told[2][1]["cause"] == "refused" and "name" not in told[2][1] and told[2][1]["service"] == "web"
