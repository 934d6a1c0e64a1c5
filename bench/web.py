"""The HTTP front beside nginx as a reverse proxy, with wrk, in one run: `python -m bench.web`.

nginx has one worker, keeps its connections to the target, and sets the same fields. fastrelay has two processes and a tunnel between them. Both
lead to the same target, an nginx that answers with two words. Rounds are interleaved; figures are medians.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from bench.programs import LOOPBACK, BenchError, Running, find, free_port, line, metered, run, wait_for
from bench.targets import web as target

HOST = "web.bench.example"
Figures = dict[str, list[tuple[float, float]]]
"""Of each system, by round: requests a second, and microseconds of processor time for each."""


def nginx(stack: ExitStack, directory: Path, behind: int) -> Running:
    port, conf = free_port(), directory / "proxy.conf"
    fields = {"Host": "$host", "Connection": '""', "X-Forwarded-For": "$remote_addr", "X-Forwarded-Proto": "$scheme"}
    lines = "".join(
        f"proxy_set_header {name} {value}; " for name, value in (fields | {"X-Forwarded-Host": "$host"}).items()
    )
    conf.write_text(
        f"daemon off; worker_processes 1; pid {directory}/proxy.pid; error_log /dev/null; events {{ worker_connections 16384; }}\n"
        "http { access_log off; keepalive_requests 1000000000;\n"
        f"  upstream target {{ server 127.0.0.1:{behind}; keepalive 256; keepalive_requests 1000000000; }}\n"
        f"  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://target; proxy_http_version 1.1; {lines}}} }} }}\n"
    )
    program = run(stack, find("nginx") or "nginx", "-c", str(conf), "-p", str(directory))
    wait_for(("127.0.0.1", port), "nginx")
    return Running([("127.0.0.1", port)], [program.pid])


def fastrelay(stack: ExitStack, directory: Path, behind: int, *, tls: bool) -> Running:
    python, state = [sys.executable, "-m", "fastrelay"], directory / f"server-{tls}"
    options = [
        "--bind",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--domain",
        HOST.partition(".")[2],
        "--state",
        str(state),
    ]
    server = run(stack, *python, "server", *options, *([] if tls else ["--plaintext"]), stdout=subprocess.PIPE)
    url, front = line(server, "fastrelay server"), line(server, "fastrelay server")
    show = subprocess.run([*python, "token", "show", "--state", str(state)], check=True, capture_output=True, text=True)
    own = [
        "--expose",
        f"web=http://127.0.0.1:{behind}",
        "--token",
        show.stdout.strip(),
        "--state",
        str(directory / f"client-{tls}"),
    ]
    client = run(stack, *python, "client", url, *own, stdout=subprocess.PIPE)
    line(client, "fastrelay client")
    return Running([("127.0.0.1", int(front.rpartition(":")[2]))], [server.pid, client.pid])


def measure(running: Running, connections: int, seconds: int) -> tuple[float, float]:
    where = f"http://127.0.0.1:{running.visitors[0][1]}/"
    command = [find("wrk") or "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-H", f"Host: {HOST}", where]
    with metered(running) as spent:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    rate, count = re.search(r"Requests/sec:\s+([\d.]+)", said), re.search(r"(\d+) requests in", said)
    if rate is None or count is None or "Socket errors" in said or "Non-2xx" in said:
        raise BenchError(f"wrk met errors:\n{said}")
    return float(rate[1]), spent[0] / int(count[1]) * 1e6


@click.command()
@click.option("--connections", default=64, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=2, show_default=True)
def main(connections: int, rounds: int, seconds: int) -> None:
    """Measure, and print requests a second, processor time for each, and how many times nginx that is."""
    figures: Figures = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastrelay-bench-")))
        behind = target(stack, LOOPBACK, directory)
        systems = {
            "nginx": nginx(stack, directory, behind),
            "fastrelay": fastrelay(stack, directory, behind, tls=False),
            "fastrelay-tls": fastrelay(stack, directory, behind, tls=True),
        }
        for _ in range(rounds):
            for name, running in systems.items():
                figures.setdefault(name, []).append(measure(running, connections, seconds))
    base = statistics.median(rate for rate, _ in figures["nginx"])
    for name, rows in figures.items():
        rate, cost = (statistics.median(column) for column in zip(*rows, strict=True))
        click.echo(f"{name:14} {rate:9,.0f} requests/s {cost:7.1f} µs each {rate / base:6.2f} x nginx")


if __name__ == "__main__":
    main()
