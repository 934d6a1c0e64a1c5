"""Many fastrelay clients in one process, so that their start does not drown what is measured: each has its own tunnel and public port.

    python -m bench.many_clients RELAY TOKEN TARGET CLIENTS DIRECTORY

Prints a public address for each client, in any order.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from fastrelay.config import ClientConfig, Exposure, Public, Target, parse_relay
from fastrelay.roles.client import Client
from fastrelay.state import ClientState


async def serve(relay: str, token: str, target: int, clients: int, directory: Path) -> None:
    runs = []
    for number in range(clients):
        config = ClientConfig(
            relay=parse_relay(relay),
            token=token,
            exposures=(Exposure("web", 0, Target("127.0.0.1", target)),),
            name=f"client-{number}",
            state=directory / f"client-{number}",
        )
        client = Client(config, ClientState.open(config.state, config.relay.url, config.name), said)
        runs.append(client.run())
    await asyncio.gather(*runs)


def said(_: Exposure, public: Public) -> None:
    print(public.url, flush=True)


def main() -> None:
    relay, token, target, clients, directory = sys.argv[1:]
    import uvloop

    uvloop.run(serve(relay, token, int(target), int(clients), Path(directory)))


if __name__ == "__main__":
    main()
