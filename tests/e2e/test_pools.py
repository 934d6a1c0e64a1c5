"""Three clients on one service, as processes: under load while one is killed, stopped, cut off, or has lost its target."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.peers import Address, connect, exactly, hang_up, until
from tests.support.processes import BEST, Client, Server
from tests.support.processes import address as address_of
from tests.support.web import DOMAIN, head, request

NAMES = ("a", "b", "c")


class Target:
    """Says who it is to everybody, and echoes."""

    def __init__(self, name: str, *, http: bool = False) -> None:
        self.name = name.encode()
        self.http = http
        self.port = 0
        self.open()

    def open(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                threading.Thread(target=self._answer, args=(sock,), daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, AssertionError), sock:
            if self.http:
                while True:
                    head(sock)
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + self.name)
            sock.sendall(self.name)
            while piece := sock.recv(65_536):
                sock.sendall(piece)

    def close(self) -> None:
        """Who comes from now on is refused."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


class Three:
    """A relay, and three clients of a pool; each test leaves all of them there."""

    def __init__(self, home: Path, stack: contextlib.ExitStack) -> None:
        self.home = home
        self.server = stack.enter_context(Server(home / "server", BEST, "--limit", "answer-time=2s"))
        self.token = self.server.token()
        self.targets = {name: Target(name) for name in NAMES}
        for target in self.targets.values():
            stack.callback(target.close)
        self.clients = {name: stack.enter_context(self.client(name)) for name in NAMES}
        addresses = {client.addresses()[0] for client in self.clients.values()}
        assert len(addresses) == 1, "one port for all"
        self.address: Address = addresses.pop()
        self.stack = stack
        self.visitors: list[socket.socket] = []

    def client(self, name: str) -> Client:
        expose = [f"web={self.targets[name].port}"]
        return Client(self.server.url, self.token, self.home / name, "--pool", "web", expose=expose, name=name)

    def visit(self) -> tuple[str, socket.socket]:
        """A visitor, and who has it."""
        sock = connect(self.address)
        self.visitors.append(sock)
        return exactly(sock, 1).decode(), sock


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    with contextlib.ExitStack() as stack:
        yield Three(tmp_path_factory.mktemp("three"), stack)


@pytest.fixture(autouse=True)
def nobody_is_left(three: Three) -> Iterator[None]:
    yield
    for sock in three.visitors:
        sock.close()
    three.visitors.clear()


class Load:
    """Visitors one after the other, in several threads: each asks, hears its answer and ends."""

    def __init__(self, three: Three, threads: int = 4) -> None:
        self.went: Counter[str] = Counter()
        self.lost = 0
        self._three = three
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                with connect(self._three.address) as sock:
                    sock.sendall(b"12345678")
                    sock.shutdown(socket.SHUT_WR)
                    answer = b""
                    while piece := sock.recv(100):
                        answer += piece
                assert answer[1:] == b"12345678", answer
                self.went[answer[:1].decode()] += 1
            except OSError:
                self.lost += 1

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(20)


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_one_of_three_goes_under_load(three: Three, how: signal.Signals) -> None:
    """Killed, its visitors are reset at once; stopped, nothing is lost. The next ones go on with the others."""
    stay = [three.visit() for _ in range(30)]
    assert Counter(name for name, _ in stay) == dict.fromkeys(NAMES, 10), "even to the last"
    load = Load(three)
    until(lambda: sum(load.went.values()) > 100, "there is load")
    began = dict(load.went)
    three.clients["b"].signal(how)
    start = time.monotonic()
    if how is signal.SIGKILL:
        assert all(hang_up(sock, 5) for name, sock in stay if name == "b")
        took = time.monotonic() - start
        assert took < 1.0
        print(f"\nten visitors of a client that was killed were reset within {took * 1000:.0f} ms")
    else:
        for name, sock in stay:
            if name == "b":
                sock.sendall(b"still")
                assert exactly(sock, 5) == b"still"
                sock.close()
        assert three.clients["b"].wait() == 0
    here = Counter(load.went)
    until(lambda: sum((Counter(load.went) - here).values()) > 200, "it goes on")
    load.stop()
    assert load.lost <= (4 if how is signal.SIGKILL else 0), "at most those that were on their way"
    assert min(began[name] for name in NAMES) > 0.2 * max(began.values()), f"spread: {began}"
    for name, sock in stay:
        if name != "b":
            sock.sendall(b"still")
            assert exactly(sock, 5) == b"still"
    again = three.clients["b"] = three.stack.enter_context(three.client("b"))
    assert again.addresses() == [three.address]
    until(lambda: three.visit()[0] == "b", "who is back gets visitors")


@pytest.mark.slow
def test_a_client_that_is_cut_off(three: Three) -> None:
    """Its process hangs, so nothing is reset: a visitor waits for it for `answer-time`, and then goes to another; the next ones do at once."""
    turns = [three.visit()[0] for _ in range(3)]
    while set(turns[-3:]) != set(NAMES):
        turns.append(three.visit()[0])
    three.clients["a"].signal(signal.SIGSTOP)
    start = time.monotonic()
    went = [three.visit()[0] for _ in range(6)]
    took = time.monotonic() - start
    print(f"\nsix visitors while one of three clients hangs: {went} after {took:.1f} s")
    assert "a" not in went and 2.0 <= took < 3.5
    three.server.logs("limit.reached", "answer-time")
    three.clients["a"].signal(signal.SIGCONT)
    until(lambda: three.visit()[0] == "a", "after a rest it is asked again")


def test_a_target_that_is_down_costs_nobody_anything(three: Three) -> None:
    three.targets["a"].close()
    went = Counter(three.visit()[0] for _ in range(20))
    assert went == {"b": 10, "c": 10}
    three.clients["a"].logs("target.failed")
    assert len([line for line in three.clients["a"].err if '"target.failed"' in line]) <= 2, "it is left alone"
    three.targets["a"].open()


@pytest.mark.slow
def test_the_port_over_a_restart_of_the_relay(three: Three) -> None:
    """Whoever is back first, the pool has its port."""
    bind = f"127.0.0.1:{three.server.address[1]}"
    three.server.kill()
    with Server(three.server.state, bind=bind, ports=range(three.server.ports[0], three.server.ports[-1] + 1)):
        went: set[str] = set()

        def all_back() -> bool:
            with contextlib.suppress(OSError, AssertionError):
                went.add(three.visit()[0])
            return went == set(NAMES)

        until(all_back, "all three are back on the same port")


def asked(sock: socket.socket) -> str:
    """Who answers the next request of a connection; the status, if that is not 200."""
    sock.sendall(request())
    status = head(sock).split()[1].decode()
    return exactly(sock, 1).decode() if status == "200" else status


@pytest.mark.slow
def test_an_http_service_of_several_clients(tmp_path: Path) -> None:
    """A connection stays with who has it; each new one goes to the least loaded; who is down costs nothing but a retry that nobody sees."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(tmp_path / "s", BEST, "--http", "127.0.0.1:0", "--domain", DOMAIN))
        front, token = address_of(server.line(1)), server.token()
        targets = [Target(name, http=True) for name in NAMES]
        clients = []
        for target in targets:
            stack.callback(target.close)
            name = target.name.decode()
            expose = [f"web=http://127.0.0.1:{target.port}"]
            client = Client(server.url, token, tmp_path / name, "--pool", "web", expose=expose, name=name)
            clients.append(stack.enter_context(client))
        assert {client.line(0) for client in clients} == {f"http://web.{DOMAIN}:{front[1]}"}
        visitors = [stack.enter_context(connect(front)) for _ in range(6)]
        went = [asked(sock) for sock in visitors]
        assert Counter(went) == dict.fromkeys(NAMES, 2)
        assert [asked(sock) for sock in visitors] == went, "a connection stays with the client that has it"
        targets[0].close()
        fresh = [stack.enter_context(connect(front)) for _ in range(4)]
        assert Counter(asked(sock) for sock in fresh) == {"b": 2, "c": 2}, "and no page of an error"
        start = time.monotonic()
        clients[0].signal(signal.SIGTERM)
        assert clients[0].wait() == 0
        assert time.monotonic() - start < 5, "connections that wait for nothing hold nobody up"
        again = [asked(sock) for sock, who in zip(visitors, went, strict=True) if who == "a"]
        assert set(again) <= {"b", "c"}
        clients[1].kill()
        assert {asked(sock) for sock in (*visitors, *fresh)} == {"c"}, "where nothing was under way nothing is lost"
        with connect(front) as sock:
            assert asked(sock) == "c"
            clients[2].kill()
            assert asked(sock) == "502"
