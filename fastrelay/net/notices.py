"""What may happen again and again, because strangers can repeat it at will: it is said at once, and then now and then with a count."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from fastrelay import log

LIMIT_EVERY = 10.0
"""Seconds between two lines about one limit."""


class Notice(NamedTuple):
    event: str
    text: str
    fields: dict[str, object]


class Seldom:
    """Decides when to say what is heard: the first of a subject at once, the others every `every` seconds, the last of them with how many.

    Pure. Nothing is kept of a subject that was silent for so long.
    """

    def __init__(self, every: float) -> None:
        self._every = every
        # When it may be said again, how often it was heard since, and the last.
        self._subjects: dict[str, tuple[float, int, Notice]] = {}

    def hear(self, about: str, notice: Notice, now: float) -> bool:
        """Whether it is to be said now; else it is counted."""
        again, heard, _ = self._subjects.get(about, (now, 0, notice))
        if not heard and now >= again:
            self._subjects[about] = (now + self._every, 0, notice)
            return True
        self._subjects[about] = (again, heard + 1, notice)
        return False

    def due(self, now: float) -> list[tuple[Notice, int]]:
        """What is to be said now, and how often it was heard."""
        told = []
        for about, (again, heard, notice) in list(self._subjects.items()):
            if now < again:
                continue
            if heard:
                told.append((notice, heard))
                self._subjects[about] = (now + self._every, 0, notice)
            else:
                del self._subjects[about]
        return told

    def rest(self) -> list[tuple[Notice, int]]:
        """What was never said; nothing is kept."""
        left = [(notice, heard) for _, heard, notice in self._subjects.values() if heard]
        self._subjects.clear()
        return left

    def next(self) -> float | None:
        """When to ask what is due."""
        return min((again for again, _, _ in self._subjects.values()), default=None)


class Notices:
    """Says warnings as `Seldom` decides."""

    def __init__(self, loop: asyncio.AbstractEventLoop, every: float = LIMIT_EVERY) -> None:
        self._loop = loop
        self._every = every
        self._seldom = Seldom(every)
        self._timer: asyncio.TimerHandle | None = None

    def say(self, about: str, event: str, text: str, **fields: object) -> None:
        """Warn of something, but not more than once in a while for what `about` says is the same."""
        if self._seldom.hear(about, Notice(event, text, fields), self._loop.time()):
            log.warning(event, text, **fields)
        if self._timer is None:
            self._timer = self._loop.call_later(self._every, self._again)

    def _again(self) -> None:
        self._tell(self._seldom.due(self._loop.time()))
        when = self._seldom.next()
        self._timer = None if when is None else self._loop.call_at(when, self._again)

    def _tell(self, told: list[tuple[Notice, int]]) -> None:
        for (event, text, fields), heard in told:
            more = f" ({heard} more like this.)" if heard > 1 else ""
            log.warning(event, text + more, **fields, count=heard)

    def close(self) -> None:
        """Say what was kept back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tell(self._seldom.rest())
