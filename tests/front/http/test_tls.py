"""Visitors under TLS: the same as without, and each direction ends on its own; what is cut never looks whole."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator

import pytest

from fastrelay import wire
from fastrelay.errors import MessageError
from fastrelay.front.http import visitor as visitor_module
from fastrelay.front.http.lobby import Lobby
from fastrelay.front.http.messages import Request
from fastrelay.front.http.tls import HttpsVisitor
from fastrelay.front.http.way import Way
from fastrelay.net.keys import Shown
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.front.http.test_visitor import GET, OK, Service
from tests.support import pair
from tests.support.certificates import Authority
from tests.support.peers import End
from tests.support.tunnel import PATIENCE, Bench, Local, tcp_pair, turns

HOST = "a.example"
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: a.example\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"


class Visitor:
    """The outside of an edge under TLS. Each direction ends on its own, and an end without close_notify is End.RESET."""

    def __init__(self, local: Local, context: ssl.SSLContext) -> None:
        self.local = local
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=HOST)

    async def shake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
                await self._flush()
                return
            except ssl.SSLWantReadError:
                await self._more()

    async def send(self, data: bytes) -> None:
        self.tls.write(data)
        await self._flush()

    async def read(self, size: int) -> bytes:
        """Up to so many bytes; b"" is a clean end."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return self.tls.read(size)
                except ssl.SSLZeroReturnError:
                    return b""
                except ssl.SSLWantReadError:
                    await self._more()

    async def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = await self.read(size - len(data))
            assert piece, f"an end after {data!r}"
            data += piece
        return data

    async def to_end(self) -> tuple[bytes, End]:
        data = b""
        while True:
            try:
                piece = await self.read(65_536)
            except ConnectionError:
                return data, End.RESET
            if not piece:
                return data, End.EOF
            data += piece

    async def end(self) -> None:
        """close_notify."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        await self._flush()

    async def _flush(self) -> None:
        await self.local.send(self._out.read())

    async def _more(self) -> None:
        await self._flush()
        raw = await self.local.loop.sock_recv(self.local.sock, 1 << 18)
        if not raw:
            raise ConnectionResetError
        self._in.write(raw)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@contextlib.asynccontextmanager
async def front(
    authority: Authority, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> AsyncIterator[tuple[Visitor, Service]]:
    """A visitor under TLS, not shaken yet, and the service a.example."""
    async with Bench(theirs=wire.Settings(early=65_536)) as bench:
        service = Service(bench)

        def route(request: Request, visitor: str) -> Way:
            if request.host != HOST.encode():
                raise MessageError(404, "There is no service of this name.")
            return Way(service, request)

        shown = Shown(authority.issue("a", host=HOST), own=False, web=True)
        outside, inside = tcp_pair()
        inside.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        edge = HttpsVisitor(bench.runtime, route, Lobby(bench.runtime), shown.context)
        await bench.loop.connect_accepted_socket(lambda: edge, inside)
        local = Local(outside)
        bench.locals.append(local)
        context = ssl.create_default_context(cafile=authority.path)
        context.maximum_version = version
        context.set_alpn_protocols(["h2", "http/1.1"])
        yield Visitor(local, context), service


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_requests(run: Run, authority: Authority, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        async with front(authority, version) as (visitor, one):
            await visitor.shake()
            assert visitor.tls.selected_alpn_protocol() == "http/1.1"
            stream = None
            for number in range(3):
                await visitor.send(GET % number)
                stream = await one.asked(b"GET /%d " % number, b"X-Forwarded-Proto: https\r\n", stream=stream)
                await one.answer(stream, OK)
                assert await visitor.exactly(len(OK)) == OK
            await visitor.end()
            assert (await visitor.to_end())[1] is End.EOF
            assert stream is not None
            await one.bench.peer.send(pair.fin(stream))

    run(main())


def test_what_came_with_the_handshake_is_read(run: Run, authority: Authority) -> None:
    """The last flight of a visitor and its first request are one segment."""

    async def main() -> None:
        async with front(authority) as (visitor, one):
            flush, visitor._flush = visitor._flush, lambda: asyncio.sleep(0)  # type: ignore[method-assign]
            with contextlib.suppress(ssl.SSLWantReadError):
                visitor.tls.do_handshake()
            await flush()
            raw = await one.bench.loop.sock_recv(visitor.local.sock, 1 << 16)
            visitor._in.write(raw)
            visitor.tls.do_handshake()
            visitor.tls.write(GET % 1)
            await flush()
            visitor._flush = flush  # type: ignore[method-assign]
            await one.answer(await one.asked(b"GET /1 "), OK)
            assert await visitor.exactly(len(OK)) == OK

    run(main())


@pytest.mark.parametrize("size", [0, 100, 250_000])
def test_large_bodies_and_slow_readers(run: Run, authority: Authority, size: int) -> None:
    """What the socket does not take waits, and counts as not consumed: never as more than it was."""

    async def main() -> None:
        async with front(authority) as (visitor, one):
            await visitor.shake()
            await visitor.send(GET % 1)
            stream = await one.asked()
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
            body = bytes(range(256)) * (size // 256 + 1)
            await one.answer(stream, head)
            for at in range(0, size, 5_000 if size > 1000 else 1):
                await one.answer(stream, body[at : min(size, at + (5_000 if size > 1000 else 1))])
            await turns(20)
            (mine,) = one.streams
            assert 0 <= mine.queued <= mine.received
            assert mine.queued or size < 1000, "what the socket did not take"
            assert await visitor.exactly(len(head) + size) == head + body[:size]
            await turns()
            assert mine.queued == 0

    run(main())


def test_an_upload_is_held_by_credit(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with front(authority) as (visitor, one):
            await visitor.shake()
            size = 400_000
            await visitor.send(b"PUT / HTTP/1.1\r\nHost: a.example\r\nContent-Length: %d\r\n\r\n" % size)
            opened = await one.bench.peer.frame(Kind.OPEN)
            await one.bench.peer.send(pair.accept(opened.stream, 100_000))
            body = bytes(range(256)) * (size // 256 + 1)
            sending = asyncio.create_task(visitor.send(body[:size]))
            raw = b""
            while len(raw) < 100_000:
                raw += (await one.bench.peer.frame(Kind.DATA)).payload
            await turns(20)
            await one.bench.peer.send(pair.window(opened.stream, 1 << 40, 100_000))
            while not raw.endswith(body[size - 200 : size]):
                raw += (await one.bench.peer.frame(Kind.DATA)).payload
            assert raw.partition(b"\r\n\r\n")[2] == body[:size]
            await sending

    run(main())


@pytest.mark.parametrize("first", ["visitor", "target"])
def test_each_direction_ends_on_its_own(run: Run, authority: Authority, first: str) -> None:
    async def main() -> None:
        async with front(authority) as (visitor, one):
            await visitor.shake()
            await visitor.send(UPGRADE)
            stream = await one.asked()
            await one.answer(stream, SWITCHED)
            await visitor.exactly(len(SWITCHED))
            if first == "visitor":
                await visitor.end()
                assert await one.bench.peer.half(stream) == (b"", Kind.FIN, None)
                await one.answer(stream, b"after its end")
                assert await visitor.exactly(13) == b"after its end"
                await one.bench.peer.send(pair.fin(stream))
                assert await visitor.to_end() == (b"", End.EOF)
            else:
                await one.bench.peer.send(pair.data(stream, b"last"), pair.fin(stream))
                assert await visitor.to_end() == (b"last", End.EOF)
                await visitor.send(b"after its end")
                assert await one.bench.peer.data(stream, 13) == b"after its end"
                await visitor.end()
                assert await one.bench.peer.half(stream) == (b"", Kind.FIN, None)

    run(main())


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_what_is_cut_is_no_clean_end(run: Run, authority: Authority, how: str) -> None:
    """Anybody between can end a TCP connection; only the visitor can say close_notify."""

    async def main() -> None:
        async with front(authority) as (visitor, one):
            await visitor.shake()
            await visitor.send(UPGRADE)
            stream = await one.asked()
            await one.answer(stream, SWITCHED)
            await visitor.exactly(len(SWITCHED))
            await visitor.send(b"half a sen")
            assert await one.bench.peer.data(stream, 10) == b"half a sen"
            if how == "fin":
                visitor.local.eof()
            else:
                visitor.local.reset()
            assert (await one.bench.peer.half(stream))[1] == Kind.RESET

    run(main())


def test_a_reset_of_the_target_is_one_of_the_visitor(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with front(authority) as (visitor, one):
            await visitor.shake()
            await visitor.send(UPGRADE)
            stream = await one.asked()
            await one.answer(stream, SWITCHED + b"last")
            await one.bench.peer.send(pair.reset(stream))
            assert await visitor.to_end() == (
                SWITCHED.replace(SWITCHED, b"HTTP/1.1 101 Go\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nlast"),
                End.RESET,
            )

    run(main())


def test_a_page_under_tls(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with front(authority) as (visitor, _):
            await visitor.shake()
            await visitor.send(b"GET / HTTP/1.1\r\nHost: c.example\r\n\r\n")
            raw, end = await visitor.to_end()
            assert raw.startswith(b"HTTP/1.1 404 ") and end is End.EOF

    run(main())


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (GET % 1, b"HTTP/1.1 400 "),
        (b"\x00" * 50, b""),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", b""),
        (b"", b""),
        (b"\x16\x03\x01", b""),
    ],
)
@pytest.mark.parametrize("ends", [False, True])
def test_what_is_no_tls(
    run: Run, monkeypatch: pytest.MonkeyPatch, authority: Authority, raw: bytes, answer: bytes, ends: bool
) -> None:
    monkeypatch.setattr(visitor_module, "HEAD_TIME", 0.1)

    async def main() -> None:
        async with front(authority) as (visitor, one):
            await visitor.local.send(raw)
            if ends:
                visitor.local.eof()
            said, _ = await visitor.local.to_end()
            assert said.startswith(answer) and (answer or b"HTTP" not in said)
            assert not one.streams

    run(main())


def test_nonsense_behind_a_handshake(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with front(authority) as (visitor, one):
            await visitor.shake()
            await visitor.send(GET % 1)
            stream = await one.asked()
            await visitor.local.send(b"\x17\x03\x03\x00\x20" + bytes(32))
            assert (await one.bench.peer.half(stream))[1] == Kind.RESET

    run(main())
