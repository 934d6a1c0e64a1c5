"""One connection that speaks frames, by hand: it sends whatever it is told, reads and counts what comes back, or is deaf to it."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import ssl
import struct
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Self

from tests.attack.frames import Frame, Kind, Splitter
from tests.support.peers import TIMEOUT

PIECE = 262_144
_MORE = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Line:
    """`heard` counts frames by kind, `resets` those of them by code; `goaway` is (last, code, text) once it came.

    `ended` is "" while the connection stands, then "eof" or "reset".
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.heard: Counter[int] = Counter()
        self.resets: Counter[int] = Counter()
        self.goaway: tuple[int, int, str] | None = None
        self.ended = ""
        self.frames: deque[Frame] = deque(maxlen=10_000)  # the newest that nobody asked for yet
        self._splitter = Splitter()

    # --- sending -------------------------------------------------------------------------------------------------------

    def send(self, raw: bytes, *, deaf: bool = False, timeout: float = TIMEOUT) -> int:
        """How many bytes went out: not all when the connection ended, or took nothing for `timeout`."""
        view = memoryview(raw)
        at = 0
        moved = time.monotonic()
        while at < len(view) and not self.ended and time.monotonic() - moved < timeout:
            try:
                at += self.sock.send(view[at : at + PIECE])
                moved = time.monotonic()
            except _MORE:
                self._wait(select.POLLOUT if deaf else select.POLLIN | select.POLLOUT, 0.05)
            except OSError:
                self._drained()
            if not deaf:
                self.read()
        return at

    def flood(self, batches: Iterable[list[bytes]], *, deaf: bool = False, patience: float = 1.0) -> int:
        """Send batch after batch until one is not taken, or a GOAWAY came; how many frames went out, those of a last half batch not counted."""
        count = 0
        for batch in batches:
            raw = b"".join(batch)
            if self.send(raw, deaf=deaf, timeout=patience) < len(raw):
                break
            count += len(batch)
            if self.goaway is not None:
                break
        return count

    # --- receiving -----------------------------------------------------------------------------------------------------

    def read(self, timeout: float = 0.0) -> bool:
        """Read what is there, waiting for it at most so long; whether something came, an end too."""
        came = False
        while not self.ended:
            try:
                chunk = self.sock.recv(PIECE)
            except _MORE:
                if came or timeout <= 0 or not self._wait(select.POLLIN, timeout):
                    return came
                timeout = 0.0
                continue
            except OSError:
                self.ended = "reset"
                return True
            came = True
            if not chunk:
                self.ended = "eof"
            for one in self._splitter.feed(chunk):
                self._count(one)
        return came

    def _wait(self, events: int, timeout: float) -> bool:
        """Whether one of the events, or an end, comes in that time; `select.select` knows the first 1024 descriptors only."""
        poll = select.poll()
        poll.register(self.sock, events)
        return bool(poll.poll(timeout * 1000))

    def _count(self, one: Frame) -> None:
        self.heard[one.kind] += 1
        if one.kind == Kind.RESET:
            self.resets[one.code] += 1
        elif one.kind == Kind.GOAWAY:
            last, code = struct.unpack_from(">II", one.payload)
            self.goaway = last, code, one.payload[8:].decode()
        self.frames.append(one)

    def _drained(self) -> None:
        """Sending has failed: read what was said before that, then it is over."""
        self.read()
        self.ended = self.ended or "reset"

    def frame(self, *kinds: int, timeout: float = TIMEOUT) -> Frame:
        """The next frame of these kinds; others are skipped."""
        deadline = time.monotonic() + timeout
        while True:
            while self.frames:
                found = self.frames.popleft()
                if found.kind in kinds:
                    return found
            left = deadline - time.monotonic()
            assert not self.ended and left > 0, f"no frame of {kinds}; ended: {self.ended!r}, {self.goaway}"
            self.read(left)

    def to_end(self, timeout: float = TIMEOUT) -> str:
        """Read until the other side ends; how it did, "" when it did not in time."""
        deadline = time.monotonic() + timeout
        while not self.ended and (left := deadline - time.monotonic()) > 0:
            if self.goaway is not None and isinstance(self.sock, ssl.SSLSocket):
                self.half_close()  # under TLS the other side cannot end its half alone, and waits for ours
            self.read(left)
        return self.ended

    def until(self, number: int, kind: int, timeout: float = TIMEOUT) -> None:
        """Read until so many frames of a kind have come since the beginning."""
        deadline = time.monotonic() + timeout
        while self.heard[kind] < number:
            left = deadline - time.monotonic()
            assert not self.ended and left > 0, f"{self.heard[kind]} of {number} frames of {kind}; {self.goaway}"
            self.read(left)

    def alive(self) -> bool:
        """Whether a PING is answered. It is one of the 20 that a peer may send at once."""
        before = self.heard[Kind.PONG]
        self.send(struct.pack(">II8s", Kind.PING << 24 | 8, 0, b"alive???"))
        with contextlib.suppress(AssertionError):
            self.until(before + 1, Kind.PONG, 5)
        return self.heard[Kind.PONG] > before

    @property
    def pending(self) -> int:
        """Bytes of half a frame that came last."""
        return self._splitter.pending

    # --- ends ----------------------------------------------------------------------------------------------------------

    def half_close(self) -> None:
        """FIN of TCP itself: under TLS without a close_notify."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def reset(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def batches(frames: Iterable[bytes], size: int = 500) -> Iterable[list[bytes]]:
    """The same frames, so many at a time."""
    source = iter(frames)
    while batch := list(itertools.islice(source, size)):
        yield batch
