"""How long to wait before the next try to connect (pure)."""

from __future__ import annotations

FIRST = 1.0
MOST = 30.0


class Backoff:
    """The first wait is below 1 s; each failure doubles the bound, up to 30 s; a connection that stood starts anew.

    Full jitter: a relay that comes back is met by its clients one after the other, not all at once.
    """

    def __init__(self) -> None:
        self._bound = FIRST
        self.failures = 0

    def succeeded(self) -> None:
        self._bound = FIRST
        self.failures = 0

    def failed(self) -> None:
        self._bound = min(MOST, self._bound * 2) if self.failures else FIRST
        self.failures += 1

    def wait(self, dice: float) -> float:
        """Seconds, for a random number from 0 to 1."""
        return self._bound * dice
