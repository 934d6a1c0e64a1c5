"""Virtual time: a loop on which nobody waits, so that days of a relay's life pass in seconds.

The clock stands while anything is ready, and jumps to the next timer when nothing is. `time.monotonic`, `time.time` and CLOCK_BOOTTIME follow
it. Sockets are real, and what is on its way between two of them takes real time: before a jump every TCP socket that the loop knows is asked
whether its peer has acknowledged what was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import selectors
import socket
import termios
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import HasFileno

T = TypeVar("T")
_Socket = socket.SocketType  # the bare type: made of a descriptor without a system call

_LONG = 0.02
"""Real seconds after which what is on its way has arrived, or waits for something that only a jump can bring."""
_TURN = 1e-6
"""Seconds that a turn of the loop takes, so that what comes later is later."""
_NONE = bytes(4)
_STUCK = 10.0
"""Real seconds in which a thread must be done."""


class Clock:
    """Seconds since `start`; `wall` is unix time at the start."""

    def __init__(self, start: float = 1000.0, wall: float = 1_700_000_000.0) -> None:
        self.now = start
        self._wall = wall - start
        self.slept = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + self.slept + self._wall

    def sleep(self, seconds: float) -> None:
        """The machine is suspended for so long: monotonic time does not count it."""
        self.slept += seconds

    @contextlib.contextmanager
    def rules(self) -> Iterator[None]:
        """Within the block the process asks this clock."""
        real = {name: getattr(time, name) for name in ("monotonic", "time", "clock_gettime")}

        def clock_gettime(which: int) -> float:
            return self.now + self.slept if which == time.CLOCK_BOOTTIME else float(real["clock_gettime"](which))

        virtual: dict[str, object] = {"monotonic": self.monotonic, "time": self.time, "clock_gettime": clock_gettime}
        try:
            for name, function in virtual.items():
                setattr(time, name, function)
            yield
        finally:
            for name, function in real.items():
                setattr(time, name, function)


class _Selector(selectors.SelectSelector):
    """Where it would wait, time jumps."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._tcp: dict[int, _Socket] = {}
        self.threads = 0  # that will say something in real time
        self.jumps = 0

    def register(self, fileobj: int | HasFileno, events: int, data: Any = None) -> selectors.SelectorKey:
        key = super().register(fileobj, events, data)
        try:
            sock = _Socket(socket.AF_INET, socket.SOCK_STREAM, 0, key.fd)
        except OSError:
            return key
        protocol, listens = (
            sock.getsockopt(socket.SOL_SOCKET, what) for what in (socket.SO_PROTOCOL, socket.SO_ACCEPTCONN)
        )
        if protocol == socket.IPPROTO_TCP and not listens:
            self._tcp[key.fd] = sock
        else:
            sock.detach()
        return key

    def unregister(self, fileobj: int | HasFileno) -> selectors.SelectorKey:
        key = super().unregister(fileobj)
        if key.fd in self._tcp:
            self._tcp.pop(key.fd).detach()
        return key

    def close(self) -> None:
        for sock in self._tcp.values():
            sock.detach()
        self._tcp.clear()
        super().close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._clock.now += _TURN
        ready = super().select(0)
        return self._wait(timeout) if not ready and timeout != 0 else ready

    def _wait(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        clock = self._clock
        if self.threads or timeout is None:
            ready = super().select(_STUCK)
            assert ready, f"nothing has happened for {_STUCK:g} s, and nothing will"
            return ready
        ready = super().select(_LONG) if self._on_the_way() else []
        if not ready:
            clock.now += timeout
            self.jumps += 1
        return ready

    def _on_the_way(self) -> bool:
        """Whether a connection is being made, or bytes have left that nobody has yet."""
        for sock in self._tcp.values():
            sock.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1
            )  # what has come is acknowledged now, not 40 ms later
        connecting = any(key.events & selectors.EVENT_WRITE for key in self.get_map().values())
        return connecting or any(fcntl.ioctl(fd, termios.TIOCOUTQ, _NONE) != _NONE for fd in self._tcp)


class Loop(asyncio.SelectorEventLoop):
    """asyncio's own loop in virtual time. While a thread works for it, time stands."""

    def __init__(self, clock: Clock) -> None:
        self._selector_of_time = _Selector(clock)
        super().__init__(self._selector_of_time)
        self._clock = clock

    def time(self) -> float:
        return self._clock.now

    @property
    def jumps(self) -> int:
        return self._selector_of_time.jumps

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        selector = self._selector_of_time
        selector.threads += 1
        future = super().run_in_executor(executor, func, *args)

        def done(_: object) -> None:
            selector.threads -= 1

        future.add_done_callback(done)
        return future


def run(main: Callable[[Clock, Loop], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function in virtual time."""
    clock = Clock()
    loop = Loop(clock)
    with clock.rules(), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main(clock, loop))
