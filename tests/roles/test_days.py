"""Days of a relay and its clients, in seconds."""

from __future__ import annotations

import logging
import os
import random
import time
from pathlib import Path

import pytest

from fastrelay import log
from fastrelay.roles import keyring
from tests.roles.days import World
from tests.support.virtual import Clock, Loop, run

HOURS = 8
LONG = 30 * 24


@pytest.mark.slow
def test_days(tmp_path: Path, long: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 days with `--long 1`. `FASTRELAY_TEST_SEED=N` plays the lives of that seed again."""
    hours = LONG * long or HOURS
    seed = int(os.environ.get("FASTRELAY_TEST_SEED", random.randrange(10**6)))
    print(f"\nseed={seed}")
    # It looks at the tokens four times a second: most of what a month costs, and nothing of it is news.
    monkeypatch.setattr(keyring, "_LOOK_EVERY", 10.0)
    lives: list[World] = []

    async def live(clock: Clock, loop: Loop) -> tuple[float, int]:
        world = World(tmp_path, clock, loop, seed)
        lives.append(world)
        log.LOGGER.addHandler(world)
        log.LOGGER.setLevel(logging.INFO)
        start = loop.time()
        try:
            await world.live(hours)
        except BaseException:
            print(f"hour {world.counts['hours']}, {loop.time() - start:.1f} s, {dict(world.counts)}")
            raise
        finally:
            log.LOGGER.removeHandler(world)
            log.LOGGER.setLevel(logging.NOTSET)
        return loop.time() - start, loop.jumps

    start = time.monotonic()
    seconds, jumps = run(live)
    real = time.monotonic() - start
    print(f"{seconds / 86400:.2f} days in {real:.1f} s, {jumps} jumps")
    (world,) = lives
    print(", ".join(f"{count} {what}" for what, count in sorted(world.counts.items())))
    print(
        ", ".join(f"back {longest:.1f} s after {why} at the latest" for why, longest in sorted(world.longest.items()))
    )
    assert world.counts["hours"] == hours
    assert world.counts["visitors"] > hours
