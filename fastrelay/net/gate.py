"""Who is greeted at the tunnel port, and when (protocol.md section 12.1): bounds and penalties for those who have not proved who they are.

Pure: time is an argument, in seconds. It says who is next and who must go; the door carries that out and tells how each one ended.
Invariants: never more than the limits of that section at once; a newcomer always gets in, and when all is full it is for one that has had its time,
or for the oldest of the source that holds the most; a penalised source is served, slowly.
"""

from __future__ import annotations

import enum
import ipaddress
from collections import OrderedDict, deque
from typing import Any, Generic, TypeVar

from fastrelay.limits import Limits


class End(enum.Enum):
    """How it ended with one that was a stranger."""

    ADMITTED = "it has proved who it is"
    REFUSED = "its proof was wrong, or its key id is not known"
    SLOW = "its time was over"
    UNFINISHED = "it left, or made no sense, or had to go for another"


class Reached(enum.Enum):
    """What has begun, for the log; the values are the names of limits."""

    ALL = "max-greetings"
    SOURCE = "greetings-per-source"
    PENALTY = "penalty-from"


_FAIR_TIME = 1.3
"""Seconds that one may be silent, and then be greeted, before it goes for another: enough for a client by way of a satellite."""
_WAITING = 4
"""Times as many of a source may wait as may be greeted: with that they are greeted within 5 s. Of a slow source it is once as many."""


class _Stage(enum.Enum):
    SILENT = enum.auto()
    WAITING = enum.auto()
    GREETED = enum.auto()
    GONE = enum.auto()


class Stranger:
    """A connection from its TCP accept until it is admitted or closed. `source` is that of the address, see `source_of`."""

    __slots__ = ("_stage", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self._stage = _Stage.SILENT

    @property
    def waiting(self) -> bool:
        """It has spoken and is not greeted yet."""
        return self._stage is _Stage.WAITING

    @property
    def gone(self) -> bool:
        """It has ended, or was sent away."""
        return self._stage is _Stage.GONE


S = TypeVar("S", bound=Stranger)


def source_of(host: str) -> str:
    """Whom an address is counted as: an IPv4 address as itself, also in IPv6 form; of an IPv6 address its /64, which one machine has whole."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


_NOBODY: dict[Any, Any] = {}


class _Source(Generic[S]):
    """One source: who is here from it, each stage in order, and what it has deserved."""

    __slots__ = (
        *("_limits", "_penalty", "_since", "_unfinished", "_unfinished_at"),
        *("greeted", "line", "name", "next", "silent", "waiting"),
    )

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.silent: dict[S, None]
        self.waiting: dict[S, None]
        self.greeted: dict[S, float]  # since when
        self.leave()
        self.line: deque[_Source[S]] | None = None  # where it waits for its turn
        self.next = 0.0  # not before then is another one of it greeted, while it has a penalty
        self._limits = limits
        self._penalty = 0.0  # at `_since`
        self._since = 0.0
        self._unfinished = 0.0  # at `_unfinished_at`
        self._unfinished_at = 0.0

    def come(self) -> None:
        """Make room for the first one."""
        self.silent, self.waiting, self.greeted = {}, {}, {}

    def leave(self) -> None:
        """The last one has gone: most of the sources that are remembered have nobody here, and need no place for them."""
        self.silent = self.waiting = self.greeted = _NOBODY

    @property
    def here(self) -> int:
        return len(self.silent) + len(self.waiting) + len(self.greeted)

    def penalty(self, now: float) -> float:
        return max(0.0, self._penalty - (now - self._since))

    def slow(self, now: float) -> bool:
        return self.penalty(now) >= self._limits.penalty_from

    def blank(self, now: float) -> bool:
        """Nothing would be lost if it were forgotten."""
        return not (self.here or self.penalty(now) or self._left_over(now))

    def charge(self, how: End, now: float) -> None:
        limits = self._limits
        penalty = self.penalty(now)
        if how is End.ADMITTED:
            # Not all of it: who has one good token could keep others of its address going. And in the slow lane a good client is well.
            penalty /= 2
        elif how is End.REFUSED:
            penalty += limits.penalty_refused
        elif how is End.SLOW:
            penalty += limits.penalty_slow
        elif how is End.UNFINISHED:
            self._unfinished = self._left_over(now) + 1
            self._unfinished_at = now
            if self._unfinished > limits.unfinished_burst:
                self._unfinished = limits.unfinished_burst
                penalty += limits.penalty_unfinished
        self._penalty = min(penalty, limits.penalty_most)
        self._since = now

    def _left_over(self, now: float) -> float:
        return max(0.0, self._unfinished - (now - self._unfinished_at) * self._limits.unfinished_rate)


class Gate(Generic[S]):
    """`arrive`, `speak`, `candidate`, `begin` and `end` follow the life of a stranger; `news` is what may be worth a line in the log."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.here = 0
        self.news: list[tuple[Reached, str]] = []
        """What has begun, and of which source; whoever reads it empties it."""
        self._sources: OrderedDict[str, _Source[S]] = OrderedDict()  # least recently used first
        self._silent: dict[S, float] = {}  # since when, of all sources
        self._greeted: dict[S, float] = {}
        self._crowds: dict[int, dict[_Source[S], None]] = {}  # how many are here -> the sources with so many
        self._most = 0  # the largest key
        self._ready: deque[_Source[S]] = deque()  # sources with somebody waiting, whose turn is next first
        self._lane: deque[_Source[S]] = deque()  # the same of those with a penalty
        self._lane_next = 0.0

    def arrive(self, stranger: S, now: float) -> S | None:
        """Take in a newcomer. Returns who must be closed for it, if anybody, and is already forgotten here."""
        goes: S | None = None
        if self.here >= self.limits.max_greetings:
            goes = self._least(now)
            self._send_away(goes, self._sources[goes.source], Reached.ALL, now)
        source = self._source(stranger.source)
        if not source.here:
            source.come()
        source.silent[stranger] = None
        self._silent[stranger] = now
        self._count(source, 1)
        self._forget(now)
        return goes

    def known_as(self, stranger: S, source: str, now: float) -> None:
        """A proxy says whose it is, before it has said what it must: from now on it counts with that source."""
        self._remove(stranger, End.UNFINISHED, now)
        stranger.source = source
        stranger._stage = _Stage.SILENT
        goes = self.arrive(stranger, now)
        assert goes is None, "there was room for it a moment ago"

    def speak(self, stranger: S, now: float) -> S | None:
        """It has said what it must: it is greeted when its turn comes. Returns who must be closed for it, as from `arrive`."""
        source = self._sources[stranger.source]
        slow = source.slow(now)
        goes: S | None = None
        if len(source.waiting) >= self.limits.greetings_per_source * (1 if slow else _WAITING):
            goes = next(iter(source.waiting))
            self._send_away(goes, source, Reached.SOURCE, now)
        del source.silent[stranger]
        del self._silent[stranger]
        source.waiting[stranger] = None
        stranger._stage = _Stage.WAITING
        if source.line is None:
            self._line_up(source, self._lane if slow else self._ready)
        return goes

    def candidate(self, now: float) -> S | None:
        """Whose turn it is. Nothing changes: who turns out to be dead is to `end`, and the others to `begin`, before the next is asked for."""
        for line in (self._ready, self._lane):
            while line and not line[0].waiting:
                line.popleft().line = None
        for _ in range(len(self._ready)):
            source = self._ready[0]
            if not source.waiting or source.slow(now):
                self._ready.popleft()
                self._line_up(source, self._lane if source.waiting else None)
            elif self._place(source) <= now:
                return next(iter(source.waiting))
            else:
                self._ready.rotate(-1)
        return next(iter(self._lane[0].waiting)) if self._lane and self._due(now) <= 0 else None

    def due(self, now: float) -> float | None:
        """In how many seconds `candidate` has to be asked again; None while nothing but an `end` changes anything."""
        times = [self._place(source) - now for source in self._ready if source.waiting]
        if self._lane:
            times.append(self._due(now))
        return max(0.0, min(times)) if times else None

    def _due(self, now: float) -> float:
        return max(self._lane_next, self._lane[0].next) - now

    def _place(self, source: _Source[S]) -> float:
        """When there is, or was, a place for another one of a source to be greeted."""
        if len(source.greeted) < self.limits.greetings_per_source:
            return 0.0
        return next(iter(source.greeted.values())) + _FAIR_TIME

    def _line_up(self, source: _Source[S], line: deque[_Source[S]] | None) -> None:
        source.line = line
        if line is not None:
            line.append(source)

    def begin(self, stranger: S, now: float) -> S | None:
        """Greet the candidate from now on. Returns who must be closed for it, as from `arrive`."""
        source = self._sources[stranger.source]
        line = source.line
        assert line is not None
        assert line[0] is source
        line.popleft()
        if line is self._lane:
            source.next = now + 1 / self.limits.penalty_rate
            self._lane_next = now + 1 / self.limits.penalty_rate_all
        self._line_up(source, line if len(source.waiting) > 1 else None)
        goes: S | None = None
        if len(source.greeted) >= self.limits.greetings_per_source:
            goes = next(iter(source.greeted))
            self._send_away(goes, source, Reached.SOURCE, now)
        del source.waiting[stranger]
        source.greeted[stranger] = self._greeted[stranger] = now
        stranger._stage = _Stage.GREETED
        return goes

    def end(self, stranger: S, how: End, now: float) -> None:
        """It is over with a stranger. Who was not greeted has cost nothing; who was sent away, or has ended before, is no news."""
        if not stranger.gone:
            self._remove(stranger, how, now)

    def _least(self, now: float) -> S:
        """Who goes when all is full: one that has had its time, wherever it is from; else the oldest of the largest crowd."""
        for stage in (self._silent, self._greeted):
            for oldest, since in stage.items():
                if now >= since + _FAIR_TIME:
                    return oldest
                break
        crowd = next(iter(self._crowds[self._most]))
        return next(iter(crowd.silent or crowd.waiting or crowd.greeted))

    def _send_away(self, stranger: S, source: _Source[S], reached: Reached, now: float) -> None:
        self.news.append((reached, source.name))
        self._remove(stranger, End.UNFINISHED, now)

    def _remove(self, stranger: S, how: End, now: float) -> None:
        source = self._sources[stranger.source]
        source.silent.pop(stranger, None)
        self._silent.pop(stranger, None)
        source.waiting.pop(stranger, None)
        self._greeted.pop(stranger, None)
        greeted = source.greeted.pop(stranger, None) is not None
        stranger._stage = _Stage.GONE
        self._count(source, -1)
        if not source.here:
            source.leave()
        before = source.slow(now)
        if greeted:
            source.charge(how, now)
        if not before and source.slow(now):
            self.news.append((Reached.PENALTY, source.name))
        if source.blank(now):
            del self._sources[source.name]

    # --- sources -------------------------------------------------------------------------------------------------------

    def _source(self, name: str) -> _Source[S]:
        source = self._sources.get(name)
        if source is None:
            source = self._sources[name] = _Source(name, self.limits)
        else:
            self._sources.move_to_end(name)
        return source

    def _forget(self, now: float) -> None:
        """Of too many sources the least recently used ones go, and those of which nothing is known; but none from which somebody is here."""
        for _ in range(self.here):
            if len(self._sources) <= self.limits.max_sources:
                break
            name, source = self._sources.popitem(last=False)
            if source.here:
                self._sources[name] = source
        for _ in range(2):  # more than one comes at a time
            name = next(iter(self._sources))
            if not self._sources[name].blank(now):
                break
            del self._sources[name]

    def _count(self, source: _Source[S], change: int) -> None:
        """There is one more, or one less, of a source: sort it among the crowds."""
        self.here += change
        here = source.here
        before = self._crowds.get(here - change, {})
        before.pop(source, None)
        if not before:
            self._crowds.pop(here - change, None)
        if here:
            self._crowds.setdefault(here, {})[source] = None
        if change > 0:
            self._most = max(self._most, here)
        elif self._most and self._most not in self._crowds:
            self._most -= 1
