"""Plays workloads on systems, interleaved: in each round every system once, so that what the machine does meanwhile meets all of them."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from bench.programs import BenchError, Running
from bench.record import Round
from bench.systems import System
from bench.workloads import Workload

OnRound = Callable[[Round], None]


def takes_part(system: System, workload: Workload) -> bool:
    """A plain tunnel is for loopback only, and some workloads are about some systems."""
    if workload.link is not None and system.loopback_only:
        return False
    return not workload.only or system.name in workload.only


def play(workload: Workload, systems: Iterable[System], rounds: int, seconds: float, on_round: OnRound) -> None:
    """All rounds of one workload. What fails is a round with the reason, and the others go on."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastrelay-bench-")))
        place = stack.enter_context(workload.stage())
        target = workload.prepare(stack, place, directory)
        standing: dict[str, Running | BenchError] = {}
        for system in systems:
            try:
                standing[system.name] = system.start(stack, place, directory, target, workload.tunnels)
            except (BenchError, OSError, subprocess.SubprocessError) as error:
                standing[system.name] = BenchError(str(error))
        for number in range(1, rounds + 1):
            # Every other round goes backwards: what one system leaves behind does not always meet the same next one.
            for name in list(standing)[:: 1 if number % 2 else -1]:
                on_round(_measure(workload, name, standing[name], number, seconds, directory))


def _measure(
    workload: Workload, name: str, running: Running | BenchError, number: int, seconds: float, directory: Path
) -> Round:
    entry = Round(workload.record.name, name, number)
    if isinstance(running, BenchError):
        entry.failed = str(running)
        return entry
    try:
        outcome = workload.measure(running, seconds, directory)
        entry.figures, entry.latencies = outcome.figures, outcome.latencies
    except subprocess.TimeoutExpired:
        entry.failed = "it hung"
    except (BenchError, OSError) as error:
        entry.failed = str(error)
    return entry
