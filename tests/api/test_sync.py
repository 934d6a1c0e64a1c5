"""The same without a loop: calls that block, from any thread."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fastrelay import sync
from fastrelay.errors import ExposeError, NoServiceError, StartError, UnreachableError
from tests.support.peers import background, connect, free_port


@pytest.fixture
def server(tmp_path: Path) -> Iterator[sync.Server]:
    before = threading.active_count()
    with sync.Server(bind="127.0.0.1:0", state=tmp_path / "relay", plaintext=True, drain=0) as server:
        yield server
    assert threading.active_count() == before, "a thread was left behind"


@pytest.fixture
def home(server: sync.Server, tmp_path: Path) -> Iterator[sync.Tunnel]:
    with sync.connect(server.url, token=server.token, name="home", state=tmp_path / "client", drain=0) as tunnel:
        yield tunnel


def answer(listener: socket.socket) -> None:
    """Serve one visitor: what it says comes back in capitals, when it has ended."""
    sock, _ = listener.accept()
    with sock:
        said = b"".join(iter(lambda: sock.recv(1000), b""))
        sock.sendall(said.upper())


def ask(sock: socket.socket, said: bytes) -> bytes:
    with sock:
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(1000), b""))


def test_a_local_service_is_reached(home: sync.Tunnel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = background(answer, listener)
        with home.expose(listener.getsockname()[1], name="web") as service:
            assert home.is_up and service.name == "web"
            assert service.url == f"tcp://{service.host}:{service.port}"
            assert ask(connect((service.host, service.port)), b"hello") == b"HELLO"
        serving.result(5)


@pytest.mark.parametrize("way", ["client", "relay"])
def test_others_are_reached(server: sync.Server, home: sync.Tunnel, tmp_path: Path, way: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        port = listener.getsockname()[1]
        home.expose(f"web=private://{port}")
        who: sync.Server | sync.Tunnel = server
        if way == "client":
            who = stack.enter_context(
                sync.connect(server.url, token=server.token, name="", state=tmp_path / "v", drain=0)
            )
        door = stack.enter_context(who.forward("web"))
        assert door.url == f"tcp://{door.host}:{door.port}"
        for make in (partial(who.create_connection, "web"), partial(connect, (door.host, door.port))):
            serving = background(answer, listener)
            assert ask(make(), b"hello") == b"HELLO"
            serving.result(5)
        with pytest.raises(NoServiceError):
            who.create_connection("nothing")


def test_the_network_of_a_client(server: sync.Server, tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        sync.connect(
            server.url, token=server.token, name="dials", state=tmp_path / "d", allow_dial=["127.0.0.1"], drain=0
        ),
    ):
        host, port = listener.getsockname()
        peer = server.client("dials")
        with peer.forward(host, port) as door, peer.socks() as proxy:
            assert proxy.url.startswith("socks5h://")
            for make in (partial(peer.create_connection, host, port), partial(connect, (door.host, door.port))):
                serving = background(answer, listener)
                assert ask(make(), b"hello") == b"HELLO"
                serving.result(5)


def test_errors_are_raised_here(home: sync.Tunnel, tmp_path: Path) -> None:
    with pytest.raises(ExposeError):
        home.expose(22, port=1)
    with pytest.raises(UnreachableError):
        sync.connect(f"tcp://127.0.0.1:{free_port()}", token="fr1.k3yID_-0." + "A" * 43, name="x", state=tmp_path)
    with pytest.raises(StartError):
        sync.Server(bind="127.0.0.1:0", state=tmp_path / "relay", plaintext=True)
    home.close()
    home.close()


def test_it_may_be_used_beside_a_loop(server: sync.Server, home: sync.Tunnel) -> None:
    """In a notebook a loop runs in this very thread."""

    async def main() -> str:
        return home.expose(22, name="ssh").name

    assert asyncio.run(main()) == "ssh"
