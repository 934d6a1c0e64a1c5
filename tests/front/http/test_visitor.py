"""Visitors of the HTTP front between real sockets and tunnels whose far end, the target's side, is played by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from fastrelay import wire
from fastrelay.errors import Code, MessageError
from fastrelay.front.http import visitor as visitor_module
from fastrelay.front.http.lobby import Lobby
from fastrelay.front.http.messages import Request
from fastrelay.front.http.visitor import HttpVisitor
from fastrelay.front.http.way import Way
from fastrelay.mux.stream import Outlet, Stream
from fastrelay.net.link import Link
from fastrelay.roles.sites import User
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.support import pair
from tests.support.peers import End
from tests.support.tunnel import Bench, Local, tcp_pair, turns, until

GET = b"GET /%d HTTP/1.1\r\nHost: a.example\r\n\r\n"


@dataclass(eq=False)
class Service:
    """A backend of one bench."""

    bench: Bench
    full: bool = False
    streams: list[Stream] = field(default_factory=list)
    users: set[User] = field(default_factory=set)

    @property
    def link(self) -> Link:
        return self.bench.link

    def open(self, outlet: Outlet, visitor: str) -> Stream | None:
        stream = None if self.full else self.bench.session.open(outlet, 1, visitor)
        if stream is not None:
            self.streams.append(stream)
        return stream

    async def asked(self, *parts: bytes, stream: int | None = None) -> int:
        """Wait for a request that holds these parts; its stream, which is accepted when it is new."""
        one = await self.bench.peer.frame(Kind.OPEN, Kind.DATA)
        if one.kind == Kind.OPEN:
            await self.bench.peer.send(pair.accept(one.stream, 1 << 20))
            one = await self.bench.peer.frame(Kind.DATA)
        for part in parts:
            assert part in one.payload, one.payload
        assert stream in (None, one.stream)
        return one.stream

    async def answer(self, stream: int, *frames: bytes) -> None:
        await self.bench.peer.send(*(pair.data(stream, frame) for frame in frames))


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextlib.asynccontextmanager
async def front() -> AsyncIterator[tuple[Local, Service, Service]]:
    """A visitor's socket, and the services a.example and b.example."""
    async with Bench(theirs=wire.Settings(early=65_536)) as one, Bench(theirs=wire.Settings(early=65_536)) as two:
        services = {b"a.example": Service(one), b"b.example": Service(two)}

        def route(request: Request, visitor: str) -> Way:
            assert visitor == "127.0.0.1"
            if request.host not in services:
                raise MessageError(404, "There is no service of this name.")
            return Way(services[request.host], request)

        outside, inside = tcp_pair()
        edge = HttpVisitor(one.runtime, route, "http", Lobby(one.runtime))
        await one.loop.connect_accepted_socket(lambda: edge, inside)
        local = Local(outside)
        one.locals.append(local)
        yield local, services[b"a.example"], services[b"b.example"]


async def head_of(local: Local) -> bytes:
    """The head of the next response."""
    raw = b""
    while not raw.endswith(b"\r\n\r\n"):
        raw += await local.read(1)
    return raw


def test_requests_follow_each_other_on_one_stream(run: Run) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            stream = None
            for number in range(3):
                await local.send(GET % number)
                stream = await one.asked(
                    b"GET /%d HTTP/1.1\r\nHost: a.example\r\n" % number,
                    b"\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: a.example\r\nX-Forwarded-Proto: http\r\n",
                    b"\r\nForwarded: for=127.0.0.1;host=a.example;proto=http\r\n\r\n",
                    stream=stream,
                )
                await one.answer(stream, OK)
                assert await head_of(local) + await local.read(2) == OK
            assert len(one.streams) == 1

    run(main())


def test_what_is_of_one_hop_and_what_is_not_believed(run: Run) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            await local.send(
                b"POST / HTTP/1.1\r\nHost: A.example\r\nConnection: x-own, keep-alive, content-length\r\nX-Own: 1\r\nKeep-Alive: 5\r\n"
                b"Proxy-Authorization: b\r\nTE: gzip, trailers\r\nX-Forwarded-For: 10.0.0.1\r\nForwarded: for=x\r\nX-Real-Ip: y\r\n"
                b"Content-Length: 4\r\nCookie: a=b\r\n\r\nbody"
            )
            raw = b""
            while not raw.endswith(b"body"):
                raw += (await one.bench.peer.frame(Kind.DATA)).payload
            assert raw == (
                b"POST / HTTP/1.1\r\nHost: A.example\r\nContent-Length: 4\r\nCookie: a=b\r\nX-Forwarded-For: 127.0.0.1\r\n"
                b"X-Forwarded-Host: a.example\r\nX-Forwarded-Proto: http\r\nForwarded: for=127.0.0.1;host=a.example;proto=http\r\n"
                b"TE: trailers\r\n\r\nbody"
            )
            stream = one.streams[0].id
            await one.bench.peer.send(pair.accept(stream))
            await one.answer(
                stream,
                b"HTTP/1.1 200 Fine\r\nKeep-Alive: timeout=5\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-End: 2\r\nContent-Length: 0\r\n\r\n",
            )
            assert await head_of(local) == b"HTTP/1.1 200 Fine\r\nX-End: 2\r\nContent-Length: 0\r\n\r\n"

    run(main())


def test_pipelined_requests_are_answered_in_order(run: Run) -> None:
    """Those to another service wait for the answers before them, on a stream of their own."""

    async def main() -> None:
        async with front() as (local, one, two):
            other = GET.replace(b"a.", b"b.")
            await local.send(GET % 1 + GET % 2 + other % 3 + other % 4 + GET % 5)
            stream = await one.asked(b"GET /1 ")
            await one.asked(b"GET /2 ", stream=stream)
            await turns(20)
            assert not two.streams
            await one.answer(stream, OK + OK)
            second = await two.asked(b"GET /3 ")
            assert (await one.bench.peer.half(stream))[1] == Kind.FIN
            await two.asked(b"GET /4 ", stream=second)
            await two.answer(second, OK, OK)
            third = await one.asked(b"GET /5 ")
            assert third != stream
            await one.answer(third, OK)
            assert await local.read(5 * len(OK)) == 5 * OK
            await one.bench.peer.send(pair.fin(stream))
            await two.bench.peer.send(pair.fin(second))

    run(main())


def test_bodies_stream_both_ways(run: Run) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            size = 3_000_000
            block = bytes(range(256)) * 64

            async def ask() -> None:
                await local.send(b"PUT /x HTTP/1.1\r\nHost: a.example\r\nContent-Length: %d\r\n\r\n" % size)
                for _ in range(size // len(block)):
                    await local.send(block)
                await local.send(block[: size % len(block)])
                await local.send(GET % 2)

            async def serve() -> int:
                stream = await one.asked(b"PUT /x ")
                await one.bench.peer.send(pair.window(stream, 1 << 40, 0))
                raw = b""
                while not raw.endswith(b"proto=http\r\n\r\n"):
                    raw += (await one.bench.peer.frame(Kind.DATA)).payload
                body, _, behind = raw.partition(b"GET /2 ")
                assert len(body) == size and body == (block * (size // len(block) + 1))[:size] and behind
                return stream

            _, stream = await asyncio.gather(ask(), serve())
            chunks = b"".join(b"4000\r\n%b\r\n" % block for _ in range(30)) + b"0\r\nX: y\r\n\r\n"
            answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + OK
            for at in range(0, len(answer), 10_000):
                await one.answer(stream, answer[at : at + 10_000])
            assert await local.read(len(answer)) == answer

    run(main())


@pytest.mark.parametrize("behind", [b"", b"hello"])
def test_an_upgrade_joins_the_two(run: Run, behind: bytes) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            await local.send(
                b"GET /ws HTTP/1.1\r\nHost: a.example\r\nUpgrade: x/1\r\nConnection: Upgrade\r\n\r\n" + behind
            )
            stream = await one.asked(b"\r\nUpgrade: x/1\r\nConnection: upgrade\r\n\r\n")
            await one.answer(stream, b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: X/1\r\n\r\nfirst")
            assert await head_of(local) == b"HTTP/1.1 101 Go\r\nUpgrade: X/1\r\nConnection: upgrade\r\n\r\n"
            assert await local.read(5) == b"first"
            await local.send(b" world")
            assert await one.bench.peer.data(stream, len(behind) + 6) == behind + b" world"
            local.eof()
            assert await one.bench.peer.half(stream) == (b"", Kind.FIN, None)
            await one.answer(stream, b"after its end")
            assert await local.read(13) == b"after its end"
            await one.bench.peer.send(pair.fin(stream))
            assert await local.to_end() == (b"", End.EOF)

    run(main())


def test_an_error_ends_both_after_an_upgrade(run: Run) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            await local.send(b"GET /ws HTTP/1.1\r\nHost: a.example\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
            stream = await one.asked()
            await one.answer(stream, b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
            await head_of(local)
            await one.bench.peer.send(pair.data(stream, b"last"), pair.reset(stream))
            assert await local.to_end() == (b"last", End.RESET)  # and no page

    run(main())


def test_an_upgrade_that_is_refused_changes_nothing(run: Run) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            await local.send(
                b"GET /ws HTTP/1.1\r\nHost: a.example\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n" + GET % 2
            )
            stream = await one.asked()
            await turns(10)
            await one.answer(stream, OK)
            await one.asked(b"GET /2 ", stream=stream)
            await one.answer(stream, OK)
            assert await local.read(2 * len(OK)) == 2 * OK

    run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: y\r\n\r\n",
        b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\n\r\n",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000,
    ],
)
def test_a_target_that_does_not_speak_so(run: Run, answer: bytes) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            await local.send(b"GET /ws HTTP/1.1\r\nHost: a.example\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
            stream = await one.asked()
            await one.answer(stream, answer)
            raw, end = await local.to_end()
            assert raw.startswith(b"HTTP/1.1 502 Bad Gateway\r\n") and end is End.EOF
            await one.bench.peer.send(pair.reset(stream))

    run(main())


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.REFUSED, 502),
        (Code.UNREACHABLE, 502),
        (Code.DIAL_TIMEOUT, 504),
        (Code.NO_SERVICE, 502),
        (Code.LIMIT, 503),
        (Code.CONNECTION_RESET, 502),
    ],
)
def test_a_dial_that_failed_is_a_page(run: Run, code: Code, status: int) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            await local.send(GET % 1)
            opened = await one.bench.peer.frame(Kind.OPEN)
            await one.bench.peer.send(pair.reset(opened.stream, code))
            raw, end = await local.to_end()
            assert raw.startswith(b"HTTP/1.1 %d " % status) and end is End.EOF
            assert raw.count(b"HTTP/1.1") == 1 and b"<h1>" in raw

    run(main())


def test_a_lost_tunnel(run: Run) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            await local.send(GET % 1)
            await one.asked()
            one.bench.link.abort(ConnectionAbortedError("cut"))
            raw, end = await local.to_end()
            assert raw.startswith(b"HTTP/1.1 502 ") and end is End.EOF

    run(main())


@pytest.mark.parametrize("how", ["reset", "lost", "fin"])
def test_half_an_answer_never_looks_whole(run: Run, how: str) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            await local.send(GET % 1)
            stream = await one.asked()
            await one.answer(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            assert (await head_of(local)) + (
                await local.read(4)
            ) == b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"
            if how == "lost":
                one.bench.link.abort(ConnectionAbortedError("cut"))
            else:
                await one.bench.peer.send(pair.fin(stream) if how == "fin" else pair.reset(stream))
            assert await local.to_end() == (b"", End.RESET)
            if how == "fin":
                await one.bench.peer.send(pair.reset(stream))

    run(main())


def test_an_answer_that_ends_with_its_connection(run: Run) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            await local.send(GET % 1)
            stream = await one.asked()
            await one.answer(stream, b"HTTP/1.0 200 OK\r\n\r\nall that", b" there is")
            await one.bench.peer.send(pair.fin(stream))
            assert await local.to_end() == (b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nall that there is", End.EOF)

    run(main())


@pytest.mark.parametrize("who", ["visitor", "target"])
def test_who_wants_no_more_requests_ends_in_order(run: Run, who: str) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            close = b"Connection: close\r\n"
            await local.send(b"GET / HTTP/1.1\r\nHost: a.example\r\n" + (close if who == "visitor" else b"") + b"\r\n")
            stream = await one.asked(close if who == "visitor" else b"\r\n\r\n")
            await one.answer(
                stream, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + (close if who == "target" else b"") + b"\r\nok"
            )
            assert await local.to_end() == (
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
                End.EOF,
            )
            assert (await one.bench.peer.half(stream))[1] == Kind.FIN
            await one.bench.peer.send(pair.fin(stream))

    run(main())


def test_a_target_may_end_an_idle_connection(run: Run) -> None:
    """The visitor's goes on, and its next request has a new one."""

    async def main() -> None:
        async with front() as (local, one, _):
            for end in (pair.fin, pair.reset):
                await local.send(GET % 1)
                stream = await one.asked()
                await one.answer(stream, OK)
                assert await local.read(len(OK)) == OK
                await one.bench.peer.send(end(stream))
                await until(lambda: one.streams[-1].recv.value in ("ended", "reset"), "its end has arrived")
                if end is pair.fin:
                    await one.bench.peer.send(pair.reset(stream))
            await local.send(GET % 2)
            await one.answer(await one.asked(b"GET /2 "), OK)
            assert await local.read(len(OK)) == OK
            assert len(one.streams) == 3

    run(main())


def test_interim_answers_and_those_to_head(run: Run) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            await local.send(b"HEAD / HTTP/1.1\r\nHost: a.example\r\n\r\n")
            stream = await one.asked(b"HEAD / ")
            await one.answer(
                stream, b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"
            )
            assert await head_of(local) == b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
            assert await head_of(local) == b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"
            await local.send(GET % 2)
            await one.asked(b"GET /2 ", stream=stream)
            await one.answer(stream, OK)
            assert await local.read(len(OK)) == OK

    run(main())


def test_a_visitor_that_sends_no_more_gets_its_answer(run: Run) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            await local.send(GET % 1)
            local.eof()
            stream = await one.asked()
            await turns(10)
            await one.answer(stream, OK)
            assert await local.to_end() == (OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), End.EOF)
            assert (await one.bench.peer.half(stream))[1] == Kind.FIN
            await one.bench.peer.send(pair.fin(stream))

    run(main())


def test_half_a_request_ends_with_its_visitor(run: Run) -> None:
    """Nobody waits for the rest of a body, and the target does not take what there is for all of it."""

    async def main() -> None:
        async with front() as (local, one, _):
            await local.send(b"PUT / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 9\r\n\r\nhalf")
            stream = await one.asked()
            local.eof()
            assert (await one.bench.peer.half(stream))[1] == Kind.RESET
            assert await local.to_end() == (b"", End.RESET)

    run(main())


def test_a_bad_request_waits_for_the_answers_before_it(run: Run) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            await local.send(GET % 1 + b"GET / HTTP/1.1\r\nHost: c.example\r\n\r\n" + GET % 3)
            stream = await one.asked(b"GET /1 ")
            await turns(10)
            assert local.quiet()
            await one.answer(stream, OK)
            raw, end = await local.to_end()
            assert raw.startswith(OK + b"HTTP/1.1 404 ") and raw.count(b"HTTP/1.1") == 2 and end is End.EOF
            assert len(one.streams) == 1

    run(main())


@pytest.mark.parametrize("early", [False, True])
def test_a_body_that_is_none(run: Run, early: bool) -> None:
    """The target never gets it whole, and the visitor is told, if it has not been told something else already."""

    async def main() -> None:
        async with front() as (local, one, _):
            head = b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n"
            await local.send(head + b"3\r\nabc\r\n")
            stream = await one.asked()
            if early:
                await one.answer(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
                await head_of(local)
                await local.read(4)
            await local.send(b"x\r\n\r\n")
            assert (await one.bench.peer.half(stream))[1] == Kind.RESET
            raw, end = await local.to_end()
            assert (raw[:13], end) == ((b"", End.RESET) if early else (b"HTTP/1.1 400 ", End.EOF))

    run(main())


def test_a_request_that_met_the_end_of_an_idle_connection_is_sent_once_more(run: Run) -> None:
    """But not one that may have done something, nor twice."""

    async def main() -> None:
        async with front() as (local, one, _):
            await local.send(GET % 1)
            stream = await one.asked()
            await one.answer(stream, OK)
            await local.read(len(OK))
            await local.send(GET % 2)
            await one.asked(b"GET /2 ", stream=stream)
            await one.bench.peer.send(pair.reset(stream))
            second = await one.asked(b"GET /2 ")
            assert second != stream
            await one.answer(second, OK)
            assert await local.read(len(OK)) == OK
            await local.send(b"DELETE / HTTP/1.1\r\nHost: a.example\r\n\r\n")
            await one.asked(b"DELETE / ", stream=second)
            await one.bench.peer.send(pair.reset(second))
            raw, _ = await local.to_end()
            assert raw.startswith(b"HTTP/1.1 502 ") and len(one.streams) == 2

    run(main())


def test_a_first_request_is_never_sent_twice(run: Run) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            await local.send(GET % 1)
            stream = await one.asked()
            await one.bench.peer.send(pair.reset(stream))
            raw, _ = await local.to_end()
            assert raw.startswith(b"HTTP/1.1 502 ") and len(one.streams) == 1

    run(main())


def test_a_page_for_head_has_no_body(run: Run) -> None:
    async def main() -> None:
        async with front() as (local, _one, _two):
            await local.send(b"HEAD / HTTP/1.1\r\nHost: c.example\r\n\r\n")
            raw, _ = await local.to_end()
            assert raw.startswith(b"HTTP/1.1 404 ") and raw.endswith(b"\r\n\r\n") and raw.count(b"\r\n\r\n") == 1

    run(main())


def test_a_service_that_is_withdrawn_ends_what_is_idle(run: Run) -> None:
    """The visitor stays; what it has asked for is answered first."""

    async def main() -> None:
        async with front() as (local, one, _):
            await local.send(GET % 1)
            stream = await one.asked()
            (user,) = one.users
            user.on_withdrawn()
            await one.answer(stream, OK)
            assert await local.read(len(OK)) == OK
            assert one.users == {user}
            user.on_withdrawn()
            assert (await one.bench.peer.half(stream))[1] == Kind.FIN
            await one.bench.peer.send(pair.fin(stream))
            assert not one.users and local.quiet()
            await local.send(GET % 2)
            await one.answer(await one.asked(b"GET /2 "), OK)
            assert await local.read(len(OK)) == OK

    run(main())


def test_slow_answers_do_not_look_like_silence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a body moves, the patience for the head of its answer begins anew."""
    monkeypatch.setattr(visitor_module, "ANSWER_TIME", 0.1)

    async def main() -> None:
        async with front() as (local, one, _):
            await local.send(b"PUT / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 8\r\n\r\n")
            stream = await one.asked()
            for _ in range(8):
                await asyncio.sleep(0.04)
                await local.send(b"x")
            await one.bench.peer.data(stream, 8)
            await one.answer(stream, OK)
            assert await local.read(len(OK)) == OK

    run(main())


def test_drops_of_a_head_do_not_buy_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visitor_module, "HEAD_TIME", 0.1)

    async def main() -> None:
        async with front() as (local, one, _):
            begun = asyncio.get_running_loop().time()
            for byte in GET % 1:
                await local.send(bytes([byte]))
                await asyncio.sleep(0.02)
                if not local.quiet():
                    break
            assert 0.08 < asyncio.get_running_loop().time() - begun < 0.4
            raw, _ = await local.to_end()
            assert raw.startswith(b"HTTP/1.1 408 ") and not one.streams

    run(main())


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: c.example\r\n\r\n", 404),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nHost: a.example\r\nX: " + b"y" * 20_000, 431),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
    ],
)
def test_what_cannot_be_served_is_a_page(run: Run, raw: bytes, status: int) -> None:
    async def main() -> None:
        async with front() as (local, one, two):
            await local.send(raw)
            answer, end = await local.to_end()
            assert answer.startswith(b"HTTP/1.1 %d " % status) and end is End.EOF
            assert not one.streams and not two.streams

    run(main())


def test_a_service_that_is_full(run: Run) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            one.full = True
            await local.send(GET % 1)
            answer, end = await local.to_end()
            assert answer.startswith(b"HTTP/1.1 503 ") and end is End.EOF

    run(main())


@pytest.mark.parametrize(("raw", "answer"), [(b"", b""), (b"GET / HT", b"HTTP/1.1 408 "), (GET % 1, b"HTTP/1.1 504 ")])
def test_nobody_waits_for_ever(run: Run, monkeypatch: pytest.MonkeyPatch, raw: bytes, answer: bytes) -> None:
    for name in ("HEAD_TIME", "ANSWER_TIME"):
        monkeypatch.setattr(visitor_module, name, 0.05)

    async def main() -> None:
        async with front() as (local, one, _):
            if raw:
                await local.send(raw)
            said, end = await local.to_end()
            assert said[:13] == answer and end is End.EOF
            if one.streams:
                await one.asked()
                await one.bench.peer.send(pair.reset(one.streams[0].id))

    run(main())


def test_requests_behind_an_end_are_answered_too(run: Run) -> None:
    """A visitor asks two services in one breath, and says that this is all."""

    async def main() -> None:
        async with front() as (local, one, two):
            await local.send(GET % 1 + GET.replace(b"a.", b"b.") % 2 + GET % 3)
            local.eof()
            stream = await one.asked(b"GET /1 ")
            await turns(10)
            await one.answer(stream, OK)
            second = await two.asked(b"GET /2 ")
            await two.answer(second, OK)
            third = await one.asked(b"GET /3 ")
            await one.answer(third, OK)
            raw, end = await local.to_end()
            assert raw.count(b"HTTP/1.1 200 OK") == 3 and end is End.EOF
            await one.bench.peer.send(pair.fin(stream), pair.fin(third))
            await two.bench.peer.send(pair.fin(second))

    run(main())


def test_a_tunnel_that_is_full_holds_requests_back(run: Run) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            await local.send(GET % 1)
            stream = await one.asked()
            link = one.bench.link
            link.blocked = True
            await local.send(GET % 2)
            await turns()
            waiting = len(link._pending)
            await local.send((GET % 3) * 100)
            await turns()
            assert len(link._pending) == waiting, "what comes then is not read"
            link._unblock()
            await one.asked(b"GET /2 ", stream=stream)

    run(main())


def test_nothing_is_read_behind_the_last_request(run: Run) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            close = b"POST / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody"
            await local.send(close + GET % 2)
            stream = await one.asked(b"POST / ")
            await one.answer(stream, OK)
            raw, end = await local.to_end()
            assert raw.count(b"HTTP/1.1") == 1 and raw.endswith(b"\r\n\r\nok") and end is End.EOF
            assert (await one.bench.peer.half(stream)) == (b"body", Kind.FIN, None)
            await one.bench.peer.send(pair.fin(stream))

    run(main())


def test_an_upgrade_that_met_the_end_of_an_idle_connection_is_asked_for_once_more(run: Run) -> None:
    async def main() -> None:
        async with front() as (local, one, _):
            await local.send(GET % 1)
            stream = await one.asked()
            await one.answer(stream, OK)
            await local.read(len(OK))
            await local.send(b"GET /ws HTTP/1.1\r\nHost: a.example\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nhello")
            await one.asked(b"GET /ws ", stream=stream)
            await one.bench.peer.send(pair.reset(stream))
            second = await one.asked(b"GET /ws ")
            assert second != stream
            await one.answer(second, b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
            await head_of(local)
            assert await one.bench.peer.data(second, 5) == b"hello"
            await one.bench.peer.send(pair.reset(second))
            assert (await local.to_end())[1] is End.RESET

    run(main())
