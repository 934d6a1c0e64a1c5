"""One tunnel connection over real sockets, plain and TLS (protocol.md sections 2, 10 and 11)."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from fastrelay import wire
from fastrelay.errors import Code, FastrelayError, LimitError, PinError, ProtocolError, RefusedError
from fastrelay.limits import DEFAULTS, Limits
from fastrelay.mux import pace
from fastrelay.mux.session import Session
from fastrelay.mux.stream import Stream
from fastrelay.net import link as link_module
from fastrelay.net import outbox
from fastrelay.net.link import Core, Link, address
from fastrelay.net.runtime import Runtime
from fastrelay.net.tls import client_context, load_identity, make_identity, server_context
from fastrelay.wire import HEADER, HEADER_SIZE, Kind
from tests.conftest import Run
from tests.support import pair
from tests.support.pair import Frame
from tests.support.peers import End
from tests.support.tunnel import Bench, Peer, tcp_pair, turns, until

each_tunnel = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


class Ear:
    """The role and the core of a link that only listens."""

    def __init__(self, refuse: FastrelayError | None = None) -> None:
        self.raw = bytearray()
        self.closed: list[Exception | None] = []
        self.refuse = refuse

    def on_connected(self, link: Link) -> Core:
        if self.refuse is not None:
            raise self.refuse
        return self

    def on_closed(self, link: Link, error: Exception | None) -> None:
        self.closed.append(error)

    def feed(self, chunk: memoryview, now: float) -> None:
        self.raw += chunk


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("identity")
    cert, key = directory / "relay.crt", directory / "relay.key"
    make_identity(cert, key)
    return cert, key


@asynccontextmanager
async def two_links(
    runtime: Runtime, one: Any, two: Any, identity: tuple[Path, Path] | None
) -> AsyncIterator[tuple[Link, Link]]:
    """Two links joined by a loopback connection; `one` is the TLS client."""
    far, near = tcp_pair()
    dialling, accepting = Link(runtime, one), Link(runtime, two)
    loop = runtime.loop
    if identity is None:
        await loop.connect_accepted_socket(lambda: dialling, far)
        await loop.connect_accepted_socket(lambda: accepting, near)
    else:
        context = server_context(load_identity(*identity))
        await asyncio.gather(
            loop.create_connection(lambda: dialling, sock=far, ssl=client_context(True), server_hostname="relay"),
            loop.connect_accepted_socket(lambda: accepting, near, ssl=context),
            return_exceptions=True,  # when the one refuses it may be over before the other has begun
        )
    try:
        yield dialling, accepting
    finally:
        links = [link for link in (dialling, accepting) if hasattr(link, "peer")]
        for link in links:
            link.abort(ConnectionAbortedError("the test is over"))
        await until(lambda: len(one.closed) + len(two.closed) == len(links), "the links have ended")
        await turns()
        await runtime.close()


def numbered(number: int, size: int) -> bytes:
    """A DATA frame whose stream id is its number."""
    return pair.data(number, number.to_bytes(4, "big") * (size // 4) + bytes(size % 4))


def count_writes(monkeypatch: pytest.MonkeyPatch, link: Link) -> list[int]:
    """The sizes of the writes to a plain link's socket from now on."""
    sizes: list[int] = []
    write = os.write

    def counting(number: int, data: Any) -> int:
        done = write(number, data)
        if number == link._fd:
            sizes.append(done)
        return done

    monkeypatch.setattr(os, "write", counting)
    return sizes


# --- writing ----------------------------------------------------------------------------------------------------------------


def test_a_lone_frame_is_written_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Bench() as bench:
            link = bench.link
            await asyncio.sleep(0.01)
            link._crowded = False
            sizes = count_writes(monkeypatch, link)
            for number in range(1, 4):
                await asyncio.sleep(0.005)
                link.write(numbered(number, 100))
                assert sizes == [108] * number, "before anything else happens"

    run(main())


def test_small_frames_of_a_turn_are_one_write(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Bench() as bench:
            link = bench.link
            await asyncio.sleep(0.01)
            for number in range(1, 4):
                link.write(numbered(number, 10))
            await turns()
            sizes = count_writes(monkeypatch, link)
            for number in range(4, 54):
                link.write(numbered(number, 100))
            await turns()
            assert sum(sizes) == 50 * 108 and len(sizes) <= 2
            assert [(await bench.peer.frame()).stream for _ in range(53)] == list(range(1, 54))

    run(main())


def test_what_is_said_while_a_chunk_is_read_is_one_write(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Bench() as bench:
            bench.on_stream = lambda stream, request: stream.reset(Code.NO_SERVICE)
            sizes = count_writes(monkeypatch, bench.link)
            await bench.peer.send(*(pair.open_(number) for number in range(1, 101, 2)))
            for number in range(1, 101, 2):
                frame = await bench.peer.frame(Kind.RESET)
                assert (frame.stream, int.from_bytes(frame.payload, "big")) == (number, Code.NO_SERVICE)
            assert len(sizes) <= 2, "50 answers"

    run(main())


@each_tunnel
@pytest.mark.parametrize("seed", range(3))
def test_frames_keep_their_order(run: Run, identity: tuple[Path, Path], tls: bool, seed: int) -> None:
    """Small after large after blocked, inside `feed` and outside of it."""

    async def main() -> None:
        dice = random.Random(seed)
        runtime = Runtime()
        talker, ear = Ear(), Ear()
        async with two_links(runtime, talker, ear, identity if tls else None) as (link, other):
            expected = bytearray()

            def say(number: int) -> None:
                frame = numbered(number, dice.choice((4, 40, 16_376, 16_377, 100_000, 700_000)))
                link.write(frame)
                expected.extend(frame)

            for number in range(1, 200):
                move = dice.random()
                if move < 0.1:
                    other.transport.pause_reading()
                elif move < 0.3:
                    other.transport.resume_reading()
                    await turns(1)
                link._feeding = dice.random() < 0.2
                say(number)
                link._feeding = False
                if dice.random() < 0.2:
                    await asyncio.sleep(0)
                if len(link._pending) > 6 << 20:  # more would be against the bound
                    other.transport.resume_reading()
                    await until(lambda: not link.blocked, "the tunnel takes more")
            other.transport.resume_reading()
            link._wake()
            await until(lambda: len(ear.raw) == len(expected) or ear.closed, "all has arrived")
            assert ear.raw == expected

    run(main())


@each_tunnel
def test_blocked_and_unblocked(run: Run, identity: tuple[Path, Path], tls: bool) -> None:
    async def main() -> None:
        runtime = Runtime()
        talker, ear = Ear(), Ear()
        async with two_links(runtime, talker, ear, identity if tls else None) as (link, other):
            other.transport.pause_reading()
            number = 0
            while not link.blocked:
                number += 1
                link.write(numbered(number, 300_000))
                await asyncio.sleep(0)
                assert number < 200
            waiting = len(link._pending)
            for _ in range(10):
                number += 1
                link.write(numbered(number, 100))
            assert len(link._pending) == waiting + 1080
            await turns()
            assert not talker.closed
            other.transport.resume_reading()
            await until(lambda: not link.blocked and not link._pending, "the tunnel takes more")
            size = (number - 10) * 300_008 + 1080
            await until(lambda: len(ear.raw) == size, "all has arrived")

    run(main())


@each_tunnel
def test_what_may_wait_is_bounded(run: Run, identity: tuple[Path, Path], tls: bool) -> None:
    async def main() -> None:
        runtime = Runtime()
        talker, ear = Ear(), Ear()
        async with two_links(runtime, talker, ear, identity if tls else None) as (link, other):
            other.transport.pause_reading()
            number = 0
            while not link.blocked:
                number += 1
                link.write(numbered(number, 300_000))
                await asyncio.sleep(0)
            for _ in range(DEFAULTS.control // 300_000 + 1):  # as if many edges had read one buffer each
                link.write(numbered(number, 300_000))
            await turns()
            assert not talker.closed, "of data there is no more than edges have read"
            control = wire.frame(Kind.GOAWAY, 0, bytes(4000))
            for _ in range(DEFAULTS.control // len(control)):
                link.write(control)
            await turns()
            assert not talker.closed
            link.write(control)
            await until(lambda: talker.closed, "the tunnel is given up")
            error = talker.closed[0]
            assert isinstance(error, LimitError) and error.limit == "control"

    run(main())


def test_control_frames_are_counted_anew_when_the_tunnel_takes_more(run: Run) -> None:
    async def main() -> None:
        runtime = Runtime()
        talker, ear = Ear(), Ear()
        async with two_links(runtime, talker, ear, None) as (link, other):
            control = wire.frame(Kind.GOAWAY, 0, bytes(4000))
            for _ in range(3):
                other.transport.pause_reading()
                while not link.blocked:
                    link.write(numbered(1, 300_000))
                    await asyncio.sleep(0)
                for _ in range(DEFAULTS.control // len(control) * 2 // 3):
                    link.write(control)
                other.transport.resume_reading()
                await until(lambda: not link.blocked and not link._pending, "the tunnel takes more")
            assert not talker.closed

    run(main())


def test_credit_waits_while_the_tunnel_is_blocked_and_is_the_newest_after(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            streams: list[Stream] = []

            def on_open(stream: Stream, request: wire.Open) -> None:
                streams.append(stream)
                stream.accept()  # NOTHING takes what comes

            bench.on_stream = on_open
            await bench.peer.send(pair.open_(1), pair.ping(b"one ping"))
            await bench.peer.frame(Kind.PONG)
            stream = streams[0]
            number = 2
            while not bench.link.blocked:
                bench.link.write(numbered(number, 300_000))
                await asyncio.sleep(0)
            waiting = len(bench.link._pending)
            for _ in range(64):
                await bench.peer.send(pair.data(1, bytes(16_384)))
            for digit in range(9):
                await bench.peer.send(pair.ping(b"ping  %d!" % digit))
            await until(lambda: stream.received == 1 << 20, "all has arrived")
            await turns()
            assert len(bench.link._pending) <= waiting + 24, "no more than a PING of its own"
            frames: list[Frame] = []
            while not frames or frames[-1].kind != Kind.WINDOW:
                frames.append(await bench.peer.frame())
            windows = [wire.WINDOW.unpack(frame.payload) for frame in frames if frame.kind == Kind.WINDOW]
            assert windows == [(stream.recv_limit, 1 << 20)]
            assert [frame.payload for frame in frames if frame.kind == Kind.PONG] == [b"ping  8!"]

    run(main())


def unsent_limit(link: Link) -> int:
    sock = link.transport.get_extra_info("socket")
    return int(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT))


def is_full(link: Link, rate: float, seconds: float) -> int:
    """The tunnel is full again after it took so many bytes a second for so long. Returns what may be unsent then."""
    link._taken = int(rate * seconds)
    link._full_at = time.monotonic() - seconds
    link._full()
    return unsent_limit(link)


def test_what_is_unsent_follows_the_rate(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            link, tunnel = bench.link, bench.session.pace
            assert unsent_limit(link) == pace.UNSENT_FIRST
            rate = 4 * pace.UNSENT_FIRST / pace._UNSENT_TIME
            size = is_full(link, rate, 0.3)
            assert size == tunnel.unsent == pytest.approx(4 * pace.UNSENT_FIRST, rel=0.1)
            assert link._taken == 0
            assert is_full(link, 1e13, 0.3) == pace.UNSENT_MOST
            assert is_full(link, 1e3, 0.3) == pace.LEAST

    run(main())


def test_only_a_tunnel_that_was_always_full_tells_its_rate(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_FULL_AGAIN", 10.0)  # so long that no scheduler spoils it
    monkeypatch.setattr(outbox, "_FULL_LATELY", 30.0)

    async def main() -> None:
        async with Bench() as bench:
            link = bench.link
            assert is_full(link, 1e10, 1.0) == pace.UNSENT_FIRST
            assert link._taken > 0, "too soon to tell: it goes on"
            assert is_full(link, 1e3, 40.0) == pace.UNSENT_FIRST
            assert link._taken == 0, "most of the time nothing was to be sent: it begins anew"

    run(main())


def test_small_changes_of_the_rate_cost_no_system_call(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Bench() as bench:
            calls: list[int] = []
            monkeypatch.setattr(outbox, "limit_unsent", lambda sock, size: calls.append(size))
            rate = 10 * pace.UNSENT_FIRST / pace._UNSENT_TIME
            for factor in (1.0, 1.1, 0.9, 1.15, 1.0):
                is_full(bench.link, rate * factor, 0.2)
            assert len(calls) == 1

    run(main())


def test_a_slow_path_is_noticed(run: Run) -> None:
    """By nothing but that the other side reads slowly."""

    async def main() -> None:
        async with Bench() as bench:
            link, tunnel, peer = bench.link, bench.session.pace, bench.peer.sock
            begin, read = time.monotonic(), 0
            frame = numbered(2, pace.LEAST)

            def slow() -> bool:
                nonlocal read
                if not link.blocked:
                    link.write(frame)
                due = int((time.monotonic() - begin) * 2e6) - read
                try:
                    read += len(peer.recv(due)) if due > 0 else 0
                except BlockingIOError:
                    pass
                return tunnel.unsent < pace.UNSENT_FIRST / 2 and tunnel.cap < pace.SHARED_FRAME

            await until(slow, "little may be unsent")
            assert unsent_limit(link) == tunnel.unsent

    run(main())


def test_a_tls_tunnel_is_full_as_soon_as_something_is_held_back(run: Run, identity: tuple[Path, Path]) -> None:
    """What waits in the transport cannot be overtaken: it is to wait in the streams instead."""

    async def main() -> None:
        runtime = Runtime()
        talker, ear = Ear(), Ear()
        async with two_links(runtime, talker, ear, identity) as (link, other):
            assert unsent_limit(link) == pace.UNSENT_FIRST
            size = 0
            for number in range(3):
                other.transport.pause_reading()
                while not link.blocked:
                    assert link.transport.get_write_buffer_size() == 0
                    link.write(numbered(number, pace.LEAST))
                    size += HEADER_SIZE + pace.LEAST
                    await asyncio.sleep(0)
                    assert link.blocked is (link.transport.get_write_buffer_size() > 0)
                    assert size < 1 << 27
                await turns()
                assert link.transport.get_write_buffer_size() <= 2 * pace.LEAST
                other.transport.resume_reading()
                await until(lambda: not link.blocked, "it goes on")
                assert link.transport.get_write_buffer_size() == 0
            await until(lambda: len(ear.raw) == size, "all has arrived")

    run(main())


def test_losses_on_the_way_here_are_noticed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """But looked for now and then only: each look is a system call."""
    every = 0.05
    figures = {"looks": 0, "packets": 0}

    def disorder(fd: int) -> int:
        figures["looks"] += 1
        return figures["packets"]

    monkeypatch.setattr("fastrelay.net.link.disorder", disorder)
    monkeypatch.setattr("fastrelay.net.link._LOOK_EVERY", every)

    async def main() -> None:
        async with Bench() as bench:
            tunnel = bench.session.pace

            async def hear(seconds: float) -> float:
                """Bytes arrive for so long; how large windows are then."""
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    await bench.peer.send(pair.goaway(Code.SHUTDOWN))
                    await turns(1)
                return tunnel.gain(bench.session.now)

            assert await hear(2 * every) == pace.STEADY
            begin, figures["looks"] = time.monotonic(), 0
            figures["packets"] = 3
            assert await hear(3 * every) == pace._LOSSY
            assert 1 <= figures["looks"] <= (time.monotonic() - begin) / every + 1
            until_then = tunnel._lossy_until
            await hear(2 * every)
            assert tunnel._lossy_until == until_then, "none since"
            figures["packets"] = 4
            await hear(2 * every)
            assert tunnel._lossy_until > until_then

    run(main())


# --- ends ----------------------------------------------------------------------------------------------------------------------


def test_the_goodbye_arrives_though_data_is_under_way(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            stream = bench.open()
            sender = asyncio.ensure_future(
                bench.peer.send(pair.data(99, b"there is no such stream"), *[pair.data(99, bytes(60_000))] * 60)
            )
            await sender
            await asyncio.sleep(0.05)  # all of it lies in the other kernel, read or not
            frames = await bench.peer.frames_to_end()
            assert bench.peer.ended is End.EOF, "no reset overtakes it"
            assert frames[-1].kind == Kind.GOAWAY
            _, code, _ = wire.unpack_goaway(frames[-1].payload)
            assert code is Code.STREAM_STATE and stream.ended
            assert not bench.closed, "it still listens"
            bench.peer.close()
            await until(lambda: bench.closed, "and closes when the other side has")
            assert isinstance(bench.closed[0], ProtocolError)

    run(main())


def test_the_goodbye_does_not_wait_for_ever(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "GOODBYE_TIME", 0.1)

    async def main() -> None:
        async with Bench() as bench:
            start = time.monotonic()
            bench.link.goodbye(ProtocolError(Code.INTERNAL, "enough"))
            await until(lambda: bench.closed, "it was closed", 1)
            assert time.monotonic() - start > 0.09

    run(main())


@each_tunnel
def test_close_sends_what_was_written_before(run: Run, identity: tuple[Path, Path], tls: bool) -> None:
    async def main() -> None:
        runtime = Runtime()
        talker, ear = Ear(), Ear()
        async with two_links(runtime, talker, ear, identity if tls else None) as (link, other):
            other.transport.pause_reading()
            number = 0
            while not link.blocked:
                number += 1
                link.write(numbered(number, 300_000))
                await asyncio.sleep(0)
            link.write(numbered(number + 1, 20_000))
            link.close()
            link.close()
            await turns()
            assert not talker.closed
            other.transport.resume_reading()
            await until(lambda: ear.closed and talker.closed, "both have ended")
            assert len(ear.raw) == number * 300_008 + 20_008
            assert talker.closed == [None]
            assert not tls or ear.closed == [None]

    run(main())


def test_close_is_not_a_reset_though_the_other_side_still_speaks(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            bench.link.write(numbered(1, 100_000))
            bench.link.close()
            await bench.peer.send(*[pair.ping()] * 1000)
            await turns(10)
            frames = await bench.peer.frames_to_end()
            assert bench.peer.ended is End.EOF
            assert frames[0].payload == numbered(1, 100_000)[HEADER_SIZE:]

    run(main())


def test_abort_cuts_short_an_end_in_order(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            bench.link.close()
            start = time.monotonic()
            bench.link.abort(ConnectionAbortedError("now"))
            await until(lambda: bench.closed, "it has ended", 1)
            assert time.monotonic() - start < 0.5

    run(main())


def test_reads_of_small_frames_are_short(run: Run) -> None:
    """What costs much for its bytes is read in small pieces, so that others have their turn; what is cheap in the largest ones."""

    class Costly:
        def __init__(self, session: Session) -> None:
            self.session = session
            self.sizes: list[int] = []
            self.cost = 100e-9

        def feed(self, chunk: memoryview, now: float) -> None:
            self.session.now = now
            self.sizes.append(len(chunk))
            until = now + len(chunk) * self.cost
            while time.monotonic() < until:
                pass

    async def main() -> None:
        async with Bench() as bench:
            core = bench.link._core = Costly(bench.session)
            await bench.peer.send(bytes(2 << 20))
            await until(lambda: sum(core.sizes) == 2 << 20, "all was read")
            assert max(core.sizes) <= pace.SHARED_FRAME, "nothing is known of a new tunnel"
            assert max(core.sizes[len(core.sizes) // 2 :]) <= 16_384
            core.sizes, core.cost = [], 0.0
            await asyncio.sleep(link_module._LOOK_EVERY)
            await bench.peer.send(bytes(32 << 20))
            await until(lambda: sum(core.sizes) == 32 << 20, "all was read")
            assert max(core.sizes) > pace.SHARED_FRAME

    run(main())


def test_a_goodbye_is_not_answered(run: Run) -> None:
    """Before the session as in it: what a stranger says in a GOAWAY is not said back."""

    class Refused(Ear):
        def feed(self, chunk: memoryview, now: float) -> None:
            raise RefusedError(Code.INTERNAL, "words of a stranger")

    async def main() -> None:
        runtime = Runtime()
        far, near = tcp_pair()
        role = Refused()
        await runtime.loop.connect_accepted_socket(lambda: Link(runtime, role), near)
        peer = Peer(far)
        await peer.send(pair.goaway(Code.INTERNAL, "words of a stranger"))
        assert await peer.frames_to_end() == []
        assert [type(error) for error in role.closed] == [RefusedError]
        peer.close()
        await runtime.close()

    run(main())


def test_the_handshake_takes_too_long(run: Run) -> None:
    async def main() -> None:
        runtime = Runtime(Limits(handshake_time=0.1))
        far, near = tcp_pair()
        role = Ear()
        link = Link(runtime, role)
        await runtime.loop.connect_accepted_socket(lambda: link, near)
        peer = Peer(far)
        frames = await peer.frames_to_end()
        assert [frame.kind for frame in frames] == [Kind.GOAWAY]
        assert wire.unpack_goaway(frames[0].payload)[1] is Code.TIMEOUT
        peer.close()
        await until(lambda: role.closed, "it has ended")
        await runtime.close()

    run(main())


def test_the_time_of_tls_counts_for_the_handshake(run: Run) -> None:
    async def main() -> None:
        runtime = Runtime(Limits(handshake_time=0.2))
        far, near = tcp_pair()
        role = Ear()
        link = Link(runtime, role)
        await asyncio.sleep(0.15)  # as long as TLS took
        start = time.monotonic()
        await runtime.loop.connect_accepted_socket(lambda: link, near)
        peer = Peer(far)
        await peer.frames_to_end()
        assert time.monotonic() - start < 0.15
        peer.close()
        await until(lambda: role.closed, "it has ended")
        await runtime.close()

    run(main())


@each_tunnel
def test_a_role_that_refuses_a_connection(run: Run, identity: tuple[Path, Path], tls: bool) -> None:
    async def main() -> None:
        runtime = Runtime()
        refusing, ear = Ear(PinError()), Ear()
        async with two_links(runtime, refusing, ear, identity if tls else None):
            await until(lambda: refusing.closed, "it has ended")
            assert isinstance(refusing.closed[0], PinError)
            assert not ear.raw and len(refusing.closed) == 1

    run(main())


def test_a_dead_peer_is_given_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "PING_AFTER", 0.05)
    monkeypatch.setattr(wire, "DEAD_AFTER", 0.25)

    async def main() -> None:
        async with Bench() as bench:
            start = time.monotonic()
            await bench.peer.send(pair.ping())
            frames = await bench.peer.frames_to_end()
            assert time.monotonic() - start >= 0.24
            assert sum(frame.kind == Kind.PING for frame in frames) >= 2
            assert isinstance(bench.closed[0], ConnectionAbortedError)

    run(main())


def test_any_byte_is_a_sign_of_life(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "PING_AFTER", 0.05)
    monkeypatch.setattr(wire, "DEAD_AFTER", 0.25)

    async def main() -> None:
        async with Bench() as bench:
            whole = pair.ping()
            for at in range(len(whole)):
                await bench.peer.send(whole[at : at + 1])
                await asyncio.sleep(0.04)
            assert not bench.closed

    run(main())


@pytest.mark.parametrize("answers", [True, False])
def test_a_probe(run: Run, answers: bool) -> None:
    async def main() -> None:
        async with Bench() as bench:
            bench.link.probe(0.1)
            ping = await bench.peer.frame(Kind.PING)
            if answers:
                await bench.peer.send(pair.pong(ping.payload))
            await asyncio.sleep(0.2)
            assert bool(bench.closed) is not answers

    run(main())


def test_a_tunnel_that_ends_without_goodbye(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            stream = bench.open()
            bench.peer.close()
            await until(lambda: bench.closed, "the link has ended")
            assert stream.ended

    run(main())


# --- TLS and addresses -----------------------------------------------------------------------------------------------------------


@each_tunnel
def test_the_certificate_of_the_other_side(run: Run, identity: tuple[Path, Path], tls: bool) -> None:
    async def main() -> None:
        runtime = Runtime()
        one, two = Ear(), Ear()
        async with two_links(runtime, one, two, identity if tls else None) as (link, other):
            assert other.certificate() is None
            certificate = link.certificate()
            if tls:
                assert certificate is not None
                assert sha256(certificate).digest() == load_identity(*identity).fingerprint
                tls_object: ssl.SSLObject = link.transport.get_extra_info("ssl_object")
                assert (tls_object.version(), tls_object.selected_alpn_protocol()) == ("TLSv1.3", wire.ALPN)
            else:
                assert certificate is None

    run(main())


def test_socket_options_of_a_tunnel(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            sock = bench.link.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == wire.UNACKED_TIME * 1000

    run(main())


@pytest.mark.parametrize(
    ("peer", "text"),
    [
        (("192.0.2.1", 80), "192.0.2.1:80"),
        (("2001:db8::1", 80, 0, 0), "[2001:db8::1]:80"),
        (("::ffff:192.0.2.1", 80, 0, 0), "192.0.2.1:80"),
        ("", "unix"),
        (None, "unknown"),
    ],
)
def test_addresses(peer: object, text: str) -> None:
    assert address(peer) == text


# --- hostile peers -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_garbage_ends_in_a_goodbye_and_nothing_else(run: Run, seed: int) -> None:
    """Frames, cut, repeated and damaged: the loop's handler hears of nothing, and the other side is told why or goes on."""

    async def main() -> None:
        dice = random.Random(seed)
        for _ in range(12):
            async with Bench() as bench:
                bench.on_stream = dice.choice(
                    (lambda stream, request: stream.accept(), lambda stream, request: stream.reset(Code.REFUSED))
                )
                for _ in range(3):
                    bench.open()
                makers: list[Callable[[int], bytes]] = [
                    pair.open_, pair.accept, pair.fin, pair.trunc, pair.reset, pair.stop,
                    lambda number: pair.data(number, bytes(dice.choice((1, 16_384)))),
                    lambda number: pair.window(number, dice.choice((1, 1 << 40)), 0),
                    lambda number: pair.goaway(dice.choice((0, 6, 11)), "bye"),
                ]  # fmt: skip
                for _ in range(40):
                    raw = bytearray(dice.choice(makers)(dice.randint(1, 8)))
                    if dice.random() < 0.1:
                        raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
                    try:
                        await bench.peer.send(bytes(raw))
                    except OSError:
                        break
                    if dice.random() < 0.3:
                        await turns(1)
                word, _ = HEADER.unpack_from(pair.ping())
                assert word

    run(main())
