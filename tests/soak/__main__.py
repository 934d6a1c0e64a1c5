"""Run the soak from the command line; see the package. Exit code 1 when something was wrong."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.soak.disorder import Soak
from tests.support import need
from tests.support.processes import WAYS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=25.0, help="connections a second")
    parser.add_argument("--kills", type=int, help="tunnels that are cut (default: one a minute)")
    parser.add_argument("--restarts", type=int, default=4, help="of the relay")
    parser.add_argument(
        "--warm-up", type=int, default=200, help="tunnels that are cut one after the other before what is judged"
    )
    parser.add_argument("--rests", type=int, default=12, help="moments in which nobody is connected")
    parser.add_argument("--way", choices=[repr(way) for way in WAYS], default=repr(WAYS[0]))
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9)
    options = parser.parse_args()
    print(f"seed={options.seed} {' '.join(sys.argv[1:])}", flush=True)
    try:
        ss = need.socket_kill()
    except pytest.skip.Exception as why:
        print(why)
        return 2
    with tempfile.TemporaryDirectory(prefix="fastrelay-soak-") as home:
        soak = Soak(
            Path(home),
            next(way for way in WAYS if repr(way) == options.way),
            seconds=options.minutes * 60,
            rate=options.rate,
            kills=max(1, round(options.minutes)) if options.kills is None else options.kills,
            restarts=options.restarts,
            warm_up=options.warm_up,
            rests=options.rests,
            seed=options.seed,
            ss=ss,
            say=lambda text: print(text, flush=True),
        )
        faults = asyncio.run(soak.run())
    for fault in faults[:20]:
        print(f"WRONG: {fault}", flush=True)
    print(f"{len(faults)} faults" if faults else "ok", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
