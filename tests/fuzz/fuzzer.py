"""What all fuzzers are: dice, counters, and one step at a time."""

from __future__ import annotations

import time
from random import Random


class Fuzzer:
    """`step` feeds one sequence of frames. A find is an AssertionError, or whatever else leaves it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.frames = 0
        self.mutated = 0
        self.sessions = 0
        self.ends: dict[str, int] = {}

    def step(self) -> None:
        raise NotImplementedError

    def run(self, *, frames: float = 1e18, mutated: float = 1e18, seconds: float = 1e9) -> None:
        """Until so many frames were fed, or broken, or the time is up."""
        stop = time.monotonic() + seconds
        while self.frames < frames and self.mutated < mutated and time.monotonic() < stop:
            self.step()

    def ended(self, why: str) -> None:
        self.ends[why] = self.ends.get(why, 0) + 1

    def report(self) -> str:
        ends = ", ".join(f"{count} {why}" for why, count in sorted(self.ends.items()))
        return f"{self.frames} frames, {self.mutated} of them mutated, in {self.sessions} sessions ({ends})"
