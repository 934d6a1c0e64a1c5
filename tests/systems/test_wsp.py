"""root-gg/wsp (and hgsgtk/wsp): requests that name their destination in X-PROXY-DESTINATION and go through a client that may dial it, one test
for each behaviour, its defects not carried over.

A relay in this process; the clients are played by hand but for the tests of their rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fastrelay.auth import Token
from fastrelay.config import ClientConfig, Relay
from fastrelay.dialling import Rules
from fastrelay.errors import Code
from fastrelay.limits import Limits
from fastrelay.roles import keyring
from fastrelay.roles.client import Client
from fastrelay.state import ClientState
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.roles.test_server import LOCALHOST
from tests.support import pair
from tests.support.calls import MUCH, CallsBench, Hand, Reply, bearer, calls_relay, head, login, reply, request
from tests.support.grants import revoke
from tests.support.peers import End
from tests.support.tunnel import Local, turns

PATH = b"/request"
WHERE = b"http://10.0.0.5:8080/a%2Fb/../c?x=1"
SHORT = Limits(request_wait=0.2)


pytestmark = pytest.mark.parametrize("loop_kind", ["asyncio"])
"""What meets the loop, edges and streams, has its tests on both."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay looks at its tokens all the time, and retries come at once."""
    monkeypatch.setattr(keyring, "_LOOK_EVERY", 0.01)
    monkeypatch.setattr(random, "random", lambda: 0.01)


def asking(
    token: Token | None, where: bytes | None = WHERE, *fields: bytes, method: bytes = b"GET", body: bytes = b""
) -> bytes:
    """A request for a destination."""
    named = () if where is None else (b"X-Proxy-Destination: " + where,)
    shown = () if token is None else (bearer(token),)
    return request(method + b" " + PATH, *named, *shown, *fields, body=body)


def refused(answer: Reply, status: int, text: str) -> None:
    assert (answer.status, answer.text) == (status, text)
    assert answer.fields["content-type"] == "text/plain; charset=utf-8"


# --- the way -----------------------------------------------------------------------------------------------------------


def test_a_request_reaches_its_destination_through_a_client(run: Run, tmp_path: Path) -> None:
    """The header that names it is not forwarded, nor the token; Host is the destination's; no path is tidied up."""

    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            local = await bench.call(asking(token, WHERE, b"X-Own: 1", b"Connection: x-hop", b"X-Hop: 2"))
            stream = await home.takes()
            assert home.dialled == ["10.0.0.5:8080"]
            said = await home.head(stream)
            assert said.startswith(b"GET /a%2Fb/../c?x=1 HTTP/1.1\r\nHost: 10.0.0.5:8080\r\nX-Own: 1\r\n")
            assert b"X-Forwarded-Host: localhost\r\n" in said
            for gone in (b"X-Hop", b"uthorization", b"DESTINATION", token.text().encode()):
                assert gone.lower() not in said.lower()
            await home.answers(stream, b"hello", 201)
            answer = await reply(local)
            assert (answer.status, answer.body) == (201, b"hello")

    run(main())


METHODS = [b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"PROPFIND"]


def test_every_method(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            for method in METHODS:
                local = await bench.call(
                    asking(token, WHERE, method=method, body=b"" if method in (b"GET", b"HEAD") else b"body")
                )
                stream = await home.takes()
                said = await home.head(stream)
                assert said.startswith(method + b" /a%2Fb")
                await home.peer.send(pair.data(stream, b"HTTP/1.1 204 Done\r\n\r\n"))
                assert (await reply(local)).status == 204

    run(main())


def test_bodies_stream_both_ways(run: Run, tmp_path: Path) -> None:
    """The answer begins before the request is over, and neither is kept whole."""

    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            local = await bench.call(asking(token, WHERE, b"Content-Length: 1000000", method=b"PUT") + b"x" * 10)
            stream = await home.takes()
            await home.head(stream)
            said = home.rest[stream]
            await home.peer.send(pair.data(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nbegin"))
            await head(local)
            assert await local.read(5) == b"begin"

            async def rest() -> None:
                for _ in range(100):
                    await local.send(b"y" * 9999)
                await local.send(b"y" * 90)

            sending = asyncio.create_task(rest())
            got = len(said) + len(await home.peer.data(stream, 1_000_000 - len(said)))
            await sending
            assert got == 1_000_000
            for _ in range(100):
                await home.peer.send(pair.data(stream, b"z" * 9999))
            await home.peer.send(pair.data(stream, b"z" * 95))
            assert len(await local.read(999_995)) == 999_995

    run(main())


def test_redirects_are_the_callers_business(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            local = await bench.call(asking(token))
            stream = await home.takes()
            await home.head(stream)
            await home.peer.send(
                pair.data(stream, b"HTTP/1.1 302 There\r\nLocation: http://10.0.0.6/\r\nContent-Length: 0\r\n\r\n")
            )
            answer = await reply(local)
            assert (answer.status, answer.fields["location"]) == (302, "http://10.0.0.6/")
            assert home.dialled == ["10.0.0.5:8080"]

    run(main())


def test_a_connection_serves_one_request_after_the_other(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            local = await bench.call(asking(token) + asking(token) + asking(token, b"http://10.0.0.6/"))
            stream = await home.takes()
            await home.head(stream)
            await home.answers(stream, b"one")
            await home.head(stream)
            await home.answers(stream, b"two")
            await home.serves(b"three")
            assert [(await reply(local)).body for _ in range(3)] == [b"one", b"two", b"three"]
            assert home.dialled == ["10.0.0.5:8080", "10.0.0.6:80"]

    run(main())


# --- what is refused, and how ------------------------------------------------------------------------------------------


NO_DESTINATIONS = [
    (None, "Missing X-PROXY-DESTINATION header"),
    (b"not a url", "Unable to parse X-PROXY-DESTINATION header"),
    (b"ftp://10.0.0.5/", "Unable to parse X-PROXY-DESTINATION header"),
    (b"http://10.0.0.5:0/", "Unable to parse X-PROXY-DESTINATION header"),
    (b"http://10.0.0.5:70000/", "Unable to parse X-PROXY-DESTINATION header"),
    (b"http://b\xfccher.example/", "Unable to parse X-PROXY-DESTINATION header"),
    (b"http://0x7f.0.0.1/", "Unable to parse X-PROXY-DESTINATION header"),
    (b"http://0x7f000001/", "Unable to parse X-PROXY-DESTINATION header"),
    (b"http://10.0.0.5/\r\nX-Proxy-Destination: http://10.0.0.6/", "Unable to parse X-PROXY-DESTINATION header"),
]


def test_a_destination_that_is_missing_or_unparsable(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            for where, text in NO_DESTINATIONS:
                refused(await bench.ask(asking(token, where)), 526, text)
            await home.untouched()

    run(main())


def test_a_destination_that_the_token_does_not_grant(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token = await bench.caller(dial=["10.0.0.0/24:80"])
            home = await bench.hand()
            refused(await bench.ask(asking(token)), 526, "Destination is not allowed")
            refused(await bench.ask(asking(token, b"http://localhost/")), 526, "Destination is not allowed")
            await home.untouched()

    run(main())


def test_without_a_token_nothing_is_told(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token = await bench.caller()
            await bench.hand()
            for shown in (
                (),
                (login("fr1.nobody--." + token.text().split(".")[2]),),
                (b"Authorization: Bearer nonsense",),
            ):
                answer = await bench.ask(asking(None, WHERE, *shown))
                assert answer.status == 401 and answer.fields["www-authenticate"] == 'Basic realm="fastrelay"'
            first = bench.token  # it serves, and dials nothing
            refused(await bench.ask(asking(first)), 526, "Destination is not allowed")

    run(main())


REFUSALS = [
    (Code.DIAL_FORBIDDEN, 527, "Destination is forbidden"),
    (Code.DIAL_DENIED, 527, "Destination is not allowed"),
    (Code.REFUSED, 527, "Unable to execute request : The target refused the connection."),
    (Code.UNREACHABLE, 527, "Unable to execute request : The target cannot be reached from the client."),
    (Code.DIAL_TIMEOUT, 527, "Unable to execute request : The target did not answer the client in time."),
]


def test_what_the_client_refuses(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            for code, status, text in REFUSALS:
                local = await bench.call(asking(token))
                await home.refuses(code)
                refused(await reply(local), status, text)

    run(main())


def test_without_a_client(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path, SHORT) as bench:
            token = await bench.caller()
            began = time.monotonic()
            refused(await bench.ask(asking(token)), 526, "No proxy available")
            assert 0.2 <= time.monotonic() - began < 0.7

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    (told,) = [vars(one)["fields"] for one in caplog.records if vars(one).get("event") == "limit.reached"]
    assert told == {"limit": "request-wait", "value": "0.2s", "who": "calls without a client"}


def test_with_no_client_that_is_free(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path, Limits(request_wait=0.2, streams=1)) as bench:
            token, home = await bench.caller(), await bench.hand()
            busy = await bench.call(asking(token))
            stream = await home.takes()
            began = time.monotonic()
            refused(await bench.ask(asking(token)), 526, "Unable to get a proxy connection")
            assert 0.2 <= time.monotonic() - began < 0.7
            later = await bench.call(asking(token, WHERE, b"Connection: close"))
            await home.head(stream)
            await home.peer.send(
                pair.data(stream, b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"),
                pair.fin(stream),
            )
            assert (await reply(busy)).body == b"ok"
            await home.serves(b"in time")
            assert (await reply(later)).body == b"in time"

    run(main())


@pytest.mark.parametrize("how", ["reset", "lost", "end", "nonsense"])
def test_a_target_that_fails(run: Run, tmp_path: Path, how: str) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            local = await bench.call(asking(token))
            stream = await home.takes()
            await home.head(stream)
            if how == "lost":
                home.peer.close()
            else:
                told = {
                    "reset": pair.reset(stream),
                    "end": pair.fin(stream),
                    "nonsense": pair.data(stream, b"SSH-2.0-x\r\n\r\n"),
                }
                await home.peer.send(told[how])
            answer = await reply(local)
            assert answer.status == 527 and answer.text.startswith("Unable to execute request : ")
            assert (await local.to_end())[1] is End.EOF

    run(main())


def test_half_an_answer_never_looks_whole(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            local = await bench.call(asking(token))
            stream = await home.takes()
            await home.peer.send(
                pair.data(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"), pair.reset(stream)
            )
            raw, end = await local.to_end()
            assert raw.endswith(b"half") and end is End.RESET

    run(main())


# --- which client ------------------------------------------------------------------------------------------------------


def test_requests_are_spread_over_the_clients(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token = await bench.caller()
            hands = [await bench.hand(name) for name in ("one", "two", "three")]
            locals_ = [await bench.call(asking(token)) for _ in range(15)]

            async def work(hand: Hand) -> None:
                for _ in range(5):
                    await hand.serves()

            async with asyncio.TaskGroup() as group:
                for hand in hands:
                    group.create_task(work(hand))
            served = Counter([(await reply(local)).body for local in locals_])
            assert served == {b"one": 5, b"two": 5, b"three": 5}

    run(main())


def test_the_least_loaded_client_is_asked(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token = await bench.caller()
            one = await bench.hand("one")
            for _ in range(3):
                await bench.call(asking(token))
                await one.takes()
            two = await bench.hand("two")
            for _ in range(3):
                await bench.call(asking(token))
                await two.takes()

    run(main())


def test_who_may_not_dial_it_is_passed_over(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token = await bench.caller()
            never, away, works = [await bench.hand(name) for name in ("never", "away", "works")]

            async def refuse(hand: Hand, code: Code) -> None:
                with contextlib.suppress(TimeoutError, AssertionError):
                    while True:
                        await hand.refuses(code)

            async def lose() -> None:
                with contextlib.suppress(TimeoutError, AssertionError):
                    await away.asked()
                    away.peer.close()

            refusing = [asyncio.create_task(refuse(never, Code.DIAL_DENIED)), asyncio.create_task(lose())]
            for _ in range(6):
                local = await bench.call(asking(token, WHERE, b"Connection: close"))
                stream = await works.takes()
                await works.head(stream)
                await works.answers(stream, b"done")
                assert (await reply(local)).body == b"done"
                await works.peer.send(pair.fin(stream))
            assert len(never.dialled) >= 1
            for task in refusing:
                task.cancel()
            await asyncio.gather(*refusing, return_exceptions=True)

    run(main())


def test_only_clients_that_the_token_names_are_asked(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path, SHORT) as bench:
            token = await bench.caller(through=["lab-*"])
            await bench.hand("home")
            refused(await bench.ask(asking(token)), 526, "No proxy available")
            lab = await bench.hand("lab-1")
            local = await bench.call(asking(token))
            await lab.serves()
            assert (await reply(local)).body == b"lab-1"

    run(main())


# --- waiting -----------------------------------------------------------------------------------------------------------


def test_a_request_waits_for_a_client(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token = await bench.caller()
            local = await bench.call(asking(token))
            await asyncio.sleep(0.1)
            home = await bench.hand()
            await home.serves()
            assert (await reply(local)).body == b"home"

    run(main())


async def waiting(bench: CallsBench, count: int, served: int) -> float:
    """So many wait for nobody, others are served meanwhile; returns how long it was until the slowest was answered, in seconds."""
    nobody, token = await bench.caller("nobody", through=["nobody"]), await bench.caller()
    home = await bench.hand()
    took: list[float] = []

    async def wait(local: Local, began: float) -> None:
        raw, end = await local.to_end()
        took.append(time.monotonic() - began)
        assert raw.startswith(b"HTTP/1.1 526 ") and raw.endswith(b"\r\n\r\nNo proxy available\n") and end is End.EOF

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(wait(await bench.call(asking(nobody)), time.monotonic()))
        assert time.monotonic() - began < bench.limits.request_wait and not took, "all wait at once"
        for number in range(served):
            asked = time.monotonic()
            local = await bench.call(asking(token))
            await home.serves(b"%d" % number)
            assert (await reply(local)).body == b"%d" % number
            assert time.monotonic() - asked < 0.5
            local.close()
        assert not took, "others were served while all waited"
    assert len(took) == count
    return max(took)


def test_who_waits_keeps_nobody_from_being_served(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path, Limits(request_wait=0.5)) as bench:
            assert await waiting(bench, 50, 5) < 1.0

    run(main())


@pytest.mark.slow
def test_a_thousand_wait_and_others_are_served(run: Run, tmp_path: Path) -> None:
    """All are answered within the time that they wait and half a second."""

    async def main() -> None:
        async with calls_relay(tmp_path, Limits(request_wait=3)) as bench:
            slowest = await waiting(bench, 1000, 20)
            print(f"the slowest of 1000 was answered after {slowest:.2f} s of 3")
            assert slowest < 3.5

    run(main())


def test_who_goes_while_waiting_is_not_waited_for(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            local = await bench.call(asking(token))
            stream = await home.asked()
            local.reset()
            assert (await home.peer.half(stream))[1:] == (Kind.RESET, Code.CANCEL)
            await home.peer.send(pair.reset(stream))
            waits = await bench.call(asking(await bench.caller("other", through=["nobody"])))
            await turns()
            waits.reset()
            await asyncio.sleep(0.1)
            assert not bench.server.runtime.edges

    run(main())


# --- rules at the client, and tokens that end --------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def dialler(home: Path, bench: CallsBench, allow: list[str], deny: list[str]) -> AsyncIterator[Client]:
    """A real client."""
    config = ClientConfig(
        relay=Relay(LOCALHOST, bench.port, tls=False), token=bench.token.text(), exposures=(), name="home", state=home,
        allow_dial=Rules.parse(allow, deny),
    )  # fmt: skip
    client = Client(config, ClientState.open(home, config.relay.url, "home"), lambda *_: None)
    running = asyncio.ensure_future(client.run())
    try:
        while not bench.server.registry.here("home"):
            await asyncio.sleep(0.005)
        yield client
    finally:
        await client.close()
        await asyncio.gather(running, return_exceptions=True)


async def answer_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nreal")
    writer.close()
    await writer.wait_closed()


def test_allow_and_deny_rules_at_the_client(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        target = await asyncio.start_server(answer_one, LOCALHOST, 0)
        port = target.sockets[0].getsockname()[1]
        async with (
            calls_relay(tmp_path / "r") as bench,
            dialler(tmp_path / "c", bench, ["127.0.0.0/8", "localhost"], ["127.0.0.2", "denied.example"]),
        ):
            token = await bench.caller()

            async def ask(host: str) -> Reply:
                return await bench.ask(asking(token, f"http://{host}:{port}/".encode()))

            assert (await ask("127.0.0.1")).body == b"real"
            refused(await ask("127.0.0.2"), 527, "Destination is forbidden")
            refused(await ask("denied.example"), 527, "Destination is forbidden")
            refused(await ask("10.0.0.5"), 527, "Destination is not allowed")
            refused(
                await ask("169.254.169.254"), 526, "Destination is not allowed"
            )  # no network of the token is of that kind
        target.close()

    run(main())


def test_a_token_that_is_revoked_ends_its_calls(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token, home = await bench.caller(), await bench.hand()
            local = await bench.call(asking(token))
            stream = await home.takes()
            await home.head(stream)
            await home.peer.send(pair.data(stream, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nso far" % MUCH))
            await head(local)
            assert await local.read(6) == b"so far"
            revoke(bench.home, "caller")
            assert (await local.to_end())[1] is End.RESET
            assert (await home.peer.half(stream))[1:] == (Kind.RESET, Code.UNAUTHORIZED)
            await home.peer.send(pair.reset(stream))
            assert (await bench.ask(asking(token))).status == 401

    run(main())


def test_a_token_that_needs_a_certificate_is_not_enough(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with calls_relay(tmp_path) as bench:
            token = await bench.caller()
            state = bench.server.keyring._state
            key = state.keys[token.key_id]
            state.keys = {
                token.key_id: type(key)(
                    key.key_id, key.stored_key, key.server_key, bytes(32), key.label, 1.0, key.grant
                )
            }
            answer = await bench.ask(asking(token))
            assert answer.status == 401 and "certificate" in answer.text

    run(main())
