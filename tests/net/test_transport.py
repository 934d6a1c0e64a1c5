"""A stream as a transport of asyncio: each callback and each method, the other end played by hand; then two of them, and TLS between them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fastrelay import wire
from fastrelay.errors import Code
from fastrelay.mux.stream import Stream
from fastrelay.net import transport as transport_module
from fastrelay.net.link import Link
from fastrelay.net.transport import StreamTransport, start_tls, tls
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.support import need, pair
from tests.support.certificates import Authority
from tests.support.payload import Checker, Keystream
from tests.support.tunnel import Bench, turns, until

MUCH = 1 << 20
VISITOR = "192.0.2.9:51544"


@pytest.fixture(params=["uvloop", pytest.param("asyncio", marks=pytest.mark.slow)])
def loop_kind(request: pytest.FixtureRequest) -> str:
    """A transport asks no more of a loop than `call_soon`: which one it is matters little."""
    kind = str(request.param)
    if kind == "uvloop":
        need.uvloop()
    return kind


class Noted(asyncio.Protocol):
    """Writes down what it is told, and how it stands when it is: nothing comes before the beginning or after the end."""

    def __init__(self, *, stays: bool = True) -> None:
        self.transport: asyncio.Transport | None = None
        self.received = bytearray()
        self.eof = False
        self.lost: list[Exception | None] = []
        self.writing: list[str] = []
        self.pauses_at: int | None = None
        self._stays = stays

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert self.transport is None
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None and not self.lost and not self.eof
        assert type(data) is bytes and data
        self.received += data
        if self.pauses_at is not None and len(self.received) >= self.pauses_at:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        assert self.transport is not None and not self.lost and not self.eof
        self.eof = True
        return self._stays

    def pause_writing(self) -> None:
        self.writing.append("pause")

    def resume_writing(self) -> None:
        self.writing.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        assert self.transport is not None and not self.lost
        self.lost.append(exc)

    async def over(self) -> Exception | None:
        await until(lambda: self.lost, "connection_lost")
        return self.lost[0]


@contextlib.asynccontextmanager
async def opened(
    protocol: asyncio.BaseProtocol, *, accept: int | None = MUCH, early: int = 0
) -> AsyncIterator[tuple[Bench, StreamTransport, Stream]]:
    """A transport whose stream this side opened; the peer has accepted it and lets `accept` bytes come, or has not answered yet."""
    async with Bench(theirs=wire.Settings(early=early)) as bench:
        transport = StreamTransport(bench.runtime, protocol, {"service": "jobs"})
        stream = bench.session.open(transport, 1, VISITOR)
        assert stream is not None
        transport.join(stream, bench.link)
        assert (await bench.peer.frame(Kind.OPEN)).stream == stream.id
        if accept is not None:
            await bench.peer.send(pair.accept(stream.id, accept))
            assert await transport.accepted() is Code.NO_ERROR
        yield bench, transport, stream


async def ended(bench: Bench, stream: Stream) -> None:
    """Answer what is still to be answered: the stream is over and has let everything go."""
    await until(lambda: stream.ended, "the stream is over")


# --- a stream that this side opens ---------------------------------------------------------------------------------------


def test_bytes_go_both_ways_and_halves_end_on_their_own(run: Run) -> None:
    async def main() -> None:
        protocol = Noted()
        async with opened(protocol) as (bench, transport, stream):
            assert protocol.transport is transport and transport.get_extra_info("service") == "jobs"
            assert transport.get_protocol() is protocol and transport.can_write_eof() and not transport.is_closing()
            transport.write(b"a question")
            transport.writelines([b", ", bytearray(b"the"), memoryview(b" last")])
            transport.write_eof()
            assert await bench.peer.half(stream.id) == (b"a question, the last", Kind.FIN, None)
            await bench.peer.send(pair.data(stream.id, b"an answer "), pair.fin(stream.id, b"of two"))
            await until(lambda: protocol.eof, "EOF")
            assert protocol.received == b"an answer of two"
            assert not transport.is_closing() and not protocol.lost  # as with a socket: it is ours until we close it
            transport.close()
            assert await protocol.over() is None
            await ended(bench, stream)

    run(main())


def test_a_protocol_that_does_not_stay_is_closed_by_the_end_of_the_other_half(run: Run) -> None:
    async def main() -> None:
        protocol = Noted(stays=False)
        async with opened(protocol) as (bench, transport, stream):
            transport.write(b"last words")
            await bench.peer.send(pair.fin(stream.id, b"bye"))
            assert await bench.peer.half(stream.id) == (b"last words", Kind.FIN, None)
            assert await protocol.over() is None and protocol.received == b"bye" and transport.is_closing()

    run(main())


@pytest.mark.parametrize("code", [Code.REFUSED, Code.DIAL_TIMEOUT, Code.NO_ERROR])
def test_a_refusal_is_told_to_who_opened(run: Run, code: Code) -> None:
    async def main() -> None:
        protocol = Noted()
        async with opened(protocol, accept=None) as (bench, transport, stream):
            await bench.peer.send(pair.reset(stream.id, code))
            assert await transport.accepted() is (code or Code.CONNECTION_RESET)
            await turns()
            assert protocol.transport is None and not protocol.lost, "it was never connected"

    run(main())


def test_who_gives_up_waiting_resets_the_stream(run: Run) -> None:
    async def main() -> None:
        protocol = Noted()
        async with opened(protocol, accept=None) as (bench, transport, stream):
            waiting = asyncio.ensure_future(transport.accepted())
            await turns()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await bench.peer.half(stream.id) == (b"", Kind.RESET, Code.CANCEL)
            await bench.peer.send(pair.reset(stream.id))
            await ended(bench, stream)
            assert protocol.transport is None and not protocol.lost

    run(main())


def test_a_tunnel_that_is_lost_first_is_told_to_who_opened(run: Run) -> None:
    async def main() -> None:
        protocol = Noted()
        async with opened(protocol, accept=None) as (bench, transport, _):
            bench.link.abort(ConnectionAbortedError("cut"))
            assert await transport.accepted() is Code.CONNECTION_RESET
            late = StreamTransport(bench.runtime, protocol, {})
            assert bench.session.open(late, 1, VISITOR) is None
            assert protocol.transport is None

    run(main())


def test_early_bytes_leave_before_the_answer(run: Run) -> None:
    """`connection_made` comes with the answer, so it is what a protocol writes in there that meets the credit of both."""

    class Eager(Noted):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            assert self.transport is not None
            self.transport.write(b"at once")
            self.transport.write_eof()

    async def main() -> None:
        protocol = Eager()
        async with opened(protocol, early=3) as (bench, transport, stream):
            assert await bench.peer.half(stream.id) == (b"at once", Kind.FIN, None)
            transport.abort()
            assert await protocol.over() is None

    run(main())


# --- a stream that this side accepts -------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def came(
    protocol: asyncio.BaseProtocol, limit: int = MUCH
) -> AsyncIterator[tuple[Bench, StreamTransport, Stream]]:
    async with Bench() as bench:
        streams: list[Stream] = []
        transport = StreamTransport(bench.runtime, protocol, {})

        def take(stream: Stream, request: wire.Open) -> None:
            streams.append(stream)
            stream.accept()
            transport.join(stream, bench.link)

        bench.on_stream = take
        await bench.peer.send(pair.open_(1, limit), pair.data(1, b"early"))
        await bench.peer.frame(Kind.ACCEPT)
        assert await transport.accepted() is Code.NO_ERROR
        yield bench, transport, streams[0]


def test_a_stream_that_came_is_connected_with_what_it_says_first(run: Run) -> None:
    async def main() -> None:
        protocol = Noted()
        async with came(protocol) as (bench, transport, stream):
            await until(lambda: protocol.received == b"early", "early data")
            transport.write(b"hello")
            transport.close()
            transport.close()
            assert await bench.peer.half(stream.id) == (b"hello", Kind.FIN, None)
            assert await protocol.over() is None
            await bench.peer.send(pair.data(stream.id, b"nobody reads this"), pair.trunc(stream.id))
            await ended(bench, stream)
            assert protocol.received == b"early"

    run(main())


def test_a_tunnel_that_fails_under_the_acceptance_connects_nobody(run: Run) -> None:
    async def main() -> None:
        protocol = Noted()
        async with Bench() as bench:
            transport = StreamTransport(bench.runtime, protocol, {})

            def take(stream: Stream, request: wire.Open) -> None:
                stream.accept()
                bench.link.abort(ConnectionAbortedError("cut"))
                transport.join(stream, bench.link)

            bench.on_stream = take
            await bench.peer.send(pair.open_(1))
            await until(lambda: bench.closed, "the link has ended")
            assert await transport.accepted() is Code.CONNECTION_RESET
            await turns()
            assert protocol.transport is None and not protocol.lost and transport.is_closing()

    run(main())


# --- reading -----------------------------------------------------------------------------------------------------------


def test_credit_is_given_back_for_what_the_protocol_has_taken(run: Run) -> None:
    async def main() -> None:
        protocol = Noted()
        async with opened(protocol) as (bench, transport, stream):
            transport.pause_reading()
            assert not transport.is_reading()
            size = stream.recv_limit
            keys = Keystream(1)
            await bench.peer.send(pair.data(stream.id, keys.take(size)))
            await until(lambda: stream.received == size, "the window is full")
            assert stream.queued == size and not protocol.received
            transport.resume_reading()
            await until(lambda: len(protocol.received) == size, "all was given")
            Checker(1).feed(bytes(protocol.received))
            window = await bench.peer.frame(Kind.WINDOW)
            limit, consumed = wire.WINDOW.unpack(window.payload)
            assert consumed == size and limit > size and stream.queued == 0
            transport.abort()

    run(main())


def test_a_protocol_can_pause_in_the_middle_of_what_comes(run: Run) -> None:
    async def main() -> None:
        protocol = Noted()
        protocol.pauses_at = 1
        async with opened(protocol) as (bench, transport, stream):
            transport_module_most = transport_module._MOST
            keys, seen = Keystream(2), Checker(2)
            size = min(stream.recv_limit, 3 * transport_module_most // 4)
            await bench.peer.send(pair.data(stream.id, keys.take(size)))
            await until(lambda: protocol.received, "the first piece")
            await until(lambda: stream.received == size, "all of it")
            while len(protocol.received) < size:
                before = len(protocol.received)
                assert stream.queued == size - before
                transport.resume_reading()
                await until(lambda before=before: len(protocol.received) > before, "the next piece")  # type: ignore[misc]
            seen.feed(bytes(protocol.received))
            transport.abort()

    run(main())


def test_a_protocol_is_given_pieces(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "_MOST", 1000)

    async def main() -> None:
        protocol = Noted()
        protocol.pauses_at = 2500
        async with opened(protocol) as (bench, transport, stream):
            await bench.peer.send(pair.data(stream.id, bytes(4000)))
            await until(lambda: stream.received == 4000, "all of it")
            assert len(protocol.received) == 3000 and stream.queued == 1000
            protocol.pauses_at = None
            transport.resume_reading()
            transport.resume_reading()
            await bench.peer.send(pair.fin(stream.id, bytes(50)))
            await until(lambda: protocol.eof, "EOF")
            assert len(protocol.received) == 4050
            transport.abort()

    run(main())


def test_the_end_comes_behind_what_is_kept(run: Run) -> None:
    async def main() -> None:
        protocol = Noted()
        async with opened(protocol) as (bench, transport, stream):
            transport.pause_reading()
            await bench.peer.send(pair.fin(stream.id, b"the last"))
            await until(lambda: stream.received, "it has arrived")
            await turns()
            assert not protocol.eof and not protocol.received
            transport.resume_reading()
            await until(lambda: protocol.eof, "EOF")
            assert protocol.received == b"the last"
            transport.pause_reading()
            transport.resume_reading()
            await turns()  # a second EOF would fail in the protocol
            transport.abort()

    run(main())


def test_an_end_without_bytes_waits_for_a_paused_protocol_as_well(run: Run) -> None:
    async def main() -> None:
        protocol = Noted()
        async with opened(protocol) as (bench, transport, stream):
            transport.pause_reading()
            await bench.peer.send(pair.fin(stream.id))
            await until(lambda: stream.recv.value == "ended", "it has arrived")
            await turns()
            assert not protocol.eof
            transport.resume_reading()
            await until(lambda: protocol.eof, "EOF")
            transport.abort()

    run(main())


def test_a_buffered_protocol_is_read_into(run: Run) -> None:
    class Buffered(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.buffer = bytearray(10)
            self.received = bytearray()
            self.eof = False

        def get_buffer(self, sizehint: int) -> bytearray:
            assert sizehint > 0
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            assert 0 < nbytes <= 10
            self.received += self.buffer[:nbytes]

        def eof_received(self) -> bool:
            self.eof = True
            return False

    async def main() -> None:
        protocol = Buffered()
        async with opened(protocol) as (bench, _, stream):
            await bench.peer.send(pair.fin(stream.id, b"more than ten bytes"))
            assert await bench.peer.half(stream.id) == (b"", Kind.FIN, None)
            assert protocol.received == b"more than ten bytes" and protocol.eof

    run(main())


# --- resets ------------------------------------------------------------------------------------------------------------


def test_a_reset_is_told_as_one(run: Run) -> None:
    async def main() -> None:
        protocol = Noted()
        async with opened(protocol) as (bench, transport, stream):
            await bench.peer.send(pair.data(stream.id, b"last words"), pair.reset(stream.id))
            error = await protocol.over()
            assert isinstance(error, ConnectionResetError) and "reset" in str(error)
            assert protocol.received == b"last words" and not protocol.eof and transport.is_closing()
            transport.write(b"to nobody")
            transport.close()
            transport.abort()

    run(main())


def test_a_reset_comes_behind_what_is_kept(run: Run) -> None:
    async def main() -> None:
        protocol = Noted()
        async with opened(protocol) as (bench, transport, stream):
            transport.pause_reading()
            await bench.peer.send(pair.data(stream.id, b"last words"), pair.reset(stream.id))
            await until(transport.is_closing, "the reset has arrived")
            await turns()
            assert not protocol.lost
            transport.write(b"to nobody")
            transport.resume_reading()
            assert isinstance(await protocol.over(), ConnectionResetError)
            assert protocol.received == b"last words"

    run(main())


def test_a_reset_does_not_wait_for_ever(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "RESET_DRAIN", 0.05)

    async def main() -> None:
        protocol = Noted()
        async with opened(protocol) as (bench, transport, stream):
            transport.pause_reading()
            await bench.peer.send(pair.data(stream.id, b"last words"), pair.reset(stream.id))
            assert isinstance(await protocol.over(), ConnectionResetError)
            assert not protocol.received

    run(main())


def test_a_reset_waits_while_what_is_kept_moves(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "RESET_DRAIN", 0.06)
    monkeypatch.setattr(transport_module, "_MOST", 10)

    async def main() -> None:
        protocol = Noted()
        protocol.pauses_at = 1
        async with opened(protocol) as (bench, transport, stream):
            await bench.peer.send(pair.data(stream.id, bytes(60)), pair.reset(stream.id))
            await until(transport.is_closing, "the reset has arrived")
            for _ in range(5):
                await asyncio.sleep(0.03)
                assert not protocol.lost
                transport.resume_reading()
            assert isinstance(await protocol.over(), ConnectionResetError)
            assert len(protocol.received) == 60

    run(main())


def test_a_reset_waits_for_half_a_minute_at_most(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "RESET_DRAIN_MOST", 0.05)

    async def main() -> None:
        protocol = Noted()
        async with opened(protocol) as (bench, transport, stream):
            transport.pause_reading()
            await bench.peer.send(pair.data(stream.id, b"last words"), pair.reset(stream.id))
            assert isinstance(await protocol.over(), ConnectionResetError)

    run(main())


def test_who_closes_after_a_reset_is_done_at_once(run: Run) -> None:
    async def main() -> None:
        protocol = Noted()
        async with opened(protocol) as (bench, transport, stream):
            transport.pause_reading()
            await bench.peer.send(pair.data(stream.id, b"last words"), pair.reset(stream.id))
            await until(transport.is_closing, "the reset has arrived")
            transport.close()
            assert isinstance(await protocol.over(), ConnectionResetError)
            assert not protocol.received

    run(main())


@pytest.mark.parametrize("paused", [False, True])
def test_a_lost_tunnel_resets_at_once(run: Run, paused: bool) -> None:
    async def main() -> None:
        protocol = Noted()
        async with opened(protocol, accept=3) as (bench, transport, stream):
            if paused:
                transport.pause_reading()
            transport.write(b"more than there is credit for")
            await bench.peer.send(pair.data(stream.id, b"last words"))
            await until(lambda: stream.received, "it has arrived")
            bench.link.abort(ConnectionAbortedError("cut"))
            error = await protocol.over()
            assert isinstance(error, ConnectionResetError) and "tunnel" in str(error)
            assert bytes(protocol.received) == (b"" if paused else b"last words")

    run(main())


def test_abort_is_a_reset(run: Run) -> None:
    async def main() -> None:
        protocol = Noted()
        async with opened(protocol, accept=3) as (bench, transport, stream):
            transport.write(b"more than there is credit for")
            transport.abort()
            transport.abort()
            assert transport.is_closing() and transport.get_write_buffer_size() == 0
            assert await bench.peer.half(stream.id) == (b"mor", Kind.RESET, Code.CONNECTION_RESET)
            assert await protocol.over() is None
            await bench.peer.send(pair.reset(stream.id))
            await ended(bench, stream)

    run(main())


# --- writing -----------------------------------------------------------------------------------------------------------


def test_a_writer_is_asked_to_pause_and_to_go_on(run: Run) -> None:
    async def main() -> None:
        protocol = Noted()
        async with opened(protocol, accept=1000) as (bench, transport, stream):
            assert transport.get_write_buffer_limits() == (16_384, 65_536)
            transport.set_write_buffer_limits(high=400)
            assert transport.get_write_buffer_limits() == (100, 400)
            keys, seen = Keystream(3), Checker(3)
            transport.write(keys.take(1400))
            assert transport.get_write_buffer_size() == 400 and protocol.writing == []
            transport.write(keys.take(1))
            transport.write(keys.take(99))
            assert protocol.writing == ["pause"]
            transport.write_eof()
            seen.feed(await bench.peer.data(stream.id, 1000))
            await bench.peer.send(pair.window(stream.id, 1399, 1000))
            seen.feed(await bench.peer.data(stream.id, 399))
            await turns()
            assert protocol.writing == ["pause"] and transport.get_write_buffer_size() == 101
            await bench.peer.send(pair.window(stream.id, 1400, 1000))
            seen.feed(await bench.peer.data(stream.id, 1))
            await until(lambda: protocol.writing == ["pause", "resume"], "it may write on")
            await bench.peer.send(pair.window(stream.id, MUCH, 1000))
            rest, kind, _ = await bench.peer.half(stream.id)
            seen.feed(rest)
            assert (seen.received, kind) == (1500, Kind.FIN)
            transport.close()
            await bench.peer.send(pair.trunc(stream.id))
            assert await protocol.over() is None

    run(main())


def test_limits_that_cannot_be_are_refused(run: Run) -> None:
    async def main() -> None:
        async with opened(Noted()) as (_, transport, _stream):
            transport.set_write_buffer_limits(low=100)
            assert transport.get_write_buffer_limits() == (100, 400)
            transport.set_write_buffer_limits()
            assert transport.get_write_buffer_limits() == (16_384, 65_536)
            for high, low in ((1, 2), (1, -1)):
                with pytest.raises(ValueError):
                    transport.set_write_buffer_limits(high, low)
            with pytest.raises(TypeError):
                transport.write("text")  # type: ignore[arg-type]
            transport.write_eof()
            transport.write_eof()
            with pytest.raises(RuntimeError):
                transport.write(b"after the end")
            transport.abort()

    run(main())


def test_close_sends_what_was_written_before(run: Run) -> None:
    async def main() -> None:
        protocol = Noted()
        async with opened(protocol, accept=4) as (bench, transport, stream):
            transport.write(b"last words")
            transport.close()
            transport.write(b", and more")
            assert await bench.peer.data(stream.id, 4) == b"last"
            await bench.peer.send(pair.data(stream.id, b"nobody reads this"))
            await turns()
            assert transport.is_closing() and not protocol.lost and not protocol.received
            await bench.peer.send(pair.window(stream.id, 100, 4))
            assert await bench.peer.half(stream.id) == (b" words", Kind.FIN, None)
            assert await protocol.over() is None
            await bench.peer.send(pair.trunc(stream.id))
            await ended(bench, stream)

    run(main())


def test_a_reset_ends_the_wait_for_what_close_has_to_send(run: Run) -> None:
    async def main() -> None:
        protocol = Noted()
        async with opened(protocol, accept=4) as (bench, transport, stream):
            transport.write(b"last words")
            transport.close()
            await bench.peer.send(pair.reset(stream.id))
            assert isinstance(await protocol.over(), ConnectionResetError)

    run(main())


def test_what_is_written_to_who_reads_no_more_is_thrown_away(run: Run) -> None:
    async def main() -> None:
        protocol = Noted()
        async with opened(protocol, accept=4) as (bench, transport, stream):
            transport.set_write_buffer_limits(high=0)
            transport.write(b"last words")
            assert protocol.writing == ["pause"]
            await bench.peer.send(pair.stop(stream.id))
            assert await bench.peer.half(stream.id) == (b"last", Kind.TRUNC, None)
            assert protocol.writing == ["pause", "resume"] and transport.get_write_buffer_size() == 0
            transport.write(b"nobody reads this")
            await bench.peer.send(pair.fin(stream.id, b"the other half goes on"))
            await until(lambda: protocol.eof, "EOF")
            assert protocol.received == b"the other half goes on" and not protocol.lost
            transport.close()
            assert await protocol.over() is None

    run(main())


def test_a_tunnel_that_takes_nothing_is_waited_for(run: Run) -> None:
    async def main() -> None:
        protocol = Noted()
        async with opened(protocol, accept=64 * MUCH) as (bench, transport, stream):
            bench.link.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            keys, seen = Keystream(4), Checker(4)
            while not bench.link.blocked:
                transport.write(keys.take(100_000))
            transport.write(keys.take(300_000))
            transport.write_eof()
            assert protocol.writing == ["pause"] and transport.get_write_buffer_size() >= 300_000
            rest, kind, _ = await bench.peer.half(stream.id)
            seen.feed(rest)
            assert (kind, seen.received) == (Kind.FIN, keys.offset)
            assert protocol.writing == ["pause", "resume"]
            transport.abort()

    run(main())


def test_a_large_write_lets_the_others_have_their_turn(run: Run) -> None:
    """In company one frame of it leaves, then others get to write."""

    async def main() -> None:
        protocol = Noted()
        async with opened(protocol, accept=64 * MUCH) as (bench, transport, stream):
            other = StreamTransport(bench.runtime, Noted(), {})
            second = bench.session.open(other, 1, VISITOR)
            assert second is not None
            other.join(second, bench.link)
            await bench.peer.frame(Kind.OPEN)
            await bench.peer.send(pair.accept(second.id, MUCH))
            await other.accepted()
            bench.session.pace.alone = False
            bench.session.pace.cap = 16_384
            transport.write(bytes(100_000))
            other.write(b"a keystroke")
            before = 0
            while (frame := await bench.peer.frame(Kind.DATA)).stream != second.id:
                before += len(frame.payload)
            assert before == 16_384
            transport.write_eof()
            assert len((await bench.peer.half(stream.id))[0]) == 100_000 - before
            transport.abort()
            other.abort()

    run(main())


# --- protocols that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where", ["connection_made", "data_received", "eof_received", "pause_writing", "resume_writing"]
)
def test_what_a_protocol_raises_ends_its_connection_only(run: Run, where: str) -> None:
    class Fails(Noted):
        pass

    def fail(self: Fails, *_: object) -> None:
        raise ValueError("a fault of the program")

    setattr(Fails, where, fail)

    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        protocol = Fails()
        async with opened(protocol, accept=None) as (bench, transport, stream):
            await bench.peer.send(pair.accept(stream.id, 10))
            assert await transport.accepted() is (Code.INTERNAL if where == "connection_made" else Code.NO_ERROR)
            transport.set_write_buffer_limits(high=0)
            await bench.peer.send(pair.fin(stream.id, b"data"))
            if not transport.is_closing():
                transport.write(bytes(11))
            await bench.peer.send(pair.window(stream.id, 100, 0))
            await until(transport.is_closing, "it was aborted")
            assert [str(context["exception"]) for context in told] == ["a fault of the program"]
            _, kind, code = await bench.peer.half(stream.id)
            assert (kind, code) == (Kind.RESET, Code.INTERNAL)
            assert where == "connection_made" or isinstance(await protocol.over(), ValueError)
            assert not bench.closed, "the tunnel goes on"
            await bench.peer.send(pair.reset(stream.id))

    run(main())


def test_a_callback_may_end_everything(run: Run) -> None:
    class Aborts(Noted):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            assert self.transport is not None
            self.transport.pause_reading()
            self.transport.abort()

    async def main() -> None:
        protocol = Aborts()
        async with opened(protocol) as (bench, _, stream):
            await bench.peer.send(pair.data(stream.id, b"one"), pair.data(stream.id, b"two"))
            assert await bench.peer.half(stream.id) == (b"", Kind.RESET, Code.CONNECTION_RESET)
            assert await protocol.over() is None and protocol.received == b"one" and stream.queued == 0

    run(main())


# --- two of them -------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def joined(
    opener: Callable[[], asyncio.BaseProtocol], acceptor: Callable[[], asyncio.BaseProtocol]
) -> AsyncIterator[tuple[Bench, StreamTransport, StreamTransport]]:
    """Two sessions, joined, and a stream whose two ends are transports."""
    async with Bench() as one:
        two = Bench(dialer=True)
        two.runtime = one.runtime
        link = Link(one.runtime, two)
        await one.loop.connect_accepted_socket(lambda: link, one.peer.sock.dup())
        assert link.session is not None
        came: list[StreamTransport] = []

        def take(stream: Stream, request: wire.Open) -> None:
            stream.accept()
            came.append(StreamTransport(one.runtime, acceptor(), {}))
            came[0].join(stream, link)

        two.on_stream = take
        transport = StreamTransport(one.runtime, opener(), {})
        stream = one.session.open(transport, 1, VISITOR)
        assert stream is not None
        transport.join(stream, one.link)
        assert await transport.accepted() is Code.NO_ERROR
        try:
            yield one, transport, came[0]
        finally:
            for end in (transport, came[0]):
                end.abort()
            link.abort(ConnectionAbortedError("the test is over"))
            await until(lambda: two.closed, "the link has ended")


@pytest.mark.parametrize("seed", range(3))
def test_any_sizes_in_any_order(run: Run, seed: int) -> None:
    """Both directions at once, in writes of random sizes, by protocols that pause and go on at random."""

    class Random(Noted):
        def __init__(self, dice: random.Random) -> None:
            super().__init__()
            self._dice = dice

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            assert self.transport is not None
            if self._dice.random() < 0.3:
                self.transport.pause_reading()
                asyncio.get_running_loop().call_later(self._dice.random() * 0.002, self.transport.resume_reading)

    async def send(dice: random.Random, transport: StreamTransport, protocol: Noted, size: int, seed: object) -> None:
        keys = Keystream(seed)
        while left := size - keys.offset:
            transport.write(keys.take(min(left, dice.choice((1, 100, 5000, 30_000, 400_000)))))
            if dice.random() < 0.5 or len(protocol.writing) % 2:
                await asyncio.sleep(0.001)
        transport.write_eof()

    async def main() -> None:
        dice = random.Random(seed)
        one, two = Random(dice), Random(dice)
        async with joined(lambda: one, lambda: two) as (_, left, right):
            await asyncio.gather(send(dice, left, one, 2_000_000, "left"), send(dice, right, two, 1_500_000, "right"))
            await until(lambda: one.eof and two.eof, "both directions have ended")
            for protocol, sender, size in ((two, "left", 2_000_000), (one, "right", 1_500_000)):
                seen = Checker(sender)
                seen.feed(bytes(protocol.received))
                assert seen.received == size
            left.close()
            right.close()
            assert (await one.over(), await two.over()) == (None, None)

    run(main())


def test_asyncios_streams_work_on_it(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        size = 1_000_000
        answered: list[asyncio.Task[None]] = []

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(10_000):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
            writer.close()
            await writer.wait_closed()

        def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            answered.append(asyncio.ensure_future(answer(reader, writer)))

        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)

        def acceptor() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), serve, loop=loop)

        async with joined(lambda: protocol, acceptor) as (_, transport, _far):
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)

            async def ask() -> None:
                keys = Keystream(5)
                for _ in range(10):
                    writer.write(keys.take(size // 10))
                    await writer.drain()
                writer.write_eof()

            asked = asyncio.ensure_future(ask())
            seen = Checker(5)
            while data := await reader.read(77_777):
                seen.feed(data)
            assert seen.received == size
            await asyncio.gather(asked, *answered)
            writer.close()
            await writer.wait_closed()

    run(main())


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a client, and of the server that it trusts, which is called 127.0.0.1."""
    authority = Authority(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*authority.issue("target", host="127.0.0.1"))
    return authority.trusting(), server


def test_tls_goes_over_it(run: Run, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        one, two = Noted(stays=False), Noted(stays=False)
        ready, far = loop.create_future(), loop.create_future()
        async with joined(
            lambda: tls(loop, one, contexts[0], ready, server_hostname="127.0.0.1")[0],
            lambda: tls(loop, two, contexts[1], far, server_side=True)[0],
        ):
            await asyncio.gather(ready, far)
            assert one.transport is not None and two.transport is not None
            assert one.transport.get_extra_info("ssl_object") is not None
            keys = Keystream(6)
            one.transport.write(keys.take(500_000))
            two.transport.write(b"hello")
            await until(lambda: one.received == b"hello" and len(two.received) == 500_000, "both ways")
            Checker(6).feed(bytes(two.received))
            one.transport.close()
            assert (await one.over(), await two.over()) == (None, None)

    run(main())


def test_tls_that_is_not_trusted_ends_the_connection(run: Run, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        one, two = Noted(), Noted()
        ready, far = loop.create_future(), loop.create_future()
        async with joined(
            lambda: tls(loop, one, ssl.create_default_context(), ready, server_hostname="127.0.0.1")[0],
            lambda: tls(loop, two, contexts[1], far, server_side=True)[0],
        ) as (_, transport, _far):
            with pytest.raises(ssl.SSLCertVerificationError):
                await ready
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await far
            await until(transport.is_closing, "it was aborted")
            assert one.transport is None and two.transport is None

    run(main())


def test_tls_can_begin_later(run: Run, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """As with CONNECT, or STARTTLS: plain first, then TLS on the same stream."""

    async def main() -> None:
        plain_one, plain_two = Noted(), Noted()
        async with joined(lambda: plain_one, lambda: plain_two) as (_, left, right):
            left.write(b"STARTTLS")
            await until(lambda: plain_two.received == b"STARTTLS", "it was asked for")
            one, two = Noted(stays=False), Noted(stays=False)
            near, far = await asyncio.gather(
                start_tls(left, one, contexts[0], server_hostname="127.0.0.1"),
                start_tls(right, two, contexts[1], server_side=True),
            )
            near.write(b"a secret")
            await until(lambda: two.received == b"a secret", "it came through")
            far.close()
            assert (await one.over(), await two.over()) == (None, None)
            assert plain_two.received == b"STARTTLS"

    run(main())


def test_a_handshake_that_is_given_up_resets(run: Run, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async def main() -> None:
        plain_one, plain_two = Noted(), Noted()
        async with joined(lambda: plain_one, lambda: plain_two) as (_, left, _right):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await start_tls(left, Noted(), contexts[0], server_hostname="127.0.0.1")
            assert left.is_closing()
            assert isinstance(await plain_two.over(), ConnectionResetError)

    run(main())
