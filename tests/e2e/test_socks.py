"""Real programs at the doors of what a client dials: curl and ssh over SOCKS5 and CONNECT, and ssh over `fastrelay dial`."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.test_ssh import Sshd
from tests.support import need
from tests.support.payload import Checker, Keystream
from tests.support.peers import TIMEOUT, Address, End, background, exactly, free_port, read_to_end, send_and_end
from tests.support.processes import BEST, Client, Forward, Server, Socks, environment, fastrelay, once

pytestmark = pytest.mark.slow
MIB = 1 << 20
BODY = Keystream("curl").take(4 * MIB)


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def do_POST(self) -> None:
        digest = hashlib.sha256(self.rfile.read(int(self.headers["Content-Length"]))).hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(digest)))
        self.end_headers()
        self.wfile.write(digest)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


class System(NamedTuple):
    server: Server
    client: Client
    proxy: Socks
    token: str
    web: int
    forbidden: int
    home: Path

    @property
    def at(self) -> Address:
        return self.proxy.address

    def caller(self, *words: str) -> tuple[list[str], dict[str, str]]:
        """Command and environment of `fastrelay WORD RELAY …`."""
        command, *rest = words
        return fastrelay(command, self.server.url, *rest), environment(self.home / "v", FASTRELAY_TOKEN=self.token)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A relay, the client "home", which dials all ports of this machine but one, and the proxy."""
    home = tmp_path_factory.mktemp("socks")
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    forbidden = free_port()
    allowed = f"127.0.0.0/8:1-{forbidden - 1},{forbidden + 1}-65535"
    with contextlib.ExitStack() as stack:
        stack.callback(web.server_close)
        stack.callback(web.shutdown)
        server = stack.enter_context(Server(home / "server", BEST))
        made = once(
            "token", "new", "me", "--dial", "127.0.0.0/8", "--dial", "*", "--through", "home", "--state", str(server.state), state=home
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        token = made.stdout.strip()
        options = ("--allow-dial", allowed)
        client = stack.enter_context(
            Client(server.url, server.token(), home / "client", *options, expose=[], name="home")
        )
        client.logs("Dials for others")
        server.logs("Tokens have changed")
        proxy = stack.enter_context(Socks(server.url, token, home / "v", "home"))
        assert proxy.line(0).startswith("socks5h://127.0.0.1:")
        yield System(server, client, proxy, token, web.server_port, forbidden, home)


def curl(*words: str) -> subprocess.CompletedProcess[bytes]:
    command = [need.program("curl"), "-sS", "-m", "30", "--noproxy", "", *words]
    return subprocess.run(command, capture_output=True, timeout=60, stdin=subprocess.DEVNULL, check=False)


@pytest.fixture(params=["socks5-hostname", "connect"])
def way(request: pytest.FixtureRequest, system: System) -> list[str]:
    """What makes curl go through the proxy."""
    at = f"{system.at[0]}:{system.at[1]}"
    return ["--socks5-hostname", at] if request.param == "socks5-hostname" else ["-p", "-x", f"http://{at}"]


def test_curl(system: System, way: list[str], tmp_path: Path) -> None:
    for host in ("127.0.0.1", "localhost"):
        done = curl(*way, f"http://{host}:{system.web}/")
        assert done.returncode == 0, done.stderr
        assert done.stdout == BODY
    (tmp_path / "body").write_bytes(BODY)
    done = curl(*way, "--data-binary", f"@{tmp_path / 'body'}", f"http://localhost:{system.web}/")
    assert done.stdout.decode() == hashlib.sha256(BODY).hexdigest(), done.stderr


@pytest.mark.parametrize(
    ("host", "port", "socks", "status"),
    [
        ("127.0.0.1", "forbidden", 2, 403),  # the client's rules
        ("10.0.0.5", "web", 2, 403),  # the token
        ("127.0.0.1", "nobody", 5, 502),
        ("nobody.invalid", "web", 4, 502),
    ],
)
def test_curl_is_told_why(system: System, way: list[str], host: str, port: str, socks: int, status: int) -> None:
    number = {"forbidden": system.forbidden, "web": system.web, "nobody": free_port()}[port]
    done = curl(*way, "-w", "%{http_connect}", f"http://{host}:{number}/")
    told = done.stderr.decode()
    if "-p" in way:
        assert done.returncode == 56 and done.stdout.decode().endswith(str(status)), (done, told)
    else:
        assert done.returncode == 97 and f"({socks})" in told, (done, told)


def test_halves_end_on_their_own(system: System) -> None:
    """4 MiB each way, the first direction over before the second has begun."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(system.at, TIMEOUT) as sock:
        sock.sendall(f"CONNECT 127.0.0.1:{listener.getsockname()[1]} HTTP/1.1\r\n\r\n".encode())
        with listener.accept()[0] as there:
            there.settimeout(TIMEOUT)
            assert exactly(sock, 39).startswith(b"HTTP/1.1 200 ")
            for source, sink, seed in ((sock, there, "there"), (there, sock, "back")):
                sending = background(send_and_end, source, Keystream(seed), 4 * MIB)
                checker = Checker(seed)
                assert read_to_end(sink, checker) is End.EOF and checker.received == 4 * MIB
                sending.result(TIMEOUT)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    need.program("ssh")
    need.program("sshd")
    with Sshd(tmp_path_factory.mktemp("sshd")) as made:
        yield made


@pytest.mark.parametrize("door", ["dial", "socks", "connect"])
def test_ssh(system: System, sshd: Sshd, door: str) -> None:
    if door == "dial":
        words, env = system.caller("dial", "home/%h:%p")
        command = " ".join(words)
    else:
        kind = "5" if door == "socks" else "connect"
        command, env = (
            f"{need.program('nc')} -X {kind} -x {system.at[0]}:{system.at[1]} %h %p",
            environment(system.home),
        )
    done = subprocess.run(
        sshd.ssh(sshd.address, "-o", f"ProxyCommand={command}", "cat; echo you are in; exit 7"),
        input=b"x" * MIB, capture_output=True, timeout=60, env=env, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == (b"x" * MIB + b"you are in\n", 7), done.stderr


def test_dial_says_why_not(system: System) -> None:
    words, env = system.caller("dial", f"home/127.0.0.1:{system.forbidden}")
    done = subprocess.run(words, input="", capture_output=True, text=True, timeout=60, env=env, check=False)
    assert done.returncode == 3 and not done.stdout
    assert "The client 'home' refuses to dial" in done.stderr and "--allow-dial" in done.stderr
    line = json.loads(system.client.logs("dial.denied", str(system.forbidden)))
    assert (line["rule"], line["target"]) == ("port", f"127.0.0.1:{system.forbidden}")


def test_forward(system: System) -> None:
    with Forward(system.server.url, system.token, system.home / "v", f"home/127.0.0.1:{system.web}") as forward:
        done = curl("http://{}:{}/".format(*forward.address))
        assert done.returncode == 0 and done.stdout == BODY, done.stderr
