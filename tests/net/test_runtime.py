"""What the connections of one loop share: the budget of descriptors, the tasks at the rim."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay.errors import StartError
from fastrelay.net import runtime as runtime_module
from fastrelay.net.runtime import RESERVED_FDS, SMALLEST_LIMIT, Runtime, fd_limit
from tests.conftest import Run


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=60))
def test_full_and_room_are_told_once_for_each_crossing(budget: int, steps: list[bool]) -> None:
    async def main() -> None:
        runtime = Runtime()
        runtime.budget = budget
        told: list[str] = []
        runtime.on_full = lambda: told.append("full")
        runtime.on_room = lambda: told.append("room")
        expected: list[str] = []
        for made in steps:
            was = runtime.full
            if made:
                runtime.edge_made()  # also beyond the budget: what was accepted already is taken in
            elif runtime.edges:
                runtime.edge_gone()
            if runtime.full is not was:
                expected.append("full" if runtime.full else "room")
            assert runtime.full is (runtime.edges >= budget)
        assert told == expected
        await runtime.close()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as loop:
        loop.run(main())


def test_nobody_is_left(run: Run) -> None:
    async def main() -> None:
        runtime = Runtime()
        await runtime.no_edges()
        runtime.edge_made()
        runtime.edge_made()
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


def test_the_budget_is_what_may_be_open_and_is_not(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (300, 1000))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: asked.append(limits))

    async def main() -> None:
        runtime = Runtime()
        assert 800 < runtime.budget + RESERVED_FDS < 1000
        await runtime.close()

    run(main())
    assert asked == [(1000, 1000)]


def test_a_limit_that_cannot_be_raised_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(which: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda which: (300, 1000))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert 100 < fd_limit() < 300
    monkeypatch.setattr(resource, "getrlimit", lambda which: (SMALLEST_LIMIT - 1, SMALLEST_LIMIT - 1))
    with pytest.raises(StartError, match="ulimit -n"):
        fd_limit()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert fd_limit() > 1 << 19


def test_what_is_open_already_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1000, 1000))
    real = fd_limit()
    monkeypatch.setattr(runtime_module, "Path", lambda path: __import__("pathlib").Path("/nowhere/at/all"))
    assert fd_limit() == 1000 > real
