"""Two streams of two tunnels, joined in the relay: what one receives the other sends (protocol.md section 9.5).

Each stream has an End as its outlet; `other` is the End of the stream that what arrives goes to. Credit couples the two directions of a
path: a byte counts as consumed when the other tunnel has taken it, so a slow reader at one end slows the sender at the other, and what lies
here in between is at most the window.

    what the stream tells          what becomes of it at the other stream
    deliver                        seal, or the backlog when there is no room
    on_accept                      accept
    on_fin                         fin, behind the backlog
    on_reset                       reset, behind the backlog, as long as that moves
    on_lost                        reset at once
    on_stop                        stop

Whoever joined the two is told when the target is there, and once when both directions have ended.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from fastrelay.errors import Code
from fastrelay.mux.stream import NOTHING, SENDING, Send
from fastrelay.wire import RESET_DRAIN, RESET_DRAIN_MOST

if TYPE_CHECKING:
    from fastrelay.mux.stream import Stream
    from fastrelay.net.link import Link
    from fastrelay.net.runtime import Runtime


class Witness(Protocol):
    """What is told of a splice."""

    def on_accept(self) -> None:
        """The target is there."""

    def on_over(self, first: Stream | None, code: Code | None) -> None:
        """Both are over, each having ended on its own; or because `first` was reset with `code`, or lost with its tunnel (None)."""


class _Nobody:
    def on_accept(self) -> None: ...
    def on_over(self, first: Stream | None, code: Code | None) -> None: ...


_NOBODY = _Nobody()


def splice(runtime: Runtime, one: Stream, link: Link, two: Stream, other: Link, witness: Witness = _NOBODY) -> None:
    """Join `one` of the tunnel `link` with `two` of the tunnel `other`. Of the two one may still wait for its ACCEPT."""
    a, b = End(runtime, one, link, witness), End(runtime, two, other, witness)
    a.other, b.other = b, a
    for end in (a, b):
        end.stream.attach(end)
    if two.ended:  # its tunnel has failed under the OPEN of this very stream
        b.on_lost()


class End:
    """One side of a splice."""

    __slots__ = (
        "_backlog",
        "_done",
        "_fin",
        "_parted",
        "_reset",
        "_runtime",
        "_timer",
        "_until",
        "_waits",
        "_witness",
        "link",
        "other",
        "stream",
    )

    other: End

    def __init__(self, runtime: Runtime, stream: Stream, link: Link, witness: Witness) -> None:
        self._runtime = runtime
        self.stream = stream
        self.link = link
        self._backlog: bytearray | None = None  # taken from this stream, not yet by the other
        self._fin = False  # this stream's half has ended: so does the other's, behind the backlog
        self._reset: Code | None = None  # the same for a reset
        self._waits = False  # for room in this tunnel
        self._timer: asyncio.TimerHandle | None = None
        self._until = 0.0
        self._done = False  # nothing of this stream's half is left to pass on, and nothing will come
        self._parted = False  # from the other one: both are over
        self._witness = witness

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
        other = self.other
        if other.stream.send is Send.PENDING:
            self._witness.on_accept()
            other.stream.accept()
            other.on_room()

    def on_fin(self) -> None:
        self._fin = True
        if self._backlog is None:
            self.other.stream.fin()
            self._half_over()

    def on_reset(self, code: Code) -> None:
        other = self.other
        other._discard()
        if self._backlog is None or other.stream.send is not SENDING:
            self._over(code)
            return
        self._reset = code
        self._until = self._runtime.loop.time() + RESET_DRAIN_MOST
        self._linger(code)

    def on_lost(self) -> None:
        self._over(None)

    def on_stop(self) -> None:
        other = self.other
        other._discard()
        if not other.stream.ended:
            other.stream.stop()
        other._half_over()

    def on_room(self) -> None:
        """This stream can send, or its tunnel takes more: pass on what the other has kept."""
        self._waits = False
        if self._parted:
            return
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
            if other._reset is not None:
                other._linger(other._reset)
        if other._backlog is None:
            if other._reset is not None:
                other._over(other._reset)
            elif other._fin:
                self.stream.fin()
                other._half_over()

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

    def _linger(self, code: Code) -> None:
        """Be reset when the backlog has not moved for RESET_DRAIN."""
        if self._timer is not None:
            self._timer.cancel()
        loop = self._runtime.loop
        self._timer = loop.call_at(min(loop.time() + RESET_DRAIN, self._until), self._over, code)

    def _half_over(self) -> None:
        """Nothing of this stream's half is left to pass on, and nothing will come."""
        self._done = True
        if not self._parted and self.other._done:
            self._part(None, Code.NO_ERROR)

    def _over(self, code: Code | None) -> None:
        """This stream is reset, or lost (None), and nothing is left to pass on: so is the other."""
        if self._parted:
            return
        other = self.other
        if other._reset is None:
            self._part(self.stream, code)
        else:  # that one was first, and still had something to say
            self._part(other.stream, other._reset)
        other.stream.reset(Code.CONNECTION_RESET if code is None else code)

    def _part(self, first: Stream | None, code: Code | None) -> None:
        witness, other = self._witness, self.other
        for end in (self, other):
            end._parted = True
            end._backlog = None
            end.stream.detach()
            if end._timer is not None:
                end._timer.cancel()
                end._timer = None
            del end.other  # a cycle
        witness.on_over(first, code)
