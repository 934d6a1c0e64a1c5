"""Web servers of this machine under host names of their own, all at one port of the relay, which runs with --http or --https and --domain.

python web.py RELAY TOKEN NAME=PORT …       such as blog=8000 shop=8001, for https://blog.DOMAIN and https://shop.DOMAIN; Ctrl-D ends it
"""

import contextlib
import sys

import fastrelay.sync


def main(relay: str, token: str, *sites: str) -> None:
    with fastrelay.sync.connect(relay, token=token) as tunnel, contextlib.ExitStack() as stack:
        for site in sites:
            name, _, port = site.partition("=")
            print(stack.enter_context(tunnel.expose(f"{name}=http://{port}")).url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
