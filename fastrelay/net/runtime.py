"""What all connections of one event loop share: the slabs they read into, the watch, the memory pool and the budget of descriptors.

Reads are synchronous (get_buffer, read, buffer_updated), so one slab serves every connection: an idle one needs no buffer at all.
"""

from __future__ import annotations

import asyncio
import mmap
import resource
from collections.abc import Callable
from pathlib import Path

from fastrelay.errors import StartError
from fastrelay.limits import DEFAULTS, SETTINGS, Limits
from fastrelay.mux.credit import process_pool
from fastrelay.net.notices import Notices
from fastrelay.net.watch import Watch
from fastrelay.wire import HEADER_SIZE, MAX_DATA, WINDOW_FLOOR

RESERVED_FDS = 64
"""Descriptors kept for tunnels, listeners, files and the loop itself."""
SMALLEST_LIMIT = 128


class Runtime:
    """Made on a running loop. `on_room` is called when descriptors are free again after `full` was true."""

    def __init__(self, limits: Limits = DEFAULTS) -> None:
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.watch = Watch(self.loop)
        self.notices = Notices(self.loop)
        self.pool = process_pool()
        self.tunnel_slab = _slab(MAX_DATA)
        self.edge_slab = _slab(HEADER_SIZE + MAX_DATA)
        self.floor_view = self.edge_slab[HEADER_SIZE : HEADER_SIZE + WINDOW_FLOOR]
        self.edges = 0
        self.budget = fd_limit() - RESERVED_FDS
        self.on_full: Callable[[], None] = lambda: None
        self.on_room: Callable[[], None] = lambda: None
        self._tasks: set[asyncio.Task[None]] = set()
        self._nobody = asyncio.Event()

    @property
    def full(self) -> bool:
        return self.edges >= self.budget

    def edge_made(self) -> None:
        self.edges += 1
        if self.edges == self.budget:
            self.on_full()

    def edge_gone(self) -> None:
        self.edges -= 1
        if not self.edges:
            self._nobody.set()
        if self.edges == self.budget - 1:
            self.on_room()

    def reached(self, limit: str, who: str, value: object = None) -> None:
        """Tell that `who` has reached a limit, and what happens then; `value` where it is not the one that was set."""
        setting = SETTINGS[limit]
        if value is None:
            value = setting.show(getattr(self.limits, setting.field))
        text = f"The limit {limit}={value} is reached by {who}: {setting.reached}."
        self.notices.say(limit, "limit.reached", text, limit=limit, value=value, who=who)

    async def no_edges(self) -> None:
        """Wait until no local connection is left."""
        while self.edges:
            self._nobody.clear()
            await self._nobody.wait()

    def spawn(self, work: asyncio.Task[None]) -> asyncio.Task[None]:
        """Keep a task alive until it is done. Its exceptions are for the loop's handler: tasks at the rim catch what they expect."""
        self._tasks.add(work)
        work.add_done_callback(self._done)
        return work

    def _done(self, work: asyncio.Task[None]) -> None:
        self._tasks.discard(work)
        if not work.cancelled() and (error := work.exception()) is not None:
            self.loop.call_exception_handler({"message": "a task failed", "exception": error, "task": work})

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.notices.close()
        self.watch.close()


def _slab(size: int) -> memoryview:
    """A buffer whose pages are there from the start, so that load never has to find them, and what a stream costs can be told."""
    slab = bytearray(size)
    slab[:: mmap.PAGESIZE] = bytes(len(range(0, size, mmap.PAGESIZE)))
    return memoryview(slab)


def fd_limit() -> int:
    """Raise the soft limit of descriptors to the hard one, as servers do, and return it.

    Raises StartError when there are too few to work with.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass
    if soft == resource.RLIM_INFINITY:
        soft = 1 << 20
    if soft < SMALLEST_LIMIT:
        raise StartError(
            f"This process may open {soft} files, at least {SMALLEST_LIMIT} are needed; raise the limit with `ulimit -n 4096`."
        )
    # What is open already cannot be given to visitors.
    open_now = Path("/proc/self/fd")
    return min(soft, 1 << 20) - (len(list(open_now.iterdir())) if open_now.is_dir() else 0)
