"""Run one fuzzer from the command line; see the package."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from random import Random

from tests.fuzz import CORPUS, NAMES, fuzzer
from tests.fuzz.fuzzer import replay


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--count", type=int, help="frames or texts, instead of --seconds")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9)
    parser.add_argument("--atheris", action="store_true", help="guided by coverage, without --count")
    parser.add_argument("--keep", type=Path, help="where a guided run keeps the inputs that reach new code")
    parser.add_argument("--replay", type=Path, help="one input of a guided run")
    options = parser.parse_args()
    if options.replay is not None:
        replay(fuzzer(options.name), options.replay.read_bytes())
        return 0
    print(f"seed {options.seed}", flush=True)
    if options.atheris:
        guided(options.name, options.seconds, options.seed, options.keep)
    start = time.monotonic()
    fuzz = fuzzer(options.name)(Random(options.seed))
    try:
        fuzz.run(seconds=options.seconds) if options.count is None else fuzz.run(count=options.count)
    finally:
        fuzz.close()
    print(f"{fuzz.report()} in {time.monotonic() - start:.1f} s")
    return 0


def guided(name: str, seconds: int, seed: int, keep: Path | None) -> None:
    """Does not return."""
    import atheris

    with atheris.instrument_imports(include=["fastrelay"]):
        found = fuzzer(name)
    CORPUS.mkdir(exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        "-max_len=2048",
        "-len_control=10",
        f"-artifact_prefix={CORPUS}/{name}-",
    ]
    if keep is not None:
        keep.mkdir(exist_ok=True)
        options.append(str(keep))
    atheris.Setup([sys.argv[0], *options], lambda data: replay(found, data))
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
