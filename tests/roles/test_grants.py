"""What a token grants is all that a client gets, for as long as the token stands: a relay in this process, clients played by hand."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import pytest

from fastrelay import wire
from fastrelay.auth import Token
from fastrelay.errors import Code
from fastrelay.limits import Limits
from fastrelay.net.notices import Notices
from fastrelay.roles import keyring
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.roles.test_server import RelayBench, events, relay
from tests.support import pair
from tests.support.grants import change_grant, make_token, revoke
from tests.support.pair import Frame
from tests.support.peers import End
from tests.support.tunnel import Peer, turns, until

one_loop = pytest.mark.parametrize("loop_kind", ["asyncio"])
"""For what has nothing to do with the loop."""


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay looks at its tokens all the time."""
    monkeypatch.setattr(keyring, "_LOOK_EVERY", 0.01)


async def token(bench: RelayBench, label: str, **grant: object) -> Token:
    """A token that the relay knows."""
    made = make_token(bench.home, label, **grant)
    await until(lambda: bench.server.keyring._state.find(made.key_id), "the relay has read it")
    return made


def said(answer: Frame) -> tuple[Code, str]:
    _, code, text = wire.unpack_goaway(answer.payload)
    return code, text


async def goodbye(peer: Peer) -> tuple[Code, str]:
    return said(await peer.frame(Kind.GOAWAY))


def fields(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, object]]:
    return [vars(record)["fields"] for record in caplog.records if vars(record).get("event") == event]


# --- who gets in, with what --------------------------------------------------------------------------------------------


@one_loop
def test_a_name_that_is_not_granted(run: Run, tmp_path: Path, soon: None, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            home = await token(bench, "home")
            peer, answer = await bench.client("office", "inst", home, wants=Kind.GOAWAY)
            assert said(answer) == (
                Code.DENIED,
                "the token 'home' is for clients named home, not 'office'; use --name home, or a token for 'office'",
            )
            await peer.frames_to_end()
            peer.close()
            await until(lambda: fields(caplog, "client.refused"), "it was told")
            assert "office" not in bench.server.registry.reservations(0)
            await bench.client("home", "inst", home)

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    (told,) = fields(caplog, "client.refused")
    assert (told["code"], told["name"], told["token"], told["rule"]) == ("DENIED", "office", "home", "names")


@one_loop
def test_services_and_ports_that_are_not_granted(
    run: Run, tmp_path: Path, soon: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            first = bench.ports.first
            home = await token(bench, "home", services=["web-*"], ports=f"{first + 1}-{first + 2}")
            peer, _ = await bench.client("home", "inst", home)
            answer = await bench.expose(peer, 1, "ssh", first + 1)
            assert answer.error == "not-granted" and "for services named web-*, not 'ssh'" in answer.text
            answer = await bench.expose(peer, 1, "web-1", first)
            assert answer.error == "not-granted"
            assert f"the token 'home' grants the ports {first + 1}-{first + 2}, not port {first}" in answer.text
            assert (await bench.expose(peer, 1, "web-1")).port == first + 1
            assert (await bench.expose(peer, 2, "web-2", first + 2)).port == first + 2
            assert (await bench.expose(peer, 3, "web-3")).error == "no-port"
            bare = await token(bench, "bare")
            peer, _ = await bench.client("bare", "inst", bare)
            answer = await bench.expose(peer)
            assert answer.error == "not-granted" and "grants no public port" in answer.text

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    told = fields(caplog, "service.refused")
    assert [one.get("rule") for one in told] == ["services", "ports", None, "ports"]
    assert {one["token"] for one in told} == {"home", "bare"}


@one_loop
def test_how_many_visitors(run: Run, tmp_path: Path, soon: None, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            bench.server.runtime.notices = Notices(asyncio.get_running_loop(), 0.2)
            home = await token(bench, "home", ports=str(bench.ports.first), max_streams=2)
            peer, _ = await bench.client("home", "inst", home)
            port = (await bench.expose(peer)).port
            inside = [await bench.joined(peer, port) for _ in range(2)]
            for _ in range(3):
                assert await (await bench.visit(port)).to_end() == (b"", End.RESET)
            assert events(caplog).count("limit.reached") == 1
            await asyncio.sleep(0.3)
            assert events(caplog).count("limit.reached") == 2
            local, number = inside[0]
            local.reset()
            await peer.frame(Kind.RESET)
            await peer.send(pair.reset(number))
            await bench.joined(peer, port)

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    told = {"limit": "streams", "value": 2, "who": "home"}
    assert fields(caplog, "limit.reached") == [told, told | {"count": 2}]


def test_how_many_clients(run: Run, tmp_path: Path, soon: None, caplog: pytest.LogCaptureFixture) -> None:
    """One more is refused, for now; one that is here may come again, others have their own bound, and who leaves makes room."""

    async def main() -> None:
        async with relay(tmp_path / "r", Limits(clients=2)) as bench:
            lab, home = await token(bench, "lab", names=["lab-*"]), await token(bench, "home")
            one, _ = await bench.client("lab-1", "1", lab)
            await bench.client("lab-2", "2", lab)
            for name in ("lab-3", "lab-4"):
                peer, answer = await bench.client(name, "3", lab, wants=Kind.GOAWAY)
                peer.close()
                code, text = said(answer)
                assert code is Code.CALM and text.startswith("2 clients with the token 'lab' are connected")
            assert not bench.server.registry.here("lab-3")
            await bench.client("home", "4", home)
            again, _ = await bench.client("lab-1", "1", lab)
            assert (await goodbye(one))[0] is Code.SUPERSEDED
            for peer in (one, again):
                peer.close()
            await until(lambda: len(bench.server._tunnels) == 2, "they are gone")
            await bench.client("lab-3", "3", lab)
            await until(lambda: len(fields(caplog, "client.refused")) == 2, "both were told of")
            assert +bench.server._clients == {lab.key_id: 2, home.key_id: 1}

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    assert fields(caplog, "limit.reached")[0] == {"limit": "clients", "value": 2, "who": "the token lab"}
    told = fields(caplog, "client.refused")[0]
    assert (told["code"], told["name"], told["token"]) == ("CALM", "lab-3", "lab")


def test_clients_leave_descriptors_for_others(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            monkeypatch.setattr(bench.server.runtime, "files", 4)
            await bench.client("one", "1")
            _, answer = await bench.client("two", "2", wants=Kind.GOAWAY)
            assert said(answer)[0] is Code.CALM

    run(main())


# --- a token that stands no more ---------------------------------------------------------------------------------------


def test_a_revoked_token_ends_its_sessions_within_a_second(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> float:
        async with relay(tmp_path / "r") as bench:
            first = bench.ports.first
            home, work = [make_token(bench.home, label, ports=f"{first}-{first + 4}") for label in ("home", "work")]
            await until(lambda: bench.server.keyring._state.find(work.key_id), "the relay has read them")
            peer, _ = await bench.client("home", "1", home)
            other, _ = await bench.client("work", "2", work)
            port, others = [(await bench.expose(one)).port for one in (peer, other)]
            local, _ = await bench.joined(peer, port)
            stays, _ = await bench.joined(other, others)
            start = time.monotonic()
            revoke(bench.home, "home")
            assert await local.to_end() == (b"", End.RESET)
            took = time.monotonic() - start
            code, text = await goodbye(peer)
            assert code is Code.UNAUTHORIZED and "'home' was revoked" in text
            with pytest.raises(ConnectionRefusedError):
                await bench.visit(port)
            peer.close()
            _, answer = await bench.client("home", "1", home, wants=Kind.GOAWAY)
            assert said(answer)[0] is Code.UNAUTHORIZED
            assert stays.quiet() and len(bench.server._tunnels) == 1
            await bench.joined(other, others)
            return took

    with caplog.at_level(logging.INFO, "fastrelay"):
        took = run(main())
    print(f"a live stream was reset {took * 1000:.0f} ms after its token was revoked")
    assert took < 1
    (told,) = fields(caplog, "client.dismissed")
    assert (told["name"], told["token"], told["rule"], told["code"]) == ("home", "home", "revoked", "UNAUTHORIZED")
    assert fields(caplog, "token.loaded")[-1] == {"added": [], "removed": ["home"], "changed": []}


def test_a_token_is_good_as_soon_as_it_is_made(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that was revoked lets nobody in from then on: a relay that looks seldom looks at each login."""
    monkeypatch.setattr(keyring, "_LOOK_EVERY", 60.0)

    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            await bench.client("home", "1", make_token(bench.home, "home"))
            gone = make_token(bench.home, "gone")
            revoke(bench.home, "gone")
            _, answer = await bench.client("gone", "2", gone, wants=Kind.GOAWAY)
            assert said(answer)[0] is Code.UNAUTHORIZED

    run(main())


@pytest.mark.slow
def test_all_sessions_of_a_token_end_within_a_second(run: Run, tmp_path: Path, long: int) -> None:
    number = 200 * long or 50

    async def main() -> float:
        async with relay(tmp_path / "r") as bench:
            many = await token(bench, "many", names=["c*"])
            peers = [(await bench.client(f"c{at}", "inst", many))[0] for at in range(number)]
            stays, _ = await bench.client("stays")
            start = time.monotonic()
            revoke(bench.home, "many")
            for peer in peers:
                assert (await goodbye(peer))[0] is Code.UNAUTHORIZED
            took = time.monotonic() - start
            for peer in peers:
                peer.close()
            await until(lambda: len(bench.server._tunnels) == 1, "the other one's is left")
            await bench.expose(stays)
            return took

    took = run(main())
    print(f"{number} sessions had their goodbye {took * 1000:.0f} ms after their token was revoked")
    assert took < 1


@one_loop
def test_a_changed_grant_is_judged_anew(run: Run, tmp_path: Path, soon: None) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            first = bench.ports.first
            home = await token(bench, "home", ports=f"{first}-{first + 4}")
            peer, _ = await bench.client("home", "inst", home)
            assert (await bench.expose(peer, 1, "s1", first + 4)).port == first + 4
            local, _ = await bench.joined(peer, first + 4)
            change_grant(bench.home, "home", ports=str(first))
            assert await local.to_end() == (b"", End.RESET)
            code, text = await goodbye(peer)
            assert code is Code.NO_ERROR and "grants something else" in text
            peer, _ = await bench.client("home", "inst", home)
            assert (await bench.expose(peer, 1, "s1", first + 4)).error == "not-granted"
            assert (await bench.expose(peer, 1, "s1")).port == first, "the port that it had is no longer granted"
            change_grant(bench.home, "home", names=["other"])
            assert (await goodbye(peer))[0] is Code.NO_ERROR
            _, answer = await bench.client("home", "inst", home, wants=Kind.GOAWAY)
            assert said(answer)[0] is Code.DENIED

    run(main())


@one_loop
def test_time(run: Run, tmp_path: Path, soon: None) -> None:
    """A new end in time disturbs nobody; when it has come the session ends, and none begins."""

    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            home = await token(bench, "home", ports=str(bench.ports.first))
            peer, _ = await bench.client("home", "inst", home)
            local, _ = await bench.joined(peer, (await bench.expose(peer)).port)
            change_grant(bench.home, "home", expires=time.time() + 3600)
            tunnel = next(iter(bench.server._tunnels.values()))
            await until(lambda: tunnel.key.grant.expires, "the session knows")
            await local.send(b"still here")
            end = time.time() + 0.15
            change_grant(bench.home, "home", expires=end)
            assert await local.to_end() == (b"", End.RESET)
            assert 0 <= time.time() - end < 1
            code, text = await goodbye(peer)
            assert code is Code.UNAUTHORIZED and "expired at 20" in text
            _, answer = await bench.client("home", "inst", home, wants=Kind.GOAWAY)
            assert said(answer) == (code, text)

    run(main())


@one_loop
def test_only_who_has_the_token_learns_that_it_is_over(run: Run, tmp_path: Path, soon: None) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            old = await token(bench, "old", expires=1)
            answers = [
                (await bench.client("old", "inst", one, wants=Kind.GOAWAY))[1].payload
                for one in (Token(old.key_id, bytes(32)), Token("unknown_", bytes(32)))
            ]
            assert answers[0] == answers[1]
            _, answer = await bench.client("old", "inst", old, wants=Kind.GOAWAY)
            assert answer.payload != answers[0] and b"1970" in answer.payload

    run(main())


@one_loop
def test_the_same_key_id_with_another_secret_is_another_token(run: Run, tmp_path: Path, soon: None) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            home = await token(bench, "home")
            peer, _ = await bench.client("home", "inst", home)
            file = bench.home / "tokens.json"
            other = make_token(bench.home, "other")
            text = file.read_text()
            lines = [line for line in text.splitlines() if "stored_key" in line]
            file.write_text(text.replace(lines[1], lines[2]))
            assert (await goodbye(peer))[0] is Code.UNAUTHORIZED
            assert other.key_id != home.key_id

    run(main())


@one_loop
def test_a_damaged_file_changes_nothing(run: Run, tmp_path: Path, soon: None, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            local, _ = await bench.joined(peer, (await bench.expose(peer)).port)
            file = bench.home / "tokens.json"
            good = file.read_bytes()
            file.write_bytes(good[:-20])
            await until(lambda: "token.not_loaded" in events(caplog), "it was told")
            await asyncio.sleep(0.05)
            assert local.quiet()
            await bench.client("another")
            file.write_bytes(good)
            await until(lambda: "token.loaded" in events(caplog), "it is read again")
            assert local.quiet()
            peer.close()

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    assert events(caplog).count("token.not_loaded") == 1


@one_loop
def test_tokens_that_change_while_the_relay_is_down(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            first = bench.token
            await bench.close()
            home = make_token(bench.home, "home")
            revoke(bench.home, "first")
            bench.start()
            await bench.client("home", "inst", home)
            _, answer = await bench.client("x", "inst", first, wants=Kind.GOAWAY)
            assert said(answer)[0] is Code.UNAUTHORIZED

    run(main())


def test_a_request_while_the_relay_goes_down(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            await bench.joined(peer, (await bench.expose(peer)).port)
            draining = asyncio.ensure_future(bench.server.drain())
            assert (await goodbye(peer))[0] is Code.SHUTDOWN
            await peer.send(pair.expose(2))
            revoke(bench.home, "first")
            assert (await goodbye(peer))[0] is Code.UNAUTHORIZED, "also while it drains"
            peer.close()
            await draining
            await turns()

    run(main())
