"""One stream as a transport of asyncio: the end of a stream that is a protocol of this process, and no socket (protocol.md section 9).

    the protocol                   the stream           the stream          the protocol
    write                          room, seal           deliver             data_received, the rest is kept while reading is paused
    write_eof                      fin                  on_fin              eof_received, behind what is kept
    close                          fin, stop            on_stop             what is written is thrown away
    abort                          reset                on_reset            connection_lost, behind what is kept, as long as that moves
                                                        on_lost             connection_lost at once
    resume_reading                 drained              on_room             resume_writing

Credit is given back for what the protocol has taken: one that pauses reading stops the sender at the other end. Callbacks of the protocol may
do anything, also end the stream; what they raise is told to the loop's exception handler, and the connection is aborted, as loops do.
"""

from __future__ import annotations

import asyncio
import time
from asyncio import sslproto
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from fastrelay.errors import Code
from fastrelay.log import CAUSES
from fastrelay.mux.stream import NOTHING, Recv
from fastrelay.wire import RESET_DRAIN, RESET_DRAIN_MOST

if TYPE_CHECKING:
    import ssl

    from fastrelay.mux.stream import Stream
    from fastrelay.net.link import Link
    from fastrelay.net.runtime import Runtime

_MOST = 262_144
"""Bytes that a protocol is given in one call, as loops do: one that pauses reading after it holds no more than that."""
HIGH_WATER: Final = 65_536
"""Bytes: `pause_writing` is called when more than so many wait, unless `set_write_buffer_limits` says otherwise."""


class StreamTransport(asyncio.Transport):
    """Made with its protocol, given to `Session.open` as the outlet or to `join` with a stream that was accepted.

    Of a stream that this side opens, `accepted` tells when it stands; the protocol's `connection_made` was called by then. `extra` is what
    `get_extra_info` knows. Errors of `connection_lost`: ConnectionResetError, whose text says why.
    """

    _start_tls_compatible = True  # what asyncio's own `start_tls` asks for

    def __init__(self, runtime: Runtime, protocol: asyncio.BaseProtocol, extra: dict[str, Any]) -> None:
        super().__init__(extra)
        self._runtime = runtime
        self._protocol: asyncio.BaseProtocol | None = protocol
        self._stream: Stream | None = None
        self._link: Link | None = None
        self._opening: asyncio.Future[Code] | None = None
        self._made = False  # the protocol knows of us
        self._backlog: bytearray | None = None  # taken from the tunnel, not yet by the protocol
        self._reading = True
        self._pumping = False  # a call of `_pump` is due
        self._fin = False  # the stream's direction has ended: eof_received when the backlog is gone
        self._reset: Code | None = None  # the stream was reset behind the backlog
        self._timer: asyncio.TimerHandle | None = None
        self._until = 0.0
        self._output = bytearray()  # written by the protocol, not yet taken by the tunnel
        self._eof = False  # the protocol writes no more
        self._deaf = False  # nobody wants what is written
        self._waits = False  # for room in the tunnel
        self._closing = False
        self._shut = False  # the protocol wants nothing more
        self._paused = False  # the protocol was asked not to write
        self._high, self._low = HIGH_WATER, HIGH_WATER // 4

    # --- joining -------------------------------------------------------------------------------------------------------

    def join(self, stream: Stream, link: Link) -> None:
        """Connect with a stream, on which this side has called `accept` or that it has opened just now."""
        self._runtime.edge_made(-1)
        self._stream = stream
        self._link = link
        if stream.ended:  # the tunnel may have failed under the ACCEPT or OPEN of this very stream
            self.on_lost()
            return
        stream.attach(self)
        if stream.recv is Recv.PENDING:
            self._opening = self._runtime.loop.create_future()
        else:
            self._begin()

    async def accepted(self) -> Code:
        """Wait for the other side's answer to a stream that was opened: NO_ERROR, or what it was refused with. Cancelled, it is given up."""
        if self._opening is None:
            return Code.NO_ERROR if self._made else Code.CONNECTION_RESET
        try:
            return await self._opening
        except asyncio.CancelledError:
            self._end(None, Code.CANCEL)
            raise

    def _begin(self) -> None:
        self._made = True
        assert self._protocol is not None
        try:
            self._protocol.connection_made(self)
        except Exception as error:
            self._failed(error, "connection_made")

    # --- asyncio: reading ----------------------------------------------------------------------------------------------

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._pump_soon()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None, "the connection is over"
        return self._protocol

    # --- asyncio: writing ----------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        with memoryview(data) as view, view.cast("B") as piece:
            if not len(piece) or self._deaf or self._closing:
                return
            done = 0 if self._output else self._send(piece)
            if done == len(piece) or self._deaf:
                return
            self._output += piece[done:]
        if len(self._output) > self._high and not self._paused:
            self._paused = True
            self._tell_room("pause_writing")

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._eof and not self._closing:
            self._eof = True
            if not self._output:
                self._output_over()

    def get_write_buffer_size(self) -> int:
        return len(self._output)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not 0 <= low <= high:
            raise ValueError(f"high ({high}) must be >= low ({low}) must be >= 0")
        self._high, self._low = high, low

    # --- asyncio: ends -------------------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """What was written is still sent, then this direction ends. The other side is told that nobody reads any more."""
        stream = self._stream
        if stream is None or self._shut:
            return
        self._shut = self._closing = True
        if self._reset is not None:
            self._end(_reset_error(self._reset), self._reset)
            return
        stream.stop()
        self._drop_input(stream)
        if not self._output:
            self._output_over()

    def abort(self) -> None:
        self._end(None, Code.CONNECTION_RESET)

    def _force_close(self, error: BaseException | None) -> None:  # what asyncio's TLS calls when it fails
        self._end(error if isinstance(error, Exception) else None, Code.CONNECTION_RESET)

    # --- from the stream -----------------------------------------------------------------------------------------------

    def deliver(self, piece: memoryview) -> None:
        backlog = self._backlog
        if backlog is None:
            done = self._give(piece) if self._reading else 0
            if done == len(piece) or self._stream is None or self._shut:
                return
            self._backlog = backlog = bytearray(piece[done:])
        else:
            backlog += piece
        if self._stream is not None:
            self._stream.queued = len(backlog)

    def on_accept(self) -> None:
        self._begin()
        if self._opening is not None and not self._opening.done():
            self._opening.set_result(Code.NO_ERROR)

    def on_fin(self) -> None:
        self._fin = True
        self._input_over()

    def on_reset(self, code: Code) -> None:
        self._reset = code or Code.CONNECTION_RESET
        self._closing = True
        self._drop_output()
        if self._backlog is None:
            self._input_over()
        else:  # while it is kept the stream keeps its share of the pool
            self._until = self._runtime.loop.time() + RESET_DRAIN_MOST
            self._linger(self._reset)

    def on_lost(self) -> None:
        self._end(ConnectionResetError("Connection reset: the tunnel was lost"), Code.CONNECTION_RESET)

    def on_stop(self) -> None:
        self._drop_output()
        if self._closing:
            self._output_over()

    def on_room(self) -> None:
        """There is credit, or the tunnel can take more: send what waits."""
        self._waits = False
        output = self._output
        if self._stream is None or not output:
            return
        with memoryview(output) as piece:
            done = self._send(piece)
        if output is not self._output:
            return  # the tunnel was lost meanwhile
        del output[:done]
        if self._paused and len(output) <= self._low:
            self._paused = False
            self._tell_room("resume_writing")
        if not self._output and (self._eof or self._closing):
            self._output_over()

    # --- what is sent --------------------------------------------------------------------------------------------------

    def _send(self, piece: memoryview) -> int:
        """Send of `piece` what credit, the tunnel and the others allow; returns how many bytes that were."""
        stream, link = self._stream, self._link
        if stream is None or link is None:
            return 0
        pace = stream.pace
        shared = (
            not pace.alone and len(piece) > pace.cap
        )  # in company a stream gets one frame, then the others have their turn
        done = link.send(stream, piece[: pace.cap] if shared else piece)
        if done < len(piece) and not self._waits:
            if link.blocked:
                self._waits = True
                link.waiting.append(self)
            elif shared and stream.room():
                self._waits = True
                link.yielded(self)
        return done

    def _output_over(self) -> None:
        """Everything was sent that will be."""
        stream = self._stream
        if stream is not None:
            stream.fin()
            if self._closing:
                self._end(None)

    def _drop_output(self) -> None:
        self._deaf = True
        self._output = bytearray()
        if self._paused:
            self._paused = False
            self._tell_room("resume_writing")

    def _tell_room(self, what: str) -> None:
        if self._protocol is None:
            return
        try:
            getattr(self._protocol, what)()
        except Exception as error:
            self._failed(error, what)

    # --- what is received ----------------------------------------------------------------------------------------------

    def _give(self, piece: memoryview) -> int:
        """Give the protocol of `piece` what it wants now; returns how many bytes that were."""
        done = 0
        try:
            while done < len(piece) and self._reading and self._stream is not None:
                if self._shut:
                    return len(piece)
                protocol = self._protocol
                part = piece[done : done + _MOST]
                if isinstance(protocol, asyncio.BufferedProtocol):
                    with memoryview(protocol.get_buffer(len(part))) as buffer:
                        part = part[: len(buffer)]
                        buffer[: len(part)] = part
                    if not len(part):
                        raise RuntimeError("get_buffer() returned an empty buffer")
                    done += len(part)
                    protocol.buffer_updated(len(part))
                else:
                    done += len(part)
                    protocol.data_received(bytes(part))  # type: ignore[union-attr]
        except Exception as error:
            self._failed(error, "data_received")
        return done

    def _pump_soon(self) -> None:
        if not self._pumping:
            self._pumping = True
            self._runtime.loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Reading goes on: what was kept first."""
        self._pumping = False
        stream, backlog = self._stream, self._backlog
        if stream is None or not self._reading:
            return
        if backlog is not None:
            with memoryview(backlog) as piece:
                done = self._give(piece)
            if self._stream is None or self._backlog is None:
                return
            if done == len(backlog):
                self._backlog = None
            else:
                del backlog[:done]
            stream.queued = len(backlog) if self._backlog is not None else 0
            stream.session.now = time.monotonic()
            stream.drained()
            if done and self._reset is not None:
                self._linger(self._reset)
        self._input_over()

    def _linger(self, code: Code) -> None:
        """Be reset when the backlog has not moved for RESET_DRAIN (protocol.md 9.2)."""
        if self._timer is not None:
            self._timer.cancel()
        loop = self._runtime.loop
        self._timer = loop.call_at(min(loop.time() + RESET_DRAIN, self._until), self._end, _reset_error(code), code)

    def _input_over(self) -> None:
        """Tell the protocol of the end of what it was given, if it has come."""
        if self._backlog is not None or self._stream is None:
            return
        if self._reset is not None:
            self._end(_reset_error(self._reset), self._reset)
        elif self._fin and self._reading and not self._shut:
            self._fin = False
            protocol = self._protocol
            try:
                stays = protocol.eof_received()  # type: ignore[union-attr]
            except Exception as error:
                self._failed(error, "eof_received")
                return
            if not stays:
                self.close()

    def _drop_input(self, stream: Stream) -> None:
        self._backlog = None
        stream.sink = NOTHING
        if stream.queued:
            stream.queued = 0
            stream.drained()

    # --- ends ----------------------------------------------------------------------------------------------------------

    def _failed(self, error: Exception, where: str) -> None:
        self._runtime.loop.call_exception_handler(
            {
                "message": f"Fatal error: protocol.{where}() call failed.",
                "exception": error,
                "transport": self,
                "protocol": self._protocol,
            }
        )
        self._end(error, Code.INTERNAL)

    def _end(self, error: Exception | None, code: Code = Code.NO_ERROR) -> None:
        """Every end comes here: the stream goes on without us (NO_ERROR), or is reset with `code`."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        self._closing = self._deaf = True
        self._backlog = None
        self._output = bytearray()
        self._link = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        stream.detach()
        if code:
            stream.reset(code)
        opening = self._opening
        if opening is not None and not opening.done():
            opening.set_result(self._reset or code)
        self._runtime.loop.call_soon(self._gone, error)

    def _gone(self, error: Exception | None) -> None:
        protocol, self._protocol = self._protocol, None
        self._runtime.edge_gone()
        if self._made and protocol is not None:
            protocol.connection_lost(error)


def _reset_error(code: Code) -> ConnectionResetError:
    return ConnectionResetError(f"Connection reset by the other side: {CAUSES[code]}")


def tls(
    loop: asyncio.AbstractEventLoop,
    protocol: asyncio.BaseProtocol,
    context: ssl.SSLContext,
    ready: asyncio.Future[None],
    *,
    server_hostname: str | None = None,
    server_side: bool = False,
    handshake_time: int | None = None,
) -> tuple[asyncio.BufferedProtocol, asyncio.Transport]:
    """A protocol for a StreamTransport that puts TLS between it and `protocol`, and the transport that `protocol` gets; on any loop, as uvloop's
    own TLS takes its own transports only.

    `ready` is done when the handshake is, or has its exception (ssl.SSLError, ConnectionError, also after `handshake_time` seconds, 60
    unless given). `protocol` is connected by then. TLS has no half-close here: one end ends both.
    """
    made: Any = sslproto.SSLProtocol(
        loop, protocol, context, ready, server_side, server_hostname, ssl_handshake_timeout=handshake_time
    )
    return made, made._app_transport


async def start_tls(
    transport: StreamTransport,
    protocol: asyncio.BaseProtocol,
    context: ssl.SSLContext,
    *,
    server_hostname: str | None = None,
    server_side: bool = False,
    handshake_time: int | None = None,
) -> asyncio.Transport:
    """Begin TLS on a stream that stands: what is said from now on is for `protocol`, through the transport that is returned. Raises as `tls`."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    made, over = tls(
        loop,
        protocol,
        context,
        ready,
        server_hostname=server_hostname,
        server_side=server_side,
        handshake_time=handshake_time,
    )
    transport.set_protocol(made)
    made.connection_made(transport)
    try:
        await ready
    except BaseException:
        transport.abort()
        raise
    return over
