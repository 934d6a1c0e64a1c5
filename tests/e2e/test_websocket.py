"""Tunnels inside WebSocket: the same promises, a proxy that ends TLS in front, and a proxy on the way out."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import test_half_close, test_reset
from tests.e2e.test_half_close import KIB, MIB
from tests.support import need
from tests.support.certificates import Authority
from tests.support.connect_proxy import ConnectProxy
from tests.support.payload import Checker, Keystream
from tests.support.peers import (
    TIMEOUT,
    Address,
    accept,
    background,
    connect,
    echoes,
    free_port,
    listens,
    read_to_end,
    send_and_end,
    until,
)
from tests.support.processes import BEST, Client, Echo, Link, Process, Server, Way, message, once, spec

SIZES = [0, 64 * KIB, 4 * MIB]
WEB = [
    Way(False, "uvloop", websocket=True),
    Way(True, "asyncio", websocket=True),
    Way(False, "asyncio", websocket=True),
]
SECRET = "hunter2"


# --- half-close and reset: test_doors.py has more of it, for the fourth way ------------------------------------------------------


@pytest.fixture(scope="module", params=WEB, ids=repr)
def way(request: pytest.FixtureRequest) -> Way:
    assert isinstance(request.param, Way)
    return request.param


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_half_closes_and_resets(link: Link, size: int) -> None:
    test_half_close.test_server_close_read(link, size)
    test_half_close.test_server_close_write(link, size)
    test_half_close.test_client_close_read(link, size)
    test_half_close.test_client_close_write(link, size)
    for who in test_reset.FROM:
        test_reset.test_behind_data(link, who, size)
        test_reset.test_other_end_floods(link, who)


# --- a proxy that ends TLS -------------------------------------------------------------------------------------------------


class Nginx(Process):
    """nginx that ends TLS on loopback, for WebSocket to `relay` alone."""

    def __init__(self, home: Path, relay: Address, authority: Authority) -> None:
        self.address: Address = ("127.0.0.1", free_port())
        cert, key = authority.issue("front", host="127.0.0.1")
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{kind}_temp_path {home}/{kind};\n" for kind in kinds)
        (home / "nginx.conf").write_text(
            f"""
            daemon off; pid {home}/pid; error_log stderr; worker_processes 1;
            events {{ worker_connections 512; }}
            http {{
                access_log off; {temporary}
                server {{
                    listen 127.0.0.1:{self.address[1]} ssl;
                    ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3;
                    location / {{ return 404; }}
                    location /tunnels {{
                        proxy_pass http://{relay[0]}:{relay[1]}/fastrelay;
                        proxy_http_version 1.1;
                        proxy_set_header Upgrade $http_upgrade;
                        proxy_set_header Connection upgrade;
                        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                    }}
                }}
            }}
            """,
            encoding="utf-8",
        )
        super().__init__([need.program("nginx"), "-p", str(home), "-e", "stderr", "-c", str(home / "nginx.conf")])
        try:
            until(lambda: listens(self.address), "nginx listens")
        except BaseException:
            self.__exit__(AssertionError)
            raise

    def __exit__(self, *error: object) -> None:
        self.popen.terminate()  # the master ends its workers; a killed one would not
        self.wait()
        super().__exit__(*error)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str, Path]]:
    """A relay behind nginx, what clients type, and a file with nginx' CA."""
    home = tmp_path_factory.mktemp("front")
    authority = Authority(home / "ca")
    with Server(home / "server", Way(False, BEST.loop, websocket=True), "--advertise", "127.0.0.1") as server:
        with Nginx(home, server.address, authority) as nginx:
            yield server, f"wss://127.0.0.1:{nginx.address[1]}/tunnels", authority.path


@pytest.mark.slow
def test_behind_nginx(front: tuple[Server, str, Path], tmp_path: Path) -> None:
    """Visitors, a bulk in both directions, and whose the client is; then nginx' own end, which is a lost tunnel."""
    server, url, trust = front
    token = server.token()
    assert len(token.split(".")) == 3, "a relay without a certificate of its own has no pin"
    with (
        Echo() as echo,
        Client(url, token, tmp_path, "--behind-proxy", expose=[spec(echo.target)], name="nginx", trust=trust) as client,
    ):
        (address,) = client.addresses()
        echoes(address)
        with connect(address) as sock:
            checker = Checker("nginx")
            sending = background(send_and_end, sock, Keystream("nginx"), 8 * MIB)
            read_to_end(sock, checker)
            sending.result(20)
            assert checker.received == 8 * MIB
        assert '"client":"127.0.0.1"' in server.logs("client.connected", "nginx"), "the address is nginx' word"


@pytest.mark.slow
def test_who_does_not_say_that_there_is_a_proxy(front: tuple[Server, str, Path], tmp_path: Path) -> None:
    server, url, trust = front
    with Client(url, server.token(), tmp_path / "a", expose=["22"], name="unsaid", trust=trust) as client:
        assert client.wait() == 3
        assert "connect with wss:// and --behind-proxy" in client.stderr
    pinned = f"{server.token()}.{'cHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHA'}"
    with Client(url, pinned, tmp_path / "b", expose=["22"], name="pinned", trust=trust) as client:
        assert client.wait() == 3
        assert "if a proxy such as a CDN ends TLS there, say so with --behind-proxy" in client.stderr
    with Client(url, server.token(), tmp_path / "c", "--behind-proxy", expose=["22"], name="distrust") as client:
        assert client.wait() == 3
        assert "is not trusted here" in client.stderr and "behind a proxy a CA must vouch for it" in client.stderr
    direct = f"tcp://127.0.0.1:{server.address[1]}"
    for relay, words in (
        (url.replace("wss", "tls").replace("/tunnels", ""), "it takes HTTP"),
        (direct, "it answers in HTTP"),
    ):
        with Client(relay, server.token(), tmp_path / "d", expose=["22"], trust=trust) as client:
            client.logs("tunnel.retry", f"{words}; for a relay behind that use wss://")


@pytest.mark.slow
def test_what_a_proxy_answers(front: tuple[Server, str, Path], tmp_path: Path) -> None:
    server, url, trust = front
    wrong = url.replace("/tunnels", "/elsewhere")
    options = ("--behind-proxy",)
    with Client(wrong, server.token(), tmp_path, *options, expose=["22"], name="lost", trust=trust) as client:
        client.logs("tunnel.retry", "it answers 404 Not Found: check the path")


# --- a proxy on the way out ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("relay"), BEST) as server:
        yield server


@pytest.mark.parametrize("scheme", [pytest.param("tls", marks=pytest.mark.slow), "wss"])
def test_out_through_a_proxy(relay: Server, tmp_path: Path, scheme: str) -> None:
    """The name is the proxy's to resolve, and its password is told to nobody."""
    where = f"relay.test:{relay.address[1]}"
    audit = tmp_path / "audit"
    with ConnectProxy({where: relay.address}, credentials=f"user:{SECRET}") as proxy, Echo() as echo:
        with_password = f"http://user:{SECRET}@127.0.0.1:{proxy.address[1]}"
        options = ("--audit", str(audit))
        exposed = [spec(echo.target)]
        url = f"{scheme}://{where}"
        with Client(
            url, relay.token(), tmp_path / "c", *options, expose=exposed, name=scheme, HTTPS_PROXY=with_password
        ) as client:
            line = client.line(0)
            echoes(("127.0.0.1", int(line.rpartition(":")[2])))
            assert proxy.requests[0].startswith(f"CONNECT {where} HTTP/1.1\r\n")
        told = client.stderr + audit.read_text(encoding="utf-8")
        assert f"127.0.0.1:{proxy.address[1]}" in told and SECRET not in told and "user:" not in told


@pytest.mark.slow
def test_a_proxy_that_says_no(relay: Server, tmp_path: Path) -> None:
    url, token = "wss://relay.test", relay.token()
    with ConnectProxy(credentials=f"user:{SECRET}") as proxy:
        with Client(url, token, tmp_path, expose=["22"], https_proxy=proxy.url) as client:
            line = message(client.logs("tunnel.retry", "answers 407"))
            assert f"the proxy 127.0.0.1:{proxy.address[1]} of HTTPS_PROXY answers 407: put USER:PASSWORD@" in line
        wrong = f"https://user:{SECRET}@proxy"
        with Client(url, token, tmp_path / "b", expose=["22"], https_proxy=wrong) as client:
            assert client.wait() == 2
            assert "HTTPS_PROXY is not understood" in client.stderr and SECRET not in client.stderr
        asked = len(proxy.requests)
        with Client(url, token, tmp_path / "c", expose=["22"], https_proxy=proxy.url, no_proxy=".test") as client:
            client.logs("tunnel.retry", "cannot connect to wss://relay.test:443")
        assert len(proxy.requests) == asked


# --- one port for both ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_port_for_both(relay: Server, tmp_path: Path) -> None:
    """Native and WebSocket tunnels at once; with a pin, and with the binding to the relay's own certificate."""
    with Echo() as echo:
        exposed = [spec(echo.target)]
        inside = relay.url.replace("tls://", "wss://")
        with (
            Client(relay.url, relay.token(), tmp_path / "a", expose=exposed, name="native") as native,
            Client(inside, relay.token(), tmp_path / "b", expose=exposed, name="web") as web,
            Client(f"{inside}/", relay.token(), tmp_path / "c", expose=exposed, name="path") as path,
            Client(inside, relay.token(), tmp_path / "d", "--behind-proxy", expose=exposed, name="proxied") as proxied,
        ):
            for client in (native, web):
                for address in client.addresses():
                    echoes(address)
            path.logs("tunnel.retry", "it answers 404 Not Found")
            assert proxied.wait() == 3  # the certificate is nobody's whom the CAs know
        listed = once("list", inside, state=tmp_path / "e", token=relay.token())
        assert listed.returncode == 0, listed.stderr


@pytest.mark.parametrize("alpn", [["http/1.1"], [], ["h2", "http/1.1"]], ids=str)
def test_http_at_the_tunnel_port(relay: Server, alpn: list[str]) -> None:
    """Whoever does not ask for a tunnel is answered in HTTP."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    with context.wrap_socket(connect(relay.address)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 404 ")
    relay.logs("client.refused", "it was answered 404 Not Found")


# --- one port for all ---------------------------------------------------------------------------------------------------------


def ask(address: Address, host: str, path: str = "/", forwarded: str = "192.0.2.7") -> bytes:
    """A request as a proxy passes it on; the head of the answer and what comes behind it."""
    with connect(address) as sock:
        head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For: 10.9.8.7, {forwarded}\r\nConnection: close\r\n\r\n"
        sock.sendall(head.encode())
        answer = b""
        while data := sock.recv(4096):
            answer += data
        return answer


def serve(listener: socket.socket, times: int) -> list[bytes]:
    """A target that answers; what it was asked."""
    heads = []
    for _ in range(times):
        with accept(listener) as sock:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += sock.recv(4096)
            heads.append(head)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
    return heads


@pytest.mark.slow
def test_one_port_for_tunnels_and_the_web(tmp_path: Path) -> None:
    """What a platform with a single port needs: a tunnel and the visitors of its services come through the same proxy."""
    address = ("127.0.0.1", free_port())
    where = f"127.0.0.1:{address[1]}"
    way = Way(False, BEST.loop, websocket=True)
    options = ("--http", where, "--domain", "home.test", "--websocket-path", "/t")
    with (
        Server(tmp_path / "server", way, *options, bind=where) as server,
        socket.create_server(("127.0.0.1", 0)) as web,
    ):
        exposed = [f"web=http://127.0.0.1:{web.getsockname()[1]}"]
        visitors = ("--visitors", "192.0.2.0/24")
        with Client(f"ws://{where}/t", server.token(), tmp_path / "c", *visitors, expose=exposed) as client:
            assert client.line(0) == "https://web.home.test"
            serving = background(serve, web, 2)
            for path in ("/", "/t"):
                assert ask(address, "web.home.test", path).endswith(b"\r\n\r\nhello")
            for head in serving.result(TIMEOUT):
                assert b"X-Forwarded-For: 192.0.2.7\r\n" in head and b"X-Forwarded-Proto: https\r\n" in head
                assert b"10.9.8.7" not in head
            assert ask(address, "web.home.test", forwarded="198.51.100.1").startswith(b"HTTP/1.1 403 ")
            assert ask(address, "nobody.home.test").startswith(b"HTTP/1.1 404 ")
            assert ask(address, "home.test", "/healthz").startswith(b"HTTP/1.1 200 ")
            with connect(address) as sock:
                sock.sendall(b"\x16\x03\x01\x00\x05hello")
                assert sock.recv(100).startswith(b"HTTP/1.1 400 ")


def test_one_port_for_everything_under_tls(tmp_path: Path) -> None:
    """Native tunnels by ALPN, visitors by the host that they ask for, and what is left are tunnels inside WebSocket."""
    address = ("127.0.0.1", free_port())
    where = f"127.0.0.1:{address[1]}"
    cert, key = Authority(tmp_path / "ca").issue("web", host="127.0.0.1")
    options = ("--https", where, "--http-cert", str(cert), "--http-key", str(key), "--domain", "home.test")
    with (
        Server(tmp_path / "server", BEST, *options, bind=where) as server,
        socket.create_server(("127.0.0.1", 0)) as web,
    ):
        exposed = [f"web=http://127.0.0.1:{web.getsockname()[1]}"]
        with Client(server.url, server.token(), tmp_path / "a", expose=exposed, name="native") as native:
            assert native.line(0) == f"https://web.home.test:{address[1]}"
            inside = server.url.replace("tls://", "wss://")
            listed = once("list", inside, state=tmp_path / "b", token=server.token())
            assert listed.returncode == 0, listed.stderr
            serving = background(serve, web, 1)
            shown = {
                host: https(address, host, path)
                for host, path in (("web.home.test", "/"), ("home.test", "/healthz"), ("other.test", "/"))
            }
            serving.result(TIMEOUT)
        assert shown["web.home.test"][0] == shown["home.test"][0] == ssl.PEM_cert_to_DER_cert(cert.read_text())
        assert shown["web.home.test"][1].endswith(b"hello") and b" 200 " in shown["home.test"][1]
        assert shown["other.test"][0] != shown["home.test"][0] and b" 404 " in shown["other.test"][1]


def https(address: Address, host: str, path: str) -> tuple[bytes | None, bytes]:
    """A request of a browser: the certificate that it was shown, and the answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    with context.wrap_socket(connect(address), server_hostname=host) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        shown, answer = sock.getpeercert(binary_form=True), b""
        while data := sock.recv(4096):
            answer += data
        return shown, answer
