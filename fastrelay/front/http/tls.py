"""A visitor of the HTTP front under TLS. OpenSSL works between two buffers of memory (RFC 8446), so this is an Edge as the others are: it reads
where they read, and what it writes waits where theirs waits.

    the socket ──▶ incoming ──▶ SSLObject ──▶ slab ──▶ HttpVisitor
    the socket ◀── outgoing ◀── SSLObject ◀─────────── HttpVisitor

A direction ends with close_notify: ours before the FIN, theirs instead of it. What ends without one may have been cut by anybody: behind an
upgrade, where nothing else tells what is whole, that is a reset.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, cast

from fastrelay.errors import MessageError
from fastrelay.front.http.pages import answer
from fastrelay.front.http.seeker import Seeker

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastrelay.front.http.lobby import Lobby
    from fastrelay.front.http.way import Route
    from fastrelay.net.runtime import Runtime


class HttpsVisitor(Seeker):
    __slots__ = ("_decrypt", "_incoming", "_outgoing", "_shaken", "_tls", "_told")

    def __init__(self, runtime: Runtime, route: Route, lobby: Lobby, context: ssl.SSLContext) -> None:
        super().__init__(runtime, route, "https", lobby)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._decrypt = cast(
            "Callable[[int, memoryview], int]", self._tls.read
        )  # with a buffer it returns how many bytes
        self._shaken = False  # the handshake is done
        self._told = False  # that no more is written, or nobody would understand it

    # --- from the visitor ----------------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._runtime.floor_view

    def buffer_updated(self, nbytes: int) -> None:
        self._incoming.write(self._runtime.floor_view[:nbytes])
        self._pump()

    def eof_received(self) -> bool:
        self._incoming.write_eof()
        if self._told and not self._shaken:
            super().eof_received()
        else:
            self._pump()
        return True

    def _pump(self) -> None:
        """Decrypt what is there, as long as somebody takes it."""
        if self._fd < 0 or (self._told and not self._shaken):
            self._incoming.read()  # nobody wants it
            return
        try:
            if not self._shaken:
                self._tls.do_handshake()
                self._shaken = True
            while not self._held and not self._eof and self._fd >= 0:
                view = super().get_buffer(-1)
                size = self._decrypt(len(view), view)
                if not size:
                    super().eof_received()
                    break
                super().buffer_updated(size)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            super().eof_received()
        except ssl.SSLError as error:
            if (
                isinstance(error, ssl.SSLEOFError) or error.reason == "UNEXPECTED_EOF_WHILE_READING"
            ):  # of Python before 3.11.4
                self._cut()
            else:
                self._garbled(error)
        self._flush()

    def _cut(self) -> None:
        """The connection has ended, and nobody said so in TLS."""
        self._failed = self._failed or self._raw  # before, a head or body that is not whole shows
        super().eof_received()

    def _garbled(self, error: ssl.SSLError) -> None:
        if self._shaken:
            self._give_up()
            return
        self._told = True
        if error.reason == "HTTP_REQUEST":
            super()._emit(answer(MessageError(400, "This port speaks HTTPS: write https:// in place of http://.")), 0)
        self._flush()
        self._end()

    def _read_on(self) -> None:
        super()._read_on()
        self._go_on()

    def _discard(self) -> None:
        super()._discard()
        self._go_on()

    def _go_on(self) -> None:
        """What was read before is decrypted now, if it was held."""
        if not self._held and (self._incoming.pending or self._incoming.eof or self._tls.pending()):
            self._runtime.loop.call_soon(self._pump)

    # --- to the visitor ------------------------------------------------------------------------------------------------

    def _emit(self, data: bytes | memoryview, taken: int) -> None:
        if not self._shaken:
            return  # there is no way to say it
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                done += self._tls.write(view[done:])
        super()._emit(self._outgoing.read(), taken)

    def _flush(self) -> None:
        """Write what TLS itself has to say."""
        if self._outgoing.pending and self._fd >= 0:
            super()._emit(self._outgoing.read(), 0)

    def _output_over(self) -> None:
        if not self._told:
            self._told = True
            if self._shaken:
                try:
                    self._tls.unwrap()
                except ssl.SSLError:
                    pass  # close_notify is written; that theirs is not here yet is what it says
                self._flush()
                if self._backlog is not None:
                    return  # and come back behind it
        super()._output_over()
