"""How much is said about strangers (pure): a few lines about each source, some in all, and a count of the rest at the end of a period."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

PERIOD = 10.0
"""Seconds; whoever asks keeps the time."""
MOST_LINES = 50
"""Lines of their own that one thing gets in a period, for all sources together."""
MOST_SUMS = 20
"""Sums at its end that name their source."""
_MOST_SOURCES = 1024


class Sum(NamedTuple):
    """`times` more of `what`, of which nothing was said; `source` is "" for those of several."""

    what: str
    source: str
    times: int


class Tally:
    def __init__(self) -> None:
        self._told: Counter[tuple[str, str]] = Counter()
        self._more: Counter[tuple[str, str]] = Counter()
        self._lines: Counter[str] = Counter()

    def tell(self, what: str, source: str, first: int) -> bool:
        """Whether this is worth a line of its own: it is one of the `first` of its source, and there were not too many. Else it is counted."""
        key = (what, source)
        if self._told[key] < first and self._lines[what] < MOST_LINES:
            self._told[key] += 1
            self._lines[what] += 1
            return True
        if key not in self._more and len(self._more) >= _MOST_SOURCES:
            key = (what, "")
        self._more[key] += 1
        return False

    def sums(self) -> list[Sum]:
        """What was counted, most frequent first; a new period begins."""
        named = [(what, source, times) for (what, source), times in self._more.most_common() if source]
        rest: Counter[str] = Counter()
        for what, _, times in named[MOST_SUMS:]:
            rest[what] += times
        for (what, source), times in self._more.items():
            if not source:
                rest[what] += times
        self._told.clear()
        self._more.clear()
        self._lines.clear()
        return [*(Sum(*one) for one in named[:MOST_SUMS]), *(Sum(what, "", times) for what, times in rest.items())]
