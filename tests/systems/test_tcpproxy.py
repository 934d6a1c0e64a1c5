"""Go's build coordinator, POST /tcpproxy: raw TCP to a port of a named client, one test for each behaviour, in the order in which it judged. What
it did wrong (the first end of a direction closed both) is not carried over.

A relay in this process; the clients are played by hand.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fastrelay.auth import Token
from fastrelay.errors import Code
from fastrelay.roles import keyring
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.support import pair
from tests.support.calls import Reply, bearer, calls_relay, head, login, reply, request
from tests.support.grants import revoke
from tests.support.peers import End
from tests.support.tunnel import turns

POST = b"POST /tcpproxy"
HOME = b"X-Buildlet-Proxy: home"
PORT = b"X-Target-Port: 3389"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tcpproxy\r\nConnection: upgrade\r\n\r\n"


pytestmark = pytest.mark.parametrize("loop_kind", ["asyncio"])
"""What meets the loop, edges and streams, has its tests on both."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay looks at its tokens all the time."""
    monkeypatch.setattr(keyring, "_LOOK_EVERY", 0.01)


def asking(token: Token, *fields: bytes, body: bytes = b"") -> bytes:
    return request(POST, login(token, "user-me"), *(fields or (HOME, PORT)), body=body)


def refused(answer: Reply, status: int, text: str) -> None:
    assert (answer.status, answer.text) == (status, text)
    assert answer.fields["content-type"] == "text/plain; charset=utf-8"


# --- the order of what is refused --------------------------------------------------------------------------------------


NO_LOGINS: list[tuple[bytes, ...]] = [(), (b"Authorization: Basic !!!",), (b"Authorization: Negotiate x",)]


def test_1_without_authentication(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            for shown in NO_LOGINS:
                refused(await bench.ask(request(POST, *shown)), 400, "missing required authentication")

    run(main())


def test_1_a_bearer_token_is_not_basic_authentication(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token = await bench.caller()
            refused(await bench.ask(request(POST, bearer(token), HOME, PORT)), 400, "missing required authentication")

    run(main())


def test_2_with_a_wrong_password(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token = await bench.caller()
            other = token.text()[:-1] + ("A" if token.text()[-1] != "A" else "E")
            for wrong in (other, "", "password", token.text().replace(token.key_id, "nobody--")):
                refused(await bench.ask(request(POST, login(wrong))), 401, "bad username or password")

    run(main())


def test_3_an_unknown_client(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token = await bench.caller(through=["lab"])
            answer = await bench.ask(asking(token))
            refused(answer, 502, "unknown or expired buildlet: no client 'home' is connected")

    run(main())


def test_4_a_client_that_is_not_yours(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token = await bench.caller(through=["lab"])
            await bench.hand()
            raw = asking(token).replace(b"HTTP/1.1", b"HTTP/1.0")
            refused(await bench.ask(raw), 401, "you don't own that buildlet: the token dials nothing through 'home'")

    run(main())


def test_5_another_version_of_http(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token = await bench.caller()
            await bench.hand()
            raw = asking(token, HOME).replace(b"HTTP/1.1", b"HTTP/1.0")
            refused(await bench.ask(raw), 500, "unexpected HTTP/1.0 request")

    run(main())


NO_PORTS: list[tuple[bytes, ...]] = [
    (),
    (b"X-Target-Port:",),
    (b"X-Target-Port: 0",),
    (b"X-Target-Port: 70000",),
    (b"X-Target-Port: ssh",),
]


def test_6_a_port_that_is_none(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token = await bench.caller(dial=["10.0.0.0/8"])
            await bench.hand()
            for port in NO_PORTS:
                refused(await bench.ask(asking(token, HOME, *port)), 400, "invalid or missing X-Target-Port")

    run(main())


def test_7_a_dial_that_the_token_does_not_grant(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token = await bench.caller(dial=["127.0.0.1:22"])
            home = await bench.hand()
            answer = await bench.ask(asking(token))
            assert answer.status == 400 and answer.text.startswith(
                "dialling 127.0.0.1:3389 is not allowed: the token 'caller' "
            )
            await home.untouched()

    run(main())


NOS = [Code.DIAL_DENIED, Code.DIAL_FORBIDDEN]


def test_7_a_dial_that_the_client_does_not_allow(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            for code in NOS:
                local = await bench.call(asking(token))
                await home.refuses(code)
                answer = await reply(local)
                assert answer.status == 400 and answer.text.startswith(
                    "dialling 127.0.0.1:3389 is not allowed: The client "
                )

    run(main())


FAILURES = [
    (Code.REFUSED, "connection refused"),
    (Code.UNREACHABLE, "no route to host"),
    (Code.DIAL_TIMEOUT, "i/o timeout"),
    (Code.LIMIT, "the client takes no more connections now"),
]


def test_8_a_dial_that_fails(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            for code, why in FAILURES:
                local = await bench.call(asking(token) + b"too early")
                await home.refuses(code)
                refused(await reply(local), 500, f"failed to connect to port 3389: {why}")

    run(main())


def test_8_a_client_that_goes_meanwhile(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            local = await bench.call(asking(token))
            await home.asked()
            home.peer.close()
            answer = await reply(local)
            assert answer.status == 500 and answer.text.startswith("failed to connect to port 3389: the client ")

    run(main())


@pytest.mark.parametrize("when", ["at once", "before the answer", "as a body"])
def test_9_bytes_that_do_not_wait_for_the_answer(run: Run, tmp_path: Path, when: str) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            raw = asking(token, body=b"early" if when == "as a body" else b"")
            local = await bench.call(raw + (b"early" if when == "at once" else b""))
            stream = await home.asked()
            if when == "before the answer":
                await local.send(b"early")
                await turns(10)
            await home.peer.send(pair.accept(stream))
            assert await local.to_end() == (b"HTTP/1.0 400 Bad Request\r\n\r\nUnexpected buffered data.\n", End.EOF)
            assert (await home.peer.half(stream))[:2] == (b"", Kind.RESET)
            await home.peer.send(pair.reset(stream))

    run(main())


# --- and what is not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [b"X-Buildlet-Proxy: home", b"X-Fastrelay-Client: home"])
def test_the_answer_is_101_and_then_raw_tcp(run: Run, tmp_path: Path, named: bytes) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            local = await bench.call(asking(token, named, PORT))
            stream = await home.asked()
            await turns(5)
            assert local.quiet()  # nothing is promised before the target is there
            await home.peer.send(pair.accept(stream), pair.data(stream, b"220 hello"))
            assert await local.read(len(SWITCHED) + 9) == SWITCHED + b"220 hello"
            assert home.dialled == ["127.0.0.1:3389"]
            await local.send(b"GET / HTTP/1.1\r\n\r\n")
            assert await home.peer.data(stream, 18) == b"GET / HTTP/1.1\r\n\r\n"
            local.reset()
            assert (await home.peer.half(stream))[1:] == (Kind.RESET, Code.CONNECTION_RESET)
            await home.peer.send(pair.reset(stream))

    run(main())


def test_a_target_beside_the_client(run: Run, tmp_path: Path) -> None:
    """A header more than the coordinator had: it dialled the client itself only."""

    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            local = await bench.call(asking(token, HOME, PORT, b"X-Target-Host: 10.0.0.5"))
            await home.takes()
            assert await head(local) == SWITCHED
            assert home.dialled == ["10.0.0.5:3389"]

    run(main())


@pytest.mark.parametrize("first", ["caller", "target"])
@pytest.mark.parametrize("size", [0, 65_536])
def test_each_direction_ends_by_itself(run: Run, tmp_path: Path, first: str, size: int) -> None:
    """There the first end closed both."""

    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            local = await bench.call(asking(token))
            stream = await home.takes()
            assert await head(local) == SWITCHED
            block = bytes(range(256)) * (size // 256)

            async def up() -> None:
                await local.send(block)
                local.eof()
                assert await home.peer.half(stream) == (block, Kind.FIN, None)

            async def down() -> None:
                await home.peer.send(
                    *(pair.data(stream, block[at : at + 8192]) for at in range(0, size, 8192)), pair.fin(stream)
                )
                assert await local.to_end() == (block, End.EOF)

            for way in (up, down) if first == "caller" else (down, up):
                await way()

    run(main())


@pytest.mark.parametrize("how", ["reset", "lost"])
def test_a_reset_is_a_reset_and_never_a_page(run: Run, tmp_path: Path, how: str) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            local = await bench.call(asking(token))
            stream = await home.takes()
            assert await head(local) == SWITCHED
            if how == "lost":
                home.peer.close()
            else:
                await home.peer.send(pair.data(stream, b"last"), pair.reset(stream))
            assert await local.to_end() == (b"" if how == "lost" else b"last", End.RESET)

    run(main())


def test_a_caller_that_has_ended_its_direction_already(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            local = await bench.call(asking(token))
            local.eof()
            stream = await home.takes()
            assert await home.peer.half(stream) == (b"", Kind.FIN, None)
            await home.peer.send(pair.fin(stream, b"all there is"))
            assert await local.to_end() == (SWITCHED + b"all there is", End.EOF)

    run(main())


def test_a_token_that_is_revoked_ends_the_connection(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            local = await bench.call(asking(token))
            stream = await home.takes()
            assert await head(local) == SWITCHED
            revoke(bench.home, "caller")
            assert await local.to_end() == (b"", End.RESET)
            assert (await home.peer.half(stream))[1:] == (Kind.RESET, Code.UNAUTHORIZED)
            await home.peer.send(pair.reset(stream))

    run(main())


def test_another_method(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token = await bench.caller()
            answer = await bench.ask(asking(token).replace(b"POST", b"GET"))
            refused(answer, 405, "only POST is served here")
            assert answer.fields["allow"] == "POST"

    run(main())
