"""The plugin of pytest: in a pytest of its own, as a project that uses fastrelay would have it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_WEBHOOK = """
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer


def test_webhook(fastrelay_tunnel):
    told = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_): ...

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with fastrelay_tunnel.expose(server.server_port, name="hook") as service:
            url = service.url.replace("tcp://", "http://")
            with urllib.request.urlopen(url, data=b"paid", timeout=10) as answer:
                assert answer.status == 204
        server.shutdown()
    assert told == [b"paid"]


def test_another(fastrelay_tunnel, fastrelay_server):
    assert fastrelay_tunnel.is_up and fastrelay_server.url.startswith("tls://127.0.0.1:")
"""


def test_a_webhook_is_tested(tmp_path: Path) -> None:
    (tmp_path / "test_webhook.py").write_text(_WEBHOOK)
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "fastrelay.testing", "-p", "no:cacheprovider", "-W", "error"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root), "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr
