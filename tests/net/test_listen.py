"""Doors: for visitors, paused and opened again, and for tunnels, where anybody may knock with anything."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrelay import wire
from fastrelay.errors import Code, ProtocolError
from fastrelay.limits import Limits
from fastrelay.net import door as door_module
from fastrelay.net import gate as gate_module
from fastrelay.net import listen as listen_module
from fastrelay.net import runtime as runtime_module
from fastrelay.net.door import VisitorDoor
from fastrelay.net.link import Link, address
from fastrelay.net.listen import Knock, TunnelDoor, _client_hello, listen
from fastrelay.net.runtime import Runtime
from fastrelay.net.tls import client_context, load_identity, make_identity, server_context
from tests.conftest import LOOPS, Run, new_loop
from tests.support import need
from tests.support.peers import End
from tests.support.tunnel import Local, turns, until

LOCALHOST = "127.0.0.1"
T = TypeVar("T")


class Guests:
    """Protocols of a door, and what they said."""

    def __init__(self) -> None:
        self.lost: Callable[[Link, Exception | None], None] = lambda link, error: None
        self.here: list[asyncio.Transport] = []
        self.links: list[Link] = []
        self.said: dict[asyncio.Transport, bytes] = {}
        self.ended = 0

    def make(self) -> asyncio.BaseProtocol:
        guests = self

        class Guest(asyncio.Protocol):
            first_bytes = b""
            error: Exception | None = None

            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = cast("asyncio.Transport", transport)  # uvloop's are not derived from it
                guests.here.append(self.transport)

            def data_received(self, data: bytes) -> None:
                guests.said[self.transport] = guests.said.get(self.transport, b"") + data

            def connection_lost(self, exc: Exception | None) -> None:
                guests.ended += 1
                guests.lost(cast("Link", self), self.error or exc)

            def abort(self, error: Exception) -> None:
                self.error = error
                self.transport.abort()

            def too_slow(self) -> None:
                self.abort(ProtocolError(Code.TIMEOUT, "too slow"))

        return Guest()

    def make_link(self) -> Link:
        """For a tunnel door, which knows no other protocols."""
        self.links.append(cast("Link", self.make()))
        return self.links[-1]

    async def all_in(self, outside: list[socket.socket]) -> None:
        await until(lambda: len(self.here) == len(outside), "all are in")

    def refuse(self, error: Exception) -> None:
        """The newest one is refused."""
        self.links[-1].abort(error)

    async def leave(self) -> None:
        for transport in self.here:
            transport.abort()
        await until(lambda: self.ended == len(self.here), "all guests have left")


def visitors(port: int, number: int) -> list[socket.socket]:
    made = [socket.create_connection((LOCALHOST, port), 5) for _ in range(number)]
    for index, sock in enumerate(made):
        sock.sendall(b"%d" % index)
    return made


# --- listen -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bind", "reach"),
    [("::", (LOCALHOST, "::1")), ("127.0.0.1", (LOCALHOST,)), ("::1", ("::1",)), ("localhost", (None,))],
)
def test_where_a_socket_listens(bind: str, reach: tuple[str | None, ...]) -> None:
    if ":" in bind:
        need.ipv6()
    with listen(bind, 0) as sock:
        assert sock.getblocking() is False
        host, port = sock.getsockname()[:2]
        for address in reach:
            socket.create_connection((address or host, port), 5).close()


def test_only_the_address_that_was_asked_for() -> None:
    need.ipv6()
    with listen("::1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOCALHOST, port), 5)


@pytest.mark.parametrize("first", ["::", LOCALHOST])
def test_a_port_in_use(first: str) -> None:
    with listen(first, 0) as sock:
        with pytest.raises(OSError, match="in use") as failure:
            listen("::" if first == "::" else LOCALHOST, sock.getsockname()[1])
        assert failure.value.errno == errno.EADDRINUSE


def test_a_host_that_is_not_ours() -> None:
    with pytest.raises(OSError, match="assign"):
        listen("192.0.2.1", 0)
    with pytest.raises(OSError, match=r"."):
        listen("nobody.invalid", 0)


# --- visitors ------------------------------------------------------------------------------------------------------------------


def test_a_pause_loses_nobody(run: Run) -> None:
    async def main() -> None:
        runtime = Runtime()
        guests = Guests()
        door = VisitorDoor(runtime, listen(LOCALHOST, 0), guests.make)
        outside: list[socket.socket] = []
        for round_ in range(1, 4):
            outside += visitors(door.port, 20)  # some of them before the door is open
            door.open()
            door.open()
            await guests.all_in(outside)
            door.pause()
            await turns()
            outside += visitors(door.port, 20)
            await asyncio.sleep(0.05)
            assert len(guests.here) == 40 * round_ - 20, "nobody comes in during the pause"
            door.open()
            await guests.all_in(outside)
            door.pause()
        await until(lambda: len(guests.said) == len(outside), "all were heard")
        door.close()
        with pytest.raises(OSError, match=r"."):
            visitors(door.port, 1)
        await guests.leave()
        for sock in outside:
            sock.close()
        await runtime.close()

    run(main())


def test_a_storm_is_taken_off_the_backlog(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many at once are taken in faster than they are served; afterwards the loop accepts by itself again."""
    monkeypatch.setattr(door_module, "_STORM", 20)
    monkeypatch.setattr(door_module, "_CALM", 0.05)
    monkeypatch.setattr(door_module, "_JOINED_PER_TURN", 4)

    async def main() -> None:
        runtime = Runtime()
        guests = Guests()
        door = VisitorDoor(runtime, listen(LOCALHOST, 0), guests.make)
        quick = door._quick
        door.open()
        await turns()
        assert door._serving is quick
        outside = visitors(door.port, 100)
        most = 0
        while len(guests.here) < 100:
            most = max(most, len(door._taken))
            await asyncio.sleep(0)
        assert most > 20, "they wait here and not in the backlog"
        await guests.all_in(outside)
        await until(lambda: door._serving is quick and not runtime.coming, "it is over", 1)
        outside += visitors(door.port, 5)
        await guests.all_in(outside)
        door.close()
        await guests.leave()
        for sock in outside:
            sock.close()
        await runtime.close()

    run(main())


def test_a_door_closes_in_a_storm(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "_JOINED_PER_TURN", 1)

    async def main() -> None:
        runtime = Runtime()
        guests = Guests()
        door = VisitorDoor(runtime, listen(LOCALHOST, 0), guests.make)
        door._quick = False
        outside = visitors(door.port, 20)
        door.open()
        while not door._taken:
            await asyncio.sleep(0)
        door.close()
        await turns(5)
        assert not runtime.coming and not door._taken
        assert 0 < len(guests.here) < 20
        ends = []
        for sock in outside:
            sock.setblocking(False)
            try:
                sock.recv(1)
            except OSError as error:
                ends.append(type(error))
            sock.close()
        assert ends.count(BlockingIOError) == len(guests.here)
        assert ends.count(ConnectionResetError) == 20 - len(guests.here)
        await guests.leave()
        await runtime.close()

    run(main())


@pytest.mark.parametrize("moves", ["oc", "opc", "opoc", "opopoc", "c", "oppoopc", "o.p.o.c", "op.oc", "o.c"])
def test_any_order_of_open_pause_and_close(run: Run, moves: str) -> None:
    """In one turn or in several; at the end nothing listens and no task has failed."""

    async def main() -> None:
        runtime = Runtime()
        guests = Guests()
        sock = listen(LOCALHOST, 0)
        port = sock.getsockname()[1]
        door = VisitorDoor(runtime, sock, guests.make)
        for move in moves:
            if move == ".":
                await turns()
            else:
                {"o": door.open, "p": door.pause, "c": door.close}[move]()
        await turns(5)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOCALHOST, port), 5)
        await runtime.close()

    run(main())


@pytest.mark.parametrize("kind", LOOPS)
@given(
    st.lists(
        st.sampled_from(["open", "pause", "full", "room", "scarce", "plenty", "storm", "visit", "turn"]), max_size=25
    )
)
@settings(max_examples=30)
def test_a_door_that_ends_open_has_let_everybody_in(kind: str, moves: list[str]) -> None:
    """Whatever came before: no mode of accepting forgets anybody, or leaves another one running."""

    async def main() -> None:
        runtime = Runtime()
        runtime.keep_looking = lambda: None  # type: ignore[method-assign]  # here it is said how much room there is
        guests = Guests()
        door = VisitorDoor(runtime, listen(LOCALHOST, 0), guests.make)
        outside: list[socket.socket] = []

        def be(full: bool, scarce: bool) -> None:
            runtime.full, runtime.scarce = full, scarce or full
            for one in list(runtime.doors):
                one.adapt()

        for move in moves:
            match move:
                case "open":
                    door.open()
                case "pause":
                    door.pause()
                case "full" | "room" | "scarce" | "plenty":
                    be(move == "full", move in ("room", "scarce"))
                case "storm":
                    door._storm = True
                    door.adapt()
                case "visit":
                    outside += visitors(door.port, 1)
                case "turn":
                    await turns(1)
        door._storm = False
        door.open()
        be(False, False)
        outside += visitors(door.port, 1)
        await guests.all_in(outside)
        assert door._serving is door._quick and not runtime.coming
        door.close()
        await guests.leave()
        for sock in outside:
            sock.close()
        await runtime.close()

    with asyncio.Runner(loop_factory=lambda: new_loop(kind)) as loop:
        loop.run(main())


def test_the_runtime_ends_while_a_door_opens(run: Run) -> None:
    async def main() -> None:
        runtime = Runtime()
        door = VisitorDoor(runtime, listen(LOCALHOST, 0), Guests().make)
        door.open()
        closing = asyncio.ensure_future(runtime.close())
        await asyncio.sleep(0)
        door.close()
        await closing

    run(main())


def test_a_door_opens_when_there_are_descriptors_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        runtime = Runtime()
        guests = Guests()
        sock = listen(LOCALHOST, 0)
        door = VisitorDoor(runtime, sock, guests.make)
        left = [3]

        def scarce(real: Callable[[socket.socket], T]) -> Callable[[socket.socket], T]:
            def tried(self: socket.socket) -> T:
                left[0] -= 1
                if left[0] >= 0:
                    raise OSError(errno.EMFILE, "too many open files")
                return real(self)

            return tried

        monkeypatch.setattr(door_module, "_COME_BACK", 0.01)
        monkeypatch.setattr(runtime_module, "_LOOK_EVERY", 0.01)
        monkeypatch.setattr(socket.socket, "dup", scarce(socket.socket.dup))
        monkeypatch.setattr(socket.socket, "accept", scarce(socket.socket.accept))
        outside = visitors(door.port, 1)
        door.open()
        await until(lambda: guests.here, "the visitor is in")
        assert left[0] < 0
        door.close()
        await guests.leave()
        outside[0].close()
        await runtime.close()

    run(main())


# --- tunnels --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    directory: Path = tmp_path_factory.mktemp("identity")
    make_identity(directory / "crt", directory / "key")
    return server_context(load_identity(directory / "crt", directory / "key"))


def client_hello() -> bytes:
    """What a client says first in TLS."""
    said = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        client_context(True).wrap_bio(ssl.MemoryBIO(), said, server_hostname="relay").do_handshake()
    return said.read()


class Told(NamedTuple):
    """One line that a door asked for."""

    what: str  # "" for a refusal
    source: str
    error: Exception | None
    times: int


class TunnelBench:
    """A door, and what it told."""

    def __init__(
        self, context: ssl.SSLContext | None, handshake_time: float = 10, proxied: bool = False, **limits: Any
    ) -> None:
        self.runtime = Runtime(Limits(handshake_time=handshake_time))
        self.guests = Guests()
        self.told: list[Told] = []
        self.sock = listen(LOCALHOST, 0)
        self.door = TunnelDoor(
            self.runtime, self.sock, context, self.guests.make_link, self, Limits(**limits), proxied=proxied
        )
        self.guests.lost = self.door.ended
        self.outside: list[Local] = []

    def refused(self, who: str, error: Exception | None, first: bytes) -> None:
        self.told.append(Told("", who, error, 0))

    def refused_more(self, source: str, count: int) -> None:
        self.told.append(Told("", source, None, count))

    def limited(self, limit: str, source: str, count: int) -> None:
        self.told.append(Told(limit, source, None, count))

    @property
    def here(self) -> int:
        return self.door.gate.here

    @property
    def penalty(self) -> float:
        """Seconds that the address of all of us has."""
        return self.door.gate._sources[LOCALHOST].penalty(time.monotonic())

    def knock(self) -> Local:
        sock = socket.create_connection((LOCALHOST, self.door.port), 5)
        sock.setblocking(False)
        local = Local(sock)
        self.outside.append(local)
        return local

    async def tls(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client that is through with TLS."""
        return await asyncio.open_connection(
            LOCALHOST, self.door.port, ssl=client_context(True), server_hostname="relay"
        )

    async def close(self) -> None:
        self.door.close()
        self.door.close()
        await self.guests.leave()
        for local in self.outside:
            local.close()
        await self.runtime.close()


def test_a_plain_tunnel_gets_its_protocol_and_no_linger(run: Run) -> None:
    async def main() -> None:
        bench = TunnelBench(None)
        local = bench.knock()
        await local.send(b"hello")
        await until(lambda: b"hello" in bench.guests.said.values(), "it was heard")
        linger = bench.guests.here[0].get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        assert linger[:4] == bytes(4)
        await bench.close()

    run(main())


def test_behind_a_proxy_a_head_is_waited_for_and_says_whose_it_is(run: Run) -> None:
    async def main() -> None:
        bench = TunnelBench(None, proxied=True)
        local = bench.knock()
        head = b"GET / HTTP/1.1\r\nX-Forwarded-For: 203.0.113.9, 192.0.2.7\r\n\r\n"
        for at in range(0, len(head) - 1, 9):
            await local.send(head[at : min(at + 9, len(head) - 1)])
            await turns()
        assert bench.here == 1 and not bench.guests.here, "nothing is begun for half a head"
        await local.send(head[-1:] + b"more")
        await until(lambda: head + b"more" in bench.guests.said.values(), "it was heard, and nothing is missing")
        bench.guests.refuse(ProtocolError(Code.UNAUTHORIZED, "no"))
        await until(lambda: bench.told, "it was told")
        assert bench.told[0].source == "192.0.2.7"
        assert bench.door.gate._sources["192.0.2.7"].penalty(time.monotonic()) > 4
        assert LOCALHOST not in bench.door.gate._sources, "the proxy pays for nobody"
        await bench.close()

    run(main())


def test_behind_a_proxy_what_asks_for_no_tunnel_may_be_anothers(run: Run) -> None:
    async def main() -> None:
        bench = TunnelBench(None, proxied=True, handshake_time=0.1)
        taken: list[socket.socket] = []

        def take(said: bytes, sock: socket.socket, behind: object) -> bool:
            if said.startswith(b"GET /tunnel "):
                return False
            taken.append(sock)
            return True

        bench.door.others = take
        head = b"GET / HTTP/1.1\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n"
        local = bench.knock()
        await local.send(head[:20])
        await turns()
        assert not taken and bench.here == 1
        await local.send(head[20:] + b"more")
        await until(lambda: taken, "it was taken")
        assert bench.here == 0 and not bench.told
        await asyncio.sleep(0.15)  # no deadline is left, and nothing was read
        assert taken[0].recv(1000) == head + b"more"
        taken[0].close()
        await bench.knock().send(head.replace(b"/ ", b"/tunnel "))
        await until(lambda: bench.guests.said, "the other one is greeted")
        await bench.close()

    run(main())


@pytest.mark.parametrize("words", [b"\x16\x03\x01", b"GET /" + b"a" * 10_000], ids=["no HTTP", "too long"])
def test_behind_a_proxy_what_is_no_head_is_answered_at_once(run: Run, words: bytes) -> None:
    async def main() -> None:
        bench = TunnelBench(None, proxied=True)
        await bench.knock().send(words)
        await until(lambda: words in bench.guests.said.values(), "it was heard")
        await bench.close()

    run(main())


@pytest.mark.parametrize(
    "words", [b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n", b"\x00" * 64, b"\x16\x03\x01\x00\x05oops!", b""]
)
def test_who_does_not_speak_tls_is_refused_and_told_of(run: Run, context: ssl.SSLContext, words: bytes) -> None:
    async def main() -> None:
        bench = TunnelBench(context)
        local = bench.knock()
        if words:
            await local.send(words)
        else:
            local.eof()
        await until(lambda: bench.told, "it was told")
        assert bench.told[0].source == address(local.sock.getsockname())
        assert isinstance(bench.told[0].error, OSError) or not words
        await local.to_end()
        assert not bench.guests.here
        await bench.close()

    run(main())


def test_who_stalls_in_tls_is_dropped(run: Run, context: ssl.SSLContext) -> None:
    async def main() -> None:
        bench = TunnelBench(context, handshake_time=0.1)
        stalled = [bench.knock() for _ in range(4)]
        await stalled[1].send(b"\x16\x03\x01")
        await stalled[2].send(client_hello()[:-1])
        await stalled[3].send(client_hello())
        await until(lambda: len(bench.told) == 4, "all were told of", 3)
        for local in stalled:
            said, end = await local.to_end()
            assert end in End and bool(said) is (local is stalled[3])
        assert 9 < bench.penalty <= 10, "for the one that cost something"
        assert bench.here == 0
        await bench.close()

    run(main())


def test_a_client_hello_in_pieces_is_waited_for(
    run: Run, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is cut, it costs the loop a turn or two and not one for each byte."""

    async def main() -> None:
        bench = TunnelBench(context)
        heard = 0
        hear = bench.door._hear

        def counted(knock: Knock) -> None:
            nonlocal heard
            heard += 1
            hear(knock)

        monkeypatch.setattr(bench.door, "_hear", counted)
        local = bench.knock()
        for byte in client_hello():
            await local.send(bytes((byte,)))
            await asyncio.sleep(0)
        assert (await local.read(1)) == b"\x16"
        assert heard <= 5
        gone = bench.knock()
        await gone.send(client_hello()[:-1])
        await turns()
        gone.eof()
        assert await gone.to_end() == (b"", End.RESET)
        await bench.close()

    run(main())


def test_a_client_hello_that_is_too_large(run: Run, context: ssl.SSLContext, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench = TunnelBench(context, max_client_hello=200)
        local = bench.knock()
        await local.send(client_hello())
        assert await local.to_end() == (b"", End.RESET)
        assert "at most 200 bytes" in str(bench.told[0].error)
        await bench.close()

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    assert "limit max-client-hello=" in caplog.text


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b"", 1),
        (b"GET / HTTP/1.1", 1),
        (b"\x16", 9),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", 9),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 517),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xf0", 517),
        (b"\x16\x03\x01\x02\x00\x02\x00\x01\xfc", 1),
        (b"\x16\x03\x01\x20\x00\x01\x00\x1f\xfc", 8197),
        (b"\x16\x03\x01\x20\x01\x01\x00\x1f\xfd", None),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfd", None),
        (b"\x16\x03\x01\x00\x03\x01\x00\x00\x00", None),
        (b"\x16\x03\x01\xff\xff\x01\xff\xff\xff", None),
    ],
)
def test_how_much_a_client_hello_is(raw: bytes, wanted: int | None) -> None:
    if wanted is None:
        with pytest.raises(ProtocolError, match="at most 8192"):
            _client_hello(raw, 8192)
    else:
        assert _client_hello(raw, 8192) == wanted


def test_every_beginning_of_a_client_hello_is_too_little() -> None:
    whole = client_hello()
    assert _client_hello(whole, 8192) == len(whole)
    for cut in range(1, len(whole)):
        assert cut < _client_hello(whole[:cut], 8192) <= len(whole)


def test_the_door_closes_while_somebody_stalls(run: Run, context: ssl.SSLContext) -> None:
    async def main() -> None:
        bench = TunnelBench(context)
        local = bench.knock()
        await until(lambda: bench.here, "it is there")
        await turns()
        await bench.close()
        assert bench.here == 0
        assert local.sock.fileno() == -1

    run(main())


def test_a_client_with_tls(run: Run, context: ssl.SSLContext) -> None:
    async def main() -> None:
        bench = TunnelBench(context)
        reader, writer = await bench.tls()
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == wire.ALPN
        writer.write(b"hello")
        await until(lambda: b"hello" in bench.guests.said.values(), "it was heard")
        bench.guests.here[0].close()
        assert await reader.read() == b""
        writer.close()
        await until(lambda: bench.guests.ended, "it is over")
        await turns(5)
        await bench.close()

    run(main())


@pytest.mark.parametrize("behind", [False, True], ids=["in TLS", "behind TLS"])
def test_the_oldest_goes_for_a_new_one(
    run: Run, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, behind: bool
) -> None:
    """Who is greeted and stalls goes for who waits, when it has had a fair time; the newcomer is greeted."""
    monkeypatch.setattr(gate_module, "_FAIR_TIME", 0.2)

    async def main() -> None:
        bench = TunnelBench(context, greetings_per_source=2)
        through = []
        if behind:
            through = [await bench.tls() for _ in range(2)]
        else:
            for _ in range(2):
                local = bench.knock()
                await local.send(client_hello())
                await local.read(1)
        start = time.monotonic()
        reader, writer = await bench.tls()
        assert 0.1 < time.monotonic() - start < 5
        await until(lambda: bench.guests.ended == behind, "one that stood was ended")
        if behind:
            assert await through[0][0].read() == b""
        else:
            await bench.outside[0].to_end()
        assert [told.what for told in bench.told] == ["greetings-per-source"]
        for _, other in (*through, (reader, writer)):
            other.close()
        await bench.close()

    run(main())


def test_too_many_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen_module, "PERIOD", 0.2)

    async def main() -> None:
        bench = TunnelBench(None, max_greetings=3)
        locals_ = [bench.knock() for _ in range(6)]
        for local in locals_[:3]:
            await local.to_end()
        for local in locals_[3:]:
            assert local.quiet()
        assert bench.here == 3
        await until(lambda: len(bench.told) == 2, "it was summed up")
        assert [(told.what, told.times) for told in bench.told] == [("max-greetings", 0), ("max-greetings", 2)]
        await bench.close()

    run(main())


def test_who_failed_often_waits_for_its_turn(run: Run) -> None:
    async def main() -> None:
        bench = TunnelBench(None)
        for _ in range(4):
            await bench.knock().send(b"x")
            await until(lambda: len(bench.guests.here) > bench.guests.ended, "it is greeted")
            bench.guests.refuse(ProtocolError(Code.UNAUTHORIZED, "no"))
            await until(lambda: not bench.here, "it is gone")
        assert bench.told[-1].what == "penalty-from"
        start = time.monotonic()
        waiting = [bench.knock() for _ in range(6)]
        for local in reversed(waiting):
            await local.send(b"%d" % waiting.index(local))
            await turns()
        waiting[3].close()
        guests = bench.guests
        await until(lambda: len([one for one in guests.here[4:] if one in guests.said]) == 5, "all are greeted")
        assert [guests.said[one] for one in guests.here[4:]] == [b"5", b"4", b"2", b"1", b"0"], (
            "in order, without the dead one"
        )
        assert 0.2 <= time.monotonic() - start < 3
        await bench.close()

    run(main())


def test_time_is_up_in_the_lane(run: Run) -> None:
    async def main() -> None:
        bench = TunnelBench(None, handshake_time=0.15, penalty_from=0, penalty_rate=1)
        locals_ = [bench.knock() for _ in range(3)]
        for local in locals_:
            await local.send(b"x")
        for local in locals_:
            await local.to_end()
        await turns()
        assert len(bench.guests.here) == 1 and bench.here == 0
        assert bench.penalty <= 10, "only for the one that was greeted"
        await bench.close()

    run(main())


def test_ten_thousand_refusals_are_not_ten_thousand_lines(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen_module, "PERIOD", 0.3)

    async def main() -> None:
        bench = TunnelBench(None)
        for _ in range(50):
            bench.knock().close()
        await until(lambda: sum(told.times or 1 for told in bench.told) == 50, "all were told of")
        assert len(bench.told) == 11 and bench.told[-1].times == 40
        await bench.close()

    run(main())


def test_a_door_that_closes_sends_away_who_waits(run: Run) -> None:
    async def main() -> None:
        bench = TunnelBench(None, penalty_from=0)
        silent, first, waits = [bench.knock() for _ in range(3)]
        for local in (first, waits):
            await local.send(b"x")
        await until(lambda: bench.guests.here, "one is greeted")
        bench.door.close()
        for local in (silent, waits):
            await local.to_end()
        assert first.quiet() and bench.here == 1
        await bench.close()

    run(main())


def test_without_descriptors_the_door_waits_and_does_not_spin(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bench = TunnelBench(None)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = socket.socket()
        local = Local(socket.socket())
        bench.outside.append(local)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(highest.fileno(), local.sock.fileno()) + 10, hard))
        fillers = []
        try:
            try:
                while True:
                    fillers.append(socket.socket())
            except OSError:
                pass
            local.sock.setblocking(False)
            local.sock.connect_ex((LOCALHOST, bench.door.port))
            before = time.process_time()
            await asyncio.sleep(0.35)
            assert time.process_time() - before < 0.1, "it spins"
            assert not bench.told
            assert caplog.text.count("The limit files=") == 1, "one line, however often it was tried"
            for filler in fillers:
                filler.close()
            await local.send(b"at last")
            await until(lambda: b"at last" in bench.guests.said.values(), "it was heard")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            highest.close()
            for filler in fillers:
                filler.close()
        await bench.close()

    run(main())
