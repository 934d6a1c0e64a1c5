"""A relay that means harm, and the real client: it dials what it listed, keeps what it must, says what is wrong, and goes on."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from tests.attack import frames
from tests.attack.frames import Code, Kind
from tests.attack.line import Line, batches
from tests.attack.neighbours import cpu, unharmed
from tests.attack.relay import Relay
from tests.fuzz.mutate import Peer, mutate
from tests.support import need
from tests.support.peers import accept, until
from tests.support.processes import Client, Echo, spec

REFUSED = 3
MAX_DIALS = 1024
MAX_STREAMS = 65_535
OVER = 1024
FLOOR = 16_384
POOL = 64 << 20
DIAL = 4
"""KiB that a dial costs, at most, until it is over."""
SYN_SENT = 2


def ids() -> Iterator[int]:
    """Of streams that a relay opens."""
    return itertools.count(2, 2)


@contextlib.contextmanager
def hanging() -> Iterator[socket.socket]:
    """A target that never answers: its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield listener


def dials(port: int, state: int = SYN_SENT) -> int:
    """How many connections to a port of this machine are being made."""
    rows = (row.split() for row in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:])
    # By their own address: the kernel may list one twice while others come and go.
    return len({row[1] for row in rows if row[2].endswith(f":{port:04X}") and int(row[3], 16) == state})


class Victim:
    """The real client in the hands of a relay: the first service hangs, the second is an echo."""

    def __init__(self, home: Path) -> None:
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            need.files(4096)
            self.target = stack.enter_context(hanging())
            self.port: int = self.target.getsockname()[1]
            self.echo = stack.enter_context(Echo())
            self.relay = stack.enter_context(Relay())
            expose = [f"hangs={spec(self.target.getsockname())}", f"echo={spec(self.echo.target)}"]
            self.client = stack.enter_context(Client(self.relay.url, self.relay.token.text(), home, expose=expose))
            self.others = dials(self.port)  # of the four that fill the backlog
            self._stack = stack.pop_all()

    def dials(self) -> int:
        return dials(self.port) - self.others

    def close(self, kind: type[BaseException] | None) -> None:
        if kind is None:
            unharmed(self.client)
        self._stack.__exit__(kind, None, None)


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    made = Victim(tmp_path)
    try:
        yield made
    except BaseException as error:
        made.close(type(error))
        raise
    made.close(None)


def serves(line: Line, number: int) -> None:
    """The client still does what it is for: a stream to the echo, there and back."""
    line.send(frames.open_(number, frames.service(2)))
    assert line.frame(Kind.ACCEPT).stream == number
    line.send(frames.data(number, b"still there?"))
    answer = line.frame(Kind.DATA)
    assert (answer.stream, answer.payload) == (number, b"still there?")
    line.send(frames.reset(number))


# --- OPEN without end ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dials_at_once(victim: Victim) -> None:
    """Thousands of streams to a target that hangs: as many dials as protocol.md allows, and none is left when the streams are gone."""
    numbers = ids()
    with victim.relay.welcome(2) as line:
        opened = list(itertools.islice(numbers, 5000))
        line.send(b"".join(frames.open_(number, frames.service(1)) for number in opened))
        until(lambda: victim.dials() == MAX_DIALS, "all dials that may be are under way")
        most = 0
        stop = time.monotonic() + 1
        while time.monotonic() < stop:
            most = max(most, victim.dials())
            line.read()
        line.send(b"".join(frames.reset(number) for number in opened))
        until(lambda: victim.dials() == 0, "no dial is under way")
        serves(line, next(numbers))
        print(
            f"\n{len(opened)} streams to a target that hangs: {most} dials at once; client RSS {victim.client.rss() >> 10} MiB"
        )
    assert most == MAX_DIALS


@pytest.mark.slow
@pytest.mark.usefixtures("only_long")
def test_streams_at_once(victim: Victim) -> None:
    """What is above `max_streams` is refused, and too much of that ends the tunnel, at the number in protocol.md 6.2."""
    before, used = victim.client.rss(), cpu(victim.client)
    with victim.relay.welcome(2) as line:
        flood = (frames.open_(number, frames.service(1)) for number in ids())
        line.flood(batches(flood))
        line.to_end()
        assert line.goaway is not None
        last, code, _ = line.goaway
        assert (last // 2, code) == (MAX_STREAMS + OVER + 1, Code.CALM), line.goaway
        assert line.resets[Code.LIMIT] == OVER
        gained = victim.client.peak() - before
        print(
            f"\nOPEN: cut off at stream {last // 2}, {line.resets[Code.LIMIT]} refused, {victim.dials()} dials; "
            f"client {cpu(victim.client) - used:.1f} s of CPU, +{gained >> 10} MiB"
        )
    assert gained << 10 <= MAX_STREAMS * FLOOR + POOL
    with victim.relay.welcome(2) as line:
        serves(line, 2)


@pytest.mark.slow
def test_rapid_reset(victim: Victim, long: int) -> None:
    """OPEN and RESET, again and again: no dial outlives its stream by much, and those that do are bounded."""
    number = 1_000_000 * long or 10_000
    numbers = ids()
    with victim.relay.welcome(2) as line:
        for target, service in {"hangs": 1, "answers": 2}.items():
            used, before = cpu(victim.client), victim.client.rss()
            opened = itertools.islice(numbers, number)
            words = (frames.open_(one, frames.service(service)) + frames.reset(one) for one in opened)
            assert line.flood(batches(words), patience=60) == number, line.goaway
            serves(line, next(numbers))
            until(lambda: victim.dials() == 0, "no dial is under way")
            used, gained = cpu(victim.client) - used, victim.client.peak() - before
            print(
                f"\nrapid reset by the relay, the target {target}: {number}, {line.resets[Code.LIMIT]} refused, "
                f"{used / number * 1e6:.0f} µs of CPU each, +{gained >> 10} MiB"
            )
            assert gained <= MAX_STREAMS * DIAL


@pytest.mark.slow
def test_early_data(victim: Victim, long: int) -> None:
    """All early data that may come, for streams whose target hangs: within the bound of protocol.md 8.3."""
    number = 10_000 if long else 3000
    before = victim.client.rss()
    with victim.relay.welcome(2) as line:
        numbers = list(itertools.islice(ids(), number))
        # All OPENs first: each stream's window is the smallest that there is.
        line.send(b"".join(frames.open_(one, frames.service(1)) for one in numbers))
        assert line.alive()
        early = bytes(65_536)
        line.flood(batches((frames.data(one, early) for one in numbers), 10))
        assert line.alive(), line.goaway
        gained = victim.client.peak() - before
        bound = (number * FLOOR + POOL) >> 10
        print(
            f"\n{number} streams with 64 KiB of early data each: +{gained >> 10} MiB, bound {bound >> 10} MiB, "
            f"{line.resets[Code.LIMIT]} refused"
        )
        assert gained <= bound * 1.15


# --- floods that a client charges as well -------------------------------------------------------------------------------

FLOODS: dict[str, tuple[Callable[[int], bytes], int, int]] = {
    "PING": (lambda n: frames.ping(n.to_bytes(8, "big")), 20, 1),
    "WINDOW that raises nothing": (lambda n: frames.window(2, 0), 1000, 10),
    "empty DATA": (lambda n: frames.data(2, b""), 1000, 10),
    "unknown optional frame": (lambda n: frames.frame(0xC0 + n % 64, n % 3, bytes(n % 9)), 1000, 100),
}


@pytest.mark.slow
def test_floods_are_cut_off(victim: Victim, long: int) -> None:
    """At the numbers of protocol.md section 12; the client is back by itself each time."""
    said = []
    for name, (one, burst, rate) in itertools.islice(FLOODS.items(), None if long else 2):
        with victim.relay.welcome(2) as line:
            line.send(frames.open_(2, frames.service(2)))
            line.frame(Kind.ACCEPT)
            # Behind each frame an OPEN of no service: the `last` of GOAWAY then says how many were taken.
            flood = (one(number) + frames.open_(2 * number + 4) for number in range(20_000))
            start = time.monotonic()
            line.flood(batches(flood))
            line.to_end()
            assert line.goaway is not None, name
            last, code, text = line.goaway
            assert code == Code.CALM and name in text, text
            taken = last // 2 - 1
            assert burst <= taken <= burst + rate * (time.monotonic() - start)
            said.append(f"{taken} {name}")
    print(f"\na client takes {', '.join(said)}")


# --- answers that are none ----------------------------------------------------------------------------------------------

SILLY = {
    "not asked for": frames.exposed(9, port=20_000),
    "number 0": frames.exposed(0, port=20_000),
    "negative number": frames.exposed(-1, port=20_000),
    "huge number": frames.exposed(1 << 70, port=20_000),
    "twice": frames.exposed(1, port=20_000) * 2,
    "another port": frames.exposed(1, port=20_000) + frames.exposed(1, port=22),
    "negative port": frames.exposed(1, port=-1),
    "port 65536": frames.exposed(1, port=65_536),
    "huge port": frames.exposed(1, port=1 << 70),
    "port as text": frames.exposed(1, port="22"),
    "port as a float": frames.exposed(1, port=22.5),
    "no number": frames.said(Kind.EXPOSED, port=20_000),
    "no JSON": frames.frame(Kind.EXPOSED, 0, b'{"service":1,"port":20000'),
    "not UTF-8": frames.frame(Kind.EXPOSED, 0, b'{"service":1,"error":"\xff"}'),
    "half a surrogate": frames.frame(Kind.EXPOSED, 0, b'{"service":1,"error":"x","text":"\\ud800"}'),
    "deep": frames.frame(Kind.EXPOSED, 0, b'{"service":' + b"[" * 4000),
    "LIST": frames.said(Kind.LIST),
    "LISTED": frames.said(Kind.LISTED, services=[], more=False),
    "EXPOSE": frames.expose(1),
    "HELLO again": frames.said(Kind.HELLO, version=1),
    "WELCOME again": frames.said(Kind.WELCOME, proof="", session=""),
}


@pytest.mark.slow
def test_answers_that_are_none(tmp_path: Path, long: int) -> None:
    """Each ends the tunnel, with its code; what was answered rightly before that was told, and nothing else."""
    with Relay() as relay, Client(relay.url, relay.token.text(), tmp_path, expose=["22"]) as client:
        for name, words in itertools.islice(SILLY.items(), 0, None, 1 if long else 8):
            with relay.greet(relay.meet()) as line:
                line.frame(Kind.EXPOSE)
                line.send(words)
                line.to_end()
                assert line.goaway is not None and line.goaway[1] == Code.PROTOCOL, (name, line.goaway, line.ended)
        with relay.welcome() as line:
            assert line.alive()
        unharmed(client)
        assert client.line(0) and set(client.out) == {"tcp://127.0.0.1:20000"}, client.out


def safe(client: Client) -> None:
    """Nothing that a terminal would act on was written, and every line is one."""
    for line in client.err:
        assert line.isprintable(), line
        assert line.startswith("Error: ") or json.loads(line)["text"].isprintable(), line
    for line in client.out:
        assert line.isprintable() and line.startswith("tcp://"), line


EVIL = "\x1b]0;owned\x07\x1b[2Jnice\r\nfr1.fake\u202egnp.exe\x00\x9b31m"


@pytest.mark.slow
def test_words_for_a_terminal(tmp_path: Path, long: int) -> None:
    """Control characters in whatever a relay may say: they are replaced, or the message is refused."""
    hosts = (EVIL, "a\nb", "\x1b[31m", "x\x7f", "\u2028")[
        : None if long else 1
    ]  # each doubles the wait for the next try
    with Relay() as relay, Client(relay.url, relay.token.text(), tmp_path, expose=["9"]) as client:
        for host in hosts:
            since = len(client.err)
            with relay.greet(relay.meet(40), host=host) as line:
                line.to_end()
                assert line.goaway is not None and line.goaway[1] == Code.PROTOCOL
            client.logs("printable", since=since)
        with relay.meet(40) as line:
            line.send(frames.frame(Kind.GOAWAY, 0, bytes(4) + b"\0\0\0\x05" + EVIL.encode()))
            line.to_end()
        with relay.welcome(timeout=40) as line:
            line.send(frames.open_(2, frames.service(7), frames.field(3, EVIL.encode())))
            line.send(frames.open_(4, frames.service(1), frames.field(3, b"\x1b[2J\xff\n")))
            line.until(2, Kind.RESET)
            line.send(frames.frame(Kind.GOAWAY, 0, bytes(4) + b"\0\0\0\x05" + EVIL.encode()))
            line.to_end()
        assert client.line(0) == "tcp://127.0.0.1:20000"
        safe(client)
        unharmed(client)


@pytest.mark.slow
def test_refusal_with_words_for_a_terminal(tmp_path: Path) -> None:
    with Relay() as relay, Client(relay.url, relay.token.text(), tmp_path, expose=["9"]) as client:
        with relay.greet(relay.meet()) as line:
            line.send(frames.exposed(1, error="port-taken\x1b[2J", text=EVIL))
            line.to_end()
        assert client.wait() == REFUSED
        safe(client)
        assert not client.out


@pytest.mark.parametrize(
    ("tls", "proof"),
    [
        (True, bytes(32)),
        pytest.param(False, bytes(31), marks=pytest.mark.slow),
    ],
    ids=["tls", "plain, short"],
)
def test_wrong_proof(tmp_path: Path, tls: bool, proof: bytes) -> None:
    """It does not know the token: the client gives up, says so, and has asked it for nothing. With the right pin as well."""
    with (
        Relay(tmp_path if tls else None) as relay,
        Client(relay.url, relay.token.text(), tmp_path / "client", expose=["22"]) as client,
    ):
        with relay.greet(relay.meet(), proof=proof) as line:
            line.send(frames.open_(2, frames.service(1)))
            line.until(1, Kind.GOAWAY)
            assert line.heard.keys() == {Kind.HELLO, Kind.AUTH, Kind.GOAWAY}
            assert line.goaway is not None and line.goaway[1] == Code.UNAUTHORIZED
        assert client.wait() == REFUSED
        assert "does not know the token" in client.err[-1]
        assert not client.out


@pytest.mark.slow
def test_another_certificate(tmp_path: Path) -> None:
    """The pin is another relay's: not a byte of HELLO leaves the client."""
    with Relay(tmp_path) as relay:
        token = relay.token._replace(pins=(bytes(32),)).text()
        with Client(relay.url, token, tmp_path / "client", expose=["22"]) as client:
            with contextlib.suppress(ssl.SSLError), relay.meet() as line:  # TLS itself may be all that there was
                line.to_end()
                assert not line.heard and not line.pending
            assert client.wait() == REFUSED
            assert "certificate" in client.err[-1]


@pytest.mark.slow
def test_nonsense(victim: Victim, long: int) -> None:
    """Frames of a relay, some of them broken: each time the client ends the tunnel or goes on, and it is always back by itself."""
    number = 200 * long or 1
    random = Random(number)
    ends: dict[str, int] = {}
    count = mutated = 0
    for _ in range(number):
        with victim.relay.welcome(2) as line:
            peer = Peer(random, dialer=False)
            while not line.ended and line.goaway is None and mutated < 1000 * number:
                sequence = [peer.frame() for _ in range(random.choice((1, 2, 5, 20)))]
                mutated += mutate(random, sequence)
                count += len(sequence)
                line.send(b"".join(sequence))
            line.half_close()
            line.to_end()
            assert line.ended
            why = Code(line.goaway[1]).name if line.goaway else line.ended
            ends[why] = ends.get(why, 0) + 1
    with victim.relay.welcome(2) as line:
        serves(line, 2)
    print(f"\n{number} sessions of nonsense, {count} frames, {mutated} of them broken: {ends}")


@pytest.mark.slow
def test_the_target_is_what_the_client_says(tmp_path: Path) -> None:
    """A session of a relay that means no harm, with the same hands: so the refusals above are for what was said."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Relay(tmp_path) as relay,
        Client(relay.url, relay.token.text(), tmp_path / "client", expose=[spec(listener.getsockname())]) as client,
        relay.welcome() as line,
    ):
        line.send(frames.open_(2, frames.service(1)))
        with accept(listener) as target:
            target.sendall(b"hello")
            assert line.frame(Kind.ACCEPT).stream == 2
            assert line.frame(Kind.DATA).payload == b"hello"
        assert client.line(0) == "tcp://127.0.0.1:20000"
