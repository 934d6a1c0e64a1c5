"""Cancelled at its n-th await, for every n: nothing is left behind, and the next try works."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import pytest

from fastrelay.api import Server
from fastrelay.errors import StartError
from tests.api.programs import echo, relay, tunnel
from tests.conftest import Run
from tests.support.tunnel import until

_MOST = 200


class CancelAt:
    """Awaits a coroutine, and cancels the task it runs in as soon as that waits for the `n`-th time; `waited` counts."""

    def __init__(self, work: Coroutine[Any, Any, object], n: int) -> None:
        self._work = work
        self._n = n
        self.waited = 0

    def __await__(self) -> Generator[Any, Any, object]:
        task = asyncio.current_task()
        assert task is not None
        step = self._work.__await__()
        result: Any = None
        error: BaseException | None = None
        while True:
            try:
                future = step.send(result) if error is None else step.throw(error)
            except StopIteration as done:
                return done.value
            self.waited += 1
            if self.waited == self._n:
                asyncio.get_running_loop().call_soon(task.cancel)
            result, error = None, None
            try:
                result = yield future
            except BaseException as thrown:
                error = thrown


async def at_every_await(work: Callable[[], Coroutine[Any, Any, object]], check: Callable[[], object]) -> int:
    """Run `work` again and again, cancelled one await later each time, until it is done before that; returns how many awaits it has."""

    async def one(at: CancelAt) -> None:
        await at

    for n in range(1, _MOST):
        at = CancelAt(work(), n)
        task = asyncio.ensure_future(one(at))
        await asyncio.wait({task})
        if at.waited < n:
            task.result()
            return n - 1
        # What was awaited may have been done in the very turn in which it was cancelled: then the work goes on to its end.
        assert task.cancelled() or task.exception() is None, task.exception()
        await until(check, f"nothing is left of what was cancelled at await {n}")
    raise AssertionError("there is no end of awaits")


def idle(server: Server) -> Callable[[], object]:
    inside = server._running
    return lambda: not inside._links and not inside.runtime.edges and inside.runtime.pool.used == 0


def test_a_tunnel_and_what_it_serves(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path) as server:

            async def work() -> None:
                async with tunnel(server, tmp_path, drain=0.2) as home:
                    async with home.listen("jobs", echo, kind="tcp") as service:
                        reader, writer = await asyncio.open_connection(service.host, service.port)
                        try:
                            writer.write(b"hello")
                            await writer.drain()
                            writer.write_eof()
                            assert await reader.read() == b"hello"
                        finally:
                            writer.close()

            assert await at_every_await(work, idle(server)) > 5
            await work()

    run(main())


def test_a_relay(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async def work() -> None:
            async with relay(tmp_path, drain=0.2) as server:
                async with tunnel(server, tmp_path, drain=0.2):
                    pass

        assert await at_every_await(work, lambda: True) > 3
        await work()

    run(main())


def test_a_relay_that_cannot_start_leaves_nothing(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "one") as server:
            taken = f"127.0.0.1:{server.port}"
            wrong: list[dict[str, Any]] = [
                {"bind": taken},
                {"bind": "127.0.0.1:0", "http": taken},
                {"bind": "127.0.0.1:0", "cert": "/nowhere", "key": "/nowhere"},
            ]
            for options in wrong:
                with pytest.raises(StartError):
                    await Server(state=tmp_path / "two", **options).start()

    run(main())


def test_a_handler_of_a_visitor(run: Run, tmp_path: Path) -> None:
    """The tunnel ends while handlers wait: they are cancelled, and waited for."""

    async def main() -> None:
        ended: list[str] = []

        async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.01)
                ended.append("cleaned up")

        async with relay(tmp_path) as server, tunnel(server, tmp_path, drain=0) as home:
            service = await home.listen("jobs", wait, kind="tcp")
            _, writer = await asyncio.open_connection(service.host, service.port)
            await until(lambda: home._handlers, "the visitor is there")
        writer.close()
        assert ended == ["cleaned up"]

    run(main())
