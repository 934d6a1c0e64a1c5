"""What all fuzzers are: dice, counters, and one step at a time. And dice that are bytes, for a fuzzer that is guided by coverage."""

from __future__ import annotations

import time
from random import Random


class Fuzzer:
    """`step` feeds one input, or one sequence of them. A find is an AssertionError, or whatever else leaves it."""

    counted = "frames"

    def __init__(self, random: Random) -> None:
        self.random = random
        self.count = 0
        self.mutated = 0
        self.sessions = 0
        self.ends: dict[str, int] = {}

    def step(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Clean up what was made on disk."""

    def run(self, *, count: float = 1e18, mutated: float = 1e18, seconds: float = 1e9) -> None:
        """Until so many inputs were fed, or broken, or the time is up."""
        stop = time.monotonic() + seconds
        while self.count < count and self.mutated < mutated and time.monotonic() < stop:
            self.step()

    def ended(self, why: str) -> None:
        self.ends[why] = self.ends.get(why, 0) + 1

    def report(self) -> str:
        ends = ", ".join(f"{count} {why}" for why, count in sorted(self.ends.items()))
        return f"{self.count} {self.counted}, {self.mutated} of them mutated, in {self.sessions} sessions ({ends})"


class Dice(Random):
    """Random numbers that are read from `data`, and are zeros when it is used up."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data = data
        self._at = 0

    @property
    def used_up(self) -> bool:
        return self._at >= len(self._data)

    def getrandbits(self, k: int) -> int:
        size = (k + 7) // 8
        taken = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(taken, "little") & ((1 << k) - 1)

    def random(self) -> float:
        return self.getrandbits(16) / 65536


def replay(fuzzer: type[Fuzzer], data: bytes) -> None:
    """Play one input of the guided fuzzer to its end."""
    dice = Dice(data)
    fuzz = fuzzer(dice)
    try:
        while not dice.used_up:
            fuzz.step()
    finally:
        fuzz.close()
