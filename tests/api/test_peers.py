"""Connections that come out in the network of a client, opened by another client or by the relay itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from fastrelay.api import Peer, Tunnel
from fastrelay.errors import (
    AwayError,
    Code,
    DeniedError,
    DialRefusedError,
    DialTimeoutError,
    NoServiceError,
    UsageError,
)
from fastrelay.httpx import Transport
from fastrelay.net.options import LINGER_RESET
from tests.api.programs import echo, local, relay, tunnel, visit
from tests.api.test_cancellation import at_every_await
from tests.api.test_httpx import Site
from tests.api.test_reaching import WAYS, Collect
from tests.conftest import Run
from tests.support.certificates import Authority
from tests.support.grants import make_token
from tests.support.payload import Keystream
from tests.support.peers import free_port
from tests.support.tunnel import until

LOCALHOST = "127.0.0.1"


@contextlib.asynccontextmanager
async def dialling(state: Path, way: str, *allow: str) -> AsyncIterator[tuple[Peer, Tunnel]]:
    """The network of `home`, which dials what is in `allow`, and the tunnel of that client."""
    async with relay(state) as server, tunnel(server, state, allow_dial=allow or ["127.0.0.1"]) as home:
        if way == "relay":
            yield server.client("home"), home
            return
        token = make_token(
            state / "relay", "guest", names=[], dial=["127.0.0.1:1-65535"], through=["home", "nobody"]
        ).text()
        async with tunnel(server, state, "", token=token) as visitor:
            yield visitor.client("home"), home


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [65_536, pytest.param(4 << 20, marks=pytest.mark.slow)])
def test_halves_end_on_their_own(run: Run, tmp_path: Path, way: str, size: int) -> None:
    async def main() -> None:
        said, back = Keystream("there").take(size), Keystream("back").take(size)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.read() == said
            writer.write(back)
            writer.write_eof()
            await writer.drain()
            await asyncio.sleep(0.02)

        async with local(answer) as port, dialling(tmp_path, way) as (home, _):
            reader, writer = await home.open_connection(LOCALHOST, port)
            assert writer.get_extra_info("peername") == (LOCALHOST, port)
            writer.write(said)
            writer.write_eof()
            assert await reader.read() == back
            writer.close()
            await writer.wait_closed()

    run(main())


@pytest.mark.parametrize("way", WAYS)
def test_a_reset_is_a_reset(run: Run, tmp_path: Path, way: str) -> None:
    async def main() -> None:
        async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(1)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
            writer.transport.abort()

        async with local(fail) as port, dialling(tmp_path, way) as (home, _):
            transport, protocol = await home.create_connection(Collect, LOCALHOST, port)
            transport.write(b"!")
            await until(lambda: protocol.lost, "the end")
            assert isinstance(protocol.lost[0], ConnectionResetError)

    run(main())


@pytest.mark.parametrize("way", WAYS)
def test_what_is_raised(run: Run, tmp_path: Path, way: str) -> None:
    async def main() -> None:
        async with dialling(tmp_path, way, "127.0.0.1:1024-65535") as (home, serving):
            with pytest.raises(DialRefusedError, match="refused"):
                await home.open_connection(LOCALHOST, free_port())
            with pytest.raises(DeniedError) as denied:
                await home.open_connection("127.0.0.1", 22)
            assert denied.value.code is Code.DIAL_DENIED and isinstance(denied.value, PermissionError)
            for host, port in (("no host", 80), (LOCALHOST, 0), (LOCALHOST, 70_000)):
                with pytest.raises(UsageError):
                    await home.open_connection(host, port)
            with pytest.raises(NoServiceError):
                await Peer("nobody", home._way).open_connection(LOCALHOST, 80)
            await serving.aclose()
            with pytest.raises(AwayError):
                await home.open_connection(LOCALHOST, 80)

    run(main())


def test_a_client_that_never_answers(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path, limits=["answer-time=0.1s"]) as server, tunnel(server, tmp_path) as home:
            home._client.on_open = lambda stream, request: None  # type: ignore[method-assign]
            for opening in (server.client("home").open_connection, server.client("home").open_socket):
                with pytest.raises(DialTimeoutError):
                    await opening(LOCALHOST, 80)

    run(main())


@pytest.mark.parametrize("way", WAYS)
def test_a_local_port_and_a_proxy(run: Run, tmp_path: Path, way: str) -> None:
    async def main() -> None:
        async with local(echo) as port, dialling(tmp_path, way) as (home, _):
            async with home.forward(LOCALHOST, port) as door:
                assert await visit(door.host, door.port, b"hello") == b"hello"
            async with home.socks() as proxy:
                assert proxy.url == f"socks5h://127.0.0.1:{proxy.port}"
                reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
                writer.write(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\nhello" % port)
                assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
                assert await reader.readexactly(5) == b"hello"
                writer.close()

    run(main())


def test_tls_to_the_target(run: Run, tmp_path: Path) -> None:
    """It is between this program and the target: neither relay nor client can read it."""

    async def main() -> None:
        authority = Authority(tmp_path / "ca")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue("target", host=LOCALHOST))
        trusting = authority.trusting()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.readexactly(5)).upper())

        async with local(answer, ssl=context) as port, dialling(tmp_path, "relay") as (home, _):
            reader, writer = await home.open_connection(LOCALHOST, port, ssl=trusting)
            writer.write(b"hello")
            assert await reader.read() == b"HELLO"
            writer.close()
            await writer.wait_closed()
            with pytest.raises(ssl.SSLCertVerificationError):
                await home.open_connection(LOCALHOST, port, ssl=True)

    run(main())


def test_httpx(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with local(Site()) as port, dialling(tmp_path, "relay") as (home, _):
            async with httpx2.AsyncClient(transport=Transport(home)) as http:
                assert (await http.get(f"http://127.0.0.1:{port}/there")).text == "/there"

    run(main())


@pytest.mark.parametrize("way", WAYS)
def test_cancelled_at_every_await(run: Run, tmp_path: Path, way: str) -> None:
    async def main() -> None:
        async with local(echo) as port, dialling(tmp_path, way) as (home, serving):

            async def work() -> None:
                reader, writer = await home.open_connection(LOCALHOST, port)
                try:
                    writer.write(b"hello")
                    writer.write_eof()
                    assert await reader.read() == b"hello"
                finally:
                    writer.close()
                await writer.wait_closed()

            runtimes = home._way.runtime, serving._client.runtime
            await at_every_await(work, lambda: not any(runtime.edges for runtime in runtimes))
            await work()

    run(main())
