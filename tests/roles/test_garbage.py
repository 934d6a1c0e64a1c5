"""A tunnel that has ended is freed at once: the collector, which a relay lets come seldom, has nothing to do with it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

import pytest

from fastrelay.config import ClientConfig, Exposure, Relay, Target
from fastrelay.errors import Code
from fastrelay.mux.stream import Stream
from fastrelay.net.splice import End
from fastrelay.roles.client import Client
from fastrelay.roles.visits import Visit
from fastrelay.state import ClientState
from fastrelay.wire import Kind
from tests.conftest import Run
from tests.roles.test_server import LOCALHOST, RelayBench, relay
from tests.support import pair
from tests.support.callers import caller
from tests.support.peers import End as End_
from tests.support.tunnel import until


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An echo of what its tunnel brings before that is lost."""
    try:
        while data := await reader.read(100):
            writer.write(data)
    except ConnectionError:
        pass
    writer.close()


def test_nothing_of_a_tunnel_waits_for_the_collector(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        bench = RelayBench(tmp_path / "relay")
        bench.start()
        relay = Relay(LOCALHOST, bench.port, tls=False)
        target = await asyncio.start_server(answer, LOCALHOST, 0)
        exposures = (Exposure("service", 0, Target(LOCALHOST, target.sockets[0].getsockname()[1])),)
        config = ClientConfig(relay, bench.token.text(), exposures, "home", tmp_path / "client")
        client = Client(config, ClientState.open(config.state, relay.url, "home"), lambda *_: None)
        running = asyncio.create_task(client.run())
        gc.collect()
        gc.disable()
        try:
            for turn in range(3):
                gone = await cut(bench, client, from_client=turn % 2 == 0)
                await until(lambda gone=gone: not any(one() for one in gone), "all of it is freed", 5)  # type: ignore[misc]
        finally:
            gc.enable()
            target.close()
            await client.close()
            await asyncio.gather(running, return_exceptions=True)
            await bench.close()

    async def cut(bench: RelayBench, client: Client, *, from_client: bool) -> list[weakref.ref[object]]:
        """A tunnel comes, and ends; what it was made of."""
        await until(lambda: any(one.services for one in bench.server._tunnels.values()), "the tunnel is up")
        (tunnel,) = bench.server._tunnels.values()
        (service,) = tunnel.services.values()
        visitors = [await bench.visit(service.port) for _ in range(3)]
        for visitor in visitors:  # with streams that have moved, in both directions
            await visitor.send(b"hello")
            assert await visitor.read(5) == b"hello"
        ours = client._link
        assert ours is not None and ours.session is not None
        parts = (tunnel, tunnel.link, tunnel.session, ours, ours.session)
        (ours if from_client else tunnel.link).transport.abort()
        for visitor in visitors:
            visitor.close()
        return [weakref.ref(part) for part in parts]

    run(main())


@pytest.mark.parametrize("how", ["ends", "is reset", "is refused", "is lost"])
def test_nothing_of_a_visit_waits_for_the_collector(run: Run, tmp_path: Path, how: str) -> None:
    """Two streams, two ends of a splice and what they tell: of 50 visits to a private service nothing is left."""

    def alive() -> int:
        return sum(type(one) in (Stream, End, Visit) for one in gc.get_objects())

    async def main() -> None:
        async with relay(tmp_path / "r") as bench, caller(tmp_path / "c", bench.port, bench.token.text()) as at:
            peer, _ = await bench.client()
            await bench.expose(peer, 1, "db", kind="private")
            gc.collect()
            before = alive()
            gc.disable()
            try:
                for _ in range(50):
                    local = await at.visit()
                    number = (await peer.frame(Kind.OPEN)).stream
                    if how == "is refused":
                        await peer.send(pair.reset(number, Code.REFUSED))
                        assert await local.to_end() == (b"", End_.RESET)
                        continue
                    await peer.send(pair.accept(number, 100), pair.data(number, b"hello"))
                    assert await local.read(5) == b"hello"
                    if how == "ends":
                        local.eof()
                        assert await peer.half(number) == (b"", Kind.FIN, None)
                        await peer.send(pair.fin(number))
                        assert await local.to_end() == (b"", End_.EOF)
                    elif how == "is reset":
                        local.reset()
                        await peer.half(number)
                        await peer.send(pair.reset(number))
                assert bench.server.runtime.edges == (50 if how == "is lost" else 0)
                peer.close()
                await until(lambda: not bench.server.runtime.edges, "the visits are over")
                # A decoder that stands knows the last stream that it has fed.
                await until(lambda: alive() <= before + 3, "all of it is freed", 5)
            finally:
                gc.enable()

    run(main())
