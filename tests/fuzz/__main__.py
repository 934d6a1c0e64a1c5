"""Run one fuzzer from the command line; see the package."""

from __future__ import annotations

import argparse
import sys
import time

from tests.fuzz import decoder, greeting, session
from tests.fuzz.fuzzer import Fuzzer

FUZZERS: dict[str, type[Fuzzer]] = {"decoder": decoder.Fuzz, "session": session.Fuzz, "greeting": greeting.Fuzz}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("name", choices=FUZZERS)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--frames", type=int, help="instead of --seconds")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    start = time.monotonic()
    fuzz = FUZZERS[options.name](options.seed)
    if options.frames is None:
        fuzz.run(seconds=options.seconds)
    else:
        fuzz.run(frames=options.frames)
    print(f"{fuzz.report()} in {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
