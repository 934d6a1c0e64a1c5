"""Invariant: whatever a person types, only UsageError leaves what reads it, one printable sentence that does not show a token's secret. What
is read is the same when it is written and read again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from fastrelay import config
from fastrelay.auth import Token
from fastrelay.errors import UsageError
from tests.fuzz.fuzzer import Fuzzer
from tests.fuzz.texts import slip

SECRET = bytes(range(200, 232))
TOKENS = [Token("k3yID_-0", SECRET, pins).text() for pins in ((), (bytes(32),), (bytes(range(32)), b"\xff" * 32))]
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


def _token(value: object) -> str:
    assert isinstance(value, Token)
    assert repr(value) == f"fr1.{value.key_id}.…"
    return value.text()


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
    "name": Reader(_name, str, ("home-nas", "Ann's MacBook Pro", "HOST.local", "_x", "日本", "")),
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
