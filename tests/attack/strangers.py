"""Strangers, from addresses of their own: those who stall, each in its phase of the handshake, and those who log in with wrong tokens."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
import itertools
import ssl
import threading
import time
from collections.abc import Sequence
from typing import Self

from tests.attack.client import ALPN, auth, hello
from tests.attack.frames import HEADER_SIZE, Code, Kind, Token, frame
from tests.support import need
from tests.support.peers import Address

TRICKLE = 0.5
"""Seconds between two bytes of one that says a byte now and then."""


class Phase(enum.Enum):
    TCP = "nothing is said"
    CLIENT_HELLO = "half a ClientHello"
    HANDSHAKE = "a ClientHello, and nothing more"
    HELLO = "HELLO, byte by byte"
    AUTH = "AUTH, byte by byte"


_TRICKLED = {Phase.HELLO: Kind.HELLO, Phase.AUTH: Kind.AUTH}


class Stalled:
    """What became of one that got where it wanted to be: seconds from its connect until the relay said or did something about it."""

    def __init__(self, phase: Phase, source: str, seconds: float, told: bool) -> None:
        self.phase = phase
        self.source = source
        self.seconds = seconds
        self.told = told  # with a GOAWAY


class Crowd:
    """Does its work on a loop in a thread of its own, from the beginning of its `with` block to the end."""

    def __init__(self, address: Address) -> None:
        need.uvloop()
        self.address = address
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        self.context.set_alpn_protocols([ALPN])
        self._failure: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    async def work(self) -> None:
        """Is cancelled in the end."""
        raise NotImplementedError

    async def connect(self, source: str, *, tls: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            *self.address,
            local_addr=(source, 0),
            ssl=self.context if tls else None,
            server_hostname="" if tls else None,
        )

    def _run(self) -> None:
        import uvloop

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # what becomes of them is counted
            working = asyncio.ensure_future(self.work())
            while not self._over.is_set() and not working.done():
                await asyncio.sleep(0.02)
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            if not working.cancelled() and (failure := working.exception()) is not None:
                raise failure

        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(main())
        except BaseException as failure:
            self._failure = failure

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure


class Slowloris(Crowd):
    """Keeps `number` connections, from `sources` in turn and in `phases` in turn: who is ended comes again, `rate` a second of them all."""

    def __init__(
        self, address: Address, number: int, sources: Sequence[str], phases: Sequence[Phase], rate: float
    ) -> None:
        super().__init__(address)
        self.number = number
        self.sources = sources
        self.phases = phases
        self.rate = rate
        self.opened = 0
        self.stalling: dict[
            object, tuple[Phase, float]
        ] = {}  # those who are where they wanted to be, and when they came
        self.past: list[Stalled] = []
        self.pushed_out = 0  # before they got that far

    async def work(self) -> None:
        turns = itertools.cycle([(source, phase) for phase in self.phases for source in self.sources])
        tasks: set[asyncio.Task[None]] = set()
        started = time.monotonic()
        try:
            while True:
                most = self.number + (time.monotonic() - started) * self.rate
                for _ in range(100):
                    if len(tasks) < self.number and self.opened < most:
                        self.opened += 1
                        task = asyncio.ensure_future(self._one(*next(turns)))
                        tasks.add(task)
                        task.add_done_callback(tasks.discard)
                await asyncio.sleep(0.02)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, source: str, phase: Phase) -> None:
        came = time.monotonic()
        me = object()
        try:
            reader, writer = await self.connect(source, tls=phase in _TRICKLED)
        except OSError:
            self.pushed_out += 1
            return
        try:
            words = await self._stall(reader, writer, phase)
            self.stalling[me] = phase, came
            told = False
            with contextlib.suppress(OSError):
                told = await self._trickle(reader, writer, words)
            self.past.append(Stalled(phase, source, time.monotonic() - came, told))
            while told and await reader.read(8192):
                pass
        except (OSError, asyncio.IncompleteReadError):
            self.pushed_out += 1
        finally:
            self.stalling.pop(me, None)
            writer.transport.abort()

    async def _stall(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, phase: Phase) -> bytes:
        """Get into the phase; returns what is said there, byte by byte."""
        if phase in (Phase.CLIENT_HELLO, Phase.HANDSHAKE):
            words = client_hello(self.context)
            writer.write(words if phase is Phase.HANDSHAKE else words[: len(words) // 2])
            if phase is Phase.HANDSHAKE:
                await reader.readexactly(1)  # of its answer: now the relay waits for us
        if phase is Phase.AUTH:
            writer.write(frame(Kind.HELLO, 0, hello(fingerprint(writer))))
            head = await reader.readexactly(HEADER_SIZE)
            await reader.readexactly(int.from_bytes(head[1:4], "big"))
        kind = _TRICKLED.get(phase)
        return b"" if kind is None else frame(kind, 0, bytes(2000))

    async def _trickle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, words: bytes) -> bool:
        """Until the relay has had enough; whether it says so."""
        while True:
            writer.write(words[:1])
            words = words[1:]
            try:
                async with asyncio.timeout(TRICKLE if words else None):
                    while said := await reader.read(8192):
                        if words:
                            return said[0] == Kind.GOAWAY
                return False
            except TimeoutError:
                pass


class Site(Crowd):
    """Honest clients, all from one address, as after a restart of their relay: each logs in once, all within `spread` seconds."""

    def __init__(self, address: Address, token: Token, source: str, number: int, spread: float) -> None:
        super().__init__(address)
        self.token = token
        self.source = source
        self.number = number
        self.spread = spread
        self.admitted: list[float] = []  # seconds that it took
        self.failed = 0

    async def work(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self.number):
                group.create_task(self._come(number))

    async def _come(self, number: int) -> None:
        await asyncio.sleep(self.spread * number / self.number)
        start = time.monotonic()
        try:
            reader, writer = await self.connect(self.source, tls=True)
            try:
                await try_token(reader, writer, self.token, f"site-{number}", Kind.WELCOME)
            finally:
                writer.transport.abort()
        except (OSError, asyncio.IncompleteReadError):
            self.failed += 1
        else:
            self.admitted.append(time.monotonic() - start)


class Guessers(Crowd):
    """Logs in with tokens that nobody has, `at_once` at a time, from `sources` in turn; each gives up after `patience` seconds."""

    def __init__(
        self, address: Address, token: Token, sources: Sequence[str], at_once: int, total: int, patience: float
    ) -> None:
        super().__init__(address)
        self.token = token
        self.sources = itertools.cycle(sources)
        self.at_once = at_once
        self.left = total
        self.patience = patience
        self.answered: list[float] = []  # when
        self.unanswered = 0

    async def work(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self.at_once):
                group.create_task(self._guess())

    async def _guess(self) -> None:
        while self.left > 0:
            self.left -= 1
            try:
                async with asyncio.timeout(self.patience):
                    await self._once(next(self.sources))
                self.answered.append(time.monotonic())
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                self.unanswered += 1
                await asyncio.sleep(0.001)

    async def _once(self, source: str) -> None:
        reader, writer = await self.connect(source, tls=True)
        try:
            refusal = await try_token(reader, writer, self.token, "guesser", Kind.GOAWAY)
            assert int.from_bytes(refusal[4:8], "big") == Code.UNAUTHORIZED, refusal
        finally:
            writer.transport.abort()


async def try_token(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: Token, name: str, wanted: Kind
) -> bytes:
    """The payload of the relay's last answer, which is of this kind."""

    async def answer(kind: Kind) -> bytes:
        head = await reader.readexactly(HEADER_SIZE)
        payload = await reader.readexactly(int.from_bytes(head[1:4], "big"))
        assert head[0] == kind, f"{head[0]} is not {kind}: {payload!r}"
        return payload

    bound = fingerprint(writer)
    ours = hello(bound)
    writer.write(frame(Kind.HELLO, 0, ours))
    words, _ = auth(token, ours, await answer(Kind.HELLO), bound, name, name)
    writer.write(words)
    return await answer(wanted)


def client_hello(context: ssl.SSLContext) -> bytes:
    """What a client says first in TLS."""
    said = ssl.MemoryBIO()
    try:
        context.wrap_bio(ssl.MemoryBIO(), said).do_handshake()
    except ssl.SSLWantReadError:
        return said.read()
    raise AssertionError("a handshake with nobody is done")


def fingerprint(writer: asyncio.StreamWriter) -> bytes:
    """SHA-256 of the relay's certificate."""
    return hashlib.sha256(writer.get_extra_info("ssl_object").getpeercert(binary_form=True)).digest()
