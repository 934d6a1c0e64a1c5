"""What server, client, demo and token do as a person sees it: exposures, ports that stay, take-over, reconnecting, draining."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.e2e.conftest import SPREAD
from tests.support import need
from tests.support.payload import Checker, Keystream
from tests.support.peers import (
    TIMEOUT,
    Address,
    End,
    accept,
    ask,
    background,
    connect,
    echoes,
    exactly,
    free_port,
    hang_up,
    knock,
    read_to_end,
    send_and_end,
    until,
)
from tests.support.processes import (
    BEST,
    DEFAULT_PORTS,
    WAYS,
    Client,
    Echo,
    Process,
    Relay,
    Server,
    Way,
    address,
    environment,
    fastrelay,
    message,
)


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    with Echo() as made:
        yield made


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "server") as made:
        yield made


def port_of(echo: Echo) -> str:
    assert not isinstance(echo.target, str)
    return str(echo.target[1])


def free_ports(number: int) -> range:
    """So many ports in a row that nobody has, outside those that the system gives out by itself."""
    while True:
        ports = range(first := random.randrange(10_000, 32_000), first + number)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in ports:
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return ports


def reaches(where: Address, timeout: float) -> bool:
    """Whether an echo is there within the time."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, AssertionError):
            echoes(where)
            return True
        time.sleep(0.02)
    return False


# --- what is exposed ----------------------------------------------------------------------------------------------------


def test_several_exposures_of_one_client(server: Server, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        expose = [str(listener.getsockname()[1]) for listener in listeners]
        client = stack.enter_context(Client(server.url, server.token(), tmp_path / "client", expose=expose))
        addresses = client.addresses()
        assert len(set(addresses)) == 3
        assert all(port in server.ports and host == "127.0.0.1" for host, port in addresses)
        for where, listener in zip(addresses, listeners, strict=True):
            with connect(where) as visitor, accept(listener) as target:
                ours = str(listener.getsockname()[1]).encode()
                target.sendall(ours)
                assert exactly(visitor, len(ours)) == ours
        assert len(client.out) == 3, "one line for each exposure"


def test_who_may_visit(tmp_path: Path) -> None:
    """On a socket for both families an IPv4 visitor counts as IPv4."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server = stack.enter_context(Server(tmp_path / "server", bind="[::]:0"))
        relay = f"127.0.0.1:{server.address[1]}"
        expose = [f"{name}={listener.getsockname()[1]}" for name in ("few", "one", "all")]
        options = ("--visitors", "few=127.0.0.2/31,::1", "--visitors", "one=::1")
        client = stack.enter_context(Client(relay, server.token(), tmp_path / "client", *options, expose=expose))
        few, one, everybody = (port for _, port in client.addresses())
        for port, host, source, admitted in (
            (few, "127.0.0.1", "127.0.0.1", False),
            (few, "127.0.0.1", "127.0.0.2", True),
            (few, "127.0.0.1", "127.0.0.3", True),
            (few, "127.0.0.1", "127.0.0.4", False),
            (few, "::1", "::1", True),
            (one, "127.0.0.1", "127.0.0.2", False),
            (one, "::1", "::1", True),
            (everybody, "127.0.0.1", "127.0.0.1", True),
        ):
            if not admitted:
                with contextlib.suppress(ConnectionResetError), connect((host, port), source=source) as visitor:
                    assert hang_up(visitor)
                continue
            with connect((host, port), source=source) as visitor, accept(listener) as target:
                target.sendall(b"welcome")
                assert exactly(visitor, 7) == b"welcome"
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
        line = json.loads(server.logs("visitor.denied", "few"))
        assert line["visitor"].startswith("127.0.0.1:") and line["service"] == "few" and line["rule"] == "visitors"
        assert "few" not in server.logs("visitor.denied", "one")


def test_several_clients_of_one_server(server: Server, tmp_path: Path) -> None:
    token = server.token()
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(5)]
        clients = [
            stack.enter_context(
                Client(
                    server.url,
                    token,
                    tmp_path / f"c{number}",
                    expose=[str(listener.getsockname()[1])],
                    name=f"c{number}",
                )
            )
            for number, listener in enumerate(listeners)
        ]
        addresses = [client.addresses()[0] for client in clients]
        assert len(set(addresses)) == 5
        for number, (where, listener) in enumerate(zip(addresses, listeners, strict=True)):
            with connect(where) as visitor, accept(listener) as target:
                target.sendall(b"client %d" % number)
                assert exactly(visitor, 8) == b"client %d" % number
        clients[2].kill()
        echo_of_others = [where for number, where in enumerate(addresses) if number != 2]
        for where, listener in zip(
            echo_of_others, [one for number, one in enumerate(listeners) if number != 2], strict=True
        ):
            with connect(where) as visitor, accept(listener) as target:
                target.sendall(b"still here")
                assert exactly(visitor, 10) == b"still here"


def test_unix_socket(server: Server, tmp_path: Path) -> None:
    path = str(tmp_path / "echo.sock")
    with Echo(path), Client(server.url, server.token(), tmp_path / "client", expose=[f"unix:{path}"]) as client:
        where = client.addresses()[0]
        echoes(where)
        with connect(where) as visitor:
            sending = background(send_and_end, visitor, Keystream("unix"), 10_000_000)
            checker = Checker("unix")
            assert read_to_end(visitor, checker) is End.EOF
            assert checker.received == 10_000_000
            sending.result(TIMEOUT)


def test_requested_port(echo: Echo, tmp_path: Path) -> None:
    ports = free_ports(10)
    with Server(tmp_path / "server", ports=ports) as server:
        expose = [f"ssh={ports[7]}:{port_of(echo)}"]
        with Client(server.url, server.token(), tmp_path / "client", expose=expose) as client:
            assert client.addresses() == [("127.0.0.1", ports[7])]
            assert client.out == [f"tcp://127.0.0.1:{ports[7]}"]
            echoes(("127.0.0.1", ports[7]))


def test_next_free_port(echo: Echo, tmp_path: Path) -> None:
    """Ports that other programs have are passed over; when all are gone the client is told so."""
    ports = free_ports(4)
    with contextlib.ExitStack() as stack:
        for port in ports[:2]:
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        server = stack.enter_context(Server(tmp_path / "server", ports=ports))
        token = server.token()
        given = []
        for number in range(2):
            client = stack.enter_context(
                Client(server.url, token, tmp_path / f"c{number}", expose=[port_of(echo)], name=f"c{number}")
            )
            given.append(client.addresses()[0][1])
        assert given == list(ports[2:])
        with Client(server.url, token, tmp_path / "late", expose=[port_of(echo)], name="late") as late:
            assert late.wait() == 3
            assert f"{ports[0]}-{ports[-1]}" in message(late.err[-1])


def test_usual_ports(echo: Echo, tmp_path: Path) -> None:
    with Server(tmp_path / "server", ports=DEFAULT_PORTS) as server:
        with Client(server.url, server.token(), tmp_path / "client", expose=[port_of(echo)]) as client:
            assert client.addresses()[0][1] in DEFAULT_PORTS


def test_ipv6(tmp_path: Path) -> None:
    need.ipv6()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        server = stack.enter_context(Server(tmp_path / "server", bind="[::1]:0"))
        assert re.fullmatch(r"tls://\[::1\]:\d+", server.url)
        client = stack.enter_context(
            Client(server.url, server.token(), tmp_path / "client", expose=[f"[::1]:{listener.getsockname()[1]}"])
        )
        where = client.addresses()[0]
        assert where[0] == "::1"
        visitor = stack.enter_context(connect(where))
        target = stack.enter_context(accept(listener))
        target.sendall(b"six")
        assert exactly(visitor, 3) == b"six"


def test_every_address(echo: Echo, tmp_path: Path) -> None:
    """Bound to [::], a relay is there for IPv4 and IPv6, for clients and for visitors."""
    need.ipv6()
    with Server(tmp_path / "server", bind="[::]:0") as server:
        port = server.address[1]
        with Client(f"tls://127.0.0.1:{port}", server.token(), tmp_path / "client", expose=[port_of(echo)]) as client:
            public = client.addresses()[0][1]
            echoes(("127.0.0.1", public))
            echoes(("::1", public))
        with Client(f"tls://[::1]:{port}", server.token(), tmp_path / "client", expose=[port_of(echo)]) as client:
            assert client.addresses()[0][1] == public


def test_advertised_host(echo: Echo, tmp_path: Path) -> None:
    with (
        Server(tmp_path / "server", BEST, "--advertise", "relay.example.com") as server,
        Client(
            f"tls://127.0.0.1:{port_on_loopback(server)}", server.token(), tmp_path / "client", expose=[port_of(echo)]
        ) as client,
    ):
        assert client.addresses()[0][0] == "relay.example.com"


def port_on_loopback(server: Server) -> int:
    return server.address[1]


# --- ports that stay ----------------------------------------------------------------------------------------------------


def test_port_stays_with_its_client(echo: Echo, tmp_path: Path) -> None:
    """Across restarts of the client and of the relay, though others came meanwhile."""
    expose = [port_of(echo)]
    ports = free_ports(10)
    with Server(tmp_path / "server", ports=ports) as server:
        token = server.token()
        with Client(server.url, token, tmp_path / "client", expose=expose, name="stays") as client:
            first = client.addresses()
        with Client(server.url, token, tmp_path / "other", expose=expose, name="other") as other:
            assert other.addresses() != first
            with Client(server.url, token, tmp_path / "client", expose=expose, name="stays") as client:
                assert client.addresses() == first
        time.sleep(0.1)
    with Server(tmp_path / "server", ports=ports) as server:
        assert server.token() == token
        with Client(server.url, token, tmp_path / "third", expose=expose, name="third") as third:
            assert third.addresses() != first
            with Client(server.url, token, tmp_path / "client", expose=expose, name="stays") as client:
                assert client.addresses() == first
                echoes(first[0])


def test_port_kept_for_a_client_that_is_away(server: Server, echo: Echo, tmp_path: Path) -> None:
    token = server.token()
    with Client(server.url, token, tmp_path / "client", expose=[port_of(echo)], name="away") as client:
        port = client.addresses()[0][1]
    with Client(server.url, token, tmp_path / "other", expose=[f"{port}:{port_of(echo)}"], name="other") as other:
        assert other.wait() == 3
        assert str(port) in message(other.err[-1])


def test_take_over_of_a_stale_session(server: Server, echo: Echo, tmp_path: Path) -> None:
    """The same installation comes again while its old session still stands: the new one has its port at once, the old one gives up."""
    token = server.token()
    with Client(server.url, token, tmp_path / "one", expose=[port_of(echo)], name="same") as stale:
        where = stale.addresses()
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        with connect(where[0]) as visitor:
            ask(visitor, b"before")
            stale.signal(signal.SIGSTOP)
            start = time.monotonic()
            with Client(server.url, token, tmp_path / "two", expose=[port_of(echo)], name="same") as fresh:
                assert fresh.addresses() == where
                assert time.monotonic() - start < 3
                assert hang_up(visitor, 3), "the streams of the old session are reset"
                echoes(where[0])
                stale.signal(signal.SIGCONT)
                assert stale.wait() == 3, "it must not come back by itself"
                assert "Traceback" not in stale.stderr
                echoes(where[0])


# --- targets that do not answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS, ids=repr)
def test_target_that_refuses(tmp_path: Path, echo: Echo, way: Way) -> None:
    """The visitor is reset at once, the log names the target, and the tunnel stays."""
    nobody = free_port()
    with Relay(tmp_path, way, ("127.0.0.1", nobody), echo.target) as relay:
        refusing, echoing = relay.addresses
        with connect(echoing) as open_:
            for _ in range(30):
                with knock(refusing) as visitor:
                    assert hang_up(visitor, 1)
                    with pytest.raises(ConnectionResetError):
                        visitor.recv(1)
            relay.client.logs(f"127.0.0.1:{nobody}", "refused")
            ask(open_, b"the same tunnel")


def test_unix_target_that_is_not_there(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "nobody.sock"
    with Client(server.url, server.token(), tmp_path / "client", expose=[f"unix:{path}"]) as client:
        with knock(client.addresses()[0]) as visitor:
            assert hang_up(visitor, 1)
        client.logs(str(path))


def test_target_with_a_name_that_is_none(server: Server, tmp_path: Path) -> None:
    with Client(server.url, server.token(), tmp_path / "client", expose=["no-such-host.invalid:22"]) as client:
        with knock(client.addresses()[0]) as visitor:
            assert hang_up(visitor, 12)
        client.logs("no-such-host.invalid")


def test_target_that_comes_later(server: Server, tmp_path: Path) -> None:
    port = free_port()
    with Client(server.url, server.token(), tmp_path / "client", expose=[f"127.0.0.1:{port}"]) as client:
        where = client.addresses()[0]
        with connect(where) as visitor:
            assert hang_up(visitor, 1)
        with (
            socket.create_server(("127.0.0.1", port)) as listener,
            connect(where) as visitor,
            accept(listener) as target,
        ):
            target.sendall(b"here now")
            assert exactly(visitor, 8) == b"here now"


# --- coming back --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", SPREAD, ids=repr)
def test_client_comes_back_when_the_relay_does(tmp_path: Path, echo: Echo, way: Way) -> None:
    port = free_port()
    home = tmp_path / "server"
    ports = free_ports(10)
    with Server(home, way, bind=f"127.0.0.1:{port}", ports=ports) as server:
        client = Client(server.url, server.token(), tmp_path / "client", expose=[port_of(echo)], loop=way.loop)
        with client:
            where = client.addresses()[0]
            echoes(where)
            server.kill()
            since = len(client.err)
            client.logs("", since=since)  # it says so
            time.sleep(0.5)
            assert client.popen.poll() is None
            with Server(home, way, bind=f"127.0.0.1:{port}", ports=ports):
                assert reaches(where, 20), client.stderr  # the fourth wait may be 8 s
            assert "Traceback" not in client.stderr


def test_client_waits_for_a_relay(echo: Echo, tmp_path: Path) -> None:
    """A client that is started first is not an error."""
    port = free_port()
    with Server(tmp_path / "server", bind=f"127.0.0.1:{port}") as server:
        token = server.token()
    with Client(f"tls://127.0.0.1:{port}", token, tmp_path / "client", expose=[port_of(echo)]) as client:
        client.logs(f"127.0.0.1:{port}")
        with Server(tmp_path / "server", bind=f"127.0.0.1:{port}"):
            echoes(client.addresses()[0])


# --- ending -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["server", "client"])
@pytest.mark.parametrize("way", WAYS, ids=repr)
def test_first_interrupt_drains_and_second_ends(tmp_path: Path, echo: Echo, way: Way, who: str) -> None:
    with Relay(tmp_path, way, echo.target) as relay:
        process = relay.server if who == "server" else relay.client
        with connect(relay.addresses[0]) as visitor:
            ask(visitor, b"before")
            process.signal(signal.SIGINT)
            time.sleep(0.5)
            assert process.popen.poll() is None
            ask(visitor, b"x" * 100_000)
            until(lambda: not welcome(relay.addresses[0]), "new visitors are turned away")
            ask(visitor, b"while it drains")
            process.signal(signal.SIGINT)
            assert process.wait(5) == 130
            assert hang_up(visitor, 3)
        assert "Traceback" not in process.stderr


def welcome(where: Address) -> bool:
    """Whether a new visitor gets through."""
    try:
        with connect(where, timeout=1) as sock:
            ask(sock, b"?")
    except (OSError, AssertionError):
        return False
    return True


@pytest.mark.parametrize("who", ["server", "client"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_drains_until_the_last_stream(tmp_path: Path, echo: Echo, who: str, number: signal.Signals) -> None:
    """An upload that is under way comes to its end, then the process ends."""
    with Relay(tmp_path, BEST, echo.target) as relay:
        process = relay.server if who == "server" else relay.client
        with connect(relay.addresses[0]) as visitor:
            ask(visitor, b"before")
            process.signal(number)
            time.sleep(0.2)
            sending = background(send_and_end, visitor, Keystream("drain"), 5_000_000)
            checker = Checker("drain")
            assert read_to_end(visitor, checker) is End.EOF
            assert checker.received == 5_000_000
            sending.result(TIMEOUT)
        assert process.wait(5) == (130 if number is signal.SIGINT else 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_without_streams_ends_at_once(tmp_path: Path, echo: Echo, number: signal.Signals) -> None:
    with Relay(tmp_path, BEST, echo.target) as relay:
        for process in (relay.client, relay.server):
            process.signal(number)
            assert process.wait(3) == (130 if number is signal.SIGINT else 0), process.stderr


# --- demo and token -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_demo_serves_a_page(tmp_path: Path, loop: str) -> None:
    """It says what to type, and what it says works."""
    with Process(fastrelay("demo", "--loop", loop), environment(tmp_path)) as demo:
        where = address(demo.line(0))
        demo.wait_for(lambda: "curl" in "\n".join((*demo.out, *demo.err)), "what to type")
        with connect(where) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n")
            answer = b""
            while piece := sock.recv(65_536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"fastrelay" in answer
        demo.signal(signal.SIGINT)
        assert demo.wait(5) in (0, 130)


def test_demo_exposes(tmp_path: Path, echo: Echo) -> None:
    with Process(fastrelay("demo", "--expose", port_of(echo)), environment(tmp_path)) as demo:
        echoes(address(demo.line(0)))


def test_token_is_the_same_every_time(server: Server, tmp_path: Path) -> None:
    first = server.token()
    assert first == server.token()
    assert re.fullmatch(r"fr1\.[\w-]{8}\.[\w-]{43}\.[\w-]{43}", first, re.ASCII)


def test_token_from_a_file(server: Server, echo: Echo, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(server.token() + "\n", encoding="ascii")
    file.chmod(0o600)
    command = fastrelay("client", server.url, "--expose", port_of(echo), "--token-file", str(file))
    with Process(command, environment(tmp_path / "client")) as client:
        echoes(address(client.line(0)))


def test_settings_from_the_environment(server: Server, echo: Echo, tmp_path: Path) -> None:
    """RELAY and the token may both come from there."""
    env = environment(tmp_path / "client", FASTRELAY_RELAY=server.url, FASTRELAY_TOKEN=server.token())
    with Process(fastrelay("client", "--expose", port_of(echo)), env) as client:
        echoes(address(client.line(0)))


def test_state_is_private(server: Server) -> None:
    server.token()
    for path in server.state.rglob("*"):
        if path.is_file() and path.suffix != ".crt":
            assert path.stat().st_mode & 0o077 == 0, f"{path} is open to others"
    assert server.state.joinpath("relay.key").is_file()


def test_self_signed_certificate_of_ones_own(echo: Echo, tmp_path: Path) -> None:
    """`--cert` and `--key`: the token pins them."""
    with Server(tmp_path / "first") as server:
        expected = server.token().split(".")[3]
    paths = ["--cert", str(tmp_path / "first" / "relay.crt"), "--key", str(tmp_path / "first" / "relay.key")]
    with Server(tmp_path / "second", BEST, *paths) as server:
        token = server.token(*paths)
        assert token.split(".")[3] == expected
        with Client(server.url, token, tmp_path / "client", expose=[port_of(echo)]) as client:
            echoes(client.addresses()[0])


def certificate(home: Path) -> tuple[Path, Path, Path]:
    """A CA, and a certificate that it signed for 127.0.0.1: the files of the CA, the certificate and its key."""
    now = datetime.datetime.now(datetime.UTC)

    def make(name: str, issuer: x509.Name | None, signer: ec.EllipticCurvePrivateKey | None) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = x509.CertificateBuilder(issuer or subject, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
        builder = builder.add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key((signer or key).public_key()), critical=False
        )
        host = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = builder.add_extension(x509.SubjectAlternativeName([host]), critical=False)
        usage = x509.KeyUsage(True, False, False, False, False, signer is None, signer is None, False, False)
        builder = builder.add_extension(usage, critical=True)
        made = builder.sign(signer or key, hashes.SHA256())
        plain = serialization.NoEncryption()
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        (home / f"{name}.key").write_bytes(pem)
        (home / f"{name}.key").chmod(0o600)
        (home / f"{name}.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        keys[name] = key

    keys: dict[str, ec.EllipticCurvePrivateKey] = {}
    make("authority", None, None)
    make("relay", x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")]), keys["authority"])
    return home / "authority.crt", home / "relay.crt", home / "relay.key"


def test_certificate_of_an_authority(echo: Echo, tmp_path: Path) -> None:
    """The token has no pin: a client whose machine trusts the CA connects, another sends nothing and ends."""
    authority, cert, key = certificate(tmp_path)
    paths = ["--cert", str(cert), "--key", str(key)]
    with Server(tmp_path / "server", BEST, *paths) as server:
        token = server.token(*paths)
        assert len(token.split(".")) == 3
        with Client(server.url, token, tmp_path / "one", expose=[port_of(echo)], name="one", trust=authority) as client:
            echoes(client.addresses()[0])
        with Client(server.url, token, tmp_path / "two", expose=[port_of(echo)], name="two") as client:
            assert client.wait() == 3
            assert "certificate" in message(client.err[-1])
        elsewhere = server.url.replace("127.0.0.1", "localhost")
        with Client(elsewhere, token, tmp_path / "three", expose=["22"], name="three", trust=authority) as client:
            assert client.wait() == 3, "the certificate is not for that host"
            assert "certificate" in message(client.err[-1])


def test_logs_name_the_visitors_end(server: Server, echo: Echo, tmp_path: Path) -> None:
    """Lines for machines: JSON objects with a time, a level and an event."""
    with Client(server.url, server.token(), tmp_path / "client", expose=[port_of(echo)]) as client:
        echoes(client.addresses()[0])
        for process in (server, client):
            process.wait_for(lambda process=process: bool(process.err), "a line in the log")  # type: ignore[misc]
            for line in process.err:
                entry = json.loads(line)
                assert {"ts", "level", "event"} <= entry.keys(), line


def test_nobody_reads_what_it_says(tmp_path: Path) -> None:
    """`fastrelay … | head -1`: visitors are served on, and a signal still stops it."""
    demo = subprocess.Popen(
        fastrelay("demo"),
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert demo.stdout and demo.stderr
    try:
        where = address(demo.stdout.readline().strip())
        demo.stdout.close()
        demo.stderr.close()
        for _ in range(2):
            with connect(where) as visitor:
                visitor.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert visitor.recv(4096).startswith(b"HTTP/")
        demo.send_signal(signal.SIGTERM)
        demo.wait(TIMEOUT)
    finally:
        demo.kill()
        demo.wait()
