"""A test of a webhook: somebody else's server calls a port of this test.

pytest webhook.py       through a relay on loopback; with FASTRELAY_RELAY and FASTRELAY_TOKEN set through that one, so that the whole internet may call
"""

import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from fastrelay.sync import Server, Tunnel


def pay(hook: str) -> int:
    """What the payment service does: calls the URL that it was given."""
    with urllib.request.urlopen(hook, data=b"paid", timeout=10) as answer:
        status: int = answer.status
        return status


def test_the_hook_is_called(fastrelay_tunnel: Tunnel) -> None:
    told = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with fastrelay_tunnel.expose(server.server_port, name="hook") as hook:
            assert pay(f"http://{hook.host}:{hook.port}/") == 204
        server.shutdown()
    assert told == [b"paid"]


def test_each_test_has_a_tunnel_of_its_own(fastrelay_tunnel: Tunnel, fastrelay_server: Server) -> None:
    assert fastrelay_tunnel.is_up and fastrelay_tunnel.relay == fastrelay_server.url
