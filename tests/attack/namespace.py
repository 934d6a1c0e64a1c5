"""A machine that is alone: a network namespace in which every address is its own, so that every connection attempt can be counted."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.support import need
from tests.support.peers import background

T = TypeVar("T")

_NEW_NETWORK = 0x40000000


def alone(work: Callable[[], T], timeout: float = 300) -> T:
    """Run `work` there, in a thread of its own; processes that it starts are there too.

    Whatever is dialled is local and refused at once unless somebody listens, so that no attempt is lost for want of a route.
    """
    need.root("to make a network namespace")
    ip = need.program("ip")
    libc = ctypes.CDLL(None, use_errno=True)

    def moved() -> T:
        if libc.unshare(_NEW_NETWORK):
            need.missing(f"no network namespace can be made here ({os.strerror(ctypes.get_errno())})")
        for command in ("link set lo up", "route add local 0.0.0.0/0 dev lo", "-6 route add local ::/0 dev lo"):
            subprocess.run([ip, *command.split()], check=True, capture_output=True, timeout=30)
        return work()

    return background(moved).result(timeout)


def attempts() -> tuple[int, int]:
    """How many TCP connections were tried, and UDP datagrams sent, in the calling thread's network so far."""
    rows = [line.split() for line in Path("/proc/thread-self/net/snmp").read_text(encoding="ascii").splitlines()]
    counts = {
        (names[0], name): int(value)
        for names, values in zip(rows[::2], rows[1::2], strict=True)
        for name, value in zip(names[1:], values[1:], strict=True)
    }
    return counts["Tcp:", "ActiveOpens"], counts["Udp:", "OutDatagrams"]
