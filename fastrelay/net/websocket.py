"""A tunnel inside a WebSocket (protocol.md 2.1): a layer between a link and its transport.

The link takes the layer for its transport, and its bytes come through the layer: so all that a link, an edge and a session know holds here as
well, and a native tunnel never meets this file. What is written in one call becomes one message.

Invariant: before the handshake is done nothing but HTTP is said and heard, and at most MAX_HEAD bytes of it are kept.
"""

from __future__ import annotations

import http
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from fastrelay import __version__
from fastrelay.errors import Code, HandshakeError, ProtocolError
from fastrelay.mux.floods import OPTIONAL, Floods
from fastrelay.net.framing import BINARY, CLOSE, PING, PONG, Unframer, frame
from fastrelay.net.heads import END, forwarded_for, head_size
from fastrelay.net.link import Core, Layer, Link
from fastrelay.net.outbox import SMALL
from fastrelay.wire import MAX_HEAD, MAX_MESSAGE, WEBSOCKET

if TYPE_CHECKING:
    from websockets.http11 import Response

CLOSE_CODES: Final = {Code.NO_ERROR: 1000, Code.SHUTDOWN: 1001, Code.PROTOCOL: 1002, Code.INTERNAL: 1011}
"""What Close says behind GOAWAY; for other codes it is the code and 4000."""
_ORDERLY: Final = (1000, 1001)
_NO_STATUS: Final = 1005
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[ \r]")
_SILENT: Final = logging.Logger("websockets", logging.CRITICAL + 1)  # noqa: LOG001 - not to be found by name, nor to be heard
"""What is worth a line is told by whoever the link works for."""
_HINTS: Final = {
    301: "use the address that it redirects to",
    302: "use the address that it redirects to",
    307: "use the address that it redirects to",
    308: "use the address that it redirects to",
    404: "check the path",
    426: "something on the way does not pass WebSocket on",
    502: "a proxy there does not reach the relay",
    503: "a proxy there does not reach the relay",
    504: "a proxy there does not reach the relay",
}


class WebSocket(Unframer, Layer):
    """Made when the link is connected. `then` is called once the handshake is done, and returns what is fed first: the greeting."""

    def __init__(self, link: Link, then: Callable[[], Core], *, dialer: bool) -> None:
        Unframer.__init__(self, masked=not dialer)
        Layer.__init__(self)
        self.core: Core | None = None
        """What the payload of messages is fed to; there once the handshake is done."""
        self._then = then
        self._dialer = dialer
        self._link = link
        self._out = link.transport
        self._open = False  # messages may be written
        self._head = bytearray()
        self._pong: bytes | None = None  # of the newest Ping, while it is not answered
        self._floods = Floods(link.runtime.limits)
        # What a transport keeps of a view outlives the slab; TLS encrypts at once.
        self._keeps = self._out.get_extra_info("ssl_object") is None
        link.through(self)

    # --- what arrives --------------------------------------------------------------------------------------------------

    def feed(self, chunk: memoryview, now: float) -> None:
        if self.core is None:
            chunk = self._shake(chunk)
            if self.core is None:
                return
        self.unframe(chunk, now)
        if self._pong is not None and not self._link.blocked:
            self._answer()

    def _shake(self, chunk: memoryview) -> memoryview:
        """Take what belongs to the head; returns what comes behind it."""
        head = self._head
        before = len(head)
        head += chunk[: MAX_HEAD + 1 - before]
        size = head_size(head)
        if size > len(head):
            return chunk[:0]
        del head[size:]
        self._on_head(bytes(head))
        self._head = bytearray()
        self._open = True
        self._link.first_bytes = b"WebSocket"  # it does speak our protocol, so far
        self.core = self._then()
        return chunk[size - before :]

    def _on_head(self, head: bytes) -> None:
        """Raises HandshakeError when there is nothing to talk about; the other side is answered before that."""
        raise NotImplementedError

    def on_payload(self, piece: memoryview, now: float) -> None:
        assert self.core is not None
        self.core.feed(piece, now)

    def on_control(self, opcode: int, payload: bytes, now: float) -> None:
        if opcode == CLOSE:
            self._on_close(payload)
            return
        self._floods.charge(OPTIONAL, now)
        if opcode == PING:
            self._pong = payload

    def on_empty(self, now: float) -> None:
        self._floods.charge(OPTIONAL, now)

    def _on_close(self, payload: bytes) -> None:
        code = _close_code(payload)
        if code is None:
            raise ProtocolError(Code.PROTOCOL, "WebSocket: Close has no code that can be")
        self.stopped = True
        if self._link.error is None and code not in _ORDERLY:
            self._link.error = ConnectionAbortedError(
                f"the other side, or a proxy on the way, has closed the WebSocket with the code {code}"
            )
        self._say(CLOSE, b"" if code == _NO_STATUS else code.to_bytes(2))
        self._open = False
        self._out.close()

    # --- what leaves ---------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._open:
            return  # a goodbye to one who does not understand it, or does not listen any more
        if self._pong is not None:
            self._answer()
        if len(data) <= MAX_MESSAGE:
            self._say(BINARY, data)
            return
        view = memoryview(data)
        for at in range(0, len(view), MAX_MESSAGE):
            self._say(BINARY, view[at : at + MAX_MESSAGE])

    def _answer(self) -> None:
        assert self._pong is not None
        payload, self._pong = self._pong, None
        self._say(PONG, payload)

    def _say(self, opcode: int, payload: bytes | bytearray | memoryview) -> None:
        head, body = frame(opcode, payload, self._dialer)
        if len(body) <= SMALL or (body is payload and self._keeps):
            self._out.write(head + body)
        else:
            self._out.writelines((head, body))

    def _say_close(self) -> None:
        if self._open:
            error = self._link.error
            code = error.code if isinstance(error, ProtocolError) else Code.NO_ERROR
            self._say(CLOSE, CLOSE_CODES.get(code, 4000 + code).to_bytes(2))
            self._open = False

    # --- what else a link asks of its transport ------------------------------------------------------------------------

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """No more is written: the last word of a goodbye."""
        if self._open:
            self._say_close()
        elif self._out.can_write_eof():
            self._out.write_eof()
        else:  # TLS says so, and waits for the other side's word
            self._out.close()

    def close(self) -> None:
        self._say_close()
        self._out.close()

    def abort(self) -> None:
        self._out.abort()

    def is_closing(self) -> bool:
        return self._out.is_closing()

    def pause_reading(self) -> None:
        self._out.pause_reading()

    def resume_reading(self) -> None:
        self._out.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._out.get_extra_info(name, default)


class RelaySide(WebSocket):
    """Takes tunnels at `path`. `proxied`: a proxy in front says whose they are."""

    def __init__(self, link: Link, then: Callable[[], Core], path: str, *, proxied: bool) -> None:
        self._path = path
        self._proxied = proxied
        self._answered = False
        super().__init__(link, then, dialer=False)

    def _on_head(self, head: bytes) -> None:
        response, why = self._judge(head)
        self._answered = True
        self._out.write(response.serialize())
        status = response.status_code
        if status != 101:
            raise HandshakeError(status, f"it was answered {status} {_phrase(status)} ({why:.100})")
        if self._proxied and (whose := forwarded_for(head)) is not None:
            self._link.peer = whose

    def _judge(self, head: bytes) -> tuple[Response, str]:
        """The answer, and why it is no unless it is yes."""
        from websockets.exceptions import TooManyHeaders
        from websockets.http11 import Request
        from websockets.server import ServerProtocol

        server = ServerProtocol(origins=[None], subprotocols=[_subprotocol()], logger=_SILENT)
        if len(head) > MAX_HEAD:
            return server.reject(431, f"The head has more than {MAX_HEAD} bytes.\n"), "its head is too long"
        if head.endswith(END):
            server.receive_data(head)
        for request in server.events_received():
            assert isinstance(request, Request)
            if request.path.partition("?")[0] == self._path:
                return server.accept(request), _let_go(server.handshake_exc)
            return server.reject(404, "There is nothing here.\n"), "it asks for another path"
        _let_go(server.handshake_exc)
        if isinstance(server.handshake_exc, TooManyHeaders):
            return server.reject(431, "The head has too many fields.\n"), "its head has too many fields"
        why = "it speaks TLS" if head[:1] == b"\x16" else "that is no HTTP"
        return server.reject(400, "This is no request in HTTP.\n"), why

    def write_eof(self) -> None:
        if self.core is None and not self._answered:
            from websockets.server import ServerProtocol

            self._answered = True
            late = ServerProtocol(logger=_SILENT).reject(408, "The handshake took too long.\n")
            self._out.write(late.serialize())
        super().write_eof()


class ClientSide(WebSocket):
    """Asks for a tunnel at `path` of `host` and `port`; `tls` says whether that is below TLS."""

    def __init__(self, link: Link, then: Callable[[], Core], host: str, port: int, path: str, *, tls: bool) -> None:
        from websockets.client import ClientProtocol
        from websockets.uri import WebSocketURI

        super().__init__(link, then, dialer=True)
        self._client = ClientProtocol(
            WebSocketURI(tls, host, port, path, ""), subprotocols=[_subprotocol()], logger=_SILENT
        )
        request = self._client.connect()
        request.headers["User-Agent"] = f"fastrelay/{__version__}"
        self._client.send_request(request)
        self._out.write(b"".join(self._client.data_to_send()))

    def _on_head(self, head: bytes) -> None:
        found = _STATUS.match(head)
        if found is None or not head.endswith(END):
            raise HandshakeError(0, "it does not speak HTTP, or says too much")
        status = int(found[1])
        if status != 101:
            hint = _HINTS.get(status)
            raise HandshakeError(status, f"it answers {status} {_phrase(status)}" + (f": {hint}" if hint else ""))
        self._client.receive_data(head)
        if _let_go(self._client.handshake_exc) or self._client.subprotocol is None:
            raise HandshakeError(status, "what answers there takes WebSocket, but is no relay")

    def write_eof(self) -> None:
        if self.core is None:
            self._out.abort()  # whom it has asked for nothing is owed no goodbye
        else:
            super().write_eof()


def _close_code(payload: bytes) -> int | None:
    """What a Close says; None for one without sense."""
    from websockets.exceptions import ProtocolError as Broken
    from websockets.frames import Close

    try:
        return int(Close.parse(payload).code)
    except (Broken, UnicodeDecodeError):
        return None


def _let_go(error: BaseException | None) -> str:
    """What it says, "" for none. Its traceback knows our frames, and so who keeps it: a cycle that only the collector would find."""
    text = "" if error is None else str(error)
    while error is not None:
        error.__traceback__ = None
        error = error.__context__
    return text


def _subprotocol() -> Any:
    from websockets.typing import Subprotocol

    return Subprotocol(WEBSOCKET)


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "with a status of its own"
