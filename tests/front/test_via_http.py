"""The client of POST /tcpproxy, against a relay in this process: a program at the local port, a target played by hand behind a client."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fastrelay.config import Front
from fastrelay.dialling import read_place
from fastrelay.errors import Code
from fastrelay.front import via_http
from fastrelay.front.via_http import Call, HttpForward
from fastrelay.net.listen import listen
from fastrelay.roles import keyring
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.roles.test_server import LOCALHOST
from tests.support import pair
from tests.support.calls import CallsBench, Hand, calls_relay
from tests.support.certificates import Authority
from tests.support.peers import End
from tests.support.tunnel import Local, turns, until


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay looks at its tokens all the time."""
    monkeypatch.setattr(keyring, "_LOOK_EVERY", 0.01)


both = pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
one_loop = pytest.mark.parametrize("loop_kind", ["asyncio"])
"""For what has nothing to do with the loop."""
BLOCK = bytes(range(256)) * 1024


class Port:
    """A local port that leads to port 5432 beside the client "home"."""

    def __init__(self, forward: HttpForward, port: int, told: list[tuple[str, str]]) -> None:
        self.forward = forward
        self.port = port
        self.told = told
        self.locals: list[Local] = []

    async def visit(self) -> Local:
        sock = socket.socket()
        sock.setblocking(False)
        local = Local(sock)
        self.locals.append(local)
        await asyncio.get_running_loop().sock_connect(sock, (LOCALHOST, self.port))
        return local

    async def reset(self) -> str:
        """Somebody comes and is reset; returns why."""
        assert await (await self.visit()).to_end() == (b"", End.RESET)
        return self.told[-1][1]


@contextlib.asynccontextmanager
async def port(call: Call) -> AsyncIterator[Port]:
    told: list[tuple[str, str]] = []
    forward = HttpForward(asyncio.get_running_loop(), call, lambda who, why: told.append((who, why)))
    sock = listen(LOCALHOST, 0)
    await forward.start(sock)
    one = Port(forward, forward.port, told)
    try:
        yield one
    finally:
        for local in one.locals:
            local.close()
        await forward.close()
        await turns()
    assert not forward.nears


@contextlib.asynccontextmanager
async def forwarded(
    home: Path, monkeypatch: pytest.MonkeyPatch, tls: bool, through: str = "*"
) -> AsyncIterator[tuple[Port, CallsBench, Hand]]:
    authority = Authority(home / "ca")
    pair_ = authority.issue("relay", host=LOCALHOST)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    async with calls_relay(home / "r", certificate=pair_ if tls else None) as bench:
        token, hand = await bench.caller(through=[through]), await bench.hand()
        where = bench.port_https if tls else bench.port_http
        call = Call(Front(LOCALHOST, where, tls), "home", read_place("10.0.0.5:5432"), token.text())
        async with port(call) as one:
            yield one, bench, hand


def somewhere(where: int) -> Call:
    return Call(Front(LOCALHOST, where, tls=False), "home", read_place("x:1"), "t")


@both
@pytest.mark.parametrize("first", ["program", "target"])
def test_each_direction_ends_by_itself(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool, first: str
) -> None:
    async def main() -> None:
        async with forwarded(tmp_path, monkeypatch, tls) as (one, _, home):
            local = await one.visit()
            await local.send(b"early")  # nobody is asked to wait at this end
            stream = await home.takes()
            assert home.dialled == ["10.0.0.5:5432"]
            assert await home.peer.data(stream, 5) == b"early"

            async def up() -> None:
                await local.send(BLOCK)
                local.eof()
                assert await home.peer.half(stream) == (BLOCK, Kind.FIN, None)

            async def down() -> None:
                await home.peer.send(*(pair.data(stream, BLOCK[at : at + 8192]) for at in range(0, len(BLOCK), 8192)))
                await home.peer.send(pair.fin(stream))
                assert await local.to_end() == (BLOCK, End.EOF)

            for way in (up, down) if first == "program" else (down, up):
                await way()
            await until(lambda: not one.forward.nears, "it is over")
            assert not one.told

    run(main())


@both
@pytest.mark.parametrize("who", ["program", "target"])
def test_a_reset_is_a_reset(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool, who: str) -> None:
    async def main() -> None:
        async with forwarded(tmp_path, monkeypatch, tls) as (one, _, home):
            local = await one.visit()
            stream = await home.takes()
            await local.send(b"a question")
            assert await home.peer.data(stream, 10) == b"a question"
            if who == "program":
                local.reset()
                assert (await home.peer.half(stream))[1:] == (Kind.RESET, Code.CONNECTION_RESET)
            await home.peer.send(pair.reset(stream))
            if who == "target":
                assert await local.to_end() == (b"", End.RESET)

    run(main())


@one_loop
@pytest.mark.parametrize(
    ("code", "why"),
    [
        (Code.REFUSED, "the relay answers 500: failed to connect to port 5432: connection refused"),
        (Code.DIAL_DENIED, "the relay answers 400: dialling 10.0.0.5:5432 is not allowed: "),
    ],
)
def test_what_the_relay_refuses_is_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: Code, why: str
) -> None:
    async def main() -> None:
        async with forwarded(tmp_path, monkeypatch, False) as (one, _, home):
            local = await one.visit()
            await home.refuses(code)
            assert await local.to_end() == (b"", End.RESET)
            ((_, told),) = one.told
            assert told.startswith(why)

    run(main())


@one_loop
def test_a_token_that_is_not_good_is_told_and_not_shown(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with forwarded(tmp_path, monkeypatch, False, "lab") as (one, _, _):
            assert (await one.reset()).startswith("the relay answers 401: you don't own that buildlet")
            assert one.forward.call.token not in repr(one.forward.call)

    run(main())


@one_loop
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "what answers there does not speak HTTP"),
        (b"x" * 20_000, "what answers there does not speak HTTP"),
        (b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\n\r\n", "it switches to another protocol than tcpproxy"),
        (b"", "the relay ended the connection without an answer"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\noops", "the relay answers 502: oops"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\nuntil the end", "the relay answers 502: until the end"),
        (b"HTTP/1.1 502 Bad\r\nContent-Length: 5\r\n\r\n\x1b[2J!", "the relay answers 502"),
    ],
)
def test_what_is_no_answer_of_a_relay(run: Run, answer: bytes, why: str) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        server = await asyncio.start_server(serve, LOCALHOST, 0)
        where = server.sockets[0].getsockname()[1]
        async with port(somewhere(where)) as one:
            assert await one.reset() == why
        server.close()
        await server.wait_closed()

    run(main())


def test_nobody_answers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(via_http, "ANSWER_TIME", 0.05)

    async def main() -> None:
        with listen(LOCALHOST, 0) as sock:
            call = somewhere(sock.getsockname()[1])
            async with port(call) as one:
                assert await one.reset() == "the relay did not answer within 0.05 s"
        async with port(call) as one:
            assert "refused" in (await one.reset()).lower()

    run(main())


def test_a_certificate_that_is_not_accepted(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with forwarded(tmp_path, monkeypatch, True) as (one, _, home):
            monkeypatch.setenv("SSL_CERT_FILE", str(Authority(tmp_path / "other").path))
            async with port(one.forward.call) as two:
                assert (await two.reset()).startswith("the relay's certificate is not accepted (")
            await home.untouched()

    run(main())


def test_who_goes_first_takes_the_call_along(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with forwarded(tmp_path, monkeypatch, False) as (one, _, home):
            await one.visit()
            stream = await home.asked()
            await one.forward.close()
            assert (await home.peer.half(stream))[1] == Kind.RESET
            await home.peer.send(pair.reset(stream))

    run(main())
