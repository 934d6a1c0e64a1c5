"""How much memory a relay may take, in numbers (protocol.md 8.3): what `memory` is split into, and the bound that is printed at start."""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Final, NamedTuple

from fastrelay.limits import Limits
from fastrelay.wire import MAX_DATA, PROCESS_POOL, TUNNEL_POOL, WINDOW_FLOOR

QUEUE: Final = 2 * WINDOW_FLOOR
"""What waits for a connection at most, beside what its window has borrowed: a floor in one direction, a read in the other."""


class Share(NamedTuple):
    """Bytes that all windows together may borrow above their floors, and how many connections there may be."""

    windows: int
    connections: int


def share(memory: int | None) -> Share:
    """Split what may be queued. Half of it is for queues that every connection has, so that a few quick ones do not keep others out.

    None is as it always was: one pool, and as many connections as there are descriptors.
    """
    if memory is None:
        return Share(PROCESS_POOL, 1 << 20)
    windows = min(PROCESS_POOL, memory // 2)
    return Share(windows, (memory - windows) // QUEUE)


# What is really held, as measured on both loops; VmHWM of a relay stays within 1.15 times the bound that follows.
_OVERHEAD: Final = 16 << 10
"""A connection's objects (3 KiB), the spare room of its queue, and the copies that TLS makes of what it had read."""
_TLS: Final = 1 << 20
"""A tunnel's TLS with its buffers: 0.1 to 0.4 MiB before there is traffic, 0.8 after."""
_STRANGER: Final = 768
"""A source that is remembered for its failed logins."""
_WORK: Final = 16 << 20
"""What a process takes in the course of its work: late modules, logs, reservations, fragments."""


class Bound(NamedTuple):
    """What a process holds at most, in bytes: `base`, so much for each client and each visitor, and all that windows may borrow.

    `visitors` is how many there may be at a time for lack of memory. A client that has not logged in yet counts as one.
    """

    base: int
    client: int
    visitor: int
    windows: int
    visitors: int

    def of(self, clients: int, visitors: int) -> int:
        """With so many at a time."""
        windows = min(self.windows, clients * TUNNEL_POOL)
        return self.base + clients * self.client + visitors * self.visitor + windows

    def __str__(self) -> str:
        text = f"at most {_mib(self.base)} + {_mib(self.client)} a client + {self.visitor >> 10} KiB a visitor + {_mib(self.windows)} of windows"
        if self.windows > TUNNEL_POOL:
            text += f" ({_mib(TUNNEL_POOL)} a client)"
        return text if self.visitors >= 1 << 20 else f"{text}; {self.visitors} visitors at a time"


def bound(limits: Limits) -> Bound:
    """The bound of a relay that has just started, and holds what it needs without anybody there."""
    windows, visitors = share(limits.memory)
    base = _resident() + limits.max_sources * _STRANGER + _WORK
    # A tunnel that takes nothing holds control frames up to their limit, and the rest of one frame of data.
    client = _TLS + MAX_DATA + limits.control
    return Bound(base, client, QUEUE + _OVERHEAD, windows, visitors)


def _mib(size: int) -> str:
    return f"{math.ceil(size / (1 << 20))} MiB"


def _resident() -> int:
    """What this process holds now, in bytes; a guess where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError):
        return 48 << 20
    return pages * mmap.PAGESIZE
