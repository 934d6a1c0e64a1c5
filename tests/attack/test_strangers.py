"""Those who have not proved who they are hold nothing for long: good clients get in beside them, from any address, and the log stays readable."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.attack.client import auth, binding, connect, hello, login
from tests.attack.conftest import PLAIN
from tests.attack.frames import Code, Kind, Token, frame
from tests.attack.neighbours import cpu
from tests.attack.strangers import Guessers, Phase, Site, Slowloris
from tests.support import need
from tests.support.peers import Address, until
from tests.support.processes import BEST, Server

MAX_GREETINGS = 1000
HANDSHAKE_TIME = 10.0
GOODBYE_TIME = 2.0
SLACK = 1.5
"""Seconds that a busy machine may add."""
OURS = "127.0.0.1"
"""The good clients', and some of the attackers'."""
LANE, LANES = 20, 100
"""Handshakes a second that are begun for a source with a penalty, and for all of them."""


EITHER = pytest.mark.parametrize("tls", [pytest.param(True, marks=pytest.mark.slow), False], ids=["tls", "plain"])


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Server]:
    need.files(8192)
    with Server(tmp_path / "server") as server:
        yield server


@pytest.fixture(scope="module")
def plain_relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("plain"), PLAIN) as server:
        yield server


def good_clients(address: Address, token: Token, name: str, sources: list[str], every: float) -> list[float]:
    """As many clients as there are sources, one after the other; seconds that each of them took to be admitted."""

    def one(number: int) -> float:
        time.sleep(number * every)
        start = time.monotonic()
        with connect(address, tls=True, source=sources[number]) as line:
            login(line, token, f"{name}-{number}")
            return time.monotonic() - start

    with ThreadPoolExecutor(len(sources)) as pool:
        return list(pool.map(one, range(len(sources))))


def lines_about_strangers(relay: Server) -> int:
    """Lines about strangers so far."""
    return sum('"client.refused"' in line or '"limit.reached"' in line for line in relay.err)


def said(times: list[float]) -> str:
    return f"{len(times)} of {len(times)} admitted, median {statistics.median(times):.3f} s, longest {max(times):.3f} s"


@pytest.mark.slow
def test_slowloris(tmp_path: Path, long: int) -> None:
    """In every phase at once, a fifth of them from the good clients' own address; who is ended comes again."""
    number, rate = (2000 * long, 100.0) if long else (1200, 100.0)
    phases = list(Phase) if long else [Phase.TCP] * 4 + [Phase.CLIENT_HELLO] * 2 + list(Phase)
    sources = [f"127.0.9.{n}" for n in range(1, 41)] + [OURS] * 10
    deadline = HANDSHAKE_TIME if long else 4.0
    need.files(8192)
    with Server(tmp_path / "server", BEST, "--limit", f"handshake-time={deadline:g}s") as relay:
        stalled(relay, Slowloris(relay.address, number, sources, phases, rate), deadline, bool(long))


def stalled(relay: Server, attack: Slowloris, deadline: float, long: bool) -> None:
    """The attack, while good clients come from its addresses and from others."""
    good = [OURS, "127.0.9.7", "127.0.0.9"]
    token = Token.parse(relay.token())
    files, memory, lines, used = relay.files(), relay.rss(), lines_about_strangers(relay), cpu(relay)
    began = time.monotonic()
    with attack:
        until(lambda: attack.opened >= attack.number, "all have come")
        until(lambda: relay.files() - files > 0.95 * MAX_GREETINGS, "the relay is full of strangers")
        most = relay.files() - files
        times = good_clients(relay.address, token, "early", good * 4, 0.1)
        while time.monotonic() - began < deadline + GOODBYE_TIME + SLACK:
            most = max(most, relay.files() - files)
            time.sleep(0.1)
        times += good_clients(relay.address, token, "late", good * 3, 0.05)
        now = time.monotonic()
        oldest = max((now - came for _, came in attack.stalling.values()), default=0.0)
        held = Counter(phase.name for phase, _ in attack.stalling.values())
    grown, used = relay.rss() - memory, cpu(relay) - used
    full = [one for one in attack.past if one.seconds > deadline - 0.5]
    longest = max(one.seconds for one in attack.past)
    print(
        f"slowloris, {attack.opened} connections: good clients {said(times)}; held at most {most}, {dict(held)} in the end; "
        f"{len(full)} had their {deadline:.0f} s, the longest {longest:.2f} s, {len(attack.past) - len(full)} went for others, "
        f"{attack.pushed_out} before they stalled; relay: {used:.1f} s of CPU, +{grown / 1024:.0f} MiB, {lines_about_strangers(relay) - lines} lines"
    )
    assert max(times) < deadline
    assert most <= MAX_GREETINGS + 20
    assert {one.phase for one in full} >= {Phase.HELLO, Phase.AUTH} | (set() if long else set(Phase)), (
        "a deadline for all"
    )
    assert longest < deadline + SLACK and oldest < deadline + GOODBYE_TIME + SLACK
    told = [one.told for one in full if one.phase in (Phase.HELLO, Phase.AUTH) and one.seconds > deadline]
    assert any(told), "they are told why, unless they must go for others in the same moment"
    assert grown < 100 * 1024
    assert lines_about_strangers(relay) - lines < 400


@pytest.mark.slow
def test_a_whole_site_comes_back(relay: Server) -> None:
    """More clients than an address may have in their handshake, at once: they wait for each other, and nobody is closed or pays."""
    site = Site(relay.address, Token.parse(relay.token()), OURS, 250, 0.0)
    with site:
        until(lambda: len(site.admitted) + site.failed == site.number, "all have tried")
    print(f"a site of {site.number} comes back at once: {said(site.admitted)}")
    assert not site.failed
    assert not lines_about_strangers(relay)


def guessed(attack: Guessers, since: float, until: float) -> float:
    """Answers a second."""
    return sum(since <= at < until for at in attack.answered) / (until - since)


@pytest.mark.slow
@pytest.mark.parametrize("many", [False, True], ids=["one address", "many addresses"])
def test_wrong_tokens(relay: Server, long: int, many: bool) -> None:
    """Fifty at once, closed loop. They are answered slowly, and good clients are admitted from the attackers' address and from others."""
    total, patience = (10_000 * long, 1.0) if long else (2_000, 8.0)
    addresses = 1 if not many else 200 if long else 40
    sources = [OURS] if addresses == 1 else [f"127.0.{10 + n // 100}.{1 + n % 100}" for n in range(addresses)]
    token = Token.parse(relay.token())
    wrong = Token(token.key_id, bytes(32), ())
    memory, lines, used = relay.rss(), lines_about_strangers(relay), cpu(relay)
    began = time.monotonic()
    with Guessers(relay.address, wrong, sources, 50, total, patience) as attack:
        until(lambda: any("penalty" in line for line in relay.err), "the penalty has begun")
        if addresses > 1:
            until(lambda: len(attack.answered) > 4 * addresses, "every address has one")
        time.sleep(0.5)  # those whom it has met in the middle
        since = time.monotonic()
        theirs = good_clients(relay.address, token, "theirs", [sources[0]], 0)
        others = good_clients(relay.address, token, "others", ["127.0.0.9"] * 4, 0.2)
        time.sleep(max(0.0, since + 2 - time.monotonic()))
        now = time.monotonic()
        if long:
            while attack.left > 0:
                time.sleep(0.1)
                theirs += good_clients(relay.address, token, "theirs", [sources[0]], 0)
            now = time.monotonic()
    rate = guessed(attack, since, now)
    spent, grown, written = cpu(relay) - used, relay.rss() - memory, lines_about_strangers(relay) - lines
    print(
        f"wrong tokens from {addresses} addresses: {len(attack.answered)} answered, {attack.unanswered} not; "
        f"{rate:.1f} a second under the penalty; good clients: theirs {said(theirs)}, others {said(others)}; "
        f"{written} lines in {now - began:.0f} s; relay: {spent / (now - began):.0%} of a core, +{grown / 1024:.0f} MiB"
    )
    assert (LANE if addresses == 1 else LANES) / 3 < rate <= (LANE if addresses == 1 else LANES) * 1.1
    assert max(theirs) < HANDSHAKE_TIME and max(others) < 2
    assert written <= (25 if addresses == 1 else 125) * (2 + (now - began) / 10)
    assert grown < 50 * 1024


def test_a_login_cannot_be_replayed(plain_relay: Server, long: int) -> None:
    """HELLO and AUTH of a session that was admitted, byte for byte, from two connections of each of many addresses: none of them is admitted."""
    token = Token.parse(plain_relay.token())
    with connect(plain_relay.address, tls=False) as line:
        ours = hello(bytes(32))
        line.send(frame(Kind.HELLO, 0, ours))
        words, _ = auth(token, ours, line.frame(Kind.HELLO).payload, bytes(32), "recorded", "recorded")
        line.send(words)
        line.frame(Kind.WELCOME)
        recorded = frame(Kind.HELLO, 0, ours) + words
        outcomes: Counter[int] = Counter()
        for number in range(1000 * long or 100):
            with connect(
                plain_relay.address, tls=False, source=f"127.2.{number // 500}.{1 + number // 2 % 250}"
            ) as again:
                again.send(recorded)
                outcomes[again.frame(Kind.GOAWAY, Kind.WELCOME).kind] += 1
                outcomes[again.goaway[1] if again.goaway else -1] += 1
        assert line.alive(), "the session that was recorded is not disturbed"
    assert outcomes == {Kind.GOAWAY: 1000 * long or 100, Code.UNAUTHORIZED: 1000 * long or 100}


@EITHER
def test_a_proof_holds_on_its_own_connection_only(request: pytest.FixtureRequest, tls: bool) -> None:
    """AUTH of A, spliced into B, while both are open and have said the same HELLO; then A goes on with it."""
    server: Server = request.getfixturevalue("relay" if tls else "plain_relay")
    token = Token.parse(server.token())
    with connect(server.address, tls=tls) as a, connect(server.address, tls=tls) as b:
        bound = binding(a)
        ours = hello(bound)
        for line in (a, b):
            line.send(frame(Kind.HELLO, 0, ours))
        words, _ = auth(token, ours, a.frame(Kind.HELLO).payload, bound, "spliced", "spliced")
        b.frame(Kind.HELLO)
        b.send(words)
        b.frame(Kind.GOAWAY)
        assert b.goaway and b.goaway[1] == Code.UNAUTHORIZED
        a.send(words)
        a.frame(Kind.WELCOME)


def test_nobody_is_told_which_ids_exist(plain_relay: Server) -> None:
    """The answers to a wrong proof and to an id that is not known are the same bytes, and so are their ends."""
    token = Token.parse(plain_relay.token())
    answers = set()
    for key_id, name in ((token.key_id, "x"), ("unknown_", "x"), (token.key_id, "y"), ("", "x"), ("\u00e9" * 300, "x")):
        with connect(plain_relay.address, tls=False, source="127.4.0.1" if key_id else "127.4.0.2") as line:
            ours = hello(bytes(32))
            line.send(frame(Kind.HELLO, 0, ours))
            line.frame(Kind.HELLO)
            line.send(auth(Token(key_id, bytes(32), ()), ours, ours, bytes(32), name, "x")[0])
            answer = line.frame(Kind.GOAWAY)
            answers.add((answer.payload, line.to_end()))
    assert len(answers) == 1


@EITHER
def test_what_is_said_before_auth_is_not_kept(request: pytest.FixtureRequest, tls: bool) -> None:
    """A flood behind HELLO, or in place of it, ends the connection and leaves nothing; what is less than a frame waits, and costs little more."""
    server: Server = request.getfixturevalue("relay" if tls else "plain_relay")
    floods = [
        frame(Kind.HELLO, 0, b" " * 4096),
        frame(Kind.HELLO, 0, b" " * 4097)[:8],
        frame(Kind.DATA, 1, bytes(4096)),
        frame(Kind.UNKNOWN, 0, bytes(4096)),
        frame(Kind.HELLO, 0, hello(bytes(32))),
    ]
    files, grown = server.files(), []
    for number in range(3):
        before = server.rss()
        for at, start in enumerate(floods):
            with connect(server.address, tls=tls, source=f"127.3.{number}.{1 + at}") as line:
                line.send(start + bytes(1 << 20), timeout=1.0)
                line.until(1, Kind.GOAWAY)
        until(lambda: server.files() <= files + 1, f"all are gone: {files}")
        grown.append(server.rss() - before)
    before = server.rss()
    held = [connect(server.address, tls=tls, source=f"127.3.9.{1 + number}") for number in range(60)]
    for line in held:
        line.send(frame(Kind.HELLO, 0, b" " * 4096)[:-1])
    time.sleep(0.3)
    each = (server.rss() - before) / len(held)
    print(
        f"{'TLS' if tls else 'plain'}: three times 5 MiB of floods: +{grown} KiB; one that waits with a frame: {each:.1f} KiB"
    )
    for line in held:
        line.read()
        assert not line.ended
        line.close()
    assert sum(grown[1:]) < 2048, "two rounds are not more than one"
    assert each < (96 if tls else 16)
