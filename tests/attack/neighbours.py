"""An honest tunnel on the relay that is attacked: pings and a file go through it all the while, and not a byte may be lost or wrong.

`watch()` takes the figures of a while; leaving it, or the end, fails when anything was lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.support.payload import Checker, Keystream
from tests.support.peers import TIMEOUT, ask, background, connect, exactly, until
from tests.support.processes import Client, Echo, Process, Server, address

CHUNK = 65_536
PRIVATE = "quiet"
"""Their echo once more, as a private service."""
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu(process: Process) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


class Seen:
    """What the neighbours and their relay went through, while somebody watched."""

    def __init__(self) -> None:
        self.pings: list[float] = []  # seconds
        self.moved = 0  # bytes of the file
        self.cpu = 0.0  # of the relay, seconds
        self.rss = 0  # of the relay at the end, KiB
        self.gained = 0  # the most that the relay grew, KiB

    def quantile(self, part: float) -> float:
        """In ms."""
        return sorted(self.pings)[int(len(self.pings) * part)] * 1e3

    def __str__(self) -> str:
        return (
            f"neighbours: {len(self.pings)} pings, p50 {self.quantile(0.5):.1f}, p99 {self.quantile(0.99):.1f}, "
            f"worst {max(self.pings) * 1e3:.0f} ms, {self.moved / 1e6:.0f} MB, 0 lost; "
            f"relay: {self.cpu:.1f} s of CPU, RSS {self.rss / 1024:.0f} MiB (+{self.gained / 1024:.0f})"
        )


class Neighbours:
    """A client and an echo of their own. `with`; at the end both streams must end cleanly, with every byte."""

    def __init__(self, server: Server, token: str, home: Path) -> None:
        self.server = server
        self._pings: list[float] = []
        self._moved = 0
        self._over = threading.Event()
        self.echo = Echo()
        try:
            port = self.echo.target[1]
            expose = [f"echo={port}", f"{PRIVATE}=private://{port}"]
            self.client = Client(server.url, token, home, expose=expose, name="neighbour")
            try:
                self.client.line(1)
                self.where = address(next(line for line in self.client.out if line.startswith("tcp:")))
            except BaseException:
                self.client.__exit__(AssertionError)
                raise
        except BaseException:
            self.echo.__exit__(AssertionError)
            raise
        self._flows = [background(self._ping), background(self._file)]
        until(lambda: (self._moved and self._pings) or self._failed(), "the neighbours have begun")

    def _ping(self) -> None:
        with connect(self.where) as sock:
            number = 0
            while not self._over.is_set():
                start = time.perf_counter()
                ask(sock, number.to_bytes(32, "big"))
                self._pings.append(time.perf_counter() - start)
                number += 1
                self._over.wait(0.002)

    def _file(self) -> None:
        stream, checker = Keystream("file"), Checker("file")
        with connect(self.where) as sock:
            while not self._over.is_set():
                sock.sendall(stream.take(CHUNK))
                checker.feed(exactly(sock, CHUNK))
                self._moved += CHUNK
                self._over.wait(0.005)
            sock.shutdown(1)
            assert sock.recv(1) == b"", "more than was sent"

    def _failed(self) -> bool:
        return any(flow.done() for flow in self._flows)

    def check(self) -> None:
        """Fails when a stream has failed, or the tunnel was ever lost."""
        for flow in self._flows:
            if flow.done() and not self._over.is_set():
                flow.result()
                raise AssertionError("a neighbour stopped by itself")
        said = [json.loads(line) for line in self.client.err]
        # Of dials it makes no more than so many at once, whoever asks for them.
        complaints = [one for one in said if one["level"] != "info" and one.get("limit") != "dials"]
        assert not complaints, f"the neighbours' client complains: {complaints}"
        unharmed(self.server)

    @contextlib.contextmanager
    def watch(self) -> Iterator[Seen]:
        """Figures of the block; they are whole when it has ended."""
        seen = Seen()
        server = self.server
        start, moved, used, rss = len(self._pings), self._moved, cpu(server), server.rss()
        Path(f"/proc/{server.pid}/clear_refs").write_text("5", encoding="ascii")  # VmHWM anew
        yield seen
        until(lambda: len(self._pings) > start + 1 or self._failed(), "a neighbour's ping")
        self.check()
        seen.pings = self._pings[start:]
        seen.moved = self._moved - moved
        seen.cpu = cpu(server) - used
        seen.rss = server.rss()
        seen.gained = server.peak() - rss

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.check()
            self._over.set()
            if kind is None:
                for flow in self._flows:
                    flow.result(TIMEOUT)
        finally:
            self._over.set()
            self.client.__exit__(kind)
            self.echo.__exit__(kind)


def unharmed(*processes: Process) -> None:
    """They run, and nothing was thrown that nobody caught: no Traceback, and nothing from the loop's exception handler."""
    for process in processes:
        assert process.popen.poll() is None, f"{process} has ended:\n{process.stderr}"
        for line in process.err:
            assert not any(word in line for word in ("Traceback", "Unhandled", '"asyncio"')), line
