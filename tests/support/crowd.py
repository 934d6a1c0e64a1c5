"""Many visitors of a service that speaks first: who was let in is who was greeted. And what the kernel and the clock say of it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import Self

from tests.support import need
from tests.support.peers import TIMEOUT, Address
from tests.support.processes import Process

GREETING = b"welcome\n"
_TICKS = os.sysconf("SC_CLK_TCK")


class Crowd:
    """Visitors that knocked. Those who were greeted are `inside`; one that ends before is `lost`."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._poll = select.epoll()
        self._all: dict[int, socket.socket] = {}
        self.inside: list[socket.socket] = []
        self.lost = 0

    def knock(self, number: int) -> None:
        """Connect, as fast as can be; nobody waits for anybody."""
        for _ in range(number):
            sock = socket.socket()
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.connect_ex(self._address)
            self._all[sock.fileno()] = sock
            self._poll.register(sock, select.EPOLLIN)

    @property
    def waiting(self) -> int:
        return len(self._all)

    def greeted(self, number: int, timeout: float = TIMEOUT) -> float:
        """Wait until so many are inside, in all; the seconds that it took."""
        start = time.monotonic()
        while len(self.inside) < number:
            left = start + timeout - time.monotonic()
            assert left > 0, f"{len(self.inside)} of {number} are in after {timeout:.0f} s, {self.lost} were lost"
            self._look(left)
        return time.monotonic() - start

    def settled(self, quiet: float = 0.5) -> int:
        """Wait until nobody comes in any more; how many are inside."""
        while self._look(quiet):
            pass
        return len(self.inside)

    def _look(self, timeout: float) -> int:
        events = self._poll.poll(timeout)
        for fd, _ in events:
            sock = self._all.pop(fd)
            self._poll.unregister(fd)
            try:
                said = sock.recv(len(GREETING))
            except OSError:
                said = b""
            if said == GREETING:
                self.inside.append(sock)
            else:
                self.lost += 1
                sock.close()
        return len(events)

    def leave(self, number: int) -> None:
        """So many of those inside go."""
        for _ in range(number):
            self.inside.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in [*self._all.values(), *self.inside]:
            with contextlib.suppress(OSError):
                sock.close()
        self._poll.close()


def cpu(process: Process) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def dropped(port: int) -> int:
    """Connections that the kernel dropped because a listening socket had no room for them."""
    shown = subprocess.run(
        [need.program("ss"), "-ltnmH", f"sport = :{port}"], capture_output=True, text=True, check=True
    ).stdout
    drops = re.findall(r"skmem:\(.*?,d(\d+)\)", shown)
    assert drops, f"ss says nothing of port {port}: {shown!r}"
    return sum(map(int, drops))
