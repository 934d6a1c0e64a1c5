"""Who may visit a public port: a relay in this process, visitors from several addresses of loopback, and the client's frames by hand."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from typing import Any

import pytest

from fastrelay import wire
from fastrelay.net.notices import Notices
from fastrelay.networks import Networks
from fastrelay.roles.visitors import ListedVisitor, PublicPort, Visitor
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.roles.test_server import LOCALHOST, RelayBench, relay
from tests.support.peers import End
from tests.support.tunnel import Local, turns, until


async def is_reset(bench: RelayBench, port: int, source: str = LOCALHOST) -> bool:
    """Whether a visitor from this address gets a reset and nothing else. It does not wait for its connection, which may be reset by then."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((source, 0))
    sock.connect_ex((LOCALHOST, port))
    local = Local(sock)
    bench.locals.append(local)
    return await local.to_end() == (b"", End.RESET)


def denied(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record)["fields"] for record in caplog.records if vars(record).get("event") == "visitor.denied"]


def test_who_is_not_in_the_list_never_becomes_a_stream(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            answer = await bench.expose(peer, 7, "ssh", visitors=("127.0.0.2/32", "2001:db8::/32"))
            assert answer.visitors == 2
            for source in ("127.0.0.1", "127.0.0.3"):
                assert await is_reset(bench, answer.port, source)
            local = await bench.visit(answer.port, source="127.0.0.2")
            opened = await peer.frame()
            while opened.kind != Kind.OPEN:
                assert opened.kind in (Kind.PING, Kind.PONG)
                opened = await peer.frame()
            assert opened.stream == 2, "no id was spent on the others"
            assert wire.unpack_open(opened.payload).visitor == "{}:{}".format(*local.sock.getsockname())

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    first = denied(caplog)[0]
    assert first.pop("visitor").startswith("127.0.0.1:")
    assert first.pop("session") and first.pop("port")
    assert first == {"service": "ssh", "name": "home", "rule": "visitors"}


def test_a_crowd_of_strangers_is_told_of_once_for_each_service(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            bench.server.runtime.notices = Notices(asyncio.get_running_loop(), 0.2)
            peer, _ = await bench.client()
            ports = [(await bench.expose(peer, number, visitors=("127.0.0.2/32",))).port for number in (1, 2)]
            for _ in range(20):
                assert await is_reset(bench, ports[0])
            assert await is_reset(bench, ports[1])
            assert [fields["service"] for fields in denied(caplog)] == ["s1", "s2"]
            await until(lambda: len(denied(caplog)) == 3, "the others are told of together")
            assert denied(caplog)[2]["count"] == 19

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())


def test_strangers_that_have_gone_before_they_are_asked(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            port = (await bench.expose(peer, visitors=("127.0.0.2/32",))).port
            for source in ("127.0.0.1", "127.0.0.2") * 10:
                sock = socket.socket()
                sock.setblocking(False)
                sock.bind((source, 0))
                sock.connect_ex((LOCALHOST, port))
                Local(sock).reset()
            assert await is_reset(bench, port)
            await bench.visit(port, source="127.0.0.2")
            opened = wire.unpack_open((await peer.frame(Kind.OPEN)).payload)
            assert opened.visitor.startswith("127.0.0.2:"), "and nobody else"

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    assert all(str(fields["visitor"]).startswith("127.0.0.1:") for fields in denied(caplog))


@pytest.mark.parametrize(
    "listed",
    [
        ("127.0.0.1",),
        ("127.0.0.1/8",),
        ("127.0.0.0/33",),
        ("2001:DB8::/32",),
        ("::ffff:127.0.0.0/104",),
        ("localhost",),
        ("",),
        ("127.0.0.0/8", "x" * 3000),
        tuple(f"10.0.{number}.0/24" for number in range(wire.MAX_NETWORKS + 1)),
    ],
)
def test_a_list_that_cannot_be_read_opens_nothing(run: Run, tmp_path: Path, listed: tuple[str, ...]) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            port = bench.ports.first
            answer = await bench.expose(peer, 1, port=port, visitors=listed)
            assert (answer.error, answer.visitors) == ("bad-request", 0)
            with pytest.raises(ConnectionRefusedError):
                await bench.visit(port)
            assert (await bench.expose(peer, 1, port=port)).port == port, "the tunnel and the number are as before"

    run(main())


def test_the_longest_list_fits_into_a_frame(run: Run, tmp_path: Path) -> None:
    longest = tuple(f"ffff:ffff:ffff:ffff:ffff:ffff:ffff:{0xFF00 + n:x}/128" for n in range(wire.MAX_NETWORKS))

    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            assert (await bench.expose(peer, (1 << 32) - 1, "x" * 63, 0, "tcp", longest)).visitors == wire.MAX_NETWORKS

    run(main())


def test_a_list_ends_with_its_session(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            port = (await bench.expose(peer, visitors=("127.0.0.2/32",))).port
            peer, _ = await bench.client()
            answer = await bench.expose(peer)
            assert (answer.port, answer.visitors) == (port, 0)
            await bench.joined(peer, port)

    run(main())


def test_without_a_list_nothing_is_asked(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            await bench.expose(peer, 1)
            await bench.expose(peer, 2, visitors=("127.0.0.0/8",))
            services = next(iter(bench.server._tunnels.values())).services
            ports = [service for service in services.values() if isinstance(service, PublicPort)]
            made = [type(port.door._make()) for port in ports]
            assert made == [Visitor, ListedVisitor]
            assert services[1].visitors is None and services[2].visitors == Networks(("127.0.0.0/8",))
            await turns()

    run(main())
