"""Who is at an HTTP front: its visitors, and among them the strangers, who have not sent a whole head yet.

Strangers are bounded by the rules of the tunnel port (`net.gate`, protocol.md section 12.1): a newcomer always gets in, and when all is full it is
for one that has been silent for long, or for the oldest of the source that holds the most. So slow heads keep nobody out.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Protocol

from fastrelay.net.gate import End, Gate, Stranger, source_of

if TYPE_CHECKING:
    from fastrelay.net.runtime import Runtime


class Guest(Protocol):
    def evict(self) -> None:
        """Others came while it was silent: it must go now."""

    def retire(self) -> None:
        """The relay goes down: what was asked is answered, and then it is over."""


class Seat(Stranger):
    """A visitor as long as it is a stranger."""

    __slots__ = ("guest",)

    def __init__(self, guest: Guest, host: str) -> None:
        super().__init__(source_of(host))
        self.guest = guest


class Lobby:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._gate: Gate[Seat] = Gate(dataclasses.replace(runtime.limits, max_greetings=runtime.strangers))
        self._guests: set[Guest] = set()

    def arrive(self, guest: Guest, host: str) -> Seat:
        """Somebody has come from the address `host`; what is returned is for `admit`."""
        self._guests.add(guest)
        seat = Seat(guest, host)
        goes = self._gate.arrive(seat, time.monotonic())
        if goes is not None:
            self._gate.news.clear()
            self._runtime.reached("max-greetings", "the HTTP front", self._gate.limits.max_greetings)
            goes.guest.evict()
        return seat

    def admit(self, seat: Seat) -> None:
        """Its first head is whole."""
        self._gate.end(seat, End.ADMITTED, time.monotonic())

    def leave(self, guest: Guest, seat: Seat) -> None:
        self._guests.discard(guest)
        self._gate.end(seat, End.UNFINISHED, time.monotonic())

    def retire(self) -> None:
        for guest in list(self._guests):
            guest.retire()

    def evict(self) -> None:
        for guest in list(self._guests):
            guest.evict()
