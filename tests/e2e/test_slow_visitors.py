"""One slow reader stalls nobody, and costs at most its window (protocol.md 8.3)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastrelay import wire
from fastrelay.net.memory import Bound
from tests.e2e.conftest import SPREAD
from tests.support.payload import Checker, Keystream
from tests.support.peers import TIMEOUT, Pump, accept, ask, background, connect, exactly, read, until
from tests.support.processes import BEST, ROOT, Echo, Relay, Way, environment, fastrelay

PINGS = 1000
MOVED = 100_000_000  # bytes that the floods move before their readers stop, so that the windows have grown


def bound_kib(streams: int) -> float:
    """What all streams of a tunnel may hold in one process (protocol.md 8.3)."""
    return (streams * wire.WINDOW_FLOOR + wire.TUNNEL_POOL) / 1024


def bound(audit: Path) -> Bound:
    """What a relay said at its start."""
    started = next(json.loads(line) for line in audit.read_text().splitlines() if '"server.started"' in line)
    return Bound(**started["memory"])


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as made:
        yield made


@pytest.mark.parametrize("way", SPREAD, ids=repr)
@pytest.mark.parametrize("flooding", ["targets", "visitors"])
def test_others_go_on_and_memory_is_bounded(tmp_path: Path, echo: Echo, way: Way, flooding: str) -> None:
    stall(tmp_path, echo, way, flooding, 50)


@pytest.mark.slow
@pytest.mark.parametrize("flooding", ["targets", "visitors"])
def test_so_it_is_with_a_thousand(tmp_path: Path, echo: Echo, flooding: str) -> None:
    stall(tmp_path, echo, BEST, flooding, 1000)


def stall(tmp_path: Path, echo: Echo, way: Way, flooding: str, slow: int) -> None:
    """Readers stop, and others are served; what both processes held at most is within the bound."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=slow) as listener,
        Relay(tmp_path, way, listener.getsockname(), echo.target, options=("--audit", str(tmp_path / "log"))) as relay,
        contextlib.ExitStack() as stack,
    ):
        flooded, echoing = relay.addresses
        printed = bound(tmp_path / "log").of(1, slow + 2) / 1024
        with connect(echoing) as warm:
            ask(warm, b"x" * 1000)
        before = relay.server.rss(), relay.client.rss()

        visitors, targets = [], []
        for _ in range(slow):
            visitors.append(stack.enter_context(connect(flooded)))
            targets.append(stack.enter_context(accept(listener)))
        sources, sinks = (targets, visitors) if flooding == "targets" else (visitors, targets)
        seeds = [("slow", number) for number in range(slow)]
        with Pump([(source, Keystream(seed)) for source, seed in zip(sources, seeds, strict=True)]) as pump:
            first = [
                background(read, sink, Checker(seed), MOVED // slow) for sink, seed in zip(sinks, seeds, strict=True)
            ]
            for reading in first:
                reading.result(TIMEOUT)

            start = time.monotonic()
            with connect(echoing) as visitor:  # while the floods still fill what there is, and after it is full
                for number in range(PINGS):
                    ask(visitor, number.to_bytes(32, "big"))
            took = time.monotonic() - start
            until(pump.stuck, "every flood is stopped")
            gains = relay.server.peak() - before[0], relay.client.peak() - before[1]
            assert not pump.failed
        print(
            f"\n{way}, {flooding} flood, {slow} readers stopped: {PINGS} of {PINGS} pings in {took:.2f} s;"
            f" memory gained (peak) server {gains[0]} KiB, client {gains[1]} KiB = {sum(gains) / slow:.0f} KiB for each slow reader;"
            f" peak / bound {max(gains) / bound_kib(slow):.2f}; of the server {relay.server.peak() / printed:.2f}"
        )
        assert max(gains) <= bound_kib(slow) * 1.15
        assert relay.server.peak() <= printed * 1.15
        stack.close()
        with connect(echoing) as visitor:
            ask(visitor, b"still there")


@pytest.mark.slow
@pytest.mark.parametrize("flooding", ["targets", "visitors"])
def test_a_small_memory_lets_visitors_wait(tmp_path: Path, echo: Echo, flooding: str, long: int) -> None:
    """More slow visitors than `memory` has room for: the bound holds, who is in is served, and who waits comes in later."""
    knocking, memory = (1000, 32) if long else (180, 8)
    options = ("--limit", f"memory={memory}M", "--audit", str(tmp_path / "log"))
    with (
        socket.create_server(("127.0.0.1", 0), backlog=knocking) as listener,
        Relay(tmp_path, BEST, listener.getsockname(), echo.target, options=options) as relay,
        contextlib.ExitStack() as stack,
    ):
        flooded, echoing = relay.addresses
        room = bound(tmp_path / "log")
        assert room.windows + room.visitors * 2 * wire.WINDOW_FLOOR == memory << 20
        early = stack.enter_context(connect(echoing))
        ask(early, b"before")
        visitors = [stack.enter_context(connect(flooded)) for _ in range(knocking)]
        inside = room.visitors - 1
        targets = [stack.enter_context(accept(listener)) for _ in range(inside)]
        relay.server.logs("limit.reached", '"memory"')
        with pytest.raises(TimeoutError):
            accept(listener, 0.3)
        late = stack.enter_context(connect(echoing))
        late.sendall(b"let me in")
        sources = targets if flooding == "targets" else visitors[:inside]
        for sock in visitors + targets:  # what the kernel holds is not what is measured here
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        before = relay.server.rss()
        if flooding == "visitors":  # then they fill the way to the client before they fill the client
            relay.client.signal(signal.SIGSTOP)
        with Pump([(source, Keystream(number)) for number, source in enumerate(sources)]) as pump:
            until(pump.stuck, "every flood is stopped")
            relay.client.signal(signal.SIGCONT)
            until(lambda: pump.stuck(0.5), "every flood is stopped")
            for number in range(100):
                ask(early, number.to_bytes(32, "big"))
            assert not pump.failed
        gained = (relay.server.peak() - before) * 1024
        queued = room.of(1, room.visitors) - room.of(0, 0)
        print(
            f"\n{flooding} flood: {inside} of {knocking} slow visitors inside; peak / bound {relay.server.peak() * 1024 / room.of(1, room.visitors):.2f},"
            f" gained {gained >> 10} KiB, {gained / queued:.2f} of what may be queued"
        )
        assert relay.server.peak() * 1024 <= 1.15 * room.of(1, room.visitors)
        assert gained <= 1.15 * queued
        start = time.monotonic()
        for sock in visitors[:inside] + targets:
            sock.close()
        assert exactly(late, 9) == b"let me in"
        for _ in range(knocking - inside):
            stack.enter_context(accept(listener))
        print(f"the others were in {time.monotonic() - start:.2f} s later")
        assert time.monotonic() - start < 5
        ask(early, b"after")


def test_a_person_reads_the_bound(tmp_path: Path) -> None:
    """On a terminal, at the start; the same that the audit log has."""
    terminal, stderr = os.openpty()
    options = ("--state", str(tmp_path / "s"), "--audit", str(tmp_path / "log"), "--limit", "memory=32M")
    with subprocess.Popen(
        fastrelay("server", "--bind", "127.0.0.1:0", "--plaintext", *options),
        cwd=ROOT,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
    ) as process:
        os.close(stderr)
        try:
            assert process.stdout and process.stdout.readline().startswith(b"tcp://127.0.0.1:")
            text = os.read(terminal, 65_536).decode()
            until(lambda: '"server.started"' in (tmp_path / "log").read_text(), "the start is in the log")
        finally:
            process.terminate()
            process.wait(TIMEOUT)
            os.close(terminal)
    said = bound(tmp_path / "log")
    assert f"  Memory      {said}" in text
    assert said.visitors == 512 and "16 MiB of windows; 512 visitors at a time" in text
