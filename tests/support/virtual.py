"""Virtual time: a loop on which nobody waits, so that days of a relay's life pass in seconds.

The clock stands while anything is ready, and jumps to the next timer when nothing is. `time.monotonic`, `time.time` and CLOCK_BOOTTIME follow
it. Sockets are real: what is on its way between two of them takes real time, so the clock may not run faster than SPEED times the real one
while nothing is heard. A kernel that takes a millisecond longer than usual with a byte then looks like a slow path and not like a dead one.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")

SPEED = 20_000.0
"""Virtual seconds that may pass without a sign of life for each real one. Silence that is judged after 45 s has lasted 2 ms and, as every jump
on the way waits for its own share, mostly more.
"""
_LONG = 0.02
"""Real seconds after which nothing is on its way any more."""
_TURN = 1e-6
"""Seconds that a turn of the loop takes, so that what comes later is later."""
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
    """select(), for it waits in microseconds. Where it would wait, time jumps."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._heard = clock.now  # when something was ready last
        self.threads = 0  # that will say something in real time
        self.jumps = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        clock = self._clock
        clock.now += _TURN
        ready = super().select(0)
        if not ready and timeout != 0:
            ready = self._wait(timeout)
        if ready:
            self._heard = clock.now
        return ready

    def _wait(self, timeout: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        clock = self._clock
        if self.threads or timeout is None:
            ready = super().select(_STUCK)
            assert ready, f"nothing has happened for {_STUCK:g} s, and nothing will"
            return ready
        due = clock.now + timeout
        ready = super().select(min((due - self._heard) / SPEED, _LONG))
        if not ready:
            clock.now = due
            self.jumps += 1
        return ready


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
