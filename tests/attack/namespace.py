"""Machines made of network namespaces: one that is alone, so that every connection attempt can be counted, and two with a road between
them that swallows packets without a word.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

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


class Road:
    """`with Road() as road`: two machines and a router between them. `road.client` and `road.relay` name the machines, see `inside`."""

    RELAY = "10.79.1.1"

    def __init__(self) -> None:
        need.root("to make network namespaces")
        self._ip = need.program("ip")
        number = os.getpid()
        self.client, self.relay, self._router = (f"attack-{number}-{name}" for name in ("client", "relay", "router"))

    def __enter__(self) -> Self:
        try:
            for name in (self.client, self.relay, self._router):
                self._run("netns", "add", name)
                self._run("-n", name, "link", "set", "lo", "up")
            for number, name in enumerate((self.client, self.relay)):
                ours, theirs = f"attack{number}", f"router{number}"
                self._run(
                    "link", "add", ours, "netns", name, "type", "veth", "peer", "name", theirs, "netns", self._router
                )
                for where, device, host in ((name, ours, 1), (self._router, theirs, 2)):
                    self._run("-n", where, "address", "add", f"10.79.{number}.{host}/24", "dev", device)
                    self._run("-n", where, "link", "set", device, "up")
                self._run("-n", name, "route", "add", "default", "via", f"10.79.{number}.2")
            self.forward(True)
        except subprocess.CalledProcessError as error:
            self.__exit__()
            need.missing(f"no road of network namespaces can be made here ({error.stderr!r})")
        return self

    def __exit__(self, *_: object) -> None:
        for name in (self.client, self.relay, self._router):
            with contextlib.suppress(subprocess.CalledProcessError):
                self._run("netns", "del", name)

    def _run(self, *words: str) -> None:
        subprocess.run([self._ip, *words], check=True, capture_output=True, timeout=30)

    def forward(self, forwards: bool) -> None:
        """A router that does not forward says nothing about it: neither machine is told of anything."""

        def switch() -> None:
            Path("/proc/sys/net/ipv4/ip_forward").write_text(str(int(forwards)), encoding="ascii")

        inside(self._router, switch)


def inside(namespace: str, work: Callable[[], T], timeout: float = 60) -> T:
    """Run `work` in a thread that is in a namespace; sockets and processes that it makes stay there."""
    libc = ctypes.CDLL(None, use_errno=True)

    def moved() -> T:
        number = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
        try:
            if libc.setns(number, _NEW_NETWORK):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(number)
        return work()

    return background(moved).result(timeout)
