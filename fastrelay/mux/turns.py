"""Whose turn it is on a tunnel: how large frames may be, and whether a stream must let others go first.

A bulk stream that is alone uses the largest frames: they halve the cost per byte. As soon as another stream moves as well, frames are small
and a stream gets one a turn, so that an interactive one waits for little.
"""

from __future__ import annotations

SHARED_FRAME = 131_072
"""The largest frame on a shared tunnel: about 100 us of copying and system calls."""
ALONE_AFTER = 0.05
"""Seconds without a change of streams until the one that moves may use large frames again."""


class Turns:
    """`busy` is the stream that moved last. Streams count a switch whenever that changes, inline; `look` draws the conclusion."""

    __slots__ = ("_largest", "_seen", "_shared_at", "alone", "busy", "cap", "switches")

    def __init__(self, largest: int) -> None:
        self.busy: object | None = None
        self.switches = 0
        self.alone = True
        self.cap = largest  # bytes of DATA that the next frame may carry
        self._largest = largest
        self._seen = 0
        self._shared_at = 0.0

    def look(self, now: float) -> None:
        """Called with every chunk that arrives; on a busy tunnel credit alone makes that often."""
        if self.switches != self._seen:
            self._seen = self.switches
            self._shared_at = now
            self.alone = False
            self.cap = min(self._largest, SHARED_FRAME)
        elif not self.alone and now - self._shared_at > ALONE_AFTER:
            self.alone = True
            self.cap = self._largest
