"""The half of a tunnel connection that writes: the only writer to it.

Small frames of one loop turn are gathered and leave in one system call; a lone one, and everything large, is written through. A plain tunnel
is written on its descriptor, for the same reasons as an edge; a TLS tunnel through its transport, which encrypts at once and so keeps no
view. While the tunnel takes no more it is `blocked`: edges stop reading, what they have read already waits in `_pending`, and WINDOW and
PONG stay marks in the session.

Invariant: frames leave in the order in which they were written, whole and once.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from fastrelay.errors import Code, LimitError
from fastrelay.net.options import limit_unsent
from fastrelay.wire import HEADER_SIZE, MAX_DATA, WINDOW_FLOOR, Kind

if TYPE_CHECKING:
    from fastrelay.mux.session import Session
    from fastrelay.mux.stream import Stream
    from fastrelay.net.runtime import Runtime

SMALL = 16_384
"""Frames up to this size are worth a copy to save a system call."""
_BUSY = 0.00006
"""Seconds since the last write within which the next small frame probably has company."""
_FULL_AGAIN = 0.01
_FULL_LATELY = 0.5
"""Seconds between two times that the tunnel was full: less measures the scheduler, after more it was not always full."""
_AT_ONCE = 16
"""Edges that go on in one turn of the loop once the tunnel takes more. If all did, who comes anew would wait for a read of each."""


class Waiter(Protocol):
    def on_room(self) -> None:
        """The tunnel takes more."""


class Outbox:
    """Base of `Link`, which sets `transport`, the descriptor of its socket and, for a plain tunnel, the same as `_fd` when the connection is made."""

    transport: asyncio.Transport
    _socket: int

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.session: Session | None = None
        self.streams: dict[int, Stream] = {}
        self.blocked = False
        # What edges read at once: a view of their slab behind the header, smaller while the tunnel is shared or blocked.
        self.read_size = 0
        self.read_view = runtime.edge_slab[HEADER_SIZE:HEADER_SIZE]
        self.waiting: deque[Waiter] = deque()  # who stopped because the tunnel is blocked
        self._fd = -1  # of a plain tunnel
        self._pending = bytearray()
        self._flush_due = False
        self._feeding = False
        self._most_control = runtime.limits.control
        self._control = 0  # bytes of control frames that were written since the tunnel is blocked
        self._written = 0.0
        self._crowded = False  # turns carry several small frames: gather them
        self._lone = False  # what is gathered is one frame that came after a pause
        self._yielded: list[Waiter] = []
        self._resuming = False
        self._taken = 0  # bytes that the socket took since it was last full, at `_full_at`
        self._full_at = time.monotonic()
        self._closing = False
        self._ending = False  # `close` waits until what was written has left

    def abort(self, error: Exception) -> None:
        """The tunnel is lost."""
        raise NotImplementedError

    def close(self) -> None:
        """End in order."""
        raise NotImplementedError

    # --- writing -------------------------------------------------------------------------------------------------------

    def write(self, frame: bytes | memoryview) -> None:
        """Send one frame, valid only during the call."""
        pending = self._pending
        size = len(frame)
        if self._flush_due and size <= SMALL:
            self._lone = False
            pending += frame
            return
        if self.blocked or self._closing:
            if not self._closing:
                pending += frame
                if frame[0] != Kind.DATA:  # of which each edge adds one read at most
                    self._control += size
                    if self._control > self._most_control:
                        self.abort(LimitError(Code.CALM, "the other side takes nothing off the tunnel", "control"))
            return
        if size <= SMALL:
            if pending or self._feeding:
                self._lone = False
                pending += frame
                if not self._feeding:
                    self._wake()
                return
            now = time.perf_counter()
            quick = now - self._written < _BUSY
            self._written = now
            if quick or self._crowded:
                self._lone = not quick
                self._crowded = True
                pending += frame
                self._wake()
                return
        if pending:
            pending += frame
            self._flush()
        elif self._fd >= 0:
            try:
                done = os.write(self._fd, frame)
            except BlockingIOError:
                done = 0
            except OSError as error:
                self.abort(error)
                return
            self._taken += done
            if done < size:
                pending += frame[done:]
                self._block()
        else:
            self._taken += size
            self.transport.write(frame)

    def send(self, stream: Stream, piece: memoryview) -> int:
        """Send of `piece` what credit and the tunnel allow; returns how many bytes that were."""
        slab = self.runtime.edge_slab
        done = 0
        while not self.blocked and (size := min(stream.room(), len(piece) - done)) > 0:
            slab[HEADER_SIZE : HEADER_SIZE + size] = piece[done : done + size]
            self.write(stream.seal(slab, size))
            done += size
        return done

    def _flush(self) -> None:
        """Write what was gathered."""
        pending = self._pending
        if self._fd < 0:
            self._pending = bytearray()
            self._taken += len(pending)
            self.transport.write(pending)
            return
        try:
            done = os.write(self._fd, pending)
        except BlockingIOError:
            done = 0
        except OSError as error:
            self.abort(error)
            return
        self._taken += done
        if done == len(pending):
            pending.clear()
        else:
            del pending[:done]
            self._block()

    def _wake(self) -> None:
        """Something is to be written at the end of this turn."""
        if not self._flush_due and not self._feeding and not self._closing:
            self._flush_due = True
            self.runtime.loop.call_soon(self._turn_over)

    def _turn_over(self) -> None:
        self._flush_due = False
        if self.blocked or self._closing:
            return
        if self.session is not None:
            self._feeding = True  # gather what it owes
            self.session.flush()
            self._feeding = False
        if self._pending:
            if self._lone:  # waiting for company was in vain
                self._crowded = self._lone = False
            self._flush()

    def _set_read_size(self) -> None:
        if self.session is not None:
            size = self.session.pace.cap
            self.read_size = size = min(size, WINDOW_FLOOR) if self.blocked else min(size, MAX_DATA)
            self.read_view = self.runtime.edge_slab[HEADER_SIZE : HEADER_SIZE + size]

    def _full(self) -> None:
        """The tunnel is full: see what it took since it was full last, and how much may wait unsent at that rate."""
        now = time.monotonic()
        span = now - self._full_at
        if span < _FULL_AGAIN:
            return
        if span < _FULL_LATELY and self.session is not None and self.session.pace.took(self._taken, span):
            self._limit_queue(self.session.pace.unsent)
        self._full_at = now
        self._taken = 0

    def _limit_queue(self, size: int) -> None:
        """So many bytes may wait below us: what comes on top waits in the streams, where it is fair."""
        limit_unsent(self._socket, size)

    def _block(self) -> None:
        self.blocked = True
        self._full()
        self._set_read_size()
        self.runtime.watch.add(self._fd, self)

    def on_writable(self) -> None:
        if not self.blocked or self._fd < 0:
            return
        self.blocked = False
        if self._pending:
            self._flush()
        if not self.blocked:
            self._unblock()

    def on_hang_up(self, reset: bool, both: bool) -> None:
        """The transport is always reading: it tells by itself."""

    def _unblock(self) -> None:
        """The tunnel takes more: what is owed first, then everybody who waited gets one read."""
        self.blocked = False
        self._control = 0
        self._set_read_size()
        if self._closing:
            return
        self._turn_over()
        self._resume()
        if self._ending:
            self.close()

    def _resume(self) -> None:
        """Let some of the edges that wait go on, and the next ones when these have had their turn."""
        waiting = self.waiting
        for _ in range(min(len(waiting), _AT_ONCE)):
            if self.blocked:
                return
            waiting.popleft().on_room()
        if waiting and not self._resuming:
            self._resuming = True
            self.runtime.loop.call_soon(self._resume_more)

    def _resume_more(self) -> None:
        self._resuming = False
        self._resume()

    def yielded(self, edge: Waiter) -> None:
        """An edge has had its turn: it goes on when the others have had theirs."""
        if not self._yielded:
            self.runtime.loop.call_soon(self._next_round)
        self._yielded.append(edge)

    def _next_round(self) -> None:
        self.waiting += self._yielded
        self._yielded.clear()
        self._resume()

    # --- asyncio -------------------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        self.blocked = True
        self._full()
        self._set_read_size()

    def resume_writing(self) -> None:
        self._unblock()
