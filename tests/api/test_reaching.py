"""Connections to named services, opened by another client or by the relay itself: asyncio's signatures, exact ends, and what is raised."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fastrelay.api import Server, Tunnel
from fastrelay.api.reaching import Reaching
from fastrelay.errors import AwayError, Code, DialRefusedError, NoServiceError, OpenError, UnreachableError
from fastrelay.net.transport import StreamTransport
from fastrelay.roles.visiting import _BURST, _RATE
from tests.api.programs import echo, joined, local, relay, tunnel, visit
from tests.api.test_cancellation import at_every_await
from tests.conftest import Run
from tests.support.payload import Checker, Keystream
from tests.support.peers import free_port
from tests.support.tunnel import until

WAYS = ("client", "relay")
SIZES = (pytest.param(0, marks=pytest.mark.slow), 65_536, pytest.param(4 << 20, marks=pytest.mark.slow))


@contextlib.asynccontextmanager
async def reaching(state: Path, way: str) -> AsyncIterator[tuple[Reaching, Tunnel]]:
    """Who reaches, and who serves."""
    async with joined(state) as (server, home):
        if way == "relay":
            yield server, home
            return
        async with tunnel(server, state, "") as visitor:
            yield visitor, home


class Collect(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = bytearray()
        self.lost: list[Exception | None] = []

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_halves_end_on_their_own(run: Run, tmp_path: Path, way: str, size: int) -> None:
    async def main() -> None:
        said = Keystream("there").take(size)
        back = Keystream("back").take(size)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.read() == said
            await asyncio.sleep(0.05)  # the other direction has ended by now, and this one goes on
            writer.write(back)
            writer.close()
            await writer.wait_closed()

        async with reaching(tmp_path, way) as (who, home), home.listen("jobs", answer) as service:
            assert service.url == "fastrelay://jobs"
            reader, writer = await who.open_connection("jobs")
            writer.write(said)
            writer.write_eof()
            assert await reader.read() == back
            writer.close()
            await writer.wait_closed()

    run(main())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_a_reset_is_a_reset_behind_what_came_before(run: Run, tmp_path: Path, way: str, size: int) -> None:
    async def main() -> None:
        async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(Keystream("last").take(size))
            await until(lambda: not writer.transport.get_write_buffer_size(), "it has left")
            writer.transport.abort()

        async with reaching(tmp_path, way) as (who, home), home.listen("jobs", fail):
            _, protocol = await who.create_connection(Collect, "jobs")
            await until(lambda: protocol.lost, "the end")
            assert isinstance(protocol.lost[0], ConnectionResetError)
            seen = Checker("last")
            seen.feed(bytes(protocol.received))
            assert seen.received == size

    run(main())


@pytest.mark.parametrize("way", WAYS)
def test_who_opened_may_reset_as_well(run: Run, tmp_path: Path, way: str) -> None:
    async def main() -> None:
        ended: list[BaseException] = []

        async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.read()
            except ConnectionError as error:
                ended.append(error)
                raise

        async with reaching(tmp_path, way) as (who, home), home.listen("jobs", wait):
            transport, _ = await who.create_connection(Collect, "jobs")
            transport.abort()
            await until(lambda: ended, "the reset has arrived")
            assert isinstance(ended[0], ConnectionResetError)

    run(main())


@pytest.mark.parametrize("way", WAYS)
def test_what_is_raised(run: Run, tmp_path: Path, way: str) -> None:
    async def main() -> None:
        async with reaching(tmp_path, way) as (who, home):
            with pytest.raises(NoServiceError, match="nothing") as raised:
                await who.open_connection("nothing")
            assert raised.value.code is Code.NO_SERVICE and isinstance(raised.value, OSError)
            await home.expose(f"down=private://{free_port()}")
            with pytest.raises(ConnectionRefusedError) as refused:
                await who.open_connection("down")
            assert refused.type is DialRefusedError
            await home.aclose()
            with pytest.raises(AwayError):
                await who.open_connection("down")
            with pytest.raises(UnreachableError):
                await home.open_connection("down")

    run(main())


@pytest.mark.parametrize("way", WAYS)
def test_a_service_that_goes_resets_who_is_connected(run: Run, tmp_path: Path, way: str) -> None:
    async def main() -> None:
        async with reaching(tmp_path, way) as (who, home), home.listen("jobs", echo):
            reader, writer = await who.open_connection("jobs")
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            await home.abort()
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    run(main())


@pytest.mark.parametrize("way", WAYS)
def test_a_local_port_leads_to_it(run: Run, tmp_path: Path, way: str) -> None:
    async def main() -> None:
        async with reaching(tmp_path, way) as (who, home), home.listen("jobs", echo):
            async with who.forward("jobs") as door:
                assert door.url == f"tcp://127.0.0.1:{door.port}"
                assert await visit(door.host, door.port, b"hello") == b"hello"
            with pytest.raises(ConnectionError):
                await visit(door.host, door.port, b"late")
            missed = who.forward("nothing")
            with pytest.raises(ConnectionResetError):
                await visit(missed.host, missed.port, b"hello")

    run(main())


@pytest.mark.parametrize("way", WAYS)
def test_a_socket_whose_other_end_is_it(run: Run, tmp_path: Path, way: str) -> None:
    def ask(sock: socket.socket) -> bytes:
        with sock:
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: sock.recv(1000), b""))

    def hear(sock: socket.socket) -> bytes:
        with sock:
            return sock.recv(1)

    async def main() -> None:
        async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.abort()

        async with reaching(tmp_path, way) as (who, home), home.listen("jobs", echo), home.listen("fails", fail):
            assert await asyncio.to_thread(ask, await who.open_socket("jobs")) == b"hello"
            with pytest.raises(ConnectionResetError):
                await asyncio.to_thread(hear, await who.open_socket("fails"))
            with pytest.raises(NoServiceError):
                await who.open_socket("nothing")

    run(main())


def test_a_client_reaches_what_it_serves_itself(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with joined(tmp_path) as (_, home), local(echo) as port:
            await home.expose(f"web=private://{port}")
            reader, writer = await home.open_connection("web")
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"hello"
            writer.close()

    run(main())


def test_what_is_opened_is_bounded_by_what_the_relay_bears(run: Run, tmp_path: Path) -> None:
    """A relay ends sessions that open streams too quickly: who asks for many waits for its turn instead."""

    async def main() -> None:
        async with joined(tmp_path) as (_, home):
            visiting = home._client.visiting
            visiting._spent, visiting._spent_at = _BURST + _RATE * 0.1, asyncio.get_running_loop().time()
            began = asyncio.get_running_loop().time()
            with pytest.raises(NoServiceError):
                await home.open_connection("nothing")
            assert 0.05 < asyncio.get_running_loop().time() - began < 5

    run(main())


def test_many_connections_leave_nothing_behind(run: Run, tmp_path: Path, long: int) -> None:
    """A thousand, ten thousand with `--long 1`, a hundred at a time; every fourth is refused, reset, or given up."""
    total, at_once = 10_000 * long or 1000, 100

    async def main() -> None:
        async def one(server: Server, number: int) -> None:
            if number % 16 == 3:
                with pytest.raises(OpenError):
                    await server.open_connection("nothing")
                return
            reader, writer = await server.open_connection("jobs")
            writer.write(b"%d" % number)
            if number % 16 == 7:
                writer.transport.abort()
            elif number % 16 == 11:
                reading = asyncio.ensure_future(reader.read())
                await asyncio.sleep(0)
                reading.cancel()
                writer.close()
            else:
                writer.write_eof()
                assert await reader.read() == b"%d" % number
                writer.close()

        async with joined(tmp_path) as (server, home), home.listen("jobs", echo):
            inside: Any = server._running
            for first in range(0, total, at_once):
                await asyncio.gather(*(one(server, number) for number in range(first, first + at_once)))
            client = home._client
            await until(
                lambda: not (client.streams or client.runtime.edges or inside.runtime.edges or home._handlers),
                "all of them have ended",
            )
            assert inside.runtime.pool.used == client.runtime.pool.used == 0
            gc.collect()
            left = [one for one in gc.get_objects() if isinstance(one, (StreamTransport, asyncio.StreamReader))]
            assert len(left) <= 2, left

    run(main(), 60 + 60 * long)


def test_cancelled_at_every_await(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path) as server, tunnel(server, tmp_path) as home, home.listen("jobs", echo):
            async with tunnel(server, tmp_path, "") as visitor:

                async def talk(who: Reaching) -> None:
                    reader, writer = await who.open_connection("jobs")
                    try:
                        writer.write(b"hello")
                        await writer.drain()
                        writer.write_eof()
                        assert await reader.read() == b"hello"
                    finally:
                        writer.close()
                    await writer.wait_closed()

                async def socket_() -> None:
                    (await visitor.open_socket("jobs")).close()

                async def door() -> None:
                    async with visitor.forward("jobs") as listener:
                        assert await visit(listener.host, listener.port, b"hello") == b"hello"

                runtime = server._running.runtime
                works: list[Callable[[], Coroutine[Any, Any, None]]] = [socket_, door]
                works += [partial(talk, visitor), partial(talk, server)]
                for work in works:
                    await at_every_await(work, lambda: not runtime.edges and not visitor._client.runtime.edges)
                    await work()

    run(main())
