"""Every example does what it says, as a process of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fastrelay import sync
from fastrelay.auth import Token
from tests.e2e.test_private import Postgres
from tests.e2e.test_ssh import Sshd
from tests.support import need
from tests.support.grants import make_token

HERE = Path(__file__).parent
TIME = 60


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of the relay."""
    return tmp_path_factory.mktemp("relay")


@pytest.fixture(scope="module")
def relay(directory: Path) -> Iterator[sync.Server]:
    web = {"http": "127.0.0.1:0", "domain": "home.example"}
    with sync.Server(bind="127.0.0.1:0", state=directory, drain=0, **web) as server:
        yield server


@pytest.fixture(scope="module")
def guest(relay: sync.Server, directory: Path) -> str:
    """A token as `fastrelay token new guest --dial 127.0.0.1:1-65535 --through home` makes it."""
    made = make_token(directory, "guest", names=[], dial=["127.0.0.1:1-65535"], through=["home"])
    return dataclasses.replace(made, pins=Token.parse(relay.token).pins).text()


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


class Example:
    """`python NAME ARGUMENTS`. All have one state directory: to the relay they are one installation."""

    def __init__(self, state: Path, *words: str) -> None:
        self._environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent), "XDG_STATE_HOME": str(state)}
        self._words = [sys.executable, *words]

    def run(self, **environment: str) -> str:
        """To its end; what it prints."""
        done = subprocess.run(
            self._words,
            cwd=HERE,
            env={**self._environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIME,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def __enter__(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        # Shells start what runs in the background deaf to SIGINT, and that is handed on.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self._process = subprocess.Popen(
            self._words, cwd=HERE, env=self._environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
        signal.signal(signal.SIGINT, before)
        return self._process

    def __exit__(self, kind: object, *_: object) -> None:
        process = self._process
        if kind is not None:
            process.kill()
        errors = process.communicate(timeout=TIME)[1]
        assert kind is not None or (process.returncode, errors) == (0, ""), errors


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.slow
def test_a_webhook(state: Path) -> None:
    words = ["-q", "-p", "fastrelay.testing", "-p", "no:cacheprovider", "-W", "error", "-c", "/dev/null"]
    told = Example(state, "-m", "pytest", *words, str(HERE / "webhook.py")).run(
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", FASTRELAY_RELAY="", FASTRELAY_TOKEN=""
    )
    assert "2 passed" in told


@pytest.mark.slow
def test_fastapi(relay: sync.Server, state: Path) -> None:
    with Example(state, "fastapi_app.py", relay.url, relay.token) as process:
        with urllib.request.urlopen(line(process), timeout=TIME) as answer:
            assert json.load(answer) == {"hello": "127.0.0.1"}
        process.send_signal(signal.SIGINT)


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, HTTPServer)
        body = str(self.server.server_port).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.mark.slow
def test_web(relay: sync.Server, state: Path) -> None:
    """The host name alone decides who answers."""
    with HTTPServer(("127.0.0.1", 0), Page) as blog, HTTPServer(("127.0.0.1", 0), Page) as shop:
        for server in (blog, shop):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        sites = [f"{name}={server.server_port}" for name, server in (("blog", blog), ("shop", shop))]
        with Example(state, "web.py", relay.url, relay.token, *sites) as process:
            for name, server in (("blog", blog), ("shop", shop)):
                url = urllib.parse.urlsplit(line(process))
                assert url.hostname == f"{name}.home.example"
                request = urllib.request.Request(f"http://127.0.0.1:{url.port}/", headers={"Host": url.netloc})
                with urllib.request.urlopen(request, timeout=TIME) as answer:
                    assert int(answer.read()) == server.server_port
        for server in (blog, shop):
            server.shutdown()


@pytest.fixture
def page() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def home(relay: sync.Server, state: Path) -> Iterator[sync.Tunnel]:
    """A client that dials for others."""
    rules = ["127.0.0.1"]
    with sync.connect(relay.url, token=relay.token, name="home", state=state, allow_dial=rules, drain=0) as tunnel:
        yield tunnel


@pytest.mark.slow
def test_dial_through(relay: sync.Server, guest: str, home: sync.Tunnel, page: HTTPServer, state: Path) -> None:
    port = str(page.server_port)
    assert Example(state, "dial_through.py", relay.url, guest, home.name, "127.0.0.1", port).run() == f"{port}\n"


@pytest.mark.slow
def test_socks(relay: sync.Server, guest: str, home: sync.Tunnel, page: HTTPServer, state: Path) -> None:
    need.program("curl")
    url = f"http://127.0.0.1:{page.server_port}/"
    told = Example(state, "socks.py", relay.url, guest, home.name, "-sS", "--max-time", "30", url).run()
    assert told == str(page.server_port)


@pytest.mark.slow
def test_ssh(relay: sync.Server, state: Path, tmp_path: Path) -> None:
    need.program("ssh")
    with Sshd(tmp_path) as sshd, Example(state, "ssh.py", relay.url, relay.token, str(sshd.address[1])) as process:
        command, option, port, who = line(process).split()
        assert (command, option) == ("ssh", "-p")
        shown = sshd.ssh((who.partition("@")[2], int(port)), "echo through the relay")
        done = subprocess.run(
            shown, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIME, check=False
        )
        assert done.stdout == "through the relay\n", done.stderr


@pytest.fixture
def database() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory(prefix="fastrelay-postgres-", ignore_cleanup_errors=True) as home:
        with Postgres(Path(home)) as made:  # another user must get there
            yield made


@pytest.mark.slow
def test_psql(relay: sync.Server, state: Path, database: Postgres) -> None:
    need.program("psql")
    with sync.connect(relay.url, token=relay.token, name="database", state=state, drain=0) as home:
        home.expose(f"db=private://{database.address[1]}")
        query = "select sum(i), md5(string_agg(i::text, ',')) from generate_series(1, 100000) i"
        told = Example(
            state, "psql.py", relay.url, relay.token, "db", "-U", "tested", "-At", "-c", query, "postgres"
        ).run()
    text = ",".join(map(str, range(1, 100_001)))
    assert told.strip() == f"5000050000|{hashlib.md5(text.encode()).hexdigest()}"
