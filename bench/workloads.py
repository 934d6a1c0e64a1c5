"""What is measured. A workload prepares its targets, and then measures one system after the other, round by round.

Each leaves the figures of its `record`, or raises BenchError with the reason why there are none.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import targets
from bench.link import LINKS, Link, link
from bench.programs import LOOPBACK, BenchError, Place, Running, cpu, find, line, memory, metered, run
from bench.record import Metric
from bench.record import Workload as Entry

PATIENCE = 60.0
SCRIPT = "percentiles.lua"
PERCENTILES = """
done = function(summary, latency)
  local values = {latency.min}
  for p = 1, 99 do values[#values + 1] = latency:percentile(p) end
  values[#values + 1] = latency.max
  io.write("percentiles " .. table.concat(values, " ") .. "\\n")
end
"""


@dataclass
class Outcome:
    figures: dict[str, float]
    latencies: list[float] = field(default_factory=list)


class Workload(ABC):
    """`record` is how it is written down; `tunnels` is how many clients serve it."""

    record: Entry
    only: frozenset[str] = frozenset()  # the systems that it is about, all when empty
    tunnels = 1
    place = LOOPBACK
    link: Link | None = None  # what lies between relay and client
    overhead = 0.4  # seconds of a round beside those that are measured

    def __init__(self, entry: Entry) -> None:
        self.record = entry
        self.memories: dict[tuple[int, ...], int] = {}

    @contextlib.contextmanager
    def stage(self) -> Iterator[Place]:
        """Where it is played."""
        if self.link is None:
            yield LOOPBACK
        else:
            with link(self.link) as place:
                yield place

    def prepare(self, stack: ExitStack, place: Place, directory: Path) -> int:
        """Start the target; its port at the client."""
        self.place = place
        return targets.mover(stack, place)

    def time(self, seconds: float) -> float:
        """About how long one measurement takes."""
        return seconds + self.overhead

    def fresh(self, running: Running) -> int:
        """Bytes of memory that the system had before its first round: what it keeps for the next one is not given back."""
        return self.memories.setdefault(tuple(running.pids), memory(running.pids))

    @abstractmethod
    def measure(self, running: Running, seconds: float, directory: Path) -> Outcome: ...

    # --- visitors ------------------------------------------------------------------------------------------------------

    def command(self, kind: str, running: Running, *options: str) -> list[str]:
        host = running.visitors[0][0]
        ports = ",".join(str(port) for _, port in running.visitors)
        return [*self.place.relay, sys.executable, "-m", "bench.load", kind, host, ports, *options]

    def load(self, kind: str, running: Running, *options: str) -> dict[str, Any]:
        return answer_of(
            subprocess.run(
                self.command(kind, running, *options), capture_output=True, text=True, check=False, timeout=PATIENCE
            ).stdout
        )


def answer_of(text: str) -> dict[str, Any]:
    """What a load generator printed. Raises BenchError when it failed."""
    try:
        answer: dict[str, Any] = json.loads(text)
    except ValueError:
        raise BenchError("the visitor ended without an answer") from None
    if "failed" in answer:
        raise BenchError(str(answer["failed"]))
    return answer


class Bulk(Workload):
    def __init__(self, direction: str, streams: int) -> None:
        title = f"bulk {direction}, {streams} stream{'s' * (streams > 1)}"
        metrics = [Metric("rate", "Gbit/s", "higher"), Metric("CPU", "s/GB", "lower")]
        if streams > 1:
            metrics.append(Metric("least share", "%", "higher"))
        super().__init__(Entry(f"bulk-{direction}-{streams}", title, tuple(metrics)))
        self.options = ["--direction", direction, "--streams", str(streams)]
        self.streams = streams

    def measure(self, running: Running, seconds: float, directory: Path) -> Outcome:
        with metered(running) as spent:
            moved = self.load("bulk", running, "--seconds", str(seconds), *self.options)
        if not moved["rate"]:
            raise BenchError("nothing arrived")
        figures = {"rate": moved["rate"] * 8e-9}
        if running.pids:  # without a relay there is nothing that costs
            figures["CPU"] = spent[0] / moved["bytes"] * 1e9
        if self.streams > 1:  # of what each would have if they shared alike
            figures["least share"] = 100 * moved["least"] * self.streams / (moved["rate"] * seconds)
        return Outcome(figures)


class Requests(Workload):
    """HTTP through wrk: keep-alive, or a connection for each request."""

    def __init__(
        self, name: str, title: str, connections: int, *, keep_alive: bool = True, only: tuple[str, ...] = ()
    ) -> None:
        super().__init__(
            Entry(
                name,
                title,
                (
                    Metric("rate", "requests/s", "higher"),
                    Metric("CPU", "µs/request", "lower"),
                    Metric("p50", "µs", "lower"),
                    Metric("p99", "µs", "lower"),
                ),
            )
        )
        self.connections = connections
        self.keep_alive = keep_alive
        self.only = frozenset(only)

    def prepare(self, stack: ExitStack, place: Place, directory: Path) -> int:
        self.place = place
        (directory / SCRIPT).write_text(PERCENTILES)
        return targets.web(stack, place, directory)

    def measure(self, running: Running, seconds: float, directory: Path) -> Outcome:
        wrk = find("wrk")
        if wrk is None:
            raise BenchError("wrk is not on PATH; install it with `apt install wrk`.")
        host, port = running.visitors[0]
        options = ["-t1", f"-c{self.connections}", f"-d{max(1, round(seconds))}s", "-s", str(directory / SCRIPT)]
        if not self.keep_alive:
            options += ["-H", "Connection: close"]
        with metered(running) as spent:
            said = subprocess.run(
                [*self.place.relay, wrk, *options, f"http://{host}:{port}/"],
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE,
            ).stdout
        outcome = Outcome(*of_wrk(said, spent[0]))
        if not running.pids:
            del outcome.figures["CPU"]
        return outcome


def of_wrk(said: str, spent: float) -> tuple[dict[str, float], list[float]]:
    """The figures and percentiles in the output of wrk."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    count = re.search(r"(\d+) requests in", said)
    values = re.search(r"percentiles (.*)", said)
    if rate is None or count is None or values is None or not int(count[1]):
        raise BenchError("no request was answered")
    if errors := re.search(r"Socket errors: (.*)|Non-2xx or 3xx responses: (\d+)", said):
        raise BenchError(f"errors while it ran: {errors[1] or errors[2] + ' bad answers'}")
    latencies = [float(value) for value in values[1].split()]
    figures = {"rate": float(rate[1]), "CPU": spent / int(count[1]) * 1e6, "p50": latencies[50], "p99": latencies[99]}
    return figures, latencies


class Ping(Workload):
    """Round trips of 32 bytes, alone or beside one bulk download through the same tunnel; on loopback or on a link."""

    def __init__(self, on: Link | None = None, *, beside: bool = False) -> None:
        unit = "ms" if on else "µs"
        metrics = [Metric("p99", unit, "lower"), Metric("p50", unit, "lower")]
        name, title = ("ping-beside-bulk", "ping beside bulk") if beside else ("ping", "ping")
        if beside:
            metrics.append(Metric("bulk", "Mbit/s" if on else "Gbit/s", "higher"))
        if on:
            loss = f"loss-{on.loss:g}-" if on.loss else ""
            name = f"link-{on.rate:g}-{on.rtt:g}-{loss}{on.congestion}" + "-alone" * (not beside)
            title = f"{on.title}, {title}"
        super().__init__(Entry(name, title, tuple(metrics)))
        if on:
            self.only = frozenset(ON_LINKS)
        self.link = on
        self.beside = beside
        # A slow link needs longer: a second holds only a dozen round trips, and a flow needs many to find its rate.
        self.longer = 3.0 if on else 1.0
        self.warm_up = 2.0 if on else 0.3

    def time(self, seconds: float) -> float:
        return seconds * self.longer + self.warm_up * (2 if self.beside else 1) + self.overhead

    def measure(self, running: Running, seconds: float, directory: Path) -> Outcome:
        span = seconds * self.longer
        with ExitStack() as stack:
            if self.beside:
                options = ["--seconds", str(span), "--warm-up", str(2 * self.warm_up)]
                bulk = run(stack, *self.command("bulk", running, *options), stdout=subprocess.PIPE)
                time.sleep(self.warm_up)
            pings = self.load("ping", running, "--seconds", str(span), "--warm-up", str(self.warm_up))
            latencies = pings["latencies"]
            scale = 1e-3 if self.link else 1.0
            figures = {"p99": latencies[99] * scale, "p50": latencies[50] * scale}
            if self.beside:
                moved = answer_of(line(bulk, "the bulk visitor"))
                figures["bulk"] = moved["rate"] * (8e-6 if self.link else 8e-9)
        return Outcome(figures, latencies)


class Idle(Workload):
    """Streams that stand and say nothing: what each costs in memory, and how long it takes until all have answered once."""

    def __init__(self, streams: int) -> None:
        super().__init__(
            Entry(
                f"idle-{streams}",
                f"{streams:,} idle streams",
                (
                    Metric("memory", "KiB/stream", "lower"),
                    Metric("wake-up", "ms", "lower"),
                    Metric("idle CPU", "%", "lower"),
                ),
            )
        )
        self.streams = streams

    def time(self, seconds: float) -> float:
        return 2.0 + self.streams / 1000

    def measure(self, running: Running, seconds: float, directory: Path) -> Outcome:
        with ExitStack() as stack:
            before = self.fresh(running)
            command = self.command("hold", running, "--connections", str(self.streams))
            visitors = run(stack, *command, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
            assert visitors.stdin is not None
            answer_of(line(visitors, "the visitors"))
            time.sleep(0.5)
            after = memory(running.pids)
            spent = cpu(running.pids)
            time.sleep(1.0)
            spent = cpu(running.pids) - spent
            visitors.stdin.write("wake\n")
            visitors.stdin.flush()
            woke = answer_of(line(visitors, "the visitors"))["wake"]
        return Outcome(
            {"memory": (after - before) / 1024 / self.streams, "wake-up": woke * 1e3, "idle CPU": 100 * spent}
        )


class Stalled(Workload):
    """Visitors that ask for data without end and read none of it: what the system holds for them."""

    def __init__(self, visitors: int) -> None:
        super().__init__(
            Entry(
                f"stalled-{visitors}",
                f"{visitors:,} stalled readers",
                (Metric("memory", "KiB/stream", "lower"), Metric("ping p99", "µs", "lower")),
            )
        )
        self.visitors = visitors

    def time(self, seconds: float) -> float:
        return 3.0 + seconds

    def measure(self, running: Running, seconds: float, directory: Path) -> Outcome:
        with ExitStack() as stack:
            before = self.fresh(running)
            command = self.command("hold", running, "--connections", str(self.visitors), "--wish", "S")
            visitors = run(stack, *command, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
            answer_of(line(visitors, "the visitors"))
            time.sleep(1.0)
            pings = self.load("ping", running, "--seconds", str(seconds))
            after = memory(running.pids)
        return Outcome({"memory": (after - before) / 1024 / self.visitors, "ping p99": pings["latencies"][99]})


class Tunnels(Requests):
    """The same load, dealt to more and more tunnels of one relay."""

    def __init__(self, name: str, title: str, tunnels: int, only: tuple[str, ...]) -> None:
        super().__init__(name, title, 200, only=only)
        self.record = Entry(name, title, self.record.metrics[:2])
        self.tunnels = tunnels

    def measure(self, running: Running, seconds: float, directory: Path) -> Outcome:
        with metered(running) as spent:
            answered = self.load("spread", running, "--connections", str(self.connections), "--seconds", str(seconds))
        return Outcome({"rate": answered["rate"], "CPU": spent[0] / answered["count"] * 1e6})


ON_LINKS = ("direct", "fastrelay-tls", "ssh", "rathole", "chisel", "frp")
MUXES = ("fastrelay", "fastrelay-tls", "rathole", "bore", "chisel", "frp", "ssh")
"""Systems of which one relay serves many clients."""


def workloads() -> dict[str, Workload]:
    """All, in the order of the report."""
    every: list[Workload] = [
        *(Bulk(direction, streams) for streams in (1, 8) for direction in ("down", "up")),
        *(Requests(f"requests-{n}", f"requests, {n:,} connection{'s' * (n > 1)}", n) for n in (1, 64, 256, 1000)),
        *(
            Requests(f"connections-{n}", f"a connection for each request, {n} at once", n, keep_alive=False)
            for n in (1, 32)
        ),
        Ping(),
        Ping(beside=True),
        Idle(2000),
        Stalled(1000),
        *(Tunnels(f"tunnels-{n}", f"200 connections over {n} tunnel{'s' * (n > 1)}", n, MUXES) for n in (1, 50, 200)),
        *(
            Requests(
                f"growth-streams-{n}",
                f"growth: {n:,} stream{'s' * (n > 1)}",
                n,
                only=("fastrelay", "haproxy", "rathole"),
            )
            for n in (1, 4, 16, 64, 256, 1000, 4000)
        ),
        *(
            Tunnels(f"growth-tunnels-{n}", f"growth: {n} tunnel{'s' * (n > 1)}", n, ("fastrelay", "rathole"))
            for n in (1, 4, 16, 64, 200)
        ),
        *(Ping(on, beside=True) for on in LINKS),
    ]
    return {workload.record.name: workload for workload in every}


QUICK = ("bulk-down-1", "requests-1", "requests-64", "connections-32", "ping-beside-bulk", "idle-2000")
"""What `--quick` measures."""
