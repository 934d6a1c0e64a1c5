"""Invariant: whatever a person types, only UsageError leaves what reads it, one printable sentence that does not show a token's secret. What
is read is the same when it is written and read again.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass

from fastrelay import config, limits, networks, policy
from fastrelay.auth import KEY_SIZE, Token, parse_pin, pin_texts
from fastrelay.dialling import parse_rule
from fastrelay.errors import UsageError
from fastrelay.matching import matches
from tests.fuzz.fuzzer import Fuzzer
from tests.fuzz.texts import slip

NOW = 1_700_000_000.0
SECRET = bytes(range(200, 232))
TOKENS = [Token("k3yID_-0", SECRET, pins).text() for pins in ((), (bytes(32),), (bytes(range(32)), b"\xff" * 32))]
LIMITS = (
    *("streams=100", "control=8M", "control=100000", "dial-time=1.5s", "handshake-time=250ms", "drain-time=1h", "reserved-time=30d"),
    *("flood-open=1000/200", "flood-ping=20/1", "dials=7", "services=64", "handshake-time=0.1"),
)  # fmt: skip
_TELLING = 12  # characters of a secret in a row that are too many


@dataclass(frozen=True)
class Reader:
    """`read` takes what is typed; `write` gives it back. `examples` are right."""

    read: Callable[[str], object]
    write: Callable[[object], str]
    examples: tuple[str, ...]


def _bind(text: str) -> tuple[str, int]:
    return config.parse_bind(text, config.DEFAULT_PORT)


def _bound(value: object) -> str:
    assert isinstance(value, tuple)
    return config.join_host(*value)


def _url(value: object) -> str:
    assert isinstance(value, config.Relay)
    return value.url


def _pin(value: object) -> str:
    assert isinstance(value, bytes) and len(value) == KEY_SIZE
    return pin_texts([value])[0]


def _token(value: object) -> str:
    assert isinstance(value, Token)
    assert repr(value) == f"fr1.{value.key_id}.…"
    return value.text()


def _patterns(text: str) -> str:
    """Those that were read, and a name that fits each of them."""
    patterns = policy.parse_patterns(text, "client")
    for pattern in patterns:
        assert matches(pattern, pattern.replace("*", "")) and matches(pattern, pattern.replace("*", "x-y"))
    return ",".join(patterns)


def _goal(text: str) -> str:
    """The name of a service, or a client and a place that nobody reads in another way."""
    config.check_goal(text)
    if "/" not in text:
        return text
    client, place = config.read_through(text)
    assert place.host.isascii() and (place.address is None) is not bool(re.fullmatch(r"[0-9.]+|.*:.*", place.host))
    return f"{client}/{place}"


def _expiry(text: str) -> float:
    when = policy.parse_expiry(text, NOW)
    assert when > NOW
    assert policy.show_time(when).endswith("Z")
    return when


def _ahead(when: object) -> str:
    """Written as the time from now on where that is what it can be, else as the day that ends then."""
    assert isinstance(when, float)
    for unit, seconds in (("s", 1), ("m", 60), ("h", 3600), ("d", 86400)):
        number, rest = divmod(when - NOW, seconds)
        if not rest and number < 1_000_000 and when - NOW <= 36525 * 86400:
            return f"{number:.0f}{unit}"
    return datetime.datetime.fromtimestamp(when - 1, datetime.UTC).strftime("%Y-%m-%d")


def _visitors(text: str) -> networks.Networks | None:
    """Of the service `ssh`; an address of each network that was read is in it."""
    read = networks.assign([text], ["ssh", "web"]).get("ssh")
    for network in (ipaddress.ip_network(one) for one in (read.texts if read is not None else ())):
        assert read is not None
        assert str(network[0]) in read and str(network[-1]) in read
        if network.version == 4:
            assert f"::ffff:{network[0]}" in read
    return read


def _listed(value: object) -> str:
    """What stands for none is a list for another service."""
    assert value is None or isinstance(value, networks.Networks)
    return "web=192.0.2.7" if value is None else f"ssh={','.join(value.texts)}"


def _limits(value: object) -> str:
    """The one that is not what it is by default, if there is one."""
    assert isinstance(value, limits.Limits)
    settings = limits.SETTINGS.values()
    for one in settings:
        if getattr(value, one.field) != one.default:
            return f"{one.name}={one.show(getattr(value, one.field))}"
    return "streams=65535"


def _name(text: str) -> str:
    name = config.host_name(text)
    assert config.NAME.fullmatch(name), name
    return name


READERS = {
    "expose": Reader(
        config.parse_expose,
        str,
        (
            *("22", "20022:22", "ssh=20022:22", "tcp://22", "cam=20554:192.168.1.7:554", "host:80", "20080:host:80"),
            *("web=unix:/run/web.sock", "80:unix:/run/x=y.sock", "[::1]:22", "a=80:[2001:db8::7]:22", "x=localhost:1"),
        ),
    ),
    "relay": Reader(
        config.parse_relay,
        _url,
        (
            *("relay.example.com", "relay.example.com:7443", "[2001:db8::7]", "[::1]:7443", "tls://h", "tcp://127.0.0.1:1"),
            *("tcp://localhost", "203.0.113.7:443", "TLS://Relay.Example.Com:1", "fe80--1.local", TOKENS[0]),
        ),
    ),
    "bind": Reader(_bind, _bound, ("::", ":7443", ":0", "0.0.0.0", "127.0.0.1:0", "[::]:7443", "[::1]", "h.example:80")),
    "ports": Reader(config.parse_ports, str, ("20000-20999", "1-65535", "22", " 80 - 90 ")),
    "host": Reader(config.parse_host, str, ("relay.example.com", "203.0.113.7", "[::1]", "2001:db8::7", "fe80::1%eth0")),
    "grant": Reader(policy.Ports.parse, str, ("20000-20009,443", "relay", "", "22", "relay,80", "1024-65535")),
    "names": Reader(_patterns, str, ("home", "home,lab-*", "*", "*-x*y", "a*b*c")),
    "expiry": Reader(_expiry, _ahead, ("30d", "12h", "90m", "45s", "2030-12-31", "9999-12-31")),
    "visitors": Reader(
        _visitors,
        _listed,
        (
            *("192.0.2.0/24", "ssh=192.0.2.7", "web=192.0.2.7", "ssh=192.0.2.0/24,2001:db8::/32", "::/0", "0.0.0.0/0"),
            *("::ffff:192.0.2.0/120", "2001:DB8:0::7", "ssh=10.0.0.1,10.0.0.1/32"),
        ),
    ),
    "rule": Reader(
        parse_rule,
        str,
        (
            *("10.0.0.0/8:22,5432", "192.168.1.7:443", "[2001:db8::/32]:22", "2001:db8::/32:22", "*.lab.example:8000-8010", "*"),
            *("0.0.0.0/0", "[::ffff:10.0.0.0/104]:22", "db:1-65535"),
        ),
    ),
    "goal": Reader(
        _goal,
        str,
        (
            *("db", "home/10.0.0.5:22", "home/db.lan:5432", "home/[2001:db8::7]:22", "home/[::ffff:10.0.0.5]:22"),
            *("lab-1/DB.lan:1", "home/127.0.0.1:65535"),
        ),
    ),
    "limits of a relay": Reader(lambda text: limits.parse_limits([text], limits.Side.RELAY), _limits, LIMITS),
    "limits of a client": Reader(lambda text: limits.parse_limits([text], limits.Side.CLIENT), _limits, LIMITS),
    "name": Reader(_name, str, ("home-nas", "Ann's MacBook Pro", "HOST.local", "_x", "日本", "")),
    "pin": Reader(parse_pin, _pin, tuple(pin_texts([bytes(32), SECRET]))),
    "token": Reader(Token.parse, _token, tuple(TOKENS)),
}  # fmt: skip


class Fuzz(Fuzzer):
    """One text after the other, most of them wrong by a little."""

    counted = "texts"

    def step(self) -> None:
        random = self.random
        self.count += 1
        name, reader = random.choice(list(READERS.items()))
        source = reader if random.random() < 0.9 else random.choice(list(READERS.values()))
        text = random.choice(source.examples)
        for _ in range(random.choice((0, 1, 1, 2, 3, 8))):
            text = slip(random, text)
        self.mutated += text not in source.examples
        self.check(name, text)

    def check(self, name: str, text: str) -> None:
        reader = READERS[name]
        try:
            value = reader.read(text)
        except UsageError as error:
            self._sentence(name, str(error), text)
            self.ended(f"{name} refused")
            return
        written = reader.write(value)
        again = reader.read(written)
        assert again == value, f"{name} {text!r} became {written!r} and that {again!r}"
        assert reader.write(again) == written
        self.ended(f"{name} read")

    def _sentence(self, name: str, said: str, text: str) -> None:
        assert said.isprintable() and said.endswith("."), repr(said)
        if name == "token" or (name == "relay" and text.strip().startswith("fr1.")):
            for secret in re.findall(rf"[A-Za-z0-9_-]{{{_TELLING},}}", text):
                shown = (secret[at : at + _TELLING] for at in range(len(secret) - _TELLING + 1))
                assert not any(part in said for part in shown), "a token's secret is shown"
