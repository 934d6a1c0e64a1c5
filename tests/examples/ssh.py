"""Reach ssh of this machine from elsewhere.

python ssh.py RELAY TOKEN [PORT]        on the machine behind NAT; it runs until its input ends (Ctrl-D)
"""

import sys

import fastrelay.sync


def main(relay: str, token: str, port: str = "22") -> None:
    with fastrelay.sync.connect(relay, token=token) as tunnel, tunnel.expose(port, name="ssh") as ssh:
        print(f"ssh -p {ssh.port} you@{ssh.host}", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
