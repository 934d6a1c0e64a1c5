"""Whose turn it is among several that do the same. Pure: time is an argument, seconds of any steady clock."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Final, Generic, TypeVar

M = TypeVar("M")

REST: Final = 5.0
"""Seconds for which one that has failed is left alone, while others are there."""


class Ring(Generic[M]):
    """The turn is the least loaded one's, and of equals the one's whose last turn is the longest ago. `load` says how much one has to do.

    What fails at once always has the least to do: so whoever has failed rests for a while, and is asked only if all that are left rest.
    """

    def __init__(self, load: Callable[[M], int]) -> None:
        self._load = load
        self._rests: dict[M, float] = {}  # until when each one rests, in the order of their last turns

    def __iter__(self) -> Iterator[M]:
        return iter(self._rests)

    def __len__(self) -> int:
        return len(self._rests)

    def add(self, member: M) -> None:
        self._rests[member] = 0.0

    def discard(self, member: M) -> None:
        self._rests.pop(member, None)

    def failed(self, member: M, now: float) -> None:
        """It may be gone by now."""
        if member in self._rests:
            self._rests[member] = now + REST

    def take(self, now: float, tried: Collection[M] = ()) -> M | None:
        """Whose turn it is now, of those that were not tried; None if all were."""
        left = [member for member in self._rests if member not in tried]
        if not left:
            return None
        chosen = min(left, key=lambda member: (self._rests[member] > now, self._load(member)))
        self._rests[chosen] = self._rests.pop(chosen)
        return chosen
