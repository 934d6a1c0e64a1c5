"""Two streams of two tunnels, joined in the relay: what one receives the other sends (protocol.md section 9.5).

Each stream has an End as its outlet; `other` is the End of the stream that what arrives goes to. Credit couples the two directions of a
path: a byte counts as consumed when the other tunnel has taken it, so a slow reader at one end slows the sender at the other, and what lies
here in between is at most the window.

    what the stream tells          what becomes of it at the other stream
    deliver                        seal, or the backlog when there is no room
    on_accept                      accept
    on_fin                         fin, behind the backlog
    on_reset                       reset, behind the backlog, within RESET_DRAIN
    on_lost                        reset at once
    on_stop                        stop
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from fastrelay.errors import Code
from fastrelay.mux.stream import NOTHING, SENDING, Send
from fastrelay.wire import RESET_DRAIN

if TYPE_CHECKING:
    from fastrelay.mux.stream import Stream
    from fastrelay.net.link import Link
    from fastrelay.net.runtime import Runtime


def splice(runtime: Runtime, one: Stream, link: Link, two: Stream, other: Link) -> None:
    """Join `one` of the tunnel `link` with `two` of the tunnel `other`. Of the two one may still wait for its ACCEPT."""
    a, b = End(runtime, one, link), End(runtime, two, other)
    a.other, b.other = b, a
    for end in (a, b):
        end.stream.attach(end)


class End:
    """One side of a splice."""

    __slots__ = ("_backlog", "_fin", "_reset", "_runtime", "_timer", "_waits", "link", "other", "stream")

    other: End

    def __init__(self, runtime: Runtime, stream: Stream, link: Link) -> None:
        self._runtime = runtime
        self.stream = stream
        self.link = link
        self._backlog: bytearray | None = None  # taken from this stream, not yet by the other
        self._fin = False  # this stream's half has ended: so does the other's, behind the backlog
        self._reset: Code | None = None  # the same for a reset
        self._waits = False  # for room in this tunnel
        self._timer: asyncio.TimerHandle | None = None

    # --- from the stream -----------------------------------------------------------------------------------------------

    def deliver(self, piece: memoryview) -> None:
        backlog = self._backlog
        if backlog is None:
            done = self.other._send(piece)
            if done == len(piece):
                return
            self._backlog = backlog = bytearray(piece[done:])
        else:
            backlog += piece
        self.stream.queued = len(backlog)

    def on_accept(self) -> None:
        stream = self.other.stream
        if stream.send is Send.PENDING:
            stream.accept()
            self.other.on_room()

    def on_fin(self) -> None:
        self._fin = True
        if self._backlog is None:
            self.other.stream.fin()

    def on_reset(self, code: Code) -> None:
        other = self.other
        other._discard()
        if self._backlog is None or other.stream.send is not SENDING:
            self._over(code)
            return
        self._reset = code
        self._timer = self._runtime.loop.call_later(RESET_DRAIN, self._over, code)

    def on_lost(self) -> None:
        self._over(Code.CONNECTION_RESET)

    def on_stop(self) -> None:
        self.other._discard()
        if not self.other.stream.ended:
            self.other.stream.stop()

    def on_room(self) -> None:
        """This stream can send, or its tunnel takes more: pass on what the other has kept."""
        self._waits = False
        other = self.other
        backlog = other._backlog
        if backlog is None:
            return
        with memoryview(backlog) as view:
            done = self._send(view)
        stream = other.stream
        if done == len(backlog):
            other._backlog = None
        else:
            del backlog[:done]
        if done:
            stream.queued = 0 if other._backlog is None else len(backlog)
            stream.session.now = time.monotonic()
            stream.drained()
        if other._backlog is None:
            if other._reset is not None:
                other._over(other._reset)
            elif other._fin:
                self.stream.fin()

    # --- from the other end --------------------------------------------------------------------------------------------

    def _send(self, piece: memoryview) -> int:
        """Send of `piece` what credit and the tunnel allow; returns how many bytes that were."""
        link = self.link
        done = link.send(self.stream, piece)
        if done < len(piece) and link.blocked and not self._waits:
            self._waits = True
            link.waiting.append(self)
        return done

    def _discard(self) -> None:
        """Nobody reads what this stream receives any more."""
        stream = self.stream
        self._backlog = None
        self._fin = False
        stream.sink = NOTHING
        if stream.queued:
            stream.queued = 0
            stream.drained()

    def _over(self, code: Code) -> None:
        """This stream is over, and nothing is left to pass on: so is the other."""
        for end in (self, self.other):
            end._backlog = None
            end.stream.detach()
            if end._timer is not None:
                end._timer.cancel()
                end._timer = None
        self.other.stream.reset(code)
