"""A proxy that knows CONNECT and nothing else, in threads; it resolves names that only it knows."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from typing import Self

from tests.support.peers import TIMEOUT, Address


class ConnectProxy:
    """`names` is where each `HOST:PORT` leads; another one is answered 403. With `credentials`, USER:PASSWORD, nobody else gets through.

    `requests` are the heads that came.
    """

    def __init__(self, names: dict[str, Address] | None = None, *, credentials: str = "", answer: bytes = b"") -> None:
        self.names = names or {}
        self.requests: list[str] = []
        self._expected = f"Basic {base64.b64encode(credentials.encode()).decode()}" if credentials else ""
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: Address = self._listener.getsockname()
        self._socks: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.settimeout(TIMEOUT)
                self._socks.append(sock)
                threading.Thread(target=self._pass_on, args=(sock,), daemon=True).start()

    def _pass_on(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            head = b""
            while b"\r\n\r\n" not in head:
                piece = sock.recv(4096)
                if not piece:
                    return
                head += piece
            text = head.decode("latin-1")
            self.requests.append(text)
            answer, where = (self._answer, None) if self._answer else self._judge(text)
            sock.sendall(answer)
            if where is None:
                return
            with socket.create_connection(where, TIMEOUT) as far:
                far.settimeout(None)
                sock.settimeout(None)
                self._socks.append(far)
                back = threading.Thread(target=_copy, args=(far, sock), daemon=True)
                back.start()
                _copy(sock, far)
                back.join(TIMEOUT)

    def _judge(self, text: str) -> tuple[bytes, Address | None]:
        """The answer, and where it leads."""
        words = text.partition("\r\n")[0].split(" ")
        if words[0] != "CONNECT" or len(words) != 3:
            return b"HTTP/1.1 405 Method Not Allowed\r\n\r\n", None
        if self._expected and f"Proxy-Authorization: {self._expected}\r\n" not in text:
            return b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n", None
        if words[1] not in self.names:
            return b"HTTP/1.1 403 Forbidden\r\n\r\n", None
        return b"HTTP/1.1 200 Connection established\r\n\r\n", self.names[words[1]]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
