"""A relay in this process, and clients played by hand over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fastrelay import log, wire
from fastrelay.auth import ClientLogin, Token
from fastrelay.config import PortRange, ServerConfig
from fastrelay.errors import Code, StartError
from fastrelay.limits import DEFAULTS, Limits
from fastrelay.net.listen import listen
from fastrelay.roles.server import Server
from fastrelay.state import ServerState
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.support import pair
from tests.support.pair import Frame
from tests.support.peers import End
from tests.support.tunnel import Local, Peer, turns, until

LOCALHOST = "127.0.0.1"


def five_ports() -> PortRange:
    """In a row, below those of outgoing connections; nobody had them just now."""
    while True:
        first = random.randrange(10_000, 32_000, 5)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + 5):
                stack.enter_context(listen(LOCALHOST, port))
            return PortRange(first, first + 4)


class RelayBench:
    """A plaintext relay on loopback with five ports of its own."""

    def __init__(self, home: Path, limits: Limits = DEFAULTS) -> None:
        self.home = home
        self.limits = limits
        self.ports = five_ports()
        self.peers: list[Peer] = []
        self.locals: list[Local] = []
        self.port = 0

    def start(self) -> None:
        config = ServerConfig(
            bind_host=LOCALHOST, bind_port=self.port, ports=self.ports, advertise="", state=self.home,
            cert=None, key=None, plaintext=True, limits=self.limits,
        )  # fmt: skip
        self.server = Server(config, ServerState.open(self.home))
        self.server.start()
        self.port = self.server.port
        self.closed = False
        if text := self.server.token():
            self.token = Token.parse(text)

    async def close(self) -> None:
        if not self.closed:
            self.closed = True
            await self.server.close()

    async def knock(self) -> Peer:
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        await loop.sock_connect(sock, (LOCALHOST, self.port))
        peer = Peer(sock)
        self.peers.append(peer)
        return peer

    async def client(
        self, name: str = "home", instance: str = "inst", token: Token | None = None, wants: Kind | None = Kind.WELCOME
    ) -> tuple[Peer, Frame]:
        """A client that has said what it must; and the answer, which is `wants`, if that is said."""
        peer = await self.knock()
        login = ClientLogin(
            token or self.token, name, instance, None, secrets.token_bytes(32), wire.Settings(early=0), "by hand"
        )
        await peer.send(wire.frame(Kind.HELLO, 0, login.hello()))
        hello = await peer.frame()
        assert hello.kind == Kind.HELLO
        await peer.send(wire.frame(Kind.AUTH, 0, login.auth(hello.payload)))
        answer = await peer.frame()
        assert answer.kind == wants or wants is None, answer
        return peer, answer

    async def expose(
        self,
        peer: Peer,
        number: int = 1,
        name: str = "",
        port: int = 0,
        kind: str = "tcp",
        visitors: tuple[str, ...] = (),
    ) -> wire.Exposed:
        request = wire.Expose(service=number, name=name or f"s{number}", kind=kind, port=port, visitors=visitors)
        await peer.send(wire.frame(Kind.EXPOSE, 0, wire.pack_json(request)))
        answer = wire.unpack_json((await peer.frame(Kind.EXPOSED)).payload, wire.Exposed)
        assert answer.service == number
        assert bool(answer.port) is not bool(answer.error) or kind != "tcp"
        assert bool(answer.text) is bool(answer.error)
        return answer

    async def visit(self, port: int, holds: int = 0, source: str = LOCALHOST) -> Local:
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        if holds:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, holds)
        sock.setblocking(False)
        sock.bind((source, 0))
        local = Local(sock)
        self.locals.append(local)
        await loop.sock_connect(sock, (LOCALHOST, port))
        return local

    async def joined(self, peer: Peer, port: int, holds: int = 0) -> tuple[Local, int]:
        """A visitor whose stream the client has accepted."""
        local = await self.visit(port, holds)
        number = (await peer.frame(Kind.OPEN)).stream
        await peer.send(pair.accept(number, 1 << 20))
        return local, number


@asynccontextmanager
async def relay(home: Path, limits: Limits = DEFAULTS) -> AsyncIterator[RelayBench]:
    bench = RelayBench(home, limits)
    bench.start()
    try:
        yield bench
    finally:
        for local in bench.locals:
            local.close()
        for peer in bench.peers:
            peer.close()
        runtime = bench.server.runtime
        await bench.close()
        await turns()
    assert runtime.edges == 0 and runtime.pool.used == 0 and not runtime.watch._watched
    looks = bench.server.keyring._timer
    assert looks is None or looks.cancelled()


async def goaway(peer: Peer) -> Code:
    frame = await peer.frame(Kind.GOAWAY)
    return wire.unpack_goaway(frame.payload)[1]


# --- services ------------------------------------------------------------------------------------------------------------------


def test_a_visitor_becomes_a_stream(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            port = (await bench.expose(peer, 7)).port
            local = await bench.visit(port)
            opened = await peer.frame(Kind.OPEN)
            request = wire.unpack_open(opened.payload)
            assert opened.stream == 2 and request.service == 7
            assert request.visitor == "{}:{}".format(*local.sock.getsockname())
            await peer.send(pair.accept(2, 100), pair.fin(2, b"welcome"))
            assert await local.to_end() == (b"welcome", End.EOF)
            await local.send(b"thanks")
            local.eof()
            assert await peer.half(2) == (b"thanks", Kind.FIN, None)

    run(main())


def test_every_answer_to_expose(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r", Limits(services=3)) as bench:
            first = next(iter(bench.ports))
            one, _ = await bench.client("one", "1")
            two, _ = await bench.client("two", "2")
            assert (await bench.expose(one, 1, port=first + 1)).port == first + 1
            assert (await bench.expose(two, 1, port=first + 1)).error == "port-taken"
            assert (await bench.expose(one, 2, port=first + 1)).error == "port-taken"
            with listen(LOCALHOST, first + 2):
                assert (await bench.expose(two, 1, port=first + 2)).error == "port-taken"
            assert (await bench.expose(two, 1, port=first + 5)).error == "not-granted"
            assert (await bench.expose(one, 3, name="s1")).error == "name-taken"
            for number, name, kind, port in (
                (0, "x", "tcp", 0), (1 << 32, "x", "tcp", 0), (1, "x", "tcp", 0), (3, "Not A Name", "tcp", 0),
                (3, "x", "udp", 0), (3, "x", "tcp", 65_536), (3, "x", "tcp", -1),
            ):  # fmt: skip
                assert (await bench.expose(one, number, name, port, kind)).error == "bad-request"
            assert (await bench.expose(one, 2)).port == first, "the next free one"
            assert (await bench.expose(one, 3)).port == first + 2
            assert (await bench.expose(one, 4)).error == "limit"
            assert (await bench.expose(two, 1)).port == first + 3
            assert (await bench.expose(two, 2)).port == first + 4
            assert (await bench.expose(two, 3)).error == "no-port"
            one.close()
            await until(lambda: len(bench.server._tunnels) == 1, "the first is gone")
            assert (await bench.expose(two, 3, port=first)).error == "port-reserved"

    run(main())


def test_ports_are_the_same_after_a_restart(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            ports = [(await bench.expose(peer, number)).port for number in (1, 2)]
            peer.close()
            await bench.close()
            bench.start()
            peer, _ = await bench.client()
            assert [(await bench.expose(peer, number, f"s{number}")).port for number in (2, 1)] == ports[::-1]
            _, answer = await bench.client("home", "another", wants=Kind.GOAWAY)
            assert wire.unpack_goaway(answer.payload)[1] is Code.NAME_TAKEN

    run(main())


def test_a_port_moves_to_a_service_of_another_name(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            port = (await bench.expose(peer, 1, "tcp-22")).port
            peer, _ = await bench.client()
            assert (await bench.expose(peer, 1, "tcp-8022", port)).port == port

    run(main())


def test_expose_and_goodbye_in_one_chunk(run: Run, tmp_path: Path) -> None:
    """The port is closed in the turn in which it was opened."""

    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            for code in (Code.SHUTDOWN, Code.NO_ERROR):
                peer, _ = await bench.client()
                await peer.send(pair.expose(1), pair.goaway(code))
                await peer.frames_to_end()
                peer.close()
                await turns()
            assert not bench.server._tunnels

    run(main())


# --- who is there -----------------------------------------------------------------------------------------------------------------


def test_a_newer_session_takes_over_with_its_ports(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            old, _ = await bench.client()
            port = (await bench.expose(old)).port
            local, _ = await bench.joined(old, port)
            new, _ = await bench.client()
            assert await goaway(old) is Code.SUPERSEDED
            assert await local.to_end() == (b"", End.RESET)
            assert (await bench.expose(new, 1, port=port)).port == port
            old.close()
            await turns()
            await bench.joined(new, port)

    run(main())


def test_who_is_refused(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            await bench.client()
            for name, instance, token, code in (
                ("home", "other", None, Code.NAME_TAKEN),
                ("other", "inst", Token(bench.token.key_id, bytes(32), ()), Code.UNAUTHORIZED),
                ("other", "inst", Token("unknown_", bytes(32), ()), Code.UNAUTHORIZED),
            ):
                peer, answer = await bench.client(name, instance, token, wants=Kind.GOAWAY)
                assert wire.unpack_goaway(answer.payload)[1] is code
                await peer.frames_to_end()
                assert peer.ended is End.EOF
            assert len(bench.server._tunnels) == 1

    run(main())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP"),
        (b"\x16\x03\x01\x02\x00\x01", "speaks TLS"),
        (b"\x00\x00\x00\x05\x00\x00\x00\x01hello", "does not speak the fastrelay protocol"),
        (b"", "closed"),
    ],
)
def test_strangers_are_told_of_in_one_line(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, words: bytes, told: str
) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer = await bench.knock()
            if words:
                await peer.send(words)
            peer.sock.shutdown(socket.SHUT_WR)
            await peer.frames_to_end()
            peer.close()
            await until(lambda: "client.refused" in events(caplog), "it was told")
            assert told in caplog.text

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    assert events(caplog).count("client.refused") == 1


def events(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [vars(record).get("event") for record in caplog.records]


def test_a_client_may_not_open_streams(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            await peer.send(pair.open_(1))
            reset = await peer.frame(Kind.RESET)
            assert Code.of(int.from_bytes(reset.payload, "big")) is Code.NO_SERVICE
            peer.close()
            await until(lambda: not bench.server._tunnels, "the client is gone")

    notes: list[tuple[str, str, dict[str, object]]] = []
    monkeypatch.setattr(log, "_hear", lambda *what: notes.append(what))
    run(main())
    (refused,) = [fields for event, _, fields in notes if event == "stream.refused"]
    assert (refused["name"], refused["stream"], refused["cause"]) == ("home", 1, "no-service")


def test_a_port_for_tunnels_in_use(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            other = RelayBench(tmp_path / "other")
            other.port = bench.port
            with pytest.raises(StartError, match="--bind"):
                other.start()
            await other.server.close()

    run(main())


# --- full ------------------------------------------------------------------------------------------------------------------------


def test_visitors_wait_while_there_is_no_room(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            runtime = bench.server.runtime
            peer, _ = await bench.client()
            port = (await bench.expose(peer)).port
            runtime.budget = 2
            inside = [await bench.joined(peer, port) for _ in range(2)]
            await turns()
            waiting = [await bench.visit(port) for _ in range(3)]
            late = (await bench.expose(peer, 2)).port
            waiting.append(await bench.visit(late))
            for number, local in enumerate(waiting):
                await local.send(b"%d" % number)
            await asyncio.sleep(0.05)
            assert runtime.edges == 2
            runtime.budget = 6
            inside[0][0].reset()  # somebody leaves: then it is looked at
            for _ in waiting:
                number = (await peer.frame(Kind.OPEN)).stream
                await peer.send(pair.accept(number, 100))
            await until(lambda: runtime.edges == 5, "all are in")

    run(main())


# --- the end -----------------------------------------------------------------------------------------------------------------------


def test_drain_lets_streams_end(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            port = (await bench.expose(peer)).port
            local, number = await bench.joined(peer, port)
            idle, _ = await bench.client("idle", "other")
            draining = asyncio.ensure_future(bench.server.drain())
            assert await goaway(peer) is Code.SHUTDOWN and await goaway(idle) is Code.SHUTDOWN
            await idle.frames_to_end()
            assert idle.ended is End.EOF
            idle.close()
            for closed in (port, bench.port):
                with pytest.raises(ConnectionRefusedError):
                    await bench.visit(closed)
            await peer.send(pair.expose(2), pair.data(number, b"too late"))
            assert await local.read(8) == b"too late"
            assert not any(tunnel.services for tunnel in bench.server._tunnels.values()), "no new port"
            await local.send(b"still")
            assert (await peer.frame(Kind.DATA, Kind.EXPOSED)).payload == b"still", "nor an answer"
            local.eof()
            await peer.half(number)
            assert not draining.done()
            await peer.send(pair.fin(number, b"goes on"))
            assert await local.to_end() == (b"goes on", End.EOF)
            await peer.frames_to_end()
            assert peer.ended is End.EOF
            peer.close()
            await draining

    run(main())


def test_drain_waits_for_slow_visitors_whose_streams_are_over(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            port = (await bench.expose(peer)).port
            local, number = await bench.joined(peer, port, 20_000)
            server_side = next(iter(bench.server._tunnels.values())).session.streams[number]
            await until(lambda: server_side.recv_limit, "ACCEPT has arrived")
            size = server_side.recv_limit
            inside = server_side.outlet._transport.get_extra_info("socket")  # type: ignore[attr-defined]
            inside.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
            local.eof()
            await peer.half(number)
            await peer.send(*[pair.data(number, bytes(16_384))] * (size // 16_384), pair.fin(number))
            await until(lambda: server_side.ended, "the stream is over")
            draining = asyncio.ensure_future(bench.server.drain())
            await peer.frames_to_end()
            peer.close()
            await until(lambda: not bench.server._tunnels, "the tunnel is gone")
            await turns()
            assert not draining.done()
            data, end = await local.to_end()
            assert (len(data), end) == (size, End.EOF)
            await draining

    run(main())


def test_drain_ends_after_its_time(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r", Limits(drain_time=0.1)) as bench:
            peer, _ = await bench.client()
            local, _ = await bench.joined(peer, (await bench.expose(peer)).port)
            start = time.monotonic()
            await bench.server.drain()
            assert 0.09 < time.monotonic() - start < 1
            await bench.close()
            assert await local.to_end() == (b"", End.RESET)

    run(main())


def test_a_client_that_goes_away(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r", Limits(return_time=0)) as bench:
            peer, _ = await bench.client()
            port = (await bench.expose(peer)).port
            local, number = await bench.joined(peer, port)
            await peer.send(pair.goaway(Code.SHUTDOWN))
            await until(lambda: not next(iter(bench.server._tunnels.values())).services, "the port is closed")
            with pytest.raises(ConnectionRefusedError):
                await bench.visit(port)
            await peer.send(pair.fin(number, b"last"))
            assert await local.to_end() == (b"last", End.EOF)
            local.eof()
            await peer.frames_to_end()
            assert peer.ended is End.EOF

    run(main())


def test_a_client_that_gives_up(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            local, _ = await bench.joined(peer, (await bench.expose(peer)).port)
            await peer.send(pair.goaway(Code.INTERNAL, "it broke"))
            assert await local.to_end() == (b"", End.RESET)
            await peer.frames_to_end()

    run(main())


def test_close_ends_everything_at_once(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            local, _ = await bench.joined(peer, (await bench.expose(peer)).port)
            silent, stranger = await bench.knock(), await bench.knock()
            await stranger.send(b"\x10")
            await until(lambda: len(bench.server._links) == 2, "one is in its greeting")
            old, _ = await bench.client("slow", "1")
            await bench.client("slow", "1")  # the old one is saying goodbye
            start = time.monotonic()
            await bench.close()
            assert time.monotonic() - start < 1
            assert await local.to_end() == (b"", End.RESET)
            for one in (peer, silent, stranger, old):
                await one.frames_to_end()

    run(main())
