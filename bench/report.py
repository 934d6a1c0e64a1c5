"""The tables of a run: `results.json`, `results.md` and the pictures in one directory, and a summary for the terminal.

    python -m bench.report DIRECTORY

draws `results.md` and the pictures anew from the `results.json` that is there.

Every figure is a median over rounds, with the lowest and the highest beside it. A system that failed has no figures, and one that failed in
some rounds has those of the others but is never called the best.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from bench.programs import BenchError
from bench.record import Metric, Results, Verdict, Workload

OURS: Final = ("fastrelay", "fastrelay-tls")
"""What others are compared with: the first of these that a workload was measured with. Links are for tunnels with TLS only."""
REFERENCE: Final = "direct"
"""No relay at all: shown beside the others, never the best."""
NONE: Final = "–"
WIDTH: Final = 120
_COARSER: Final = {"µs": "ms", "ms": "s"}
_LONG: Final = 44
"""A cell with more characters sticks out of its column instead of widening it for every row."""

_SUMMARY: Final = f"""\
The first figure of each workload, as a median over rounds; ↑ higher is better, ↓ lower is better. **Bold** is the best median,
{NONE} was not measured. `{REFERENCE}` is no relay at all: a reference, never the best."""
_WORKLOADS: Final = """\
Medians with (lowest–highest) of all rounds. "fastrelay is" says how many times better the median of fastrelay is: above 1 it is ahead,
below 1 behind, for figures where lower is better too. Where ranges overlap, a difference means little."""


class Spread(NamedTuple):
    """What the rounds of one system gave for one metric."""

    median: float
    low: float
    high: float

    def times(self, factor: float) -> Spread:
        return Spread(self.median * factor, self.low * factor, self.high * factor)


class Outcome(NamedTuple):
    """All rounds of one system in one workload. `reason` is that of the first round that failed."""

    system: str
    spreads: dict[str, Spread]
    rounds: int
    failed: int
    reason: str


# --- figures -----------------------------------------------------------------------------------------------------------


def systems(results: Results) -> list[str]:
    """All systems, in the order in which they were measured first."""
    return list(dict.fromkeys([*(each.system for each in results.rounds), *(each.system for each in results.verdicts)]))


def outcomes(results: Results, workload: Workload) -> list[Outcome]:
    """What the systems that took part in a workload made of it, in the order of `systems`."""
    found = []
    for system in systems(results):
        rounds = [each for each in results.rounds if (each.workload, each.system) == (workload.name, system)]
        good = [each.figures for each in rounds if not each.failed]
        reasons = [each.failed for each in rounds if each.failed]
        spreads = {}
        for metric in workload.metrics:
            figures = [each[metric.name] for each in good if math.isfinite(each.get(metric.name, math.nan))]
            if figures:
                spreads[metric.name] = Spread(statistics.median(figures), min(figures), max(figures))
        if rounds:
            found.append(Outcome(system, spreads, len(rounds), len(reasons), reasons[0] if reasons else ""))
    return found


def best(found: Sequence[Outcome], metric: Metric) -> set[str]:
    """The systems with the best median, where at least two compete."""
    medians = {
        each.system: each.spreads[metric.name].median
        for each in found
        if metric.name in each.spreads and not each.failed and each.system != REFERENCE
    }
    if len(medians) < 2:
        return set()
    top = max(medians.values()) if metric.better == "higher" else min(medians.values())
    return {system for system, median in medians.items() if median == top}


def ours(found: Sequence[Outcome]) -> Outcome | None:
    """The outcome that others are compared with."""
    by_system = {each.system: each for each in found}
    return next((by_system[system] for system in OURS if system in by_system), None)


def advantage(metric: Metric, us: Spread | None, them: Spread | None) -> float | None:
    """How many times better our median is than theirs: above 1 we are ahead, whether higher or lower figures are better."""
    if us is None or them is None or us.median <= 0 or them.median <= 0:
        return None
    return us.median / them.median if metric.better == "higher" else them.median / us.median


def in_unit(unit: str, medians: Iterable[float]) -> tuple[str, float]:
    """The unit in which such figures read best, and the factor to get there: one for a whole column, so that its rows compare."""
    factor = 1.0
    middle = statistics.median([*medians] or [0.0])
    while unit in _COARSER and middle * factor >= 1000:
        unit, factor = _COARSER[unit], factor / 1000
    return unit, factor


def number(value: float) -> str:
    """Three significant digits and thousands separators: "42,400", "8.70", "0.0123"."""
    if not value or not math.isfinite(value):
        return "0" if not value else NONE
    for _ in range(2):  # twice, as 9.999 has a digit more once it is rounded
        digits = 2 - math.floor(math.log10(abs(value)))
        value = round(value, digits)
    return f"{value:,.{max(digits, 0)}f}"


def ratio(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.2f} x" if 0.1 <= value < 9.995 else f"{number(value)} x"


def heading(workload: Workload) -> str:
    """The title as it begins a line."""
    return workload.title[:1].upper() + workload.title[1:]


def label(metric: Metric, unit: str) -> str:
    """ "rate ↑ requests/s": the arrow points to where it is better."""
    return f"{metric.name} {'↑' if metric.better == 'higher' else '↓'} {unit}"


# --- results.md --------------------------------------------------------------------------------------------------------


def markdown(results: Results, drawn: Mapping[str, str], undrawn: str = "") -> str:
    """The whole of results.md. `drawn` maps the file name of each picture to what it shows; `undrawn` is why there are none."""
    parts = ["# Results of the bench", _head(results)]
    measured = [(each, found) for each in results.workloads if each.metrics and (found := outcomes(results, each))]
    if measured:
        parts += ["## Summary", _SUMMARY, _overview(results, measured)]
    pictures = [f"![{caption}]({name})" for name, caption in drawn.items()]
    parts += pictures[:1]
    if undrawn:
        parts.append(f"There are no pictures: {_plain(undrawn)}")
    if measured:
        parts += ["## Workloads", _WORKLOADS]
    for workload, found in measured:
        parts += [
            f"### {_plain(heading(workload))}",
            f"`{workload.name}`",
            _workload(workload, found),
            *_troubles(found),
        ]
    if results.verdicts:
        parts += ["## Correctness", *_correctness(results)]
    if len(pictures) > 1:
        parts += ["## Pictures", *pictures[1:]]
    if results.about.skipped:
        skipped = (f"- {_plain(name)}: {_plain(reason)}" for name, reason in results.about.skipped.items())
        parts += ["## Skipped", "\n".join(skipped)]
    return "\n\n".join(parts) + "\n"


def _head(results: Results) -> str:
    about = results.about
    cores = f"{about.cores} core{'s' * (about.cores != 1)}"
    versions = ", ".join(f"{name} {version}" for name, version in about.versions.items())
    lines = {
        "Date": _plain(about.date),
        "Command": f"`{about.command}`",
        "Machine": _plain(f"{about.cpu}, {cores}, kernel {about.kernel}, TCP congestion control {about.congestion}"),
        "Versions": _plain(versions) or NONE,
    }
    return "\n".join(f"- {name}: {value}" for name, value in lines.items())


def _overview(results: Results, measured: Sequence[tuple[Workload, Sequence[Outcome]]]) -> str:
    shown = [each for each in systems(results) if any(each == it.system for _, found in measured for it in found)]
    rows = []
    for workload, found in measured:
        unit, cells = _first(workload, found)
        marked = best(found, workload.metrics[0])
        figures = (f"**{cells[each]}**" if each in marked else cells.get(each, NONE) for each in shown)
        rows.append([_plain(heading(workload)), unit, *figures])
    return _table(["workload", "figure", *shown], rows, left=2)


def _first(workload: Workload, found: Sequence[Outcome]) -> tuple[str, dict[str, str]]:
    """The first metric of a workload with its unit, and its median for each system that took part."""
    metric = workload.metrics[0]
    spreads = {each.system: each.spreads[metric.name] for each in found if metric.name in each.spreads}
    unit, factor = in_unit(metric.unit, (each.median for each in spreads.values()))
    cells = {}
    for each in found:
        if each.system in spreads:
            cells[each.system] = number(spreads[each.system].median * factor)
        elif each.failed:
            cells[each.system] = "failed"
    return label(metric, unit), cells


def _workload(workload: Workload, found: Sequence[Outcome]) -> str:
    us = ours(found)
    head, columns = ["system"], []
    for metric in workload.metrics:
        spreads = {each.system: each.spreads[metric.name] for each in found if metric.name in each.spreads}
        unit, factor = in_unit(metric.unit, (each.median for each in spreads.values()))
        head.append(label(metric, unit))
        columns.append(_column(spreads, best(found, metric), factor))
        if us is not None and len(found) > 1:
            head.append(f"{us.system} is")
            mine = us.spreads.get(metric.name)
            compared = {each.system: advantage(metric, mine, spreads.get(each.system)) for each in found}
            columns.append({each: "" if each == us.system else ratio(value) for each, value in compared.items()})
    rows = []
    for each in found:
        cells = [column.get(each.system, NONE) for column in columns]
        if each.failed == each.rounds:
            cells[0] = f"failed: {_plain(each.reason)}"
        rows.append([each.system, *cells])
    return _table(head, rows, left=1)


def _column(spreads: Mapping[str, Spread], marked: set[str], factor: float) -> dict[str, str]:
    cells = {}
    for system, spread in spreads.items():
        median, low, high = map(number, spread.times(factor))
        text = f"**{median}**" if system in marked else median
        cells[system] = text if low == high else f"{text} ({low}–{high})"
    return cells


def _troubles(found: Sequence[Outcome]) -> list[str]:
    lines = [
        f"- {each.system} failed in {each.failed} of {each.rounds} rounds: {_plain(each.reason)}"
        for each in found
        if 0 < each.failed < each.rounds
    ]
    return ["\n".join(lines)] if lines else []


def _correctness(results: Results) -> list[str]:
    """The matrix, and below it what was seen where it was not as it must be; equal words share a number."""
    verdicts = {(each.case, each.system): each for each in results.verdicts}
    tested = {each.system for each in results.verdicts}
    shown = [each for each in systems(results) if each in tested]
    notes: dict[str, int] = {}
    rows = []
    for case in dict.fromkeys(each.case for each in results.verdicts):
        cells = [_verdict(verdicts.get((case, system)), notes) for system in shown]
        rows.append([_plain(case), *cells])
    parts = [_table(["case", *shown], rows, left=1)]
    if notes:
        parts.append("\n".join(f"{at}. {_plain(words)}" for words, at in notes.items()))
    return parts


def _verdict(verdict: Verdict | None, notes: dict[str, int]) -> str:
    if verdict is None or not verdict.runs:
        return NONE
    if verdict.passed == verdict.runs:
        return "yes"
    note = f" ({notes.setdefault(verdict.saw, len(notes) + 1)})" if verdict.saw else ""
    return f"**NO**{note}" if not verdict.passed else f"{verdict.passed} of {verdict.runs}{note}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A table whose columns line up in a terminal too; all but the first `left` ones are aligned to the right."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [
        max(3, len(name), *(len(row[at]) for row in rows if at < left or len(row[at]) <= _LONG))
        for at, name in enumerate(head)
    ]

    def line(cells: Sequence[str]) -> str:
        both = enumerate(zip(cells, widths, strict=True))
        padded = (cell.ljust(width) if at < left else cell.rjust(width) for at, (cell, width) in both)
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if at < left else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
    return "\n".join(map(line, [head, rule, *rows]))


def _plain(text: str) -> str:
    """Words of others on one line, with nothing that Markdown would take for its own but `code`, as install lines are."""
    code = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return "".join(each if at % 2 else re.sub(r"([\\*`<])", r"\\\1", each) for at, each in enumerate(code))


# --- the terminal ------------------------------------------------------------------------------------------------------


def summary(results: Results) -> str:
    """What a person reads at the end of a run: at most WIDTH columns, for as many systems as there are."""
    rows = []
    troubles: dict[str, list[str]] = {}
    for workload in results.workloads:
        if not workload.metrics or not (found := outcomes(results, workload)):
            continue
        unit, cells = _first(workload, found)
        marked = best(found, workload.metrics[0])
        rows.append((workload.name, unit, {system: text + "*" * (system in marked) for system, text in cells.items()}))
        for each in found:
            if each.failed:
                times = "" if each.failed == each.rounds else f" in {each.failed} of {each.rounds} rounds"
                troubles.setdefault(f"{each.system} failed{times}: {each.reason}", []).append(workload.name)
    lines = []
    if rows:
        lines += [f"Medians; * is the best, ↑ higher is better, ↓ lower is better, {NONE} was not measured.", ""]
        lines += _blocks(rows, [each for each in systems(results) if any(each in cells for _, _, cells in rows)])
    lines += _wrapped(f"{trouble} ({', '.join(names)})" for trouble, names in troubles.items())
    if results.verdicts:
        lines += _wrapped([_correct(results)])
    if results.about.skipped:
        lines += _wrapped([f"Skipped: {', '.join(results.about.skipped)}; results.md says why."])
    return "\n".join(lines).rstrip()


def _blocks(rows: Sequence[tuple[str, str, Mapping[str, str]]], shown: Sequence[str]) -> list[str]:
    """The table in as many pieces as the width asks for; fastrelay stands first in each, to compare with."""
    names = max(len(name) for name, _, _ in rows)
    units = max(len(unit) for _, unit, _ in rows)
    widths = {each: max(len(each), *(len(cells.get(each, NONE)) for _, _, cells in rows)) + 2 for each in shown}
    lead = [each for each in OURS if each in shown][:1]
    pieces: list[list[str]] = [[]]
    for each in shown:
        if each not in lead:
            taken = names + 2 + units + sum(widths[it] for it in [*lead, *pieces[-1], each])
            if pieces[-1] and taken > WIDTH:
                pieces.append([])
            pieces[-1].append(each)
    lines = []
    for at, piece in enumerate(pieces):
        columns = [*lead, *piece]
        lines.append(f"{'':{names}}  {'':{units}}" + "".join(f"{each:>{widths[each]}}" for each in columns))
        for name, unit, cells in rows:
            if at == 0 or any(each in cells for each in piece):
                figures = "".join(f"{cells.get(each, NONE):>{widths[each]}}" for each in columns)
                lines.append(f"{name:{names}}  {unit:{units}}{figures}")
        lines.append("")
    return lines


def _correct(results: Results) -> str:
    counts: dict[str, list[bool]] = {}
    for each in results.verdicts:
        if each.runs:
            counts.setdefault(each.system, []).append(each.passed == each.runs)
    return f"Correct: {', '.join(f'{system} {sum(well)} of {len(well)}' for system, well in counts.items())}."


def _wrapped(texts: Iterable[str]) -> list[str]:
    return [
        line for text in texts for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    ]


# --- files -------------------------------------------------------------------------------------------------------------


def write(results: Results, directory: Path) -> list[Path]:
    """Write `results.json`, first as nothing may cost the figures of a long run, then what is drawn from it. The paths of all."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "results.json"
    file.write_text(_json(results), encoding="utf-8")
    return [file, *redraw(results, directory)]


def redraw(results: Results, directory: Path) -> list[Path]:
    """Write `results.md` and the pictures. Without matplotlib, `results.md` says so."""
    from bench import pictures  # which needs the figures of this module

    undrawn = ""
    paths: list[Path] = []
    try:
        paths = pictures.draw(results, directory)
    except BenchError as error:
        undrawn = str(error)
    file = directory / "results.md"
    drawn = {path.name: pictures.CAPTIONS[path.name] for path in paths}
    file.write_text(markdown(results, drawn, undrawn), encoding="utf-8")
    return [file, *paths]


def load(directory: Path) -> Results:
    """The `results.json` of a directory. Raises BenchError where there is none, or one that no run has written."""
    file = directory / "results.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=Results)
    except FileNotFoundError:
        raise BenchError(
            f"There is no results.json in {directory}: name the directory that a run has written."
        ) from None
    except OSError as error:
        raise BenchError(f"{file} cannot be read: {error.strerror}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BenchError(f"{file} is not what a run writes: {error}; run the bench again.") from None


def _json(results: Results) -> str:
    """One line for each workload, round and verdict: short enough to read, and to compare two runs with."""
    rounds = [
        msgspec.structs.replace(  # JSON knows no NaN, and a figure that is none must not spoil the file
            each,
            figures={name: figure for name, figure in each.figures.items() if math.isfinite(figure)},
            latencies=each.latencies if all(map(math.isfinite, each.latencies)) else [],
        )
        for each in results.rounds
    ]
    lists: dict[str, Sequence[msgspec.Struct]] = {
        "workloads": results.workloads,
        "rounds": rounds,
        "verdicts": results.verdicts,
    }
    members = [f'"about": {_encode(results.about)}']
    for name, entries in lists.items():
        lines = ",\n".join(f"  {_encode(each)}" for each in entries)
        members.append(f'"{name}": [\n{lines}\n]' if lines else f'"{name}": []')
    return "{\n" + ",\n".join(members) + "\n}\n"


def _encode(value: msgspec.Struct) -> str:
    return msgspec.json.encode(value).decode()


def main(arguments: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        prog="python -m bench.report", description="Draw results.md and the pictures anew."
    )
    options.add_argument("directory", type=Path, help="where results.json is")
    directory: Path = options.parse_args(arguments).directory
    try:
        for path in redraw(load(directory), directory):
            print(path)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
