"""Correctness is a workload: what a TCP connection tells its two ends besides bytes, asked of every system in the same way.

Both ends of each case are sockets of this process, on loopback: the visitor connects to the system, the target is accepted from it. What
is expected is what the kernel does when the two are connected without anything in between. A case whose system misbehaves, hangs or dies
is a verdict in a few words; the bench goes on, with a fresh system where the old one does not answer any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import secrets
import select
import selectors
import signal
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Self

from bench.programs import BenchError, Running, tree
from bench.record import Verdict

KIB = 1 << 10
MIB = 1 << 20
TIMEOUT = 3.0
"""Seconds of silence after which something has not happened. On loopback everything here takes milliseconds."""
PATIENCE = 5.0
"""Seconds for what a system may do in several attempts, or that is a lot of work."""
SWALLOW = 32 * MIB
"""What a system may hold in its own memory for a visitor who does not read."""
NOISE = random.Random(1).randbytes(2_000_000)
"""What crosses: a prefix of this, so that bytes lost or repeated in the middle are noticed."""

EOF = "a clean end"
RESET = "a reset"


class CaseError(Exception):
    """A few words for what was seen instead of what had to be."""


class Ends(NamedTuple):
    """One connection through the system."""

    visitor: socket.socket
    target: socket.socket


class Case(NamedTuple):
    """`title` is what must hold, in a sentence. `play` raises CaseError if it does not."""

    name: str
    title: str
    play: Callable[[Stage], None]


def judge(
    start: Callable[[ExitStack, int], Running], system: str, runs: int, cases: Sequence[Case] | None = None
) -> Iterator[Verdict]:
    """Play every case `runs` times on the system that `start` leads to a port of 127.0.0.1."""
    with Stage(start) as stage:
        for case in CASES if cases is None else cases:
            saw = [stage.play(case) for _ in range(runs)]
            yield Verdict(case.name, system, saw.count(""), runs, next(filter(None, saw), ""))


class Stage:
    """A system, the listener that is its target, and the sockets of the case that is being played."""

    def __init__(self, start: Callable[[ExitStack, int], Running]) -> None:
        self.start = start
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self.listener.getsockname()[1])
        self.running: Running | None = None
        self.broken = ""  # why the system cannot be started; each further try could take as long as the first
        self.system = ExitStack()
        self.sockets = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self.listener.close()

    # --- the system ---

    def play(self, case: Case) -> str:
        """What was seen instead of what had to be; "" if all was well."""
        try:
            with ExitStack() as self.sockets:
                self.stand()
            with ExitStack() as self.sockets:
                case.play(self)
            if self.running and not all(map(alive, self.running.pids)):
                return "a process of the system ended"
        except (CaseError, BenchError) as error:
            return str(error)
        except TimeoutError:
            return nothing(TIMEOUT)
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def stand(self) -> None:
        """See to it that there is a system that answers. Raises BenchError."""
        if self.broken:
            raise BenchError(self.broken)
        if self.running and all(map(alive, self.running.pids)) and self.answers():
            return
        try:
            self._end()
            self.running = self.start(self.system, self.port)
            if not (self.answers() or self.answers()):
                raise BenchError(f"nothing came back through the system within {2 * TIMEOUT:.0f} s")
        except Exception as error:  # whatever it is, the other systems have their turn
            self.broken = str(error) or type(error).__name__
            raise BenchError(self.broken) from None

    def _end(self) -> None:
        self.running = None
        with contextlib.suppress(OSError):  # a process that has ended is no longer there to be ended
            self.system.close()

    def answers(self) -> bool:
        """Whether a word goes to the target and back. What else comes out of the system was begun before, and is passed over."""
        word = secrets.token_bytes(8)
        deadline = time.monotonic() + TIMEOUT
        with selectors.DefaultSelector() as selector, contextlib.suppress(OSError, CaseError):
            selector.register(self.listener, selectors.EVENT_READ)
            visitor = self.visit()
            visitor.sendall(word)
            while (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if key.fileobj is self.listener:
                        target = self.accept()
                        selector.register(target, selectors.EVENT_READ, target)
                        continue
                    said = b""
                    with contextlib.suppress(OSError):
                        said = key.data.recv(len(word))
                    if said == word:
                        key.data.sendall(word)
                        return exactly(visitor, len(word)) == word
                    selector.unregister(key.fileobj)
        return False

    def kill(self) -> None:
        """The processes at the target's side of the tunnel are gone from one moment to the next."""
        if not self.running or not self.running.pids:
            raise CaseError("no process to kill")
        pids, self.running = self.running.pids, None
        for pid in tree(pids[-1:]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # --- its connections ---

    def pair(self) -> Ends:
        visitor = self.visit()
        return Ends(visitor, self.accept())

    def visit(self) -> socket.socket:
        assert self.running is not None
        visitor = self.sockets.enter_context(socket.create_connection(self.running.visitors[0], TIMEOUT))
        visitor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return visitor

    def accept(self) -> socket.socket:
        self.listener.settimeout(TIMEOUT)
        try:
            target, _ = self.listener.accept()
        except TimeoutError:
            raise CaseError(f"no connection at the target within {TIMEOUT:.0f} s") from None
        self.sockets.enter_context(target)
        target.settimeout(TIMEOUT)
        target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return target

    @contextmanager
    def nobody_there(self) -> Iterator[None]:
        """Connections to the target are refused. The port stays taken: free, it could be the source of somebody's connection."""
        self.listener.close()
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", self.port))
        try:
            yield
        finally:
            self.listener.listen(128)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


# --- what the ends do ---------------------------------------------------------------------------------------------------


def nothing(seconds: float) -> str:
    return f"nothing within {seconds:.0f} s"


def receive(sock: socket.socket) -> tuple[bytes, str]:
    """Everything until the end, and what came then."""
    heard = bytearray()
    try:
        while data := sock.recv(65_536):
            heard += data
    except TimeoutError:
        return bytes(heard), nothing(TIMEOUT)
    except ConnectionError:
        return bytes(heard), RESET
    return bytes(heard), EOF


def exactly(sock: socket.socket, size: int) -> bytes:
    heard = b""
    while len(heard) < size:
        piece = sock.recv(size - len(heard))
        if not piece:
            raise CaseError(f"{EOF} after {len(heard)} of {size} bytes")
        heard += piece
    return heard


def end_of(sock: socket.socket, seconds: float = TIMEOUT) -> str:
    """What comes next where no more bytes may come."""
    sock.settimeout(seconds)
    try:
        if sock.recv(1):
            raise CaseError("bytes that nobody sent")
    except TimeoutError:
        return nothing(seconds)
    except ConnectionError:
        return RESET
    return EOF


def drain(sock: socket.socket, seconds: float = TIMEOUT) -> str:
    """Throw bytes away until the end; what came then."""
    sink = bytearray(MIB)
    deadline = time.monotonic() + seconds
    try:
        while sock.recv_into(sink):
            if time.monotonic() > deadline:
                return "still bytes"
    except TimeoutError:
        return nothing(TIMEOUT)
    except ConnectionError:
        return RESET
    return EOF


def must_end(saw: str, expected: str) -> None:
    if saw != expected:
        raise CaseError(f"{saw} instead of {expected}")


def crosses(source: socket.socket, sink: socket.socket, size: int, what: str) -> None:
    """`size` bytes and a clean end go from one end to the other."""
    with meanwhile(say, source, size):
        heard, end = receive(sink)
    must_be_whole(heard, end, size, what)
    if end != EOF:
        raise CaseError(f"{end} after {what} instead of {EOF}")


def must_be_whole(heard: bytes, end: str, size: int, what: str) -> None:
    if heard != NOISE[: len(heard)]:
        raise CaseError(f"wrong bytes in {what}")
    if len(heard) < size:
        raise CaseError(f"lost {size - len(heard):,} of {size:,} bytes of {what}, then {end}")


def say(sock: socket.socket, size: int) -> None:
    """Send and end this direction. If it fails, the receiver has something to tell."""
    with contextlib.suppress(OSError):
        sock.sendall(NOISE[:size])
        sock.shutdown(socket.SHUT_WR)


def say_and_close(sock: socket.socket, size: int) -> None:
    """Send without reading, and close, which is a reset: only when the other kernel has everything, for a reset destroys what is in ours."""
    with sock, contextlib.suppress(OSError):
        sock.recv(1)
        sock.sendall(NOISE[:size])
        deadline = time.monotonic() + TIMEOUT
        while struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0] and time.monotonic() < deadline:
            time.sleep(0.005)


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def round_trip(ends: Ends, word: bytes = b"are you there?") -> None:
    ends.visitor.sendall(word)
    heard = exactly(ends.target, len(word))
    ends.target.sendall(heard)
    if exactly(ends.visitor, len(word)) != word:
        raise CaseError("wrong bytes from an echo")


@contextmanager
def meanwhile(work: Callable[[socket.socket, int], None], sock: socket.socket, size: int) -> Iterator[None]:
    """Do it in a thread until the block ends; the timeouts of the socket see to it that it does."""
    thread = threading.Thread(target=work, args=(sock, size), daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


class Flood:
    """Sends as fast as the socket takes it, from a thread of its own, until the block ends or the connection fails."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sent = 0
        self.error: OSError | None = None
        self.moved = time.monotonic()  # when the socket took something last
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self.sock, select.POLLOUT)
        try:
            while not self._stop.is_set():
                if poller.poll(50):
                    self.sent += self.sock.send(NOISE[: 64 * KIB])
                    self.moved = time.monotonic()
        except OSError as error:
            self.error = error

    def stands(self) -> bool:
        """Whether the socket has not taken anything for a while."""
        return time.monotonic() - self.moved > 0.3

    def swallowed(self) -> int:
        """How much of it, at least, is in no buffer of the kernel: as nobody reads, the system has it."""
        sent = self.sent
        return sent - in_kernel()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def in_kernel() -> int:
    """Bytes in the send and receive queues of all TCP sockets of this machine."""
    total = 0
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for row in Path(table).read_text().splitlines()[1:]:
                total += sum(int(queue, 16) for queue in row.split()[4].split(":"))
    return total


# --- the cases ----------------------------------------------------------------------------------------------------------

CASES: list[Case] = []


def case(name: str) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    """The function is a case, and its docstring the title."""

    def add(play: Callable[[Stage], None]) -> Callable[[Stage], None]:
        CASES.append(Case(name, play.__doc__ or name, play))
        return play

    return add


@case("target speaks first")
def target_speaks_first(stage: Stage) -> None:
    """A target that greets is heard by a visitor who has not said anything."""
    ends = stage.pair()
    ends.target.sendall(b"220 ready\r\n")
    if exactly(ends.visitor, 11) != b"220 ready\r\n":
        raise CaseError("wrong bytes in the greeting")


@case("connect and close")
def connect_and_close(stage: Stage) -> None:
    """A visitor who connects and closes without a word is a connection and a clean end at the target."""
    stage.visit().close()
    must_end(end_of(stage.accept()), EOF)


@case("visitor half-close")
def visitor_half_close(stage: Stage) -> None:
    """A visitor who ends a request of 100 KiB still gets all of the answer of 1 MiB."""
    ends = stage.pair()
    crosses(ends.visitor, ends.target, 100 * KIB, "the request")
    crosses(ends.target, ends.visitor, MIB, "the answer")


@case("target half-close")
def target_half_close(stage: Stage) -> None:
    """A target that has said all it has to say still gets 1 MiB from the visitor."""
    ends = stage.pair()
    crosses(ends.target, ends.visitor, 100 * KIB, "the answer")
    crosses(ends.visitor, ends.target, MIB, "the request")


@case("half-open for 2 s")
def half_open(stage: Stage) -> None:
    """A connection of which one direction has ended stays for as long as the other is silent, and then carries 1 MiB."""
    first, second = stage.pair(), stage.pair()
    crosses(first.visitor, first.target, 1, "the request")
    crosses(second.target, second.visitor, 1, "the answer")
    time.sleep(2)
    crosses(first.target, first.visitor, MIB, "the answer")
    crosses(second.visitor, second.target, MIB, "the request")


@case("visitor reset")
def visitor_reset(stage: Stage) -> None:
    """A visitor who resets is a reset at the target, which would take a clean end for a complete request."""
    ends = stage.pair()
    round_trip(ends)
    reset(ends.visitor)
    must_end(end_of(ends.target), RESET)


@case("target reset")
def target_reset(stage: Stage) -> None:
    """A target that resets is a reset at the visitor, who would take a clean end for a complete answer."""
    ends = stage.pair()
    round_trip(ends)
    reset(ends.target)
    must_end(end_of(ends.visitor), RESET)


@case("early answer")
def early_answer(stage: Stage) -> None:
    """A target that answers 2 MB and closes, while the visitor uploads what it never reads, is heard to the last byte."""
    ends = stage.pair()
    with Flood(ends.visitor) as flood, meanwhile(say_and_close, ends.target, len(NOISE)):
        heard, end = receive(ends.visitor)
    if isinstance(flood.error, ConnectionResetError):  # the kernel tells it once, and told the one who sends
        end = RESET
    must_be_whole(heard, end, len(NOISE), "the answer")
    if end not in (EOF, RESET):
        raise CaseError(f"the answer, then {end}")


@case("refusal")
def refusal(stage: Stage) -> None:
    """Where nobody listens at the target the visitor is reset, and the next is served once somebody listens."""
    with stage.nobody_there():
        try:
            saw = end_of(stage.visit(), PATIENCE)
        except ConnectionError:  # connect() itself was told
            saw = RESET
    if not stage.answers():
        raise CaseError("no connection once the target was back")
    must_end(saw, RESET)


@case("stalled reader")
def stalled_reader(stage: Stage) -> None:
    """A visitor who does not read stops the target that sends to him, before 32 MiB are in memory, and nobody else."""
    stalled = stage.pair()
    with Flood(stalled.target) as flood:
        deadline = time.monotonic() + PATIENCE
        while not flood.stands():
            must_not_swallow(flood)
            if time.monotonic() > deadline:
                raise CaseError(f"the target had not been stopped after {PATIENCE:.0f} s")
            time.sleep(0.02)
        begin = time.monotonic()
        try:
            for _ in range(5):
                ends = stage.pair()
                for _ in range(100):
                    round_trip(ends)
        except TimeoutError:
            raise CaseError(f"{nothing(TIMEOUT)} for another visitor") from None
        took = time.monotonic() - begin
        must_not_swallow(flood)
    if took > PATIENCE:
        raise CaseError(f"500 round trips of other visitors took {took:.1f} s")


def must_not_swallow(flood: Flood) -> None:
    if flood.error:
        raise CaseError("the visitor who does not read was cut off")
    if (size := flood.swallowed()) > SWALLOW:
        raise CaseError(f"swallowed {size / MIB:.0f} MiB for the visitor who does not read")


@case("tunnel killed")
def tunnel_killed(stage: Stage) -> None:
    """A visitor in the middle of a download sees a reset when the system dies at the target's side: half a file must not look like one."""
    ends = stage.pair()
    with Flood(ends.target):
        for _ in range(16):
            exactly(ends.visitor, 64 * KIB)
        stage.kill()
        saw = drain(ends.visitor)
    must_end(saw, RESET)
