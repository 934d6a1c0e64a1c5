"""Programs at the local proxy, between real sockets and a tunnel whose far end is played by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from fastrelay import wire
from fastrelay.errors import Code
from fastrelay.front import proxy as proxy_module
from fastrelay.front.forward import ForwardVisitor
from fastrelay.front.opener import Opener
from fastrelay.front.proxy import ProxyVisitor
from fastrelay.mux.stream import Outlet, Stream
from fastrelay.net.edge import Edge
from fastrelay.net.link import Link
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.support import pair
from tests.support.peers import End
from tests.support.tunnel import Bench, Local, tcp_pair, turns

HELLO = b"\x05\x01\x00"
SOCKS = b"\x05\x01\x00\x03\x0bexample.com\x01\xbb"
CONNECT = b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n"
GRANTED = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Tunnel:
    """An opener with one tunnel."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.here = True
        self.asked: list[tuple[str, str]] = []
        self.misses: list[tuple[str, Code]] = []

    def open(self, outlet: Outlet, target: str, visitor: str) -> tuple[Stream, Link] | None:
        self.asked.append((target, visitor))
        stream = self.bench.session.open(outlet, 1, visitor) if self.here else None
        return None if stream is None else (stream, self.bench.link)

    def missed(self, target: str, visitor: str, code: Code) -> None:
        self.misses.append((target, code))


Make = Callable[[Bench, Opener], Edge]


@contextlib.asynccontextmanager
async def door(
    make: Make = lambda bench, opener: ProxyVisitor(bench.runtime, opener),
) -> AsyncIterator[tuple[Local, Bench, Tunnel]]:
    async with Bench(theirs=wire.Settings(early=65_536)) as bench:
        tunnel = Tunnel(bench)
        outside, inside = tcp_pair()
        await bench.loop.connect_accepted_socket(lambda: make(bench, tunnel), inside)
        local = Local(outside)
        bench.locals.append(local)
        yield local, bench, tunnel


async def asked(local: Local, bench: Bench, how: str, behind: bytes = b"") -> int:
    """Ask for example.com:443; the stream that was opened."""
    if how == "socks":
        await local.send(HELLO)
        assert await local.read(2) == b"\x05\x00"
        await local.send(SOCKS + behind)
    else:
        await local.send(CONNECT + behind)
    return (await bench.peer.frame(Kind.OPEN)).stream


both = pytest.mark.parametrize("how", ["socks", "connect"])


@both
@pytest.mark.parametrize("behind", [b"", b"early bird"])
def test_bytes_flow_when_the_target_is_there(run: Run, how: str, behind: bytes) -> None:
    async def main() -> None:
        async with door() as (local, bench, tunnel):
            stream = await asked(local, bench, how, behind)
            assert tunnel.asked == [("example.com:443", "{}:{}".format(*local.sock.getsockname()))]
            if behind:
                assert await bench.peer.data(stream, len(behind)) == behind
            await turns(10)
            assert local.quiet()  # nothing is promised before
            await bench.peer.send(pair.accept(stream), pair.data(stream, b"220 hello"))
            answer = GRANTED if how == "socks" else CONNECTED
            assert await local.read(len(answer) + 9) == answer + b"220 hello"
            await local.send(b"a question")
            local.eof()
            assert await bench.peer.half(stream) == (b"a question", Kind.FIN, None)
            await bench.peer.send(pair.fin(stream, b"an answer"))
            assert await local.to_end() == (b"an answer", End.EOF)

    run(main())


@pytest.mark.parametrize(
    ("code", "socks", "status"),
    [
        (Code.REFUSED, 5, 502),
        (Code.UNREACHABLE, 4, 502),
        (Code.DIAL_TIMEOUT, 4, 504),
        (Code.DENIED, 2, 403),
        (Code.NO_SERVICE, 3, 502),
        (Code.LIMIT, 1, 502),
    ],
)
@both
def test_a_refusal_is_told(run: Run, how: str, code: Code, socks: int, status: int) -> None:
    async def main() -> None:
        async with door() as (local, bench, _):
            stream = await asked(local, bench, how)
            await bench.peer.send(pair.reset(stream, code))
            raw, end = await local.to_end()
            assert end is End.EOF
            assert raw[:2] == bytes((5, socks)) if how == "socks" else raw.startswith(b"HTTP/1.1 %d " % status)

    run(main())


@both
def test_a_lost_tunnel_is_told_before_and_a_reset_after(run: Run, how: str) -> None:
    async def main(after: bool) -> None:
        async with door() as (local, bench, _):
            stream = await asked(local, bench, how)
            if after:
                await bench.peer.send(pair.accept(stream))
                await local.read(len(GRANTED if how == "socks" else CONNECTED))
            bench.link.abort(ConnectionAbortedError("cut"))
            raw, end = await local.to_end()
            assert (end is End.RESET and not raw) if after else (end is End.EOF and raw)

    run(main(False))
    run(main(True))


@both
def test_a_reset_after_the_answer_is_a_reset(run: Run, how: str) -> None:
    async def main() -> None:
        async with door() as (local, bench, _):
            stream = await asked(local, bench, how)
            await bench.peer.send(pair.accept(stream), pair.data(stream, b"x"), pair.reset(stream))
            raw, end = await local.to_end()
            assert raw.endswith(b"x") and end is End.RESET

    run(main())


@both
def test_without_a_tunnel_it_is_told(run: Run, how: str) -> None:
    async def main() -> None:
        async with door() as (local, _, tunnel):
            tunnel.here = False
            await local.send(HELLO + SOCKS if how == "socks" else CONNECT)
            raw, end = await local.to_end()
            assert end is End.EOF and raw[:4] in (b"\x05\x00\x05\x01", b"HTTP")

    run(main())


@pytest.mark.parametrize("raw", [b"\x05\x01\x02", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x04\x01", b"SSH-2.0-x\r\n"])
def test_nonsense_is_answered_and_opens_nothing(run: Run, raw: bytes) -> None:
    async def main() -> None:
        async with door() as (local, _, tunnel):
            await local.send(raw)
            said, end = await local.to_end()
            assert said and end is End.EOF and not tunnel.asked

    run(main())


def test_who_says_nothing_is_ended(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_module, "ASK_TIME", 0.05)

    async def main() -> None:
        async with door() as (local, _, tunnel):
            await local.send(b"\x05")
            assert await local.to_end() == (b"", End.RESET) and not tunnel.asked

    run(main())


def test_many_who_dribble_hold_nobody_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then gains no time; who asks in one go is served meanwhile."""
    monkeypatch.setattr(proxy_module, "ASK_TIME", 0.3)

    async def main() -> None:
        async with door() as (local, bench, tunnel):
            slow = []
            for number in range(100):
                outside, inside = tcp_pair()
                await bench.loop.connect_accepted_socket(lambda: ProxyVisitor(bench.runtime, tunnel), inside)
                bench.locals.append(one := Local(outside))
                slow.append((one, HELLO + SOCKS if number % 2 else CONNECT))
            start = bench.loop.time()
            for at in range(8):
                for one, words in slow:
                    await one.send(words[at : at + 1])
                await asyncio.sleep(0.02)
            stream = await asked(local, bench, "connect")
            await bench.peer.send(pair.accept(stream))
            assert await local.read(len(CONNECTED)) == CONNECTED
            for one, _ in slow:
                said, end = await one.to_end()
                assert end is End.RESET and said in (b"", b"\x05\x00")
            assert 0.3 <= bench.loop.time() - start < 2 and len(tunnel.asked) == 1
            local.eof()
            await bench.peer.send(pair.fin(stream))
            assert (await local.to_end())[1] is End.EOF

    run(main())


def test_who_leaves_first_takes_the_stream_along(run: Run) -> None:
    async def main() -> None:
        async with door() as (local, bench, _):
            stream = await asked(local, bench, "socks")
            local.reset()
            assert await bench.peer.half(stream) == (b"", Kind.RESET, Code.CONNECTION_RESET)
            await bench.peer.send(pair.reset(stream))

    run(main())


def test_a_forward_has_one_target(run: Run) -> None:
    async def main() -> None:
        async with door(lambda bench, opener: ForwardVisitor(bench.runtime, opener, "db")) as (local, bench, tunnel):
            stream = (await bench.peer.frame(Kind.OPEN)).stream
            assert [target for target, _ in tunnel.asked] == ["db"]
            await local.send(b"hello")
            assert await bench.peer.data(stream, 5) == b"hello"
            await bench.peer.send(pair.reset(stream, Code.NO_SERVICE))
            assert await local.to_end() == (b"", End.RESET)

    run(main())


def test_a_forward_without_a_tunnel_is_reset(run: Run) -> None:
    async def main() -> None:
        def make(bench: Bench, opener: Opener) -> Edge:
            assert isinstance(opener, Tunnel)
            opener.here = False
            return ForwardVisitor(bench.runtime, opener, "db")

        async with door(make) as (local, _, _):
            await asyncio.sleep(0)
            assert await local.to_end() == (b"", End.RESET)

    run(main())
