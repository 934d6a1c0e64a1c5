"""Every limit that can be set, reached with a small setting: it does what its row in protocol.md 12 says, and one event tells of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fastrelay import wire
from fastrelay.errors import Code
from fastrelay.limits import SETTINGS, Bucket, Limits, Side
from fastrelay.net.dial import Resolver
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.roles.test_client import ClientBench, client
from tests.roles.test_server import RelayBench, goaway, relay
from tests.support import pair
from tests.support.peers import End, ways_in
from tests.support.tunnel import Peer, turns, until
from tests.test_protocol_md import table

pytestmark = pytest.mark.parametrize("loop_kind", ["uvloop"], indirect=True)

Told = Callable[[], list[dict[str, Any]]]


def limits_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        vars(record)["fields"] for record in caplog.records if vars(record).get("event") == "limit.reached"
    ]
    return found


# --- a relay -------------------------------------------------------------------------------------------------------------------


async def streams(bench: RelayBench) -> None:
    peer, _ = await bench.client()
    port = (await bench.expose(peer)).port
    local, number = await bench.joined(peer, port)
    await bench.joined(peer, port)
    assert await (await bench.visit(port)).to_end() == (b"", End.RESET)
    local.reset()
    await peer.frame(Kind.RESET)
    await peer.send(pair.reset(number))
    await bench.joined(peer, port)


async def clients(bench: RelayBench) -> None:
    await bench.client("home", "one")
    _, answer = await bench.client("other", "two", wants=Kind.GOAWAY)
    assert wire.unpack_goaway(answer.payload)[1] is Code.CALM


async def services(bench: RelayBench) -> None:
    peer, _ = await bench.client()
    await bench.expose(peer, 1)
    assert (await bench.expose(peer, 2)).error == "limit"


async def memory(bench: RelayBench) -> None:
    peer, _ = await bench.client()
    port = (await bench.expose(peer)).port
    room = bench.server.runtime.budget
    inside = [await bench.joined(peer, port) for _ in range(room)]
    waiting = await bench.visit(port)
    await waiting.send(b"hello")
    await asyncio.sleep(0.02)
    assert bench.server.runtime.edges == room
    inside[0][0].reset()
    number = (await peer.frame(Kind.OPEN)).stream
    await peer.send(pair.accept(number, 100))
    assert await peer.data(number, 5) == b"hello"


async def control(bench: RelayBench) -> None:
    peer, _ = await bench.client()
    local = await bench.visit((await bench.expose(peer)).port)
    await peer.send(pair.accept((await peer.frame(Kind.OPEN)).stream, 1 << 40))
    flood = asyncio.ensure_future(local.to_end())
    link = next(iter(bench.server._links))
    while not link.blocked:
        await local.send(bytes(1 << 20))
    await peer.send(*(pair.open_(2 * n + 1) for n in range(6000)))  # each is owed a RESET, and nobody reads
    await until(lambda: not bench.server._tunnels, "the tunnel is given up")
    await flood


async def visiting(bench: RelayBench, number: int) -> tuple[Peer, Peer]:
    """A client that has opened so many streams to a private service of another one, which does not answer."""
    peer, _ = await bench.client()
    await bench.expose(peer, 1, "db", kind="private")
    visitor, _ = await bench.client("")
    await visitor.send(*(pair.visit(2 * n + 1, "db") for n in range(number)))
    for _ in range(number):
        await peer.frame(Kind.OPEN)
    return visitor, peer


async def answer_time(bench: RelayBench) -> None:
    visitor, _ = await visiting(bench, 1)
    assert Code((await visitor.frame(Kind.RESET)).payload[-1]) is Code.DIAL_TIMEOUT


async def flood_of_resets(bench: RelayBench) -> None:
    visitor, _ = await visiting(bench, 4)
    await visitor.send(*(pair.reset(2 * n + 1) for n in range(4)))
    assert await goaway(visitor) is Code.CALM


async def handshake_time(bench: RelayBench) -> None:
    peer = await bench.knock()
    await peer.send(b"\x10")
    assert await goaway(peer) is Code.TIMEOUT


async def half_open_time(bench: RelayBench) -> None:
    peer, _ = await bench.client()
    local, _ = await bench.joined(peer, (await bench.expose(peer)).port)
    local.eof()
    await peer.frame(Kind.FIN)
    assert Code((await peer.frame(Kind.RESET)).payload[-1]) is Code.TIMEOUT
    assert await local.to_end() == (b"", End.RESET)


async def drain_time(bench: RelayBench) -> None:
    peer, _ = await bench.client()
    local, _ = await bench.joined(peer, (await bench.expose(peer)).port)
    await bench.server.drain()
    await bench.close()
    assert await local.to_end() == (b"", End.RESET)


async def reserved_time(bench: RelayBench) -> None:
    peer, _ = await bench.client("home", "one")
    port = (await bench.expose(peer)).port
    peer.close()
    await until(lambda: not bench.server._tunnels, "it is away")
    await bench.client("home", "two", wants=Kind.GOAWAY)
    await asyncio.sleep(0.12)
    peer, _ = await bench.client("home", "two")
    assert (await bench.expose(peer, port=port)).port == port  # and when that is saved, it is told


async def return_time(bench: RelayBench) -> None:
    peer, _ = await bench.client()
    port = (await bench.expose(peer)).port
    peer.close()
    await until(lambda: not bench.server._tunnels, "it is away")
    assert await (await bench.visit(port)).to_end() == (b"", End.RESET)
    with pytest.raises(ConnectionRefusedError):
        await bench.visit(port)


async def held_ports(bench: RelayBench) -> None:
    peer, _ = await bench.client()
    ports = [(await bench.expose(peer, number)).port for number in (1, 2)]
    peer.close()
    await until(lambda: not bench.server._tunnels, "it is away")
    assert [bool(ways_in(port)) for port in ports] == [False, True]


async def max_greetings(bench: RelayBench) -> None:
    strangers = [await bench.knock() for _ in range(4)]
    assert await strangers[0].frames_to_end() == [], "the oldest has gone for the newest"
    await bench.client()


async def greetings_per_source(bench: RelayBench) -> None:
    strangers = [await bench.knock() for _ in range(4)]
    for peer in strangers:
        await peer.send(b"\x10")
    assert await strangers[0].frames_to_end() == []
    for peer in strangers:
        peer.close()
    await bench.client()


async def penalty_from(bench: RelayBench) -> None:
    peer = await bench.knock()
    await peer.send(b"\x10")
    assert await goaway(peer) is Code.TIMEOUT
    peer.close()
    assert bench.server._door is not None
    source = bench.server._door.gate._sources["127.0.0.1"]
    await until(lambda: source.slow(asyncio.get_running_loop().time()), "it is served slowly")


def flood(*frames: bytes, stream: bool = False) -> Callable[[RelayBench], Awaitable[None]]:
    """So many frames are taken, and one more is too many."""

    async def flooded(bench: RelayBench) -> None:
        peer, _ = await bench.client()
        port = (await bench.expose(peer, 9)).port
        if stream:
            await bench.joined(peer, port)
        await peer.send(*frames)
        assert await goaway(peer) is Code.CALM
        peer.close()
        await until(lambda: not bench.server._tunnels, "the session is over")

    return flooded


ONCE = Bucket(3, 1)
ON_A_RELAY: dict[str, tuple[Limits, Callable[[RelayBench], Awaitable[None]]]] = {
    "streams": (Limits(streams=2), streams),
    "clients": (Limits(clients=1), clients),
    "services": (Limits(services=1), services),
    "memory": (Limits(memory=1 << 18), memory),
    "control": (Limits(control=65_536, flood_open=Bucket(10_000, 1)), control),
    "handshake-time": (Limits(handshake_time=0.1), handshake_time),
    "answer-time": (Limits(answer_time=0.1), answer_time),
    "half-open-time": (Limits(half_open_time=0.1), half_open_time),
    "drain-time": (Limits(drain_time=0.1), drain_time),
    "reserved-time": (Limits(reserved_time=0.1), reserved_time),
    "return-time": (Limits(return_time=0.1), return_time),
    "held-ports": (Limits(held_ports=1), held_ports),
    "max-greetings": (Limits(max_greetings=3), max_greetings),
    "greetings-per-source": (Limits(greetings_per_source=3), greetings_per_source),
    "penalty-from": (Limits(handshake_time=0.1, penalty_slow=5, penalty_from=4), penalty_from),
    "flood-ping": (Limits(flood_ping=ONCE), flood(*[pair.ping()] * 4)),
    "flood-window": (Limits(flood_window=ONCE), flood(*[pair.window(2, 1)] * 4, stream=True)),
    "flood-empty": (Limits(flood_empty=ONCE), flood(*[pair.data(2, b"")] * 4, stream=True)),
    "flood-open": (Limits(flood_open=ONCE), flood(*[pair.open_(2 * n + 1) for n in range(4)])),
    "flood-reset": (Limits(flood_reset=ONCE), flood_of_resets),
    "flood-list": (Limits(flood_list=ONCE), flood(*[pair.list_()] * 4)),
    "flood-expose": (Limits(flood_expose=ONCE), flood(*[pair.expose(n + 1) for n in range(3)])),
    "flood-optional": (Limits(flood_optional=ONCE), flood(*[wire.frame(0x80, 0)] * 4)),
}


@pytest.mark.parametrize("name", ON_A_RELAY)
def test_on_a_relay(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    limits, reach = ON_A_RELAY[name]

    async def main() -> None:
        async with relay(tmp_path / "r", limits) as bench:
            await reach(bench)

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    told = [one for one in limits_of(caplog) if one["limit"] == name]
    assert told, limits_of(caplog)
    setting = SETTINGS[name]
    assert str(told[0]["value"]) in (setting.show(getattr(limits, setting.field)), str(getattr(limits, setting.field)))
    assert told[0]["who"]
    assert len(told) <= 2, "at once, and the others with a count"


# --- a client ------------------------------------------------------------------------------------------------------------------


async def client_memory(bench: ClientBench) -> None:
    room = bench.client.runtime.budget
    for _ in range(room):
        await bench.joined()
    tap = bench.relay.open()
    await until(lambda: tap.code is Code.LIMIT, "it was refused")


async def client_streams(bench: ClientBench) -> None:
    """A relay that does not keep to what it was told."""
    for _ in range(2):
        await bench.joined()
    tap = bench.relay.open()
    await until(lambda: tap.code is Code.LIMIT, "it was refused")


async def dial_time(bench: ClientBench) -> None:
    tap = bench.relay.open()
    await until(lambda: tap.code is Code.DIAL_TIMEOUT, "it was given up")


async def dials(bench: ClientBench) -> None:
    taps = [bench.relay.open() for _ in range(3)]
    await turns(10)
    assert [tap.code for tap in taps] == [None] * 3
    for tap in taps:
        assert tap.stream
        tap.stream.reset(Code.CANCEL)
    await turns(10)


async def client_drain_time(bench: ClientBench) -> None:
    _, local = await bench.joined()
    bench.client.drain()
    assert await local.to_end() == (b"", End.RESET)


async def client_flood(bench: ClientBench) -> None:
    for _ in range(4):
        bench.relay.session.ping()
    await until(lambda: Code.CALM in bench.relay.goaways, "the session was ended")


async def client_flood_of_pins(bench: ClientBench) -> None:
    for _ in range(4):
        bench.relay.session.tell_pins((bytes(32),))
    await until(lambda: Code.CALM in bench.relay.goaways, "the session was ended")


ON_A_CLIENT: dict[str, tuple[Limits, Callable[[ClientBench], Awaitable[None]]]] = {
    "streams": (Limits(streams=2), client_streams),
    "memory": (Limits(memory=1 << 18), client_memory),
    "dials": (Limits(dials=1), dials),
    "dial-time": (Limits(dial_time=0.1), dial_time),
    "drain-time": (Limits(drain_time=0.1), client_drain_time),
    "flood-ping": (Limits(flood_ping=ONCE), client_flood),
    "flood-pins": (Limits(flood_pins=ONCE), client_flood_of_pins),
}


@pytest.mark.parametrize("name", ON_A_CLIENT)
def test_on_a_client(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    limits, reach = ON_A_CLIENT[name]
    if name in ("dials", "dial-time"):

        async def ask(self: Resolver, target: object) -> list[Any]:
            await asyncio.sleep(60)
            return []

        monkeypatch.setattr(Resolver, "ask", ask)

    async def main() -> None:
        async with client(tmp_path / "c", limits=limits) as bench:
            await until(lambda: bench.reached, "it is reachable")
            await reach(bench)

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    told = [one for one in limits_of(caplog) if one["limit"] == name]
    setting = SETTINGS[name]
    assert told[0]["value"] == setting.show(getattr(limits, setting.field))
    assert len(told) <= 2


# --- all -----------------------------------------------------------------------------------------------------------------------


def test_nothing_is_left_out(run: Run, tmp_path: Path) -> None:
    """`files` is in tests/e2e/test_files.py, `request-wait` in tests/systems/test_wsp.py; what the gate does with each of its figures in tests/net/test_gate.py."""
    of_the_gate = {name.replace("_", "-") for name, *_ in table("12.1")[1]}
    assert {*ON_A_RELAY, "files", "request-wait", *of_the_gate} == {
        name for name, one in SETTINGS.items() if one.of(Side.RELAY)
    }
    both = {name for name, one in SETTINGS.items() if one.side is Side.BOTH}
    assert {*ON_A_CLIENT, *both} == {name for name, one in SETTINGS.items() if one.of(Side.CLIENT)}

    async def main() -> None:
        figures: dict[str, Any] = {name.replace("-", "_"): number for number, name in enumerate(sorted(of_the_gate), 1)}
        async with relay(tmp_path / "r", Limits(**figures)) as bench:
            assert bench.server._door is not None
            limits = vars(bench.server._door.gate.limits)
            assert {name: limits[name] for name in figures} == figures

    run(main())
