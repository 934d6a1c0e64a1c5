"""Both ends of a remote port forwarding with asyncssh, on its defaults: asyncio's own loop, its choice of ciphers and windows.

    python -m bench.asyncssh_ends server HOST PORT
    python -m bench.asyncssh_ends client HOST PORT PUBLIC TARGET

The client makes the server listen on port PUBLIC of its loopback, and connects visitors to port TARGET of its own loopback.
"""

from __future__ import annotations

import asyncio
import sys

# It is no dependency of this project: the types are checked where it is installed.
import asyncssh  # type: ignore[import-not-found, unused-ignore]

LOOPBACK = "127.0.0.1"


class Server(asyncssh.SSHServer):  # type: ignore[misc, unused-ignore]
    """Lets everybody in, and listens where they ask: it lives for a measurement."""

    def begin_auth(self, username: str) -> bool:
        return False

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        return True


async def serve(host: str, port: int) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    listener = await asyncssh.listen(host, port, server_factory=Server, server_host_keys=[key], config=None)
    await listener.wait_closed()


async def connect(host: str, port: int, public: int, target: int) -> None:
    # Nothing of the user's: no configuration, no known hosts, no keys.
    options = {"config": None, "known_hosts": None, "client_keys": None, "agent_path": None, "username": "bench"}
    async with asyncssh.connect(host, port, **options) as connection:
        listener = await connection.forward_remote_port(LOOPBACK, public, LOOPBACK, target)
        await listener.wait_closed()


def main() -> None:
    role, host, *numbers = sys.argv[1:]
    if role == "server":
        asyncio.run(serve(host, int(numbers[0])))
    else:
        port, public, target = map(int, numbers)
        asyncio.run(connect(host, port, public, target))


if __name__ == "__main__":
    main()
