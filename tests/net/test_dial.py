"""From OPEN to a joined target, and every way in which that fails (protocol.md sections 6.3 and 9.1)."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fastrelay import wire
from fastrelay.config import Target
from fastrelay.dialling import Place, Rules, read_place
from fastrelay.errors import Code, DialDeniedError
from fastrelay.limits import Limits
from fastrelay.mux.stream import Stream
from fastrelay.net import dial as dial_module
from fastrelay.net.dial import Dial, Resolver, Share, Turn
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.support import need, pair, peers
from tests.support.peers import End
from tests.support.tunnel import Bench, Local, turns, until

LOCALHOST = "127.0.0.1"


class Client:
    """A bench whose streams are dialled to `target`; `done` is what came of it."""

    def __init__(self, bench: Bench, target: Target) -> None:
        self.bench = bench
        self.target = target
        self.resolver = Resolver(bench.loop)
        self.limit = asyncio.Semaphore(wire.MAX_DIALS)
        self.first: Callable[[Any], bytes] | None = None
        self.permit: tuple[Rules, Place] | None = None
        self.done: list[tuple[Code, Exception | None]] = []
        self.streams: list[Stream] = []
        bench.on_stream = self._open

    def _open(self, stream: Stream, request: wire.Open) -> None:
        self.streams.append(stream)
        Dial(
            self.bench.runtime,
            self.resolver,
            self.limit,
            self.bench.link,
            stream,
            self.target,
            lambda code, error: self.done.append((code, error)),
            first=self.first,
            permit=self.permit,
        )

    async def joined(self) -> None:
        """The answer is ACCEPT, and `done` has heard of it."""
        await self.bench.peer.frame(Kind.ACCEPT)
        await until(lambda: self.done, "the end was told")
        assert self.done.pop() == (Code.NO_ERROR, None)

    async def code(self) -> Code:
        """The code of the RESET that is the answer, and that `done` has heard as well."""
        answer = await self.bench.peer.frame(Kind.RESET, Kind.ACCEPT)
        assert answer.kind == Kind.RESET
        await until(lambda: self.done, "the end was told")
        assert len(self.done) == 1
        code = Code.of(int.from_bytes(answer.payload, "big"))
        assert self.done[0][0] is code
        return code


def listener(host: str = LOCALHOST) -> socket.socket:
    sock = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setblocking(False)
    return sock


async def accepted(bench: Bench, sock: socket.socket) -> Local:
    async with asyncio.timeout(5):
        conn, _ = await bench.loop.sock_accept(sock)
    local = Local(conn)
    bench.locals.append(local)
    return local


def nobody() -> Target:
    """An address where nobody listens."""
    with listener() as sock:
        return Target(LOCALHOST, sock.getsockname()[1])


def test_a_target_that_is_there_gets_early_data_and_the_end(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            with listener() as sock:
                client = Client(bench, Target(LOCALHOST, sock.getsockname()[1]))
                await bench.peer.send(pair.open_(1), pair.data(1, b"early "), pair.fin(1, b"bird"))
                target = await accepted(bench, sock)
                assert await target.to_end() == (b"early bird", End.EOF)
                await bench.peer.frame(Kind.ACCEPT)
                await target.send(b"worm")
                target.eof()
                assert await bench.peer.half(1) == (b"worm", Kind.FIN, None)
                await bench.gone()
                assert client.done == [(Code.NO_ERROR, None)]

    run(main())


def test_what_a_target_is_told_comes_before_early_data(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            with listener() as sock:
                client = Client(bench, Target(LOCALHOST, sock.getsockname()[1]))
                client.first = lambda address: b"to %d, " % address[1]
                await bench.peer.send(pair.open_(1), pair.data(1, b"early "), pair.fin(1, b"bird"))
                target = await accepted(bench, sock)
                assert await target.to_end() == (b"to %d, early bird" % sock.getsockname()[1], End.EOF)
                await bench.peer.send(pair.open_(3), pair.data(3, b"early"), pair.reset(3))
                target = await accepted(bench, sock)
                assert await target.to_end() == (b"to %d, early" % sock.getsockname()[1], End.RESET)

    run(main())


def test_more_early_data_than_the_target_takes_at_once(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.bind((LOCALHOST, 0))
                sock.listen()
                sock.setblocking(False)
                client = Client(bench, Target(LOCALHOST, sock.getsockname()[1]))
                await bench.peer.send(pair.open_(1), *[pair.data(1, bytes([n]) * 8192) for n in range(8)])
                target = await accepted(bench, sock)
                await bench.peer.frame(Kind.ACCEPT)
                await bench.peer.send(pair.fin(1))
                data, end = await target.to_end()
                assert data == b"".join(bytes([n]) * 8192 for n in range(8)) and end is End.EOF
                assert client.streams[0].queued == 0

    run(main())


def test_early_data_are_within_the_pool(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is above the floor of a window is borrowed; a stream for which nothing is left is refused, alone."""
    monkeypatch.setattr(dial_module, "RESET_DRAIN", 0.1)

    async def main() -> None:
        async with Bench() as bench:
            pool = bench.session.pool
            pool.limit = wire.EARLY
            client = Client(bench, nobody())
            client.limit = asyncio.Semaphore(0)  # no target is ever reached
            await bench.peer.send(pair.open_(1), pair.open_(3), pair.data(1, bytes(wire.EARLY)))
            await bench.peer.send(pair.data(3, bytes(wire.WINDOW_FLOOR)))
            await until(lambda: client.streams[1:] and client.streams[1].received, "all has arrived")
            assert pool.used == pool.limit and not client.done
            await bench.peer.send(pair.data(3, b"x"))
            answer = await bench.peer.frame(Kind.RESET)
            assert (answer.stream, int.from_bytes(answer.payload, "big")) == (3, Code.LIMIT)
            await until(lambda: client.done, "the end was told")
            assert client.done[0][0] is Code.LIMIT
            await bench.peer.send(pair.reset(3))

            # Reset behind its early data: they are kept for a while, and counted for as long.
            await bench.peer.send(pair.reset(1))
            await until(lambda: 1 not in bench.session.streams, "the stream is forgotten")
            assert pool.used >= wire.EARLY - wire.WINDOW_FLOOR
            await until(lambda: len(client.done) == 2, "the end was told")
            assert (pool.used, client.done[1]) == (0, (Code.CONNECTION_RESET, None))

    run(main())


def test_refused(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            client = Client(bench, nobody())
            await bench.peer.send(pair.open_(1), pair.data(1, b"early"))
            assert await client.code() is Code.REFUSED
            assert isinstance(client.done[0][1], ConnectionRefusedError)

    run(main())


def test_a_path_that_is_not_there(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with Bench() as bench:
            client = Client(bench, Target("", 0, str(tmp_path / "nobody")))
            await bench.peer.send(pair.open_(1))
            assert await client.code() is Code.UNREACHABLE
            assert isinstance(client.done[0][1], FileNotFoundError)

    run(main())


def test_a_unix_target(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "s")
        async with Bench() as bench:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(path)
                sock.listen()
                sock.setblocking(False)
                client = Client(bench, Target("", 0, path))
                await bench.peer.send(pair.open_(1), pair.data(1, b"hello"))
                target = await accepted(bench, sock)
                assert await target.read(5) == b"hello"
                target.close()
                await bench.peer.frame(Kind.ACCEPT)
                assert (await bench.peer.half(1))[1] == Kind.FIN
                await bench.peer.send(pair.fin(1))
                await bench.gone()
                assert client.done == [(Code.NO_ERROR, None)]

    run(main())


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (OSError(errno.EHOSTUNREACH, "no route to host"), Code.UNREACHABLE),
        (OSError(errno.ENETUNREACH, "network is unreachable"), Code.UNREACHABLE),
        (OSError(errno.EMFILE, "too many open files"), Code.LIMIT),
        (OSError(errno.EADDRNOTAVAIL, "no local port is left"), Code.LIMIT),
        (TimeoutError(errno.ETIMEDOUT, "the system gave up"), Code.DIAL_TIMEOUT),
        (socket.gaierror(socket.EAI_NONAME, "name not known"), Code.UNREACHABLE),
        (UnicodeError("label empty or too long"), Code.UNREACHABLE),
    ],
)
def test_ways_to_fail(run: Run, monkeypatch: pytest.MonkeyPatch, failure: Exception, code: Code) -> None:
    async def fail(self: Resolver, target: Target) -> Any:
        raise failure

    monkeypatch.setattr(Resolver, "ask", fail)

    async def main() -> None:
        async with Bench() as bench:
            client = Client(bench, Target("far.example", 1))
            await bench.peer.send(pair.open_(1))
            assert await client.code() is code

    run(main())


def test_a_name_that_does_not_resolve(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            client = Client(bench, Target("nobody.invalid", 1))
            await bench.peer.send(pair.open_(1))
            assert await client.code() is Code.UNREACHABLE
        await bench.loop.shutdown_default_executor()

    run(main())


def test_no_descriptor_is_left(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Bench() as bench:
            client = Client(bench, Target(LOCALHOST, 9))

            def full(*_: object) -> socket.socket:
                raise OSError(errno.EMFILE, "too many open files")

            client.resolver._known[client.target] = (1e18, [(socket.AF_INET, (LOCALHOST, 9))])
            with monkeypatch.context() as patch:
                patch.setattr(socket, "socket", full)
                await bench.peer.send(pair.open_(1))
                await until(lambda: client.done, "the end was told")
            assert await client.code() is Code.LIMIT

    run(main())


def test_a_target_that_does_not_answer(run: Run) -> None:
    async def main() -> None:
        # A queue that is full: the kernel drops what else knocks.
        with socket.socket() as sock:
            sock.bind((LOCALHOST, 0))
            sock.listen(0)
            knocks = []
            for _ in range(4):
                knock = socket.socket()
                knock.setblocking(False)
                knock.connect_ex(sock.getsockname())
                knocks.append(knock)
            await asyncio.sleep(0.05)
            async with Bench(limits=Limits(dial_time=0.1)) as bench:
                client = Client(bench, Target(LOCALHOST, sock.getsockname()[1]))
                await bench.peer.send(pair.open_(1))
                assert await client.code() is Code.DIAL_TIMEOUT
            for knock in knocks:
                knock.close()

    run(main())


@pytest.mark.parametrize("there", [LOCALHOST, "::1"])
def test_the_second_address_may_do_and_is_the_first_next_time(run: Run, there: str) -> None:
    need.ipv6()

    async def main() -> None:
        async with Bench() as bench:
            with listener(there) as sock:
                port = sock.getsockname()[1]
                client = Client(bench, Target("localhost", port))
                addresses: list[dial_module.Address] = [
                    (socket.AF_INET6, ("::1", port, 0, 0)),
                    (socket.AF_INET, (LOCALHOST, port)),
                ]
                client.resolver._known[client.target] = (1e18, addresses)
                for number in (1, 3):
                    await bench.peer.send(pair.open_(number), pair.data(number, b"hi"))
                    target = await accepted(bench, sock)
                    assert await target.read(2) == b"hi"
                    known = client.resolver._known[client.target][1]
                    assert known[0][1][0] == there and len(known) == 2

    run(main())


def test_a_family_that_the_kernel_does_not_have(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Bench() as bench:
            with listener() as sock:
                port = sock.getsockname()[1]
                client = Client(bench, Target("localhost", port))
                real = socket.socket

                def without_ipv6(family: int, kind: int) -> socket.socket:
                    if family == socket.AF_INET6:
                        raise OSError(errno.EAFNOSUPPORT, "address family not supported")
                    return real(family, kind)

                client.resolver._known[client.target] = (
                    1e18,
                    [(socket.AF_INET6, ("::1", port, 0, 0)), (socket.AF_INET, (LOCALHOST, port))],
                )
                with monkeypatch.context() as patch:
                    patch.setattr(socket, "socket", without_ipv6)
                    await bench.peer.send(pair.open_(1))
                    await until(lambda: client.done, "the dial is done")
                assert client.done == [(Code.NO_ERROR, None)]
                await accepted(bench, sock)

    run(main())


def test_names_are_asked_once_in_a_while(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        asked: list[str] = []

        class Loop:
            now = 0.0

            def time(self) -> float:
                return self.now

            async def getaddrinfo(self, host: str, port: int, **_: object) -> list[Any]:
                asked.append(host)
                await asyncio.sleep(0)
                return await loop.getaddrinfo(LOCALHOST, port, type=socket.SOCK_STREAM)

        fake = Loop()
        resolver = Resolver(fake)  # type: ignore[arg-type]
        target = Target("db.example", 5432)
        found = [(socket.AF_INET, (LOCALHOST, 5432))]
        assert resolver.known(target) is None
        assert await resolver.ask(target) == found
        assert resolver.known(target) == found and len(asked) == 1
        fake.now += dial_module._CACHE_TIME + 1
        assert resolver.known(target) is None
        resolver.worked(Target("never.asked", 1), (socket.AF_INET, (LOCALHOST, 1)))
        await loop.shutdown_default_executor()

    run(main())


def test_a_target_that_resets_at_once(run: Run) -> None:
    """Whenever we notice, what it said comes first, and then a reset; never a stream that nobody ends."""

    async def main() -> None:
        async with Bench() as bench:
            with listener() as sock:
                client = Client(bench, Target(LOCALHOST, sock.getsockname()[1]))
                words = {b"", b"go away"}
                for number in range(1, 61, 2):
                    await bench.peer.send(pair.open_(number), pair.data(number, b"early"))
                    target = await accepted(bench, sock)
                    if number % 4 == 1:
                        await target.send(b"go away")
                    target.reset()
                    data, kind, code = await bench.peer.half(number)
                    assert (kind, code) == (Kind.RESET, Code.CONNECTION_RESET) and data in words
                    await bench.peer.send(pair.reset(number))
                await until(lambda: not bench.session.streams, "all are forgotten")
                await bench.gone()
                assert len(client.done) == 30

    run(main())


@pytest.mark.parametrize("steps", range(14))
def test_a_reset_at_any_moment_of_the_dial(run: Run, steps: int) -> None:
    """After any number of turns: the target sees a reset or nobody, nothing is left, and the end is told once."""

    async def main() -> None:
        async with Bench() as bench:
            with listener() as sock:
                client = Client(bench, Target(LOCALHOST, sock.getsockname()[1]))
                await bench.peer.send(pair.open_(1), pair.data(1, b"early"))
                if steps:
                    await until(lambda: client.streams, "OPEN has arrived")
                else:
                    await bench.peer.send(pair.reset(1))
                for _ in range(steps):
                    await asyncio.sleep(0)
                if steps:
                    client.streams[0].abort(Code.CANCEL)
                await until(lambda: client.done, "the end was told")
                await bench.gone()
                await turns()
                gc.collect()
                why = Code.CANCEL if steps else Code.CONNECTION_RESET
                assert len(client.done) == 1 and client.done[0] in ((why, None), (Code.NO_ERROR, None))
        await bench.loop.shutdown_default_executor()

    run(main())


def test_open_and_reset_in_one_chunk_are_told(run: Run) -> None:
    """The task is cancelled before its first step; who counts dials must hear of its end nevertheless."""

    async def main() -> None:
        async with Bench() as bench:
            client = Client(bench, nobody())
            frames = [frame for number in range(1, 201, 2) for frame in (pair.open_(number), pair.reset(number))]
            await bench.peer.send(*frames)
            await until(lambda: len(client.done) == 100, "all ends were told")
            assert set(client.done) == {(Code.CONNECTION_RESET, None)}

    run(main())


@pytest.mark.parametrize("steps", range(0, 12, 2))
def test_the_tunnel_is_lost_at_any_moment_of_the_dial(run: Run, steps: int) -> None:
    async def main() -> None:
        async with Bench() as bench:
            with listener() as sock:
                client = Client(bench, Target(LOCALHOST, sock.getsockname()[1]))
                client.resolver._known[client.target] = (1e18, [(socket.AF_INET, sock.getsockname())])
                await bench.peer.send(pair.open_(1))
                await until(lambda: client.streams, "OPEN has arrived")
                for _ in range(steps):
                    await asyncio.sleep(0)
                bench.link.abort(ConnectionAbortedError("lost"))
                await until(lambda: client.done, "the end was told")
                await bench.gone()

    run(main())


def test_the_tunnel_fails_under_the_answer(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            with listener() as sock:
                client = Client(bench, Target(LOCALHOST, sock.getsockname()[1]))
                write: Callable[[bytes], None] = bench.session.write

                def fail(frame: bytes) -> None:
                    if frame[0] == Kind.ACCEPT:
                        bench.link.abort(ConnectionResetError("the write failed"))
                    write(frame)

                bench.session.write = fail
                await bench.peer.send(pair.open_(1), pair.data(1, b"early"))
                target = await accepted(bench, sock)
                assert (await target.to_end())[1] is End.RESET
                await bench.gone()
                assert client.done == [(Code.NO_ERROR, None)]

    run(main())


# --- what may be dialled ------------------------------------------------------------------------------------------------


class Names(Resolver):
    """Answers with what the test says, each time with the next of it, and keeps nothing."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *answers: list[dial_module.Address]) -> None:
        super().__init__(loop)
        self.answers = list(answers)

    def known(self, target: Target) -> list[dial_module.Address] | None:
        return None

    async def ask(self, target: Target) -> list[dial_module.Address]:
        return self.answers.pop(0)


def permitted(client: Client, *rules: str) -> None:
    client.permit = Rules.parse(rules), read_place(str(client.target))


def v4(host: str, port: int) -> dial_module.Address:
    return socket.AF_INET, (host, port)


def test_of_the_addresses_of_a_name_only_those_are_dialled_that_are_allowed(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            with listener() as allowed, listener("::1") as forbidden:
                port = allowed.getsockname()[1]
                client = Client(bench, Target("db.example", port))
                there = forbidden.getsockname()[1]
                client.resolver = Names(
                    bench.loop,
                    [
                        (socket.AF_INET6, ("::1", there, 0, 0)),
                        v4("127.0.0.2", port),
                        v4(LOCALHOST, port),
                        v4("10.0.0.1", port),
                    ],
                )
                permitted(client, "127.0.0.1")
                await bench.peer.send(pair.open_(1))
                target = await accepted(bench, allowed)
                assert target.sock.getsockname()[0] == LOCALHOST
                await client.joined()
                with pytest.raises(BlockingIOError):
                    forbidden.accept()

    run(main())


def test_a_name_is_judged_for_each_connection(run: Run) -> None:
    """It leads to an allowed address first, and then, to the very same port, to one that is not (DNS rebinding)."""

    async def main() -> None:
        async with Bench() as bench:
            with listener() as sock:
                port = sock.getsockname()[1]
                client = Client(bench, Target("rebound.example", port))
                mapped: dial_module.Address = (socket.AF_INET6, (f"::ffff:{LOCALHOST}", port, 0, 0))
                client.resolver = Names(bench.loop, [v4(LOCALHOST, port)], [v4("127.0.0.3", port)], [mapped], [mapped])
                permitted(client, "127.0.0.1/32")
                await bench.peer.send(pair.open_(1))
                await accepted(bench, sock)
                await client.joined()
                await bench.peer.send(pair.open_(3))
                assert await client.code() is Code.DIAL_DENIED
                error = client.done.pop()[1]
                assert isinstance(error, DialDeniedError) and error.rule == "loopback" and "127.0.0.3" in str(error)
                await bench.peer.send(pair.open_(5))  # what is IPv4 in IPv6 form is judged as IPv4
                await accepted(bench, sock)
                await client.joined()
                permitted(client, "::/0", "*")
                await bench.peer.send(pair.open_(7))
                assert await client.code() is Code.DIAL_DENIED

    run(main())


def test_a_name_without_addresses_is_not_denied_but_unreachable(run: Run) -> None:
    async def main() -> None:
        async with Bench() as bench:
            client = Client(bench, Target("db.example", 1))
            client.resolver = Names(bench.loop, [])
            permitted(client, "*")
            await bench.peer.send(pair.open_(1))
            assert await client.code() is Code.UNREACHABLE

    run(main())


@pytest.mark.parametrize("host", [LOCALHOST, "::1"])
def test_addresses_are_not_looked_up(run: Run, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    need.ipv6()

    async def main() -> None:
        async with Bench() as bench:
            with listener(host) as sock, monkeypatch.context() as patch:
                client = Client(bench, Target(host, sock.getsockname()[1]))
                client.resolver = Resolver(bench.loop, ThreadPoolExecutor(1))
                patch.setattr(socket, "getaddrinfo", None)
                permitted(client, "127.0.0.0/8", "[::1]")
                await bench.peer.send(pair.open_(1))
                await accepted(bench, sock)
                assert (await bench.peer.frame(Kind.ACCEPT, Kind.RESET)).kind == Kind.ACCEPT

    run(main())


def test_names_are_looked_up_in_threads_of_their_own(run: Run) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as threads:
            resolver = Resolver(asyncio.get_running_loop(), threads)
            found = await resolver.ask(Target("localhost", 80))
            assert (socket.AF_INET, (LOCALHOST, 80)) in found

    run(main())


def test_what_is_known_of_names_is_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial_module, "_MOST_KNOWN", 3)

    async def main() -> None:
        resolver = Resolver(asyncio.get_running_loop())
        targets = [Target(LOCALHOST, port) for port in range(1, 6)]
        for target in (*targets, targets[0]):
            await resolver.ask(target)
        assert [target for target in targets if resolver.known(target)] == [targets[0], *targets[3:]]

    run(main())


def test_a_share_never_takes_every_turn(run: Run) -> None:
    async def main() -> None:
        turns_ = asyncio.Semaphore(3)
        share = Share(turns_, 2)
        free = asyncio.Event()

        async def work(turn: Turn) -> None:
            async with turn:
                await free.wait()

        tasks = [asyncio.ensure_future(work(share)) for _ in range(5)]
        await turns(3)
        assert turns_._value == 1, "one is left for others"
        others = [asyncio.ensure_future(work(turns_)) for _ in range(2)]
        await turns(3)
        for task in (tasks[0], tasks[4], others[1]):  # one of those who are in, one of those who wait for each
            task.cancel()
        await turns(3)
        free.set()
        await asyncio.gather(*tasks, *others, return_exceptions=True)
        assert (turns_._value, share._own._value) == (3, 2)

    run(main())


def test_what_a_target_said_before_it_was_reset_is_not_lost(run: Run) -> None:
    """All of it happens while the connection is being made."""

    class Sock(socket.socket):
        def connect_ex(self, address: Any) -> int:
            error = super().connect_ex(address)
            peer, _ = target.accept()
            peer.sendall(b"before")
            peers.handed_over(peer)
            peers.reset(peer)
            return error

    async def main() -> None:
        with Sock() as sock:
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            with pytest.raises(ConnectionResetError):
                await dial_module.connect(loop, sock, target.getsockname(), loop.time() + 5)
            assert sock.recv(100) == b"before"

    with socket.create_server((LOCALHOST, 0)) as target:
        run(main())
