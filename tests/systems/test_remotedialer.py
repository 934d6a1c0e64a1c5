"""rancher/remotedialer: connections that a client makes for others, one test for each behaviour, its defects not carried over.

A real relay and a real client, and visitors at the local port of a real caller, as with `fastrelay forward RELAY home/10.0.0.5:5432`.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fastrelay import log, wire
from fastrelay.auth import Token
from fastrelay.config import ClientConfig, Relay
from fastrelay.dialling import Rules
from fastrelay.errors import Code
from fastrelay.limits import DEFAULTS, Limits
from fastrelay.roles import keyring
from fastrelay.roles.client import Client
from fastrelay.roles.tunnel import Tunnel
from fastrelay.state import ClientState
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.roles.test_grants import token
from tests.roles.test_server import LOCALHOST, RelayBench, relay
from tests.support import pair
from tests.support.callers import CallerBench, caller
from tests.support.pair import Tap
from tests.support.payload import Checker, Keystream
from tests.support.peers import End
from tests.support.tunnel import PATIENCE, Local, turns, until

AT_ONCE = 1.0
MIB = 1 << 20
one_loop = pytest.mark.parametrize("loop_kind", ["uvloop"])
"""For what has nothing to do with the loop."""
EVERYTHING = ("127.0.0.0/8", "*")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once, and the relay looks at its tokens all the time."""
    monkeypatch.setattr(random, "random", lambda: 0.01)
    monkeypatch.setattr(keyring, "_LOOK_EVERY", 0.01)


@asynccontextmanager
async def dialler(
    home: Path, bench: RelayBench, *rules: str, deny: tuple[str, ...] = (), limits: Limits = DEFAULTS
) -> AsyncIterator[Client]:
    """The client "home", which dials what its rules allow."""
    config = ClientConfig(
        relay=Relay(LOCALHOST, bench.port, tls=False), token=bench.token.text(), exposures=(), name="home", state=home,
        limits=limits, allow_dial=Rules.parse(rules, deny),
    )  # fmt: skip
    client = Client(config, ClientState.open(home, config.relay.url, "home"), lambda *_: None)
    running = asyncio.ensure_future(client.run())
    try:
        await until(lambda: bench.server.registry.here("home"), "it is connected")
        yield client
    finally:
        await client.close()
        await asyncio.gather(running, return_exceptions=True)


async def visitors(bench: RelayBench, through: str = "home", dial: tuple[str, ...] = EVERYTHING) -> Token:
    """A token that visits only: it may have these clients dial what these rules allow."""
    return await token(bench, "visitor", names=[], services=[], dial=list(dial), through=[through])


@asynccontextmanager
async def system(
    home: Path,
    target: str,
    *rules: str,
    dial: tuple[str, ...] = EVERYTHING,
    through: str = "home",
    client_limits: Limits = DEFAULTS,
    limits: Limits = DEFAULTS,
) -> AsyncIterator[tuple[RelayBench, Client, CallerBench]]:
    """Relay, client, and a local port that leads to `target`."""
    async with (
        relay(home / "r", limits) as bench,
        dialler(home / "c", bench, *rules, limits=client_limits) as client,
        caller(home / "v", bench.port, (await visitors(bench, through, dial)).text(), target) as at,
    ):
        yield bench, client, at


@pytest.fixture
def target() -> Iterator[socket.socket]:
    with socket.create_server((LOCALHOST, 0), backlog=1024) as listener:
        listener.setblocking(False)
        yield listener


def place(listener: socket.socket, host: str = LOCALHOST) -> str:
    return f"{host}:{listener.getsockname()[1]}"


async def met(at: CallerBench, listener: socket.socket) -> tuple[Local, Local]:
    """A visitor, and its connection at the target."""
    local = await at.visit()
    async with asyncio.timeout(PATIENCE):
        sock, _ = await local.loop.sock_accept(listener)
    there = Local(sock)
    at.locals.append(there)
    return local, there


async def talk(visitor: Local, there: Local) -> None:
    """A word each way, and both ends in order."""
    await visitor.send(b"a question")
    visitor.eof()
    assert await there.to_end() == (b"a question", End.EOF)
    await there.send(b"an answer")
    there.eof()
    assert await visitor.to_end() == (b"an answer", End.EOF)


async def refused(at: CallerBench) -> float:
    """A visitor is reset, in that time."""
    start = time.monotonic()
    assert await (await at.visit()).to_end() == (b"", End.RESET)
    return time.monotonic() - start


def nobody_came(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return True
    return False


# --- allowed -----------------------------------------------------------------------------------------------------------


def test_a_visitor_reaches_what_the_client_reaches(run: Run, tmp_path: Path, target: socket.socket) -> None:
    async def main() -> None:
        async with system(tmp_path, f"home/{place(target)}", "127.0.0.0/8") as (_, _, at):
            for _ in range(3):
                await talk(*await met(at, target))

    run(main())


@one_loop
def test_the_relay_itself_opens_connections(run: Run, tmp_path: Path, target: socket.socket) -> None:
    """There `Server.Dialer(key)`, here `Tunnel.open_through`."""

    async def main() -> None:
        async with relay(tmp_path / "r") as bench, dialler(tmp_path / "c", bench, "127.0.0.1"):
            home = bench.server.directory.client("home")
            assert isinstance(home, Tunnel)
            tap = Tap()
            tap.stream = home.open_through(place(target), tap, "the relay")
            assert tap.stream is not None
            async with asyncio.timeout(PATIENCE):
                sock, _ = await asyncio.get_running_loop().sock_accept(target)
            there = Local(sock)
            await until(lambda: tap.accepted, "it is there")
            await there.send(b"hello")
            await until(lambda: tap.received == b"hello", "it has arrived")
            tap.stream.fin()
            assert await there.to_end() == (b"", End.EOF)
            there.close()
            await until(lambda: tap.fin, "both ends")

    run(main())


@one_loop
def test_a_client_may_visit_its_own_network(run: Run, tmp_path: Path) -> None:
    """Both streams are in one tunnel."""

    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            both = await token(bench, "home", dial=["10.0.0.0/8"], through=["home"])
            home, _ = await bench.client("home", "inst", both)
            asked = wire.Open(0, MIB, target="home/10.0.0.5:22")
            await home.send(wire.frame(Kind.OPEN, 1, wire.pack_open(asked)))
            opened = await home.frame(Kind.OPEN)
            await home.send(pair.accept(opened.stream))
            assert (await home.frame(Kind.ACCEPT)).stream == 1
            await home.send(pair.fin(1, b"a question"))
            assert await home.half(opened.stream) == (b"a question", Kind.FIN, None)
            await home.send(pair.fin(opened.stream, b"an answer"))
            assert await home.half(1) == (b"an answer", Kind.FIN, None)

    run(main())


@one_loop
def test_who_was_where_is_in_the_audit_log(
    run: Run, tmp_path: Path, target: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[tuple[str, dict[str, Any]]] = []

    async def main() -> None:
        monkeypatch.setattr(log, "_hear", lambda event, _, fields: notes.append((event, fields)))
        async with system(tmp_path, f"home/{place(target)}", "127.0.0.0/8") as (_, _, at):
            await talk(*await met(at, target))
            await until(lambda: len([event for event, _ in notes if event.endswith("r.closed")]) == 1, "it was told")
            await until(lambda: "target.closed" in [event for event, _ in notes], "it was told")

    run(main())
    told = {event: fields for event, fields in notes if event.split(".")[0] in ("visitor", "target")}
    assert told.keys() == {"visitor.opened", "visitor.closed", "target.opened", "target.closed"}
    assert {fields["target"] for fields in told.values()} == {place(target)}
    assert {fields["visitor"] for fields in told.values()} == {told["visitor.opened"]["visitor"]}
    assert {fields["stream"] for fields in told.values()} == {2}
    closed = told["visitor.closed"]
    assert (closed["name"], closed["token"], closed["cause"]) == ("home", "visitor", "fin")
    assert (closed["bytes_in"], closed["bytes_out"]) == (10, 9)


def test_names_are_resolved_at_the_client(
    run: Run, tmp_path: Path, target: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def lookup(host: str, *rest: Any, **more: Any) -> Any:
        return real(LOCALHOST if host == "db.home.lan" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)

    async def main() -> None:
        async with system(tmp_path, f"home/{place(target, 'db.home.lan')}", "127.0.0.0/8") as (_, _, at):
            await talk(*await met(at, target))

    run(main())


@one_loop
def test_a_visitor_is_answered_when_the_target_is_there(run: Run, tmp_path: Path) -> None:
    """There a dial has succeeded as soon as it was asked for."""

    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            home, _ = await bench.client("home")
            visitor, _ = await bench.client("", "other", await visitors(bench))
            await visitor.send(wire.frame(Kind.OPEN, 1, wire.pack_open(wire.Open(0, MIB, target="home/db.lan:5432"))))
            opened = await home.frame(Kind.OPEN)
            asked = wire.unpack_open(opened.payload)
            assert (asked.service, asked.target) == (0, "db.lan:5432")
            assert asked.visitor == "{}:{}".format(*visitor.sock.getsockname())
            await turns(10)
            with pytest.raises(BlockingIOError):
                visitor.sock.recv(1)
            await home.send(pair.accept(opened.stream))
            assert (await visitor.frame(Kind.ACCEPT)).stream == 1

    run(main())


@one_loop
def test_each_of_many_is_joined_with_its_own(run: Run, tmp_path: Path, target: socket.socket) -> None:
    number = 200

    async def main() -> None:
        async with system(tmp_path, f"home/{place(target)}", "127.0.0.0/8") as (_, _, at):
            locals_ = await asyncio.gather(*(at.visit() for _ in range(number)))
            await asyncio.gather(*(one.send(b"%3d" % who) for who, one in enumerate(locals_)))
            loop = asyncio.get_running_loop()
            for _ in range(number):
                async with asyncio.timeout(PATIENCE):
                    there = Local((await loop.sock_accept(target))[0])
                at.locals.append(there)
                await there.send(b"answer to " + await there.read(3))
                there.eof()
            answers = await asyncio.gather(*(one.to_end() for one in locals_))
            assert answers == [(b"answer to %3d" % who, End.EOF) for who in range(number)]

    run(main())


# --- denied ------------------------------------------------------------------------------------------------------------


@one_loop
def test_what_the_client_does_not_allow_costs_that_stream_alone(
    run: Run, tmp_path: Path, target: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """There the whole session ends."""

    async def main() -> None:
        rules = ("10.0.0.0/8:22", "127.0.0.1:1")
        async with system(tmp_path, f"home/{place(target)}", *rules) as (bench, client, at):
            session = client._session
            assert await refused(at) < AT_ONCE
            assert "The client 'home' refuses to dial" in caplog.text, "the visitor is told who says no"
            denied = [vars(record)["fields"] for record in caplog.records if vars(record).get("event") == "dial.denied"]
            assert [(one["target"], one["rule"]) for one in denied] == [(place(target), "port")]
            assert client._session is session and bench.server.registry.here("home")

    run(main())
    assert nobody_came(target)


@one_loop
def test_what_the_client_denies(
    run: Run, tmp_path: Path, target: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with (
            relay(tmp_path / "r") as bench,
            dialler(tmp_path / "c", bench, "127.0.0.0/8", deny=("127.0.0.1/32",)),
            caller(tmp_path / "v", bench.port, (await visitors(bench)).text(), f"home/{place(target)}") as at,
        ):
            assert await refused(at) < AT_ONCE
            assert "The client 'home' refuses to dial" in caplog.text and "--deny-dial" in caplog.text

    run(main())
    assert nobody_came(target)


@one_loop
@pytest.mark.parametrize(
    ("dial", "through"),
    [(("10.0.0.0/8",), "home"), (("127.0.0.1:1",), "home"), (EVERYTHING, "office"), (("*",), "home"), ((), "home")],
)
def test_what_the_token_does_not_grant_is_not_asked_of_the_client(
    run: Run,
    tmp_path: Path,
    target: socket.socket,
    caplog: pytest.LogCaptureFixture,
    dial: tuple[str, ...],
    through: str,
) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            home, _ = await bench.client("home")
            text = (await visitors(bench, through, dial)).text()
            async with caller(tmp_path / "v", bench.port, text, f"home/{place(target)}") as at:
                assert await refused(at) < AT_ONCE
                assert "The relay refuses" in caplog.text and "token" in caplog.text
                with pytest.raises(BlockingIOError):
                    home.sock.recv(1)

    run(main())


@one_loop
def test_without_a_rule_nothing_is_dialled(run: Run, tmp_path: Path, target: socket.socket) -> None:
    async def main() -> None:
        async with system(tmp_path, f"home/{place(target)}") as (_, _, at):
            assert await refused(at) < AT_ONCE

    run(main())
    assert nobody_came(target)


@one_loop
def test_a_token_without_clients_to_dial_through_does_not_visit(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            bare = await token(bench, "bare", names=[], services=[], dial=["10.0.0.0/8"])
            _, answer = await bench.client("", "other", bare, wants=Kind.GOAWAY)
            assert wire.unpack_goaway(answer.payload)[1] is Code.DENIED

    run(main())


@one_loop
def test_what_names_no_place_is_not_found(run: Run, tmp_path: Path) -> None:
    targets = [
        "home/",
        "/10.0.0.5:22",
        "home/10.0.0.5",
        "home/127.1:22",
        "home//10.0.0.5:22",
        "Home/10.0.0.5:22",
        "home/10.0.0.5:70000",
        "home/a/b:1",
    ]  # fmt: skip

    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            home, _ = await bench.client("home")
            visitor, _ = await bench.client("", "other", await visitors(bench, "*"))
            asked = [wire.Open(0, MIB, 0, "", target) for target in targets]
            asked.append(wire.Open(0, MIB, 1, "", "home/10.0.0.5:22"))
            for number, request in enumerate(asked):
                await visitor.send(wire.frame(Kind.OPEN, 2 * number + 1, wire.pack_open(request)))
                assert await visitor.half(2 * number + 1) == (b"", Kind.RESET, Code.NO_SERVICE), request
            with pytest.raises(BlockingIOError):
                home.sock.recv(1)

    run(main())


# --- not there ---------------------------------------------------------------------------------------------------------


@one_loop
def test_an_unknown_client_and_one_that_is_away(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            text = (await visitors(bench)).text()
            async with caller(tmp_path / "v", bench.port, text, "home/127.0.0.1:22") as at:
                assert await refused(at) < AT_ONCE
                assert "The relay has no client 'home'" in caplog.text
                home, _ = await bench.client("home")
                home.close()
                await until(lambda: not bench.server.registry.here("home"), "it is gone")
                assert await refused(at) < AT_ONCE
                assert "The client 'home' is not connected now" in caplog.text

    run(main())


@one_loop
def test_a_target_that_refuses(
    run: Run, tmp_path: Path, target: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        goal = f"home/{place(target)}"
        target.close()
        async with system(tmp_path, goal, "127.0.0.0/8") as (_, _, at):
            assert await refused(at) < AT_ONCE
            assert "refused the connection that 'home' made" in caplog.text

    run(main())


def test_a_target_that_does_not_answer(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """There a minute passes."""

    async def main() -> None:
        with socket.create_server((LOCALHOST, 0), backlog=0) as hanging:
            knocks = [socket.socket() for _ in range(4)]
            for knock in knocks:  # the queue is full: the kernel drops what else knocks
                knock.setblocking(False)
                knock.connect_ex(hanging.getsockname())
            soon = Limits(dial_time=0.2)
            async with system(tmp_path, f"home/{place(hanging)}", "127.0.0.0/8", client_limits=soon) as (_, _, at):
                assert 0.2 <= await refused(at) < 0.2 + AT_ONCE
                assert "did not answer 'home' in time" in caplog.text
            for knock in knocks:
                knock.close()

    run(main())


@one_loop
def test_a_client_that_says_nothing(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r", Limits(answer_time=0.2)) as bench:
            home, _ = await bench.client("home")
            text = (await visitors(bench)).text()
            async with caller(tmp_path / "v", bench.port, text, "home/127.0.0.1:22") as at:
                assert 0.2 <= await refused(at) < 0.2 + AT_ONCE
                assert "did not answer 'home' in time" in caplog.text
                assert (await home.frame(Kind.RESET)).stream == 2

    run(main())


# --- sessions ----------------------------------------------------------------------------------------------------------


def test_a_client_that_goes_resets_its_connections_at_once(run: Run, tmp_path: Path, target: socket.socket) -> None:
    async def main() -> None:
        async with system(tmp_path, f"home/{place(target)}", "127.0.0.0/8") as (bench, client, at):
            local, there = await met(at, target)
            await local.send(b"hello")
            assert await there.read(5) == b"hello"
            start = time.monotonic()
            assert client._link is not None
            client._link.abort(ConnectionAbortedError("cut"))
            assert await local.to_end() == (b"", End.RESET)
            assert await there.to_end() == (b"", End.RESET)
            assert time.monotonic() - start < AT_ONCE
            await until(lambda: client.streams == 0 and bench.server.registry.here("home"), "it is back")
            await until(lambda: client._session, "it is back")
            await talk(*await met(at, target))

    run(main())


def test_a_newer_session_takes_over(run: Run, tmp_path: Path) -> None:
    """There may be several sessions of one client there, and the oldest is asked for ever; here the newest is the only one."""

    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            old, _ = await bench.client("home")
            text = (await visitors(bench)).text()
            async with caller(tmp_path / "v", bench.port, text, "home/127.0.0.1:22") as at:
                local = await at.visit()
                opened = await old.frame(Kind.OPEN)
                await old.send(pair.accept(opened.stream), pair.data(opened.stream, b"old"))
                assert await local.read(3) == b"old"
                start = time.monotonic()
                new, _ = await bench.client("home")
                assert await local.to_end() == (b"", End.RESET)
                assert time.monotonic() - start < AT_ONCE
                goaway = [one for one in await old.frames_to_end() if one.kind == Kind.GOAWAY]
                assert [wire.unpack_goaway(one.payload)[1] for one in goaway] == [Code.SUPERSEDED]
                for _ in range(3):
                    local = await at.visit()
                    stream = (await new.frame(Kind.OPEN)).stream
                    await new.send(pair.accept(stream), pair.fin(stream, b"new"))
                    assert await local.to_end() == (b"new", End.EOF)

    run(main())


# --- backpressure ------------------------------------------------------------------------------------------------------


class Flow:
    """One direction: everything is sent as soon as it is taken, and read when the test says so."""

    def __init__(self, source: Local, sink: Local, seed: str, size: int) -> None:
        sink.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)  # or the kernel takes 32 MiB
        self.sink = sink
        self.sent = 0
        self.size = size
        self.seen = Checker(seed)
        self._keys = Keystream(seed)
        self.sending = asyncio.ensure_future(self._send(source))

    async def _send(self, source: Local) -> None:
        while self.sent < self.size:
            piece = self._keys.take(65_536)
            await source.loop.sock_sendall(source.sock, piece)
            self.sent += len(piece)
        source.eof()

    async def read(self, size: int) -> None:
        stop = min(self.size, self.seen.received + size)
        while self.seen.received < stop:
            piece = await self.sink.loop.sock_recv(self.sink.sock, 1 << 18)
            assert piece, f"an end after {self.seen.received} of {self.size} bytes"
            self.seen.feed(piece)


async def stands_still(what: Callable[[], int]) -> None:
    """Nothing has moved for a while."""
    before = -1
    while (now := what()) != before:
        before = now
        await asyncio.sleep(0.1)


def test_both_directions_stand_still_and_go_on(run: Run, tmp_path: Path, target: socket.socket) -> None:
    """There a pause and a resume of both sides at once can meet, and then nothing moves for ever."""

    async def main() -> None:
        async with system(tmp_path, f"home/{place(target)}", "127.0.0.0/8") as (_, client, at):
            local, there = await met(at, target)
            flows = [Flow(local, there, "there", 16 * MIB), Flow(there, local, "back", 16 * MIB)]
            for _ in range(3):
                await stands_still(lambda: sum(flow.sent for flow in flows))
                assert all(flow.sent < flow.size for flow in flows), (
                    f"both are held back: {[flow.sent for flow in flows]}"
                )
                await asyncio.gather(*(flow.read(2 * MIB) for flow in flows))
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*(flow.read(flow.size) for flow in flows), *(flow.sending for flow in flows))
            for end in (local, there):
                assert await end.to_end() == (b"", End.EOF)
            await until(lambda: client.streams == 0, "it is over")

    run(main())


@one_loop
def test_who_stands_still_holds_nobody_else_up(run: Run, tmp_path: Path, target: socket.socket) -> None:
    """There all connections of a client share one reader, and a full buffer stops it."""

    async def main() -> None:
        async with system(tmp_path, f"home/{place(target)}", "127.0.0.0/8") as (_, _, at):
            local, there = await met(at, target)
            flows = [Flow(local, there, "there", 16 * MIB), Flow(there, local, "back", 16 * MIB)]
            await stands_still(lambda: sum(flow.sent for flow in flows))
            for _ in range(10):
                start = time.monotonic()
                await talk(*await met(at, target))
                assert time.monotonic() - start < AT_ONCE
            for flow in flows:
                flow.sending.cancel()
            await asyncio.gather(*(flow.sending for flow in flows), return_exceptions=True)

    run(main())
