"""The command: `python -m bench`, or `fastrelay bench` from a checkout.

python -m bench --quick
python -m bench --workload bulk --system fastrelay --system rathole --rounds 3
python -m bench --list
"""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

import click
from click.core import ParameterSource

from bench import correctness, link, report
from bench.programs import LOOPBACK, BenchError, Running
from bench.record import About, Results, Round, Verdict
from bench.rounds import play, takes_part
from bench.systems import SYSTEMS, System
from bench.workloads import QUICK, Workload, workloads

CORRECTNESS = "correctness"


@click.command()
@click.option("--quick", is_flag=True, help="A few workloads for a second each, one round: less than five minutes.")
@click.option("--system", "systems", multiple=True, metavar="NAME", help="Only this system; may be repeated.")
@click.option(
    "--workload",
    "chosen",
    multiple=True,
    metavar="NAME",
    help="Only this workload, or those whose names begin so; may be repeated.",
)
@click.option("--rounds", type=click.IntRange(1), help="How often each is measured.  [default: 5, quick: 1]")
@click.option("--seconds", type=click.FloatRange(1), help="How long each measurement lasts.  [default: 2, quick: 1]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("bench-results"),
    show_default=True,
    help="Directory of results.json, results.md and the pictures.",
)
@click.option("--list", "listing", is_flag=True, help="Show what there is to measure, and on what.")
def main(
    quick: bool,
    systems: tuple[str, ...],
    chosen: tuple[str, ...],
    rounds: int | None,
    seconds: float | None,
    out: Path,
    listing: bool,
) -> None:
    """Measure fastrelay beside other relays, on this machine, in one run.

    Every system runs with its documented defaults. Rounds are interleaved; figures are medians. Processors and memory are counted over all
    processes of a system, without the visitors and the targets.
    """
    if listing:
        _list()
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # what was started is ended on the way out
    try:
        out.mkdir(parents=True, exist_ok=True)
        results = measure(
            _systems(systems),
            *_workloads(chosen, quick),
            rounds or (1 if quick else 5),
            seconds or (1.0 if quick else 2.0),
        )
        paths = report.write(results, out)
    except (BenchError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    click.echo(report.summary(results))
    click.echo(f"\n{', '.join(str(path) for path in paths)}")


def measure(
    systems: Sequence[System], chosen: Sequence[Workload], correct: bool, rounds: int, seconds: float
) -> Results:
    """The whole run, with a progress bar on stderr."""
    results = Results(_about(), [workload.record for workload in chosen])
    present = [system for system in systems if not _left_out(results, system.name, system.missing())]
    chosen = [work for work in chosen if not (work.link and _left_out(results, work.record.name, link.unavailable()))]
    results.about.versions |= {system.name: system.version() for system in present if system.name != "direct"}
    cells = [(work, [system for system in present if takes_part(system, work)]) for work in chosen]
    judged = [system for system in present if system.name != "direct"] if correct else []
    total = sum(_tenths(work, seconds) * rounds * len(on) for work, on in cells) + len(judged) * 100 * min(rounds, 3)
    with click.progressbar(
        length=total, file=sys.stderr, label="starting", item_show_func=lambda item: item or ""
    ) as bar:
        for work, on in cells:

            def done(entry: Round, work: Workload = work) -> None:
                results.rounds.append(entry)
                bar.update(_tenths(work, seconds), f"{entry.system}")

            bar.label = work.record.title
            play(work, on, rounds, seconds, done)
        bar.label = CORRECTNESS
        for system in judged:
            results.verdicts += _judge(system, min(rounds, 3))
            bar.update(100 * min(rounds, 3), system.name)
    return results


def _judge(system: System, runs: int) -> Iterable[Verdict]:
    with tempfile.TemporaryDirectory(prefix="fastrelay-bench-") as directory:

        def start(stack: ExitStack, target: int) -> Running:
            return system.start(stack, LOOPBACK, Path(directory), target)

        yield from correctness.judge(start, system.name, runs)


def _tenths(work: Workload, seconds: float) -> int:
    return max(1, round(work.time(seconds) * 10))


def _left_out(results: Results, name: str, reason: str) -> bool:
    if reason:
        results.about.skipped[name] = reason
        click.echo(f"{name} is left out: {reason}", err=True)
    return bool(reason)


def _systems(names: Sequence[str]) -> list[System]:
    unknown = [name for name in names if name not in SYSTEMS]
    if unknown:
        raise BenchError(f"There is no system {unknown[0]}; there are {', '.join(SYSTEMS)}.")
    return [system for name, system in SYSTEMS.items() if not names or name in names]


def _workloads(names: Sequence[str], quick: bool) -> tuple[list[Workload], bool]:
    """The workloads, and whether correctness is one of them."""
    every = workloads()
    if not names:
        return [work for name, work in every.items() if not quick or name in QUICK], True
    # A name that is one is that one; else it is how some begin.
    wanted = [
        one
        for name in names
        for one in ([name] if name in every else [each for each in every if each.startswith(name)])
    ]
    found = [work for name, work in every.items() if name in wanted]
    correct = any(CORRECTNESS.startswith(name) for name in names)
    if not found and not correct:
        raise BenchError(f"There is no workload {names[0]}; `--list` shows what there is.")
    return found, correct


def _list() -> None:
    for name, system in SYSTEMS.items():
        click.echo(f"{name:20} {system.title:22} {system.missing() or system.version()}")
    click.echo()
    for name, work in workloads().items():
        click.echo(f"{name:20} {work.record.title}")
    click.echo(f"{CORRECTNESS:20} half-close, reset, refusal and stalled readers")


def _about() -> About:
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    return About(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=_command(),
        kernel=platform.release(),
        cpu=cpu,
        cores=len(os.sched_getaffinity(0)),
        congestion="".join(_lines("/proc/sys/net/ipv4/tcp_congestion_control")) or "unknown",
        versions={"python": platform.python_version(), "uvloop": metadata.version("uvloop")},
    )


def _command() -> str:
    """What was typed, but for the directory of the results: that is nobody's business who reads them."""
    words = ["python", "-m", "bench"]
    context = click.get_current_context()
    for option in context.command.params:
        name = option.name or ""
        if name != "out" and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            values = context.params[name]
            for value in values if isinstance(values, tuple) else (values,):
                words += [option.opts[0]] if value is True else [option.opts[0], f"{value}"]
    return shlex.join(words)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    main()
