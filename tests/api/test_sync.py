"""The same without a loop: calls that block, from any thread."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastrelay import sync
from fastrelay.errors import ExposeError, StartError, UnreachableError
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
