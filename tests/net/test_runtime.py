"""What the connections of one loop share: how much room there is for more, and the tasks at the rim."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import resource
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay.errors import StartError
from fastrelay.limits import Limits
from fastrelay.net import files
from fastrelay.net import runtime as runtime_module
from fastrelay.net.files import SMALLEST_LIMIT, lowest_free, raise_limit
from fastrelay.net.memory import QUEUE, bound, share
from fastrelay.net.runtime import Runtime
from fastrelay.wire import PROCESS_POOL, TUNNEL_POOL
from tests.conftest import Run
from tests.support.tunnel import until


class Door:
    """Writes down whether there was room each time that it was told of a change."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.told: list[bool] = []
        runtime.doors.add(self)

    def adapt(self) -> None:
        self.told.append(self.runtime.full)


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=60))
def test_doors_are_told_once_for_each_crossing(budget: int, steps: list[bool]) -> None:
    async def main() -> None:
        runtime = Runtime()
        runtime.budget = budget
        door = Door(runtime)
        expected: list[bool] = []
        was = False
        for made in steps:
            if made:
                runtime.edge_made(0)  # also beyond the budget: what was accepted already is taken in
            elif runtime.edges:
                runtime.edge_gone()
                runtime.look()  # as it does by itself in a moment
            if (runtime.edges >= budget) is not was:
                was = not was
                expected.append(was)
            assert runtime.full is was
        assert door.told == expected
        await runtime.close()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as loop:
        loop.run(main())


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks often."""
    monkeypatch.setattr(runtime_module, "_LOOK_EVERY", 0.02)


def test_descriptors_that_others_take_count(run: Run, soon: None, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody tells of these, so somebody looks; one line for as long as it lasts."""

    async def main() -> None:
        runtime = Runtime(who="the test")
        door = Door(runtime)
        runtime.scarce_at, runtime.top = lowest_free(1) + 10, lowest_free(1) + 20
        taken = [os.dup(1) for _ in range(15)]
        runtime.edge_made(taken[-1])
        assert runtime.scarce and not runtime.full and door.told == [False]
        taken += [os.dup(1) for _ in range(15)]
        await until(lambda: runtime.full, "that is seen", 1)
        assert door.told == [False, True]
        for fd in taken:
            os.close(fd)
        await until(lambda: not runtime.scarce, "and that there is room again", 1)
        assert door.told == [False, True, False]
        runtime.edge_gone()
        await runtime.close()

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    assert len(caplog.records) == 1 and "files=" in caplog.text and "the test" in caplog.text


def test_a_system_without_descriptors(run: Run, soon: None) -> None:
    """All processes together have too many files open: no number tells that, only the refusal."""

    async def main() -> None:
        runtime = Runtime()
        runtime.starve()
        assert runtime.full
        await until(lambda: not runtime.full, "it is tried again", 1)
        await runtime.close()

    run(main())


def test_a_limit_that_changes_while_it_runs(run: Run) -> None:
    async def main() -> None:
        runtime = Runtime()
        before = runtime.top
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 200, hard))
            runtime.look()
            assert runtime.top < before and runtime.files == soft - 200
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        runtime.look()
        assert runtime.top == before
        await runtime.close()

    run(main())


@pytest.mark.parametrize("most", [128, 256, 1024, 20_000, 1 << 20])
def test_there_is_something_left_for_tunnels(run: Run, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    async def main() -> None:
        runtime = Runtime()
        runtime._set_files(most)
        assert 0 < runtime.scarce_at < runtime.top < most
        assert most - runtime.top >= 32 + runtime.strangers
        assert 16 <= runtime.strangers <= min(1000, max(16, most // 8))
        await runtime.close()

    run(main())


def test_what_memory_is_split_into() -> None:
    assert share(None) == (PROCESS_POOL, 1 << 20)
    for memory in (1 << 20, 32 << 20, 1 << 30, 1 << 40):
        windows, connections = share(memory)
        assert windows <= PROCESS_POOL
        assert memory - QUEUE < windows + connections * QUEUE <= memory


def test_the_bound_that_is_printed() -> None:
    usual, small = bound(Limits()), bound(Limits(memory=32 << 20))
    text = str(usual)
    assert re.fullmatch(
        r"at most \d+ MiB \+ 10 MiB a client \+ 48 KiB a visitor \+ 512 MiB of windows \(64 MiB a client\)", text
    ), text
    assert str(small).endswith("16 MiB of windows; 512 visitors at a time")
    assert usual.of(2, 3) == usual.base + 2 * usual.client + 3 * usual.visitor + 2 * TUNNEL_POOL
    assert usual.of(100, 0) == usual.base + 100 * usual.client + PROCESS_POOL
    assert bound(Limits(control=1 << 20)).client == usual.client - (7 << 20)
    assert bound(Limits(max_sources=1)).base < usual.base - (32 << 20)


def test_a_setting_of_memory(run: Run) -> None:
    async def main() -> None:
        runtime = Runtime(Limits(memory=1 << 20))
        assert runtime.pool.limit == 1 << 19
        assert runtime.budget == (1 << 19) // QUEUE
        await runtime.close()

    run(main())


def test_nobody_is_left(run: Run) -> None:
    async def main() -> None:
        runtime = Runtime()
        await runtime.no_edges()
        runtime.edge_made(0)
        runtime.edge_made(0)
        waiting = asyncio.ensure_future(runtime.no_edges())
        for _ in range(2):
            await asyncio.sleep(0.001)
            assert not waiting.done()
            runtime.edge_gone()
        await waiting
        await runtime.close()

    run(main())


def test_a_task_that_fails_is_reported_and_one_that_is_cancelled_is_not(run: Run) -> None:
    async def main() -> None:
        runtime = Runtime()
        told: list[dict[str, Any]] = []
        runtime.loop.set_exception_handler(lambda _, context: told.append(context))

        async def fail() -> None:
            raise RuntimeError("broken")

        async def wait() -> None:
            await asyncio.sleep(100)

        failed = runtime.spawn(runtime.loop.create_task(fail()))
        waiting = runtime.spawn(runtime.loop.create_task(wait()))
        await asyncio.sleep(0.01)
        assert failed.done()
        assert [str(context["exception"]) for context in told] == ["broken"]
        await runtime.close()
        assert waiting.cancelled() and len(told) == 1

    run(main())


def test_the_limit_is_raised_as_far_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [300]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (now[0], 1000))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: now.__setitem__(0, limits[0]))
    assert raise_limit() == now[0] == 1000
    assert raise_limit(500) == now[0] == 500, "as was asked"
    assert raise_limit(2000) == now[0] == 1000, "not beyond what is allowed"


def test_a_limit_that_cannot_be_raised_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(which: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda which: (300, 1000))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_limit() == 300
    monkeypatch.setattr(resource, "getrlimit", lambda which: (SMALLEST_LIMIT - 1, SMALLEST_LIMIT - 1))
    with pytest.raises(StartError, match="ulimit -n"):
        raise_limit()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert raise_limit() == files.limit() == 1 << 20


def test_the_lowest_free_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.dup(1)
    os.close(fd)
    assert lowest_free(1) == lowest_free(1) == fd, "and it stays free"

    def none(*_: object) -> int:
        raise OSError(24, "too many open files")

    monkeypatch.setattr(fcntl, "fcntl", none)
    assert lowest_free(1) == 1 << 20
