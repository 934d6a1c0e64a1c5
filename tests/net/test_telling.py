"""Every joint of a telling edge is told once, with the first cause and what was carried."""

from __future__ import annotations

import asyncio
import socket
from typing import NamedTuple

import pytest

from fastrelay import wire
from fastrelay.errors import Code, ProtocolError
from fastrelay.mux.stream import Stream
from fastrelay.net import edge as edge_module
from fastrelay.net.telling import TellingEdge
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.support import pair
from tests.support.peers import End
from tests.support.tunnel import Bench, Local, tcp_pair, turns, until


class Parted(NamedTuple):
    cause: str
    sent: int
    received: int


class Told(TellingEdge):
    near, far = "near-reset", "far-reset"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.runtime)
        self.joined: list[Stream] = []
        self.parted: list[Parted] = []
        self.seconds = -1.0

    def on_joined(self, stream: Stream) -> None:
        self.joined.append(stream)

    def on_parted(self, stream: Stream, cause: str, seconds: float) -> None:
        assert self.joined == [stream]
        self.parted.append(Parted(cause, stream.sent, stream.received))
        self.seconds = seconds


async def told(bench: Bench, ends: tuple[socket.socket, socket.socket] | None = None) -> tuple[Told, Local]:
    outside, inside = ends or tcp_pair()
    edge = Told(bench)
    await bench.loop.connect_accepted_socket(lambda: edge, inside)
    local = Local(outside)
    bench.locals.append(local)
    return edge, local


async def joined(
    bench: Bench, credit: int = 1 << 20, ends: tuple[socket.socket, socket.socket] | None = None
) -> tuple[Told, Local, Stream]:
    edge, local = await told(bench, ends)
    stream = bench.open()
    edge.join(stream, bench.link)
    await bench.peer.frame(Kind.OPEN)
    await bench.peer.send(pair.accept(stream.id, credit))
    await until(lambda: stream.recv.value == "open", "ACCEPT has arrived")
    assert edge.joined == [stream] and edge.parted == []
    return edge, local, stream


async def exchange(bench: Bench, local: Local, stream: Stream) -> None:
    """5 bytes out of the socket, 7 into it."""
    await local.send(b"12345")
    assert await bench.peer.data(stream.id, 5) == b"12345"
    await bench.peer.send(pair.data(stream.id, b"1234567"))
    assert await local.read(7) == b"1234567"


def test_fin(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            edge, local, stream = await joined(bench)
            await exchange(bench, local, stream)
            local.eof()
            await bench.peer.send(pair.fin(stream.id, b"8"))
            await bench.gone()
            assert edge.parted == [("fin", 5, 8)] and 0 < edge.seconds < 10
            assert await local.to_end() == (b"8", End.EOF)

    run(main())


@pytest.mark.parametrize("ended", [False, True], ids=["open", "after its end"])
def test_a_reset_of_this_side(run: Run, ended: bool) -> None:
    async def main() -> None:
        async with Bench() as bench:
            edge, local, stream = await joined(bench)
            await exchange(bench, local, stream)
            if ended:
                local.eof()
                assert await bench.peer.half(stream.id) == (b"", Kind.FIN, None)
            local.reset()
            await bench.gone()
            assert edge.parted == [("near-reset", 5, 7)]

    run(main())


CODES = {
    Code.CONNECTION_RESET: "far-reset",
    Code.REFUSED: "refused",
    Code.UNREACHABLE: "unreachable",
    Code.DIAL_TIMEOUT: "dial-timeout",
    Code.NO_SERVICE: "no-service",
    Code.LIMIT: "limit",
    Code.TIMEOUT: "timeout",
    Code.SHUTDOWN: "shutdown",
    Code.CANCEL: "cancel",
    Code.NO_ERROR: "cancel",
    Code.INTERNAL: "internal",
    12345: "internal",
}


def test_a_reset_of_the_other_side_has_its_codes_name(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            for code, cause in CODES.items():
                edge, local, stream = await joined(bench)
                await exchange(bench, local, stream)
                await bench.peer.send(pair.reset(stream.id, code))
                await bench.gone()
                assert edge.parted == [(cause, 5, 7)], code

    run(main())


def test_the_first_cause_counts(run: Run) -> None:
    """A socket that was reset while its input waits for credit, and a stream that is reset meanwhile; and the other way round."""

    async def main() -> None:
        async with Bench() as bench:
            edge, local, stream = await joined(bench, credit=10)
            await local.send(b"z" * 50)
            await until(lambda: edge._held, "reading is paused")
            local.reset()
            await until(lambda: edge._failed, "the reset is known", 1)
            await bench.peer.send(pair.reset(stream.id, Code.TIMEOUT))
            await bench.gone()
            assert edge.parted == [("near-reset", 10, 0)]

            other, local, stream = await joined(bench)
            await bench.peer.send(pair.data(stream.id, b"last words"), pair.reset(stream.id))
            await until(lambda: other._cause, "the reset has arrived")
            local.reset()
            await bench.gone()
            assert other.parted == [("far-reset", 0, 10)]

    run(main())


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConnectionAbortedError("nothing heard"), "tunnel-lost"),
        (ProtocolError(Code.SUPERSEDED, "a newer session"), "superseded"),
        (ProtocolError(Code.SHUTDOWN, "the relay has ended"), "shutdown"),
    ],
    ids=str,
)
def test_a_lost_tunnel_has_the_links_cause(run: Run, error: Exception, cause: str) -> None:
    async def main() -> None:
        async with Bench() as bench:
            edge, local, stream = await joined(bench)
            await exchange(bench, local, stream)
            bench.link.abort(error)
            assert edge.parted == [(cause, 5, 7)], "before the tunnel's own end is told"
            assert await local.to_end() == (b"", End.RESET)
            await bench.gone()
            assert len(edge.parted) == 1

    run(main())


def test_a_tunnel_that_ends_without_a_word(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            edge, _, _ = await joined(bench)
            bench.peer.close()
            await bench.gone()
            assert edge.parted == [("tunnel-lost", 0, 0)]

    run(main())


def test_what_nobody_wants_any_more(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_module, "DISCARD_TIME", 0.01)

    async def main() -> None:
        async with Bench() as bench:
            edge, _, stream = await joined(bench)
            await bench.peer.send(pair.stop(stream.id), pair.fin(stream.id))
            await bench.gone()
            assert edge.parted == [("timeout", 0, 0)]

    run(main())


def test_what_is_over_before_it_is_joined_is_told_as_well(run: Run) -> None:
    async def main() -> None:
        async with Bench(theirs=wire.Settings()) as bench:
            edge, local = await told(bench)
            local.reset()
            await until(lambda: edge._fd < 0, "the reset is known")
            stream = bench.open()
            edge.join(stream, bench.link)
            assert edge.joined == [stream] and edge.parted == [("near-reset", 0, 0)]

            other, _ = await told(bench)
            stream = bench.open()
            bench.link.abort(ConnectionAbortedError("the tunnel failed under OPEN"))
            other.join(stream, bench.link)
            assert other.joined == [stream] and other.parted == [("tunnel-lost", 0, 0)]
            await bench.gone()
            await turns()
            assert len(edge.parted) == len(other.parted) == 1

    run(main())


def test_who_is_not_joined_is_not_told(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            edge, local = await told(bench)
            edge.refuse()
            assert await local.to_end() == (b"", End.RESET)
            await bench.gone()
            assert not edge.joined and not edge.parted

    run(main())


def test_many_at_any_moment(run: Run) -> None:
    """Whatever ends first: each is told once."""

    async def main() -> None:
        async with Bench() as bench:
            made = [await joined(bench) for _ in range(24)]
            for number, (_, local, stream) in enumerate(made):
                if number % 2:
                    await local.send(b"x" * 1000)
                match number % 6:
                    case 0 | 3:
                        local.eof()
                        await bench.peer.send(pair.fin(stream.id))
                    case 1:
                        local.reset()
                    case 2:
                        await bench.peer.send(pair.reset(stream.id))
                    case 4:
                        local.reset()
                        await bench.peer.send(pair.reset(stream.id))
                if number % 3 == 0:
                    await asyncio.sleep(0)
            await turns()
            bench.link.abort(ConnectionAbortedError("the end of all"))
            await bench.gone()
            assert [len(edge.parted) for edge, _, _ in made] == [1] * len(made)
            causes = [edge.parted[0].cause for edge, _, _ in made]
            assert set(causes[5::6]) == {"tunnel-lost"} and set(causes[0::6]) == {"fin"}

    run(main())
