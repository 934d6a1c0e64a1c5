"""Texts that a person might type, and what happens to them on the way: slips, pasted halves, strange characters, and strange intent. And JSON
that is sound but says something odd.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

PIECES = (
    *(":", "::", "=", "/", "//", "://", ".", "..", "-", "--", "_", ",", ";", "@", "%", "%25", "[", "]", "[]", "*", "!", "?", "#", "&"),
    *(" ", "\t", "\n", "\r", "\0", "\x1b[31m", "\x7f", "\u00a0", "\u200b", "\u202e", "\ufeff", "\ud800", "\udcff", "\U0001f600"),
    *("ß", "İ", "ı", "K", "٣", "²", "1", "。", "xn--", "ⓐ", "é", "e\u0301"),
    *("0", "00", "1", "-1", "+1", "1_0", "1e3", "0x16", "65535", "65536", "99999", "100000", "9" * 30, "9" * 5000),
    *("127.0.0.1", "0.0.0.0", "1.2.3", "1.2.3.4.5", "010.0.0.1", "::1", "[::1]", "::ffff:127.0.0.1", "fe80::1%eth0", "1::2::3"),
    *("localhost", "LOCALHOST", "unix:", "unix:/", "unix://", "tcp://", "tls://", "TLS://", "udp://", "http://", "fr1.", "fr2."),
    *("a", "A", "z", "a" * 63, "a" * 64, "a" * 300, "/32", "/0", "/-1", "/129", "true", "null", "None", "nan", "inf", "{}", '"', "'", "\\"),
)  # fmt: skip

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 20_000, 65_535, 65_536, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**30, 1.5, -0.0, 1e308, 5e-324),
    *("", "a", "home", "\0", "\ud800", "é" * 40, "x" * 5000, "2026-01-01", "A" * 43, "A" * 44, "QUI", "QQ==", [], {}, [[]], {"": ""}, [None] * 3),
)  # fmt: skip


def slip(random: Random, text: str) -> str:
    """`text` with one thing done to it."""
    return random.choice(SLIPS)(random, text)


def _place(random: Random, text: str) -> int:
    return random.randint(0, len(text))


def _insert(random: Random, text: str) -> str:
    at = _place(random, text)
    return text[:at] + random.choice(PIECES) + text[at:]


def _replace(random: Random, text: str) -> str:
    at = _place(random, text)
    return text[:at] + random.choice(PIECES) + text[at + random.choice((1, 1, 2, 8)) :]


def _character(random: Random, text: str) -> str:
    at = _place(random, text)
    most = random.choice((0x7F, 0xFF, 0xFFFF, 0x10FFFF))
    return text[:at] + chr(random.randint(0, most)) + text[at + random.randint(0, 1) :]


def _cut(random: Random, text: str) -> str:
    start, stop = sorted((_place(random, text), _place(random, text)))
    return text[:start] + text[stop:]


def _part(random: Random, text: str) -> str:
    start, stop = sorted((_place(random, text), _place(random, text)))
    return text[start:stop]


def _again(random: Random, text: str) -> str:
    start, stop = sorted((_place(random, text), _place(random, text)))
    return text[:stop] + text[start:stop] * random.choice((1, 1, 2, 40)) + text[stop:]


def _swap(random: Random, text: str) -> str:
    at = _place(random, text)
    return text[:at] + text[at + 1 : at + 2] + text[at : at + 1] + text[at + 2 :]


def _case(random: Random, text: str) -> str:
    at = _place(random, text)
    return text[:at] + text[at:].swapcase()


SLIPS: Sequence[Callable[[Random, str], str]] = (
    *(_insert, _replace) * 3,
    *(_character, _cut, _part, _again, _swap, _case),
)


# --- JSON --------------------------------------------------------------------------------------------------------------


def odd_json(random: Random, raw: bytes) -> bytes | None:
    """The same JSON with one to three things in it replaced, dropped, doubled or named otherwise; None if it is none."""
    try:
        box = {"root": json.loads(raw)}
    except (ValueError, RecursionError):
        return None
    for _ in range(random.choice((1, 1, 2, 3))):
        _odd(random, box)
    return json.dumps(box["root"], ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")


def _odd(random: Random, inside: Any) -> None:
    while True:
        key = random.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
        value = inside[key]
        if isinstance(value, (dict, list)) and value and random.random() < 0.9:
            inside = value
            continue
        break
    what = random.randrange(6)
    if what == 0 and "root" not in inside:
        del inside[key]
    elif what == 1 and isinstance(inside, list):
        inside.append(copy.deepcopy(value))
    elif what == 2 and isinstance(inside, dict) and "root" not in inside:
        inside[slip(random, key)] = copy.deepcopy(value)
    elif what > 3 and isinstance(value, str):
        inside[key] = slip(random, value)
    else:
        inside[key] = copy.deepcopy(random.choice(ODD))
