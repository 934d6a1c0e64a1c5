"""How much memory a relay may take, in numbers (protocol.md 8.3): what `memory` is split into, and the bound that is printed at start."""

from __future__ import annotations

from typing import Final, NamedTuple

from fastrelay.wire import PROCESS_POOL, WINDOW_FLOOR

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
