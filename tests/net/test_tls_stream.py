"""A stream under TLS between an edge's socket and a TLS server that is played by hand: what is whole stays whole, at any credit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from fastrelay.errors import Code
from fastrelay.mux.stream import Nothing, Stream
from fastrelay.net.edge import Edge
from fastrelay.net.tls_stream import start_tls
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.support import pair
from tests.support.certificates import Authority
from tests.support.peers import End
from tests.support.tls_target import TlsTarget
from tests.support.tunnel import Bench, Local, turns, until

HOST = "127.0.0.1"
PLENTY = 1 << 40


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    authority = Authority(tmp_path_factory.mktemp("ca"))
    authority.issue("target", host=HOST)
    return authority


def client_context(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.path))


class Under:
    """What `start_tls` told."""

    def __init__(self, bench: Bench, edge: Edge, local: Local, stream: Stream) -> None:
        self.bench, self.edge, self.local, self.stream = bench, edge, local, stream
        self.told: list[tuple[Code, str]] = []

    def done(self, stream: Stream | None, code: Code, why: str) -> None:
        self.told.append((code, why))
        if stream is None:
            self.edge.refuse()
        else:
            self.edge.join(stream, self.bench.link)


@contextlib.asynccontextmanager
async def begun(
    authority: Authority, *, credit: int = PLENTY, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, host: str = HOST
) -> AsyncIterator[tuple[Under, TlsTarget, Callable[[], None]]]:
    async with Bench() as bench:
        edge, local = await bench.edge()
        stream = bench.open()
        number = (await bench.peer.frame(Kind.OPEN)).stream
        await bench.peer.send(pair.accept(number, credit))
        await until(lambda: stream.recv.value == "open", "ACCEPT has arrived")
        under = Under(bench, edge, local, stream)
        cancel = start_tls(stream, bench.link, client_context(authority), host, under.done)
        yield under, TlsTarget(bench.peer, number, authority, version), cancel


both_versions = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])


@both_versions
def test_bytes_pass_both_ways_and_each_way_ends_by_itself(
    run: Run, authority: Authority, version: ssl.TLSVersion
) -> None:
    async def main() -> None:
        async with begun(authority, version=version) as (under, target, _):
            await target.shake()
            await until(lambda: under.told, "the handshake is done")
            assert under.told == [(Code.NO_ERROR, "")]
            await under.local.send(b"a question")
            assert await target.read(10) == b"a question"
            await target.send(b"an answer")
            assert await under.local.read(9) == b"an answer"
            await target.close()
            await under.local.send(b"another")  # behind their end
            assert await under.local.to_end() == (b"", End.EOF)
            under.local.eof()
            while target.end is None:
                await target.more()
            assert target.end == Kind.FIN
            await under.bench.gone()

    run(main())


def test_this_side_may_end_first(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with begun(authority) as (under, target, _):
            await target.shake()
            await under.local.send(b"a question")
            under.local.eof()
            assert await target.read(10) == b"a question"
            while target.end is None:
                await target.more()
            await target.send(bytes(100_000))
            await target.send(b"last")
            await target.close()
            raw, end = await under.local.to_end()
            assert (len(raw), raw[-4:], end) == (100_004, b"last", End.EOF)
            await under.bench.gone()

    run(main())


@pytest.mark.parametrize("step", [7, 37, 4096])
def test_any_credit_carries_everything(run: Run, authority: Authority, step: int) -> None:
    """Also less of it than encryption adds to a byte."""
    size = 1000 if step == 7 else 50_000

    async def main() -> None:
        data = os.urandom(size)
        async with begun(authority, credit=step) as (under, target, _):
            limit = step

            def grant() -> bytes:
                nonlocal limit
                limit += step
                return pair.window(target.number, limit)

            target.extra = grant

            async def send() -> None:
                await under.local.send(data)
                under.local.eof()

            sending = asyncio.create_task(send())
            await target.shake()
            assert await target.read(size) == data
            await sending
            while target.end is None:
                await target.more()
            assert target.end == Kind.FIN
            await target.close()
            assert await under.local.to_end() == (b"", End.EOF)

    run(main())


class Keeper(Nothing):
    """An outlet that takes nothing any further."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.kept = 0

    def deliver(self, piece: memoryview) -> None:
        self.kept += len(piece)
        self.stream.queued = self.kept


def test_what_is_kept_is_not_taken_and_what_was_taken_stays_so(run: Run, authority: Authority) -> None:
    """Records come in pieces: half of one counts as taken, and must not count as kept when it is whole (protocol.md section 8.1)."""

    async def main() -> None:
        async with begun(authority) as (under, target, _):
            await target.shake()
            await until(lambda: under.told, "the handshake is done")
            stream, joined = under.stream, under.edge.stream
            assert joined is not None
            keeper = Keeper(joined)
            joined.attach(keeper)
            await turns(10)  # tickets
            taken = [0]
            target.tls.write(os.urandom(60_000))
            raw = target.outgoing.read()
            before = stream.received
            for at in range(0, len(raw), 5000):
                await target.peer.send(pair.data(target.number, raw[at : at + 5000]))
                end = before + min(at + 5000, len(raw))
                await until(lambda end=end: stream.received == end, "it has arrived")  # type: ignore[misc]
                taken.append(stream.received - stream.queued)
            assert keeper.kept == 60_000
            assert taken == sorted(taken)
            assert stream.queued > 60_000 - 16_384  # a record
            under.edge.refuse()
            await target.peer.send(pair.reset(target.number))

    run(main())


@pytest.mark.parametrize("host", ["127.0.0.2", "target.example"])
def test_a_certificate_for_another_host_is_not_accepted(run: Run, authority: Authority, host: str) -> None:
    async def main() -> None:
        async with begun(authority, host=host) as (under, target, _):
            await under.local.send(b"secret")
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await target.serve()
            await until(lambda: under.told, "the handshake is over")
            ((code, why),) = under.told
            assert code is Code.DENIED and "its certificate is not accepted" in why and "ismatch" in why
            await under.local.to_end()

    run(main())


def test_a_certificate_that_nobody_vouches_for_is_not_accepted(run: Run, authority: Authority, tmp_path: Path) -> None:
    async def main() -> None:
        other = Authority(tmp_path)
        other.issue("target", host=HOST)
        async with begun(authority) as (under, _, _):
            target = TlsTarget(under.bench.peer, under.stream.id, other)
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await target.serve()
            await until(lambda: under.told, "the handshake is over")
            assert under.told[0][0] is Code.DENIED

    run(main())


@pytest.mark.parametrize("how", ["garbage", "end", "reset", "lost", "stop"])
def test_a_handshake_that_fails_is_told(run: Run, authority: Authority, how: str) -> None:
    async def main() -> None:
        async with begun(authority) as (under, target, _):
            number = target.number
            if how == "lost":
                under.bench.link.abort(ConnectionAbortedError("cut"))
            else:
                await target.peer.send(
                    {
                        "garbage": pair.data(number, b"HTTP/1.1 400 Bad Request\r\n\r\n"),
                        "end": pair.fin(number),
                        "reset": pair.reset(number),
                        "stop": pair.stop(number),
                    }[how]
                )
            await until(lambda: under.told, "it is told")
            await turns()
            ((code, why),) = under.told
            assert code is (Code.CONNECTION_RESET if how in ("reset", "lost") else Code.PROTOCOL)
            assert bool(why) is (code is Code.PROTOCOL)
            assert under.stream.send.value in ("reset", "ended")
            await target.peer.send(pair.reset(number))

    run(main())


def test_a_handshake_may_be_given_up(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with begun(authority) as (under, target, cancel):
            cancel()
            with pytest.raises(ConnectionResetError, match="CANCEL"):
                await target.shake()
            assert not under.told
            under.edge.refuse()
            await target.peer.send(pair.reset(target.number))

    run(main())


@pytest.mark.parametrize("how", ["end", "garbage"])
def test_an_end_that_tls_does_not_know_of_is_a_reset(run: Run, authority: Authority, how: str) -> None:
    async def main() -> None:
        async with begun(authority) as (under, target, _):
            await target.shake()
            await target.send(b"half")
            assert await under.local.read(4) == b"half"
            await target.peer.send(pair.fin(target.number) if how == "end" else pair.data(target.number, b"x" * 100))
            assert await under.local.to_end() == (b"", End.RESET)
            if how == "garbage":
                await target.peer.send(pair.reset(target.number))

    run(main())


def test_a_reset_is_a_reset_under_tls(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with begun(authority) as (under, target, _):
            await target.shake()
            await target.send(b"last")
            await target.peer.send(pair.reset(target.number))
            assert await under.local.to_end() == (b"last", End.RESET)

    run(main())
