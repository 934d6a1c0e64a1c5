"""The HTTP front with real programs: curl, a WebSocket library, a browser's questions; and what a visitor is told when there is no answer."""

from __future__ import annotations

import base64
import hashlib
import http.client
import http.server
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import websockets.sync.client
import websockets.sync.server

from tests.support import need, peers
from tests.support.peers import background
from tests.support.web import DOMAIN, Web, head, request, switched, upgrade

BODY = os.urandom(3_000_000)


class Site(http.server.BaseHTTPRequestHandler):
    """Answers GET with BODY, in chunks if it is asked so, and others with the SHA-256 of their body."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/chunks":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(BODY), 100_000):
                piece = BODY[at : at + 100_000]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)

    def do_PUT(self) -> None:
        found = hashlib.sha256(self.rfile.read(int(self.headers["Content-Length"]))).hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(found)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    closed = peers.free_port()
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as site,
        websockets.sync.server.serve(echo, "127.0.0.1", 0, max_size=None) as ws,
    ):
        for server in (site, ws):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        expose = (
            f"web=http://127.0.0.1:{site.server_address[1]}",
            f"ws=http://127.0.0.1:{ws.socket.getsockname()[1]}",
            f"gone=http://127.0.0.1:{closed}",
            "mine=http://127.0.0.1:{port}",
            "secret=http://127.0.0.1:{port}",
        )
        options = ("--visitors", "mine=192.0.2.0/24", "--auth", "secret=alice:open sesame")
        try:
            with Web(tmp_path_factory.mktemp("web"), *options, expose=expose) as one:
                yield one
        finally:
            site.shutdown()
            ws.shutdown()


def echo(connection: websockets.sync.server.ServerConnection) -> None:
    for message in connection:
        connection.send(message)


def ask(web: Web, raw: bytes) -> tuple[int, str]:
    """Status and text of the one answer to this."""
    with web.visitor() as visitor:
        visitor.sendall(raw)
        answer = http.client.HTTPResponse(visitor)
        answer.begin()
        return answer.status, answer.read().decode()


def curl(web: Web, url: str, *options: str) -> bytes:
    command = [need.program("curl"), "-sS", "--fail", "--max-time", "20", "--cacert", str(web.authority.path)]
    for port in (web.http[1], web.https[1]):
        command += ["--resolve", f"web.{DOMAIN}:{port}:127.0.0.1"]
    return subprocess.run([*command, *options, url], check=True, capture_output=True, timeout=30).stdout


def test_a_client_prints_where_its_services_are(web: Web) -> None:
    assert web.urls[0] == f"https://web.{DOMAIN}:{web.https[1]}"


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("path", ["length", "chunks"])
def test_curl_loads(web: Web, scheme: str, path: str) -> None:
    port = (web.https if scheme == "https" else web.http)[1]
    assert curl(web, f"{scheme}://web.{DOMAIN}:{port}/{path}") == BODY


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_curl_stores(web: Web, scheme: str, tmp_path: Path) -> None:
    """A large body, for which curl asks with Expect: 100-continue."""
    (tmp_path / "body").write_bytes(BODY)
    port = (web.https if scheme == "https" else web.http)[1]
    said = curl(web, f"{scheme}://web.{DOMAIN}:{port}/x", "-T", str(tmp_path / "body"))
    assert said.decode() == hashlib.sha256(BODY).hexdigest()


@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
def test_a_websocket(web: Web, tls: bool) -> None:
    context = ssl.create_default_context(cafile=web.authority.path) if tls else None
    where = web.https if tls else web.http
    with websockets.sync.client.connect(
        f"{'wss' if tls else 'ws'}://ws.{DOMAIN}:{where[1]}/", sock=peers.connect(where), ssl=context, max_size=None
    ) as visitor:
        for message in (BODY, "words", b"", BODY[:70_000]):
            visitor.send(message)
            assert visitor.recv(timeout=20) == message
    assert visitor.protocol.close_code == 1000


@pytest.mark.parametrize(
    ("host", "fields", "status", "words"),
    [
        (f"nobody.{DOMAIN}", (), 404, "no service called nobody.home.example"),
        ("elsewhere.example", (), 404, "no service called elsewhere.example"),
        (f"gone.{DOMAIN}", (), 502, "refused the connection"),
        (f"mine.{DOMAIN}", (), 403, "not in the list"),
        (f"secret.{DOMAIN}", (), 401, "user name and a password"),
        (f"web.{DOMAIN}", (f"Host: gone.{DOMAIN}",), 400, "one Host, not 2"),
    ],
)
def test_what_a_visitor_is_told(web: Web, host: str, fields: tuple[str, ...], status: int, words: str) -> None:
    found = ask(web, request("/", *fields, host=host))
    assert found[0] == status and words in found[1] and found[1].startswith("<!doctype html>")


def test_who_shows_the_password_comes_in(web: Web) -> None:
    with web.visitor() as visitor:
        visitor.sendall(
            request(
                "/", "Authorization: Basic " + base64.b64encode(b"alice:open sesame").decode(), host=f"secret.{DOMAIN}"
            )
        )
        with web.target() as target:
            assert b"uthorization" not in head(target)
            target.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            assert head(visitor).startswith(b"HTTP/1.1 204 ")
    assert "sesame" not in web.client.stderr + web.server.stderr


@pytest.mark.parametrize("host", [DOMAIN, "127.0.0.1", "[::1]:80", "localhost"])
def test_health(web: Web, host: str) -> None:
    assert ask(web, request("/healthz", host=host)) == (200, "ok\n")


def test_plain_words_to_the_https_port(web: Web) -> None:
    with peers.connect(web.https) as visitor:
        visitor.sendall(request())
        assert head(visitor).startswith(b"HTTP/1.1 400 ")


def test_a_client_that_goes_and_comes(tmp_path: Path) -> None:
    """What was asked is answered, what is idle does not keep it; away is 502, and afterwards all is as before."""
    with Web(tmp_path) as web, web.visitor() as busy, web.visitor() as idle:
        busy.sendall(request("/busy"))
        slow = web.target()
        head(slow)
        idle.sendall(request("/idle"))
        with web.target() as target:
            head(target)
            target.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            head(idle)
            web.client.signal(signal.SIGTERM)
            assert target.recv(1) == b"", "nobody needs it any more"
            peers.until(lambda: ask(web, request())[0] == 502, "the service is away")
        assert "not connected" in ask(web, request())[1]
        with slow:
            slow.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            assert head(busy).startswith(b"HTTP/1.1 200 ") and peers.exactly(busy, 2) == b"ok"
        assert web.client.wait() == 0
        idle.sendall(request("/idle"))
        assert head(idle).startswith(b"HTTP/1.1 502 ")
        for visitor in (idle, busy):
            visitor.close()
        web.restart_client()
        with web.visitor() as visitor:
            visitor.sendall(request("/again"))
            with web.target() as target:
                assert head(target).startswith(b"GET /again ")
                # The relay goes down: this is answered, and then its connection ends.
                web.server.signal(signal.SIGTERM)
                peers.until(lambda: not peers.listens(web.http), "nobody new comes in")
                target.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                assert b"\r\nConnection: close\r\n" in head(visitor)
                assert peers.exactly(visitor, 2) == b"ok" and visitor.recv(1) == b""
        assert web.server.wait() == 0


def test_a_tunnel_that_is_lost(tmp_path: Path) -> None:
    """A page where there was no answer yet, and never half an answer that looks whole."""
    with Web(tmp_path) as web, web.visitor() as early, web.visitor() as late:
        early.sendall(request("/early"))
        with web.target() as target:
            head(target)
            late.sendall(request("/late"))
            with web.target() as other:
                head(other)
                other.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
                head(late)
                peers.exactly(late, 4)
                web.client.kill()
                assert head(early).startswith(b"HTTP/1.1 502 ")
                with pytest.raises(ConnectionResetError):
                    late.recv(1)


def test_the_audit_log_is_told_of_each_stream(tmp_path: Path) -> None:
    def told(event: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    def ended(streams: int) -> None:
        peers.until(lambda: len(told("visitor.closed")) == streams, f"{streams} streams have ended")

    with Web(tmp_path, server=("--audit", str(tmp_path / "audit"))) as web:
        for tls in (False, True):
            with web.visitor(tls) as visitor:
                visitor.sendall(request("/1") + request("/2"))
                with web.target() as target:
                    for _ in range(2):
                        head(target)
                        target.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                        head(visitor)
                ended(1 + 2 * tls)  # the target has ended the first stream: this one is another
                visitor.sendall(upgrade())
                with web.target() as target:
                    head(target)
                    target.sendall(switched())
                    head(visitor)
                    peers.reset(target)
                    with pytest.raises(ConnectionResetError):
                        visitor.recv(1)
        ended(4)
        opened, closed = told("visitor.opened"), told("visitor.closed")
        assert [line["stream"] for line in opened] == [line["stream"] for line in closed]
        assert [line["cause"] for line in closed] == ["cancel", "target-reset"] * 2
        for line in opened + closed:
            assert (line["service"], line["name"]) == ("web", "web") and str(line["visitor"]).startswith("127.0.0.1:")


@pytest.mark.slow
def test_a_renewed_certificate(tmp_path: Path) -> None:
    with Web(tmp_path) as web:
        before = web.authority.path.read_bytes()
        with web.visitor(tls=True) as first:
            web.renew()
            web.server.logs("certificate.loaded")
            assert web.authority.path.read_bytes() != before
            with web.visitor(tls=True) as second:  # which trusts the new authority alone
                for visitor in (second, first):
                    visitor.sendall(request("/", host=f"nobody.{DOMAIN}"))
                    assert head(visitor).startswith(b"HTTP/1.1 404 ")


@pytest.mark.slow
def test_slow_heads_keep_nobody_out(tmp_path: Path) -> None:
    """2,000 connections that say a byte now and then, from one address; good visitors come in beside them at once."""
    need.files(6000)
    with Web(tmp_path) as web:
        slow: list[socket.socket] = []
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.5):
                for sock in slow:
                    try:
                        sock.send(b"x")
                    except OSError:
                        pass

        try:
            for _ in range(2000):
                slow.append(peers.connect(web.http))
                slow[-1].sendall(b"GET / HTTP/1.1\r\nX: ")
            dripping = background(drip)
            for number in range(20):
                begun = time.monotonic()
                with web.visitor(tls=number % 2 == 1) as visitor:
                    visitor.sendall(request())
                    with web.target() as target:
                        head(target)
                        target.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
                        head(visitor)
                assert time.monotonic() - begun < 1
            stop.set()
            dripping.result(peers.TIMEOUT)
            assert web.server.files() < 1200
            web.server.logs("limit.reached", "max-greetings")
        finally:
            stop.set()
            for sock in slow:
                sock.close()
