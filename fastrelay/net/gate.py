"""Who is greeted at the tunnel port, and when (protocol.md section 12.1): bounds and penalties for those who have not proved who they are.

Pure: time is an argument, in seconds. It says who is next and who must go; the door carries that out and tells how each one ended.
Invariants: never more than the bounds in Limits at once; a newcomer always gets in, for it the oldest of its source goes, or of the source
that holds the most; a penalised source is served, slowly.
"""

from __future__ import annotations

import enum
import ipaddress
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, Generic, TypeVar


@dataclass(frozen=True)
class Limits:
    """The table of protocol.md section 12.1; its rows have these names, and so have the fields of `fastrelay.limits.Limits`."""

    max_greetings: int = 1000
    greetings_per_source: int = 64
    max_client_hello: int = 8192
    penalty_refused: int = 5
    penalty_slow: int = 10
    penalty_unfinished: int = 1
    unfinished_burst: int = 200
    unfinished_rate: int = 50
    penalty_from: int = 15
    penalty_most: int = 600
    penalty_rate: int = 20
    penalty_rate_all: int = 100
    max_sources: int = 65_536


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


class _Stage(enum.Enum):
    SILENT = enum.auto()
    WAITING = enum.auto()
    GREETED = enum.auto()
    GONE = enum.auto()


class Stranger:
    """A connection from its TCP accept until it is admitted or closed. `source` is that of the address, see `source_of`."""

    __slots__ = ("_stage", "slow", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self.slow = False  # its source had a penalty when it spoke
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


_NOBODY: dict[Any, None] = {}


class _Source(Generic[S]):
    """One source: who is here from it, each stage in order, and what it has deserved."""

    __slots__ = (
        *("_limits", "_penalty", "_since", "_unfinished", "_unfinished_at"),
        *("greeted", "in_lane", "name", "next", "silent", "waiting"),
    )

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.silent: dict[S, None]
        self.waiting: dict[S, None]
        self.greeted: dict[S, None]
        self.leave()
        self.in_lane = False
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
        self._crowds: dict[int, dict[_Source[S], None]] = {}  # how many are here -> the sources with so many
        self._most = 0  # the largest key
        self._ready: deque[S] = deque()
        self._lane: deque[_Source[S]] = deque()  # sources with a penalty and somebody waiting, whose turn is next first
        self._lane_next = 0.0

    def arrive(self, stranger: S, now: float) -> S | None:
        """Take in a newcomer. Returns who must be closed for it, if anybody, and is already forgotten here."""
        source = self._sources.get(stranger.source)
        goes: S | None = None
        if source is not None and len(source.silent) + len(source.waiting) >= self.limits.greetings_per_source:
            goes = self._evict(source, Reached.SOURCE, now)
        elif self.here >= self.limits.max_greetings:
            goes = self._evict(next(iter(self._crowds[self._most])), Reached.ALL, now)
        source = self._source(stranger.source)
        if not source.here:
            source.come()
        source.silent[stranger] = None
        self._count(source, 1)
        self._forget(now)
        return goes

    def speak(self, stranger: S, now: float) -> None:
        """It has said something: it is greeted when its turn comes."""
        source = self._sources[stranger.source]
        del source.silent[stranger]
        source.waiting[stranger] = None
        stranger._stage = _Stage.WAITING
        stranger.slow = source.slow(now)
        if not stranger.slow:
            self._ready.append(stranger)
        elif not source.in_lane:
            source.in_lane = True
            self._lane.append(source)

    def candidate(self, now: float) -> S | None:
        """Whose turn it is. Nothing changes: who turns out to be dead is to `end`, and the others to `begin`, before the next is asked for."""
        while self._ready and not self._ready[0].waiting:
            self._ready.popleft()
        if self._ready:
            return self._ready[0]
        lane = self._lane
        while lane and not lane[0].waiting:
            lane.popleft().in_lane = False
        return next(iter(lane[0].waiting)) if lane and self._due(now) <= 0 else None

    def due(self, now: float) -> float | None:
        """In how many seconds `candidate` has to be asked again; None while time alone changes nothing."""
        return max(0.0, self._due(now)) if self._lane else None

    def _due(self, now: float) -> float:
        return max(self._lane_next, self._lane[0].next) - now

    def begin(self, stranger: S, now: float) -> S | None:
        """Greet the candidate from now on. Returns who must be closed for it, if anybody, and is already forgotten here."""
        source = self._sources[stranger.source]
        if self._ready:
            self._ready.popleft()
        else:
            self._lane.popleft()
            source.next = now + 1 / self.limits.penalty_rate
            self._lane_next = now + 1 / self.limits.penalty_rate_all
            source.in_lane = len(source.waiting) > 1
            if source.in_lane:
                self._lane.append(source)
        goes: S | None = None
        if len(source.greeted) >= self.limits.greetings_per_source:
            goes = next(iter(source.greeted))
            self._send_away(goes, source, Reached.SOURCE, now)
        del source.waiting[stranger]
        source.greeted[stranger] = None
        stranger._stage = _Stage.GREETED
        return goes

    def end(self, stranger: S, how: End, now: float) -> None:
        """It is over with a stranger. Who was not greeted has cost nothing; who was sent away, or has ended before, is no news."""
        if not stranger.gone:
            self._remove(stranger, how, now)

    def _evict(self, source: _Source[S], reached: Reached, now: float) -> S:
        """The oldest goes; one that is being greeted only if there is no other."""
        goes = next(iter(source.silent or source.waiting or source.greeted))
        self._send_away(goes, source, reached, now)
        return goes

    def _send_away(self, stranger: S, source: _Source[S], reached: Reached, now: float) -> None:
        self.news.append((reached, source.name))
        self._remove(stranger, End.UNFINISHED, now)

    def _remove(self, stranger: S, how: End, now: float) -> None:
        source = self._sources[stranger.source]
        for stage in (source.silent, source.waiting, source.greeted):
            stage.pop(stranger, None)
        greeted = stranger._stage is _Stage.GREETED
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
