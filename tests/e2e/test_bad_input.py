"""Whatever is typed or sent wrongly: one clear sentence, the right exit code, and a server that goes on."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import signal
import socket
import ssl
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastrelay import wire
from fastrelay.errors import Code
from tests.support.peers import TIMEOUT, Address, connect, echoes
from tests.support.processes import BEST, Client, Echo, Relay, Server, Way, message, once

USAGE = 2
REFUSED = 3
TOKEN = "fr1.k3yID_-0.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"


def complaint(done: subprocess.CompletedProcess[str] | Client, *words: str) -> None:
    """stderr says one thing, in one sentence with these words, and nothing that only a programmer reads; stdout says nothing."""
    if isinstance(done, Client):
        lines, out = done.err, "\n".join(done.out)
    else:
        lines, out = done.stderr.splitlines(), done.stdout
    text = "\n".join(lines)
    assert "Traceback" not in text, text
    assert "Error(" not in text, text
    assert not out, f"stdout belongs to data: {out!r}"
    said = [message(line) for line in lines if line.strip() and not line.startswith(("Usage:", "Try "))]
    assert said, "nothing was said"
    last = said[-1]
    assert len(last) < 400, last
    for word in words:
        assert word.lower() in last.lower(), f"{word!r} is not in {last!r}"


# --- what is sent to a relay --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    with Echo() as made:
        yield made


TLS = [BEST, Way(True, "asyncio")]
PLAIN = [Way(False, BEST.loop)]
over_tls = pytest.mark.parametrize("relay", TLS, indirect=True, ids=repr, scope="module")
over_plain = pytest.mark.parametrize("relay", PLAIN, indirect=True, ids=repr, scope="module")


@pytest.fixture(scope="module", params=[*TLS, *PLAIN], ids=repr)
def relay(request: pytest.FixtureRequest, echo: Echo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    with Relay(tmp_path_factory.mktemp("relay"), request.param, echo.target) as made:
        yield made


@pytest.fixture
def unharmed(relay: Relay) -> Iterator[None]:
    """After the test the same processes serve visitors, and no file was left open."""
    before = relay.server.files()
    yield
    assert relay.server.popen.poll() is None, relay.server.stderr
    echoes(relay.addresses[0])
    deadline = TIMEOUT
    while relay.server.files() > before and deadline > 0:
        with contextlib.suppress(TimeoutError):
            relay.server.wait_for(lambda: relay.server.files() <= before, "closed files", 1)
            break
        deadline -= 1
    assert "Traceback" not in relay.server.stderr, relay.server.stderr


def answer_to(address: Address, sent: bytes) -> bytes:
    """Everything that the relay says to these bytes until it closes or resets."""
    with connect(address) as sock:
        answer = b""
        with contextlib.suppress(ConnectionError):
            sock.sendall(sent)
            while piece := sock.recv(65_536):
                answer += piece
        return answer


GARBAGE = {
    "zeros": bytes(65_536),
    "ones": b"\xff" * 65_536,
    "text": b"hello there, is this the relay?\r\n\r\n",
    "http": b"GET / HTTP/1.1\r\nHost: relay\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n" + bytes(1000),
    "proxy": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    "random": bytes((i * 7919 + i // 256 * 104_729) % 256 for i in range(100_000)),
    "large hello": b"\x10\x00\x10\x01\x00\x00\x00\x00" + b"{" * 4097,
    "hello of nothing": b"\x10\x00\x00\x02\x00\x00\x00\x00[]",
    "deep hello": b"\x10\x00\x0f\xff\x00\x00\x00\x00" + b"[" * 4095,
    "data first": b"\x00\x00\x00\x05\x00\x00\x00\x01hello",
}


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_to_the_tunnel_port(relay: Relay, kind: str) -> None:
    answer = answer_to(relay.server.address, GARBAGE[kind])
    if relay.way.tls:
        assert len(answer) < 4096
    assert b"Traceback" not in answer


def context() -> ssl.SSLContext:
    made = ssl.create_default_context()
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.set_alpn_protocols(["fastrelay/1"])
    return made


@over_plain
@pytest.mark.usefixtures("unharmed")
def test_tls_to_a_plain_port(relay: Relay) -> None:
    with connect(relay.server.address) as sock, pytest.raises(OSError, match=r".") as caught:
        context().wrap_socket(sock)
    assert not isinstance(caught.value, TimeoutError)


@over_tls
@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_inside_tls(relay: Relay, kind: str) -> None:
    """It is answered with a GOAWAY that says what is wrong, before anything else is said."""
    with connect(relay.server.address) as raw, context().wrap_socket(raw, suppress_ragged_eofs=False) as sock:
        sock.sendall(GARBAGE[kind])
        answer = b""
        while len(answer) < wire.HEADER_SIZE + 8:
            piece = sock.recv(4096)
            assert piece, answer
            answer += piece
    assert answer[0] == wire.Kind.GOAWAY
    last, code = struct.unpack_from(">II", answer, wire.HEADER_SIZE)
    assert (last, code) in ((0, Code.PROTOCOL), (0, Code.FRAME_SIZE))


@over_tls
@pytest.mark.usefixtures("unharmed")
def test_tls_that_is_too_old(relay: Relay) -> None:
    old = context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with connect(relay.server.address) as raw, pytest.raises((ssl.SSLError, ConnectionError)):
        old.wrap_socket(raw)


@pytest.mark.usefixtures("unharmed")
def test_client_without_tls_at_a_tls_relay_and_the_other_way_round(relay: Relay, tmp_path: Path) -> None:
    wrong = (
        relay.server.url.replace("tls://", "tcp://") if relay.way.tls else relay.server.url.replace("tcp://", "tls://")
    )
    with Client(wrong, relay.token, tmp_path, expose=["22"]) as client:
        client.wait_for(lambda: bool(client.err), "a word about it")
        assert not client.out
        text = message(client.err[0])
        assert relay.server.url.split("//")[1] in text or str(relay.server.address[1]) in text


@pytest.mark.usefixtures("unharmed")
def test_connections_that_say_nothing(relay: Relay) -> None:
    """They are there while others are served; that they are closed after 10 s is another test's business."""
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connect(relay.server.address))
        echoes(relay.addresses[0])


# --- what a relay refuses a client --------------------------------------------------------------------------------------


def changed(token: str, part: int, text: str | None = None) -> str:
    """A token with one part made wrong, in the same form."""
    parts = token.split(".")
    first = parts[part][0]
    parts[part] = ("B" if first != "B" else "C") + parts[part][1:] if text is None else text
    return ".".join(parts)


NAMES = (f"client-{number}" for number in itertools.count())  # a relay keeps a name for the one that had it first


def refused(relay: Relay, token: str, home: Path, *words: str, expose: str = "22", name: str = "") -> None:
    """The client is told so and ends."""
    with Client(relay.server.url, token, home, expose=[expose], name=name or next(NAMES)) as client:
        assert client.wait() == REFUSED, client.stderr
        complaint(client, *words)


@pytest.mark.usefixtures("unharmed")
def test_wrong_secret(relay: Relay, tmp_path: Path) -> None:
    refused(relay, changed(relay.token, 2), tmp_path, "token")


@pytest.mark.usefixtures("unharmed")
def test_unknown_key(relay: Relay, tmp_path: Path) -> None:
    refused(relay, changed(relay.token, 1), tmp_path, "token")


@over_tls
@pytest.mark.usefixtures("unharmed")
def test_wrong_pin(relay: Relay, tmp_path: Path) -> None:
    """The client ends before it has said anything: the relay cannot even log a refused token."""
    since = len(relay.server.err)
    refused(relay, changed(relay.token, 3), tmp_path, "certificate", "token")
    assert not any("unauthorized" in line.lower() for line in relay.server.err[since:])


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "fr1",
        "fr1.",
        "fr1...",
        "fr2.k3yID_-0.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
        "fr1.k3yID_-0.AAEC",
        "fr1.é.ü.ß",
    ],
)
def test_token_of_another_form(tmp_path: Path, token: str) -> None:
    done = once("client", "tls://127.0.0.1:1", "--expose", "22", state=tmp_path, token=token)
    assert done.returncode == USAGE, done.stderr
    complaint(done, "token")
    if len(token) > 20:
        assert token not in done.stderr, "a token is never repeated"


@pytest.mark.usefixtures("unharmed")
def test_second_client_with_the_name(relay: Relay, tmp_path: Path) -> None:
    refused(relay, relay.token, tmp_path, "tested", name="tested")


@pytest.mark.usefixtures("unharmed")
def test_port_taken_by_another_program(relay: Relay, tmp_path: Path) -> None:
    for port in relay.server.ports[50:]:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            refused(relay, relay.token, tmp_path, str(port), expose=f"{port}:22")
            return
    pytest.fail("no port of the range is free")


@pytest.mark.usefixtures("unharmed")
def test_port_of_another_client(relay: Relay, tmp_path: Path) -> None:
    port = relay.addresses[0][1]
    refused(relay, relay.token, tmp_path, str(port), expose=f"{port}:22")


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("which", ["first", "below", "above", "last"])
def test_port_out_of_range(relay: Relay, tmp_path: Path, which: str) -> None:
    ports = relay.server.ports
    port = {"first": 1, "below": ports[0] - 1, "above": ports[-1] + 1, "last": 65_535}[which]
    granted = "granted only by number" if which == "first" else f"{ports[0]}-{ports[-1]}"
    refused(relay, relay.token, tmp_path, str(port), granted, expose=f"{port}:22")


# --- what is typed ------------------------------------------------------------------------------------------------------

SPECS = [
    "",
    "x",
    ":",
    "0",
    "65536",
    "-1",
    "22:",
    ":22:",
    "a=b=22",
    "99999:22",
    "tcp://",
    "gopher://22",
    "web=",
    "1:2:3:4",
    "[::1:22",
    "unix:",
]


@pytest.mark.parametrize("spec", SPECS)
def test_spec_that_is_none(tmp_path: Path, spec: str) -> None:
    done = once("client", "tls://127.0.0.1:1", f"--expose={spec}", state=tmp_path, token=TOKEN)
    assert done.returncode == USAGE, done.stderr
    complaint(done, repr(spec), "20022:22")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], ["nonsense"]),
        (["server", "--bogus"], ["--bogus"]),
        (["client", "--bogus"], ["--bogus"]),
        (["client", "tls://127.0.0.1:1"], ["expose"]),
        (["client", "--expose", "22"], ["relay"]),
        (["client", "gopher://127.0.0.1:1", "--expose", "22"], ["gopher"]),
        (["client", "127.0.0.1:0x", "--expose", "22"], ["127.0.0.1:0x"]),
        (["client", "127.0.0.1:1", "--expose", "22"], ["--token"]),
        (["client", "127.0.0.1:1", "--expose", "22", "--name", "No Such Name!"], ["'No Such Name!'"]),
        (["server", "--bind", "nonsense:port"], ["'nonsense:port'"]),
        (["server", "--bind", "127.0.0.1:99999"], ["99999"]),
        (["server", "--bind", "0.0.0.0:0", "--plaintext"], ["--plaintext", "127.0.0.1"]),
        (["server", "--bind", "[::]:0", "--plaintext"], ["--plaintext", "127.0.0.1"]),
        (["server", "--ports", "9-1"], ["ports"]),
        (["server", "--ports", "x"], ["ports"]),
        (["server", "--loop", "twisted"], ["loop"]),
        (["server", "--cert", "/nonexistent/cert.pem"], ["key"]),
        (["token"], []),
    ],
    ids=" ".join,
)
def test_command_that_is_none(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    done = once(*arguments, state=tmp_path, token=None if words == ["--token"] else TOKEN)
    assert done.returncode == USAGE, (done.returncode, done.stderr)
    complaint(done, *words)


def cannot_start(tmp_path: Path, *arguments: str, words: tuple[str, ...]) -> None:
    done = once("server", "--bind", "127.0.0.1:0", *arguments, state=tmp_path)
    assert done.returncode == REFUSED, (done.returncode, done.stderr)
    complaint(done, *words)


def test_state_that_cannot_be_written(tmp_path: Path) -> None:
    """Root may write everywhere, but nobody may make a directory below a file."""
    (tmp_path / "file").write_text("not a directory", encoding="utf-8")
    for state in (tmp_path / "file", tmp_path / "file" / "below"):
        cannot_start(tmp_path, "--state", str(state), words=(str(state),))


def test_state_that_is_read_only(tmp_path: Path) -> None:
    cannot_start(tmp_path, "--state", "/proc/fastrelay", words=("/proc/fastrelay",))


def test_bind_address_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = once("server", "--bind", f"127.0.0.1:{port}", "--state", str(tmp_path), state=tmp_path)
        assert done.returncode == REFUSED, (done.returncode, done.stderr)
        complaint(done, port)


def test_bind_address_of_another_machine(tmp_path: Path) -> None:
    done = once("server", "--bind", "192.0.2.1:7443", "--state", str(tmp_path), state=tmp_path)
    assert done.returncode == REFUSED, (done.returncode, done.stderr)
    complaint(done, "192.0.2.1")


def test_second_relay_with_the_state(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        cannot_start(tmp_path, "--state", str(tmp_path), words=(str(tmp_path),))
        assert server.popen.poll() is None
        server.token()


@pytest.mark.parametrize("name", ["cert", "key", "both"])
def test_certificate_that_is_none(tmp_path: Path, name: str) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("-----BEGIN NONSENSE-----\n", encoding="ascii")
    cert = str(tmp_path / "missing.pem") if name == "cert" else str(bad)
    key = str(tmp_path / "missing.pem") if name == "key" else str(bad)
    cannot_start(tmp_path, "--state", str(tmp_path / "state"), "--cert", cert, "--key", key, words=(".pem",))


def test_state_whose_key_is_spoilt(tmp_path: Path) -> None:
    """A state directory that was damaged is told, not silently made anew: every token would lose its pin."""
    with Server(tmp_path):
        pass
    keys = [path for path in tmp_path.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert keys
    for path in keys:
        assert path.stat().st_mode & 0o077 == 0, f"{path} is open to others"
        path.write_bytes(b"spoilt")
    cannot_start(tmp_path, "--state", str(tmp_path), words=(str(tmp_path),))


def test_token_of_no_relay(tmp_path: Path) -> None:
    done = once("token", "show", "--state", str(tmp_path / "nothing"), state=tmp_path)
    assert done.returncode in (REFUSED, 1), (done.returncode, done.stderr)
    complaint(done, str(tmp_path / "nothing"))


def test_relay_that_is_not_there(tmp_path: Path) -> None:
    """Not an error that ends: the client says so and goes on trying; it ends when it is told to."""
    with Client("tcp://127.0.0.1:1", TOKEN, tmp_path, expose=["22"]) as client:
        client.wait_for(lambda: len(client.err) >= 2, "two tries")
        assert "127.0.0.1:1" in client.stderr
        client.signal(signal.SIGINT)
        assert client.wait() == 130


def test_help_says_what_there_is(tmp_path: Path) -> None:
    for arguments in ([], ["server"], ["client"], ["demo"], ["token"], ["token", "show"]):
        done = once(*arguments, "--help", state=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "Usage:" in done.stdout
    assert re.fullmatch(r"fastrelay.* \d+\.\d+\.\d+\n", once("--version", state=tmp_path).stdout)


@pytest.mark.usefixtures("unharmed")
def test_logs_are_json(relay: Relay) -> None:
    for process in (relay.server, relay.client):
        for line in process.err:
            assert isinstance(json.loads(line), dict), line
    assert relay.token not in relay.server.stderr + relay.client.stderr
