"""PROXY headers in front of connections: whose they say it is counts, if a load balancer says it, and nobody else is believed."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from fastrelay.limits import Limits
from fastrelay.net.balancers import Address, Balancers, Renamed
from fastrelay.net.door import VisitorDoor
from fastrelay.net.listen import listen
from fastrelay.net.proxy_header import pack, pack_v1
from fastrelay.net.runtime import Runtime
from fastrelay.net.tls import client_context, load_identity, make_identity, server_context
from fastrelay.networks import Networks
from tests.conftest import Run
from tests.support.peers import End
from tests.support.tunnel import Local, turns, until

LOCALHOST = "127.0.0.1"
BALANCER = "127.0.0.9"
VISITOR = ("192.0.2.9", 51_528)
V1 = b"PROXY TCP4 192.0.2.9 198.51.100.1 51528 443\r\n"
V2 = pack(VISITOR, ("198.51.100.1", 443))
LONG = V2[:14] + (12 + 3000).to_bytes(2, "big") + V2[16:] + b"\x04" + (2997).to_bytes(2, "big") + bytes(2997)


class House:
    """A public port behind the balancer 127.0.0.9; `said` is what each guest said, by whose it seems to be."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.runtime = Runtime(limits or Limits())
        self.said: dict[Any, bytes] = {}
        self.guests: list[asyncio.Transport] = []
        self.ended = 0
        self.outside: list[Local] = []
        self.door = VisitorDoor(self.runtime, listen(LOCALHOST, 0), self._make, Networks((f"{BALANCER}/32",)))
        self.door.open()

    def _make(self) -> asyncio.BaseProtocol:
        house = self

        class Guest(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.who = transport.get_extra_info("peername")
                house.said[self.who] = b""
                house.guests.append(cast("asyncio.Transport", transport))
                cast("asyncio.Transport", transport).write(b"hello")

            def data_received(self, data: bytes) -> None:
                house.said[self.who] += data

            def connection_lost(self, exc: Exception | None) -> None:
                house.ended += 1

        return Guest()

    async def visit(self, first: bytes = b"", source: str = BALANCER) -> Local:
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind((source, 0))
        local = Local(sock)
        self.outside.append(local)
        await asyncio.get_running_loop().sock_connect(sock, (LOCALHOST, self.door.port))
        if first:
            await local.send(first)
        return local

    async def hears(self, who: Any, said: bytes = b"") -> None:
        await until(lambda: self.said.get(who) == said, f"{who} has said {said!r}, and not {self.said}")

    async def close(self) -> None:
        if self.door._sock.fileno() >= 0:
            self.door.close()
        for guest in self.guests:
            guest.abort()
        await until(lambda: self.ended == len(self.guests), "all have left")
        for local in self.outside:
            local.close()
        await turns()
        assert self.runtime.coming == 0
        await self.runtime.close()


def told(caplog: pytest.LogCaptureFixture, event: str = "balancer.refused") -> list[dict[str, Any]]:
    return [vars(record)["fields"] for record in caplog.records if vars(record).get("event") == event]


@pytest.mark.parametrize("header", [V1, V2, LONG], ids=["v1", "v2", "long"])
def test_what_a_balancer_says_counts(run: Run, header: bytes) -> None:
    async def main() -> None:
        house = House()
        local = await house.visit(header + b"GET /")
        await house.hears(VISITOR, b"GET /")
        assert await local.read(5) == b"hello"
        await local.send(b" HTTP/1.1")
        await house.hears(VISITOR, b"GET / HTTP/1.1")
        local.eof()
        await until(lambda: house.ended, "and its end is the visitor's")
        await house.close()

    run(main())


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
def test_a_header_in_pieces(run: Run, header: bytes) -> None:
    async def main() -> None:
        house = House()
        local = await house.visit()
        for at in range(len(header)):
            assert not house.said, "nobody is there before the header is"
            await local.send(header[at : at + 1])
            await turns(1)
        await house.hears(VISITOR)
        await house.close()

    run(main())


def test_half_a_header_is_looked_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there and not read yet must not wake the loop again and again."""
    looks: list[object] = []
    look = Balancers._look

    def looked(self: Balancers, wait: Any) -> None:
        looks.append(wait)
        look(self, wait)

    monkeypatch.setattr(Balancers, "_look", looked)

    async def main() -> None:
        house = House()
        await house.visit(V2[:20])
        await until(lambda: looks, "it was looked at")
        await asyncio.sleep(0.05)
        assert len(looks) <= 3
        await house.close()

    run(main())


def test_a_stranger_is_never_believed(run: Run) -> None:
    async def main() -> None:
        house = House()
        local = await house.visit(V1 + b"GET /", source=LOCALHOST)
        await house.hears(local.sock.getsockname(), V1 + b"GET /")
        silent = await house.visit(source=LOCALHOST)
        assert await silent.read(5) == b"hello", "a service that speaks first is heard at once"
        await house.close()

    run(main())


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", V2[:12] + bytes((0x20, 0, 0, 0))], ids=["v1", "v2"])
def test_a_balancer_may_speak_for_itself(run: Run, header: bytes) -> None:
    async def main() -> None:
        house = House()
        local = await house.visit(header + b"PING")
        await house.hears(local.sock.getsockname(), b"PING")
        await house.close()

    run(main())


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "does not begin with a PROXY header"),
        (V1.replace(b"443", b"x"), "PROXY line"),
        (b"PROXY TCP4 " + b"1" * 200, "at most 107 bytes"),
        (V2[:14] + b"\xff\xff" + V2[16:], "too long"),
    ],
)
def test_what_is_no_header_is_reset_and_told(run: Run, caplog: pytest.LogCaptureFixture, said: bytes, why: str) -> None:
    async def main() -> None:
        house = House()
        local = await house.visit(said)
        assert await local.to_end() == (b"", End.RESET)
        assert not house.guests
        await house.close()

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    fields = told(caplog)[0]
    assert fields["balancer"] == BALANCER and why in str(fields["cause"])


def test_a_balancer_that_ends_first(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        house = House()
        for said in (b"", V1[:20]):
            local = await house.visit(said)
            local.eof()
            assert await local.to_end() == (b"", End.RESET)
            (await house.visit(said)).reset()
        await until(lambda: house.runtime.coming == 0, "all are gone")
        assert not house.guests
        await house.close()

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    assert "it ended before its PROXY header did" in caplog.text


def test_a_slow_header(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        house = House(Limits(handshake_time=0.1))
        slow = [await house.visit(said) for said in (b"", V1[:20])]
        for local in slow:
            assert await local.to_end() == (b"", End.RESET)
        await house.visit(V1)
        await house.hears(VISITOR)
        await house.close()

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    assert told(caplog)[0]["cause"] == "its PROXY header did not come in time"
    assert told(caplog, "limit.reached")[0]["limit"] == "handshake-time"


def test_a_stall_of_ours_is_not_the_balancers_fault(run: Run) -> None:
    async def main() -> None:
        house = House(Limits(handshake_time=0.2))
        local = await house.visit()
        await until(lambda: house.door._balancers and house.door._balancers._waits, "it waits")
        local.sock.send(V1)
        time.sleep(0.3)
        await house.hears(VISITOR)
        await house.close()

    run(main())


def test_who_waits_when_the_door_is_closed_is_reset(run: Run) -> None:
    async def main() -> None:
        house = House()
        local = await house.visit(V1[:20])
        await until(lambda: house.door._balancers and house.door._balancers._waits, "it waits")
        house.door.close()
        assert await local.to_end() == (b"", End.RESET)
        await house.close()

    run(main())


def test_a_crowd_of_visitors(run: Run) -> None:
    async def main() -> None:
        house = House()
        for number in range(100):
            await house.visit(
                pack_v1((f"192.0.2.{number % 250}", 1000 + number), ("198.51.100.1", 443)) + b"%d" % number
            )
        await until(lambda: len(house.said) == 100 and all(house.said.values()), "all are there")
        for number in range(100):
            assert house.said[(f"192.0.2.{number % 250}", 1000 + number)] == b"%d" % number
        await house.close()

    run(main())


def test_tls_behind_a_header(run: Run, tmp_path: Path) -> None:
    """The header is in the clear, as everybody writes it; a connection with TLS knows whose it is all the same."""

    async def main() -> None:
        paths = (tmp_path / "crt", tmp_path / "key")
        make_identity(*paths)
        server = server_context(load_identity(*paths))
        runtime = Runtime()
        loop = asyncio.get_running_loop()
        said: list[tuple[object, bytes]] = []

        class Guest(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = cast("asyncio.Transport", transport)
                assert transport.get_extra_info("ssl_object") is not None

            def data_received(self, data: bytes) -> None:
                said.append((self.transport.get_extra_info("peername"), data))
                self.transport.abort()

        balancers = Balancers(runtime, Networks((f"{LOCALHOST}/32",)))
        with listen(LOCALHOST, 0) as listener:
            _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
            writer.write(V1)
            sock, peer = await loop.sock_accept(listener)
            heard: asyncio.Future[Address | None] = loop.create_future()
            then: Callable[[Address | None], None] = heard.set_result
            balancers.hear(sock, peer, then)
            assert await heard == VISITOR
            made = loop.create_task(loop.connect_accepted_socket(lambda: Renamed(Guest(), VISITOR), sock, ssl=server))
            await writer.start_tls(client_context(pinned=True), server_hostname="fastrelay")
            await made
            writer.write(b"inside")
            await until(lambda: said, "it was heard")
            assert said == [(VISITOR, b"inside")]
            writer.transport.abort()
        await turns()
        await runtime.close()

    run(main())
