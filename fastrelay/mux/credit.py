"""How much a stream may have outstanding (protocol.md section 8): the size of windows, and the pools that bound their sum.

Invariants: a pool never lends more than it has; what was taken is given back exactly once.
"""

from __future__ import annotations

from fastrelay.wire import CREDIT_STEP, FIRST_SHARE, PROCESS_POOL, TUNNEL_POOL, WINDOW_FIRST, WINDOW_FLOOR, WINDOW_MAX

# protocol.md 8.2. The window covers what arrives within g round trips plus a queue measured in time, so that one formula fits a LAN
# and a satellite. While the rate still grows the window must not be what limits it: g = 2.
_GROWING = 2.0
_STEADY = 1.2
_QUEUE_ALONE = 0.004
_QUEUE_SHARED = 0.0002
_BASE = 65_536

_FLOOR_STEP = WINDOW_FLOOR // 4  # one number for thousands of idle streams

RATE_SPAN = 0.002
"""Seconds: shorter spans measure the scheduler, not the path."""
_RATE_DECAY = 0.9


class Pool:
    """Bytes that windows may borrow above their floor. A tunnel's pool borrows from the process pool."""

    __slots__ = ("limit", "parent", "used")

    def __init__(self, limit: int, parent: Pool | None = None) -> None:
        self.limit = limit
        self.parent = parent
        self.used = 0

    def take(self, want: int) -> int:
        """Borrow up to `want` bytes; returns how many there were."""
        got = max(0, min(want, self.limit - self.used))
        if self.parent is not None:
            got = self.parent.take(got)
        self.used += got
        return got

    def give(self, size: int) -> None:
        self.used -= size
        assert self.used >= 0, f"a pool got back {-self.used} bytes more than it lent"
        if self.parent is not None:
            self.parent.give(size)


def process_pool() -> Pool:
    return Pool(PROCESS_POOL)


def tunnel_pool(process: Pool) -> Pool:
    return Pool(TUNNEL_POOL, process)


def first_window(streams: int) -> int:
    """The window of a new stream when `streams` are open, the new one included (protocol.md 8.3)."""
    return max(WINDOW_FLOOR, min(WINDOW_FIRST, FIRST_SHARE // max(streams, 1)))


def step(window: int) -> int:
    """How far a limit must rise to be worth a WINDOW frame (protocol.md 8.2)."""
    return _FLOOR_STEP if window == WINDOW_FLOOR else min(window // 4, CREDIT_STEP)


class Meter:
    """The rate at which one stream is consumed, and the window that this rate needs. Made for streams that move a lot, not for all."""

    __slots__ = ("_growing", "_needed", "_offset", "_rate", "_time")

    def __init__(self, offset: int, now: float) -> None:
        self._offset = offset
        self._time = now
        self._rate = 0.0
        self._growing = True
        self._needed = 0  # what the last span said, 0 before the first

    def window(self, consumed: int, now: float, min_rtt: float, alone: bool, current: int) -> int:
        """The window for a stream that has consumed up to `consumed`; `current` until a span of 2 RTT has passed."""
        span = now - self._time
        if span < RATE_SPAN or span < 2 * min_rtt:
            return self._needed or current
        rate = (consumed - self._offset) / span
        self._offset = consumed
        self._time = now
        self._growing = rate > 1.1 * self._rate
        self._rate = max(rate, _RATE_DECAY * self._rate)
        in_flight = (_GROWING if self._growing else _STEADY) * min_rtt + (_QUEUE_ALONE if alone else _QUEUE_SHARED)
        needed = max(WINDOW_FLOOR, min(WINDOW_MAX, int(self._rate * in_flight) + _BASE))
        if not min_rtt:  # until the first PONG a long path looks like none
            return max(needed, current)
        self._needed = needed
        return needed
