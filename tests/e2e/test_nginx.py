"""nginx behind the client: many requests on kept connections, and many connections of one request each, without one error."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.conftest import SPREAD, TWICE
from tests.support import need
from tests.support.peers import TIMEOUT, Address, connect, free_port, listens, until
from tests.support.processes import DIRECT, Process, Relay, Way

BODY = "hello from behind the relay\n"


class Nginx(Process):
    """nginx on loopback, in the foreground, with everything it writes in `home`."""

    def __init__(self, home: Path) -> None:
        self.address: Address = ("127.0.0.1", free_port())
        temporary = "".join(
            f"{kind}_temp_path {home}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (home / "nginx.conf").write_text(
            f"""
            daemon off; pid {home}/pid; error_log stderr; worker_processes 1;
            events {{ worker_connections 8192; }}
            http {{
                access_log off; keepalive_requests 1000000000; {temporary}
                server {{ listen 127.0.0.1:{self.address[1]} backlog=4096; location / {{ return 200 "{BODY.strip()}\\n"; }} }}
            }}
            """,
            encoding="utf-8",
        )
        super().__init__([need.program("nginx"), "-p", str(home), "-e", "stderr", "-c", str(home / "nginx.conf")])
        try:
            until(lambda: listens(self.address), "nginx listens")
        except BaseException:
            self.__exit__(AssertionError)
            raise

    def __exit__(self, *error: object) -> None:
        self.popen.terminate()  # the master ends its workers; a killed one would not
        self.wait()
        super().__exit__(*error)


@pytest.fixture(scope="module", params=SPREAD, ids=repr)
def way(request: pytest.FixtureRequest) -> Way:
    assert isinstance(request.param, Way)
    return request.param


@pytest.fixture(scope="module")
def public(way: Way, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """Where the relay offers nginx."""
    need.files(12_000)
    with Nginx(tmp_path_factory.mktemp("nginx")) as nginx:
        if DIRECT:
            yield nginx.address
            return
        with Relay(tmp_path_factory.mktemp("relay"), way, nginx.address) as relay:
            yield relay.addresses[0]


def test_wrk_for_2_seconds(public: Address, way: Way) -> None:
    wrk(public, way, 2)


@pytest.mark.slow
@pytest.mark.parametrize("way", TWICE, indirect=True, ids=repr, scope="module")
def test_wrk_for_30_seconds(public: Address, way: Way) -> None:
    wrk(public, way, 30)


def wrk(public: Address, way: Way, seconds: int) -> None:
    """256 connections, each kept."""
    command = [
        need.program("wrk"),
        "-t",
        "2",
        "-c",
        "256",
        "-d",
        f"{seconds}s",
        "--timeout",
        "20s",
        f"http://{public[0]}:{public[1]}/",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Socket errors" not in done.stdout, done.stdout
    assert "Non-2xx" not in done.stdout, done.stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    assert rate and float(rate[1]) > 100, done.stdout
    print(f"\n{way}: wrk, 256 connections, {seconds} s: {float(rate[1]):.0f} requests/s, 0 errors")


@pytest.mark.parametrize("number", [500, pytest.param(5000, marks=pytest.mark.slow)])
def test_connections_of_one_request(public: Address, way: Way, number: int) -> None:
    def once(_: int) -> bool:
        with connect(public) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\nHost: relayed\r\n\r\n")
            answer = b""
            while piece := sock.recv(65_536):
                answer += piece
        return answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(BODY.encode())

    start = time.monotonic()
    with ThreadPoolExecutor(32) as pool:
        good = sum(pool.map(once, range(number), timeout=number / 50 + TIMEOUT))
    took = time.monotonic() - start
    print(f"\n{way}: {good} of {number} connections of one request each, {number / took:.0f} a second")
    assert good == number
