"""dhowden/mindmeld: named services that have no port of their own, one test for each behaviour, its defects not carried over.

A provider is played by hand at a real relay; visitors come to the local port of a real caller, as with `fastrelay forward RELAY db`.
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

from fastrelay import wire
from fastrelay.limits import Limits
from fastrelay.mux.stream import NOTHING
from fastrelay.net import door
from fastrelay.roles import visiting
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.roles.test_server import RelayBench, relay
from tests.support import need, pair
from tests.support.callers import CallerBench, caller
from tests.support.peers import End
from tests.support.tunnel import Local, Peer, until

AT_ONCE = 1.0
MUCH = 1 << 20


async def provider(bench: RelayBench, name: str = "home", service: str = "db", instance: str = "inst") -> Peer:
    """A client that serves a private service."""
    peer, _ = await bench.client(name, instance)
    answer = await bench.expose(peer, 1, service, kind="private")
    assert not answer.error, answer
    return peer


async def met(at: CallerBench, peer: Peer) -> tuple[Local, int]:
    """A visitor, and the stream at the provider that was opened for it."""
    local = await at.visit()
    opened = await peer.frame(Kind.OPEN)
    assert wire.unpack_open(opened.payload).service == 1
    return local, opened.stream


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once."""
    monkeypatch.setattr(random, "random", lambda: 0.01)


def test_a_service_is_created_by_its_name_alone(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            peer, _ = await bench.client()
            answer = await bench.expose(peer, 7, "db", kind="private")
            assert answer == wire.Exposed(service=7), "neither a port nor an error"
            assert not bench.server.runtime.doors, "nothing listens for it"

    run(main())


def test_list(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            before = int(time.time())
            async with caller(tmp_path / "c", bench.port, bench.token.text()) as at:
                assert await at.caller.visiting.listing() == []
                peer = await provider(bench)
                await provider(bench, "lab", "web")
                db, web = await at.caller.visiting.listing()
                assert (db.name, db.kind, db.client, db.here) == ("db", "private", "home", True)
                assert before <= db.since <= time.time() + 1
                assert (web.name, web.client, web.here) == ("web", "lab", True)
                peer.close()
                await until(lambda: not bench.server.registry.here("home"), "the provider is gone")
                db, web = await at.caller.visiting.listing()
                assert (db.here, web.here) == (False, True) and db.since >= before

    run(main())


def test_a_long_list_comes_in_pieces(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench, caller(tmp_path / "c", bench.port, bench.token.text()) as at:
            peer, _ = await bench.client("c" * 63)
            names = [f"{number:02}" + "s" * 61 for number in range(50)]
            for number, name in enumerate(names, 1):
                assert not (await bench.expose(peer, number, name, kind="private")).error
            assert [one.name for one in await at.caller.visiting.listing()] == names

    run(main())


def test_forward(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench, caller(tmp_path / "c", bench.port, bench.token.text()) as at:
            peer = await provider(bench)
            local, number = await met(at, peer)
            await peer.send(pair.accept(number, MUCH))
            await local.send(b"a question")
            local.eof()
            assert await peer.half(number) == (b"a question", Kind.FIN, None)
            await peer.send(pair.fin(number, b"an answer"))
            assert await local.to_end() == (b"an answer", End.EOF)

    run(main())


def test_what_is_queued_when_one_side_ends_still_arrives(run: Run, tmp_path: Path) -> None:
    """There the first end closes both directions, and drops what is queued."""

    async def main() -> None:
        async with relay(tmp_path / "r") as bench, caller(tmp_path / "c", bench.port, bench.token.text()) as at:
            peer = await provider(bench)
            local, number = await met(at, peer)
            await peer.send(pair.accept(number, MUCH))
            local.eof()
            assert await peer.half(number) == (b"", Kind.FIN, None)
            size = 200_000
            await peer.send(pair.data(number, bytes(size // 2)), pair.fin(number, bytes(size // 2)))
            await asyncio.sleep(0.05)
            data, end = await local.to_end()
            assert (len(data), end) == (size, End.EOF)

    run(main())


def test_a_name_that_is_taken_is_refused(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            await provider(bench)
            peer, _ = await bench.client("lab", "other")
            answer = await bench.expose(peer, 1, "db", kind="private")
            assert answer.error == "name-taken" and "'db'" in answer.text and "'home'" in answer.text

    run(main())


def test_an_unknown_name_is_not_found(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench, caller(tmp_path / "c", bench.port, bench.token.text()) as at:
            await provider(bench, service="web")
            start = time.monotonic()
            local = await at.visit()
            assert await local.to_end() == (b"", End.RESET)
            assert time.monotonic() - start < AT_ONCE
            assert "There is no private service 'db'" in caplog.text

    run(main())


def test_a_service_lives_as_long_as_its_session(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Then its name is kept for its client, which comes back to it; others do not get it."""

    async def main() -> None:
        async with relay(tmp_path / "r") as bench, caller(tmp_path / "c", bench.port, bench.token.text()) as at:
            first = await provider(bench)
            first.close()
            await until(lambda: not bench.server.registry.here("home"), "the provider is gone")
            assert await (await at.visit()).to_end() == (b"", End.RESET)
            assert "is not connected now" in caplog.text
            other, _ = await bench.client("lab", "other")
            assert (await bench.expose(other, 1, "db", kind="private")).error == "name-reserved"
            again = await provider(bench)
            local, number = await met(at, again)
            await again.send(pair.accept(number), pair.fin(number, b"back"))
            assert await local.to_end() == (b"back", End.EOF)

    run(main())


def test_a_reservation_ends(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r", Limits(reserved_time=0.1)) as bench:
            (await provider(bench)).close()
            await until(lambda: not bench.server.registry.here("home"), "the provider is gone")
            await asyncio.sleep(0.15)
            await provider(bench, "lab", "db", "other")

    run(main())


def test_a_reservation_outlives_the_relay(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench:
            await provider(bench)
            await bench.close()
            bench.start()
            peer, _ = await bench.client("lab", "other")
            answer = await bench.expose(peer, 1, "db", kind="private")
            assert answer.error == "name-reserved" and "'home'" in answer.text
            await provider(bench)

    run(main())


def test_a_service_that_goes_while_a_visitor_waits_resets_it_at_once(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with relay(tmp_path / "r") as bench, caller(tmp_path / "c", bench.port, bench.token.text()) as at:
            peer = await provider(bench)
            local, _ = await met(at, peer)
            start = time.monotonic()
            peer.close()
            assert await local.to_end() == (b"", End.RESET)
            assert time.monotonic() - start < AT_ONCE

    run(main())


def test_a_provider_that_never_answers_times_out(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """There the visitor waits for ever."""

    async def main() -> None:
        async with (
            relay(tmp_path / "r", Limits(answer_time=0.15)) as bench,
            caller(tmp_path / "c", bench.port, bench.token.text()) as at,
        ):
            peer = await provider(bench)
            start = time.monotonic()
            local, number = await met(at, peer)
            assert await local.to_end() == (b"", End.RESET)
            assert 0.15 <= time.monotonic() - start < 0.15 + AT_ONCE
            assert (await peer.frame(Kind.RESET)).stream == number, "and the provider is told"
            assert "did not answer in time" in caplog.text
            await peer.send(pair.reset(number))

    run(main())


@pytest.mark.parametrize("loop_kind", ["uvloop"])
def test_1000_visitors_at_once_each_meet_their_own_stream(run: Run, tmp_path: Path) -> None:
    """All of them wait before the first is answered, and they are answered in any order."""
    number = 1000
    need.files(3 * number)

    async def main() -> None:
        async with relay(tmp_path / "r") as bench, caller(tmp_path / "c", bench.port, bench.token.text()) as at:
            peer = await provider(bench)
            visitors = await asyncio.gather(*(at.visit() for _ in range(number)))
            await asyncio.gather(*(one.send(b"%d" % who) for who, one in enumerate(visitors)))
            streams = [(await peer.frame(Kind.OPEN)).stream for _ in range(number)]
            assert len(set(streams)) == number
            random.Random(1).shuffle(streams)
            await peer.send(*(pair.accept(stream) for stream in streams))
            asked = {}
            for _ in range(number):
                frame = await peer.frame(Kind.DATA)
                asked[frame.stream] = frame.payload
            assert sorted(map(int, asked.values())) == list(range(number))
            random.Random(2).shuffle(streams)
            await peer.send(*(pair.fin(stream, b"answer to " + asked[stream]) for stream in streams))
            answers = await asyncio.gather(*(one.to_end() for one in visitors))
            assert answers == [(b"answer to %d" % who, End.EOF) for who in range(number)]

    run(main())


@pytest.mark.parametrize("loop_kind", ["asyncio"])
def test_more_than_the_relay_takes_are_reset_one_by_one(run: Run, tmp_path: Path) -> None:
    """The session, and whoever is here, does not pay for a crowd that no door holds back."""

    async def main() -> None:
        async with relay(tmp_path / "r") as bench, caller(tmp_path / "c", bench.port, bench.token.text()) as at:
            peer = await provider(bench)
            opened = [at.caller.visiting.open(NOTHING, "db", "") for _ in range(6000)]
            taken = sum(one is not None for one in opened)
            assert 3500 <= taken < 4000
            for _ in range(taken):
                await peer.frame(Kind.OPEN)
            assert at.stood == 1 and not at.running.done()

    run(main())


def test_a_relay_that_is_gone_resets_visitors_and_comes_back(run: Run, tmp_path: Path) -> None:
    """There neither side connects again by itself."""

    async def main() -> None:
        async with relay(tmp_path / "r") as bench, caller(tmp_path / "c", bench.port, bench.token.text()) as at:
            peer = await provider(bench)
            local, _ = await met(at, peer)
            await bench.close()
            assert await local.to_end() == (b"", End.RESET)
            assert await (await at.visit()).to_end() == (b"", End.RESET), "nobody is kept waiting"
            bench.start()
            await at.stands(2)
            again = await provider(bench)
            local, number = await met(at, again)
            await again.send(pair.accept(number), pair.fin(number, b"back"))
            assert await local.to_end() == (b"back", End.EOF)

    run(main())


@pytest.mark.parametrize("loop_kind", ["uvloop"])
def test_a_crowd_waits_at_the_local_port_instead_of_flooding_the_relay(run: Run, tmp_path: Path) -> None:
    """Many more at once than a client may open (here a few hundred): all are served, the session stands."""
    burst = 150

    async def main() -> None:
        async with (
            relay(tmp_path / "r", Limits(flood_open=(2 * burst, 10 * burst))) as bench,
            caller(tmp_path / "c", bench.port, bench.token.text()) as at,
        ):
            peer = await provider(bench)

            async def serve() -> None:
                while True:
                    stream = (await peer.frame(Kind.OPEN)).stream
                    await peer.send(pair.accept(stream), pair.fin(stream, b"served"))

            serving = asyncio.ensure_future(serve())
            visitors = await asyncio.gather(*(at.visit() for _ in range(4 * burst)))
            for one in visitors:
                one.eof()
            answers = await asyncio.gather(*(one.to_end() for one in visitors))
            serving.cancel()
            assert set(answers) == {(b"served", End.EOF)} and at.stood == 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(visiting, "_BURST", burst)
        patch.setattr(visiting, "_RATE", burst * 15 // 2)
        patch.setattr(door, "_TAKEN_PER_TURN", burst // 3)
        run(main())
