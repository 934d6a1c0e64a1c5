"""A client in this process, and a relay whose decisions the test makes: real links and sessions at both ends."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fastrelay import log, wire
from fastrelay.auth import RelayLogin, Token, Verifier
from fastrelay.config import ClientConfig, Exposure, Relay, Target
from fastrelay.dialling import NO_RULES, Rules
from fastrelay.errors import Code, ProtocolError, StartError
from fastrelay.limits import DEFAULTS, Limits
from fastrelay.mux.greeting import RelayGreeting
from fastrelay.mux.session import Session
from fastrelay.mux.stream import Stream
from fastrelay.net.dial import Dial, Resolver
from fastrelay.net.link import Core, Link
from fastrelay.net.listen import TunnelDoor, listen
from fastrelay.net.runtime import Runtime
from fastrelay.networks import read
from fastrelay.roles import client as client_module
from fastrelay.roles import uplink as uplink_module
from fastrelay.roles.client import Client
from fastrelay.roles.refusals import Refusals
from fastrelay.state import ClientState
from tests.conftest import Run
from tests.support.pair import Tap
from tests.support.peers import End
from tests.support.tunnel import Local, turns, until

LOCALHOST = "127.0.0.1"
TOKEN = Token("k3yID_-0", bytes(range(32)), ())


class FakeRelay:
    """Takes every client that knows the token, unless `refusal` says otherwise, and does nothing by itself but answer EXPOSE."""

    def __init__(self, port: int = 0) -> None:
        self.runtime = Runtime()
        self.refusal: Code | None = None
        self.answer: Callable[[wire.Expose], wire.Exposed | None] = lambda request: wire.Exposed(
            service=request.service, port=20_000 + request.service
        )
        self.links: list[Link] = []
        self.sessions: list[Session] = []
        self.answered = 0  # EXPOSE of the newest session
        self.greeted = 0
        self.goaways: list[Code] = []
        self.ended: list[Exception | None] = []
        self._listen(port)

    def _listen(self, port: int) -> None:
        sock = listen(LOCALHOST, port)
        limits = Limits()
        self.door = TunnelDoor(self.runtime, sock, None, lambda: Link(self.runtime, self), Refusals(limits), limits)
        self.port = self.door.port

    @property
    def session(self) -> Session:
        return self.sessions[-1]

    def on_connected(self, link: Link) -> Core:
        self.greeted += 1
        self.links.append(link)
        verifier = Verifier.of(TOKEN)
        login = RelayLogin(
            lambda key_id: verifier if key_id == TOKEN.key_id else None,
            bytes(32), None, secrets.token_bytes(32), wire.Settings(), "by hand",
        )  # fmt: skip

        def admit(auth: wire.Auth, theirs: wire.Settings) -> tuple[str, str]:
            if self.refusal is not None:
                raise ProtocolError(self.refusal, "the test says so")
            return "session", ""

        def done() -> None:
            self.door.admitted(link)
            self.answered = 0
            self.sessions.append(link.begin(self, dialer=False, ours=wire.Settings(), theirs=wire.Settings()))

        return RelayGreeting(link.decoder, login, link.write, admit, done)

    def on_closed(self, link: Link, error: Exception | None) -> None:
        self.links.remove(link)
        self.door.ended(link, error)
        self.ended.append(error)

    def on_open(self, stream: Stream, request: wire.Open) -> None:
        stream.reset(Code.NO_SERVICE)

    def on_expose(self, request: wire.Expose) -> None:
        answer = self.answer(request)
        if answer is not None:
            self.session.exposed(answer)
            self.answered += 1

    def on_exposed(self, answer: wire.Exposed) -> None: ...
    def on_list(self) -> None: ...
    def on_listed(self, answer: wire.Listed) -> None: ...
    def on_pins(self, pins: tuple[bytes, ...]) -> None: ...
    def on_goaway(self, code: Code, text: str) -> None:
        self.goaways.append(code)

    def on_idle(self) -> None: ...

    def open(self, service: int = 1, target: str = "") -> Tap:
        tap = Tap()
        tap.stream = self.session.open(tap, service, "192.0.2.9:51544", target)
        assert tap.stream is not None
        return tap

    def drop(self) -> None:
        for link in list(self.links):
            link.abort(ConnectionAbortedError("the relay died"))

    async def stop(self) -> None:
        self.door.close()
        self.drop()
        await until(lambda: not self.links, "every link has ended")

    async def close(self) -> None:
        await self.stop()
        await self.runtime.close()


class ClientBench:
    def __init__(
        self,
        home: Path,
        relay: FakeRelay,
        *exposures: Exposure,
        token: Token = TOKEN,
        limits: Limits = DEFAULTS,
        allow_dial: Rules = NO_RULES,
    ) -> None:
        self.relay = relay
        self.reached: list[tuple[str, str, int]] = []
        self.listener = socket.create_server((LOCALHOST, 0))
        self.listener.setblocking(False)
        self.locals: list[Local] = []
        mine = exposures or (Exposure("web", 0, Target(LOCALHOST, self.listener.getsockname()[1])),)
        config = ClientConfig(
            relay=Relay(LOCALHOST, relay.port, tls=False),
            token=token.text(),
            exposures=mine,
            name="home",
            state=home,
            limits=limits,
            allow_dial=allow_dial,
        )
        self.client = Client(
            config,
            ClientState.open(home, config.relay.url, config.name),
            lambda exposure, public: self.reached.append((exposure.name, public.host, public.port)),
        )
        self.running = asyncio.ensure_future(self.client.run())

    async def target(self) -> Local:
        async with asyncio.timeout(5):
            sock, _ = await self.client.runtime.loop.sock_accept(self.listener)
        local = Local(sock)
        self.locals.append(local)
        return local

    async def joined(self) -> tuple[Tap, Local]:
        await until(lambda: self.relay.answered, "there is a port to come to")
        tap = self.relay.open()
        local = await self.target()
        await until(lambda: tap.stream and tap.stream.recv.value == "open", "ACCEPT has arrived")
        return tap, local

    async def verdict(self) -> str:
        """What the client says when it ends by itself."""
        async with asyncio.timeout(5):
            try:
                await self.running
            except StartError as error:
                return str(error)
        return ""


@asynccontextmanager
async def client(
    home: Path,
    *exposures: Exposure,
    token: Token = TOKEN,
    limits: Limits = DEFAULTS,
    allow_dial: Rules = NO_RULES,
) -> AsyncIterator[ClientBench]:
    relay = FakeRelay()
    bench = ClientBench(home, relay, *exposures, token=token, limits=limits, allow_dial=allow_dial)
    try:
        yield bench
    finally:
        for local in bench.locals:
            local.close()
        bench.listener.close()
        await bench.client.close()
        await asyncio.gather(bench.running, return_exceptions=True)
        await bench.relay.close()
        await turns()
        await asyncio.get_running_loop().shutdown_default_executor()
    runtime = bench.client.runtime
    await until(lambda: not runtime.edges, "every edge has ended", 3)
    assert runtime.pool.used == 0 and not runtime.watch._watched


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once."""
    monkeypatch.setattr(random, "random", lambda: 0.01)


def events(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if vars(record).get("event") == name]


# --- services and streams -----------------------------------------------------------------------------------------------------


def test_services_are_exposed_and_told(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        one, two = Exposure("one", 0, Target(LOCALHOST, 1)), Exposure("two", 20_002, Target(LOCALHOST, 2))
        async with client(tmp_path / "c", one, two) as bench:
            asked: list[wire.Expose] = []
            answer = bench.relay.answer

            def remember(request: wire.Expose) -> wire.Exposed | None:
                asked.append(request)
                return answer(request)

            bench.relay.answer = remember
            await until(lambda: len(bench.reached) == 2, "both were told")
            assert [(request.service, request.name, request.port) for request in asked] == [
                (1, "one", 0),
                (2, "two", 20_002),
            ]
            assert bench.reached == [("one", LOCALHOST, 20_001), ("two", LOCALHOST, 20_002)]
            bench.relay.drop()
            await until(lambda: len(asked) == 4, "it is back")
            await turns(5)
            assert len(bench.reached) == 2, "the same addresses are not told again"

    run(main())


def test_a_stream_reaches_its_target(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with client(tmp_path / "c") as bench:
            await until(lambda: bench.reached, "it is reachable")
            tap, local = await bench.joined()
            await local.send(b"hello")
            await until(lambda: tap.received == b"hello", "it has arrived")
            assert tap.stream
            tap.stream.fin()
            assert await local.to_end() == (b"", End.EOF)
            local.eof()
            await until(lambda: tap.fin and not bench.relay.session.streams, "both ends")

    run(main())


# --- only what this side exposes is dialled ---------------------------------------------------------------------------------------


class Trap:
    """Counts what is dialled, and listens where nobody may be dialled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dialled: list[Target] = []
        self.listener = socket.create_server((LOCALHOST, 0))
        self.listener.setblocking(False)
        self.port = int(self.listener.getsockname()[1])

        def counted(*args: Any) -> Any:
            self.dialled.extend(arg for arg in args if isinstance(arg, Target))
            return Dial(*args)

        monkeypatch.setattr(client_module, "Dial", counted)

    def sprung(self) -> bool:
        """Whether somebody came, from this process or another."""
        try:
            self.listener.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.fixture
def trap(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trap]:
    made = Trap(monkeypatch)
    with made.listener:
        yield made


@pytest.mark.parametrize("service", [0, 2, 4_000_000_000])
def test_a_service_that_nobody_exposed(
    run: Run,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    trap: Trap,
    service: int,
) -> None:
    async def main() -> None:
        async with client(tmp_path / "c") as bench:
            await until(lambda: bench.reached, "it is reachable")
            tap = bench.relay.open(service)
            await until(lambda: tap.code is Code.NO_SERVICE, "it was refused")
            assert not trap.dialled
            assert str(service) in events(caplog, "service.unknown")[0]
            await bench.joined()
            bench.client.drain()
            last = bench.relay.open()  # before it is known there
            await until(lambda: last.code is Code.SHUTDOWN, "it was refused")

    notes: list[tuple[str, str, dict[str, object]]] = []
    monkeypatch.setattr(log, "_hear", lambda *what: notes.append(what))
    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    refused = [fields for event, _, fields in notes if event == "stream.refused"]
    assert [(one["service"], one["stream"], one["cause"]) for one in refused] == [
        (service, 2, "no-service"),
        (1, 6, "shutdown"),
    ]


def test_the_relay_cannot_name_an_address(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: Trap
) -> None:
    port = trap.port
    names = [
        f"127.0.0.1:{port}", f"localhost:{port}", f"[::ffff:127.0.0.1]:{port}", f"tcp://127.0.0.1:{port}", f"{port}",
        f"2130706433:{port}", f"127.1:{port}", f"0.0.0.0:{port}", f"x={port}", "unix:/run/docker.sock", "169.254.169.254:80",
        "web", "1", "", "\0", "x" * 255,
    ]  # fmt: skip
    pack = wire.pack_open
    target = b""
    monkeypatch.setattr(wire, "pack_open", lambda request: pack(request) + target)

    async def main() -> None:
        nonlocal target
        async with client(tmp_path / "c") as bench:
            await until(lambda: bench.reached, "it is reachable")
            others: list[Tap] = []
            for name in names:
                target = bytes((wire.FIELD_TARGET, len(name))) + name.encode()
                others.append(bench.relay.open(2))
                await bench.joined()  # the target is the one of the command line
            assert [tap.code for tap in others] == [Code.NO_SERVICE] * len(names), "whatever the target"
            others.clear()
            for name in names:  # and without a service: nothing is dialled for a relay that names the place
                target = bytes((wire.FIELD_TARGET, len(name))) + name.encode()
                others.append(bench.relay.open(0))
            await until(lambda: all(tap.code is not None for tap in others), "each is answered")
            assert [tap.code for tap in others] == [Code.DIAL_DENIED if name else Code.NO_SERVICE for name in names]
            assert trap.dialled == [bench.client.config.exposures[0].target] * len(names)

    run(main())
    assert not trap.sprung()


def test_a_service_without_a_port_is_not_dialled(run: Run, tmp_path: Path, trap: Trap) -> None:
    """Not before the answer, not behind a refusal in the same chunk, and not in a later session that refuses it."""

    async def main() -> None:
        held: list[wire.Expose] = []
        here, there = (
            Exposure("here", 0, Target(LOCALHOST, trap.port)),
            Exposure("there", 0, Target(LOCALHOST, trap.port)),
        )
        async with client(tmp_path / "c", here, there) as bench:
            answer = bench.relay.answer
            refusal = wire.Exposed(service=2, error="port-taken", text="somebody has it")

            def hold(request: wire.Expose) -> None:
                held.append(request)

            def only_the_first(request: wire.Expose) -> wire.Exposed | None:
                held.append(request)
                return answer(request) if request.service == 1 else refusal

            bench.relay.answer = hold
            await until(lambda: len(held) == 2, "both were asked for")
            early = [bench.relay.open(1), bench.relay.open(2)]
            await until(lambda: all(tap.code is Code.NO_SERVICE for tap in early), "neither has a port yet")
            for number in (1, 2):
                bench.relay.session.exposed(wire.Exposed(service=number, port=20_000 + number))
            await until(lambda: len(bench.reached) == 2, "both are reachable")

            bench.relay.answer = only_the_first
            bench.relay.drop()
            await until(lambda: len(held) == 4, "it is back")
            late = bench.relay.open(2)
            await until(lambda: late.code is Code.NO_SERVICE, "the port is not there in this session")
            assert not trap.dialled and not trap.sprung()
            bench.relay.open(1)
            await until(lambda: trap.dialled == [here.target], "the other one is")

        async with client(tmp_path / "d", here) as bench:
            first = bench.relay

            def refuse_and_open(request: wire.Expose) -> None:
                first.session.exposed(wire.Exposed(service=1, error="port-taken", text="somebody has it"))
                first.open(1)

            first.answer = refuse_and_open
            assert "somebody has it" in await bench.verdict()
            assert len(trap.dialled) == 1

    run(main())


@pytest.mark.parametrize(
    "answer",
    [
        wire.Exposed(service=1, port=20_001),
        wire.Exposed(service=1, error="no-port", text="gone"),
        wire.Exposed(service=2, port=20_002),
        wire.Exposed(service=0, error="no-port", text="gone"),
    ],
)
def test_an_answer_that_nobody_asked_for(run: Run, tmp_path: Path, answer: wire.Exposed) -> None:
    async def main() -> None:
        async with client(tmp_path / "c") as bench:
            await until(lambda: bench.reached, "it is reachable")
            bench.relay.session.exposed(answer)
            await until(lambda: bench.relay.goaways == [Code.PROTOCOL], "that is an error")
            await until(lambda: len(bench.relay.sessions) == 2, "it is back")
            await bench.joined()
            assert len(bench.reached) == 1

    run(main())


@pytest.mark.parametrize("port", [-1, 65_536, 1 << 70])
def test_a_port_that_cannot_be(run: Run, tmp_path: Path, port: int) -> None:
    async def main() -> None:
        async with client(tmp_path / "c") as bench:
            bench.relay.answer = lambda request: wire.Exposed(service=request.service, port=port)
            await until(lambda: bench.relay.goaways[:1] == [Code.PROTOCOL], "that is an error")
            assert not bench.reached

    run(main())


def test_a_relay_that_confirms_the_visitors(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        asked: list[tuple[str, ...]] = []

        def confirm(request: wire.Expose) -> wire.Exposed:
            asked.append(request.visitors)
            return wire.Exposed(service=request.service, port=20_001, visitors=len(request.visitors))

        listed = Exposure("web", 0, Target(LOCALHOST, 1), read(["192.0.2.7", "2001:db8::/32"]))
        async with client(tmp_path / "c", listed) as bench:
            bench.relay.answer = confirm
            await until(lambda: bench.reached, "it is reachable")
            assert asked == [("192.0.2.7/32", "2001:db8::/32")]

    run(main())


@pytest.mark.parametrize("number", [0, 1, 3, -2])
def test_a_relay_that_does_not_confirm_the_visitors(run: Run, tmp_path: Path, trap: Trap, number: int) -> None:
    async def main() -> None:
        listed = Exposure("web", 0, Target(LOCALHOST, trap.port), read(["192.0.2.7", "2001:db8::/32"]))
        async with client(tmp_path / "c", listed) as bench:
            bench.relay.answer = lambda request: wire.Exposed(service=1, port=20_001, visitors=number)
            told = await bench.verdict()
            assert "does not expose web" in told and "upgrade the relay" in told and not bench.reached

    run(main())
    assert not trap.dialled


@pytest.mark.parametrize("confirms", [True, False])
def test_a_relay_that_knows_of_pools_or_does_not(run: Run, tmp_path: Path, trap: Trap, confirms: bool) -> None:
    async def main() -> None:
        asked: list[bool] = []

        def answer(request: wire.Expose) -> wire.Exposed:
            asked.append(request.pool)
            return wire.Exposed(service=1, port=20_001, pool=confirms)

        shared = Exposure("web", 0, Target(LOCALHOST, trap.port), pool=True)
        async with client(tmp_path / "c", shared) as bench:
            bench.relay.answer = answer
            if confirms:
                await until(lambda: bench.reached, "it is reachable")
            else:
                told = await bench.verdict()
                assert "shared with other clients" in told and "leave --pool out" in told and not bench.reached
        assert asked == [True]

    run(main())
    assert not trap.dialled


def test_a_relay_that_is_older_after_a_restart(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, trap: Trap
) -> None:
    async def main() -> None:
        listed = Exposure("web", 0, Target(LOCALHOST, trap.port), read(["192.0.2.7"]))
        async with client(tmp_path / "c", listed) as bench:
            bench.relay.answer = lambda request: wire.Exposed(service=1, port=20_001, visitors=1)
            await until(lambda: bench.reached, "it is reachable")
            bench.relay.answer = lambda request: wire.Exposed(service=1, port=20_001)
            bench.relay.drop()
            await until(lambda: events(caplog, "service.refused"), "it was told")
            tap = bench.relay.open()
            await until(lambda: tap.code is Code.NO_SERVICE, "nobody comes through")
            assert not trap.dialled and not bench.running.done()

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())


def test_dials_are_limited_and_the_others_wait(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        free = asyncio.Event()
        asked = 0

        async def wait(self: Resolver, target: Target) -> list[Any]:
            nonlocal asked
            asked += 1
            await free.wait()
            return [(socket.AF_INET, (target.host, target.port))]

        monkeypatch.setattr(Resolver, "ask", wait)
        async with client(tmp_path / "c", limits=Limits(dials=3)) as bench:
            await until(lambda: bench.reached, "it is reachable")
            taps = [bench.relay.open() for _ in range(5)]
            await until(lambda: asked == 3, "three are under way")
            await turns(10)
            assert asked == 3 and [tap.code for tap in taps] == [None] * 5, "two wait"
            for tap in (taps[0], taps[4]):  # one of those under way, and one of those that wait
                assert tap.stream
                tap.stream.reset(Code.CANCEL)
            await until(lambda: asked == 4, "the next one's turn has come")
            for _ in range(20):  # OPEN and RESET leave in one write
                tap = bench.relay.open()
                assert tap.stream
                tap.stream.reset(Code.CANCEL)
                await turns(1)
            free.set()
            await bench.joined()
            await until(lambda: bench.client._dials._value == 3, "all have been given back")

    run(main())


def test_no_descriptors_for_targets(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with client(tmp_path / "c") as bench:
            await until(lambda: bench.reached, "it is reachable")
            bench.client.runtime.budget = 0
            bench.client.runtime.look()
            tap = bench.relay.open()
            await until(lambda: tap.code is Code.LIMIT, "it was refused")

    run(main())


def test_complaints_do_not_flood(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_module, "_COMPLAIN_EVERY", 0.2)

    async def main() -> None:
        async with client(tmp_path / "c") as bench:
            await until(lambda: bench.reached, "it is reachable")
            bench.listener.close()

            async def refused(number: int) -> None:
                taps = [bench.relay.open() for _ in range(number)]
                await until(lambda: all(tap.code is Code.REFUSED for tap in taps), "all were refused")

            await refused(20)
            assert len(events(caplog, "target.failed")) == 1
            await until(lambda: len(events(caplog, "target.failed")) == 2, "the others are told of", 1)
            told = events(caplog, "target.failed")
            assert "192.0.2.9:51544" in told[0] and "(19 more like this.)" in told[1]

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())


# --- the tunnel ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [Code.UNAUTHORIZED, Code.NAME_TAKEN, Code.VERSION, Code.SUPERSEDED, Code.DENIED])
def test_a_refusal_that_is_final(run: Run, tmp_path: Path, code: Code) -> None:
    async def main() -> None:
        async with client(tmp_path / "c") as bench:
            bench.relay.refusal = code
            assert "the test says so" in await bench.verdict()
            assert bench.relay.greeted == 1

    run(main())


@pytest.mark.parametrize("code", [Code.SHUTDOWN, Code.TIMEOUT, Code.CALM, Code.INTERNAL])
def test_a_refusal_that_passes(run: Run, tmp_path: Path, code: Code) -> None:
    async def main() -> None:
        async with client(tmp_path / "c") as bench:
            bench.relay.refusal = code
            await until(lambda: bench.relay.greeted >= 3, "it tries again")
            bench.relay.refusal = None
            await until(lambda: bench.reached, "it is reachable")

    run(main())


def test_a_wrong_token_is_final(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with client(tmp_path / "c", token=Token("k3yID_-0", bytes(32), ())) as bench:
            assert "refused" in await bench.verdict()

    run(main())


def test_superseded_is_final(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with client(tmp_path / "c") as bench:
            await until(lambda: bench.reached, "it is reachable")
            _, local = await bench.joined()
            bench.relay.links[0].goodbye(ProtocolError(Code.SUPERSEDED, "a newer one"))
            assert "a newer one" in await bench.verdict()
            assert await local.to_end() == (b"", End.RESET)

    run(main())


@pytest.mark.parametrize("code", [Code.CALM, Code.INTERNAL, Code.PROTOCOL, Code.NO_ERROR])
def test_another_goodbye_resets_and_comes_back(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, code: Code
) -> None:
    async def main() -> None:
        async with client(tmp_path / "c") as bench:
            await until(lambda: bench.reached, "it is reachable")
            _, local = await bench.joined()
            bench.relay.links[0].goodbye(ProtocolError(code, "enough"))
            assert await local.to_end() == (b"", End.RESET)
            await until(lambda: len(bench.relay.sessions) == 2, "it is back")
            await bench.joined()
            why = "enough" if code is Code.NO_ERROR else f"{code.name}: enough"
            assert f" has ended: {why}. Retry 1 in " in events(caplog, "tunnel.retry")[0]

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())


def test_a_relay_that_closes_early(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that has too many strangers."""
    greet = FakeRelay.on_connected

    def turn_away(relay: FakeRelay, link: Link) -> Core:
        monkeypatch.setattr(FakeRelay, "on_connected", greet)
        relay.links.append(link)
        raise ProtocolError(Code.CALM, "too many")

    async def main() -> None:
        monkeypatch.setattr(FakeRelay, "on_connected", turn_away)
        async with client(tmp_path / "c") as bench:
            await until(lambda: bench.reached, "it is reachable")
            assert "closed the connection before the login was done" in events(caplog, "tunnel.retry")[0]

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())


def test_a_relay_that_shuts_down_lets_streams_end(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with client(tmp_path / "c") as bench:
            await until(lambda: bench.reached, "it is reachable")
            tap, local = await bench.joined()
            bench.relay.session.goaway(Code.SHUTDOWN, "down")
            await turns(5)
            await local.send(b"still")
            await until(lambda: tap.received == b"still", "streams go on")
            bench.relay.links[0].close()
            await until(lambda: len(bench.relay.sessions) == 2, "it is back")

    run(main())


def test_the_relay_restarts_on_the_same_port(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with client(tmp_path / "c") as bench:
            await until(lambda: bench.reached, "it is reachable")
            _, local = await bench.joined()
            await bench.relay.stop()
            assert await local.to_end() == (b"", End.RESET)
            await until(lambda: len(events(caplog, "tunnel.retry")) >= 3, "it tries again and again")
            assert "refuses connections" in events(caplog, "tunnel.retry")[-1] or "lost" in caplog.text
            bench.relay._listen(bench.relay.port)
            bench.relay.answer = lambda request: wire.Exposed(service=request.service, port=20_099)
            await until(lambda: len(bench.reached) == 2, "it is reachable at another address")
            await bench.joined()

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())


def test_a_port_that_is_refused_first_is_final_and_later_is_not(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(request: wire.Expose) -> wire.Exposed:
        return wire.Exposed(service=request.service, error="port-taken", text="somebody\x1b[2J has it")

    async def main() -> None:
        async with client(tmp_path / "c") as bench:
            bench.relay.answer = refuse
            told = await bench.verdict()
            assert "has it" in told and told.isprintable()
        async with client(tmp_path / "d") as bench:
            await until(lambda: bench.reached, "it is reachable")
            bench.relay.answer = refuse
            bench.relay.drop()
            await until(lambda: events(caplog, "service.refused"), "it was told")
            await turns()
            assert not bench.running.done()

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())


# --- the client ends -------------------------------------------------------------------------------------------------------------


def test_drain_lets_streams_end(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with client(tmp_path / "c") as bench:
            await until(lambda: bench.reached, "it is reachable")
            tap, local = await bench.joined()
            bench.client.drain()
            await until(lambda: bench.relay.goaways == [Code.SHUTDOWN], "GOAWAY has arrived")
            await local.send(b"still")
            await until(lambda: tap.received == b"still", "streams go on")
            assert bench.client.streams == 1 and not bench.running.done()
            local.eof()
            assert tap.stream
            tap.stream.fin()
            assert await bench.verdict() == ""
            await until(lambda: bench.relay.ended == [None], "the relay saw a clean end")
            assert tap.fin

    run(main())


def test_drain_ends_after_its_time(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with client(tmp_path / "c", limits=Limits(drain_time=0.1)) as bench:
            await until(lambda: bench.reached, "it is reachable")
            tap, local = await bench.joined()
            start = time.monotonic()
            bench.client.drain()
            assert await bench.verdict() == ""
            assert 0.09 < time.monotonic() - start < 1
            assert await local.to_end() == (b"", End.RESET)
            await until(lambda: tap.lost, "the stream is lost at the relay too")

    run(main())


def test_drain_without_streams_or_without_a_tunnel(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with client(tmp_path / "c") as bench:
            await until(lambda: bench.reached, "it is reachable")
            bench.client.drain()
            assert await bench.verdict() == ""
        async with client(tmp_path / "d") as bench:
            await bench.relay.stop()
            await asyncio.sleep(0.05)
            bench.client.drain()
            assert await bench.verdict() == ""

    run(main())


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13, 21])
def test_stopped_at_any_moment_of_the_start(run: Run, tmp_path: Path, steps: int) -> None:
    async def main() -> None:
        async with client(tmp_path / "c") as bench:
            for _ in range(steps):
                await asyncio.sleep(0)
            bench.client.drain() if steps % 2 else await bench.client.close()
            assert await bench.verdict() == ""
            if not steps % 2:
                bench.client.close = lambda: asyncio.sleep(0)  # type: ignore[method-assign]

    run(main())


def test_a_change_of_network_ends_the_wait_and_tries_the_tunnel(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplink_module, "_PROBE_TIME", 0.1)

    async def main() -> None:
        async with client(tmp_path / "c") as bench:
            await until(lambda: bench.reached, "it is reachable")
            bench.client._changed()
            await asyncio.sleep(0.2)
            assert len(bench.relay.sessions) == 1, "a relay that answers is kept"
            bench.relay.links[0].transport.pause_reading()
            bench.client._changed()
            await until(lambda: len(bench.relay.sessions) == 2, "one that does not is not", 2)
            bench.relay.links[0].transport.resume_reading()
            monkeypatch.setattr(random, "random", lambda: 1.0)  # from now on waits are long
            bench.client._backoff.failed()
            await bench.relay.stop()
            await until(lambda: bench.client._link is None, "it is lost")
            await asyncio.sleep(0.05)
            bench.relay._listen(bench.relay.port)
            start = time.monotonic()
            bench.client._changed()
            await until(lambda: len(bench.relay.sessions) == 3, "it is back")
            assert time.monotonic() - start < 0.5

    run(main())


def test_a_link_of_an_earlier_try_changes_nothing(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with client(tmp_path / "c") as bench:
            await until(lambda: bench.reached, "it is reachable")
            bench.client.on_closed(Link(bench.client.runtime, bench.client), OSError("an old one"))
            await bench.joined()
            assert bench.client._link is not None

    run(main())
