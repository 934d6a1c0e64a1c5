"""bench.report: that tables say what the rounds say, and that what failed never looks like a figure."""

from __future__ import annotations

import math
import random
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import report
from bench.programs import BenchError
from bench.record import About, Metric, Results, Round, Verdict, Workload

SYSTEMS = {
    "fastrelay": 1.0,
    "fastrelay-tls": 0.9,
    "haproxy": 0.92,
    "nginx": 0.88,
    "ssh": 0.5,
    "rathole": 0.95,
    "bore": 0.8,
    "chisel": 0.55,
    "frp": 0.45,
    "asyncssh": 0.16,
    "direct": 2.3,
}
"""How fast each one is, more or less."""
BULK = (Metric("rate", "Gbit/s", "higher"), Metric("CPU", "s/GB", "lower"))
REQUESTS = (
    Metric("rate", "requests/s", "higher"),
    Metric("p50", "µs", "lower"),
    Metric("p99", "µs", "lower"),
    Metric("CPU", "µs/request", "lower"),
)
PING = (Metric("p50", "µs", "lower"), Metric("p99", "µs", "lower"))
BESIDE = (Metric("p99", "µs", "lower"), Metric("p50", "µs", "lower"), Metric("bulk", "Gbit/s", "higher"))
IDLE = (Metric("memory", "KiB/stream", "lower"), Metric("wake-up", "ms", "lower"))
GROWTH = (Metric("CPU", "µs/request", "lower"), Metric("rate", "requests/s", "higher"))
WORKLOADS = [
    Workload("bulk-down-1", "Download, one stream", BULK),
    Workload("bulk-up-1", "Upload, one stream", BULK),
    Workload("bulk-down-8", "Download, eight streams", BULK),
    Workload("bulk-up-8", "Upload, eight streams", BULK),
    Workload("requests-1", "Requests, one connection", REQUESTS),
    Workload("requests-64", "Requests, 64 connections", REQUESTS),
    Workload("requests-256", "Requests, 256 connections", REQUESTS),
    Workload("requests-1000", "Requests, 1,000 connections", REQUESTS),
    Workload("connections-1", "A connection for each request, one at a time", REQUESTS),
    Workload("connections-32", "A connection for each request, 32 at a time", REQUESTS),
    Workload("ping", "Ping-pong of 32 bytes", PING),
    Workload("ping-beside-bulk", "Ping-pong beside a download", BESIDE),
    Workload("idle", "Idle streams", IDLE),
    Workload("stalled", "A download beside 100 visitors that do not read", BULK),
    Workload("tunnels-1", "One client", GROWTH[::-1]),
    Workload("tunnels-50", "50 clients", GROWTH[::-1]),
    Workload("tunnels-200", "200 clients", GROWTH[::-1]),
    Workload("link-100-40-bbr", "Ping-pong beside a download over a link of 100 Mbit/s and 40 ms, bbr", BESIDE),
    Workload("link-20-80-cubic", "Ping-pong beside a download over a link of 20 Mbit/s and 80 ms, cubic", BESIDE),
    *(Workload(f"growth-streams-{count}", f"{count:,} streams", GROWTH) for count in (1, 16, 64, 256, 1000)),
    *(Workload(f"growth-tunnels-{count}", f"{count:,} tunnels", GROWTH) for count in (1, 10, 50, 200)),
]
USUAL = {
    "Gbit/s": 11.5,
    "s/GB": 0.7,
    "requests/s": 45_200.0,
    "µs": 160.0,
    "µs/request": 20.0,
    "KiB/stream": 3.6,
    "ms": 41.0,
}


def about(**changes: object) -> About:
    made = About(
        date="2026-11-20T13:35:00Z",
        command="python -m bench --rounds 5",
        kernel="6.18.5",
        cpu="Some(R) Processor(R) Platinum 8370C CPU @ 2.80GHz",
        cores=2,
        congestion="cubic",
        versions={"fastrelay": "0.1.0", "haproxy": "2.6.12", "Python": "3.11.7", "uvloop": "0.23.0"},
        skipped={"remotedialer": "remotedialer is not on PATH; install it with `curl example.com/*.tgz | tar x`."},
    )
    return msgspec.structs.replace(made, **changes)


def synthetic(rounds: int = 5) -> Results:
    """Eleven systems and 28 workloads, with what goes wrong in real runs: systems that fail, always or once, and some that sit out."""
    dice = random.Random(7)
    made = []
    for workload in WORKLOADS:
        for number in range(1, rounds + 1):
            for system, speed in SYSTEMS.items():
                if workload.name.startswith("link") and system in ("fastrelay", "bore", "nginx"):
                    continue
                if workload.name.startswith(("growth", "tunnels")) and system not in ("fastrelay", "haproxy", "frp"):
                    continue
                if workload.name == "idle" and system == "direct":
                    continue
                one = Round(workload.name, system, number)
                if workload.name.startswith("bulk-up") and system in ("bore", "chisel"):
                    one.failed = "lost the half-close: 0 of 2,097,152,000 bytes were confirmed"
                elif (workload.name, system, number) == ("connections-32", "ssh", 2):
                    one.failed = "connection refused"
                else:
                    _measure(one, workload, speed, dice)
                made.append(one)
    cases = ("half-close of the visitor", "half-close of the target", "reset of the visitor", "reset of the target")
    verdicts = []
    for case in cases:
        for system in SYSTEMS:
            if case.startswith("half") and system in ("frp", "chisel", "bore"):
                verdicts.append(Verdict(case, system, 0, 5, "a clean end and 0 bytes"))
            elif case.startswith("reset") and system not in ("fastrelay", "fastrelay-tls", "direct"):
                well = 3 if system == "haproxy" else 0
                verdicts.append(Verdict(case, system, well, 5, "a clean end instead of a reset"))
            else:
                verdicts.append(Verdict(case, system, 5, 5))
    return Results(about(), WORKLOADS, made, verdicts)


def _measure(one: Round, workload: Workload, speed: float, dice: random.Random) -> None:
    slow = 300.0 if workload.name.startswith("link") else 20.0 if "beside" in workload.name else 1.0
    for metric in workload.metrics:
        usual = USUAL[metric.unit] * (slow if metric.unit == "µs" else 1)
        usual *= 2.2 if metric.name == "p99" else 1
        usual = usual * speed if metric.better == "higher" else usual / speed**1.6
        one.figures[metric.name] = usual * dice.uniform(0.93, 1.07)
    if workload.metrics in (REQUESTS, PING, BESIDE):
        middle = 160.0 * slow / speed**1.3
        one.latencies = sorted(middle * dice.lognormvariate(0, 0.25) for _ in range(101))


def small(*rounds: Round, metrics: tuple[Metric, ...] = BULK, **changes: object) -> Results:
    """One workload named "w" with these rounds."""
    return Results(about(**changes), [Workload("w", "The workload", metrics)], list(rounds))


def table(text: str, first: str) -> dict[str, list[str]]:
    """The cells of the table whose head begins with `first`, by the first cell of each row; bold ones keep their stars."""
    found: dict[str, list[str]] = {}
    for line in text[re.search(rf"^\| {first} ", text, re.MULTILINE).start() :].splitlines():  # type: ignore[union-attr]
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        found[name] = cells
    return found


# --- figures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (42_437.0, "42,400"),
        (1_234_567.0, "1,230,000"),
        (999.6, "1,000"),
        (8.7, "8.70"),
        (9.999, "10.0"),
        (121.4, "121"),
        (0.01234, "0.0123"),
        (0.000004, "0.00000400"),
        (-1.5, "-1.50"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_a_number_has_three_digits(value: float, text: str) -> None:
    assert report.number(value) == text


@given(st.floats(1e-6, 1e12))
def test_a_number_is_near_what_it_says(value: float) -> None:
    text = report.number(value)
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.005)
    assert len(text.replace(",", "").replace(".", "").lstrip("0").rstrip("0")) <= 3


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=9), st.lists(st.floats(0.1, 1e6), min_size=1, max_size=9))
def test_medians_and_ratios(ours: list[float], theirs: list[float]) -> None:
    rounds = [Round("w", "fastrelay", at, {"rate": each, "CPU": each}) for at, each in enumerate(ours, 1)]
    rounds += [Round("w", "frp", at, {"rate": each, "CPU": each}) for at, each in enumerate(theirs, 1)]
    results = small(*rounds)
    us, them = report.outcomes(results, results.workloads[0])
    assert us.spreads["rate"] == (statistics.median(ours), min(ours), max(ours))
    assert them.spreads["CPU"] == (statistics.median(theirs), min(theirs), max(theirs))
    times = statistics.median(ours) / statistics.median(theirs)
    higher, lower = (report.advantage(metric, us.spreads["rate"], them.spreads["rate"]) for metric in BULK)
    assert higher == pytest.approx(times)
    assert lower == pytest.approx(1 / times)
    cells = table(report.markdown(results, {}), "system")
    assert cells["frp"][1] == report.ratio(times) and cells["frp"][3] == report.ratio(1 / times)
    assert cells["fastrelay"][1] == cells["fastrelay"][3] == ""
    if times > 1:
        assert "**" in cells["fastrelay"][0] and "**" in cells["frp"][2]
        assert "**" not in cells["frp"][0] and "**" not in cells["fastrelay"][2]


def test_a_ratio_that_cannot_be() -> None:
    nothing = report.Spread(0, 0, 0)
    one = report.Spread(1, 1, 1)
    assert report.advantage(BULK[0], None, one) is None
    assert report.advantage(BULK[0], one, None) is None
    assert report.advantage(BULK[0], one, nothing) is None
    assert report.advantage(BULK[1], nothing, one) is None
    assert [report.ratio(each) for each in (None, 1.666, 0.5, 0.01234, 9.996, 12.34)] == [
        *("–", "1.67 x", "0.50 x", "0.0123 x", "10.0 x", "12.3 x")
    ]


def test_one_unit_for_a_column() -> None:
    assert report.in_unit("µs", [900, 1_100, 5_000]) == ("ms", 0.001)
    assert report.in_unit("µs", [100, 200, 5_000]) == ("µs", 1)
    assert report.in_unit("µs", [3e6])[0] == "s"
    assert report.in_unit("requests/s", [5e6]) == ("requests/s", 1)
    assert report.in_unit("µs", []) == ("µs", 1)
    rounds = (Round("w", "fastrelay", 1, {"p50": 161, "p99": 780}), Round("w", "frp", 1, {"p50": 381, "p99": 8_500}))
    cells = table(report.markdown(small(*rounds, metrics=PING), {}), "system")
    assert cells["system"][0] == "p50 ↓ µs" and cells["system"][2] == "p99 ↓ ms"
    assert cells["fastrelay"][2] == "**0.780**" and cells["frp"][2:] == ["8.50", "10.9 x"]


# --- results.md --------------------------------------------------------------------------------------------------------


def test_failed_is_never_a_figure() -> None:
    rounds = [Round("w", "fastrelay", at, {"rate": 10.0, "CPU": 0.5}) for at in (1, 2, 3)]
    rounds += [Round("w", "bore", at, {"rate": 0.0, "CPU": 0.0}, failed="lost | the\nhalf-close") for at in (1, 2, 3)]
    rounds += [Round("w", "ssh", 1, {"rate": 99.0, "CPU": 0.1}), Round("w", "ssh", 2, {"rate": 1.0}, failed="refused")]
    results = small(*rounds)
    text = report.markdown(results, {})
    cells = table(text, "system")
    assert cells["bore"] == ["failed: lost \\| the half-close", "–", "–", "–"]
    assert cells["ssh"][0] == "99.0", "the failed round does not count, and whoever fails is not the best"
    assert "- ssh failed in 1 of 2 rounds: refused" in text
    shown = table(text, "workload")
    assert dict(zip(shown["workload"], shown["The workload"], strict=True)) == {
        "figure": "rate ↑ Gbit/s",
        "fastrelay": "10.0",
        "bore": "failed",
        "ssh": "99.0",
    }
    brief = report.summary(results)
    assert "bore failed: lost | the half-close (w)" in brief
    assert "ssh failed in 1 of 2 rounds: refused (w)" in brief
    assert re.search(r"^w +rate ↑ Gbit/s +10\.0 +failed +99\.0$", brief, re.MULTILINE)


def test_when_all_fail() -> None:
    text = report.markdown(small(*(Round("w", each, 1, failed="no") for each in ("fastrelay", "frp"))), {})
    assert table(text, "system")["fastrelay"] == ["failed: no", "", "–", ""]
    assert table(text, "workload")["The workload"] == ["rate ↑ Gbit/s", "failed", "failed"]


def test_direct_is_never_the_best() -> None:
    rounds = [Round("w", each, 1, {"rate": rate}) for each, rate in (("direct", 40), ("frp", 3), ("fastrelay", 12))]
    text = report.markdown(small(*rounds), {})
    cells = table(text, "system")
    assert [cells[each][:2] for each in ("direct", "frp", "fastrelay")] == [
        *(["40.0", "0.30 x"], ["3.00", "4.00 x"], ["**12.0**", ""])
    ]
    assert re.search(r"40\.0 +3\.00 +12\.0\*|12\.0\* +40\.0 +3\.00", report.summary(small(*rounds)))


def test_a_single_system_has_nobody_to_beat() -> None:
    cells = table(report.markdown(small(Round("w", "fastrelay", 1, {"rate": 12.0})), {}), "system")
    assert cells == {"system": ["rate ↑ Gbit/s", "CPU ↓ s/GB"], "-" * 9: cells["-" * 9], "fastrelay": ["12.0", "–"]}


def test_over_a_link_the_tunnel_with_tls_is_ours() -> None:
    rounds = (Round("w", "fastrelay-tls", 1, {"rate": 12.0}), Round("w", "frp", 1, {"rate": 6.0}))
    cells = table(report.markdown(small(*rounds), {}), "system")
    assert cells["system"][1] == "fastrelay-tls is" and cells["frp"][1] == "2.00 x"


def test_without_ours_there_are_no_ratios() -> None:
    rounds = (Round("w", "newcomer", 1, {"rate": 12.0}), Round("w", "frp", 1, {"rate": 6.0}))
    text = report.markdown(small(*rounds), {})
    assert table(text, "system")["newcomer"] == ["**12.0**", "–"]
    assert " x |" not in text


def test_missing_and_impossible_figures() -> None:
    rounds = [
        Round("w", "fastrelay", 1, {"rate": 12.0, "unheard of": 1.0}),
        Round("w", "fastrelay", 2, {"rate": math.nan}),
        Round("w", "frp", 1, {"CPU": 2.0}),
        Round("w", "ssh", 1),
        Round("gone", "ssh", 1, {"rate": 1.0}),
    ]
    results = small(*rounds)
    cells = table(report.markdown(results, {}), "system")
    assert cells["fastrelay"] == ["12.0", "", "–", ""]
    assert cells["frp"] == ["–", "–", "2.00", "–"]
    assert cells["ssh"] == ["–"] * 4
    assert "12.0" in report.summary(results)


def test_correctness() -> None:
    verdicts = [
        Verdict("half-close", "fastrelay", 5, 5),
        Verdict("half-close", "frp", 0, 5, "a clean end"),
        Verdict("reset", "fastrelay", 3, 5, "nothing at all"),
        Verdict("reset", "frp", 0, 5, "a clean end"),
        Verdict("reset", "ssh", 0, 0),
        Verdict("kill", "ssh", 0, 2),
    ]
    results = Results(about(), verdicts=verdicts)
    text = report.markdown(results, {})
    cells = table(text, "case")
    assert cells["case"] == ["fastrelay", "frp", "ssh"]
    assert cells["half-close"] == ["yes", "**NO** (1)", "–"]
    assert cells["reset"] == ["3 of 5 (2)", "**NO** (1)", "–"]
    assert cells["kill"] == ["–", "–", "**NO**"]
    assert "\n1. a clean end\n2. nothing at all\n" in text
    assert "Correct: fastrelay 1 of 2, frp 0 of 2, ssh 0 of 1." in report.summary(results)


def test_the_head_and_what_was_skipped() -> None:
    text = report.markdown(Results(about(skipped={"bore": "not * installed; `curl */x | tar x`"})), {})
    assert "- Command: `python -m bench --rounds 5`" in text
    assert (
        "- Machine: Some(R) Processor(R) Platinum 8370C CPU @ 2.80GHz, 2 cores, kernel 6.18.5, TCP congestion control cubic"
        in text
    )
    assert "haproxy 2.6.12" in text
    assert text.endswith("## Skipped\n\n- bore: not \\* installed; `curl */x | tar x`\n")
    assert report.summary(Results(about(skipped={}))) == ""


def test_tables_line_up_in_a_terminal() -> None:
    text = report.markdown(synthetic(), {})
    heads = 0
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if block.startswith("|"):
            heads += 1
            assert len({len(line) for line in lines if "failed: " not in line}) == 1
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert heads == len(WORKLOADS) + 2
    for workload in WORKLOADS:
        assert f"### {workload.title}\n\n`{workload.name}`\n" in text


def test_the_summary_fits_a_terminal() -> None:
    text = report.summary(synthetic())
    assert max(map(len, text.splitlines())) <= report.WIDTH
    for name in (*SYSTEMS, *(each.name for each in WORKLOADS)):
        assert re.search(rf"(^|\s){re.escape(name)}(\s|$)", text, re.MULTILINE), name


# --- files -------------------------------------------------------------------------------------------------------------


def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def test_results_come_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_matplotlib(monkeypatch)
    results = synthetic(2)
    paths = report.write(results, tmp_path / "new" / "run")
    assert [each.name for each in paths] == ["results.json", "results.md"]
    assert report.load(tmp_path / "new" / "run") == results
    rounds = [line for line in paths[0].read_text(encoding="utf-8").splitlines() if line.startswith('  {"workload":')]
    assert len(rounds) == len(results.rounds), "one line each"
    assert "There are no pictures: Pictures need matplotlib; install it with `pip install -e '.[bench]'`." in paths[
        1
    ].read_text("utf-8")


def test_what_json_cannot_say_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_matplotlib(monkeypatch)
    broken = Round("w", "frp", 1, {"rate": math.nan, "CPU": 1.0}, [math.inf] * 101)
    report.write(small(broken), tmp_path)
    assert report.load(tmp_path).rounds == [Round("w", "frp", 1, {"CPU": 1.0})]
    report.write(Results(about()), tmp_path)
    assert report.load(tmp_path) == Results(about())


def test_redraw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    no_matplotlib(monkeypatch)
    report.write(synthetic(1), tmp_path)
    before = (tmp_path / "results.md").read_text(encoding="utf-8")
    (tmp_path / "results.md").unlink()
    assert report.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'results.md'}\n"
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda file: None, "There is no results.json in"),
        (lambda file: file.mkdir(), "cannot be read"),
        (lambda file: file.write_text("{"), "is not what a run writes"),
        (lambda file: file.write_bytes(b'"\xff'), "is not what a run writes"),
        (lambda file: file.write_text('{"about": {}}'), "is not what a run writes"),
        (lambda file: file.write_text("[]"), "is not what a run writes"),
    ],
)
def test_nothing_to_redraw(
    make: Callable[[Path], object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "results.json")
    assert report.main([str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err and said.err.count("\n") == 1 and said.err.endswith(".\n")
    assert not (tmp_path / "results.md").exists()
    with pytest.raises(BenchError):
        report.load(tmp_path)
