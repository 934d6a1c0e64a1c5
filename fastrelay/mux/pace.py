"""What one tunnel knows of its path, and what follows from it: how windows are sized, how large frames are, how much may wait unsent.

The rule behind all of it: a queue is bounded in time, not in bytes. What fills a millisecond of a LAN is a second of a slow line.

A bulk stream that is alone uses the largest frames: they halve the cost per byte. As soon as another stream moves as well, frames are small
and a stream gets one a turn, so that an interactive one waits for little. Sizes: protocol.md 8.2 (informative).
"""

from __future__ import annotations

from collections import deque

SHARED_FRAME = 131_072
"""The largest frame on a shared tunnel: about 100 us of copying and system calls."""
ALONE_AFTER = 0.05
"""Seconds without a change of streams until the one that moves may use large frames again."""
LEAST = 16_384
"""Bytes of a frame, or unsent, that are always allowed: one TLS record."""
UNSENT_FIRST = 262_144
UNSENT_MOST = 8_388_608
_FRAME_TIME = 0.002
"""Seconds on the path that one frame may take."""
_UNSENT_TIME = 0.003
"""Seconds that what waits unsent may last: as many bytes as the path takes while this process is busy with something else."""

STEADY = 1.1
"""Windows are so many times what one RTT holds; a little more than 1, as a path that never queues cannot show what it could carry."""
_LOSSY = 3.0
"""The same while packets are lost: all that follows a lost one arrives an RTT or two late, and the sender must not run dry meanwhile."""
_LOSSY_FOR = 2.0
_DRAIN = 0.5
_DRAIN_EVERY = 10.0
_AS_QUICK = 1.05
"""A PING so many times as long as the quickest is as quick: no two take the same time. The queue of a full window is more (STEADY)."""
_RTT_MEMORY = 30.0
_LONGER = 1.5
"""Without a queue and without losses a PING took so many times as long as any: another path, and no longer a matter of memory."""


class Pace:
    """One for each tunnel. `busy` is the stream that moved last: streams count a switch when that changes, inline; `look` concludes."""

    __slots__ = (
        "_drain_at",
        "_drain_until",
        "_drained_at",
        "_frame",
        "_largest",
        "_lossy_until",
        "_rtts",
        "_seen",
        "_shared_at",
        "alone",
        "busy",
        "cap",
        "min_rtt",
        "switches",
        "unsent",
    )

    def __init__(self, largest: int) -> None:
        self.busy: object | None = None
        self.switches = 0
        self.alone = True
        self.cap = largest  # bytes of DATA that the next frame may carry
        self.min_rtt = 0.0  # seconds; 0 until it is known
        self.unsent = UNSENT_FIRST  # bytes that may wait below us for the path to take them
        self._largest = largest
        self._frame = largest  # bytes that the path carries in _FRAME_TIME
        self._seen = 0
        self._shared_at = 0.0
        self._rtts: deque[tuple[float, float]] = deque()
        self._lossy_until = 0.0
        self._drain_at = 0.0
        self._drain_until = 0.0
        self._drained_at = 0.0

    def look(self, now: float) -> None:
        """Called with every chunk that arrives; on a busy tunnel credit alone makes that often."""
        if self.switches != self._seen:
            self._seen = self.switches
            self._shared_at = now
            self.alone = False
            self.cap = min(self._frame, SHARED_FRAME)
        elif not self.alone and now - self._shared_at > ALONE_AFTER:
            self.alone = True
            self.cap = self._frame

    def took(self, size: int, seconds: float) -> bool:
        """The path took `size` bytes in `seconds` during which there was always more. Returns whether `unsent` has changed."""
        rate = size / seconds
        self._frame = max(LEAST, min(self._largest, int(rate * _FRAME_TIME)))
        self.cap = self._frame if self.alone else min(self._frame, SHARED_FRAME)
        unsent = max(LEAST, min(UNSENT_MOST, int(rate * _UNSENT_TIME)))
        if abs(unsent - self.unsent) <= self.unsent // 4:
            return False  # not worth a system call
        self.unsent = unsent
        return True

    def lost(self, now: float) -> None:
        """Packets did not arrive in the order in which they were sent."""
        self._lossy_until = now + _LOSSY_FOR

    def measured(self, rtt: float, now: float) -> None:
        """A PING was answered after `rtt` seconds."""
        # What was asked before the queue was gone has measured the queue.
        drained = self._drain_until and now - rtt > self.ping_after() - 1e-6
        rtts = self._rtts
        if drained and rtt > _LONGER * self.min_rtt and now >= self._lossy_until:
            rtts.clear()  # so long is the path now, whatever it was
        rtts.append((now, rtt))
        while now - rtts[0][0] > _RTT_MEMORY:
            rtts.popleft()
        shorter = rtt <= _AS_QUICK * self.min_rtt
        self.min_rtt = min(rtt for _, rtt in rtts)
        if drained or (shorter and len(rtts) > 1):  # the first one met a tunnel that was being made
            self._drain_at = now + _DRAIN_EVERY
            self._drain_until = 0.0

    def gain(self, now: float) -> float:
        """How many RTT of data a window holds.

        A window of more than one RTT keeps a queue, and with it no PING would ever see the path as short as it is: so, when for a while
        none was as quick as the quickest, windows shrink until one was answered.
        """
        if now < self._drain_until:
            return _DRAIN
        if self._drain_until:  # its PING is late: the next time, then
            self._drain_until = 0.0
            self._drain_at = now + _DRAIN_EVERY
        elif self._drain_at < now and self.min_rtt:
            self._drained_at = now + 2 * self.min_rtt
            self._drain_until = now + 4 * self.min_rtt
            return _DRAIN
        return self.loss_gain(now)

    def loss_gain(self, now: float) -> float:
        """The same for a window that must not be what limits the rate."""
        return _LOSSY if now < self._lossy_until else STEADY

    def ping_after(self) -> float:
        """When the queue has drained and a PING should be sent; 0 when nothing is being drained."""
        return self._drained_at if self._drain_until else 0.0
