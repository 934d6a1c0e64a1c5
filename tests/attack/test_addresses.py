"""A relay names addresses to dial, in every form that a resolver or a kernel might take: the client dials what its command line lists."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.attack import frames
from tests.attack.frames import Code, Kind
from tests.attack.line import Line
from tests.attack.namespace import alone, attempts
from tests.attack.neighbours import unharmed
from tests.attack.relay import Relay
from tests.support.peers import accept
from tests.support.processes import Client

HOSTS = (
    # loopback, in the spellings that inet_aton and getaddrinfo take
    *("127.0.0.1", "127.1", "127.0.1", "0x7f.1", "0x7f000001", "0x7f.0x0.0x0.0x1", "2130706433", "017700000001"),
    *("0177.0.0.1", "0177.1", "127.0.0.1.", "127.000.000.001", "127.255.255.254", "localhost", "localhost.", "LOCALHOST"),
    *("localhost.localdomain", "ip6-localhost", "loopback", "a.localhost", "0", "0.0.0.0", "[::]", "::", "[::1]", "::1"),
    *("0:0:0:0:0:0:0:1", "[::ffff:127.0.0.1]", "::ffff:127.0.0.1", "::ffff:7f00:1", "[::127.0.0.1]", "[::1%lo]", "::1%1"),
    *("[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1%lo]", "[fe80::1]", "127。0。0。1", "１２７.0.0.1", "①②⑦.0.0.1"),
    # what a cloud or a house would mind
    *("169.254.169.254", "0xa9fea9fe", "2852039166", "0251.0376.0251.0376", "[fd00:ec2::254]", "metadata.google.internal"),
    *("10.0.0.1", "10.1", "192.168.1.1", "192.168.257", "172.16.0.1", "100.64.0.1", "224.0.0.1", "255.255.255.255", "[ff02::1]"),
    # names, and what is none
    *("example.com", "xn--80ak6aa92e.com", "münchen.example", "a" * 63 + ".example", "a" * 250, "-", "_", "*", "%", ".", "..", ""),
    *("user@127.0.0.1", "user:password@127.0.0.1", "http://127.0.0.1", "unix:/run/docker.sock", "/run/docker.sock"),
    *("file:///etc/passwd", "gopher://127.0.0.1", "127.0.0.1#", "127.0.0.1?", "127.0.0.1/..", "127.0.0.1\\", "$(id)", "`id`"),
    *("127.0.0.1\0", "\0", "127.0.0.1\r\n", "\r\nHost: 127.0.0.1", "127.0.0.1 example.com", " 127.0.0.1", "127.0.0.1\t"),
    *("\x1b[2J", "\u202e1.0.0.721", "\ufeff127.0.0.1", "127.0.0.1\u200b"),
)  # fmt: skip
PORTS = ("{port}", "22", "0", "-1", "65536", "0x16", " 22")
RAW = (b"\xff" * 255, b"\x00" * 255, b"\x80\x81", struct.pack(">4sH", bytes((127, 0, 0, 1)), 22), bytes(range(255)))


def forms(port: int) -> list[bytes]:
    """Values for the field `target`; `port` is one where somebody listens."""
    pairs = itertools.product(HOSTS, PORTS)
    text = [*HOSTS, *(f"{host}:{number.format(port=port)}" for host, number in pairs)]
    return [*(form.encode() for form in text), *RAW]


def refused(line: Line, words: list[bytes]) -> Counter[int]:
    """Each OPEN is answered with RESET: how often with which code."""
    before = Counter(line.resets)
    wanted = line.heard[Kind.RESET] + len(words)
    line.send(b"".join(words))
    line.until(wanted, Kind.RESET)
    return line.resets - before


def test_only_what_the_command_line_lists_is_dialled(tmp_path: Path) -> None:
    print(alone(lambda: name_addresses(tmp_path)))


def name_addresses(home: Path) -> str:
    with (
        socket.create_server(("0.0.0.0", 0), backlog=1024) as forbidden,
        socket.create_server(("127.0.0.1", 0), backlog=1024) as listed,
        Relay() as relay,
        Client(relay.url, relay.token.text(), home, expose=[f"127.0.0.1:{listed.getsockname()[1]}"]) as client,
        relay.welcome() as line,
    ):
        client.addresses()
        forbidden.setblocking(False)
        targets = forms(forbidden.getsockname()[1])
        assert len(targets) >= 500
        before = attempts()
        assert before[0] == 1, "the tunnel, and that it is counted"
        ids = itertools.count(2, 2)

        # Without a service, with one that was never asked for, and as a kind of stream that is not TCP.
        services = {b"": True, frames.service(0): True, frames.service(2): False, frames.service(0xFFFFFFFF): False}
        named = sum(target != b"" for target in targets)
        for service, dials in services.items():
            codes = refused(line, [frames.open_(next(ids), service, frames.field(2, target)) for target in targets])
            denied = named if dials else 0
            assert codes == +Counter({Code.DIAL_DENIED: denied, Code.NO_SERVICE: len(targets) - denied})
        for kind in (1, 2, 255):
            words = (frames.service(1), frames.field(2, b"127.0.0.1:22"))
            assert refused(line, [frames.open_(next(ids), *words, kind=kind)]) == {Code.NO_SERVICE: 1}
        assert line.alive()
        assert attempts() == before, "a connection was tried, or a name was asked for"

        # With the service that is there: its own target is dialled, once for each, and nothing else.
        for target in targets:
            number = next(ids)
            line.send(frames.open_(number, frames.field(2, target), frames.service(1), frames.field(2, target)))
            accept(listed).close()
        line.until(len(targets), Kind.ACCEPT)
        assert attempts() == (before[0] + len(targets), before[1])
        try:
            forbidden.accept()
        except BlockingIOError:
            pass
        else:
            raise AssertionError("a connection came to where none is listed")
        unharmed(client)
    tries = (len(services) + 1) * len(targets)
    return f"\n{len(targets)} forms of an address in {tries} OPENs: 0 connections tried and 0 names asked for but {len(targets)} to the listed target"


# --- with rules of its own -------------------------------------------------------------------------------------------------

REBOUND = {
    "good.evil": ("10.0.0.1",),
    "both.evil": ("127.0.0.1", "10.0.0.2", "169.254.169.254"),
    "loopback.evil": ("127.0.0.1",),
    "any.evil": ("0.0.0.0",),
    "metadata.evil": ("169.254.169.254",),
    "broadcast.evil": ("255.255.255.255",),
    "six.evil": ("::1",),
    "mapped.evil": ("::ffff:127.0.0.1",),
    "compatible.evil": ("::127.0.0.1",),
    "nat64.evil": ("64:ff9b::7f00:1",),
    "6to4.evil": ("2002:7f00:1::",),
    "link.evil": ("fe80::1",),
    "aws.evil": ("fd00:ec2::254",),
}
"""Names whose owner leads them where he likes."""


@contextlib.contextmanager
def resolver() -> Iterator[None]:
    """Answers whatever this machine asks, as all addresses are its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 53))
        thread = threading.Thread(target=answer, args=(sock,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # it wakes the thread, and says that nothing is connected
                sock.shutdown(socket.SHUT_RDWR)
            thread.join()


def answer(sock: socket.socket) -> None:
    while True:
        try:
            question, asker = sock.recvfrom(1500)
        except OSError:
            return
        if not question:
            return
        labels, at = [], 12
        while size := question[at]:
            labels.append(question[at + 1 : at + 1 + size].decode("latin-1").lower())
            at += size + 1
        kind = int.from_bytes(question[at + 1 : at + 3], "big")
        known = map(ipaddress.ip_address, REBOUND.get(".".join(labels), ()))
        found = [one.packed for one in known if kind == (1 if one.version == 4 else 28)]
        flags = 0x8180 if ".".join(labels) in REBOUND else 0x8183
        head = question[:2] + struct.pack(">HHHHH", flags, 1, len(found), 0, 0) + question[12 : at + 5]
        records = [struct.pack(">HHHIH", 0xC00C, kind, 1, 0, len(raw)) + raw for raw in found]
        sock.sendto(head + b"".join(records), asker)


def test_only_what_a_rule_allows_is_dialled(tmp_path: Path) -> None:
    print(alone(lambda: name_places(tmp_path)))


def name_places(home: Path) -> str:
    with (
        socket.create_server(("0.0.0.0", 0), backlog=1024) as v4,
        socket.create_server(("::", v4.getsockname()[1]), family=socket.AF_INET6, backlog=1024) as v6,
        resolver(),
        Relay() as relay,
    ):
        port: int = v4.getsockname()[1]
        targets = [*forms(port), *(f"{name}:{port}".encode() for name in REBOUND)]
        everywhere = {"10.0.0.1", "10.0.0.2", "192.168.1.1", "172.16.0.1", "100.64.0.1"}
        told = []
        for rules, allowed in {
            (f"*.evil:{port}", f"192.168.1.1:{port}", "127.0.0.1:1-21"): {"10.0.0.1", "10.0.0.2", "192.168.1.1"},
            (f"0.0.0.0/0:{port}", f"[::/0]:{port}", f"*:{port}"): everywhere,
        }.items():
            options = [word for rule in rules for word in ("--allow-dial", rule)]
            with (
                Client(relay.url, relay.token.text(), home, *options, expose=[]) as client,
                relay.welcome(0) as line,
            ):
                before, _ = attempts()
                ids = itertools.count(2, 2)
                line.send(b"".join(frames.open_(next(ids), frames.field(2, target)) for target in targets))
                deadline = time.monotonic() + 60
                while (heard := line.heard[Kind.RESET] + line.heard[Kind.ACCEPT]) < len(targets):
                    assert not line.ended and time.monotonic() < deadline, f"{heard} of {len(targets)} are answered"
                    line.read(1)
                reached = Counter[str]()
                for listener in (v4, v6):
                    listener.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            with listener.accept()[0] as sock:
                                reached[sock.getsockname()[0]] += 1
                dialled = attempts()[0] - before
                assert set(reached) == allowed, f"{rules}: {reached}"
                assert dialled == reached.total() == line.heard[Kind.ACCEPT], "every attempt went to where it may"
                assert line.alive()
                unharmed(client)
                told.append(f"{' '.join(rules)}: {dialled} to {', '.join(sorted(reached))}")
    return f"\n{len(targets)} places named to a client with rules; dialled were\n" + "\n".join(told)
