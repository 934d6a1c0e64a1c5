"""What a run leaves behind, as it is written to `results.json`: every round of every workload, and what it was measured with."""

from __future__ import annotations

from typing import Literal

import msgspec


class Metric(msgspec.Struct, frozen=True):
    """One figure of a workload. `unit` is as shown: "requests/s", "µs", "s/GB", "Mbit/s", "KiB"."""

    name: str
    unit: str
    better: Literal["higher", "lower"]


class Workload(msgspec.Struct, frozen=True):
    """`name` is what `--workload` takes, `title` what a reader sees; `metrics` in the order of the table, the one that matters most first."""

    name: str
    title: str
    metrics: tuple[Metric, ...]


class Round(msgspec.Struct):
    """One system in one round of one workload. `failed` says why there are no figures."""

    workload: str
    system: str
    number: int  # of the round, from 1
    figures: dict[str, float] = {}
    latencies: list[float] = []  # 101 values in µs, the 0th to the 100th percentile, where a workload measures them
    failed: str = ""


class Verdict(msgspec.Struct):
    """One correctness case on one system: how many of its runs went as they must, and what happened in the others."""

    case: str
    system: str
    passed: int
    runs: int
    saw: str = ""  # a few words for the first run that did not: "a clean end instead of a reset"


class About(msgspec.Struct):
    date: str  # ISO 8601, UTC
    command: str
    kernel: str
    cpu: str  # model
    cores: int
    congestion: str  # TCP congestion control of loopback
    versions: dict[str, str]  # of each system that ran, and of Python and uvloop
    skipped: dict[str, str] = {}  # a system or workload that did not run, and the reason with the line that installs it


class Results(msgspec.Struct):
    about: About
    workloads: list[Workload] = []
    rounds: list[Round] = []
    verdicts: list[Verdict] = []
