"""rancher/remotedialer's example server, `/client/ID/SCHEME/HOST/PATH?timeout=`: HTTP through a named client, one test for each behaviour. It served GET
only, lost the query, and kept no limits; the relay does not.

A relay in this process; the clients are played by hand, and targets under TLS by OpenSSL in memory.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

import pytest

from fastrelay.errors import Code
from fastrelay.front.http import reach
from fastrelay.roles import keyring
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.support import pair
from tests.support.calls import Reply, bearer, calls_relay, head, login, reply, request
from tests.support.certificates import Authority
from tests.support.peers import End
from tests.support.tls_target import TlsTarget

pytestmark = pytest.mark.parametrize("loop_kind", ["asyncio"])
"""What meets the loop, edges and streams, has its tests on both."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay looks at its tokens all the time."""
    monkeypatch.setattr(keyring, "_LOOK_EVERY", 0.01)


def refused(answer: Reply, status: int, text: str) -> None:
    assert answer.status == status and text in answer.text, answer
    assert answer.fields["content-type"] == "text/plain; charset=utf-8" and answer.text.endswith(".")


def test_a_call_reaches_the_host_in_its_path(run: Run, tmp_path: Path) -> None:
    """Path and query pass as they came, but for `timeout`; Host is the target's; the token is not passed on."""

    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            for shown in (bearer(token), login(token)):
                path = b"/client/home/http/10.0.0.5:8080/a%2Fb/../c//d?x=%20&timeout=9&y"
                local = await bench.call(request(b"GET " + path, shown, b"Cookie: a=b"))
                stream = await home.takes()
                said = await home.head(stream)
                assert said.startswith(b"GET /a%2Fb/../c//d?x=%20&y HTTP/1.1\r\nHost: 10.0.0.5:8080\r\nCookie: a=b\r\n")
                assert b"uthorization" not in said
                await home.answers(stream, b"hello")
                assert (await reply(local)).body == b"hello"
            assert home.dialled == ["10.0.0.5:8080"] * 2

    run(main())


METHODS = [b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"REPORT"]


def test_every_method_and_its_body(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            for method in METHODS:
                local = await bench.call(request(method + b" /client/home/http/a.example", bearer(token), body=b"body"))
                stream = await home.takes()
                assert (await home.head(stream)).startswith(method + b" / HTTP/1.1\r\nHost: a.example\r\n")
                await home.has(stream, b"body")
                await home.answers(stream, b"done")
                assert (await reply(local)).body == b"done"

    run(main())


def test_an_upgrade_passes(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            raw = request(b"GET /client/home/http/a.example/ws", bearer(token), b"Connection: Upgrade", b"Upgrade: x/1")
            local = await bench.call(raw)
            stream = await home.takes()
            assert b"\r\nUpgrade: x/1\r\n" in await home.head(stream)
            await home.peer.send(
                pair.data(stream, b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: x/1\r\n\r\nfirst")
            )
            assert (await head(local)).startswith(b"HTTP/1.1 101 ")
            assert await local.read(5) == b"first"
            await local.send(b"second")
            local.eof()
            assert await home.peer.half(stream) == (b"second", Kind.FIN, None)
            await home.peer.send(pair.fin(stream, b"last"))
            assert await local.to_end() == (b"last", End.EOF)

    run(main())


# --- TLS ---------------------------------------------------------------------------------------------------------------


def test_the_relay_does_tls_to_the_target_and_verifies_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "ca")
    authority.issue("target", host="10.0.0.5")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))

    async def main() -> None:
        async with calls_relay(tmp_path / "r") as bench:
            token, home = await bench.caller(), await bench.hand()
            local = await bench.call(request(b"PUT /client/home/https/10.0.0.5/x", bearer(token), body=b"secret"))
            stream = await home.takes()
            assert home.dialled == ["10.0.0.5:443"]
            target = TlsTarget(home.peer, stream, authority)
            await target.shake()
            said = await target.until(b"secret")
            assert said.startswith(b"PUT /x HTTP/1.1\r\nHost: 10.0.0.5\r\n") and said.endswith(b"\r\n\r\nsecret")
            block = bytes(range(256)) * 400
            await target.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(block) + block)
            assert (await reply(local)).body == block
            await local.send(request(b"GET /client/home/https/10.0.0.5/again", bearer(token), b"Connection: close"))
            assert (await target.until(b"\r\n\r\n")).startswith(b"GET /again HTTP/1.1\r\n")
            await target.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end")
            await target.close()
            raw, end = await local.to_end()
            assert raw.endswith(b"until the end") and end is End.EOF

    run(main())


def test_a_target_whose_certificate_is_not_accepted_gets_nothing(run: Run, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    authority.issue("target", host="10.0.0.5")

    async def main() -> None:
        async with calls_relay(tmp_path / "r") as bench:
            token, home = await bench.caller(), await bench.hand()
            local = await bench.call(request(b"PUT /client/home/https/10.0.0.5/x", bearer(token), body=b"secret"))
            stream = await home.takes()
            target = TlsTarget(home.peer, stream, authority)
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await target.serve()
            refused(await reply(local), 502, "its certificate is not accepted (unable to get local issuer certificate)")

    run(main())


@pytest.mark.parametrize("how", ["no TLS", "end", "cut"])
def test_a_target_that_speaks_no_tls_or_cuts_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    authority = Authority(tmp_path / "ca")
    authority.issue("target", host="10.0.0.5")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))

    async def main() -> None:
        async with calls_relay(tmp_path / "r") as bench:
            token, home = await bench.caller(), await bench.hand()
            local = await bench.call(request(b"GET /client/home/https/10.0.0.5/", bearer(token)))
            stream = await home.takes()
            if how == "no TLS":
                await home.peer.send(pair.data(stream, b"HTTP/1.1 400 Bad Request\r\n\r\n"))
                refused(await reply(local), 502, "the TLS handshake failed (wrong version number)")
            elif how == "end":
                await home.peer.send(pair.fin(stream))
                refused(await reply(local), 502, "it ended the connection during the TLS handshake")
            else:
                target = TlsTarget(home.peer, stream, authority)
                await target.shake()
                await target.until(b"\r\n\r\n")
                await target.send(b"HTTP/1.1 200 OK\r\n\r\nhalf of it")
                await home.peer.send(pair.fin(stream))  # anybody may do that
                raw, end = await local.to_end()
                assert raw.endswith(b"half of it") and end is End.RESET

    run(main())


# --- what is refused ---------------------------------------------------------------------------------------------------


NO_CALLS = [
    b"/client/",
    b"/client/home/http",
    b"/client/../http/10.0.0.5/",
    b"/client/home/gopher/10.0.0.5/",
    b"/client/home/http/10.0.0.5:0/",
    b"/client/home/http/10.0.0.5:70000/",
    b"/client/home/http/user:pw@10.0.0.5/",
    b"/client/home/http/b%C3%BCcher.example/",
    b"/client/home/http/0x7f000001/",
    b"/client/home/http/127.1/",
    b"/client/home/http/10.0.0.5/?timeout=never",
]


def test_what_is_no_call(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            for path in NO_CALLS:
                answer = await bench.ask(request(b"GET " + path, bearer(token)))
                refused(answer, 400, "")
            await home.untouched()

    run(main())


def test_paths_that_only_look_like_one(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token = await bench.caller()
            await bench.hand()
            for path in (
                b"/client",
                b"/clients/home/http/x/",
                b"//client/home/http/x/",
                b"/x/../client/home/http/x/",
                b"/%63lient/home/http/x/",
            ):
                assert (await bench.ask(request(b"GET " + path, bearer(token)))).status == 404

    run(main())


def test_who_may_not(run: Run, tmp_path: Path) -> None:
    """Without a token, and for what it does not grant, nobody learns who is connected."""

    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token = await bench.caller(through=["lab"], dial=["10.0.0.0/24:80"])
            await bench.hand()
            here, away = (b"GET /client/%b/http/10.0.0.5/" % name for name in (b"home", b"nobody"))
            answer = await bench.ask(request(here))
            assert answer.status == 401 and answer.fields["www-authenticate"] == 'Basic realm="fastrelay"'
            assert answer == await bench.ask(request(away))
            refused(await bench.ask(request(here, bearer(token))), 403, "dials through clients named lab, not 'home'")
            refused(await bench.ask(request(away, bearer(token))), 403, "dials through clients named lab, not 'nobody'")
            refused(
                await bench.ask(request(b"GET /client/lab/http/10.0.1.5/", bearer(token))),
                403,
                "10.0.1.5:80 is not in 10.0.0.0/24:80",
            )
            refused(await bench.ask(request(b"GET /client/lab/http/10.0.0.5/", bearer(token))), 502, "not connected")

    run(main())


REFUSALS = [
    (Code.DIAL_DENIED, 403),
    (Code.DIAL_FORBIDDEN, 403),
    (Code.REFUSED, 502),
    (Code.UNREACHABLE, 502),
    (Code.DIAL_TIMEOUT, 504),
    (Code.LIMIT, 503),
]


def test_what_the_client_refuses(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            for code, status in REFUSALS:
                local = await bench.call(request(b"GET /client/home/http/10.0.0.5/", bearer(token)))
                await home.refuses(code)
                refused(await reply(local), status, "")
                assert (await local.to_end()) == (b"", End.EOF)

    run(main())


@pytest.mark.parametrize("how", ["dial", "TLS", "answer"])
def test_the_timeout_of_a_call(run: Run, tmp_path: Path, how: str) -> None:
    """From the request to the head of the answer, whatever it waits for."""

    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            scheme = b"https" if how == "TLS" else b"http"
            began = time.monotonic()
            local = await bench.call(request(b"GET /client/home/%b/10.0.0.5/?timeout=0.15" % scheme, bearer(token)))
            stream = await home.asked()
            if how != "dial":
                await home.peer.send(pair.accept(stream))
            refused(await reply(local), 504, "did not answer in time")
            assert 0.15 <= time.monotonic() - began < 0.65
            assert (await home.peer.half(stream))[1:] == (Kind.RESET, Code.CANCEL)
            await home.peer.send(pair.reset(stream))

    run(main())


def test_a_body_that_moves_is_no_silence(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            raw = request(b"PUT /client/home/http/10.0.0.5/?timeout=0.1", bearer(token), b"Content-Length: 10")
            local = await bench.call(raw)
            stream = await home.takes()
            await home.head(stream)
            for _ in range(10):
                await local.send(b"x")
                await asyncio.sleep(0.02)
            await home.has(stream, b"x" * 10)
            await home.answers(stream, b"ok")
            assert (await reply(local)).body == b"ok"

    run(main())


def test_a_client_that_comes_again_serves_the_next_call(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, old = await bench.caller(), await bench.hand()
            raw = request(b"GET /client/home/http/10.0.0.5/", bearer(token))
            local = await bench.call(raw)
            await old.serves(b"old")
            assert (await reply(local)).body == b"old"
            new = await bench.hand()
            await old.peer.frame(Kind.GOAWAY)
            await local.send(raw)
            await new.serves(b"new")
            assert (await reply(local)).body == b"new"

    run(main())


def test_no_call_looks_for_a_client_when_there_is_none(run: Run, tmp_path: Path) -> None:
    """It is named: there is nobody else to wait for."""

    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token = await bench.caller()
            began = time.monotonic()
            refused(await bench.ask(request(b"GET /client/home/http/10.0.0.5/", bearer(token))), 502, "not connected")
            assert time.monotonic() - began < 10 * reach.LOOK_EVERY

    run(main())
