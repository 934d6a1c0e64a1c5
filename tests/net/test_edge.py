"""Edges between real sockets and a tunnel whose other end is played by hand (protocol.md section 9)."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from pathlib import Path

import pytest

from fastrelay import wire
from fastrelay.errors import Code
from fastrelay.mux.stream import NOTHING, Recv, Send, Stream
from fastrelay.net import edge as edge_module
from fastrelay.wire import WINDOW_FLOOR, Kind
from tests.conftest import Run
from tests.support import pair
from tests.support.payload import Checker, Keystream
from tests.support.peers import End, hang_up
from tests.support.tunnel import Bench, Local, tcp_pair, turns, until

MUCH = 1 << 20


def small_buffers() -> tuple[socket.socket, socket.socket]:
    """A connection that holds little, so that writes to it soon have to wait."""
    outside, inside = tcp_pair()
    inside.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    outside.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
    return outside, inside


async def stuff(bench: Bench, stream: Stream, size: int) -> None:
    """Send the stream `size` bytes, as its credit allows, in pieces of 16 KiB."""
    keys = Keystream(stream.id)
    limit = stream.recv_limit
    assert size <= limit
    while size:
        piece = keys.take(min(size, 16_384))
        await bench.peer.send(pair.data(stream.id, piece))
        size -= len(piece)


# --- both directions ----------------------------------------------------------------------------------------------------


def test_bytes_go_both_ways_and_ends_are_orderly(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            _, local, stream = await bench.joined()
            await local.send(b"from the socket")
            assert await bench.peer.data(stream.id, 15) == b"from the socket"
            await bench.peer.send(pair.data(stream.id, b"from the tunnel"))
            assert await local.read(15) == b"from the tunnel"
            local.eof()
            assert await bench.peer.half(stream.id) == (b"", Kind.FIN, None)
            await bench.peer.send(pair.data(stream.id, b"after the end"), pair.fin(stream.id, b" and last"))
            assert await local.to_end() == (b"after the end and last", End.EOF)
            await bench.gone()
            assert bench.idle == 1

    run(main())


def test_the_tunnel_ends_first_and_input_goes_on(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            _, local, stream = await bench.joined()
            await bench.peer.send(pair.fin(stream.id, b"last words"))
            assert await local.to_end() == (b"last words", End.EOF)
            await local.send(b"the answer")
            local.eof()
            assert await bench.peer.half(stream.id) == (b"the answer", Kind.FIN, None)
            await bench.gone()

    run(main())


def test_an_orderly_close_leaves_no_reset_behind(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            _, local, stream = await bench.joined()
            local.eof()
            await bench.peer.half(stream.id)
            await bench.peer.send(pair.data(stream.id, bytes(100_000)), pair.fin(stream.id))
            await bench.gone()  # the edge is closed while all of it still lies in the kernel
            assert await local.to_end() == (bytes(100_000), End.EOF)

    run(main())


# --- the tunnel writes --------------------------------------------------------------------------------------------------


def test_what_the_socket_does_not_take_is_counted_and_credit_comes_when_it_does(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            edge, local, stream = await bench.joined(ends=small_buffers())
            size = stream.recv_limit
            await stuff(bench, stream, size)
            await until(lambda: stream.received == size, "all has arrived")
            backlog = edge._backlog
            assert backlog is not None
            assert stream.queued == len(backlog) > 0
            taken = size - stream.queued
            checker = Checker(stream.id)
            checker.feed(await local.read(size))
            assert stream.queued == 0 and edge._backlog is None
            last = None
            while last is None or int.from_bytes(last.payload[8:], "big") < size - 65_536:
                last = await bench.peer.frame(Kind.WINDOW)
                limit, consumed = wire.WINDOW.unpack(last.payload)
                assert taken - 65_536 <= consumed <= size < limit

    run(main())


def test_fin_waits_behind_the_backlog(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            edge, local, stream = await bench.joined(ends=small_buffers())
            size = stream.recv_limit
            await stuff(bench, stream, size)
            await bench.peer.send(pair.fin(stream.id))
            await until(lambda: stream.recv is Recv.ENDED, "FIN has arrived")
            assert edge._backlog is not None
            data, end = await local.to_end()
            Checker(stream.id).feed(data)
            assert (len(data), end) == (size, End.EOF)
            await local.send(b"still open")
            assert await bench.peer.data(stream.id, 10) == b"still open"

    run(main())


def test_both_ends_with_a_backlog_close_in_order_though_the_session_has_forgotten(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            _, local, stream = await bench.joined(ends=small_buffers())
            size = stream.recv_limit
            await stuff(bench, stream, size)
            await bench.peer.send(pair.fin(stream.id))
            local.eof()
            await until(lambda: stream.ended, "both halves are over")
            assert not bench.session.streams and bench.session.pool.used > 0, "what is queued still counts"
            bench.link.abort(ConnectionAbortedError("the tunnel is gone, but every byte is here"))
            data, end = await local.to_end()
            assert (len(data), end) == (size, End.EOF)
            await bench.gone()

    run(main())


# --- the socket speaks before its stream is there ------------------------------------------------------------------------


def test_an_early_read_waits_for_the_stream_and_for_credit(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            edge, local = await bench.edge()
            await local.send(b"x" * 100_000)
            await until(lambda: edge._stash is not None, "the first read is kept")
            await turns()
            assert len(edge._stash or b"") <= WINDOW_FLOOR
            stream = bench.open()
            edge.join(stream, bench.link)
            await turns()
            assert stream.sent == 0
            for limit in (10, WINDOW_FLOOR - 1, WINDOW_FLOOR + 7, 99_999, 200_000):
                first = stream.recv is Recv.PENDING
                await bench.peer.send((pair.accept if first else pair.window)(stream.id, limit))
                await until(lambda: stream.sent == min(limit, 100_000), f"as much as {limit} allows")  # noqa: B023
            assert await bench.peer.data(stream.id, 100_000) == b"x" * 100_000
            local.eof()
            assert await bench.peer.half(stream.id) == (b"", Kind.FIN, None)

    run(main())


def test_an_end_before_the_stream_comes_behind_the_stash(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            edge, local = await bench.edge()
            local.eof()
            await until(lambda: edge._eof, "the end is known")
            stream = bench.open()
            edge.join(stream, bench.link)
            await bench.peer.send(pair.accept(stream.id, 100))
            assert await bench.peer.half(stream.id) == (b"", Kind.FIN, None)
            await bench.peer.send(pair.fin(stream.id, b"bye"))
            assert await local.to_end() == (b"bye", End.EOF)

    run(main())


@pytest.mark.parametrize("words", [b"", b"what it said before"])
def test_a_reset_before_the_stream_is_told_behind_what_was_said(run: Run, words: bytes) -> None:
    async def main() -> None:
        async with Bench(theirs=wire.Settings()) as bench:
            edge, local = await bench.edge()
            if words:
                await local.send(words)
                await until(lambda: edge._stash is not None, "the first read is kept")
            local.reset()
            await until(lambda: edge._failed or edge._fd < 0, "the reset is known")
            await turns()
            stream = bench.open()
            edge.join(stream, bench.link)
            data, kind, code = await bench.peer.half(stream.id)
            assert (data, kind, code) == (words, Kind.RESET, Code.CONNECTION_RESET)
            await bench.gone()

    run(main())


def test_a_stream_that_is_over_cannot_be_joined(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            edge, local = await bench.edge()
            stream = bench.open()
            bench.link.abort(ConnectionAbortedError("the tunnel failed under OPEN"))
            edge.join(stream, bench.link)
            assert edge.stream is None
            assert await local.to_end() == (b"", End.RESET)
            await bench.gone()

    run(main())


def test_refuse_is_a_reset(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            edge, local = await bench.edge()
            edge.refuse()
            assert await local.to_end() == (b"", End.RESET)
            await bench.gone()

    run(main())


# --- reading pauses and goes on -------------------------------------------------------------------------------------------


def test_reading_pauses_without_credit_and_goes_on_with_it(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            edge, local, stream = await bench.joined(credit=5_000)
            await local.send(b"y" * 60_000)
            assert await bench.peer.data(stream.id, 5_000) == b"y" * 5_000
            await turns()
            assert edge._held and stream.sent == 5_000 and edge._stash is None
            await bench.peer.send(pair.window(stream.id, 5_001))
            assert await bench.peer.data(stream.id, 1) == b"y"
            await bench.peer.send(pair.window(stream.id, 100_000))
            assert await bench.peer.data(stream.id, 54_999) == b"y" * 54_999
            assert not edge._held

    run(main())


def test_reading_pauses_while_the_tunnel_is_blocked(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            edge, local, stream = await bench.joined(credit=64 << 20)
            size = 24 << 20
            sender = asyncio.ensure_future(local.send(bytes(size)))
            await until(lambda: bench.link.blocked and edge._held, "the tunnel is full")
            assert len(bench.link._pending) <= 2 * MUCH
            sent = stream.sent
            await asyncio.sleep(0.05)
            assert stream.sent == sent < size
            got = 0
            while got < size:
                got += len((await bench.peer.frame(Kind.DATA)).payload)
            await sender
            await until(lambda: not edge._held and not bench.link.blocked, "all goes on")

    run(main())


def test_many_edges_share_a_blocked_tunnel_and_none_is_forgotten(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            made = [await bench.joined(credit=64 << 20) for _ in range(8)]
            size = 3 << 20
            senders = [asyncio.ensure_future(local.send(bytes(size))) for _, local, _ in made]
            await until(lambda: bench.link.blocked and all(edge._held for edge, _, _ in made), "all wait")
            got = dict.fromkeys((stream.id for _, _, stream in made), 0)
            while sum(got.values()) < size * len(made):
                frame = await bench.peer.frame(Kind.DATA)
                got[frame.stream] += len(frame.payload)
            assert set(got.values()) == {size}
            await asyncio.gather(*senders)

    run(main())


# --- resets ----------------------------------------------------------------------------------------------------------------


def test_a_reset_while_reading(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            _, local, stream = await bench.joined()
            await local.send(b"words")
            local.reset()
            data, kind, code = await bench.peer.half(stream.id)
            assert (kind, code) == (Kind.RESET, Code.CONNECTION_RESET)
            assert data in (b"", b"words"), "what was read before"
            await bench.gone()

    run(main())


def test_a_reset_while_credit_is_out_is_told_soon_and_behind_the_data(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            edge, local, stream = await bench.joined(credit=1_000)
            await local.send(b"z" * 9_000)
            assert await bench.peer.data(stream.id, 1_000) == b"z" * 1_000
            await until(lambda: edge._held, "reading is paused")
            local.reset()
            await until(lambda: edge._failed, "the reset is known", 1)
            await bench.peer.send(pair.window(stream.id, 5_000))
            assert await bench.peer.data(stream.id, 4_000) == b"z" * 4_000
            await bench.peer.send(pair.window(stream.id, 100_000))
            assert await bench.peer.half(stream.id) == (b"z" * 4_000, Kind.RESET, Code.CONNECTION_RESET)
            await bench.gone()

    run(main())


def test_a_reset_while_credit_stays_out_is_told_within_two_seconds(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            edge, local, stream = await bench.joined(credit=1_000)
            await local.send(b"z" * 9_000)
            await until(lambda: edge._held, "reading is paused")
            start = time.monotonic()
            local.reset()
            assert await bench.peer.half(stream.id) == (b"z" * 1_000, Kind.RESET, Code.CONNECTION_RESET)
            assert wire.RESET_DRAIN - 0.2 < time.monotonic() - start < wire.RESET_DRAIN + 1

    run(main())


def test_a_reset_waits_as_long_as_input_moves(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credit comes in drops, each in time and all together not; and not for ever."""
    monkeypatch.setattr(edge_module, "_LOOK_EVERY", 0.01)
    monkeypatch.setattr(edge_module, "RESET_DRAIN", 0.4)

    async def main(most: float) -> int:
        monkeypatch.setattr(edge_module, "RESET_DRAIN_MOST", most)
        async with Bench() as bench:
            edge, local, stream = await bench.joined(credit=1_000)
            await local.send(b"z" * 6_000)
            await until(lambda: edge._held, "reading is paused")
            local.reset()
            await until(lambda: edge._failed, "the reset is known", 1)
            for limit in range(2_000, 7_000, 1_000):
                await asyncio.sleep(0.12)
                await bench.peer.send(pair.window(stream.id, limit))
            got, kind, code = await bench.peer.half(stream.id)
            assert (kind, code) == (Kind.RESET, Code.CONNECTION_RESET)
            return len(got)

    assert run(main(30)) == 6_000
    assert 1_000 <= run(main(0.3)) < 6_000


def test_a_reset_after_the_end(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            _, local, stream = await bench.joined()
            local.eof()
            assert await bench.peer.half(stream.id) == (b"", Kind.FIN, None)
            local.reset()
            assert await bench.peer.half(stream.id) == (b"", Kind.RESET, Code.CONNECTION_RESET)
            await bench.gone()

    run(main())


def test_a_reset_after_the_end_while_the_stash_waits_for_credit(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            edge, local = await bench.edge()
            await local.send(b"early words")
            await until(lambda: edge._stash is not None, "the first read is kept")
            stream = bench.open()
            edge.join(stream, bench.link)
            edge._eof = True  # as uvloop may tell it in the same read
            local.reset()
            await until(lambda: edge._failed, "the reset is known", 1)
            await bench.peer.send(pair.accept(stream.id, 100))
            assert await bench.peer.half(stream.id) == (b"early words", Kind.RESET, Code.CONNECTION_RESET)
            await bench.gone()

    run(main())


def test_a_reset_while_the_backlog_waits(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            edge, local, stream = await bench.joined(ends=small_buffers())
            await stuff(bench, stream, stream.recv_limit)
            await until(lambda: edge._backlog, "something waits")
            local.reset()
            _, kind, code = await bench.peer.half(stream.id)
            assert (kind, code) == (Kind.RESET, Code.CONNECTION_RESET)
            await bench.gone()

    run(main())


def test_input_that_came_before_a_failed_write_is_not_lost(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            edge, local, stream = await bench.joined(credit=3)
            await local.send(b"the answer, and then I am gone")
            await until(lambda: edge._held, "reading is paused")
            local.reset()
            for _ in range(5):  # the first write learns of the reset, the next ones have nowhere to go
                await bench.peer.send(pair.data(stream.id, b"upload"))
                await turns()
            await bench.peer.send(pair.window(stream.id, 1_000))
            assert await bench.peer.half(stream.id) == (
                b"the answer, and then I am gone",
                Kind.RESET,
                Code.CONNECTION_RESET,
            )
            await bench.gone()

    run(main())


# --- the tunnel ends a stream -----------------------------------------------------------------------------------------------


def test_reset_from_the_tunnel_delivers_first_and_throws_input_away(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            _, local, stream = await bench.joined(credit=100)
            await local.send(bytes(50_000))  # more than may be sent: reading is paused
            await bench.peer.send(pair.data(stream.id, b"delivered before"), pair.reset(stream.id))
            # A socket that still has unread input could not close without losing what it has written.
            assert await local.to_end() == (b"delivered before", End.RESET)
            await bench.gone()

    run(main())


def test_reset_from_the_tunnel_lets_a_slow_reader_have_the_backlog(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            _, local, stream = await bench.joined(ends=small_buffers())
            size = stream.recv_limit
            await stuff(bench, stream, size)
            await bench.peer.send(pair.reset(stream.id))
            await until(lambda: stream.ended, "RESET has arrived")
            assert bench.session.pool.used > 0
            data, end = await local.to_end()
            Checker(stream.id).feed(data)
            assert (len(data), end) == (size, End.RESET)
            await bench.gone()

    run(main())


def test_reset_from_the_tunnel_does_not_wait_for_ever(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            _, local, stream = await bench.joined(ends=small_buffers())
            await stuff(bench, stream, stream.recv_limit)
            start = time.monotonic()
            await bench.peer.send(pair.reset(stream.id))
            await bench.gone(timeout=wire.RESET_DRAIN + 1)
            assert time.monotonic() - start > wire.RESET_DRAIN - 0.2
            assert hang_up(local.sock, 1)

    run(main())


def test_reset_from_the_tunnel_waits_as_long_as_somebody_reads(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slowly, so that each piece is in time and all of them together are not; and not for ever."""
    monkeypatch.setattr(edge_module, "RESET_DRAIN", 0.4)

    async def main(most: float) -> bool:
        monkeypatch.setattr(edge_module, "RESET_DRAIN_MOST", most)
        async with Bench() as bench:
            _, local, stream = await bench.joined(ends=small_buffers())
            size = stream.recv_limit
            await stuff(bench, stream, size)
            await bench.peer.send(pair.reset(stream.id))
            got = b""
            try:
                for _ in range(5):
                    await asyncio.sleep(0.12)
                    got += await local.read(size // 6)
                rest, end = await local.to_end()
            except ConnectionResetError:
                return False
            Checker(stream.id).feed(got + rest)
            assert end is End.RESET
            return len(got + rest) == size

    assert run(main(30))
    assert not run(main(0.3))


def test_a_lost_tunnel_is_a_reset_at_once(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            made = [await bench.joined(ends=small_buffers()) for _ in range(3)]
            await stuff(bench, made[0][2], made[0][2].recv_limit)
            made[1][1].eof()
            await bench.peer.frame(Kind.FIN)
            start = time.monotonic()
            bench.peer.close()
            await bench.gone(timeout=1)
            for _, local, _ in made:
                assert hang_up(local.sock, 1)
            assert time.monotonic() - start < 1

    run(main())


def test_stop_throws_input_away_and_the_other_direction_goes_on(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            _, local, stream = await bench.joined(credit=10)
            await local.send(bytes(100_000))
            await bench.peer.send(pair.stop(stream.id))
            _, kind, _ = await bench.peer.half(stream.id)
            assert kind == Kind.TRUNC
            await local.send(bytes(4 << 20))  # is read, or this would not end
            await bench.peer.send(pair.data(stream.id, b"still here"))
            assert await local.read(10) == b"still here"
            local.eof()
            await turns()
            await bench.peer.send(pair.fin(stream.id, b"bye"))
            assert await local.to_end() == (b"bye", End.EOF)
            await bench.gone()

    run(main())


@pytest.mark.parametrize("stop_first", [True, False])
def test_after_stop_and_the_other_end_input_is_read_for_a_while_only(
    run: Run, monkeypatch: pytest.MonkeyPatch, stop_first: bool
) -> None:
    monkeypatch.setattr(edge_module, "DISCARD_TIME", 0.1)

    async def main() -> None:
        async with Bench() as bench:
            _, local, stream = await bench.joined()
            orders = [pair.stop(stream.id), pair.fin(stream.id, b"bye")]
            for order in orders if stop_first else reversed(orders):
                await bench.peer.send(order)
                await turns()
            assert await local.read(3) == b"bye"
            await local.send(b"nobody wants this")
            await bench.gone(timeout=2)
            assert hang_up(local.sock, 1)

    run(main())


def test_a_half_that_is_cut_off_is_a_reset(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            _, local, stream = await bench.joined()
            await bench.peer.send(pair.data(stream.id, b"the first half of"), pair.trunc(stream.id))
            assert await local.to_end() == (b"the first half of", End.RESET)
            await bench.gone()

    run(main())


# --- unix sockets --------------------------------------------------------------------------------------------------------------


def test_a_unix_socket_that_closes_is_a_clean_end(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            edge, local, stream = await bench.joined(credit=4, ends=socket.socketpair())
            await local.send(b"1234 and more")
            await until(lambda: edge._held, "reading is paused")
            local.close()  # both directions hang up at once, and nothing was lost
            await turns()
            await bench.peer.send(pair.window(stream.id, 100))
            assert await bench.peer.half(stream.id) == (b"1234 and more", Kind.FIN, None)
            await bench.peer.send(pair.fin(stream.id))
            await bench.gone()

    run(main())


def test_a_unix_socket_that_closes_while_the_backlog_waits(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            outside, inside = socket.socketpair()
            inside.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            edge, local, stream = await bench.joined(ends=(outside, inside))
            local.eof()
            assert await bench.peer.half(stream.id) == (b"", Kind.FIN, None)
            await stuff(bench, stream, stream.recv_limit)
            await until(lambda: edge._backlog, "something waits")
            while not local.quiet():  # with unread input it would be a reset
                try:
                    local.sock.recv(1 << 20)
                except BlockingIOError:
                    break
                if edge._backlog is None:
                    break
            local.close()
            _, kind, _ = await bench.peer.half(stream.id)
            assert kind == Kind.RESET, "what was accepted could not be delivered"
            await bench.gone()

    run(main())


def test_a_unix_socket_relays_both_ways(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "s")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            outside = socket.socket(socket.AF_UNIX)
            outside.connect(path)
            inside, _ = listener.accept()
        async with Bench() as bench:
            _, local, stream = await bench.joined(ends=(outside, inside))
            await bench.peer.send(pair.data(stream.id, b"ping"))
            assert await local.read(4) == b"ping"
            await local.send(b"pong")
            assert await bench.peer.data(stream.id, 4) == b"pong"
            await bench.peer.send(pair.reset(stream.id))
            assert (await local.to_end())[0] == b""
            await bench.gone()

    run(main())


# --- any order -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_no_edge_is_ever_left_held(run: Run, seed: int) -> None:
    """Random credit, a tunnel that blocks and unblocks, ends and resets in any order: whoever keeps its manners gets every byte through."""

    async def main() -> None:
        dice = random.Random(seed)
        async with Bench() as bench:
            made = [
                await bench.joined(
                    credit=dice.choice((0, 1, 10_000, 300_000)), ends=dice.choice((tcp_pair, small_buffers))()
                )
                for _ in range(dice.randint(2, 6))
            ]
            sizes = {stream.id: dice.choice((0, 1, 70_000, 1_500_000)) for _, _, stream in made}
            resets = {stream.id: dice.random() < 0.2 for _, _, stream in made}

            async def play(local: Local, stream: Stream) -> None:
                keys = Keystream(stream.id)
                left = sizes[stream.id]
                while left:
                    size = min(left, dice.choice((1, 5_000, 65_536, 400_000)))
                    left -= size
                    await local.send(keys.take(size))
                    if dice.random() < 0.2:
                        await asyncio.sleep(dice.random() * 0.005)
                if resets[stream.id]:
                    local.reset()
                else:
                    local.eof()

            players = [asyncio.ensure_future(play(local, stream)) for _, local, stream in made]
            checkers = {stream.id: Checker(stream.id) for _, _, stream in made}
            limits = {stream.id: stream.send_limit for _, _, stream in made}
            open_ = set(checkers)
            pause = 0.0
            while open_:
                if dice.random() < 0.05:
                    pause = dice.random() * 0.03  # the tunnel fills meanwhile
                    await asyncio.sleep(pause)
                number = dice.choice(sorted(open_))
                seen = checkers[number].received
                if limits[number] - seen < 300_000:
                    limits[number] += dice.choice((1, 3_000, 65_536, 500_000))
                    await bench.peer.send(pair.window(number, limits[number]))
                try:
                    async with asyncio.timeout(0.02):
                        frame = await bench.peer.frame(Kind.DATA, Kind.FIN, Kind.RESET)
                except TimeoutError:
                    continue
                checkers[frame.stream].feed(frame.payload if frame.kind != Kind.RESET else b"")
                if frame.kind != Kind.DATA:
                    assert (frame.kind == Kind.RESET) is resets[frame.stream]
                    if frame.kind == Kind.FIN:
                        assert checkers[frame.stream].received == sizes[frame.stream]
                        await bench.peer.send(pair.fin(frame.stream, b"bye"))
                    open_.discard(frame.stream)
            await asyncio.gather(*players)
            for _, local, stream in made:
                if not resets[stream.id]:
                    assert await local.to_end() == (b"bye", End.EOF)
            await bench.gone()

    run(main(), timeout=30)


@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_left_behind_whatever_happens(run: Run, seed: int) -> None:
    """Both sides do anything at any time; then the tunnel goes. The bench looks for pools, watch entries, tasks and files."""

    async def main() -> None:
        dice = random.Random(seed)
        async with Bench(theirs=wire.Settings()) as bench:
            made: list[tuple[Local, Stream]] = []
            for _ in range(12):
                _, local, stream = await bench.joined(ends=dice.choice((tcp_pair, small_buffers, socket.socketpair))())
                made.append((local, stream))
                for _ in range(dice.randint(0, 6)):
                    await anything(bench, dice, *dice.choice(made))
            assert not bench.closed, "none of it was against the rules"

    run(main())


async def anything(bench: Bench, dice: random.Random, local: Local, stream: Stream) -> None:
    """One move of the local end or of the peer that is allowed now."""
    number = stream.id
    await turns(dice.randint(0, 2))
    what = dice.randint(0, 9)
    try:
        if what == 0:
            local.sock.send(bytes(dice.choice((1, 100_000))))
        elif what == 1:
            local.eof()
        elif what == 2:
            local.reset()
        elif what == 3:
            local.close()
        elif what == 4:
            local.sock.recv(1 << 20)
    except OSError:
        pass
    room = min(stream.recv_limit - stream.received, 60_000)
    alive = stream.recv is Recv.OPEN
    if what == 5 and alive and room > 0:
        await bench.peer.send(pair.data(number, bytes(room)))
        await until(lambda: not stream.recv_limit or stream.received >= 1, "it has arrived", 1)
    elif what == 6 and alive:
        await bench.peer.send(pair.fin(number))
    elif what == 7 and stream.send is not Send.PENDING:
        await bench.peer.send(pair.reset(number))
    elif what == 8 and stream.send is Send.OPEN:
        await bench.peer.send(pair.stop(number))
    elif what == 9 and stream.send is Send.OPEN:
        await bench.peer.send(pair.window(number, stream.send_limit + 1000))
    await turns(2)  # so that the next move knows what this one did


def test_nothing_is_joined_and_everybody_goes(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            for ending in ("reset", "close", "eof"):
                edge, local = await bench.edge()
                await local.send(b"hello")
                await until(lambda edge=edge: edge._stash is not None, "the first read is kept")  # type: ignore[misc]
                getattr(local, ending)()
                await turns()
                edge.refuse()
            await bench.gone()
            stream = bench.open()
            assert stream.outlet is NOTHING

    run(main())
