"""fastrelay with a plain tunnel beside two HAProxy hops in a row, interleaved in one run on loopback.

    python -m bench.versus_haproxy [--rounds 5] [--seconds 3] [--gigabytes 2]

Prints each round, then medians and the ratios fastrelay / HAProxy. "cost" is user and system time of both relay processes; load generators
and targets are not counted. Needs haproxy, nginx and wrk on PATH. HAProxy runs with its defaults but for the limits that a run needs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

TICK = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20
SINK = bytearray(MIB)  # nothing is ever written to it


class System(NamedTuple):
    """A way from `port` to a target, and the processes that it takes."""

    port: int
    pids: list[int]


@contextmanager
def process(*command: str, stdout: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[str]]:
    """A program in a group of its own, which ends with the block."""
    with subprocess.Popen(
        command, stdout=stdout, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as running:
        try:
            yield running
        finally:
            os.killpg(running.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def nginx(stack: ExitStack, directory: Path) -> int:
    port = free_port()
    conf = directory / "nginx.conf"
    conf.write_text(
        f"daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log /dev/null; events {{ worker_connections 4096; }}\n"
        "http { access_log off; keepalive_requests 1000000000;\n"
        f'  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 "hello world\\n"; }} }} }}\n'
    )
    stack.enter_context(process("nginx", "-c", str(conf), "-p", str(directory)))
    wait_for(port)
    return port


def mover(size: int) -> int:
    """A target that sends `size` bytes to whoever says D, and counts what whoever says U sends."""
    listener = socket.create_server(("127.0.0.1", 0))
    block = bytes(MIB)

    def serve(sock: socket.socket) -> None:
        with sock:
            if sock.recv(1) == b"D":
                left = size
                while left > 0:
                    left -= sock.send(block[:left])
            else:
                sock.sendall(b"%d" % drain(sock))

    def accept() -> None:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return int(listener.getsockname()[1])


def drain(sock: socket.socket) -> int:
    """Count bytes until the end, without copying them: MSG_TRUNC throws them away in the kernel."""
    total = 0
    while size := sock.recv_into(SINK, MIB, socket.MSG_TRUNC):
        total += size
    return total


def haproxy(stack: ExitStack, directory: Path, target: int) -> System:
    ports = [free_port(), free_port(), target]
    pids = []
    for number, (front, back) in enumerate(itertools.pairwise(ports)):
        conf = directory / f"haproxy-{target}-{number}.cfg"
        conf.write_text(
            "global\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 600s\n  timeout server 600s\n"
            f"listen relay\n  bind 127.0.0.1:{front}\n  server target 127.0.0.1:{back}\n"
        )
        pids.append(stack.enter_context(process("haproxy", "-f", str(conf), "-db")).pid)
        wait_for(front)
    return System(ports[0], pids)


def fastrelay(stack: ExitStack, directory: Path, target: int) -> System:
    python = [sys.executable, "-m", "fastrelay"]
    state = directory / f"fastrelay-{target}"
    server = stack.enter_context(
        process(
            *python, "server", "--bind", "127.0.0.1:0", "--plaintext", "--state", f"{state}-s", stdout=subprocess.PIPE
        )
    )
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    show = subprocess.run(
        [*python, "token", "show", "--state", f"{state}-s"], capture_output=True, text=True, check=True
    )
    client = stack.enter_context(
        process(
            *(*python, "client", url, "--expose", f"127.0.0.1:{target}"),
            *("--token", show.stdout.strip(), "--state", f"{state}-c"),
            stdout=subprocess.PIPE,
        )
    )
    assert client.stdout is not None
    return System(int(client.stdout.readline().rsplit(":", 1)[1]), [server.pid, client.pid])


def cpu(pids: list[int]) -> float:
    """Seconds of user and system time."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def requests(system: System, connections: int, seconds: int) -> tuple[float, float]:
    """(requests a second, microseconds of CPU for each)"""
    before = cpu(system.pids)
    url = f"http://127.0.0.1:{system.port}/"
    run = subprocess.run(
        ["wrk", "-t1", "-c", str(connections), "-d", f"{seconds}s", url], capture_output=True, text=True, check=True
    )
    counted = re.search(r"(\d+) requests in", run.stdout)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", run.stdout)
    assert counted is not None, run.stdout
    assert rate is not None, run.stdout
    assert not re.search("Socket errors|Non-2xx", run.stdout), run.stdout
    return float(rate[1]), (cpu(system.pids) - before) / int(counted[1]) * 1e6


def bulk(system: System, size: int, *, up: bool) -> tuple[float, float]:
    """(Gbit/s, seconds of CPU for each GB) of one stream."""
    block = bytes(MIB)
    before, start = cpu(system.pids), time.monotonic()
    with socket.create_connection(("127.0.0.1", system.port)) as sock:
        if up:
            sock.sendall(b"U")
            for _ in range(size // MIB):
                sock.sendall(block)
            sock.shutdown(socket.SHUT_WR)
            moved = int(sock.makefile().read())
        else:
            sock.sendall(b"D")
            moved = drain(sock)
    seconds = time.monotonic() - start
    assert moved == size, f"{moved} of {size} bytes arrived"
    return size * 8 / 1e9 / seconds, (cpu(system.pids) - before) / (size / 1e9)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=int, default=3)
    options.add_argument("--gigabytes", type=int, default=2)
    chosen = options.parse_args()
    size = chosen.gigabytes * 1000 * MIB
    figures: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        web, mass = nginx(stack, directory), mover(size)
        systems = {
            "haproxy x2": (haproxy(stack, directory, web), haproxy(stack, directory, mass)),
            "fastrelay": (fastrelay(stack, directory, web), fastrelay(stack, directory, mass)),
        }
        for turn in range(chosen.rounds):
            for name, (to_web, to_mass) in systems.items():
                row = {}
                row["rps c=64"], row["us/request c=64"] = requests(to_web, 64, chosen.seconds)
                row["Gbit/s down"], row["s/GB down"] = bulk(to_mass, size, up=False)
                row["Gbit/s up"], row["s/GB up"] = bulk(to_mass, size, up=True)
                for what, figure in row.items():
                    figures.setdefault((name, what), []).append(figure)
                print(
                    turn + 1,
                    f"{name:11}",
                    "  ".join(f"{what} {figure:,.2f}" for what, figure in row.items()),
                    flush=True,
                )
    print(f"\n{'median':18}{'haproxy x2':>12}{'fastrelay':>12}{'ratio':>8}")
    for what in dict.fromkeys(what for _, what in figures):
        theirs, ours = (statistics.median(figures[name, what]) for name in ("haproxy x2", "fastrelay"))
        print(f"{what:18}{theirs:12,.2f}{ours:12,.2f}{ours / theirs:8.2f}")


if __name__ == "__main__":
    main()
