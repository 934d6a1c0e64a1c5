"""A change of the relay's key, and client certificates, as people do it: whole processes, the command line, live streams."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from pathlib import Path

import pytest

from fastrelay.auth import Token
from tests.support.certificates import DAY, Authority, Pair
from tests.support.payload import Checker, Keystream
from tests.support.peers import TIMEOUT, End, Stalls, background, connect, echoes, read_to_end, until
from tests.support.processes import BEST, WAYS, Client, Echo, Server, Way, message, once

TLS = [way for way in WAYS if way.tls]


def command(server: Server, *words: str) -> str:
    """stdout of a command on the relay's machine."""
    done = once(*words, "--state", str(server.state), state=server.state)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def flow(sock: socket.socket, stream: Keystream, over: threading.Event) -> int:
    """Send until it is over, and end; the bytes that were sent."""
    sent = 0
    while not over.is_set():
        sock.sendall(stream.take(65_536))
        sent += 65_536
    sock.shutdown(socket.SHUT_WR)
    return sent


def shows(pair: Pair) -> tuple[str, ...]:
    return "--client-cert", str(pair[0]), "--client-key", str(pair[1])


@pytest.mark.slow
@pytest.mark.parametrize("way", TLS, ids=repr)
def test_the_key_changes_under_load(tmp_path: Path, way: Way) -> None:
    """Streams in both directions while the key is prepared and switched; then everybody comes back, or is told why not."""
    with Server(tmp_path / "server", way) as server, Echo() as echo:
        assert not isinstance(echo.target, str)
        expose = [str(echo.target[1])]
        old = server.token()

        def client(name: str, token: str = old) -> Client:
            return Client(server.url, token, tmp_path / name, expose=expose, name=name, loop=way.loop)

        with client("deaf") as deaf:
            deaf.addresses()
        with client("here") as here:
            (where,) = here.addresses()
            visitors = [connect(where) for _ in range(8)]
            checkers = [Checker(number) for number in range(8)]
            over = threading.Event()
            senders = [background(flow, one, Keystream(number), over) for number, one in enumerate(visitors)]
            readers = [background(read_to_end, one, checker) for one, checker in zip(visitors, checkers, strict=True)]
            command(server, "key", "prepare")
            here.logs("relay.pins")
            both = Token.parse(server.token())
            assert both.pins[0] == Token.parse(old).pins[0] and len(both.pins) == 2
            with client("away") as away:
                away.addresses()
            since = len(here.err)
            command(server, "key", "switch")
            here.logs("relay.pins", since=since)
            assert Token.parse(server.token()).pins == both.pins[1:]
            before = [checker.received for checker in checkers]
            until(lambda: all(one.received > was for one, was in zip(checkers, before, strict=True)), "all go on")
            over.set()
            for sender, reader, checker in zip(senders, readers, checkers, strict=True):
                assert reader.result(TIMEOUT) is End.EOF
                assert checker.received == sender.result(TIMEOUT) > 0
            for one in visitors:
                one.close()
            assert "tunnel.retry" not in here.stderr and len(here.out) == 1
            with client("away") as away:
                echoes(away.addresses()[0])
            with client("fresh", both.text()) as fresh:
                echoes(fresh.addresses()[0])
            with client("deaf") as deaf:
                assert deaf.wait() == 3
                assert "does not match the token" in message(deaf.err[-1]) and "nothing was sent" in deaf.stderr
            with client("deaf", server.token()) as deaf:
                echoes(deaf.addresses()[0])
            echoes(where)
        with client("here") as here:
            echoes(here.addresses()[0])


@pytest.mark.slow
def test_a_given_certificate_is_renewed(tmp_path: Path) -> None:
    """As an ACME client does it, with a new key: clients that check the CA come back, nothing has to be restarted."""
    authority = Authority(tmp_path)
    first, second = (authority.issue(name, host="127.0.0.1") for name in ("first", "second"))
    cert, key = tmp_path / "live.crt", tmp_path / "live.key"
    for link, file in zip((cert, key), first, strict=True):
        link.symlink_to(file)
    paths = ("--cert", str(cert), "--key", str(key))
    with Server(tmp_path / "server", BEST, *paths) as server, Echo() as echo:
        assert not isinstance(echo.target, str)
        expose = [str(echo.target[1])]
        token = server.token(*paths)
        assert not Token.parse(token).pins
        with Client(server.url, token, tmp_path / "one", expose=expose, name="one", trust=authority.path) as one:
            (where,) = one.addresses()
            with connect(where) as visitor:
                for link, file in zip((cert, key), second, strict=True):
                    link.unlink()
                    link.symlink_to(file)
                server.logs("certificate.loaded")
                echoes(where)
                visitor.sendall(b"still")
                assert visitor.recv(5) == b"still"
            with Client(server.url, token, tmp_path / "two", expose=expose, name="two", trust=authority.path) as two:
                echoes(two.addresses()[0])
            assert "relay.pins" not in one.stderr, "who goes by CAs learns no pins"
            assert "certificate.not_loaded" not in server.stderr


@pytest.mark.slow
def test_a_certificate_instead_of_a_token(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    mine, expired, renewed = (
        authority.issue("mine"),
        authority.issue("expired", starts=-3 * DAY, ends=-DAY),
        authority.issue("renewed"),
    )
    ca = ("--client-ca", str(authority.path), "--require-client-cert")
    with Server(tmp_path / "server", BEST, *ca) as server, Echo() as echo:
        assert not isinstance(echo.target, str)
        expose = [str(echo.target[1])]
        pin = command(server, "key", "show").split()[1]
        command(server, "token", "new", "lab", "--ports", "relay", "--client-cert", str(mine[0]), "--no-token")

        def client(name: str, *options: str, token: str = "") -> Client:
            return Client(server.url, token, tmp_path / name, *options, expose=expose, name="lab")

        with client("lab", *shows(mine), "--pin", pin) as lab:
            (where,) = lab.addresses()
            echoes(where)
            with client("thief", token=server.token()) as thief:
                assert thief.wait() == 3
                assert "--client-cert" in message(thief.err[-1]), "a token alone is not enough here"
            with client("late", *shows(expired), "--pin", pin) as late:
                late.logs("tunnel.retry", str(expired[0]))
                assert "certificate has expired" in message(server.logs("client.refused", "expired"))
                for old, new in zip(expired, renewed, strict=True):
                    shutil.copyfile(new, old)
                assert late.wait() == 3, "one that is good, of somebody whom the relay does not know"
                assert "--no-token" in message(late.err[-1])
            with connect(where) as visitor:
                seen = background(read_to_end, visitor, Checker("nothing"))
                command(server, "token", "revoke", "lab")
                start = time.monotonic()
                with Stalls() as stalls:
                    assert seen.result(TIMEOUT) is End.RESET
                took = time.monotonic() - start - stalls.seconds
                assert lab.wait() == 3
        print(f"A visitor of a revoked certificate was reset in {took * 1000:.0f} ms")
        assert took < 1
