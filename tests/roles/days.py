"""A relay, its clients and their visitors through days of virtual time: what happens to them, hour by hour, and what must hold after each.

Everything is drawn from one seed. Lives are jittered: visitors come for a moment or for most of an hour, tunnels are cut or go silent, the
relay stops in order or at once and stays away for a while, guests come back after hours or days, as themselves or as another installation.
"""

from __future__ import annotations

import asyncio
import collections
import gc
import logging
import random
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import pytest

from fastrelay.config import ClientConfig, Exposure, Public, Relay, Target
from fastrelay.errors import StartError
from fastrelay.roles.client import Client
from fastrelay.roles.tunnel import Tunnel
from fastrelay.state import ClientState
from fastrelay.wire import DEAD_AFTER, DRAIN_TIME, GOODBYE_TIME, HALF_OPEN_IDLE, MAX_DIALS, PING_AFTER, RESERVED_TIME
from tests.conftest import open_files
from tests.roles.test_server import LOCALHOST, RelayBench
from tests.support import peers
from tests.support.payload import Keystream
from tests.support.virtual import Clock, Loop

T = TypeVar("T")

HOUR = 3600.0
BUSY = 2700.0
"""Seconds of an hour in which something begins; then it may come to its end, and the hour is judged."""
BACK = 30 + 2
"""Seconds within which every client is back when the relay is: the longest wait between two tries, and a moment to connect."""
SILENT = DEAD_AFTER + PING_AFTER + GOODBYE_TIME + 5
"""Seconds within which a tunnel that went silent is replaced."""
GUESTS = ("guest-1", "guest-2", "guest-3")
NATIVES = ("home", "nas")
KINDS = ("ask", "ask", "ask", "ask", "stay", "stay", "reset", "reset", "half-open", "silent")
LEAVE = 60.0


class Deck(Generic[T]):
    """All of it comes, in any order, before any of it comes again."""

    def __init__(self, dice: random.Random, cards: Sequence[T]) -> None:
        self._dice = dice
        self._cards = cards
        self._left: list[T] = []

    def draw(self) -> T:
        if not self._left:
            self._left = self._dice.sample(self._cards, len(self._cards))
        return self._left.pop()


class Resident:
    """A client that is up, and the port that its service had when it came."""

    def __init__(self, world: World, name: str, instance: int) -> None:
        self.name = name
        self.port = 0
        relay = Relay(LOCALHOST, world.relay.port, tls=False)
        state = world.home / f"{name}-{instance}"
        exposures = (Exposure("echo", 0, Target(LOCALHOST, world.target.getsockname()[1])),)
        config = ClientConfig(relay, world.relay.token.text(), exposures, name, state)
        self.client = Client(config, ClientState.open(state, relay.url, name), self._reachable)
        self.running = asyncio.create_task(self.client.run(), name=f"client {name}")

    def _reachable(self, exposure: Exposure, public: Public) -> None:
        assert self.port in (0, public.port), f"{self.name} had the port {self.port} and has {public.port} now"
        self.port = public.port

    async def leave(self) -> None:
        self.client.drain()
        async with asyncio.timeout(LEAVE):
            await self.running
        await self.client.close()

    async def close(self) -> None:
        await self.client.close()
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)


class World(logging.Handler):
    """`hours` of it. `counts` says what has happened."""

    def __init__(self, home: Path, clock: Clock, loop: Loop, seed: int) -> None:
        super().__init__()
        self.home = home
        self.clock = clock
        self.loop = loop
        self.counts: collections.Counter[str] = collections.Counter()
        self.longest: dict[str, float] = collections.defaultdict(float)
        self.random = random.Random(seed)
        random.seed(seed)  # the clients' jitter
        self._visitor_kinds = Deck(self.random, KINDS)
        disorders = (self._cut, self._cut, self._hush, self._suspend, self._restart)
        self._disorder_kinds = Deck[Callable[[], Awaitable[None]]](self.random, disorders)
        self.relay = RelayBench(home / "relay")
        self.residents: dict[str, Resident] = {}
        self.away: dict[str, tuple[float, int, int]] = {}  # guest -> when it left, its installation, its port
        self.disorders = 0
        self.connects = 0  # that there must have been
        self.visits: set[asyncio.Task[None]] = set()
        self.answers: set[asyncio.Task[None]] = set()
        self.target = socket.create_server((LOCALHOST, 0), backlog=100)
        self.target.setblocking(False)
        self.errors: list[str] = []
        self._held: dict[int, dict[str, object]] = {}  # residents -> what was held when there were so many first

    def emit(self, record: logging.LogRecord) -> None:
        event = str(getattr(record, "event", "?"))
        self.counts[event] += 1
        if record.levelno >= logging.ERROR:
            self.errors.append(f"{event}: {record.getMessage()}")

    # --- life ----------------------------------------------------------------------------------------------------------

    async def live(self, hours: int) -> None:
        self.loop.set_exception_handler(lambda _, context: self.errors.append(str(context)))
        accepting = asyncio.create_task(self._accept(), name="target")
        self.relay.start()
        try:
            for name in NATIVES:
                await self._come(name, 0)
            for _ in range(hours):
                await self._hour()
        finally:
            for resident in self.residents.values():
                await resident.close()
            await self.relay.close()
            tasks = (accepting, *self.visits, *self.answers)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.target.close()

    async def _hour(self) -> None:
        dice, start = self.random, self.loop.time()
        await self._guests()
        happens: list[Callable[[], Awaitable[None]]] = [self._visitor] * dice.randint(5, 25)
        happens += [self._disorder_kinds.draw() for _ in range(dice.choice((0, 1, 1, 2, 4)))]
        plan = [(dice.uniform(0, BUSY), happen) for happen in happens]
        for at, happen in sorted(plan, key=lambda one: one[0]):
            await asyncio.sleep(max(0.0, start + at - self.loop.time()))
            await happen()
        async with asyncio.timeout(HOUR):
            while self.visits or self.answers:
                await asyncio.wait((*self.visits, *self.answers))
        # What is reset or refused may drain for a moment, and lines about it may be held back for some.
        await asyncio.sleep(max(60.0, start + HOUR - self.loop.time()))
        self.judge()

    # --- clients -------------------------------------------------------------------------------------------------------

    async def _come(self, name: str, instance: int) -> Resident:
        resident = self.residents[name] = Resident(self, name, instance)
        self.connects += 1
        await self._back("came", BACK, [name], {})
        assert resident.port == self._tunnel(name)
        return resident

    async def _guests(self) -> None:
        """Some leave and some come. A name and a port stay with an installation for a day after it has left."""
        dice = self.random
        for name in GUESTS:
            if name in self.residents:
                if dice.random() < 0.4:
                    guest = self.residents.pop(name)
                    await guest.leave()
                    _, instance, _ = self.away.get(name, (0.0, 0, 0))
                    self.away[name] = (self.clock.time(), instance, guest.port)
            elif dice.random() < 0.15 or not self.away:
                left, instance, port = self.away.get(name, (-1e9, 0, 0))
                reserved = self.clock.time() - left < RESERVED_TIME
                if abs(self.clock.time() - left - RESERVED_TIME) < 10:
                    continue
                other = dice.random() < 0.4
                if other and reserved:
                    await self._refused(name, instance + 1)
                    continue
                self.away[name] = (left, instance + other, port)
                guest = await self._come(name, instance + other)
                self.counts["guests that came back to a reservation" if reserved else "guests that came anew"] += 1
                assert not reserved or guest.port == port

    async def _refused(self, name: str, instance: int) -> None:
        stranger = Resident(self, name, instance)
        async with asyncio.timeout(BACK):
            with pytest.raises(StartError, match="reserved"):
                await stranger.running
        await stranger.close()
        self.counts["strangers that were refused a name"] += 1

    def _tunnel(self, name: str, former: Tunnel | None = None) -> int:
        """The public port of a client that is up, with another tunnel than the former one; 0 as long as it is not."""
        for tunnel in self.relay.server._tunnels.values():
            if tunnel.name == name and tunnel is not former and tunnel.services:
                return next(iter(tunnel.services.values())).port
        return 0

    def _tunnels(self, names: list[str]) -> dict[str, Tunnel]:
        return {tunnel.name: tunnel for tunnel in self.relay.server._tunnels.values() if tunnel.name in names}

    async def _back(self, why: str, within: float, names: list[str], former: dict[str, Tunnel]) -> None:
        start = self.loop.time()
        while not all(self._tunnel(name, former.get(name)) for name in names):
            assert self.loop.time() - start < within, f"{names}: not back {within:g} s after {why}"
            for name in names:
                running = self.residents[name].running
                assert not running.done(), f"{name} has given up: {running}"
            await asyncio.sleep(0.05)
        for name in names:
            resident = self.residents[name]
            assert resident.port in (0, self._tunnel(name)), f"{name} lost its port"
            while not resident.port:
                await asyncio.sleep(0.01)
        self.longest[why] = max(self.longest[why], self.loop.time() - start)
        self.counts[why] += 1

    # --- what happens --------------------------------------------------------------------------------------------------

    async def _cut(self) -> None:
        name = self.random.choice(list(self.residents))
        former = self._tunnels([name])
        self.disorders += 1
        self.connects += 1
        link = self.residents[name].client._link
        assert link is not None
        (link if self.random.random() < 0.5 else former[name].link).transport.abort()
        await self._back("a tunnel was cut", 5, [name], former)

    async def _hush(self) -> None:
        """Both ends hear nothing any more, and nobody tells them."""
        name = self.random.choice(list(self.residents))
        former = self._tunnels([name])
        self.disorders += 1
        self.connects += 1
        link = self.residents[name].client._link
        assert link is not None
        for end in (link, former[name].link):
            end.transport.pause_reading()
        await self._back("a tunnel went silent", SILENT, [name], former)

    async def _suspend(self) -> None:
        """All machines sleep: nothing is lost, and the clients ask at once."""
        self.clock.sleep(self.random.uniform(10, 1000))
        await asyncio.sleep(15)
        self.counts["a suspended machine"] += 1

    async def _restart(self) -> None:
        names = list(self.residents)
        former = self._tunnels(names)
        self.disorders += 1
        self.connects += len(names)
        if self.random.random() < 0.5:
            async with asyncio.timeout(DRAIN_TIME + 1):
                await self.relay.server.drain()
        await self.relay.close()
        await asyncio.sleep(self.random.choice((0.0, 1.0, 30.0, 600.0)) * self.random.random())
        self.relay.start()
        await self._back("the relay was away", BACK, names, former)
        self.disorders += 1

    # --- visitors ------------------------------------------------------------------------------------------------------

    async def _visitor(self) -> None:
        name = self.random.choice(list(self.residents))
        kind = self._visitor_kinds.draw()
        size, pause = self.random.choice((0, 1, 500, 100_000)), self.random.uniform(0, HOUR - BUSY - 400)
        task = asyncio.create_task(self._visit(kind, self.residents[name].port, size, pause), name=f"visitor {kind}")
        self.visits.add(task)
        task.add_done_callback(self.visits.discard)

    async def _visit(self, kind: str, port: int, size: int, pause: float) -> None:
        began = self.disorders
        try:
            with socket.socket() as sock:
                sock.setblocking(False)
                await self.loop.sock_connect(sock, (LOCALHOST, port))
                await self._talk(sock, kind, Keystream(self.counts["visitors"]).take(size), pause)
        except OSError as error:
            if self.disorders == began:
                self.errors.append(f"a visitor ({kind}) that nobody disturbed: {error!r}")
            self.counts["visitors that were cut off"] += 1
        except AssertionError as error:
            self.errors.append(f"a visitor ({kind}): {error}")
        else:
            self.counts["visitors"] += 1
            self.counts[f"visitors ({kind})"] += 1

    async def _talk(self, sock: socket.socket, kind: str, data: bytes, pause: float) -> None:
        loop = self.loop
        await loop.sock_sendall(sock, b"h" if kind == "half-open" else b"e")
        if kind == "reset":
            await loop.sock_sendall(sock, data)
            peers.reset(sock)
            return
        if kind == "silent":
            await asyncio.sleep(pause)
        if kind == "half-open":  # the target does not end: the relay ends it for both
            sock.shutdown(socket.SHUT_WR)
            start = loop.time()
            try:
                rest = await loop.sock_recv(sock, 100)
            except ConnectionResetError:
                seconds = loop.time() - start
                if seconds < HALF_OPEN_IDLE:  # which only a disorder excuses
                    raise
                assert seconds < HALF_OPEN_IDLE + 2 * PING_AFTER, f"reset after {seconds:.1f} s"
                return
            raise AssertionError(f"{rest!r} from a target that says nothing")
        if kind == "stay":
            await self._echo(sock, b"before")
            await asyncio.sleep(pause)
        await self._echo(sock, data)
        sock.shutdown(socket.SHUT_WR)
        rest = await loop.sock_recv(sock, 100)
        assert rest == b"", f"{rest!r} after the end"

    async def _echo(self, sock: socket.socket, data: bytes) -> None:
        sending = asyncio.create_task(self.loop.sock_sendall(sock, data))
        try:
            got = b""
            while len(got) < len(data):
                piece = await self.loop.sock_recv(sock, 65_536)
                assert piece, f"a clean end after {len(got)} of {len(data)} bytes"
                got += piece
            assert got == data, "other bytes"
        finally:
            if not sending.done():
                sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            sock, _ = await self.loop.sock_accept(self.target)
            task = asyncio.create_task(self._answer(sock), name="target of a visitor")
            self.answers.add(task)
            task.add_done_callback(self.answers.discard)

    async def _answer(self, sock: socket.socket) -> None:
        """An echo; or one that never says a word, and waits for the reset."""
        with sock:
            try:
                if await self.loop.sock_recv(sock, 1) == b"h":
                    while not peers.hang_up(sock, 0):
                        await asyncio.sleep(1)
                    return
                while piece := await self.loop.sock_recv(sock, 65_536):
                    await self.loop.sock_sendall(sock, piece)
            except OSError:
                pass

    # --- what must hold ------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Nobody is connected: nothing is left of those who were, and every client is up."""
        assert not self.errors, self.errors
        server = self.relay.server
        here = sorted(self.residents)
        assert sorted(tunnel.name for tunnel in server._tunnels.values()) == here
        assert self.counts["client.connected"] == self.connects, "a tunnel was lost that nobody disturbed"
        assert len(server._links) == len(here), "links that are no tunnel's"
        assert sorted(server.registry._here) == here
        for runtime in (server.runtime, *(one.client.runtime for one in self.residents.values())):
            assert runtime.edges == 0 and runtime.pool.used == 0 and not runtime.watch._watched and not runtime._tasks
        sessions = [tunnel.session for tunnel in server._tunnels.values()]
        for resident in self.residents.values():
            client = resident.client
            assert client._session is not None and client._link is not None and not client._link.blocked
            assert client._dials._value == MAX_DIALS
            sessions.append(client._session)
        for session in sessions:
            assert not session.streams and session.pool.used == 0 and not session._half_open and not session.going_away
        self._judge_reservations()
        self._judge_holdings()
        self.counts["hours"] += 1

    def _judge_reservations(self) -> None:
        """Of those who are away for more than a day nothing is kept, at the latest when the next one comes."""
        registry, now = self.relay.server.registry, self.clock.time()
        kept = registry.reservations(now)
        missing = {name for name, (left, _, _) in self.away.items() if now - left < RESERVED_TIME} - set(kept)
        assert not missing, f"{missing} left within the last day, and their names are free"
        registry.expire(now)
        kept = registry.reservations(now)
        stale = [name for name in kept if name not in self.residents and now - self.away[name][0] > RESERVED_TIME + 60]
        assert not stale, f"{stale} are reserved for more than a day"
        assert sorted(registry._owner.values()) == sorted(kept), "a port for each name"

    def _judge_holdings(self) -> None:
        """Tasks, timers and descriptors: with so many clients the same as ever."""
        gc.collect()
        timers = [handle for handle in self.loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
        timers = [one for one in timers if getattr(one._callback, "__name__", "") != "_save"]  # which is due every hour
        assert len(self.loop._scheduled) < 1000, "timers that were cancelled and are kept"  # type: ignore[attr-defined]
        held: dict[str, object] = {
            "tasks": collections.Counter(task.get_name().partition("-")[0] for task in asyncio.all_tasks()),
            "timers": collections.Counter(getattr(one._callback, "__qualname__", "?") for one in timers),
            "files": collections.Counter(re.sub(r":.*|/.*", "", name) for _, name in open_files()),
        }
        files = held["files"]
        assert isinstance(files, collections.Counter)
        files["socket"] -= len(self.relay.server.held._held)  # ports of guests that are away
        before = self._held.setdefault(len(self.residents), held)
        assert held == before, f"with {len(self.residents)} clients it held\n{before}\nand holds now\n{held}"
        tasks, timers_held = held["tasks"], held["timers"]
        assert isinstance(tasks, collections.Counter) and isinstance(timers_held, collections.Counter)
        assert tasks.total() == len(self.residents) + 2, tasks  # the target and this one
        assert timers_held["Link._tick"] == 2 * len(self.residents), timers_held
