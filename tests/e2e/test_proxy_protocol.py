"""PROXY headers between real programs: HAProxy and nginx in front of the relay, and HAProxy and nginx behind the client."""

from __future__ import annotations

import contextlib
import json
import ssl
from pathlib import Path

import pytest

from tests.support import need
from tests.support.peers import Address, connect, exactly, free_port, listens, until
from tests.support.processes import BEST, Client, Process, Server
from tests.support.web import DOMAIN, TlsSocket, Web, head, request

BALANCER = "127.0.0.9"
VISITOR = "127.0.0.7"
MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


def haproxy(home: Path, sections: str) -> Process:
    path = home / "haproxy.cfg"
    times = "timeout connect 5s\n timeout client 20s\n timeout server 20s"
    path.write_text(f"global\n maxconn 200\ndefaults\n mode tcp\n {times}\n{sections}\n", encoding="utf-8")
    return Process([need.program("haproxy"), "-db", "-f", str(path)])


def nginx(home: Path, sections: str) -> Process:
    if not MODULE.exists():
        need.missing("nginx has no stream module")
    home.mkdir()
    kept = "".join(f"{kind}_temp_path {home}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (home / "nginx.conf").write_text(
        f"load_module {MODULE}; daemon off; master_process off; pid {home}/pid; error_log stderr;\n"
        f"events {{ worker_connections 64; }}\n{sections.replace('HOME', f'access_log off; {kept}')}\n",
        encoding="utf-8",
    )
    return Process([need.program("nginx"), "-p", str(home), "-e", "stderr", "-c", str(home / "nginx.conf")])


def asked(address: Address) -> str:
    """What a target says of a visitor who comes from VISITOR."""
    with connect(address, source=VISITOR) as visitor:
        visitor.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while piece := visitor.recv(65_536):
            answer += piece
    return answer.decode().partition("\r\n\r\n")[2]


def refused(address: Address, source: str) -> bool:
    """HAProxy makes a plain end of a reset."""
    with contextlib.suppress(ConnectionResetError), connect(address, source=source) as visitor:
        visitor.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return not visitor.recv(1)
    return True


def test_whose_a_connection_is_from_one_end_to_the_other(tmp_path: Path) -> None:
    """HAProxy and nginx pass visitors on with both versions; the targets, nginx and HAProxy, say whom they were told of."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(tmp_path / "server", BEST, "--proxy-protocol", f"{BALANCER}/32"))
        one, two = server.ports[:2]
        fronts = [("127.0.0.1", free_port()) for _ in range(3)]
        tunnels, *targets = (("127.0.0.1", free_port()) for _ in range(3))
        stack.enter_context(
            haproxy(
                tmp_path,
                f"frontend target\n mode http\n bind 127.0.0.1:{targets[1][1]} accept-proxy\n"
                ' http-request return status 200 content-type text/plain lf-string "%[src]"\n'
                + "".join(
                    f"listen {name}\n bind 127.0.0.1:{port}\n server relay 127.0.0.1:{to} {sends} source {BALANCER}\n"
                    for name, (_, port), to, sends in (
                        ("v1", fronts[0], one, "send-proxy"),
                        ("v2", fronts[1], two, "send-proxy-v2"),
                        ("tunnels", tunnels, server.address[1], "send-proxy-v2"),
                    )
                ),
            )
        )
        stack.enter_context(
            nginx(
                tmp_path / "nginx",
                f"http {{ HOME server {{ listen 127.0.0.1:{targets[0][1]} proxy_protocol;\n"
                "location / { return 200 $proxy_protocol_addr; } } }\n"
                f"stream {{ server {{ listen 127.0.0.1:{fronts[2][1]}; proxy_pass 127.0.0.1:{two};\n"
                f"proxy_protocol on; proxy_bind {BALANCER}; }} }}",
            )
        )
        for address in (*fronts, tunnels, *targets):
            until(lambda address=address: listens(address), "they listen")  # type: ignore[misc]
        client = stack.enter_context(
            Client(
                f"127.0.0.1:{tunnels[1]}",
                server.token(),
                tmp_path / "client",
                *("--proxy-protocol", "one=v1", "--proxy-protocol", "v2", "--visitors", f"two={VISITOR}"),
                expose=[f"one={one}:{targets[0][1]}", f"two={two}:127.0.0.1:{targets[1][1]}"],
                name="home",
            )
        )
        client.addresses()
        assert json.loads(server.logs("client.connected"))["client"].startswith("127.0.0.1:"), "and not the balancer"

        assert [asked(front) for front in fronts] == [VISITOR] * 3
        assert asked(("127.0.0.1", one)) == VISITOR, "without a balancer the connection says it"
        assert refused(fronts[1], "127.0.0.8"), "who may visit is judged by the header"
        assert refused(("127.0.0.1", one), BALANCER), "a balancer without a header"
        assert json.loads(server.logs("balancer.refused"))["balancer"] == BALANCER
        line = json.loads(server.logs("visitor.denied"))
        assert line["visitor"].startswith("127.0.0.8:") and line["service"] == "two"


@pytest.mark.slow
def test_the_http_front_behind_a_balancer(tmp_path: Path) -> None:
    """In front of TLS the header is in the clear; behind the client it is the target's, in front of the request."""
    header = b"PROXY TCP4 192.0.2.9 198.51.100.1 51528 443\r\n"
    with Web(tmp_path, "--proxy-protocol", "v1", server=("--proxy-protocol", f"{BALANCER}/32")) as web:
        for tls in (False, True):
            with connect(web.https if tls else web.http, source=BALANCER) as sock:
                sock.sendall(header)
                context = ssl.create_default_context(cafile=web.authority.path)
                visitor = TlsSocket(sock, context, f"web.{DOMAIN}") if tls else sock
                visitor.sendall(request("/", "Connection: close"))
                with web.target() as target:
                    told = f"PROXY TCP4 192.0.2.9 127.0.0.1 51528 {web.port}\r\n".encode()
                    assert exactly(target, len(told)) == told
                    assert b"\r\nX-Forwarded-For: 192.0.2.9\r\n" in head(target)
                    target.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    answer = b""
                    while not answer.endswith(b"\r\n\r\nok"):
                        answer += visitor.recv(100)
