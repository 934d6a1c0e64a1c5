"""Threads that look names up for strangers: so many at a time, and nobody waits for one that hangs, not even at the end of the process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_Work = tuple[Future[Any], Callable[[], Any]]


class Lookups(Executor):
    """At most `most` threads, made when there is work for them. Those of the standard library's pool are waited for at exit, these are not."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._threads = 0
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Called in one thread only."""
        future: Future[T] = Future()
        self._work.put((future, lambda: fn(*args, **kwargs)))
        if self._threads < self._most:
            self._threads += 1
            threading.Thread(target=self._run, name="fastrelay-lookup", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nobody is waited for; what was not begun is cancelled."""
        while not self._work.empty():
            work = self._work.get()
            if work is not None:
                work[0].cancel()
        for _ in range(self._threads):
            self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            future, look_up = work
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(look_up())
            except BaseException as error:
                future.set_exception(error)
