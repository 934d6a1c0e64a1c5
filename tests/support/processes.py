"""`fastrelay server` and `fastrelay client` as processes of their own, and a relay made of both.

A process is started with `python -m fastrelay` on port 0, says on stdout where it is, and is killed at the end of its `with` block;
a Traceback on its stderr is a failure of the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Self

from tests.support import need, peers
from tests.support.peers import Address

ROOT = Path(__file__).resolve().parents[2]
START = 20.0
DEFAULT_PORTS = range(20_000, 21_000)


class Way:
    """How a relay is run: the tunnel under TLS or plain, on uvloop or on asyncio's own loop, and inside a WebSocket or not."""

    def __init__(self, tls: bool, loop: str, websocket: bool = False) -> None:
        self.tls = tls
        self.loop = loop
        self.websocket = websocket

    def __repr__(self) -> str:
        kind = ("wss" if self.tls else "ws") if self.websocket else "tls" if self.tls else "plain"
        return f"{kind}-{self.loop}"


WAYS = [Way(tls, loop) for tls in (True, False) for loop in ("uvloop", "asyncio")]
BEST = WAYS[0]


def environment(state: Path, **extra: str) -> dict[str, str]:
    """The environment of a process: no setting of the caller's, and a home of its own."""
    ours = ("FASTRELAY_", "XDG_", "COV_")
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(ours) and not key.lower().endswith("_proxy")
    }
    return kept | {"HOME": str(state), "XDG_STATE_HOME": str(state), "PYTHONUNBUFFERED": "1", "TERM": "dumb"} | extra


class Process:
    """A process whose lines are collected as they come."""

    def __init__(self, command: list[str], env: dict[str, str] | None = None) -> None:
        self.out: list[str] = []
        self.err: list[str] = []
        self._news = threading.Condition()
        self.popen = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.popen.stdout and self.popen.stderr
        self._readers = [
            threading.Thread(target=self._collect, args=(pipe, lines), daemon=True)
            for pipe, lines in ((self.popen.stdout, self.out), (self.popen.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _collect(self, pipe: IO[str], lines: list[str]) -> None:
        with pipe:
            for line in pipe:
                with self._news:
                    lines.append(line.rstrip("\n"))
                    self._news.notify_all()

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def stderr(self) -> str:
        return "\n".join(self.err)

    def wait_for(self, holds: Callable[[], bool], what: str, timeout: float = START) -> None:
        """Wait until `holds()`, looking at every new line; a process that ends meanwhile is a failure."""
        deadline = time.monotonic() + timeout
        while True:
            with self._news:
                if holds():
                    return
                self._news.wait(0.05)
                if holds():
                    return
            if self.popen.poll() is not None:
                self._join()
                assert holds(), f"exit code {self.popen.returncode} before {what}:\n{self.stderr}"
                return
            assert time.monotonic() < deadline, f"no {what} in {timeout:.0f} s:\n{self.stderr}"

    def line(self, number: int) -> str:
        """Line `number` of stdout, from 0."""
        self.wait_for(lambda: len(self.out) > number, f"line {number + 1} on stdout")
        return self.out[number]

    def logs(self, *words: str, since: int = 0, timeout: float = START) -> str:
        """The first line of stderr, from `since` on, with all of these words."""
        found: list[str] = []

        def look() -> bool:
            found.extend(line for line in self.err[since:] if all(word.lower() in line.lower() for word in words))
            return bool(found)

        self.wait_for(look, f"log line with {words}", timeout)
        return found[0]

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def wait(self, timeout: float = START) -> int:
        """The exit code."""
        code = self.popen.wait(timeout)
        self._join()
        return code

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.popen.kill()
        self.wait()

    def _join(self) -> None:
        for reader in self._readers:
            reader.join(START)

    def rss(self) -> int:
        """Resident memory, in KiB."""
        return self._status("VmRSS")

    def peak(self) -> int:
        """The most resident memory so far, in KiB."""
        return self._status("VmHWM")

    def _status(self, name: str) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
        assert found
        return int(found[1])

    def files(self) -> int:
        """Open file descriptors."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.kill()
        self.wait()
        if kind is None:
            assert "Traceback" not in self.stderr, f"a Traceback on stderr:\n{self.stderr}"
        elif self.err:
            print(f"--- stderr of {self}\n{self.stderr}", file=sys.stderr)

    def __str__(self) -> str:
        return f"{type(self).__name__} {self.pid}"


def fastrelay(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fastrelay", *arguments]


def once(*arguments: str, state: Path, token: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    env = environment(state) if token is None else environment(state, FASTRELAY_TOKEN=token)
    return subprocess.run(
        fastrelay(*arguments),
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START,
        check=False,
    )


def address(url: str) -> Address:
    """Host and port of `scheme://HOST:PORT`, without the brackets of IPv6."""
    found = re.fullmatch(r"[a-z0-9]+://(.+):(\d+)", url)
    assert found, f"not an address: {url!r}"
    return found[1].strip("[]"), int(found[2])


class Server(Process):
    """A relay process. `url` is what a client takes as RELAY.

    It gives out `ports`: unless told otherwise a hundred drawn at random, so that runs beside each other do not take each other's.
    """

    def __init__(
        self, state: Path, way: Way = BEST, *options: str, bind: str = "127.0.0.1:0", ports: range | None = None
    ) -> None:
        if way.loop == "uvloop":
            need.uvloop()
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.state = state
        self.way = way
        if ports is None:
            first = random.randrange(10_000, 32_000, 100)
            ports = range(first, first + 100)
        self.ports = ports
        if ports != DEFAULT_PORTS:
            options = ("--ports", f"{ports[0]}-{ports[-1]}", *options)
        plain = () if way.tls else ("--behind-proxy",) if way.websocket else ("--plaintext",)
        super().__init__(
            fastrelay("server", "--bind", bind, "--state", str(state), "--loop", way.loop, *plain, *options),
            environment(state),
        )
        try:
            self.url = self.line(0)
            if way.websocket:
                self.url = self.url.replace("tls://", "wss://")
        except BaseException:
            self.__exit__(AssertionError)
            raise

    @property
    def address(self) -> Address:
        return address(self.url)

    def token(self, *options: str) -> str:
        """The first token of this relay."""
        done = once("token", "show", "--state", str(self.state), *options, state=self.state)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) == 1, f"not a token alone on stdout: {done.stdout!r}"
        return lines[0]


class Client(Process):
    """A client process. Its state, and so its identity, is in `state`; `trust` is a file with the CAs of its machine,
    `variables` are more of its environment.
    """

    def __init__(
        self,
        relay: str,
        token: str,
        state: Path,
        *options: str,
        expose: list[str],
        loop: str = BEST.loop,
        name: str = "",
        trust: Path | None = None,
        **variables: str,
    ) -> None:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.exposed = len(expose)
        named = ("--name", name) if name else ()
        exposes = [word for spec in expose for word in ("--expose", spec)]
        env = environment(state, FASTRELAY_TOKEN=token, **variables)
        if trust:
            env["SSL_CERT_FILE"] = str(trust)
        super().__init__(fastrelay("client", relay, "--loop", loop, *named, *exposes, *options), env)

    def addresses(self) -> list[Address]:
        """Where visitors reach each exposure, in the order of `expose`, once all are reachable."""
        return [address(self.line(number)) for number in range(self.exposed)]


class Caller(Process):
    """What waits for visitors at a local port; `command` is its own, `name` whom it leads to."""

    command: str

    def __init__(
        self, relay: str, token: str, state: Path, name: str, *options: str, loop: str = BEST.loop, local: str = ""
    ) -> None:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        where = (local,) if local else ()
        super().__init__(
            fastrelay(self.command, relay, name, *where, "--loop", loop, *options),
            environment(state, FASTRELAY_TOKEN=token),
        )

    @property
    def address(self) -> Address:
        """Where local visitors connect, once they may."""
        return address(self.line(0))


class Forward(Caller):
    """`fastrelay forward`: the port leads to a service, or to a place behind a client."""

    command = "forward"


class Socks(Caller):
    """`fastrelay socks`: the port is a proxy that comes out at a client."""

    command = "socks"


def spec(target: Address | str) -> str:
    """SPEC of a target: an address, or the path of a unix socket."""
    return f"unix:{target}" if isinstance(target, str) else f"{target[0]}:{target[1]}"


class Relay:
    """A server and a client that exposes `targets`; `addresses` is where visitors reach each of them."""

    def __init__(self, home: Path, way: Way, *targets: Address | str, options: tuple[str, ...] = ()) -> None:
        self.home = home
        self.way = way
        self.targets = targets
        self.server = Server(home / "server", way, *options)
        try:
            self.token = self.server.token()
            self.client = self.start_client()
            try:
                self.addresses = self.client.addresses()
            except BaseException:
                self.client.__exit__(AssertionError)
                raise
        except BaseException:
            self.server.__exit__(AssertionError)
            raise

    def start_client(self) -> Client:
        expose = [f"t{number}={spec(target)}" for number, target in enumerate(self.targets)]
        return Client(
            self.server.url, self.token, self.home / "client", expose=expose, loop=self.way.loop, name="tested"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.client.__exit__(*error)
        finally:
            self.server.__exit__(*error)


class Echo(Process):
    """An echo (or, with --discard, a sink) in a process of its own: see tests/support/echo.py."""

    def __init__(self, *arguments: str) -> None:
        super().__init__([sys.executable, "-m", "tests.support.echo", *arguments])
        self.target: Address | str = self.line(0)
        if self.target.isdigit():
            self.target = ("127.0.0.1", int(self.target))


class Link:
    """Connections with both ends in the hands of the test: visitors go to `address`, and come out at `listener`.

    Without a relay (FASTRELAY_TEST_DIRECT=1) the two are joined by the kernel alone, which is the oracle of these tests: what holds
    for a plain TCP connection must hold through a relay.
    """

    def __init__(self, home: Path, way: Way) -> None:
        self.way = way
        self.relay: Relay | None = None
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address: Address = self.listener.getsockname()
        if not DIRECT:
            try:
                self.relay = Relay(home, way, self.address)
            except BaseException:
                self.listener.close()
                raise
            self.address = self.relay.addresses[0]

    def processes(self) -> Relay:
        """The processes between the ends."""
        if self.relay is None:
            need.missing("without a relay there is nothing to kill")
        return self.relay

    def pair(self) -> Pair:
        """A visitor and its target. One at a time: the targets come in the order of the visitors."""
        visitor = peers.connect(self.address)
        return Pair(visitor, peers.accept(self.listener))

    def pair_again(self, deadline: float) -> Pair:
        """The same while the relay comes back: tries until it works. A cookie tells this target from late ones of earlier tries."""
        while True:
            cookie = os.urandom(8)
            visitor = peers.knock(self.address)
            with contextlib.suppress(OSError):
                visitor.sendall(cookie)
                if target := self._with_cookie(visitor, cookie, deadline):
                    return Pair(visitor, target)
            visitor.close()
            assert time.monotonic() < deadline, "no new connection reached its target in time"
            time.sleep(0.01)

    def _with_cookie(self, visitor: socket.socket, cookie: bytes, deadline: float) -> socket.socket | None:
        while time.monotonic() < deadline and not peers.hang_up(visitor, 0):
            try:
                target = peers.accept(self.listener, 0.05)
            except TimeoutError:
                continue
            try:
                if peers.exactly(target, 8) == cookie:
                    return target
            except (OSError, AssertionError):
                pass
            target.close()
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.listener.close()
        if self.relay:
            self.relay.__exit__(*error)


DIRECT = os.environ.get("FASTRELAY_TEST_DIRECT") == "1"


class Pair:
    """The two ends of one relayed connection."""

    def __init__(self, visitor: socket.socket, target: socket.socket) -> None:
        self.visitor = visitor
        self.target = target

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.visitor.close()
        self.target.close()


def message(line: str) -> str:
    """What a person is told by a line of stderr, whether it is a sentence or a JSON object."""
    try:
        members = json.loads(line)
    except ValueError:
        return line
    return " ".join(str(value) for value in members.values()) if isinstance(members, dict) else line
