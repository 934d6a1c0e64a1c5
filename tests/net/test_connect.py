"""Out through a proxy: what the environment says, and CONNECT."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from fastrelay.errors import ProxyError, UsageError
from fastrelay.net.connect import Proxy, connect_through, parse_proxy, proxy_for
from tests.conftest import Run
from tests.support.connect_proxy import ConnectProxy
from tests.support.peers import free_port

SECRET = "pass word"


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("http://proxy.example:3128", Proxy("proxy.example", 3128)),
        ("http://proxy.example:3128/", Proxy("proxy.example", 3128)),
        ("proxy.example:3128", Proxy("proxy.example", 3128)),
        ("http://Proxy.Example", Proxy("proxy.example", 80)),
        ("http://[2001:db8::1]:3128", Proxy("2001:db8::1", 3128)),
        ("http://user:pass%20word@proxy.example:3128", Proxy("proxy.example", 3128, f"user:{SECRET}")),
        ("user:pa@ss@proxy.example:3128", Proxy("proxy.example", 3128, "user:pa@ss")),
        ("http://user@proxy.example:3128", Proxy("proxy.example", 3128, "user:")),
    ],
)
def test_a_proxy(text: str, proxy: Proxy) -> None:
    assert parse_proxy(text) == proxy
    assert SECRET not in repr(parse_proxy(text)) + str(parse_proxy(text))


@pytest.mark.parametrize(
    "text",
    ["https://u:secret@proxy", "socks5://u:secret@proxy", "http://", "http://u:secret@:80", "http://u:secret@p:0x", "u:secret@p:70000",
     "http://u:secret@p/path", "http://u:secret@p?q", "http://u:secret@[::1", "http://u:secret@pro xy"],
)  # fmt: skip
def test_what_is_no_proxy(text: str) -> None:
    with pytest.raises(UsageError, match="HTTPS_PROXY is not understood") as failure:
        parse_proxy(text)
    assert "secret" not in str(failure.value)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (
        "https_proxy",
        "HTTPS_PROXY",
        "no_proxy",
        "NO_PROXY",
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_a_proxy(environment: pytest.MonkeyPatch) -> None:
    assert proxy_for("relay.example", 443) is None
    environment.setenv("HTTP_PROXY", "http://proxy:1")
    environment.setenv("HTTPS_PROXY", "")
    assert proxy_for("relay.example", 443) is None


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY"])
@pytest.mark.parametrize("exception", ["no_proxy", "NO_PROXY"])
def test_what_the_environment_says(environment: pytest.MonkeyPatch, name: str, exception: str) -> None:
    environment.setenv(name, "http://proxy:1")
    environment.setenv(exception, "other.example, .inside.example,192.0.2.7")
    assert proxy_for("relay.example", 443) == Proxy("proxy", 1)
    for host in ("other.example", "relay.inside.example", "192.0.2.7", "localhost", "127.0.0.1", "::1"):
        assert proxy_for(host, 443) is None
    environment.setenv(exception, "*")
    assert proxy_for("relay.example", 443) is None


def test_a_proxy_that_is_none_matters_only_where_it_is_used(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HTTPS_PROXY", "https://proxy")
    assert proxy_for("localhost", 443) is None
    with pytest.raises(UsageError):
        proxy_for("relay.example", 443)


def test_through(run: Run) -> None:
    async def main(host: str, proxy: ConnectProxy) -> None:
        loop = asyncio.get_running_loop()
        made = Proxy("127.0.0.1", proxy.address[1], f"user:{SECRET}")
        with await connect_through(made, host, 443) as sock:
            await loop.sock_sendall(sock, b"hello")
            assert await loop.sock_recv(sock, 5) == b"HELLO"

    def shout() -> None:
        for _ in range(2):
            sock, _ = listener.accept()
            with sock:
                sock.sendall(sock.recv(5).upper())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=shout, daemon=True).start()
        names = {"relay.test:443": listener.getsockname(), "[2001:db8::1]:443": listener.getsockname()}
        with ConnectProxy(names, credentials=f"user:{SECRET}") as proxy:
            run(main("relay.test", proxy))
            run(main("2001:db8::1", proxy))
    assert proxy.requests[0].startswith("CONNECT relay.test:443 HTTP/1.1\r\nHost: relay.test:443\r\n")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "answers 403: it does not let this host and port pass"),
        (b"HTTP/1.0 407 Who?\r\nProxy-Authenticate: Basic\r\n\r\n", "answers 407: put USER:PASSWORD@ into HTTPS_PROXY"),
        (b"HTTP/1.1 502 \x1b[31m\r\n\r\n", "answers 502"),
        (b"HTTP/1.1 200 OK\r\n\r\nearly", "does not answer CONNECT as a proxy does"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "does not answer CONNECT as a proxy does"),
        (b"HTTP/1.1 200 OK\r\n", "does not answer CONNECT"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"a" * 9000 + b"\r\n\r\n", "does not answer CONNECT"),
    ],
)
def test_a_proxy_that_says_no(run: Run, answer: bytes, words: str) -> None:
    async def main() -> None:
        with pytest.raises(ProxyError) as failure:
            await connect_through(Proxy("127.0.0.1", proxy.address[1], f"user:{SECRET}"), "relay.test", 443)
        said = str(failure.value)
        assert words in said and said.isprintable() and SECRET not in said and "user" not in said

    with ConnectProxy(answer=answer) as proxy:
        run(main())


def test_a_proxy_that_is_not_there(run: Run) -> None:
    port = free_port()

    async def main() -> None:
        with pytest.raises(
            ProxyError, match=rf"the proxy 127.0.0.1:{port} of HTTPS_PROXY cannot be reached \(Connection refused\)"
        ):
            await connect_through(Proxy("127.0.0.1", port), "relay.test", 443)

    run(main())


def test_a_proxy_that_does_not_answer(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await connect_through(Proxy("127.0.0.1", listener.getsockname()[1]), "relay.test", 443)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        run(main())


def test_a_proxy_whose_name_nobody_knows(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(ProxyError, match=r"the proxy nobody\.invalid:3128 of HTTPS_PROXY cannot be reached"):
            await connect_through(Proxy("nobody.invalid", 3128), "relay.test", 443)

    run(main())
