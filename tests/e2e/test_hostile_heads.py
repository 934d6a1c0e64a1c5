"""Nobody behind the front reads a request in another way than the front did: nginx and HAProxy say what they have read, each in its answer."""

from __future__ import annotations

import http.client
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.front.http.test_messages import HOSTILE
from tests.support import need, peers
from tests.support.web import DOMAIN, Web

pytestmark = pytest.mark.slow

HOST = f"web.{DOMAIN}".encode()
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: " + HOST + b"\r\n\r\n"
SECOND = SMUGGLED.replace(b"/smuggled", b"/second")
GET = b"GET /first HTTP/1.1\r\nHost: " + HOST + b"\r\n"
POST = b"POST /first HTTP/1.1\r\nHost: " + HOST + b"\r\n"
COUNTED = b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
ODD = [
    *(
        GET + field + b"\r\n\r\n"
        for field in (b"Connection: content-length, host", b"X:", b"X: \x80\xff", b"X:\t a\tb \t", b"Expect: x")
    ),
    *(GET + b"X: " + b"y" * size + b"\r\n\r\n" for size in (4_000, 15_000)),
    *(POST + COUNTED, POST + b"Connection: x-none, content-length\r\nConnection: keep-alive\r\n" + COUNTED),
    *(POST + b"content-LENGTH:%d\r\n\r\n" % len(SMUGGLED) + SMUGGLED, POST + b"Content-Length: 0\r\n\r\n"),
    *(GET + COUNTED, b"DELETE" + POST[4:] + COUNTED, b"OPTIONS" + POST[4:] + COUNTED),
    *(
        POST + coding + b"\r\n\r\n" + CHUNKS
        for coding in (b"Transfer-Encoding: chunked", b"TRANSFER-encoding:\tChunked")
    ),
    POST + b"Transfer-Encoding: chunked\r\nConnection: transfer-encoding\r\nTE: trailers\r\n\r\n" + CHUNKS,
    POST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS.replace(b"\r\n", b";a=b\r\n", 1),
    POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"0000" + CHUNKS,
    POST + b"Transfer-Encoding: chunked\r\nTrailer: X\r\n\r\n" + CHUNKS[:-2] + b"X: Content-Length: 9\r\n\r\n",
    b"\r\n" + GET + b"\r\n",
    b"GET http://%b/first HTTP/1.1\r\nHost: %b\r\n\r\n" % (HOST, HOST),
    b"GET /first HTTP/1.1\r\nHost: %b:81\r\n\r\n" % HOST.upper(),
]
"""What is odd and right: behind each the next request begins where everybody must see it."""


def nginx(directory: Path, port: int) -> list[str]:
    conf = directory / "nginx.conf"
    conf.write_text(
        f"daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log /dev/null; events {{}}\n"
        f"http {{ access_log off; large_client_header_buffers 4 32k; server {{ listen 127.0.0.1:{port}; underscores_in_headers on;\n"
        '  location / { return 200 "read $request_method $uri"; } } }\n'
    )
    return [need.program("nginx"), "-c", str(conf), "-p", str(directory)]


def haproxy(directory: Path, port: int) -> list[str]:
    conf = directory / "haproxy.cfg"
    conf.write_text(
        "global\n  tune.bufsize 65536\ndefaults\n  mode http\n  timeout client 9s\n  timeout http-request 9s\n"
        f"frontend f\n  bind 127.0.0.1:{port}\n  http-request wait-for-body time 5s\n"
        '  http-request return status 200 content-type text/plain lf-string "read %[method] %[path]"\n'
    )
    return [need.program("haproxy"), "-f", str(conf), "-db"]


@pytest.fixture(scope="module", params=[nginx, haproxy], ids=["nginx", "haproxy"])
def web(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    home, port = tmp_path_factory.mktemp("hostile"), peers.free_port()
    program = subprocess.Popen(
        request.param(home, port), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        peers.until(lambda: peers.listens(("127.0.0.1", port)), "the target listens")
        with Web(home, expose=(f"web=http://127.0.0.1:{port}",)) as made:
            yield made
    finally:
        program.kill()
        program.wait()


def said(visitor: socket.socket, method: str = "GET") -> tuple[int, bytes]:
    answer = http.client.HTTPResponse(visitor, method=method)
    answer.fp = Unbuffered(visitor)  # type: ignore[assignment]
    answer.begin()
    return answer.status, answer.read()


class Unbuffered:
    """A file of a socket that reads no further than it is asked to: what follows is the next answer."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def readline(self, limit: int = -1) -> bytes:
        line = b""
        while not line.endswith(b"\n") and (byte := self.sock.recv(1)):
            line += byte
        return line

    def read(self, size: int = -1) -> bytes:
        data = b""
        while size < 0 or len(data) < size:
            piece = self.sock.recv(size - len(data) if size >= 0 else 65_536)
            if not piece:
                break
            data += piece
        return data

    def readinto(self, view: bytearray) -> int:
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def flush(self) -> None: ...
    def close(self) -> None: ...


@pytest.mark.parametrize("raw", ODD, ids=range(len(ODD)))
def test_the_next_request_begins_where_it_does(web: Web, raw: bytes) -> None:
    method = raw.lstrip().partition(b" ")[0].decode()
    with web.visitor() as visitor:
        visitor.sendall(raw + SECOND)
        status, body = said(visitor)
        if status != 200:  # the target would not have it, and says so
            assert 400 <= status < 600 and b"from the relay" not in body and b"smuggled" not in body
            return
        assert body == f"read {method} /first".encode()
        assert said(visitor) == (200, b"read GET /second")


def test_none_of_the_hostile_gets_through(web: Web) -> None:
    """Each in a breath with a request that must not be seen."""
    passed = []
    for raw in HOSTILE:
        hostile = raw.replace(b"a.example", HOST)
        with web.visitor() as visitor:
            visitor.sendall(hostile + SMUGGLED)
            visitor.shutdown(socket.SHUT_WR)
            answer = b""
            try:
                while piece := visitor.recv(65_536):
                    answer += piece
            except ConnectionResetError:
                pass
            if b"\r\n\r\nread " in answer or answer[9:10] not in (b"4", b"5", b""):
                passed.append((raw, answer))
    assert not passed
