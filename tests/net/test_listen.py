"""Doors: for visitors, paused and opened again, and for tunnels, where anybody may knock with anything."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import ssl
import time
from pathlib import Path
from typing import cast

import pytest

from fastrelay import wire
from fastrelay.net import listen as listen_module
from fastrelay.net.listen import TunnelDoor, VisitorDoor, listen
from fastrelay.net.runtime import Runtime
from fastrelay.net.tls import client_context, load_identity, make_identity, server_context
from tests.conftest import Run
from tests.support import need
from tests.support.peers import End
from tests.support.tunnel import Local, turns, until

LOCALHOST = "127.0.0.1"


class Guests:
    """Protocols of a door, and what they said."""

    def __init__(self) -> None:
        self.here: list[asyncio.Transport] = []
        self.said: dict[asyncio.Transport, bytes] = {}
        self.ended = 0

    def make(self) -> asyncio.BaseProtocol:
        guests = self

        class Guest(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = cast("asyncio.Transport", transport)  # uvloop's are not derived from it
                guests.here.append(self.transport)

            def data_received(self, data: bytes) -> None:
                guests.said[self.transport] = guests.said.get(self.transport, b"") + data

            def connection_lost(self, exc: Exception | None) -> None:
                guests.ended += 1

        return Guest()

    async def all_in(self, outside: list[socket.socket]) -> None:
        await until(lambda: len(self.here) == len(outside), "all are in")

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
        dup = socket.socket.dup
        left = [3]

        def scarce(self: socket.socket) -> socket.socket:
            left[0] -= 1
            if left[0] >= 0:
                raise OSError(errno.EMFILE, "too many open files")
            return dup(self)

        monkeypatch.setattr(listen_module, "_COME_BACK", 0.01)
        monkeypatch.setattr(socket.socket, "dup", scarce)
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


class TunnelBench:
    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.runtime = Runtime()
        self.guests = Guests()
        self.failed: list[tuple[object, Exception]] = []
        self.sock = listen(LOCALHOST, 0)
        self.door = TunnelDoor(self.runtime, self.sock, context, self.guests.make, self.fail)
        self.outside: list[Local] = []

    def fail(self, who: object, error: Exception) -> None:
        self.failed.append((who, error))

    def knock(self) -> Local:
        sock = socket.create_connection((LOCALHOST, self.door.port), 5)
        sock.setblocking(False)
        local = Local(sock)
        self.outside.append(local)
        return local

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
        await until(lambda: bench.failed, "it was told")
        who, error = bench.failed[0]
        assert who == local.sock.getsockname() and isinstance(error, OSError)
        await local.to_end()
        assert not bench.guests.here
        await bench.close()

    run(main())


def test_who_stalls_in_tls_is_dropped(run: Run, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen_module, "HANDSHAKE_TIME", 0.1)

    async def main() -> None:
        bench = TunnelBench(context)
        stalled = [bench.knock() for _ in range(3)]
        await stalled[1].send(b"\x16\x03\x01")
        await until(lambda: len(bench.failed) == 3, "all were told of", 3)
        for local in stalled:
            _, end = await local.to_end()
            assert end in End
        assert bench.door._greeting == 0
        await bench.close()

    run(main())


def test_the_door_closes_while_somebody_stalls(run: Run, context: ssl.SSLContext) -> None:
    async def main() -> None:
        bench = TunnelBench(context)
        local = bench.knock()
        await until(lambda: bench.door._greeting, "it is greeted")
        await turns()
        await bench.close()
        assert bench.door._greeting == 0
        assert local.sock.fileno() == -1

    run(main())


def test_a_client_with_tls(run: Run, context: ssl.SSLContext) -> None:
    async def main() -> None:
        bench = TunnelBench(context)
        reader, writer = await asyncio.open_connection(
            LOCALHOST, bench.door.port, ssl=client_context(True), server_hostname="relay"
        )
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


def test_too_many_at_once_are_turned_away(run: Run, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen_module, "_MOST_GREETINGS", 3)

    async def main() -> None:
        bench = TunnelBench(context)
        locals_ = [bench.knock() for _ in range(6)]
        await until(lambda: bench.door._greeting == 3, "three are greeted")
        for local in locals_[3:]:
            await local.to_end()
        for local in locals_[:3]:
            assert local.quiet()
        await bench.close()

    run(main())


def test_without_descriptors_the_door_waits_and_does_not_spin(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
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
            assert 1 <= len(bench.failed) <= 5
            assert isinstance(bench.failed[0][1], OSError) and bench.failed[0][1].errno == errno.EMFILE
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
