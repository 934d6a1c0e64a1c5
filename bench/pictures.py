"""The pictures of a run, as SVG: bars for every workload, latency curves, cost against number, and a compact one for the README.

matplotlib draws them. The same results give the same bytes with one version of it, so that a commit shows what changed.
"""

from __future__ import annotations

import math
import re
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bench.programs import BenchError
from bench.record import Metric, Results, Workload
from bench.report import OURS, REFERENCE, Outcome, Spread, heading, in_unit, number, outcomes, systems

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTIONS: Final = {
    "overview.svg": "fastrelay beside other relays",
    "bars.svg": "The first figure of every workload",
    "latency.svg": "Distribution of latencies",
    "growth.svg": "Cost of a request as numbers grow",
}
"""What each picture shows, by file name, in the order of a page."""

INK, FAINT, RULE = "#1f2328", "#59636e", "#d8dee4"
OUR_COLOURS: Final = dict(zip(OURS, ("#0969da", "#7db8f7"), strict=True))
GREY: Final = "#a9b1ba"
CYCLE: Final = ("#d4622a", "#2da44e", "#8250df", "#cf222e", "#b58407", "#bf3989", "#1b7c83", "#57606a")
"""For the lines of others: none is near the blue of ours."""
SIZE: Final = 8.0  # points, of text
GAP: Final = 0.25  # inches, between panels
LETTER: Final = 0.62 * SIZE / 72  # inches, of a letter at that size on average, on the wide side
STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",  # text stays text: searchable, and in the reader's font
    "svg.hashsalt": "fastrelay",
    "text.parse_math": False,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial"],  # the first is part of matplotlib
    "font.size": SIZE,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "xtick.labelsize": SIZE - 1,
    "ytick.labelsize": SIZE - 1,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",  # a page may be dark
}

PREFERRED: Final = (
    ("requests-64", "", False),
    ("bulk-down-1", "", False),
    ("connections-32", "", False),
    ("ping-beside-bulk", "p99", True),
    ("requests-64", "CPU", False),
    ("idle", "", False),
)
"""What the overview shows: workload, metric ("" is the first), and whether on a log scale."""
GROWTH: Final = re.compile(r"growth-(streams|tunnels)-([1-9][0-9]*)")
PERCENTS: Final = range(100)  # the 100th is the one slowest of all and has no place on a scale for tails


class Box(NamedTuple):
    """A part of a page in inches, from its upper left corner."""

    left: float
    top: float
    width: float
    height: float


def draw(results: Results, directory: Path) -> list[Path]:
    """Write the pictures that the results have figures for, and return their paths. Raises BenchError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise BenchError("Pictures need matplotlib; install it with `pip install -e '.[bench]'`.") from None
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the person's own settings are
        matplotlib.rcParams.update(STYLE)
        for name, make in PICTURES.items():
            path = directory / name
            figure = make(results)
            if figure is None:
                path.unlink(missing_ok=True)  # one of an earlier run would tell of that
                continue
            figure.savefig(path, metadata={"Date": None, "Creator": None, "Title": CAPTIONS[name]})
            written.append(path)
    return written


# --- bars --------------------------------------------------------------------------------------------------------------


class Panel(NamedTuple):
    """One metric of one workload, for the systems in `rows` from top to bottom."""

    title: str
    metric: Metric
    unit: str
    found: dict[str, Outcome]
    spreads: dict[str, Spread]
    rows: tuple[str, ...]
    log: bool

    @property
    def subtitle(self) -> str:
        return f"{self.metric.name}, {self.unit}: {self.metric.better} is better{', log scale' * self.log}"

    @property
    def cut(self) -> str:
        """The system whose bar is cut, if any: one that is far worse than all others, or the reference, as it would flatten them."""
        *_, (_, second), (row, first) = [("", 0.0), ("", 0.0), *self._ends()]
        far = not self.log and first > 3 * second > 0
        return row if far and (self.metric.better == "lower" or row == REFERENCE) else ""

    @property
    def edge(self) -> float:
        """Where the longest bar ends."""
        *_, (_, second), (_, first) = [("", 0.0), ("", 0.0), *self._ends()]
        return 1.4 * second if self.cut else first

    def _ends(self) -> list[tuple[str, float]]:
        ends = [(row, self.spreads[row].high) for row in self.rows if row in self.spreads]
        return sorted(ends, key=lambda each: each[1])


def _panel(results: Results, workload: Workload, metric: Metric, log: bool = False) -> Panel | None:
    found = {each.system: each for each in outcomes(results, workload)}
    raw = {name: each.spreads[metric.name] for name, each in found.items() if metric.name in each.spreads}
    unit, factor = in_unit(metric.unit, (each.median for each in raw.values()))
    spreads = {name: each.times(factor) for name, each in raw.items()}
    log = log and all(each.low > 0 for each in spreads.values())
    return Panel(heading(workload), metric, unit, found, spreads, tuple(found), log) if found else None


def _bars(results: Results) -> Figure | None:
    panels = [
        panel
        for each in results.workloads
        if each.metrics and not GROWTH.fullmatch(each.name) and (panel := _panel(results, each, each.metrics[0]))
    ]
    columns = min(3, len(panels))
    return _grid(results, "bars.svg", panels, columns, 0.3 + columns * 3.6, step=0.185, named=range(3))


def _overview(results: Results) -> Figure | None:
    panels = []
    for name, wanted, log in PREFERRED:
        workload = next((each for each in results.workloads if f"{each.name}-".startswith(f"{name}-")), None)
        metrics = [each for each in workload.metrics if wanted in ("", each.name)] if workload else []
        if workload and metrics and (panel := _panel(results, workload, metrics[0], log)):
            panels.append(panel)
    shown = tuple(
        each for each in systems(results) if each != REFERENCE and any(each in panel.found for panel in panels)
    )
    if not shown:
        return None
    panels = [panel._replace(rows=shown) for panel in panels]
    rows = math.ceil(len(panels) / 3)
    step = min(0.2, max(0.14, (4.5 - 0.6 - rows * 0.75) / rows / len(shown)))
    return _grid(results, "overview.svg", panels, min(3, len(panels)), 8.0, step=step, named=range(1))


def _grid(
    results: Results, name: str, panels: Sequence[Panel], columns: int, width: float, *, step: float, named: range
) -> Figure | None:
    """Panels beside and below each other, `step` inches for a bar; those in the columns `named` have the names of systems."""
    if not panels:
        return None
    names = max(len(row) for panel in panels for row in panel.rows) * LETTER + 0.08
    named = named[:columns]
    body = (width - 0.2 - len(named) * names) / columns - GAP
    cut = any(panel.cut for panel in panels)
    note = _how(results, "lines from the lowest to the highest") + " Bars with a gap are cut." * cut
    places: list[tuple[Panel, Box, float]] = []
    top = _head(width, note)
    for first in range(0, len(panels), columns):
        row = panels[first : first + columns]
        room = [names if at in named else 0 for at in range(columns)]
        lines = max(len(_lines(panel.title, body + left)) for panel, left in zip(row, room, strict=False))
        top += 0.47 + (lines - 1) * 0.15
        for at, panel in enumerate(row):
            box = Box(0.2 + sum(room[: at + 1]) + at * (body + GAP), top, body, len(panel.rows) * step)
            places.append((panel, box, room[at]))
        top += max(len(panel.rows) for panel in row) * step + (0.22 if any(panel.log for panel in row) else 0.12)
    figure = _page(width, top + 0.08, CAPTIONS[name], note)
    for panel, box, left in places:
        _titles(figure, panel.title, panel.subtitle, box, shift=left)
        _draw_bars(_axes(figure, box), panel, box.width, names=left > 0)
    return figure


def _draw_bars(axes: Axes, panel: Panel, width: float, *, names: bool) -> None:
    """The bars of a panel with their values, in axes of this width in inches, and the names of the systems left of it."""
    axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    labels = {row: _value(panel, row) for row in panel.rows}
    ends = {row: min(spread.high, panel.edge) for row, spread in panel.spreads.items() if row in panel.rows}
    # The share of the width that a bar may take with its value behind it still inside.
    shares = {row: max(0.3, 1 - (len(labels[row]) * LETTER + 0.08) / width) for row in ends}
    start = 0.0
    if panel.log and ends:
        start = min(panel.spreads[row].low for row in ends) / 1.5
        _decades(axes, start, panel.edge)
        axes.set_xlim(start, start * max((end / start) ** (1 / shares[row]) for row, end in ends.items()))
    else:
        axes.set_xlim(0, max((end / shares[row] for row, end in ends.items()), default=0) or 1)
    for at, row in enumerate(panel.rows):
        weight = "bold" if row == OURS[0] else "normal"
        if names:
            axes.annotate(
                row,
                (0, at),
                (-5, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="center",
                fontweight=weight,
                color=INK if row in OURS else FAINT,
            )
        spread = panel.spreads.get(row)
        if spread is not None:
            _draw_bar(axes, panel, at, row, spread)
        axes.annotate(
            labels[row],
            (ends.get(row, start), at),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontweight=weight if spread else "normal",
            color=INK if spread else FAINT,
        )


def _draw_bar(axes: Axes, panel: Panel, at: int, row: str, spread: Spread) -> None:
    """One bar, or a dot where a log scale has no zero to start from."""
    colour = OUR_COLOURS.get(row, GREY)
    if panel.log:
        axes.plot([axes.get_xlim()[0], spread.low], [at, at], color=RULE, linewidth=0.8)
        axes.plot([spread.median], [at], marker="o", markersize=5, color=colour)
    else:
        fill = "white" if row == REFERENCE else colour
        axes.barh(at, min(spread.median, panel.edge), height=0.68, color=fill, edgecolor=colour, linewidth=0.8)
    if row == panel.cut:
        for place in (0.9, 0.94):
            slash = [place * panel.edge, (place + 0.03) * panel.edge]
            axes.plot(slash, [at + 0.5, at - 0.5], color="white", linewidth=1.6)
    elif spread.low < spread.high:
        axes.plot([spread.low, spread.high], [at, at], color=INK, linewidth=0.8, solid_capstyle="butt")


def _decades(axes: Axes, low: float, high: float) -> None:
    """Powers of ten as faint lines with small figures below."""
    ticks = [10.0**each for each in range(math.ceil(math.log10(low)), 1 + math.floor(math.log10(high)))]
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(_fixed([]))
    axes.set_xticks(ticks, [f"{each:,g}" for each in ticks])
    axes.tick_params(length=0, pad=1, labelsize=SIZE - 2)
    axes.grid(axis="x")


def _value(panel: Panel, row: str) -> str:
    outcome, spread = panel.found.get(row), panel.spreads.get(row)
    if outcome is not None and outcome.failed == outcome.rounds:
        return "failed"
    if outcome is None or spread is None:
        return "–"
    return number(spread.median) + (f", {outcome.failed} of {outcome.rounds} failed" if outcome.failed else "")


# --- lines -------------------------------------------------------------------------------------------------------------


def _latency(results: Results) -> Figure | None:
    curves = [(each, found) for each in results.workloads if (found := _curves(results, each))]
    if not curves:
        return None
    styles = _styles(results, {system for _, found in curves for system in found})
    columns = min(3, len(curves))
    width, height = 3.7, 2.5
    note = _how(results)
    head = _head(columns * width, note)
    top = head + _legend_height(styles, columns * width)
    rows = math.ceil(len(curves) / columns)
    figure = _page(0.2 + columns * width, top + rows * (height + 0.75), CAPTIONS["latency.svg"], note)
    _legend(figure, styles, head, columns * width)
    for at, (workload, found) in enumerate(curves):
        down, right = divmod(at, columns)
        box = Box(0.65 + right * width, top + 0.4 + down * (height + 0.75), width - 0.75, height)
        _titles(figure, heading(workload), "percentile of latency, left and steep is better", box, shift=0.45)
        axes = _axes(figure, box)
        for system in sorted(found, key=lambda each: each in OURS):  # ours on top
            points = [
                (value, _tail(percent)) for percent, value in zip(PERCENTS, found[system], strict=False) if value > 0
            ]
            axes.plot([x for x, _ in points], [y for _, y in points], **styles[system])
        shown = {0: "min", 50: "p50", 75: "p75", 90: "p90", 95: "p95", 99: "p99"}
        axes.set_ylim(0, _tail(99))
        axes.set_yticks([_tail(each) for each in shown], list(shown.values()))
        axes.set_xscale("log")
        low, high = (edge(each[at] for each in found.values()) for edge, at in ((min, 0), (max, 99)))
        _time_axis(axes, low, high)
        axes.grid()
        axes.tick_params(length=0)
    return figure


def _curves(results: Results, workload: Workload) -> dict[str, list[float]]:
    """For each system the median over rounds of each percentile, in µs."""
    found: dict[str, list[list[float]]] = {}
    for each in results.rounds:
        if each.workload == workload.name and not each.failed and len(each.latencies) == 101 and each.latencies[99] > 0:
            found.setdefault(each.system, []).append(each.latencies)
    return {system: [statistics.median(each) for each in zip(*rounds, strict=True)] for system, rounds in found.items()}


def _tail(percent: float) -> float:
    """Where a percentile stands: as far from 90 to 99 as from 0 to 90."""
    return -math.log10(1 - percent / 100)


def _time_axis(axes: Axes, low: float, high: float) -> None:
    """A log scale of times in µs, with as many round numbers as there is room for."""
    low = max(low, high / 1e6, 1e-3)
    low, high = low / 1.08, max(high, low) * 1.08
    axes.set_xlim(low, high)
    for steps in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [
            step * 10.0**decade
            for decade in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for step in steps
            if low <= step * 10.0**decade <= high
        ]
        if len(ticks) <= 6:
            break
    axes.xaxis.set_minor_locator(_fixed([]))
    axes.set_xticks(ticks, [_time(each) for each in ticks])


def _time(value: float) -> str:
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} µs"


def _growth(results: Results) -> Figure | None:
    series: dict[str, dict[int, dict[str, float]]] = {}
    unit = ""
    for workload in results.workloads:
        match = GROWTH.fullmatch(workload.name)
        metric = next((each for each in workload.metrics if each.name == "CPU"), None)
        if match is None or metric is None:
            continue
        medians = {
            each.system: each.spreads["CPU"].median for each in outcomes(results, workload) if "CPU" in each.spreads
        }
        if medians:
            series.setdefault(match[1], {})[int(match[2])] = medians
            unit = metric.unit
    if not series:
        return None
    styles = _styles(
        results, {system for by_number in series.values() for each in by_number.values() for system in each}
    )
    width, height = 4.0, 2.6
    note = _how(results)
    head = _head(len(series) * width, note)
    top = head + _legend_height(styles, len(series) * width)
    figure = _page(0.2 + len(series) * width, top + height + 0.75, CAPTIONS["growth.svg"], note)
    _legend(figure, styles, head, len(series) * width)
    for at, (what, by_number) in enumerate(sorted(series.items())):
        box = Box(0.7 + at * width, top + 0.4, width - 0.85, height)
        _titles(figure, f"Number of {what}", f"CPU, {unit}: lower is better, flat is best", box, shift=0.5)
        axes = _axes(figure, box)
        numbers = sorted(by_number)
        for system in sorted(styles, key=lambda each: each in OURS):
            values = [by_number[each].get(system, math.nan) for each in numbers]  # NaN: a gap where it failed
            if not all(map(math.isnan, values)):
                axes.plot(numbers, values, marker="o", markersize=3.5, **styles[system])
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(_fixed([]))
        axes.set_xticks(numbers, [f"{each:,}" for each in numbers])
        axes.set_xlim(numbers[0] / 1.15, numbers[-1] * 1.15)
        axes.set_ylim(0, max(value for each in by_number.values() for value in each.values()) * 1.08 or 1)
        axes.grid()
        axes.tick_params(length=0)
    return figure


def _styles(results: Results, shown: set[str]) -> dict[str, dict[str, Any]]:
    """How the line of each system looks. It depends on all systems of the run, so that one has one colour in all pictures."""
    styles: dict[str, dict[str, Any]] = {}
    others = [each for each in systems(results) if each not in OURS and each != REFERENCE]
    for system in systems(results):
        style: dict[str, Any]
        if system in OURS:
            style = {"color": OUR_COLOURS[system], "linewidth": 2.4}
        elif system == REFERENCE:
            style = {"color": INK, "linewidth": 1.1, "linestyle": ":"}
        else:
            turn, at = divmod(others.index(system), len(CYCLE))
            style = {"color": CYCLE[at], "linewidth": 1.2, "linestyle": ("-", "--", "-.")[turn % 3]}
        if system in shown:
            styles[system] = style
    return styles


# --- the page ----------------------------------------------------------------------------------------------------------


def _page(width: float, height: float, title: str, note: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.text(0.2 / width, 1 - 0.2 / height, title, va="top", fontsize=SIZE + 3.5, fontweight="bold")
    for at, line in enumerate(_note(width, note)):
        y = 1 - (0.44 + at * 0.14) / height
        figure.text(0.2 / width, y, line, va="top", fontsize=SIZE - 1, color=FAINT)
    return figure


def _head(width: float, note: str) -> float:
    """The height of what stands above everything: the title of the page and its note."""
    return 0.48 + len(_note(width, note)) * 0.14


def _note(width: float, note: str) -> list[str]:
    return textwrap.wrap(note, int((width - 0.4) / (LETTER * 0.9)))


def _how(results: Results, more: str = "") -> str:
    """What the figures are, and of which machine."""
    rounds = max((each.number for each in results.rounds), default=1)
    about = results.about
    what = f"Medians of {rounds} rounds{f'; {more}' * bool(more)}" if rounds > 1 else "One round"
    return f"{what}. {about.cpu}, {about.cores} core{'s' * (about.cores != 1)}, {about.date[:10]}."


def _axes(figure: Figure, box: Box) -> Axes:
    width, height = figure.get_size_inches()
    return figure.add_axes(
        (box.left / width, 1 - (box.top + box.height) / height, box.width / width, box.height / height)
    )


def _titles(figure: Figure, title: str, subtitle: str, box: Box, shift: float = 0) -> None:
    """Above a box: the title in as many lines as it needs, and the subtitle. `shift` inches to the left, for the labels of an axis."""
    width, height = figure.get_size_inches()
    x = (box.left - shift) / width
    text = "\n".join(_lines(title, box.width + shift))
    figure.text(x, 1 - (box.top - 0.2) / height, text, va="bottom", fontsize=SIZE + 0.5, fontweight="bold")
    figure.text(x, 1 - (box.top - 0.06) / height, subtitle, va="bottom", fontsize=SIZE - 1, color=FAINT)


def _lines(title: str, width: float) -> list[str]:
    return textwrap.wrap(title, int(width / (LETTER * 1.03)), max_lines=2, placeholder=" …") or [title]


def _names_across(styles: Mapping[str, object], width: float) -> int:
    """How many names fit beside each other."""
    return max(1, int(width / (max(map(len, styles)) * LETTER + 0.5)))


def _legend_height(styles: Mapping[str, object], width: float) -> float:
    return math.ceil(len(styles) / _names_across(styles, width)) * 0.18 + 0.12


def _legend(figure: Figure, styles: Mapping[str, Mapping[str, Any]], top: float, width: float) -> None:
    from matplotlib.lines import Line2D

    across, down = figure.get_size_inches()
    columns = _names_across(styles, width)
    step = max(map(len, styles)) * LETTER + 0.5
    for at, (system, style) in enumerate(styles.items()):
        row, column = divmod(at, columns)
        x, y = 0.2 + column * step, 1 - (top + 0.09 + row * 0.18) / down
        figure.add_artist(Line2D([x / across, (x + 0.25) / across], [y, y], solid_capstyle="butt", **style))
        weight = "bold" if system == OURS[0] else "normal"
        figure.text((x + 0.32) / across, y, system, va="center_baseline", fontweight=weight)


def _fixed(ticks: Sequence[float]) -> Any:
    from matplotlib.ticker import FixedLocator

    return FixedLocator(ticks)


PICTURES: Final[Mapping[str, Callable[[Results], Figure | None]]] = {
    "overview.svg": _overview,
    "bars.svg": _bars,
    "latency.svg": _latency,
    "growth.svg": _growth,
}
