"""A tunnel that has ended is freed at once: the collector, which a relay lets come seldom, has nothing to do with it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

from fastrelay.config import ClientConfig, Exposure, Relay, Target
from fastrelay.roles.client import Client
from fastrelay.state import ClientState
from tests.conftest import Run
from tests.roles.test_server import LOCALHOST, RelayBench
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
