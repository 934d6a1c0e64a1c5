"""PROXY headers: what was packed is read back, at every cut; what HAProxy's text shows is read; anything else is refused, never misread."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay.net.proxy_header import MOST, Header, announce, pack, pack_v1, parse

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
V2 = SIGNATURE + bytes.fromhex("2111000cc0000209c6336401c9481bb8")
"""192.0.2.9:51528 to 198.51.100.1:7096, by hand."""

addresses = st.ip_addresses().map(str)
ports = st.integers(0, 65_535)
ends = st.tuples(addresses, ports)


def same(one: str, two: str) -> bool:
    """Whether two texts are one address, IPv4 in IPv6 form included."""
    first, second = (ipaddress.ip_address(text) for text in (one, two))
    mapped = getattr(first, "ipv4_mapped", None) or first, getattr(second, "ipv4_mapped", None) or second
    return mapped[0] == mapped[1]


@given(ends, ends, st.binary(max_size=40))
def test_what_is_packed_is_read_back(source: tuple[str, int], target: tuple[str, int], rest: bytes) -> None:
    for raw in (pack(source, target), pack_v1(source, target)):
        header = parse(raw + rest)
        assert header is not None and header.size == len(raw) and header.visitor is not None
        assert same(header.visitor[0], source[0]) and header.visitor[1] == source[1]
        for cut in range(len(raw)):
            assert parse(raw[:cut]) is None


@pytest.mark.parametrize(
    ("raw", "visitor"),
    [
        (V2, ("192.0.2.9", 51_528)),
        (b"PROXY TCP4 192.0.2.9 198.51.100.1 51528 443\r\n", ("192.0.2.9", 51_528)),
        (b"PROXY TCP6 2001:db8::9 2001:db8::1 51528 443\r\n", ("2001:db8::9", 51_528)),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None),
        (SIGNATURE + bytes.fromhex("20000000"), None),  # LOCAL: a health check
        (SIGNATURE + bytes.fromhex("21310004") + b"path", None),  # a unix socket
        (V2[:14] + bytes.fromhex("0013") + V2[16:] + bytes.fromhex("04000461626364"), ("192.0.2.9", 51_528)),  # a TLV
    ],
)
def test_headers_of_others(raw: bytes, visitor: tuple[str, int] | None) -> None:
    assert parse(raw + b"GET /") == Header(len(raw), visitor)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\n",
        b"PROXY TCP4 192.0.2.9 198.51.100.1 51528 443\n" + b" " * 107,
        b"PROXY TCP4 192.0.2.9 198.51.100.1 51528\r\n",
        b"PROXY TCP4 192.0.2.9 198.51.100.1 65536 443\r\n",
        b"PROXY TCP4 192.0.2.9 198.51.100.1 1 99999\r\n",
        b"PROXY TCP4 192.0.2.9 198.51.100.1 01 443\r\n",
        b"PROXY TCP4 192.0.2.999 198.51.100.1 1 443\r\n",
        b"PROXY TCP4 2001:db8::9 2001:db8::1 1 443\r\n",
        b"PROXY TCP6 192.0.2.9 198.51.100.1 1 443\r\n",
        b"PROXY TCP4  192.0.2.9 198.51.100.1 1 443\r\n",
        b"PROXY UDP4 192.0.2.9 198.51.100.1 1 443\r\n",
        b"PROXY TCP4 " + b"1" * 200,
        SIGNATURE + bytes.fromhex("31110000"),
        SIGNATURE + bytes.fromhex("2211000c") + bytes(12),
        SIGNATURE + bytes.fromhex("2111000b") + bytes(11),
        SIGNATURE + bytes.fromhex("21210023") + bytes(35),
        SIGNATURE + bytes.fromhex("2111ffff"),
    ],
)
def test_what_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):
        parse(raw)


@given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"]))
def test_any_bytes(raw: bytes, start: bytes) -> None:
    """Nothing but an answer, a wait or a ValueError; and what was read stays so whatever follows."""
    try:
        header = parse(start + raw)
    except ValueError:
        return
    if header is None:
        assert len(start + raw) < MOST
    else:
        assert header.size <= len(start + raw)
        assert parse((start + raw)[: header.size]) == header


# --- what a target is told ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visitor", "target", "line"),
    [
        ("192.0.2.9:51528", ("127.0.0.1", 443), b"PROXY TCP4 192.0.2.9 127.0.0.1 51528 443\r\n"),
        ("[2001:db8::9]:51528", ("::1", 443, 0, 0), b"PROXY TCP6 2001:db8::9 ::1 51528 443\r\n"),
        ("192.0.2.9:51528", ("::1", 443, 0, 0), b"PROXY TCP4 192.0.2.9 0.0.0.0 51528 443\r\n"),
        ("[2001:db8::9]:51528", ("127.0.0.1", 443), b"PROXY TCP6 2001:db8::9 :: 51528 443\r\n"),
        ("192.0.2.9:51528", "/run/web.sock", b"PROXY TCP4 192.0.2.9 0.0.0.0 51528 0\r\n"),
        ("[fe80::9%eth0]:51528", ("fe80::1%eth0", 443, 0, 2), b"PROXY TCP6 fe80::9 fe80::1 51528 443\r\n"),
        ("", ("127.0.0.1", 443), b"PROXY UNKNOWN\r\n"),
        ("unknown", ("127.0.0.1", 443), b"PROXY UNKNOWN\r\n"),
        ("example.com:80", ("127.0.0.1", 443), b"PROXY UNKNOWN\r\n"),
        ("192.0.2.9:65536", ("127.0.0.1", 443), b"PROXY UNKNOWN\r\n"),
        ("192.0.2.9 127.0.0.1 1 2\r\n:1", ("127.0.0.1", 443), b"PROXY UNKNOWN\r\n"),
    ],
)
def test_what_a_target_is_told(visitor: str, target: object, line: bytes) -> None:
    assert announce(1, visitor, target) == line
    told, second = parse(line), parse(announce(2, visitor, target))
    assert told is not None and second is not None and second.visitor == told.visitor


@given(st.text() | st.text("0123456789.:[]%af \r\n", max_size=60), st.sampled_from([1, 2]))
def test_whatever_a_relay_says_of_visitors_is_a_whole_header(visitor: str, version: int) -> None:
    raw = announce(version, visitor, ("127.0.0.1", 22))
    header = parse(raw)
    assert header is not None and header.size == len(raw)


pieces = st.sampled_from(
    [
        SIGNATURE,
        SIGNATURE[:7],
        V2,
        V2[12:],
        b"PROXY ",
        b"TCP4 ",
        b"TCP6 ",
        b"UNKNOWN",
        b"192.0.2.9 ",
        b"::1 ",
        b"443",
        b" ",
        b"\r\n",
        b"\x20\x21\x11",
    ]
)


@given(st.binary(max_size=300) | st.lists(pieces | st.binary(max_size=4), max_size=12).map(b"".join))
def test_any_bytes_are_a_header_or_the_start_of_one_or_refused(raw: bytes) -> None:
    """What comes behind changes nothing of a header, and what is refused stays so: however a header is cut, it is read the same."""
    try:
        found = parse(raw)
    except ValueError:
        with pytest.raises(ValueError):
            parse(raw + b"\r\n")
        return
    if found is None:
        assert len(raw) < MOST
        return
    assert 0 < found.size <= min(len(raw), MOST)
    assert parse(raw[: found.size]) == parse(raw + b"more") == found
    assert all(parse(raw[:cut]) is None for cut in range(found.size))
    if found.visitor is not None:
        ipaddress.ip_address(found.visitor[0])
        assert 0 <= found.visitor[1] <= 65_535
