"""Where the two ends of a system run, the programs that it takes, and what these cost: CPU time and memory of a whole process tree."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

PLACES = os.pathsep.join(
    (os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin", str(Path(sys.executable).parent))
)
START_TIME = 20.0
"""Seconds that a program may take until it listens."""
_TICK = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A sentence for the person at the terminal: what, why, what next."""


class Place(NamedTuple):
    """The two machines of a system. On loopback they are one; on a link each is a network namespace, entered by a command prefix.

    Visitors run beside the relay, targets beside the client; so what crosses from one to the other is the tunnel.
    """

    relay: tuple[str, ...] = ()
    client: tuple[str, ...] = ()
    relay_address: str = "127.0.0.1"
    client_address: str = "127.0.0.1"


LOOPBACK = Place()


class Running(NamedTuple):
    """A system that stands: where visitors connect to, one address for each tunnel, and the processes whose trees it consists of."""

    visitors: list[tuple[str, int]]
    pids: list[int]


def find(program: str) -> str | None:
    """The path of a program on PATH, in the places of administrators, or beside this Python."""
    return shutil.which(program, path=PLACES)


def run(
    stack: ExitStack, *command: str, stdout: int = subprocess.DEVNULL, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    """Start a program in a group of its own, which is killed when the stack ends. It does not know of the proxies that we may have to use."""
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    running = subprocess.Popen(
        command, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, text=True, start_new_session=True, env=env
    )
    stack.callback(_end, running)
    return running


def _end(running: subprocess.Popen[str]) -> None:
    for pid in tree([running.pid]):  # some have left the group, as sessions of sshd do
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    for pipe in (running.stdin, running.stdout):
        if pipe is not None:
            pipe.close()


def line(running: subprocess.Popen[str], what: str) -> str:
    """The next line that a program prints. Raises BenchError when it ends instead."""
    assert running.stdout is not None
    text = running.stdout.readline().strip()
    if not text:
        raise BenchError(f"{what} ended with code {running.wait()} before it was ready; run it by hand to see why.")
    return text


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def wait_for(address: tuple[str, int], what: str, prefix: Sequence[str] = ()) -> None:
    """Wait until somebody accepts connections there, seen from where `prefix` leads. Raises BenchError after START_TIME."""
    if prefix:
        here = [
            sys.executable,
            "-c",
            "import sys; from bench.programs import wait_for; wait_for((sys.argv[1], int(sys.argv[2])), '')",
        ]
        if subprocess.run(
            [*prefix, *here, address[0], str(address[1])], check=False, stderr=subprocess.DEVNULL
        ).returncode:
            raise BenchError(f"{what} did not listen on port {address[1]} within {START_TIME:.0f} s.")
        return
    deadline = time.monotonic() + START_TIME
    while True:
        try:
            socket.create_connection(address, 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise BenchError(f"{what} did not listen on port {address[1]} within {START_TIME:.0f} s.") from None
            time.sleep(0.02)


# --- what it costs ------------------------------------------------------------------------------------------------------


def tree(pids: Iterable[int]) -> list[int]:
    """The processes and all that descend from them."""
    found = []
    todo = list(pids)
    while todo:
        pid = todo.pop()
        found.append(pid)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                todo += map(int, (task / "children").read_text().split())
    return found


def cpu(pids: Iterable[int]) -> float:
    """Seconds of user and system time of the trees, children that have ended included."""
    total = 0
    for pid in tree(pids):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += sum(map(int, fields[11:15]))
    return total / _TICK


def memory(pids: Iterable[int]) -> int:
    """Bytes of the trees that are resident and not shared with other processes: copies of one program count their own pages only."""
    total = 0
    for pid in tree(pids):
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if entry.startswith("Private_"):
                    total += int(entry.split()[1]) * 1024
    return total


@contextlib.contextmanager
def metered(running: Running) -> Iterator[list[float]]:
    """A list that holds, after the block, the CPU seconds that the system took meanwhile."""
    spent: list[float] = []
    before = cpu(running.pids)
    yield spent
    spent.append(cpu(running.pids) - before)
