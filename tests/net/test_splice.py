"""Two tunnels with a stream each, spliced, and both far ends played by hand (protocol.md section 9.5)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator

import pytest

from fastrelay import wire
from fastrelay.errors import Code
from fastrelay.mux.stream import Recv, Stream
from fastrelay.net import splice as splice_module
from fastrelay.net.splice import Witness, splice
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.support import pair
from tests.support.payload import Checker, Keystream
from tests.support.tunnel import Bench, turns, until

MUCH = 1 << 20
FIRST = 1  # the id of the stream that the peer of `near` opens


@contextlib.asynccontextmanager
async def spliced(
    *, accept: int | None = MUCH, limit: int = MUCH, early: int = 0, witness: Witness | None = None
) -> AsyncIterator[tuple[Bench, Stream, Bench, Stream]]:
    """A visitor's tunnel `near`, whose peer opened a stream, and a provider's `far`, to which the relay opened one; joined.

    `limit` is what the visitor lets come, `accept` what the provider does when it accepts; None: it has not answered yet.
    """
    async with Bench() as near, Bench(theirs=wire.Settings(early=early)) as far:
        streams: list[Stream] = []
        near.on_stream = lambda stream, request: streams.append(stream)
        await near.peer.send(pair.open_(FIRST, limit))
        await until(lambda: streams, "OPEN has arrived")
        there = far.open()
        more = () if witness is None else (witness,)
        splice(near.runtime, streams[0], near.link, there, far.link, *more)
        assert (await far.peer.frame(Kind.OPEN)).stream == there.id
        if accept is not None:
            await far.peer.send(pair.accept(there.id, accept))
            assert (await near.peer.frame(Kind.ACCEPT)).stream == FIRST
        yield near, streams[0], far, there


async def over(*streams: Stream) -> None:
    await until(lambda: all(stream.ended for stream in streams), "the streams are over")


def test_bytes_go_both_ways_and_halves_end_on_their_own(run: Run) -> None:
    async def main() -> None:
        async with spliced() as (near, here, far, there):
            await near.peer.send(pair.data(FIRST, b"a question"))
            assert await far.peer.data(there.id, 10) == b"a question"
            await near.peer.send(pair.fin(FIRST, b", the last"))
            assert await far.peer.half(there.id) == (b", the last", Kind.FIN, None)
            await far.peer.send(pair.data(there.id, b"an answer "))
            assert await near.peer.data(FIRST, 10) == b"an answer "
            await far.peer.send(pair.fin(there.id, b"of two"))
            assert await near.peer.half(FIRST) == (b"of two", Kind.FIN, None)
            await over(here, there)

    run(main())


def test_early_data_waits_for_nobody(run: Run) -> None:
    async def main() -> None:
        async with spliced(accept=None, early=1000) as (near, here, far, there):
            await near.peer.send(pair.data(FIRST, b"early"), pair.fin(FIRST, b" bird"))
            assert await far.peer.half(there.id) == (b"early bird", Kind.FIN, None)
            await far.peer.send(pair.accept(there.id), pair.fin(there.id, b"worm"))
            assert (await near.peer.frame(Kind.ACCEPT)).stream == FIRST
            assert await near.peer.half(FIRST) == (b"worm", Kind.FIN, None)
            await over(here, there)

    run(main())


def test_what_the_provider_will_not_take_early_waits_here(run: Run) -> None:
    async def main() -> None:
        async with spliced(accept=None, early=3) as (near, here, far, there):
            await near.peer.send(pair.fin(FIRST, b"early bird"))
            assert await far.peer.data(there.id, 3) == b"ear"
            assert here.queued == 7
            await far.peer.send(pair.accept(there.id))
            assert await far.peer.half(there.id) == (b"ly bird", Kind.FIN, None)
            await far.peer.send(pair.fin(there.id))
            assert await near.peer.half(FIRST) == (b"", Kind.FIN, None)
            await over(here, there)

    run(main())


@pytest.mark.parametrize("code", [Code.REFUSED, Code.DIAL_TIMEOUT, Code.NO_SERVICE])
def test_a_refusal_is_passed_on_with_its_code(run: Run, code: Code) -> None:
    async def main() -> None:
        async with spliced(accept=None, early=1000) as (near, here, far, there):
            await near.peer.send(pair.data(FIRST, b"hello?"))
            assert await far.peer.data(there.id, 6) == b"hello?"
            await far.peer.send(pair.reset(there.id, code))
            assert await near.peer.half(FIRST) == (b"", Kind.RESET, code)
            await near.peer.send(pair.reset(FIRST))
            await over(here, there)

    run(main())


@pytest.mark.parametrize("source", ["near", "far"])
def test_a_reset_comes_behind_what_was_said_before(run: Run, source: str) -> None:
    async def main() -> None:
        async with spliced(accept=4, limit=4) as (near, here, far, there):
            (at, one), (to, two) = ((near, here), (far, there)) if source == "near" else ((far, there), (near, here))
            await at.peer.send(pair.data(one.id, b"last words"), pair.reset(one.id))
            assert await to.peer.data(two.id, 4) == b"last"
            await until(lambda: one.recv is Recv.RESET, "the reset has arrived")
            await to.peer.send(pair.window(two.id, 100, 4))
            assert await to.peer.half(two.id) == (b" words", Kind.RESET, Code.CONNECTION_RESET)
            await to.peer.send(pair.reset(two.id))
            await over(here, there)

    run(main())


def test_a_reset_does_not_wait_for_ever(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splice_module, "RESET_DRAIN", 0.05)

    async def main() -> None:
        async with spliced(accept=4) as (near, here, far, there):
            await near.peer.send(pair.data(FIRST, b"last words"), pair.reset(FIRST))
            assert await far.peer.half(there.id) == (b"last", Kind.RESET, Code.CONNECTION_RESET)
            await far.peer.send(pair.reset(there.id))
            await over(here, there)

    run(main())


@pytest.mark.parametrize("lost", ["near", "far"])
def test_a_lost_tunnel_resets_at_once(run: Run, lost: str) -> None:
    async def main() -> None:
        async with spliced(accept=4, limit=4) as (near, here, far, there):
            (at, one), (to, two) = ((near, here), (far, there)) if lost == "near" else ((far, there), (near, here))
            await at.peer.send(pair.data(one.id, b"last words"))
            assert await to.peer.data(two.id, 4) == b"last"
            at.link.abort(ConnectionAbortedError("cut"))
            assert await to.peer.half(two.id) == (b"", Kind.RESET, Code.CONNECTION_RESET)
            await to.peer.send(pair.reset(two.id))
            await over(here, there)

    run(main())


def test_stop_is_passed_on_and_the_other_half_goes_on(run: Run) -> None:
    async def main() -> None:
        async with spliced() as (near, here, far, there):
            await near.peer.send(pair.stop(FIRST))
            assert await near.peer.half(FIRST) == (b"", Kind.TRUNC, None)
            assert (await far.peer.frame(Kind.STOP)).stream == there.id
            await far.peer.send(pair.data(there.id, b"nobody reads this"), pair.trunc(there.id))
            await near.peer.send(pair.fin(FIRST, b"but this"))
            assert await far.peer.half(there.id) == (b"but this", Kind.FIN, None)
            await over(here, there)

    run(main())


def test_a_reader_that_stops_stops_the_sender(run: Run) -> None:
    async def main() -> None:
        async with spliced(accept=1000) as (near, here, far, there):
            keys, seen = Keystream(1), Checker(1)
            sent = 0
            while here.recv_limit > sent:
                size = min(16_384, here.recv_limit - sent)
                await near.peer.send(pair.data(FIRST, keys.take(size)))
                sent += size
                await turns(1)
            await until(lambda: here.received == sent, "all has arrived")
            assert here.queued == sent - 1000 <= here.window  # what lies here is bounded
            seen.feed(await far.peer.data(there.id, 1000))
            await near.peer.send(pair.fin(FIRST))
            await far.peer.send(pair.window(there.id, MUCH, 1000))
            rest, kind, _ = await far.peer.half(there.id)
            seen.feed(rest)
            assert (kind, seen.received) == (Kind.FIN, sent) and here.queued == 0
            await far.peer.send(pair.fin(there.id))
            await over(here, there)

    run(main())


def test_a_tunnel_that_takes_nothing_is_waited_for(run: Run) -> None:
    async def main() -> None:
        async with spliced() as (near, here, far, there):
            for bench in (near, far):
                bench.link.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            keys, seen = Keystream(2), Checker(2)
            sent = 0
            while not far.link.blocked and here.recv_limit > sent:
                await near.peer.send(pair.data(FIRST, keys.take(16_384)))
                sent += 16_384
                await turns(1)
            assert far.link.blocked, "the tunnel took everything: this shows nothing"
            await near.peer.send(pair.data(FIRST, keys.take(5000)), pair.fin(FIRST))
            sent += 5000
            rest, kind, _ = await far.peer.half(there.id)
            seen.feed(rest)
            assert (kind, seen.received) == (Kind.FIN, sent)
            await far.peer.send(pair.fin(there.id))
            await over(here, there)

    run(main())


@pytest.mark.parametrize("seed", range(5))
def test_any_sizes_in_any_order(run: Run, seed: int) -> None:
    """Both directions at once, each in pieces and with credit of random sizes."""

    async def one_way(dice: random.Random, source: Bench, out: Stream, sink: Bench, into: Stream, size: int) -> None:
        keys, seen = Keystream((seed, out.id)), Checker((seed, out.id))

        async def send() -> None:
            left = size
            while left:
                piece = min(left, dice.choice((1, 100, 5000, 30_000)), out.recv_limit - out.received)
                if piece > 0:
                    await source.peer.send(pair.data(out.id, keys.take(piece)))
                    left -= piece
                while out.received < size - left:
                    await asyncio.sleep(0.001)
            await source.peer.send(pair.fin(out.id))

        async def take() -> None:
            given = into.send_limit
            while True:
                got = await sink.peer.frame(Kind.DATA, Kind.FIN)
                seen.feed(got.payload)
                if got.kind == Kind.FIN:
                    break
                if seen.received == given:
                    given += dice.choice((1, 3000, 70_000))
                    await sink.peer.send(pair.window(into.id, given, seen.received))

        await asyncio.gather(send(), take())
        assert seen.received == size

    async def main() -> None:
        dice = random.Random(seed)
        async with spliced(accept=dice.choice((1, 500, 40_000)), limit=dice.choice((1, 500, 40_000))) as (
            near,
            here,
            far,
            there,
        ):
            await asyncio.gather(
                one_way(dice, near, here, far, there, 400_000), one_way(dice, far, there, near, here, 300_000)
            )
            await over(here, there)
            assert here.recv is Recv.ENDED and there.recv is Recv.ENDED

    run(main())


class Told:
    """A witness: what it is told, in order."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def on_accept(self) -> None:
        self.heard.append("accept")

    def on_over(self, first: Stream | None, code: Code | None) -> None:
        self.heard.append((first, code))


@pytest.mark.parametrize("how", ["ends", "near reset", "far reset", "near lost", "far lost", "stop", "late reset"])
def test_a_witness_is_told_once(run: Run, how: str) -> None:
    async def main() -> None:
        told = Told()
        async with spliced(accept=4, limit=MUCH, witness=told) as (near, here, far, there):
            assert told.heard == ["accept"]
            expected: tuple[Stream | None, Code | None] = (None, Code.NO_ERROR)
            if how == "near lost":
                near.link.abort(ConnectionAbortedError("cut"))
                expected = (here, None)
            elif how == "far lost":
                far.link.abort(ConnectionAbortedError("cut"))
                expected = (there, None)
            elif how == "near reset":
                await near.peer.send(pair.reset(FIRST))
                expected = (here, Code.CONNECTION_RESET)
            elif how == "far reset":
                await far.peer.send(pair.reset(there.id, Code.TIMEOUT))
                expected = (there, Code.TIMEOUT)
            elif how == "late reset":  # the first had something to say still when the second was reset
                await near.peer.send(pair.data(FIRST, b"last words"), pair.reset(FIRST, Code.CANCEL))
                assert await far.peer.data(there.id, 4) == b"last"
                await until(lambda: here.recv is Recv.RESET, "the first reset has arrived")
                await far.peer.send(pair.reset(there.id, Code.REFUSED))
                expected = (here, Code.CANCEL)
            else:
                if how == "stop":
                    await near.peer.send(pair.stop(FIRST))
                    await far.peer.frame(Kind.STOP)
                    await far.peer.send(pair.trunc(there.id))
                else:
                    await far.peer.send(pair.fin(there.id, b"answer"))
                    await near.peer.half(FIRST)
                assert told.heard == ["accept"], "one direction goes on"
                await near.peer.send(pair.fin(FIRST, b"bye"))
            await until(lambda: len(told.heard) > 1, "the end is told")
            await turns()
            assert told.heard == ["accept", expected]
            for bench, stream in ((near, here), (far, there)):
                if not bench.closed and not stream.ended:
                    await bench.peer.send(pair.reset(stream.id))

    run(main())
