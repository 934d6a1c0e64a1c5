"""How much a stream may have outstanding (protocol.md section 8): the size of windows, and the pools that bound their sum.

Invariants: a pool never lends more than it has; what was taken is given back exactly once.
"""

from __future__ import annotations

from fastrelay.mux.pace import Pace
from fastrelay.wire import CREDIT_STEP, FIRST_SHARE, PROCESS_POOL, TUNNEL_POOL, WINDOW_FIRST, WINDOW_FLOOR, WINDOW_MAX

# protocol.md 8.2. The window covers what arrives within g round trips plus a queue measured in time, so that one formula fits a LAN
# and a satellite. While the rate still grows the window must not be what limits it: g = 2 at least.
_GROWING = 2.0
_QUEUE_ALONE = 0.004
_BASE_TIME = 0.003
_BASE_MOST = 131_072

_FLOOR_STEP = WINDOW_FLOOR // 4  # one number for thousands of idle streams

RATE_SPAN = 0.01
"""Seconds: shorter spans measure the scheduler, not the path, and the highest of many would be a burst and no rate."""
_GROWN = 1.25
"""So much more in one span means that the rate grows: less is noise, or a window that had been drained."""
_RISEN = 1.03
"""So much more in two spans running means that the rate grows as well: a window that limits its stream lets the rate rise by STEADY at most."""
_RATE_DECAY = 0.97
"""What a rate is believed to be after a slower span: a window that follows every dip of the rate makes the next one."""


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


def process_pool(size: int = PROCESS_POOL) -> Pool:
    return Pool(size)


def tunnel_pool(process: Pool) -> Pool:
    return Pool(TUNNEL_POOL, process)


def first_window(streams: int) -> int:
    """The window of a new stream when `streams` are open, the new one included (protocol.md 8.3)."""
    return max(WINDOW_FLOOR, min(WINDOW_FIRST, FIRST_SHARE // max(streams, 1)))


def step(window: int) -> int:
    """How far a limit must rise to be worth a WINDOW frame (protocol.md 8.2)."""
    return _FLOOR_STEP if window <= 16 * _FLOOR_STEP else min(window // 16, CREDIT_STEP)


class Meter:
    """The rate at which one stream is consumed, and the window that this rate needs. Made for streams that move a lot, not for all."""

    __slots__ = ("_growing", "_offset", "_risen", "_time", "rate")

    def __init__(self, offset: int, now: float) -> None:
        self.rate = 0.0  # bytes a second, the highest of late
        self._offset = offset
        self._time = now
        self._growing = True
        self._risen = False

    def window(self, consumed: int, now: float, pace: Pace, current: int) -> int:
        """The window for a stream that has consumed up to `consumed`; `current` until a span of 2 RTT has passed."""
        span = now - self._time
        if span >= RATE_SPAN and span >= 2 * pace.min_rtt:
            self._measure((consumed - self._offset) / span)
            self._offset = consumed
            self._time = now
        rate = self.rate
        if not rate:
            return current
        gain = max(pace.loss_gain(now), _GROWING) if self._growing else pace.gain(now)
        queue = _QUEUE_ALONE if pace.alone else 0.0
        base = max(WINDOW_FLOOR, min(_BASE_MOST, int(rate * _BASE_TIME)))
        needed = max(WINDOW_FLOOR, min(WINDOW_MAX, int(rate * (gain * pace.min_rtt + queue)) + base))
        # Until the first PONG a long path looks like none.
        return needed if pace.min_rtt else max(needed, current)

    def _measure(self, rate: float) -> None:
        risen = rate > _RISEN * self.rate
        self._growing = rate > _GROWN * self.rate or (risen and self._risen)
        self._risen = risen
        self.rate = max(rate, _RATE_DECAY * self.rate)
