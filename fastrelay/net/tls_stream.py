"""A stream under TLS: towards the tunnel the outlet of a stream, towards an edge a stream itself.

    the edge                      here                                the tunnel's stream
    seal                          encrypt                             seal, as far as credit goes
    fin                           close_notify                        fin
    deliver                       decrypt                             deliver
    on_fin                        after close_notify                  on_fin
    on_reset                      what is not TLS, an end without it  on_fin

What the edge may send is what the stream may: the few bytes that encryption adds wait here when they find no credit, and until they have left
there is no room. What cannot be decrypted yet, at most one record, counts as taken: a window may be smaller than a record.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from fastrelay.errors import Code
from fastrelay.mux.stream import NOTHING, SENDING, Outlet
from fastrelay.wire import HEADER_SIZE, Kind, frame

if TYPE_CHECKING:
    from fastrelay.mux.pace import Pace
    from fastrelay.mux.session import Session
    from fastrelay.mux.stream import Stream
    from fastrelay.net.link import Link

_READ = 65_536

Done = Callable[["Stream | None", Code, str], None]
"""Told once how the handshake went: the stream under TLS, or None, why, and for people what TLS says of it, "" if nothing."""


def start_tls(stream: Stream, link: Link, context: ssl.SSLContext, host: str, done: Done) -> Callable[[], None]:
    """Be the client of a TLS handshake over an accepted stream, with whoever `context` takes for `host`. Returns what gives it up."""
    under = TlsStream(stream, link, context, host, done)
    stream.attach(under)
    under.begin()
    return under.cancel


class TlsStream:
    """What an edge asks of its stream, no more. Made by `start_tls`."""

    def __init__(self, stream: Stream, link: Link, context: ssl.SSLContext, host: str, done: Done) -> None:
        self._stream = stream
        self._link = link
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._done: Done | None = done
        self._kept = 0  # decrypted, and not taken by the edge's socket
        self._taken = 0  # of what has arrived so much counts as consumed, which never falls (protocol.md section 8.1)
        self._waits = b""  # encrypted, and there is no credit for it
        self._closed = False  # close_notify has been read: nothing more is
        self._fin = False  # nothing more is sent
        self.outlet = NOTHING
        self.sink = NOTHING
        self.sent = 0
        self.received = 0

    # --- the handshake -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLCertVerificationError as error:
            self._flush()  # the alert
            self._fail(Code.DENIED, f"its certificate is not accepted ({error.verify_message})")
            return
        except ssl.SSLError as error:
            self._flush()
            self._fail(
                Code.PROTOCOL, f"the TLS handshake failed ({(error.reason or str(error)).replace('_', ' ').lower()})"
            )
            return
        self._flush()
        done, self._done = self._done, None
        if done is not None:
            done(cast("Stream", self), Code.NO_ERROR, "")  # an edge asks no more of a stream than this has

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._done = None
        self._end(Code.CANCEL)

    def _fail(self, code: Code, why: str) -> None:
        done, self._done = self._done, None
        self._end(Code.CANCEL)
        if done is not None:
            done(None, code, why)

    def _end(self, code: Code) -> None:
        self._stream.detach()
        self._stream.reset(code)

    # --- as a stream ---------------------------------------------------------------------------------------------------

    @property
    def id(self) -> int:
        return self._stream.id

    @property
    def pace(self) -> Pace:
        return self._stream.pace

    @property
    def session(self) -> Session:
        return self._stream.session

    @property
    def moved(self) -> int:
        return self._stream.moved

    @property
    def ended(self) -> bool:
        return self._stream.ended

    @property
    def queued(self) -> int:
        return self._stream.queued

    @queued.setter
    def queued(self, size: int) -> None:
        self._kept = size
        self._count()

    def _count(self) -> None:
        """Of what has arrived, what counts as queued. Half a record has counted as taken, and that is not taken back when it is whole."""
        stream = self._stream
        stream.queued = min(self._kept, stream.received - self._taken)
        self._taken = stream.received - stream.queued

    @property
    def send_limit(self) -> int:
        stream = self._stream
        open_ = stream.send is SENDING and not self._waits and not self._fin
        return self.sent + (stream.send_limit - stream.sent if open_ else 0)

    def room(self) -> int:
        return min(self.send_limit - self.sent, self.pace.cap)

    def attach(self, outlet: Outlet) -> None:
        self.outlet = self.sink = outlet
        self._read()

    def detach(self) -> None:
        self.outlet = self.sink = NOTHING
        self._kept = 0
        self._stream.detach()
        if self._waits:  # an end in order is due behind it, and nobody sees to that any more
            self._stream.reset(Code.CANCEL)

    def seal(self, slab: memoryview, size: int) -> memoryview:
        """Encrypt the `size` bytes at slab[8:]; returns whole frames, a view of memory of its own."""
        self.sent += size
        view = slab[HEADER_SIZE : HEADER_SIZE + size]
        try:
            while view:
                view = view[self._tls.write(view) :]
        except ssl.SSLError:  # what is lost here is not the end of it: the stream ends as soon as this frame has left
            self._link.runtime.loop.call_soon(self._broken)
            return memoryview(frame(Kind.DATA, self.id))
        return memoryview(self._frames())

    def fin(self) -> None:
        if self._fin or self._stream.send is not SENDING:
            return
        self._fin = True
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # it waits for the other side's, and so do we not
        self._flush()

    def stop(self, code: Code = Code.CANCEL) -> None:
        self._stream.stop(code)

    def reset(self, code: Code) -> None:
        self._stream.reset(code)

    def drained(self) -> None:
        self._stream.drained()

    # --- as an outlet --------------------------------------------------------------------------------------------------

    def deliver(self, piece: memoryview) -> None:
        self._in.write(piece)
        if self._done is not None:
            self.begin()
        else:
            self._read()
        self._count()

    def on_accept(self) -> None:
        """It was accepted before there was TLS."""

    def on_fin(self) -> None:
        if self._done is not None:
            self._fail(Code.PROTOCOL, "it ended the connection during the TLS handshake")
        elif not self._closed:
            self._broken()  # whether that is all, nobody knows

    def on_reset(self, code: Code) -> None:
        done, self._done = self._done, None
        if done is not None:
            self._stream.detach()
            done(None, code, "")
        else:
            self.outlet.on_reset(code)

    def on_lost(self) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(None, Code.CONNECTION_RESET, "")
        else:
            self.outlet.on_lost()

    def on_stop(self) -> None:
        self._waits = b""
        if self._done is not None:
            self._fail(Code.PROTOCOL, "it ended the connection during the TLS handshake")
        else:
            self.outlet.on_stop()

    def on_room(self) -> None:
        self._flush()
        if not self._waits and self.room() > 0:
            self.outlet.on_room()

    # --- records -------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Hand on what can be decrypted."""
        while not self._closed and self.outlet is not NOTHING:
            try:
                data = self._tls.read(_READ)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                data = b""
            except ssl.SSLError:
                self._broken()
                return
            if not data:
                self._closed = True
                self._flush()
                self.outlet.on_fin()
                return
            self.received += len(data)
            self.sink.deliver(memoryview(data))
        self._flush()

    def _broken(self) -> None:
        """It is not TLS any more, or ended without saying so: to the edge that is a reset."""
        self._stream.abort(Code.CANCEL)

    def _flush(self) -> None:
        """Send what is encrypted."""
        frames = self._frames()
        if frames:
            self._link.write(frames)
        if self._fin and not self._waits:
            self._stream.fin()

    def _frames(self) -> bytes:
        """What is encrypted as DATA frames, as far as credit goes; the rest waits."""
        data = self._waits + self._out.read()
        if not data:
            return b""
        stream = self._stream
        frames = bytearray()
        at = 0
        while at < len(data) and (size := min(stream.room(), len(data) - at)) > 0:
            slab = bytearray(HEADER_SIZE) + data[at : at + size]
            frames += stream.seal(memoryview(slab), size)
            at += size
        self._waits = data[at:] if stream.send is SENDING else b""
        return bytes(frames)
