"""The PROXY protocol's header, versions 1 and 2: whose connection this is, said by whoever passed it on. Pure.

A load balancer says it to us in front of a visitor's bytes, and we say it to a target that asks for it.
Source: "The PROXY protocol", haproxy.org, 2.1 and 2.2. A header is believed as a whole or refused as a whole.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from typing import Final, NamedTuple

MOST: Final = 4096
"""Bytes of the longest header that is read; version 1 has at most 107, version 2 grows with its TLVs."""

_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_HEAD: Final = struct.Struct(">12sBBH")
_V1_MOST: Final = 107
_V1: Final = re.compile(
    rb"PROXY (TCP4|TCP6) ([0-9a-fA-F.:]+) ([0-9a-fA-F.:]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\r\n"
)
_TCP4, _TCP6 = 0x11, 0x21
_SIZES: Final = {_TCP4: 4, _TCP6: 16}
_UNSPECIFIED: Final = {4: "0.0.0.0", 6: "::"}


class Header(NamedTuple):
    """`size` bytes of header; `visitor` is (host, port), None where the sender speaks for itself or does not know."""

    size: int
    visitor: tuple[str, int] | None


def parse(raw: bytes) -> Header | None:
    """The header at the start of `raw`, None while it is not whole. Raises ValueError for what cannot become one."""
    if raw[:12] == _SIGNATURE[: len(raw)]:
        return _parse_v2(raw)
    if raw[:6] == b"PROXY "[: len(raw)]:
        return _parse_v1(raw)
    raise ValueError("it does not begin with a PROXY header")


def _parse_v1(raw: bytes) -> Header | None:
    end = raw.find(b"\r\n", 0, _V1_MOST)
    if end < 0:
        if len(raw) >= _V1_MOST:
            raise ValueError(f"a PROXY line has at most {_V1_MOST} bytes")
        return None
    size = end + 2
    if raw[:size] == b"PROXY UNKNOWN\r\n" or raw.startswith(b"PROXY UNKNOWN "):
        return Header(size, None)
    found = _V1.fullmatch(raw[:size])
    if found is None:
        raise ValueError("the PROXY line is not one")
    kind = ipaddress.IPv4Address if found[1] == b"TCP4" else ipaddress.IPv6Address
    source, target = kind(found[2].decode()), kind(found[3].decode())
    if target.version != source.version or max(int(found[4]), int(found[5])) > 65_535:
        raise ValueError("the PROXY line names a port that cannot be")
    return Header(size, (str(source), int(found[4])))


def _parse_v2(raw: bytes) -> Header | None:
    if len(raw) < _HEAD.size:
        return None
    _, command, family, length = _HEAD.unpack_from(raw)
    size = _HEAD.size + length
    if command not in (0x20, 0x21):
        raise ValueError(f"a PROXY header of version and command 0x{command:02x} is not known")
    if size > MOST:
        raise ValueError(f"a PROXY header of {size} bytes is too long, {MOST} are read")
    if len(raw) < size:
        return None
    width = _SIZES.get(family)
    if command == 0x20 or width is None:  # the sender's own connection, or of a kind that has no such address
        return Header(size, None)
    if length < 2 * width + 4:
        raise ValueError("a PROXY header is too short for its addresses")
    source = ipaddress.ip_address(raw[_HEAD.size : _HEAD.size + width])
    (port,) = struct.unpack_from(">H", raw, _HEAD.size + 2 * width)
    return Header(size, (str(source), port))


def pack(source: tuple[str, int], target: tuple[str, int]) -> bytes:
    """A header of version 2 for a connection from `source` to `target`, (host, port) each; hosts are addresses.

    Where one is IPv4 and the other IPv6, both are written as IPv6. Raises ValueError for what is no address.
    """
    one, two = ipaddress.ip_address(source[0]), ipaddress.ip_address(target[0])
    if one.version == two.version == 4:
        family = _TCP4
    else:
        family = _TCP6
        one, two = _as_v6(one), _as_v6(two)
    addresses = one.packed + two.packed + struct.pack(">HH", source[1], target[1])
    return _HEAD.pack(_SIGNATURE, 0x21, family, len(addresses)) + addresses


def pack_v1(source: tuple[str, int], target: tuple[str, int]) -> bytes:
    """The same as a line of version 1."""
    one, two = ipaddress.ip_address(source[0]), ipaddress.ip_address(target[0])
    if not one.version == two.version == 4:
        one, two = _as_v6(one), _as_v6(two)
    return f"PROXY TCP{one.version} {one} {two} {source[1]} {target[1]}\r\n".encode()


def announce(version: int, visitor: str, target: object) -> bytes:
    """The header for a target, which is dialled at a socket address: of `visitor` as OPEN names it, `host:port` or `[ipv6]:port`. What is no such address is
    not known, and said so.

    The visitor keeps its family: a target of another one, or without an address, is written as the unspecified address.
    """
    host, _, port = visitor.rpartition(":")
    try:
        one = ipaddress.ip_address(host.strip("[]").partition("%")[0])
        if not 0 <= int(port) <= 65_535:
            raise ValueError
    except ValueError:
        return b"PROXY UNKNOWN\r\n" if version == 1 else _HEAD.pack(_SIGNATURE, 0x20, 0, 0)
    other = (_UNSPECIFIED[one.version], 0)
    if isinstance(target, tuple):
        two = ipaddress.ip_address(str(target[0]).partition("%")[0])
        other = (str(two) if two.version == one.version else other[0], int(target[1]))
    return (pack_v1 if version == 1 else pack)((str(one), int(port)), other)


def _as_v6(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv6Address:
    return ipaddress.IPv6Address(f"::ffff:{address}") if address.version == 4 else ipaddress.IPv6Address(address.packed)
