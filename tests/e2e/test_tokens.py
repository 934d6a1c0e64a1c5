"""Tokens as a relay's owner uses them: made, revoked, rotated and over while the relay runs, with connections alive."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import TWICE
from tests.support.payload import Checker, Keystream
from tests.support.peers import TIMEOUT, End, accept, background, connect, echoes, exactly, read_to_end
from tests.support.processes import BEST, Client, Echo, Server, Way, once


def command(server: Server, *words: str) -> str:
    """stdout of `fastrelay token …` on the relay's machine."""
    done = once("token", *words, "--state", str(server.state), state=server.state)
    assert done.returncode == 0, done.stderr
    if words[0] in ("new", "rotate"):
        assert f"fastrelay client {server.url.removeprefix('tls://')} --name " in done.stderr
    return done.stdout.strip()


def grant(server: Server) -> str:
    return f"{server.ports[10]}-{server.ports[19]}"


def flood(sock: socket.socket) -> None:
    """Send until the other end is gone."""
    data = Keystream("flood")
    while True:
        sock.sendall(data.take(65_536))


@pytest.mark.parametrize("way", [BEST, pytest.param(TWICE[1], marks=pytest.mark.slow)], ids=repr)
def test_a_revoked_token_ends_live_connections_within_a_second(tmp_path: Path, way: Way) -> None:
    with Server(tmp_path / "server", way) as server, socket.create_server(("127.0.0.1", 0)) as listener:
        target = str(listener.getsockname()[1])
        token = command(server, "new", "home", "--ports", grant(server))
        with Client(server.url, token, tmp_path / "client", expose=[target], name="home", loop=way.loop) as client:
            (where,) = client.addresses()
            assert where[1] in server.ports[10:20]
            with (
                connect(where) as quiet,
                accept(listener) as inside,
                connect(where) as busy,
                accept(listener) as floods,
            ):
                inside.sendall(b"live")
                assert exactly(quiet, 4) == b"live"
                flooding = [background(flood, one) for one in (busy, floods)]  # both ways, and nobody reads
                seen = background(read_to_end, quiet, Checker("nothing"))
                command(server, "revoke", "home")
                start = time.monotonic()
                assert seen.result(TIMEOUT) is End.RESET
                visitor = time.monotonic() - start
                assert read_to_end(inside, Checker("nothing")) is End.RESET
                for one in flooding:
                    assert isinstance(one.exception(TIMEOUT), ConnectionError)
                streams = time.monotonic() - start
                assert client.wait(TIMEOUT) == 3
                took = time.monotonic() - start
                assert "'home' was revoked" in client.stderr
        print(
            f"{way}: after `token revoke` had returned the visitor was reset in {visitor * 1000:.0f} ms, every stream in "
            f"{streams * 1000:.0f} ms, and the client had exited with 3 in {took * 1000:.0f} ms"
        )
        assert took < 1
        assert server.popen.poll() is None


@pytest.mark.slow
def test_rotate_takes_the_old_one_away_at_once_or_later(tmp_path: Path) -> None:
    with Server(tmp_path / "server", BEST) as server, Echo() as echo:
        expose = [str(echo.target[1])]
        first = command(server, "new", "home", "--ports", grant(server))
        with Client(server.url, first, tmp_path / "client", expose=expose, name="home") as client:
            (where,) = client.addresses()
            with connect(where) as visitor:
                second = command(server, "rotate", "home", "--keep", "1h")
                time.sleep(0.6)  # two looks of the relay
                visitor.sendall(b"still")
                assert exactly(visitor, 5) == b"still", "nobody is disturbed"
                third = command(server, "rotate", "home")
                assert client.wait(TIMEOUT) == 3
        for token in (first, second):
            with Client(server.url, token, tmp_path / "client", expose=expose, name="home") as late:
                assert late.wait(TIMEOUT) == 3 and "not valid" in late.stderr
        with Client(server.url, third, tmp_path / "client", expose=expose, name="home") as client:
            assert client.addresses() == [where], "the same port as before"
            echoes(where)


@pytest.mark.slow
def test_a_token_is_over(tmp_path: Path) -> None:
    with Server(tmp_path / "server", BEST) as server, Echo() as echo:
        expose = [str(echo.target[1])]
        token = command(server, "new", "home", "--ports", grant(server), "--expires", "3s")
        with Client(server.url, token, tmp_path / "client", expose=expose, name="home") as client:
            echoes(client.addresses()[0])
            (kept,) = [
                one
                for one in json.loads((server.state / "tokens.json").read_text())["tokens"]
                if one["label"] == "home"
            ]
            assert client.wait(TIMEOUT) == 3
            late = time.time() - kept["grant"]["expires"]
            print(f"the client had exited {late * 1000:.0f} ms after its token was over")
            assert 0 <= late < 1
            assert "expired at" in client.stderr
        with Client(server.url, token, tmp_path / "client", expose=expose, name="home") as client:
            assert client.wait(TIMEOUT) == 3 and "expired at" in client.stderr


@pytest.mark.slow
def test_a_narrower_grant_is_taken_in_by_itself(tmp_path: Path) -> None:
    """tokens.json edited by hand: the client comes back, keeps what it may have and is told of what it may not."""
    with Server(tmp_path / "server", BEST) as server, Echo() as echo:
        port = echo.target[1]
        stays, goes = server.ports[10], server.ports[11]
        token = command(server, "new", "home", "--ports", f"{stays}-{goes}")
        expose = [f"stays={stays}:{port}", f"goes={goes}:{port}"]
        with Client(server.url, token, tmp_path / "client", expose=expose, name="home") as client:
            for where in client.addresses():
                echoes(where)
            file = server.state / "tokens.json"
            file.write_text(file.read_text().replace(f"{stays}-{goes}", str(stays)))
            client.logs("service.refused", "goes", f"not port {goes}")
            client.wait_for(lambda: sum("tunnel.up" in line for line in client.err) == 2, "another session")
            client.logs("stays", since=len(client.err) - 3)
            echoes(("127.0.0.1", stays))
            with pytest.raises(ConnectionRefusedError):
                connect(("127.0.0.1", goes))
            assert client.popen.poll() is None


@pytest.mark.slow
def test_what_is_refused_is_said(tmp_path: Path) -> None:
    with Server(tmp_path / "server", BEST) as server, Echo() as echo:
        port = echo.target[1]
        token = command(server, "new", "home", "--ports", grant(server), "--services", "web")
        for name, expose, told in (
            ("office", f"web={port}", "the token 'home' is for clients named home, not 'office'; use --name home"),
            ("home", f"ssh={port}", "the token 'home' is for services named web, not 'ssh'"),
            ("home", f"web={server.ports[0]}:{port}", f"the token 'home' grants the ports {grant(server)}, not port"),
            ("home", f"web=443:{port}", "ports below 1024 are granted only by number"),
            ("home", f"web={server.address[1]}:{port}", "where this relay takes its clients"),
        ):
            with Client(server.url, token, tmp_path / "client", expose=[expose], name=name) as client:
                assert client.wait(TIMEOUT) == 3
                assert told in client.stderr
        with Client(server.url, token, tmp_path / "client", expose=[f"web={port}"], name="home") as client:
            echoes(client.addresses()[0])
