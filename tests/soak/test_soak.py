"""The soak in seconds, and what it is able to see."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.soak.disorder import Soak
from tests.soak.figures import ENOUGH, Figures, Sample, slope
from tests.support import need
from tests.support.processes import BEST


def figures(growth: float, connections: int, files: int = 0) -> Figures:
    """An even hour, with so much growth in KiB for each 1,000 connections, and descriptors that are lost."""
    made = Figures("relay")
    for turn in range(101):
        done = connections * turn // 100
        wobble = (turn * 7919 % 11 - 5) * 4
        one = Sample(36.0 * turn, done, 50_000 + growth * done / 1000 + wobble, 12 + files * turn // 100)
        made.samples.append(one)
        made.rests.append(one)
    return made


def test_a_leak_is_seen() -> None:
    assert slope(figures(3.0, 90_000).samples) == pytest.approx(3.0, abs=0.2)
    assert not figures(0.0, 90_000).judge(1800).faults
    assert not figures(0.5, 90_000).judge(1800).faults
    (fault,) = figures(1.5, 90_000).judge(1800).faults
    assert "KiB for each 1,000 connections" in fault
    (fault,) = figures(1000.0, ENOUGH // 4).judge(1800).faults
    assert "has grown by" in fault
    (fault,) = figures(0.0, 90_000, files=2).judge(1800).faults
    assert "descriptors" in fault


def test_too_little_is_no_verdict() -> None:
    assert figures(0.0, 90_000).judge(3600).faults


@pytest.mark.slow
def test_soak_for_a_moment(tmp_path: Path) -> None:
    ss = need.socket_kill()
    said: list[str] = []
    soak = Soak(tmp_path, BEST, seconds=12, rate=200, kills=3, restarts=2, rests=4, seed=1, ss=ss, say=said.append)
    faults = asyncio.run(soak.run())
    print("", *said, sep="\n")
    assert not faults
