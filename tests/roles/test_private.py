"""Private services at a relay: who may have a name, who may visit, and in what order a visit is refused (protocol.md sections 5 and 6.4)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fastrelay import log, wire
from fastrelay.auth import Token
from fastrelay.errors import Code
from fastrelay.limits import Limits
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.roles.test_server import RelayBench, goaway, relay
from tests.support import pair
from tests.support.grants import change_grant, make_token
from tests.support.tunnel import Peer, turns, until

pytestmark = pytest.mark.parametrize("loop_kind", ["asyncio"])  # nothing here has to do with the loop


class Scene:
    """A relay where `home` serves `db`, `web` and `away`, the last of which it does not any more; and tokens for visitors."""

    def __init__(self, bench: RelayBench, home: Peer, tokens: dict[str, Token]) -> None:
        self.bench = bench
        self.home = home
        self.tokens = tokens
        self.next: dict[Peer, int] = {}

    async def visitor(self, token: str) -> Peer:
        peer, _ = await self.bench.client("", "v", self.tokens[token])
        return peer

    async def grants(self, token: str, **grant: object) -> None:
        """Change a token, and wait until the relay knows."""
        before = self.bench.server._state.find(self.tokens[token].key_id)
        change_grant(self.bench.home, token, **grant)
        await until(lambda: self.bench.server._state.find(self.tokens[token].key_id) != before, "the relay knows")

    async def visit(self, peer: Peer, target: str) -> Code | None:
        """How the stream is answered; None if it is opened at home."""
        number = self.next[peer] = self.next.get(peer, -1) + 2
        await peer.send(pair.visit(number, target))
        answered = asyncio.ensure_future(self._reset(peer, number))
        opened = asyncio.ensure_future(self.home.frame(Kind.OPEN))
        done, _ = await asyncio.wait((answered, opened), return_when=asyncio.FIRST_COMPLETED)
        for other in {answered, opened} - done:
            other.cancel()
        if opened in done:
            return None
        return answered.result()

    async def _reset(self, peer: Peer, number: int) -> Code:
        while (frame := await peer.frame(Kind.RESET)).stream != number:
            pass  # the answer to one of ours
        return Code.of(int.from_bytes(frame.payload, "big"))


@asynccontextmanager
async def scene(path: Path, limits: Limits | None = None) -> AsyncIterator[Scene]:
    async with relay(path, limits or Limits()) as bench:
        await bench.close()
        tokens = {
            "home": make_token(bench.home, "home", reach=["own"]),
            "all": make_token(bench.home, "all", names=[], services=[], reach=["*"]),
            "db": make_token(bench.home, "db", names=[], services=[], reach=["db", "gone"]),
            "none": make_token(bench.home, "none"),
            "lab": make_token(bench.home, "lab", reach=["own"]),
        }
        bench.start()
        away, _ = await bench.client("home", "h", tokens["home"])
        assert not (await bench.expose(away, 1, "away", kind="private")).error
        away.close()
        await until(lambda: not bench.server.registry.here("home"), "home is away")
        home, _ = await bench.client("home", "h", tokens["home"])
        for number, name in enumerate(("db", "web"), 1):
            assert not (await bench.expose(home, number, name, kind="private")).error
        yield Scene(bench, home, tokens)


def notes(heard: list[tuple[str, dict[str, Any]]], event: str) -> list[dict[str, Any]]:
    return [fields for name, fields in heard if name == event]


# --- who may visit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "target", "code"),
    [
        ("all", "db", None),
        ("all", "web", None),
        ("all", "away", Code.AWAY),
        ("all", "gone", Code.NO_SERVICE),
        ("db", "db", None),
        ("db", "gone", Code.NO_SERVICE),
        ("db", "web", Code.DENIED),
        ("db", "away", Code.DENIED),
        ("db", "never", Code.DENIED),
        ("home", "db", None),
        ("home", "away", Code.AWAY),
        ("home", "gone", Code.NO_SERVICE),
        ("lab", "db", Code.NO_SERVICE),
        ("lab", "away", Code.NO_SERVICE),
        ("lab", "gone", Code.NO_SERVICE),
        ("all", "", Code.NO_SERVICE),
        ("all", "DB", Code.NO_SERVICE),
        ("all", "*", Code.NO_SERVICE),
        ("all", "d\x00b", Code.NO_SERVICE),
        ("all", "x" * 255, Code.NO_SERVICE),
        ("all", "home/10.0.0.5:22", Code.DENIED),
    ],
)
def test_the_order_of_refusals(run: Run, tmp_path: Path, token: str, target: str, code: Code | None) -> None:
    async def main() -> None:
        async with scene(tmp_path / "r") as it:
            peer = await it.visitor(token)
            assert await it.visit(peer, target) is code

    run(main())


def test_a_service_by_its_number_is_not_for_clients(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path / "r") as it:
            peer = await it.visitor("all")
            await peer.send(wire.frame(Kind.OPEN, 1, wire.pack_open(wire.Open(0, 1000, service=1, target="db"))))
            assert (await peer.frame(Kind.RESET)).payload[-1] == Code.NO_SERVICE

    run(main())


def test_a_token_that_reaches_nothing_has_no_session_without_a_name(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path / "r") as it:
            _, answer = await it.bench.client("", "v", it.tokens["none"], wants=Kind.GOAWAY)
            _, code, text = wire.unpack_goaway(answer.payload)
            assert code is Code.DENIED and "--reach" in text

    run(main())


def test_visitors_without_a_name_take_nobodys_place_and_serve_nothing(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path / "r") as it:
            one, two = await it.visitor("all"), await it.visitor("all")
            assert await it.visit(one, "db") is None and await it.visit(two, "db") is None
            for kind in ("tcp", "private"):
                answer = await it.bench.expose(one, 1, "mine", kind=kind)
                assert answer.error == "bad-request"
            assert "" not in it.bench.server.registry.reservations(0)

    run(main())


def test_a_client_with_a_name_may_visit_too(run: Run, tmp_path: Path) -> None:
    """Itself as well."""

    async def main() -> None:
        async with scene(tmp_path / "r") as it:
            await it.home.send(pair.visit(1, "db"))
            opened = await it.home.frame(Kind.OPEN)
            assert opened.stream % 2 == 0
            await it.home.send(pair.accept(opened.stream, 1000))
            assert (await it.home.frame(Kind.ACCEPT)).stream == 1
            await it.home.send(pair.fin(opened.stream, b"to myself"))
            assert await it.home.half(1) == (b"to myself", Kind.FIN, None)

    run(main())


def test_who_visits_is_said_by_the_relay(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path / "r") as it:
            peer = await it.visitor("all")
            lie = wire.Open(0, 1000, visitor="192.0.2.66:6666", target="web")
            await peer.send(wire.frame(Kind.OPEN, 1, wire.pack_open(lie)))
            request = wire.unpack_open((await it.home.frame(Kind.OPEN)).payload)
            assert request.visitor == "{}:{}".format(*peer.sock.getsockname())
            assert (request.service, request.target) == (2, "")

    run(main())


def test_the_list_of_visitors_counts_where_they_come_from(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with scene(tmp_path / "r") as it:
            for number, network in ((3, "192.0.2.0/24"), (4, "127.0.0.0/8")):
                answer = await it.bench.expose(it.home, number, f"s{number}", kind="private", visitors=(network,))
                assert answer == wire.Exposed(service=number, visitors=1)
            peer = await it.visitor("all")
            assert await it.visit(peer, "s3") is Code.DENIED
            assert await it.visit(peer, "s4") is None
            assert "it is not in the list of visitors" in caplog.text

    run(main())


def test_a_token_that_changes_ends_the_visits(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path / "r") as it:
            peer = await it.visitor("db")
            assert await it.visit(peer, "db") is None
            change_grant(it.bench.home, "db", reach=["web"])
            assert await goaway(peer) is Code.NO_ERROR
            assert (await it.home.frame(Kind.RESET)).payload[-1] == Code.CONNECTION_RESET
            again = await it.visitor("db")
            assert await it.visit(again, "db") is Code.DENIED

    run(main())


def test_so_many_streams_as_the_token_grants(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with scene(tmp_path / "r") as it:
            await it.grants("db", max_streams=2)
            peer = await it.visitor("db")
            assert [await it.visit(peer, "db") for _ in range(3)] == [None, None, Code.LIMIT]
            await peer.send(pair.reset(5), pair.reset(1))  # an answer, and one that has gone
            await it.home.frame(Kind.RESET)
            assert await it.visit(peer, "db") is None
            assert "streams=2 is reached by a visiting client" in caplog.text

    run(main())


def test_visits_take_the_room_of_connections(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`memory` bounds them as it does visitors of ports."""

    async def main() -> None:
        async with scene(tmp_path / "r", Limits(memory=1 << 20)) as it:
            peer = await it.visitor("all")
            room = it.bench.server.runtime.budget
            assert [await it.visit(peer, "db") for _ in range(room)] == [None] * room
            assert await it.visit(peer, "db") is Code.LIMIT
            await peer.send(pair.reset(1))
            await it.home.frame(Kind.RESET)
            assert await it.visit(peer, "db") is None
            assert it.bench.server.runtime.edges == room

    run(main())


@pytest.mark.parametrize("first", ["fin", "visitor-reset", "target-reset", "refused", "dial-timeout", "gone"])
def test_each_visit_is_told_once_with_its_cause(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    heard: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(log, "_hear", lambda event, text, fields: heard.append((event, fields)))

    async def main() -> None:
        async with scene(tmp_path / "r", Limits(answer_time=0.1 if first == "dial-timeout" else 15.0)) as it:
            peer = await it.visitor("all")
            await peer.send(pair.visit(1, "web"))
            there = (await it.home.frame(Kind.OPEN)).stream
            if first not in ("refused", "dial-timeout"):
                await it.home.send(pair.accept(there, 100))
                await peer.frame(Kind.ACCEPT)
                await peer.send(pair.data(1, b"question"))
                await it.home.data(there, 8)
            if first == "fin":
                await it.home.send(pair.fin(there, b"answer"))
                await peer.half(1)
                assert not notes(heard, "visitor.closed")
                await peer.send(pair.fin(1))
            elif first == "visitor-reset":
                await peer.send(pair.reset(1))
            elif first in ("target-reset", "refused"):
                await it.home.send(pair.reset(there, Code.REFUSED if first == "refused" else Code.CONNECTION_RESET))
            elif first == "gone":
                it.home.close()
            await until(lambda: notes(heard, "visitor.closed"), "the end is told")
            await turns()
            (opened,), (closed,) = notes(heard, "visitor.opened"), notes(heard, "visitor.closed")
            assert closed.items() >= opened.items() and opened["stream"] == there
            assert (opened["service"], opened["token"], opened["by_stream"]) == ("web", "all", 1)
            assert opened["visitor"] == "{}:{}".format(*peer.sock.getsockname())
            assert closed["cause"] == {"gone": "tunnel-lost"}.get(first, first)
            said = 8 if first not in ("refused", "dial-timeout") else 0
            assert (closed["bytes_in"], closed["bytes_out"]) == (said, 6 if first == "fin" else 0)

    run(main())


def test_what_a_refusal_tells(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(log, "_hear", lambda event, text, fields: heard.append((event, fields)))

    async def main() -> None:
        async with scene(tmp_path / "r") as it:
            peer = await it.visitor("db")
            await it.visit(peer, "web")
            (told,) = notes(heard, "stream.refused")
            assert (told["cause"], told["rule"], told["service"], told["token"]) == ("denied", "reach", "web", "db")

    run(main())


def test_list_shows_what_the_token_reaches(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path / "r") as it:
            found = {}
            for token in ("all", "db", "home", "lab"):
                peer, _ = await it.bench.client("", "v", it.tokens[token])
                await peer.send(pair.list_())
                answer = wire.unpack_json((await peer.frame(Kind.LISTED)).payload, wire.Listed)
                assert not answer.more
                found[token] = [(one.name, one.here) for one in answer.services]
            everything = [("away", False), ("db", True), ("web", True)]
            assert found == {"all": everything, "db": [("db", True)], "home": everything, "lab": []}

    run(main())


# --- who may have a name -----------------------------------------------------------------------------------------------


ASKS: list[tuple[dict[str, Any], str]] = [
    ({"name": "db"}, "name-taken"),
    ({"name": "away"}, "name-taken"),  # of a client that is here, and does not serve it now
    ({"name": "mine", "port": 20_000}, "bad-request"),
    ({"name": "Mine"}, "bad-request"),
    ({"name": "mine", "kind": "secret"}, "bad-request"),
    ({"name": "mine", "kind": "Private"}, "bad-request"),
    ({"name": "mine", "visitors": ("192.0.2.1",)}, "bad-request"),
    ({"name": "other"}, "not-granted"),
    ({"name": "mine"}, ""),
    ({"name": "mine"}, "name-taken"),
]


def test_names(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path / "r") as it:
            await it.grants("lab", services=["mine", "db", "away"])
            peer, _ = await it.bench.client("lab", "l", it.tokens["lab"])
            for number, (ask, error) in enumerate(ASKS, 1):
                answer = await it.bench.expose(peer, number, **{"kind": "private", **ask})
                assert answer.error == error and not answer.port, ask

    run(main())


def test_port_services_and_private_ones_do_not_meet(run: Run, tmp_path: Path) -> None:
    """A name is one for the relay among private services only."""

    async def main() -> None:
        async with scene(tmp_path / "r") as it:
            await it.grants("lab", ports="relay")
            peer, _ = await it.bench.client("lab", "l", it.tokens["lab"])
            assert (await it.bench.expose(peer, 1, "db")).port
            assert (await it.bench.expose(peer, 2, "db", kind="private")).error == "name-taken"
            visitor = await it.visitor("all")
            assert await it.visit(visitor, "db") is None

    run(main())


def test_a_service_that_is_withdrawn_is_away(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with scene(tmp_path / "r") as it:
            peer = await it.visitor("all")
            await it.home.send(pair.goaway(Code.SHUTDOWN, "bye"))
            await peer.send(pair.visit(1, "db"))
            assert (await peer.frame(Kind.RESET)).payload[-1] == Code.AWAY

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
