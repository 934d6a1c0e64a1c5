"""The correctness cases: fastrelay passes all, and each kind of wrong relay is told apart in the right words.

The wrong relays are threads that join two sockets as careless programs do.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.correctness import CASES, judge
from bench.programs import BenchError, Running, run
from tests.support.processes import Relay, Way

Join = Callable[[socket.socket, socket.socket], None]
HALF_CLOSE = {"visitor half-close", "target half-close", "half-open for 2 s"}


def verdicts(start: Callable[[ExitStack, int], Running], *names: str) -> dict[str, str]:
    """What was seen in each of these cases, or in all."""
    cases = [case for case in CASES if not names or case.name in names]
    assert len(cases) == (len(names) or len(CASES)), "a case of that name"
    given = list(judge(start, "tested", 1, cases))
    assert all(verdict.system == "tested" and verdict.runs == 1 for verdict in given)
    assert all(verdict.passed == (not verdict.saw) for verdict in given)
    return {verdict.case: verdict.saw for verdict in given}


def end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


class Threads:
    """A relay whose visitors are joined to their targets by `join`, in a thread for each."""

    def __init__(self, stack: ExitStack, port: int, join: Join) -> None:
        self.port = port
        self.join = join
        self.sockets: list[socket.socket] = []
        self.threads: list[threading.Thread] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.listener.getsockname()
        stack.callback(self.close)
        self.run(self.accept)

    def run(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self.threads.append(thread)
        thread.start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                visitor, _ = self.listener.accept()
                self.sockets.append(visitor)
                self.run(lambda visitor=visitor: self.serve(visitor))  # type: ignore[misc]

    def serve(self, visitor: socket.socket) -> None:
        with visitor, contextlib.suppress(OSError):
            target = socket.create_connection(("127.0.0.1", self.port))
            self.sockets.append(target)
            with target:
                self.join(visitor, target)

    def close(self) -> None:
        end(self.listener)
        for sock in self.sockets:
            end(sock)
        for thread in self.threads:
            thread.join(5)


def both_ways(copy: Join, visitor: socket.socket, target: socket.socket) -> None:
    back = threading.Thread(target=copy, args=(target, visitor), daemon=True)
    back.start()
    copy(visitor, target)
    back.join()


def copy_until_any_end(source: socket.socket, sink: socket.socket) -> None:
    """As many do: whatever ends first ends all."""
    try:
        while data := source.recv(65_536):
            sink.sendall(data)
    except OSError:
        pass
    end(source)
    end(sink)


def copy_politely(source: socket.socket, sink: socket.socket) -> None:
    """Half-closes are passed on, and failures are ends like others."""
    try:
        while data := source.recv(65_536):
            sink.sendall(data)
    except OSError:
        pass
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def copy_greedily(source: socket.socket, sink: socket.socket) -> None:
    """Reads whatever there is, and keeps it in memory until it can be written."""
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def write() -> None:
        with contextlib.suppress(OSError):
            while data := waiting.get():
                sink.sendall(data)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            waiting.put(data)
    waiting.put(b"")
    writer.join()


def relay(copy: Join) -> Callable[[ExitStack, int], Running]:
    def start(stack: ExitStack, port: int) -> Running:
        threads = Threads(stack, port, lambda visitor, target: both_ways(copy, visitor, target))
        return Running([threads.address], [])

    return start


def test_fastrelay(tmp_path: Path) -> None:
    def start(stack: ExitStack, port: int) -> Running:
        made = stack.enter_context(Relay(tmp_path, Way(tls=False, loop="uvloop"), ("127.0.0.1", port)))
        return Running(made.addresses, [made.server.pid, made.client.pid])

    assert verdicts(start) == {case.name: "" for case in CASES}


def test_direct() -> None:
    """The oracle: all of it holds where nothing is in between, but that there is nothing to kill."""
    seen = verdicts(lambda _, port: Running([("127.0.0.1", port)], []))
    assert seen.pop("tunnel killed") == "no process to kill"
    assert set(seen.values()) == {""}


def test_relay_that_ends_both_directions_at_once() -> None:
    seen = verdicts(relay(copy_until_any_end), *HALF_CLOSE, "target speaks first", "connect and close")
    assert seen.pop("target speaks first") == ""
    assert seen.pop("connect and close") == ""
    for name, saw in seen.items():
        assert saw.startswith("lost 1,048,576 of 1,048,576 bytes of the "), (name, saw)
        assert saw.endswith((", then a clean end", ", then a reset")), (name, saw)


def test_relay_that_makes_resets_clean_ends() -> None:
    resets = {"visitor reset", "target reset", "refusal"}
    seen = verdicts(relay(copy_politely), *resets, "visitor half-close", "target half-close", "stalled reader")
    assert seen == {name: "a clean end instead of a reset" if name in resets else "" for name in seen}


def test_relay_without_backpressure() -> None:
    saw = verdicts(relay(copy_greedily), "stalled reader")["stalled reader"]
    assert saw.startswith("swallowed ")
    assert saw.endswith(" MiB for the visitor who does not read")


def test_relay_whose_visitors_wait_for_each_other() -> None:
    lock = threading.Lock()

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                with lock:
                    sink.sendall(data)

    assert verdicts(relay(copy), "stalled reader") == {"stalled reader": "nothing within 3 s for another visitor"}


def test_relay_that_forgets_ends() -> None:
    def copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            while sink.recv(65_536):
                pass

    assert verdicts(relay(copy), "connect and close") == {
        "connect and close": "nothing within 3 s instead of a clean end"
    }


def test_relay_that_ends_what_it_carries_when_its_other_half_dies() -> None:
    def start(stack: ExitStack, port: int) -> Running:
        threads = Threads(stack, port, lambda visitor, target: both_ways(copy_politely, visitor, target))
        half = run(stack, "sleep", "60")

        def watch() -> None:
            half.wait()
            for sock in threads.sockets:
                end(sock)

        threads.run(watch)
        return Running([threads.address], [half.pid])

    assert verdicts(start, "tunnel killed") == {"tunnel killed": "a clean end instead of a reset"}


def test_system_that_dies_is_started_again() -> None:
    started = []

    def start(stack: ExitStack, port: int) -> Running:
        process = run(stack, "sleep", "60")
        started.append(process.pid)

        def copy(source: socket.socket, sink: socket.socket) -> None:
            first = source.recv(65_536)
            if first:
                sink.sendall(first)
            else:  # a visitor without a word is too much for it
                process.kill()
                process.wait()
            copy_politely(source, sink)

        threads = Threads(stack, port, lambda visitor, target: both_ways(copy, visitor, target))
        return Running([threads.address], [process.pid])

    seen = verdicts(start, "connect and close", "visitor half-close")
    assert seen == {"connect and close": "a process of the system ended", "visitor half-close": ""}
    assert len(started) == 2


def test_system_that_does_not_start() -> None:
    tries = []

    def start(stack: ExitStack, port: int) -> Running:
        tries.append(port)
        raise BenchError("it is out of order.")

    assert verdicts(start) == {case.name: "it is out of order." for case in CASES}
    assert len(tries) == 1
