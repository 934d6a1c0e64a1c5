"""curl as if it ran in the network of a client, whose machine runs `fastrelay client --allow-dial CIDR`.

python socks.py RELAY TOKEN CLIENT [ARGUMENT …]         the arguments are curl's; names are looked up there
"""

import subprocess
import sys

import fastrelay.sync


def main(relay: str, token: str, client: str, *arguments: str) -> int:
    with fastrelay.sync.connect(relay, token=token, name="") as tunnel, tunnel.client(client).socks() as proxy:
        return subprocess.run(["curl", "--proxy", proxy.url, *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
