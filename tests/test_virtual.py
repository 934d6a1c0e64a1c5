"""Virtual time: it jumps over waiting, and over nothing else."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from tests.support.tunnel import tcp_pair
from tests.support.virtual import Clock, Loop, run

DAY = 86_400.0


def test_a_day_takes_no_time() -> None:
    async def main(clock: Clock, loop: Loop) -> tuple[float, float, float]:
        monotonic, wall = time.monotonic(), time.time()
        await asyncio.sleep(DAY)
        return time.monotonic() - monotonic, time.time() - wall, loop.jumps

    start = time.monotonic()
    monotonic, wall, jumps = run(main)
    assert time.monotonic() - start < 20, "real time is back, and little of it has passed"
    assert monotonic == pytest.approx(DAY, abs=0.01) and wall == pytest.approx(DAY, abs=0.01)
    assert jumps <= 3


def test_timers_come_in_their_order_and_at_their_time() -> None:
    async def main(clock: Clock, loop: Loop) -> list[float]:
        start = loop.time()
        came: list[float] = []
        for delay in (50.0, 0.5, 3600.0, 0.0, 7.0):
            loop.call_later(delay, lambda: came.append(loop.time() - start))
        await asyncio.sleep(4000)
        return came

    assert run(main) == pytest.approx([0.0, 0.5, 7.0, 50.0, 3600.0], abs=0.001)


def test_nothing_on_its_way_is_jumped_over() -> None:
    """Two ends talk, with a timer due a millisecond later each time: the answer is always there first."""

    async def main(clock: Clock, loop: Loop) -> list[float]:
        one, two = tcp_pair()
        took = []

        async def echo() -> None:
            while data := await loop.sock_recv(two, 100):
                await loop.sock_sendall(two, data)

        task = asyncio.create_task(echo())
        try:
            for number in range(30):
                start = loop.time()
                await loop.sock_sendall(one, b"%d" % number)
                async with asyncio.timeout(1.0):
                    assert await loop.sock_recv(one, 100) == b"%d" % number
                took.append(loop.time() - start)
                await asyncio.sleep(15)
        finally:
            one.close()
            await task
            two.close()
        return took

    assert max(run(main)) < 1.0


def test_time_stands_while_a_thread_works() -> None:
    async def main(clock: Clock, loop: Loop) -> float:
        start = loop.time()
        async with asyncio.timeout(0.5):
            await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
        return loop.time() - start

    assert run(main) < 0.01


def test_a_machine_that_was_suspended() -> None:
    async def main(clock: Clock, loop: Loop) -> tuple[float, float]:
        wall, ahead = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
        clock.sleep(3600)
        return time.time() - wall, time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic() - ahead

    assert run(main) == pytest.approx((3600, 3600), abs=0.01)


def test_waiting_for_nothing_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(clock: Clock, loop: Loop) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("tests.support.virtual._STUCK", 0.05)
    with pytest.raises(AssertionError, match="nothing will"):
        run(main)
