"""psql for a database that has no public port: its machine runs `fastrelay client --expose db=private://5432`.

python psql.py RELAY TOKEN SERVICE [ARGUMENT …]         the arguments are psql's; PGUSER and the like count as ever
"""

import subprocess
import sys

import fastrelay.sync


def main(relay: str, token: str, service: str, *arguments: str) -> int:
    with fastrelay.sync.connect(relay, token=token, name="") as tunnel, tunnel.forward(service) as local:
        return subprocess.run(["psql", "-h", local.host, "-p", str(local.port), *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
