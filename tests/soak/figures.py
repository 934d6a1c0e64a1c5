"""What the two processes hold, over time, and what may grow."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.support.processes import Process

GROWTH = 1.0
"""KiB of resident memory for each 1,000 connections: more is a leak."""
ENOUGH = 20_000
"""Connections from which on a slope says something: a heap that settles moves by some hundred KiB."""
SETTLES = 2_048
"""KiB by which memory may differ over fewer connections than that."""


class Sample(NamedTuple):
    seconds: float
    connections: int
    rss: float  # KiB
    files: int


@dataclass(frozen=True)
class Verdict:
    """`faults` are sentences; none is right."""

    text: str
    faults: list[str]


class Figures:
    """Of one process. `samples` are taken under load, `rests` while no connection is open. `anew` when another takes its place."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.samples: list[Sample] = []
        self.rests: list[Sample] = []

    def anew(self) -> None:
        self.samples.clear()
        self.rests.clear()

    def judge(self, start: float) -> Verdict:
        """What was seen from the second `start` on."""
        samples = [one for one in self.samples if one.seconds >= start]
        rests = [one for one in self.rests if one.seconds >= start]
        if len(samples) < 3 or len(rests) < 2:
            return Verdict(f"{self.name}: {len(samples)} samples", [f"The {self.name} was not seen often enough."])
        faults = []
        span = samples[-1].connections - samples[0].connections
        grown = slope(samples)
        if span >= ENOUGH and grown >= GROWTH:
            faults.append(
                f"The {self.name} grows by {grown:.2f} KiB for each 1,000 connections, {GROWTH:g} are allowed."
            )
        if span < ENOUGH and grown * span / 1000 > SETTLES:
            faults.append(f"The {self.name} has grown by {grown * span / 1000:.0f} KiB in {span} connections.")
        files = [one.files for one in rests]
        if min(files) != max(files):
            faults.append(f"The {self.name} holds {min(files)} to {max(files)} descriptors while nobody is connected.")
        rss = [one.rss for one in samples]
        return Verdict(
            f"{self.name}: RSS {rss[0]:.0f} -> {rss[-1]:.0f} KiB ({min(rss):.0f} to {max(rss):.0f}), slope {grown:+.3f} KiB for each 1,000 "
            f"connections over {span}; {min(files)} to {max(files)} descriptors at {len(files)} rests, at most "
            f"{max(one.files for one in samples)} under load",
            faults,
        )


def sample(process: Process, seconds: float, connections: int) -> Sample:
    return Sample(seconds, connections, resident(process.pid), process.files())


def resident(pid: int) -> float:
    """KiB, counted page by page: the kernel's quick figure (VmRSS) may be off by more than what is looked for."""
    found = re.search(r"^Rss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii"), re.MULTILINE)
    assert found
    return float(found[1])


def slope(samples: list[Sample]) -> float:
    """KiB for each 1,000 connections, by least squares."""
    x = [one.connections / 1000 for one in samples]
    y = [one.rss for one in samples]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((one - mean_x) ** 2 for one in x)
    if not spread:
        return 0.0
    return sum((one - mean_x) * (two - mean_y) for one, two in zip(x, y, strict=True)) / spread
