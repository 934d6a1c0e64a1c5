"""What takes a while to make: awaited it is there, `async with` also ends it. And what must be done whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

R = TypeVar("R")


class Closing(Protocol):
    """What `async with` ends."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


T = TypeVar("T", bound=Closing)


class Making(Generic[T]):
    """`await making`, or `async with making as it`. Nothing is begun before one of the two."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._make = make
        self._made: list[T] = []

    def __await__(self) -> Generator[Any, Any, T]:
        return self._make().__await__()

    async def __aenter__(self) -> T:
        made = await self._make()
        self._made.append(made)
        return made

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._made.pop().__aexit__(kind, error, trace)


async def to_the_end(work: Coroutine[Any, Any, R] | asyncio.Task[R]) -> R:
    """Do `work` whole, whoever cancels us meanwhile: it is short, and what it closes would stay open. Then the cancellation goes on."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        task.exception()
        raise cancelled
    return task.result()
