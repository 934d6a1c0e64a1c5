"""One local connection, of a visitor or to a target, joined with one stream (protocol.md section 9).

The nine wires:

    the socket                     the stream           the stream          the socket
    get_buffer, buffer_updated     room, seal           deliver             write, the rest is kept
    eof_received                   fin                  on_fin              write_eof, behind what is kept
    connection_lost                reset                on_reset, on_lost   drain for a moment and RST; RST at once
    on_hang_up                     reset                on_stop             throw input away
    on_writable                    drained              on_room             resume_reading

The transport only reads. Writing is done on the descriptor: what the socket does not take at once is copied, so no view outlives the read
of the tunnel, and memory is exactly what is queued. SO_LINGER(1, 0) stands on the socket from the start and is lifted before an orderly
close, so that an end which is not orderly, our own death included, is a RST.

Invariant: one transport, one stream; the descriptor is used only between connection_made and connection_lost.
"""

from __future__ import annotations

import asyncio
import socket
import time
from os import write
from typing import TYPE_CHECKING, cast

from fastrelay.errors import Code
from fastrelay.mux.stream import NOTHING
from fastrelay.net.options import LINGER_OFF, LINGER_RESET, linger, unacknowledged
from fastrelay.wire import DISCARD_TIME, HEADER_SIZE, MAX_OFFSET, RESET_DRAIN, RESET_DRAIN_MOST

if TYPE_CHECKING:
    from fastrelay.mux.stream import Stream
    from fastrelay.net.link import Link
    from fastrelay.net.runtime import Runtime

_POLL_FIRST = 0.001
_POLL_MOST = 0.05
_LOOK_EVERY = 0.25
"""Seconds between two looks whether input of a connection that has failed still moves."""


class Edge(asyncio.BufferedProtocol):
    """Made with the runtime; joined with its stream in connection_made (a visitor) or as soon as a dial is done (a target)."""

    __slots__ = (
        "_backlog",
        "_discarding",
        "_eof",
        "_failed",
        "_fd",
        "_fin_due",
        "_held",
        "_runtime",
        "_socket",
        "_stash",
        "_tcp",
        "_timer",
        "_transport",
        "link",
        "stream",
    )

    def __init__(self, runtime: Runtime, sock: socket.socket | None = None) -> None:
        """`sock` is what the transport will be made of, where that is known: asking the transport makes an object that stays."""
        self._runtime = runtime
        self._socket = sock
        self._fd = -1
        self._backlog: bytearray | None = None  # taken from the tunnel, not yet by the socket
        self._stash: bytes | None = None  # read from the socket, not yet allowed into the tunnel
        self._eof = False  # the local side has ended its direction
        self._fin_due = False  # the stream's direction has ended: write_eof when the backlog is gone
        self._failed = False  # the socket is reset, but input that came before may still be there
        self._discarding = False  # input is thrown away
        self._held = False  # reading is paused
        self._timer: asyncio.TimerHandle | None = None
        self.stream: Stream | None = None

    # --- asyncio -------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        sock = self._socket or transport.get_extra_info("socket")
        self._socket = None
        self._fd = sock.fileno()
        self._tcp = sock.family != socket.AF_UNIX
        self._runtime.edge_made(self._fd)

    def get_buffer(self, sizehint: int) -> memoryview:
        stream = self.stream
        if stream is not None:
            link = self.link
            room = stream.send_limit - stream.sent
            if room >= link.read_size:
                return link.read_view
            if room > 0:
                return self._runtime.edge_slab[HEADER_SIZE : HEADER_SIZE + room]
        # A read that came before the pause took effect, or whose bytes nobody wants.
        return self._runtime.floor_view

    def buffer_updated(self, nbytes: int) -> None:
        stream = self.stream
        if stream is None or stream.sent + nbytes > stream.send_limit:
            if not self._discarding:
                self._stash = bytes(self._runtime.edge_slab[HEADER_SIZE : HEADER_SIZE + nbytes])
                self._hold()
            return
        link = self.link
        link.write(stream.seal(self._runtime.edge_slab, nbytes))
        if stream.sent >= stream.send_limit:
            self._hold()
        elif link.blocked:
            self._hold()
            link.waiting.append(self)
        elif nbytes >= stream.pace.cap and not stream.pace.alone:
            # libuv reads on while the buffer fills: in company a stream gets one frame, then the others have their turn.
            self._hold()
            link.yielded(self)

    def eof_received(self) -> bool:
        if not self._eof:
            self._eof = True
            self._input_over()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._fd < 0:
            return  # told twice: see `Dial`
        self._runtime.watch.remove(self._fd)
        self._fd = -1
        self._backlog = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._part(Code.CONNECTION_RESET)
        self._runtime.edge_gone()

    # --- joining -------------------------------------------------------------------------------------------------------

    def join(self, stream: Stream, link: Link) -> None:
        """Connect the two directions. What was read before goes first. `stream` is None afterwards if one of the two is over already."""
        if self._fd < 0 or stream.ended:  # the tunnel may have failed under the OPEN or ACCEPT of this very stream
            stream.reset(Code.CONNECTION_RESET)
            self._abort()
            return
        self.stream = stream
        self.link = link
        stream.attach(self)
        if self._failed:
            self._fail_softly(stream)
        if self._stash is not None:
            self.on_room()
        elif self._eof:
            self._input_over()

    def was_reset(self) -> None:
        """The connection had been reset before it got its edge; what it had sent is still to be read."""
        self._failed = True

    def refuse(self) -> None:
        """There is nobody to join: reset the connection."""
        self._abort()

    # --- from the stream -----------------------------------------------------------------------------------------------

    def deliver(self, piece: memoryview) -> None:
        backlog = self._backlog
        if backlog is None:
            try:
                done = write(self._fd, piece)
            except BlockingIOError:
                done = 0
            except OSError:
                self._fail()
                return
            if done == len(piece):
                return
            self._backlog = backlog = bytearray(piece[done:])
            self._runtime.watch.add(self._fd, self)
        else:
            backlog += piece
        if self.stream is not None:
            self.stream.queued = len(backlog)

    def on_accept(self) -> None:
        """A visitor has been connected from the start."""

    def on_fin(self) -> None:
        self._fin_due = True
        if self._backlog is None:
            self._output_over()

    def on_reset(self, code: Code) -> None:
        if self._fd < 0:
            return  # the connection went first
        # The stream is over but not let go: what is queued still counts against its share of the pool.
        self._discard()
        self._fin_due = False
        self._drain(MAX_OFFSET, 0.0, self._runtime.loop.time() + RESET_DRAIN_MOST, _POLL_FIRST)

    def on_lost(self) -> None:
        self._part(Code.CANCEL)
        self._abort()

    def on_stop(self) -> None:
        self._discard()
        if self._fin_due and self._backlog is None and not self._eof:
            self._later(DISCARD_TIME, lambda: self._give_up(Code.TIMEOUT))

    def on_room(self) -> None:
        """There is credit, or the tunnel can take more: send what waits, and read on."""
        stream = self.stream
        if stream is None or self._fd < 0:
            return
        stash = self._stash
        if stash is not None:
            self._stash = None
            while stash and (room := min(stream.room(), len(stash))) > 0:
                self._runtime.edge_slab[HEADER_SIZE : HEADER_SIZE + room] = stash[:room]
                self.link.write(stream.seal(self._runtime.edge_slab, room))
                stash = stash[room:]
            if stash:
                self._stash = stash
                self._hold()
                return
            if self._eof:
                self._input_over()
                return
        if self._held and stream.room() > 0:
            self._read_on()

    def _read_on(self) -> None:
        """What held reading back is over, if the tunnel takes more."""
        if self.link.blocked:
            self.link.waiting.append(self)
            return
        self._held = False
        if not self._eof:
            self._transport.resume_reading()

    # --- from the watch ------------------------------------------------------------------------------------------------

    def on_writable(self) -> None:
        backlog = self._backlog
        if backlog is None or self._fd < 0:
            return
        try:
            done = write(self._fd, backlog)
        except BlockingIOError:
            return
        except OSError:
            self._fail()
            return
        if done == len(backlog):
            self._backlog = None
        else:
            del backlog[:done]
        stream = self.stream
        if stream is not None:
            stream.queued = len(backlog) if self._backlog is not None else 0
            stream.session.now = time.monotonic()
            stream.drained()
        if self._backlog is None and self._fin_due:
            self._output_over()

    def on_hang_up(self, reset: bool, both: bool) -> None:
        # A unix socket is shut in both directions as soon as its peer has closed, TCP only after a reset or our own end.
        if reset or (both and self._tcp and not self._eof and not self._fin_due):
            self._fail()
        elif both:  # nobody reads any more: what is still to be written fails, or there is nothing
            self.on_writable()

    # --- ends ----------------------------------------------------------------------------------------------------------

    def _part(self, code: Code) -> None:
        """Every joint ends here: the stream is over (NO_ERROR when both directions have ended), or is reset with `code`."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.detach()
            if code:
                stream.reset(code)

    def _input_over(self) -> None:
        """The local side has ended its direction; so does ours, behind what is still stashed."""
        stream = self.stream
        if stream is None and self._fin_due and self._backlog is None:
            self._close()
        if stream is None or self._stash is not None:
            return
        if self._failed:
            self._give_up()
            return
        stream.fin()
        if self._fin_due and self._backlog is None:
            self._close()
        else:
            self._runtime.watch.add(self._fd, self)  # a RST after EOF is not told by the loop

    def _end(self) -> None:
        """Without a stream: end in order, behind what is still to be written. What comes until then is read away, or a RST would destroy it."""
        if self._fd >= 0:
            self._discard()
            self._fin_due = True
            if self._backlog is None:
                self._output_over()

    def _output_over(self) -> None:
        """Everything was written and the stream's direction has ended."""
        if self._failed:
            return
        if self._eof and self._stash is None:
            self._close()
            return
        if self._discarding:  # nobody wants what is still to come
            self._later(DISCARD_TIME, lambda: self._give_up(Code.TIMEOUT))
        try:
            self._transport.write_eof()
        except OSError:
            self._fail()

    def _fail(self) -> None:
        """The socket is reset. Input that came before the reset is still sent, as far as credit allows, for a moment."""
        if self._failed or self._fd < 0:
            return
        self._failed = True
        self._backlog = None
        stream = self.stream
        if stream is None:
            return  # what was read is kept for `join`, or `refuse` ends it
        if self._discarding or (self._eof and self._stash is None):
            self._give_up()
            return
        self._fail_softly(stream)

    def _fail_softly(self, stream: Stream) -> None:
        stream.queued = 0
        stream.sink = NOTHING
        now = self._runtime.loop.time()
        self._wait_for_input(stream.sent, now + RESET_DRAIN, now + RESET_DRAIN_MOST)

    def _wait_for_input(self, sent: int, until: float, most: float) -> None:
        """What came before the reset is still read, as long as that goes on (protocol.md 9.1)."""
        now = self._runtime.loop.time()
        if self.stream is not None and self.stream.sent > sent:
            sent, until = self.stream.sent, min(now + RESET_DRAIN, most)
        if now >= until:
            self._give_up()
        else:
            self._later(min(_LOOK_EVERY, until - now), lambda: self._wait_for_input(sent, until, most))

    def _give_up(self, code: Code = Code.CONNECTION_RESET) -> None:
        self._part(code)
        self._abort()

    def _discard(self) -> None:
        """From now on input is read and thrown away, so that the other side can go on to read."""
        self._discarding = True
        self._stash = None
        if self._held and not self._eof:
            self._held = False
            self._transport.resume_reading()

    def _drain(self, left: int, until: float, most: float, pause: float) -> None:
        """Wait for the peer to acknowledge what was delivered, as long as that goes on, then reset (protocol.md 9.2)."""
        if self._fd < 0:
            return
        now = self._runtime.loop.time()
        unsent = len(self._backlog or b"") + unacknowledged(self._fd)
        if unsent < left:
            left, until = unsent, min(now + RESET_DRAIN, most)
        if not unsent or now >= until:
            self._abort()
            return
        self._later(pause, lambda: self._drain(left, until, most, min(pause * 2, _POLL_MOST)))

    def _later(self, delay: float, what: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._runtime.loop.call_later(delay, what)  # type: ignore[arg-type]

    def _hold(self) -> None:
        if not self._held and not self._eof:
            self._held = True
            self._transport.pause_reading()
            self._runtime.watch.add(self._fd, self)

    def _close(self) -> None:
        """Both directions have ended: an orderly close."""
        linger(self._fd, LINGER_OFF)
        self._part(Code.NO_ERROR)
        self._transport.close()

    def _abort(self) -> None:
        """Reset the connection: the peer must see that the end is not orderly."""
        self._discarding = True
        self._backlog = None
        if self._fd >= 0:
            linger(self._fd, LINGER_RESET)
            self._transport.abort()
