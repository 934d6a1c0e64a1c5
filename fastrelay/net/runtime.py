"""What all connections of one event loop share: the slabs they read into, the watch, the memory pool, and how much room there is for more.

Reads are synchronous (get_buffer, read, buffer_updated), so one slab serves every connection: an idle one needs no buffer at all.
"""

from __future__ import annotations

import asyncio
import mmap
from typing import Protocol

from fastrelay.limits import DEFAULTS, SETTINGS, Limits
from fastrelay.mux.credit import process_pool
from fastrelay.net import files
from fastrelay.net.memory import share
from fastrelay.net.notices import Notices
from fastrelay.net.watch import Watch
from fastrelay.wire import HEADER_SIZE, MAX_DATA, WINDOW_FLOOR

_RESERVED_FILES = 32
"""Descriptors that are kept for tunnels, for what is read and written, and for the loop itself; besides those of strangers."""
_LOOK_EVERY = 0.25
"""Seconds between two looks at what is in use: others may take descriptors, or give some back, without a word."""
_ROOM_AFTER = 0.01
"""Seconds until it is seen that somebody has left: to open and shut a thousand doors for each would be a load of its own."""


class Door(Protocol):
    def adapt(self) -> None:
        """There is more room than before, or less."""


class Runtime:
    """Made on a running loop. `who` is whose process this is, for events.

    The number of a new descriptor tells how many are in use, since the kernel gives out the lowest that is free: so what counts is what is
    really open, whoever opened it. From `scarce_at` on it is looked at closely, from `top` on there is room for nobody.
    """

    def __init__(self, limits: Limits = DEFAULTS, who: str = "this process") -> None:
        self.limits = limits
        self.who = who
        self.loop = asyncio.get_running_loop()
        self.watch = Watch(self.loop)
        self.notices = Notices(self.loop)
        windows, self.budget = share(limits.memory)
        self.pool = process_pool(windows)
        self.tunnel_slab = _slab(MAX_DATA)
        self.edge_slab = _slab(HEADER_SIZE + MAX_DATA)
        self.floor_view = self.edge_slab[HEADER_SIZE : HEADER_SIZE + WINDOW_FLOOR]
        self.edges = 0
        self.coming = 0  # connections that a door has taken off its backlog, and that are no edges yet
        self.full = False  # there is no room for another one
        self.scarce = False  # there soon will be none
        self.doors: set[Door] = set()
        self._set_files(files.raise_limit(limits.files))
        self._looking: asyncio.TimerHandle | None = None
        self._look_soon = False
        self._no_files = False
        self._starved = 0.0
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._nobody = asyncio.Event()

    def edge_made(self, fd: int) -> None:
        """There is one local connection more, on this descriptor."""
        self.edges += 1
        if fd >= self.scarce_at or self.edges >= self.budget:
            self.look()

    def edge_gone(self) -> None:
        self.edges -= 1
        if not self.edges:
            self._nobody.set()
        if self.full and not self._look_soon:
            self._look_soon = True
            self.loop.call_later(_ROOM_AFTER, self._look_again)

    # --- room ----------------------------------------------------------------------------------------------------------

    @property
    def strangers(self) -> int:
        """How many strangers at the tunnel port there are descriptors for (protocol.md section 12.1)."""
        return min(self.limits.max_greetings, max(16, self.files // 8))

    def _set_files(self, most: int) -> None:
        self.files = most
        self.top = most - _RESERVED_FILES - self.strangers
        self.scarce_at = self.top - self.top // 4

    def starve(self) -> None:
        """The system has refused a descriptor: there is no room for a moment, whatever the numbers say."""
        self._starved = self.loop.time() + _LOOK_EVERY
        self.look()

    def look(self) -> None:
        """See how much room there is, and tell the doors if that has changed."""
        if self._closed:
            return
        if (most := files.limit()) != self.files:
            self._set_files(most)
        free = files.lowest_free(self.watch.fileno())
        self._no_files = free >= self.top or self.loop.time() < self._starved
        full = self._no_files or self.edges + self.coming >= self.budget
        scarce = full or free >= self.scarce_at
        changed = (full, scarce) != (self.full, self.scarce)
        came = full and not self.full
        self.full = full
        self.scarce = scarce
        if came:
            self.tell_full()
        if changed:
            for door in list(self.doors):
                door.adapt()
        self.keep_looking()

    def tell_full(self) -> None:
        """Somebody has to wait, or is refused, because there is no room."""
        if self._no_files:
            self.reached("files", self.who, self.files)
        else:
            self.reached("memory", self.who)

    def keep_looking(self) -> None:
        """Come back in a while, if anything depends on it."""
        if self._looking is None and (self.scarce or self.doors):
            self._looking = self.loop.call_later(_LOOK_EVERY, self._look_again)

    def _look_again(self) -> None:
        self._look_soon = False
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        self.look()

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
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
        self.notices.close()
        self.watch.close()


def _slab(size: int) -> memoryview:
    """A buffer whose pages are there from the start, so that load never has to find them, and what a stream costs can be told."""
    slab = bytearray(size)
    slab[:: mmap.PAGESIZE] = bytes(len(range(0, size, mmap.PAGESIZE)))
    return memoryview(slab)
