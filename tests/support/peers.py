"""The two ends of a relayed connection: raw sockets, and what a test does with them.

Every socket has a timeout, so that a lost byte is a failure and never a test that hangs.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import select
import selectors
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

from tests.support.payload import BLOCK, Checker, Keystream

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT = 20.0
Address = tuple[str, int]


class End(enum.Enum):
    """How a direction ended at its receiver."""

    EOF = "a clean end"
    RESET = "a reset"


def connect(address: Address, timeout: float = TIMEOUT, source: str | None = None) -> socket.socket:
    """A connection with a timeout; `source` is the local address to come from."""
    sock = socket.create_connection(address, timeout, (source, 0) if source else None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def knock(address: Address) -> socket.socket:
    """A connection that nobody has waited for: what it meets, a reset too, is told by the first `recv`, behind what was said before."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(address)
    sock.settimeout(TIMEOUT)
    return sock


def accept(listener: socket.socket, timeout: float = TIMEOUT) -> socket.socket:
    """The next connection of a listener, with a timeout of its own."""
    listener.settimeout(timeout)
    sock, _ = listener.accept()
    sock.settimeout(TIMEOUT)
    return sock


def background(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Run `work` in a thread; `result(timeout)` gives what it returns or raises."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def until(holds: Callable[[], object], what: str, timeout: float = TIMEOUT) -> None:
    """Wait until `holds()` is true; `what` names it in the failure."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"{timeout:.0f} s passed and it is not so: {what}"
        time.sleep(0.005)


class Stalls:
    """`with`: for how long the machine has kept us waiting meanwhile, in `seconds`, as a thread sees it that wants to wake every 5 ms."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        start = time.monotonic()
        while not self._over.wait(0.005):
            now = time.monotonic()
            self.seconds += max(0.0, now - start - 0.05)
            start = now

    def __enter__(self) -> Stalls:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def free_port() -> int:
    """A port that nobody has now, for a program that cannot be given port 0."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def listens(address: Address) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(address) == 0


def ways_in(port: int) -> list[str]:
    """How another program on this machine would get a public port of 127.0.0.1: nothing, if nobody but its holder has it."""
    found = []
    options = ((), (socket.SO_REUSEADDR,), (socket.SO_REUSEPORT,), (socket.SO_REUSEADDR, socket.SO_REUSEPORT))
    hosts = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0")]
    if socket.has_dualstack_ipv6():
        hosts.append((socket.AF_INET6, "::"))
    for family, host in hosts:
        for chosen in options:
            with socket.socket(family) as sock, contextlib.suppress(OSError):
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                for option in chosen:
                    sock.setsockopt(socket.SOL_SOCKET, option, 1)
                sock.bind((host, port))
                sock.listen()
                found.append(f"{host} with {chosen}")
    return found


# --- sending ------------------------------------------------------------------------------------------------------------


def send(sock: socket.socket, stream: Keystream, size: int) -> None:
    """Send the next `size` bytes of a keystream."""
    while size:
        block = stream.take(min(size, BLOCK))
        sock.sendall(block)
        size -= len(block)


def send_and_end(sock: socket.socket, stream: Keystream, size: int) -> None:
    """Send, then end this direction only."""
    send(sock, stream, size)
    sock.shutdown(socket.SHUT_WR)


def send_for_ever(sock: socket.socket, stream: Keystream) -> OSError:
    """Send until the connection fails; the failure."""
    try:
        while True:
            sock.sendall(stream.take(65_536))
    except OSError as error:
        return error


def unsent(sock: socket.socket) -> int:
    """Bytes that the peer's kernel has not acknowledged (SIOCOUTQ)."""
    answer = fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))
    return int(struct.unpack("i", answer)[0])


def handed_over(sock: socket.socket) -> None:
    """Wait until the peer's kernel has every byte: a reset destroys what is still in ours."""
    until(lambda: unsent(sock) == 0, "the peer's kernel has taken all bytes")


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# --- receiving ----------------------------------------------------------------------------------------------------------


def read_to_end(sock: socket.socket, checker: Checker) -> End:
    """Read and check until the direction ends; how it did."""
    while True:
        try:
            data = sock.recv(BLOCK)
        except ConnectionError:
            return End.RESET
        if not data:
            return End.EOF
        checker.feed(data)


def read(sock: socket.socket, checker: Checker, size: int) -> None:
    """Read and check exactly `size` bytes more."""
    while size:
        data = sock.recv(min(size, BLOCK))
        assert data, f"a clean end, {size} bytes early"
        checker.feed(data)
        size -= len(data)


def exactly(sock: socket.socket, size: int) -> bytes:
    """`size` bytes."""
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, f"a clean end after {len(data)} of {size} bytes"
        data += piece
    return data


def ask(sock: socket.socket, question: bytes) -> None:
    """Send, and read the same from an echo."""
    sock.sendall(question)
    answer = exactly(sock, len(question))
    assert answer == question, f"asked {question!r} and the echo said {answer!r}"


def echoes(address: Address) -> None:
    """A visitor's whole connection to an echo: a question, a half-close, a clean end."""
    with connect(address) as sock:
        ask(sock, b"are you there?")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def hang_up(sock: socket.socket, timeout: float = TIMEOUT) -> bool:
    """Wait, without reading, until both directions are gone; False if `timeout` passed first.

    Only a reset does that to a socket that has not ended its own direction. A reset that finds a socket whose peer had ended before
    (CLOSE_WAIT) is EPIPE and not ECONNRESET, and its `recv` says b"" for the end that came earlier: so reading could not tell.
    """
    poller = select.poll()
    poller.register(sock, 0)  # POLLERR and POLLHUP are always reported
    return bool(poller.poll(timeout * 1000))


class Pump:
    """Sends on many sockets at once until they take no more, as fast as they take it, from a thread of its own."""

    def __init__(self, flows: Iterable[tuple[socket.socket, Keystream]]) -> None:
        self.failed: list[OSError] = []
        self.sent = 0
        self.moved = time.monotonic()  # when a socket took something last
        self._stop = threading.Event()
        self._selector = selectors.DefaultSelector()
        for sock, stream in flows:
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_WRITE, [stream, b""])
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set() and self._selector.get_map():
            for key, _ in self._selector.select(0.05):
                state: list[Any] = key.data
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if not state[1]:
                    state[1] = state[0].take(65_536)
                try:
                    size = sock.send(state[1])
                except BlockingIOError:
                    continue
                except OSError as error:
                    self.failed.append(error)
                    self._selector.unregister(sock)
                    continue
                state[1] = state[1][size:]
                self.sent += size
                self.moved = time.monotonic()

    def stuck(self, seconds: float = 0.3) -> bool:
        """Whether no socket took a byte for so long."""
        return time.monotonic() - self.moved > seconds

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(TIMEOUT)
        self._selector.close()

    def __enter__(self) -> Pump:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
