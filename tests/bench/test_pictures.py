"""bench.pictures: that they are drawn from what is there, the same every time, and can be read as text."""

from __future__ import annotations

import math
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import pictures, report
from bench.programs import BenchError
from bench.record import Metric, Results, Round, Verdict, Workload
from tests.bench.test_report import BESIDE, REQUESTS, SYSTEMS, WORKLOADS, about, small, synthetic
from tests.support import need

ALL = ["overview.svg", "bars.svg", "latency.svg", "growth.svg"]


@pytest.fixture(scope="module", autouse=True)
def matplotlib_is_there() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        need.missing("matplotlib is not installed")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("drawn")
    assert [each.name for each in pictures.draw(synthetic(), directory)] == ALL
    return directory


def texts(path: Path) -> list[str]:
    """The texts of a picture, which is valid XML."""
    root = ET.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}text")]


def size(path: Path) -> tuple[float, float]:
    """In inches."""
    root = ET.parse(path).getroot()
    return float(root.attrib["width"].removesuffix("pt")) / 72, float(root.attrib["height"].removesuffix("pt")) / 72


def panels(path: Path) -> int:
    """How often a picture says which way is better."""
    return sum(bool(re.search(r"(higher|lower|steep) is better", each)) for each in texts(path))


def test_bars_have_every_workload_and_system(drawn: Path) -> None:
    shown = texts(drawn / "bars.svg")
    assert set(SYSTEMS) <= set(shown)
    assert panels(drawn / "bars.svg") == sum(not each.name.startswith("growth") for each in WORKLOADS)
    for workload in WORKLOADS:
        assert (workload.title[:20] in " ".join(shown)) != workload.name.startswith("growth"), workload.name
    assert shown.count("failed") == 4, "two systems in two workloads"
    assert any(each.endswith(", 1 of 5 failed") for each in shown)
    assert "0" not in shown
    assert size(drawn / "bars.svg")[0] < 12


def test_the_overview_is_compact(drawn: Path) -> None:
    shown = texts(drawn / "overview.svg")
    width, height = size(drawn / "overview.svg")
    assert width == 8 and 4 < height < 5.2
    assert panels(drawn / "overview.svg") == 6
    assert [shown.count(each) for each in SYSTEMS] == [2] * 10 + [0], "once for each row of panels, and no reference"
    assert "p99, ms: lower is better, log scale" in shown


def test_what_the_overview_prefers(tmp_path: Path) -> None:
    """It takes `idle-2000` for idle, and what there is."""
    workloads = [
        Workload("idle-2000", "2,000 idle streams", (Metric("memory", "KiB/stream", "lower"),)),
        *WORKLOADS[:5],
    ]
    rounds = [Round(each.name, "fastrelay", 1, {each.metrics[0].name: 2.0}) for each in workloads]
    pictures.draw(Results(about(), workloads, rounds), tmp_path)
    shown = texts(tmp_path / "overview.svg")
    assert "2,000 idle streams" in shown and "Download, one stream" in shown
    assert panels(tmp_path / "overview.svg") == 2


def test_latency_and_growth_name_every_system(drawn: Path) -> None:
    assert set(SYSTEMS) <= set(texts(drawn / "latency.svg"))
    assert panels(drawn / "latency.svg") == sum(
        each.metrics in (REQUESTS, BESIDE, WORKLOADS[10].metrics) for each in WORKLOADS
    )
    shown = texts(drawn / "growth.svg")
    assert {"fastrelay", "haproxy", "frp", "Number of streams", "Number of tunnels", "1,000", "200"} <= set(shown)
    assert "ssh" not in shown


def test_the_same_results_give_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    """Whatever settings of their own people have."""
    import matplotlib

    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30}):
        pictures.draw(synthetic(), tmp_path)
        assert matplotlib.rcParams["font.size"] == 30
    for name in ALL:
        assert (tmp_path / name).read_bytes() == (drawn / name).read_bytes()


def test_what_is_worse_by_far_is_cut() -> None:
    def panel(better: str, **figures: float) -> pictures.Panel:
        metric = Metric("rate", "Gbit/s", "higher") if better == "higher" else Metric("rate", "Gbit/s", "lower")
        results = small(*(Round("w", name, 1, {"rate": each}) for name, each in figures.items()), metrics=(metric,))
        made = pictures._panel(results, results.workloads[0], metric)
        assert made is not None
        return made

    assert panel("lower", fastrelay=1, frp=2, ssh=7).cut == "ssh"
    assert panel("lower", fastrelay=1, frp=2, ssh=7).edge == pytest.approx(2.8)
    assert panel("lower", fastrelay=1, frp=2, ssh=6).cut == ""
    assert panel("lower", fastrelay=1, frp=2, ssh=6).edge == 6
    assert panel("higher", fastrelay=1, frp=2, ssh=7).cut == "", "who is better keeps the whole bar"
    assert panel("higher", fastrelay=1, frp=2, direct=7).cut == "direct"
    assert panel("lower", fastrelay=1).edge == 1
    assert panel("lower", fastrelay=0, frp=0).edge == 0
    assert panel("lower", fastrelay=math.nan).edge == 0


def test_whatever_is_missing(tmp_path: Path) -> None:
    """One round, unknown systems, texts that XML or mathematics would take for theirs, failures only, zeros, growth with gaps."""
    workloads = [
        *(Workload(name, "a <b> & $c$", REQUESTS) for name in ("requests-64", "failing", "zero", "empty")),
        *(Workload(f"growth-streams-{each}", "growth", (Metric("CPU", "µs/request", "lower"),)) for each in (1, 4, 16)),
        Workload("growth-many-7", "no such growth", REQUESTS),
        Workload("no-metrics", "none", ()),
        Workload("ping-beside-bulk", "ping", BESIDE),
    ]
    rounds = [
        Round("requests-64", "new<&>comer", 1, {"rate": 5.0}, [0.0] * 50 + [7.0] * 51),
        Round("requests-64", "frp", 1, failed="$x$ <&>"),
        Round("failing", "frp", 1, failed="$x$ <&>"),
        Round("zero", "frp", 1, {"rate": 0.0}, [1.0, 2.0]),
        Round("empty", "frp", 1),
        Round("no-metrics", "frp", 1, latencies=[0.0] * 101),
        Round("growth-streams-1", "frp", 1, {"CPU": 0.0}),
        Round("growth-streams-4", "frp", 1, failed="no"),
        Round("growth-streams-16", "frp", 1, {"CPU": 0.0}),
        Round("ping-beside-bulk", "frp", 1, {"p99": 0.0}),
    ]
    assert [each.name for each in pictures.draw(Results(about(cores=1), workloads, rounds), tmp_path)] == ALL
    for name in ALL:
        texts(tmp_path / name)
    shown = texts(tmp_path / "bars.svg")
    assert {"new<&>comer", "A <b> & $c$", "5.00", "failed", "–"} <= set(shown)
    assert "One round. Some(R) Processor(R) Platinum 8370C CPU @ 2.80GHz, 1 core, 2026-11-20." in " ".join(shown)
    assert not any("log scale" in each for each in texts(tmp_path / "overview.svg")), "zero has no logarithm"


def test_pictures_of_an_earlier_run_go(tmp_path: Path) -> None:
    for name in ALL:
        (tmp_path / name).write_text("old")
    assert pictures.draw(Results(about(), WORKLOADS, [], [Verdict("reset", "frp", 1, 1)]), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BenchError) as caught:
        pictures.draw(synthetic(1), tmp_path)
    assert str(caught.value) == "Pictures need matplotlib; install it with `pip install -e '.[bench]'`."
    assert list(tmp_path.iterdir()) == []


def test_the_report_shows_what_was_drawn(tmp_path: Path) -> None:
    rounds = [each for each in synthetic(1).rounds if each.workload == "requests-64"]
    paths = report.write(Results(about(), WORKLOADS, rounds), tmp_path)
    assert [each.name for each in paths] == ["results.json", "results.md", *ALL[:3]]
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert re.findall(r"^!\[.+\]\((.+)\)$", text, re.MULTILINE) == ALL[:3]
    assert "no pictures" not in text
