"""Fixtures of all tests: hypothesis profiles, what the machine must have, and loops that are checked for what they leave behind."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar

import hypothesis
import pytest

from tests.support import need as needed

T = TypeVar("T")

LOOPS = ("uvloop", "asyncio")
RUN_TIMEOUT = 60.0

hypothesis.settings.register_profile("default", max_examples=100, deadline=None)
hypothesis.settings.register_profile("ci", max_examples=500, deadline=None, derandomize=True)
hypothesis.settings.register_profile("long", max_examples=20_000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long",
        type=int,
        default=0,
        metavar="FACTOR",
        help="long forms of the tests that have one: 1 is their full figures, more is so many times of them (default: 0, short forms)",
    )


@pytest.fixture
def long(request: pytest.FixtureRequest) -> int:
    """The factor of `--long`: 0 for the short form of a test, 1 for its full figures, more for so many times of them."""
    factor = request.config.getoption("--long")
    assert isinstance(factor, int)
    return factor


@pytest.fixture
def need() -> Callable[[str], str]:
    """`need("nginx")` is the path of a program; without it the test is skipped, and in CI it fails."""
    return needed.program


@pytest.fixture(params=LOOPS)
def loop_kind(request: pytest.FixtureRequest) -> str:
    """Each event loop that fastrelay runs on."""
    kind = str(request.param)
    if kind == "uvloop":
        needed.uvloop()
    return kind


class Run(Protocol):
    """`run(coroutine)`: its result."""

    def __call__(self, main: Coroutine[Any, Any, T], timeout: float = RUN_TIMEOUT) -> T: ...


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    """A loop of this kind."""
    if kind == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.SelectorEventLoop()


@pytest.fixture
def run(loop_kind: str) -> Run:
    """Run a coroutine on a fresh loop of `loop_kind`; it fails as well if the coroutine leaves behind a task or an open file, or if
    anything reached the loop's exception handler.
    """

    def runner(main: Coroutine[Any, Any, T], timeout: float = RUN_TIMEOUT) -> T:
        new_loop(loop_kind).close()  # libuv keeps two pipes for the whole process from its first loop on
        before = open_files()
        lost: list[dict[str, Any]] = []

        async def watched() -> tuple[T, set[str]]:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
            async with asyncio.timeout(timeout):
                result = await main
            for _ in range(5):  # what was closed in the last turn is told in the next ones
                await asyncio.sleep(0)
            return result, {repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()}

        with asyncio.Runner(loop_factory=lambda: new_loop(loop_kind)) as loop:
            result, tasks = loop.run(watched())
        gc.collect()
        assert not tasks, f"tasks were left behind: {sorted(tasks)}"
        assert not lost, f"the loop's exception handler was called: {lost}"
        leaked = open_files() - before
        assert not leaked, f"files were left open: {sorted(leaked)}"
        return result

    return runner


def open_files() -> set[tuple[int, str]]:
    """Number and name of every open file of this process; nothing where there is no /proc."""
    found: set[tuple[int, str]] = set()
    for entry in Path("/proc/self/fd").iterdir() if Path("/proc/self/fd").is_dir() else ():
        try:
            found.add((int(entry.name), str(entry.readlink())))
        except OSError:
            pass  # the directory's own descriptor
    return found
