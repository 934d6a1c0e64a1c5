"""Visitors and targets in one loop: each connection follows a plan that both of its ends know, and every byte and every end is checked.

While a tunnel is cut or the relay is away a connection may be refused or reset. It may never end cleanly before its time, or carry a wrong byte.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Awaitable
from dataclasses import dataclass

from tests.support import peers
from tests.support.payload import Checker, Keystream
from tests.support.peers import Address, End

PATIENCE = 60.0
PIECE = 65_536
NUMBER = struct.Struct(">I")
SIZES = ((0, 200), (200, 4_000), (4_000, 60_000), (60_000, 600_000))
SIZES_WEIGHTS = (20, 50, 25, 5)
KINDS = {
    "visitor ends first": 40,
    "target ends first": 20,
    "both at once": 20,
    "visitor resets": 10,
    "target resets": 10,
}


@dataclass(frozen=True)
class Plan:
    """`up` bytes from the visitor, `down` from the target; whoever comes second, or resets, thinks for `pause` seconds before."""

    number: int
    kind: str
    up: int
    down: int
    pause: float


class EarlyEndError(AssertionError):
    """A direction ended cleanly before its time."""


class Load:
    """`rate` connections a second while `flowing`. `failures` are sentences; none is right."""

    def __init__(self, seed: int, rate: float) -> None:
        self.address: Address = ("", 0)
        self.done = 0
        self.bytes = 0
        self.lost = 0  # those that a disorder ended
        self.failures: list[str] = []
        self.ends: dict[str, int] = {}
        self.disorders = 0
        self.in_disorder = False
        self.open: set[asyncio.Task[None]] = set()
        self._targets: set[asyncio.Task[None]] = set()
        self._random = random.Random(seed)
        self._rate = rate
        self._loop = asyncio.get_running_loop()
        self._plans: dict[int, Plan] = {}
        self._numbers = 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.listener.setblocking(False)
        self._accepting = self._loop.create_task(self._accept())

    async def close(self) -> None:
        for task in (self._accepting, *self.open, *self._targets):
            task.cancel()
        await asyncio.gather(self._accepting, *self.open, *self._targets, return_exceptions=True)
        self.listener.close()

    # --- visitors ------------------------------------------------------------------------------------------------------

    async def flow(self, until: float) -> None:
        """Start connections until the loop's time is `until`, at random moments."""
        due = self._loop.time()
        while due < until:
            due += self._random.expovariate(self._rate)
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            self.start()

    def start(self) -> None:
        task = self._loop.create_task(self._visit(self._plan()))
        self.open.add(task)
        task.add_done_callback(self.open.discard)

    async def quiet(self) -> None:
        """Wait until every connection has ended, at both ends."""
        async with asyncio.timeout(2 * PATIENCE):
            while self.open or self._targets:
                await asyncio.sleep(0.05)
        self._plans.clear()

    async def again(self) -> float:
        """Try until a connection works from end to end; seconds until then."""
        start = self._loop.time()
        while self._loop.time() - start < PATIENCE:
            number = self._next()
            self._plans[number] = plan = Plan(number, "visitor ends first", 100, 100, 0.0)
            try:
                await self._visitor(plan)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                return self._loop.time() - start
        self.failures.append(f"no connection worked within {PATIENCE:g} s after a disorder")
        return PATIENCE

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers

    def _plan(self) -> Plan:
        dice = self._random
        up, down = (dice.randint(*dice.choices(SIZES, SIZES_WEIGHTS)[0]) for _ in range(2))
        kind = dice.choices(list(KINDS), list(KINDS.values()))[0]
        # Most are short, a few stay for seconds: some are always there when something happens.
        pause = dice.choice((0.0, 0.0, 0.0, 0.01, 0.1, 5.0))
        plan = Plan(self._next(), kind, up, down, pause)
        self._plans[plan.number] = plan
        return plan

    async def _visit(self, plan: Plan) -> None:
        await self._checked(plan, "visitor", self._visitor(plan))
        self.done += 1

    async def _visitor(self, plan: Plan) -> None:
        with socket.socket() as sock:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.sock_connect(sock, self.address)
            await self._loop.sock_sendall(sock, NUMBER.pack(plan.number))
            await self._end(sock, plan, "visitor", "target", plan.up, plan.down)

    # --- targets -------------------------------------------------------------------------------------------------------

    async def _accept(self) -> None:
        while True:
            sock, _ = await self._loop.sock_accept(self.listener)
            task = self._loop.create_task(self._target(sock))
            self._targets.add(task)
            task.add_done_callback(self._targets.discard)

    async def _target(self, sock: socket.socket) -> None:
        with sock:
            head = b""
            try:
                async with asyncio.timeout(PATIENCE):
                    while len(head) < NUMBER.size:
                        piece = await self._loop.sock_recv(sock, NUMBER.size - len(head))
                        if not piece:
                            self.failures.append("a target saw a clean end before the first bytes of its visitor")
                            return
                        head += piece
            except TimeoutError:
                self.failures.append("a target was connected and heard nothing")
                return
            except OSError:
                return  # a visitor that was reset before it was heard
            plan = self._plans.get(NUMBER.unpack(head)[0])
            if plan is None:
                self.failures.append(f"a target heard of a visitor that is not there: {head.hex()}")
                return
            await self._checked(plan, "target", self._end(sock, plan, "target", "visitor", plan.down, plan.up))

    # --- both ----------------------------------------------------------------------------------------------------------

    async def _checked(self, plan: Plan, who: str, work: Awaitable[None]) -> None:
        """Run one end. Only a disorder excuses a failure, and only one of the connection."""
        began = self.disorders
        excused = self.in_disorder
        try:
            async with asyncio.timeout(PATIENCE):
                await work
        except TimeoutError:
            self.failures.append(f"{who} of {plan}: nothing for {PATIENCE:g} s")
        except OSError as error:
            if excused or self.in_disorder or self.disorders != began:
                self.lost += 1
                return
            self.failures.append(f"{who} of {plan}: {error!r}")
        except AssertionError as error:
            self.failures.append(f"{who} of {plan}: {error}")
        else:
            self.ends[plan.kind] = self.ends.get(plan.kind, 0) + 1

    async def _end(self, sock: socket.socket, plan: Plan, we: str, they: str, ours: int, theirs: int) -> None:
        """One end of a connection. Raises OSError for a reset that the plan does not have, AssertionError for what no plan has."""
        out, checker = Keystream((plan.number, we)), Checker((plan.number, they))
        if plan.kind == f"{we} resets":
            await self._send(sock, out, ours)
            await asyncio.sleep(plan.pause)
            peers.reset(sock)
            return
        if plan.kind == f"{they} resets":
            end = await self._read(sock, checker)
            assert end is End.RESET, f"a clean end after {checker.received} bytes of a connection that was reset"
            assert checker.received <= theirs
            return
        if plan.kind == f"{we} ends first":
            await self._send(sock, out, ours, end=True)
            await self._whole(sock, checker, theirs)
        elif plan.kind == f"{they} ends first":
            await self._whole(sock, checker, theirs)
            await asyncio.sleep(plan.pause)
            await self._send(sock, out, ours, end=True)
        else:
            both = self._send(sock, out, ours, end=True), self._whole(sock, checker, theirs)
            sent, read = await asyncio.gather(*both, return_exceptions=True)
            # The kernel tells of a reset once: if who sends has heard of it, who reads sees an end.
            if isinstance(read, EarlyEndError) and isinstance(sent, ConnectionError):
                raise sent
            for error in (read, sent):
                if error is not None:
                    raise error

    async def _send(self, sock: socket.socket, stream: Keystream, size: int, *, end: bool = False) -> None:
        while size:
            piece = stream.take(min(size, PIECE))
            await self._loop.sock_sendall(sock, piece)
            size -= len(piece)
        if end:
            sock.shutdown(socket.SHUT_WR)

    async def _read(self, sock: socket.socket, checker: Checker) -> End:
        while True:
            try:
                piece = await self._loop.sock_recv(sock, PIECE)
            except ConnectionError:
                return End.RESET
            if not piece:
                return End.EOF
            self.bytes += len(piece)
            checker.feed(piece)

    async def _whole(self, sock: socket.socket, checker: Checker, size: int) -> None:
        """Everything, and then a clean end."""
        if await self._read(sock, checker) is End.RESET:
            raise ConnectionResetError(f"after {checker.received} of {size} bytes")
        if checker.received != size:
            raise EarlyEndError(f"a clean end after {checker.received} of {size} bytes")
