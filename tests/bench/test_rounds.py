"""The harness itself, on small runs: figures are there, failures are told, and nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from bench import programs, systems, workloads
from bench.__main__ import main
from bench.load import percentiles
from bench.programs import LOOPBACK, BenchError, Place
from bench.record import Results, Round
from bench.rounds import play, takes_part
from bench.systems import SYSTEMS, System
from bench.workloads import answer_of, of_wrk
from fastrelay import cli
from fastrelay.errors import StartError
from tests.support import need


def bench(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), catch_exceptions=False)


def measured(out: Path) -> Results:
    return msgspec.json.decode((out / "results.json").read_bytes(), type=Results)


def children() -> set[int]:
    return set(programs.tree([os.getpid()])) - {os.getpid()}


def test_a_run_from_the_command_line(tmp_path: Path) -> None:
    need.program("nginx")
    need.program("wrk")
    before = children()
    words = ["--system", "fastrelay", "--system", "direct", "--workload", "requests-1", "--workload", "ping-b"]
    result = bench(*words, "--rounds", "1", "--seconds", "1", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    results = measured(tmp_path / "out")
    assert {(entry.workload, entry.system, entry.number) for entry in results.rounds} == {
        (workload, system, number)
        for workload in ("requests-1", "ping-beside-bulk")
        for system in ("fastrelay", "direct")
        for number in (1,)
    }
    for entry in results.rounds:
        assert not entry.failed
        metrics = {workload.name: workload.metrics for workload in results.workloads}[entry.workload]
        there = [metric.name for metric in metrics if entry.system != "direct" or metric.name != "CPU"]
        assert sorted(entry.figures) == sorted(there)
        assert all(figure > 0 for figure in entry.figures.values())
        assert len(entry.latencies) == 101 and entry.latencies == sorted(entry.latencies)
    assert results.about.command == " ".join(["python -m bench", *words, "--rounds 1 --seconds 1.0"])
    assert "fastrelay" in result.output and (tmp_path / "out" / "results.md").exists()
    assert children() == before


@pytest.mark.slow
def test_idle_and_stalled_streams_and_bulk() -> None:
    found = workloads.workloads()
    for workload in (workloads.Idle(100), workloads.Stalled(20), found["bulk-up-8"]):
        rounds: list[Round] = []
        play(workload, [SYSTEMS["fastrelay"]], 1, 1.0, rounds.append)
        assert [entry.failed for entry in rounds] == [""]
        assert set(rounds[0].figures) == {metric.name for metric in workload.record.metrics}
    assert rounds[0].figures["rate"] > 0.1


def test_what_fails_is_told_and_the_others_go_on() -> None:
    def breaks(*_: object) -> programs.Running:
        raise BenchError("it does not start today")

    def refuses(*_: object) -> programs.Running:
        return programs.Running([("127.0.0.1", programs.free_port())], [])

    broken = System("broken", "broken", breaks)
    closed = System("closed", "closed", refuses)
    rounds: list[Round] = []
    play(workloads.workloads()["ping"], [broken, closed, SYSTEMS["direct"]], 2, 1.0, rounds.append)
    told = {entry.system: entry.failed for entry in rounds}
    assert told["broken"] == "it does not start today"
    assert "refused" in told["closed"]
    assert told["direct"] == ""
    assert [entry.number for entry in rounds] == [1, 1, 1, 2, 2, 2]
    assert [entry.system for entry in rounds][3:] == ["direct", "closed", "broken"], "every other round goes backwards"


def test_plain_tunnels_stay_on_loopback() -> None:
    on_link = next(workload for workload in workloads.workloads().values() if workload.link)
    assert not takes_part(SYSTEMS["fastrelay"], on_link)
    assert takes_part(SYSTEMS["fastrelay-tls"], on_link)
    assert not takes_part(SYSTEMS["haproxy"], on_link), "it is about others"


def test_many_clients_are_one_process(tmp_path: Path) -> None:
    need.program("nginx")
    rounds: list[Round] = []
    workload = workloads.Tunnels("tunnels-5", "five", 5, ())
    play(workload, [SYSTEMS["fastrelay"]], 1, 1.0, rounds.append)
    assert rounds[0].failed == "" and rounds[0].figures["rate"] > 100


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--system", "fraastrelay"], "There is no system fraastrelay; there are fastrelay, "),
        (["--workload", "nonsense"], "There is no workload nonsense; `--list` shows what there is."),
    ],
)
def test_mistakes_are_sentences(words: list[str], sentence: str, tmp_path: Path) -> None:
    result = bench(*words, "--out", str(tmp_path))
    assert result.exit_code == 1
    assert sentence in result.stderr


def test_what_is_missing_is_named_with_its_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = replace(SYSTEMS["rathole"], programs=("rathole-that-nobody-has",))
    monkeypatch.setitem(systems.SYSTEMS, "rathole", gone)
    result = bench(
        "--system", "rathole", "--system", "direct", "--workload", "ping", "--rounds", "1", "--out", str(tmp_path)
    )
    assert result.exit_code == 0
    assert "`cargo install rathole`" in measured(tmp_path).about.skipped["rathole"]
    assert "`cargo install rathole`" in result.output


def test_the_list_has_everything() -> None:
    listed = bench("--list").output
    for name in (*SYSTEMS, *workloads.workloads(), "correctness"):
        assert any(line.startswith(name + " ") for line in listed.splitlines()), name


def test_a_run_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--workload", "bulk", "--system", "fastrelay", "--out", str(tmp_path)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while len(programs.tree([running.pid])) < 4:  # target, relay and client beside the bench
        assert time.monotonic() < deadline
        time.sleep(0.05)
    whole = programs.tree([running.pid])
    running.terminate()
    assert running.wait(20) == 1
    while any(Path(f"/proc/{pid}").exists() for pid in whole):
        assert time.monotonic() < deadline
        time.sleep(0.05)


WRK = """Running 1s test @ http://127.0.0.1:1/
  19024 requests in 1.00s, 2.90MB read
Requests/sec:  19010.52
"""


def test_the_output_of_wrk_is_read() -> None:
    latencies = " ".join(str(value) for value in range(101))
    figures, found = of_wrk(WRK + f"percentiles {latencies}\n", 0.19024)
    assert figures == pytest.approx({"rate": 19010.52, "CPU": 10.0, "p50": 50.0, "p99": 99.0})
    assert found == list(range(101))
    for said in ("", WRK, WRK.replace("19024 requests", "0 requests") + "percentiles 1"):
        with pytest.raises(BenchError, match="no request"):
            of_wrk(said, 1.0)
    with pytest.raises(BenchError, match="connect 0, read 5"):
        of_wrk(WRK + "  Socket errors: connect 0, read 5, write 0, timeout 0\npercentiles 1 2\n", 1.0)


def test_the_answer_of_a_visitor_is_read() -> None:
    assert answer_of(json.dumps({"rate": 1})) == {"rate": 1}
    with pytest.raises(BenchError, match="without an answer"):
        answer_of("")
    with pytest.raises(BenchError, match="reset by peer"):
        answer_of(json.dumps({"failed": "reset by peer"}))


def test_percentiles() -> None:
    assert percentiles([0.001]) == [1000.0] * 101
    values = percentiles([n / 1e6 for n in range(1001)])
    assert len(values) == 101 and values[0] == 0 and values[50] == 500 and values[100] == 1000


def test_cost_counts_the_whole_tree() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'for n in range(10**7): pass']); input()"
    with ExitStack() as stack:
        running = programs.run(stack, sys.executable, "-c", code, stdin=subprocess.PIPE)
        deadline = time.monotonic() + 20
        while programs.cpu([running.pid]) < 0.1 or len(programs.tree([running.pid])) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert programs.memory([running.pid]) > 1 << 20
    assert programs.cpu([running.pid]) == 0


def test_who_does_not_listen_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "START_TIME", 0.2)
    with pytest.raises(BenchError, match=r"^The sleeper did not listen on port \d+ within 0 s\.$"):
        programs.wait_for(("127.0.0.1", programs.free_port()), "The sleeper")
    assert Place() == LOOPBACK


def test_the_bench_is_a_command_of_a_checkout_only(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = CliRunner().invoke(cli.cli, ["bench", "--list"])
    assert listed.exit_code == 0 and "ping-beside-bulk" in listed.output
    monkeypatch.setitem(sys.modules, "bench.__main__", None)
    refused = CliRunner().invoke(cli.cli, ["bench", "--list"])
    assert isinstance(refused.exception, StartError)
    assert "it runs in a clone of the repository" in str(refused.exception)
