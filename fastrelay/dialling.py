"""What may be dialled (protocol.md section 6.6): a place is read once, and held against the rules that a person typed. Pure.

There is one reading of a place: an address in its usual form, or a host name that no resolver takes for an address. A name says nothing by
itself: it is resolved for each connection, each address is judged, and the connection goes to an address that was, never to the name.

Some addresses are special: of this machine, of its link, of its cloud. Whoever answers for a name could lead there (DNS rebinding), so a
name never does; and a network only if it lies within the special one, as nobody thinks of them who writes 0.0.0.0/0.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from fastrelay import networks
from fastrelay.errors import Code, UsageError
from fastrelay.matching import Refusal, matches, some

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MOST: Final = 255
"""Bytes of a place: what a field of OPEN holds."""

DENIED: Final = "denied"
"""The rule of a refusal: a rule says no, which is more than that none says yes."""

_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
# A last label that resolvers take for a part of an IPv4 address: 1, 017, 0x7f.
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PATTERN: Final = re.compile(r"[a-z0-9*_][a-z0-9*_.-]{0,252}")
_LIKE_ADDRESS: Final = re.compile(r"[0-9.*]*[0-9][0-9.*]*")
_RIGHT: Final = "write it like 10.0.0.0/8:22,5432, 192.168.1.7:443, [2001:db8::/32]:22 or *.lab.example:8000-8010"


# --- special addresses -------------------------------------------------------------------------------------------------

_V4: Final = {
    "loopback": ("127.0.0.0/8",),
    "this-host": ("0.0.0.0/8",),
    "link-local": ("169.254.0.0/16",),
    "metadata": ("100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32"),
    "multicast": ("224.0.0.0/4",),
    "reserved": ("240.0.0.0/4",),
}
_V6: Final = {
    "loopback": ("::1/128",),
    "this-host": ("::/128",),
    "link-local": ("fe80::/10",),
    "metadata": ("fd00:ec2::254/128", "fd20:ce::254/128"),
    "multicast": ("ff00::/8",),
    # IPv4 inside of IPv6, in ways that are not looked into: compatible, Teredo, local NAT64.
    "embedded-ipv4": ("::/96", "2001::/32", "64:ff9b:1::/48"),
}
# These two are looked into: NAT64 (RFC 6052) and 6to4 (RFC 3056), as (what comes before the IPv4 address, its bits).
_EMBEDDINGS: Final = ((0x0064_FF9B << 96, 96), (0x2002 << 112, 16))


def _embedded(network: ipaddress.IPv4Network) -> Iterable[ipaddress.IPv6Network]:
    for before, bits in _EMBEDDINGS:
        first = before | int(network.network_address) << (96 - bits)
        yield ipaddress.IPv6Network((first, bits + network.prefixlen))


def _special_networks() -> tuple[tuple[str, _Network], ...]:
    v4 = [(rule, ipaddress.IPv4Network(text)) for rule, texts in _V4.items() for text in texts]
    v6 = [(rule, ipaddress.IPv6Network(text)) for rule, texts in _V6.items() for text in texts]
    return (*v4, *v6, *((rule, network) for rule, inside in v4 for network in _embedded(inside)))


_SPECIAL: Final = _special_networks()


def _special(address: _Address) -> tuple[str, _Network] | None:
    """Which kind of special address it is, and the network of that kind around it."""
    return next(((rule, network) for rule, network in _SPECIAL if address in network), None)


# --- places ------------------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where somebody wants to go. `host` is a name in lower case, and then `address` is None, or the address in its shortest form."""

    host: str
    port: int
    address: _Address | None = None

    def __str__(self) -> str:
        """`read_place` reads it back."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_place(text: str) -> Place:
    """`NAME:PORT`, `IPv4:PORT` or `[IPv6]:PORT`. IPv4 in IPv6 form is IPv4. Raises ValueError, half a sentence that says why not."""
    if not text.isascii() or len(text) > MOST:
        raise ValueError(f"it has characters beyond ASCII, or more than {MOST}")
    host, colon, port = text.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError("it does not end in a port from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        address = _plain_address(host[1:-1])
        if address is None or ":" not in host:
            raise ValueError(f"{host!r} is not an IPv6 address")
        return Place(str(address), int(port), address)
    name = host.lower()
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        address = None if ":" in name else _plain_address(name)
        if address is None:
            raise ValueError(f"{host!r} is not an IPv4 address of four numbers")
        return Place(str(address), int(port), address)
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{host!r} is not a host name")
    return Place(name, int(port))


def _plain_address(text: str) -> _Address | None:
    """The address that a text is; IPv4 in IPv6 form is IPv4. None for what is none, and for one with a zone."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return None if address.scope_id is not None else address.ipv4_mapped or address
    return address


# --- rules -------------------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """Places that may be dialled: those of a `network`, or else those of names like `pattern`, at these `ports`; all ports if there are none."""

    network: _Network | None
    pattern: str
    ports: tuple[tuple[int, int], ...]

    def has(self, port: int) -> bool:
        return not self.ports or any(first <= port <= last for first, last in self.ports)

    def allows(self, place: Place, address: _Address) -> bool:
        """`address` is one that the place was resolved to."""
        if not self.has(place.port):
            return False
        special = _special(address)
        if self.network is None:
            return special is None and place.address is None and matches(self.pattern, place.host)
        return address in self.network and (special is None or _within(self.network, special[1]))

    def denies(self, place: Place, address: _Address | None) -> bool:
        """As a rule that says no: `address` is one that the place was resolved to, None before it is. One network counts in all its forms."""
        if not self.has(place.port):
            return False
        if self.network is None:
            return place.address is None and matches(self.pattern, place.host)
        if address is None:
            return False
        within = _embedded(self.network) if isinstance(self.network, ipaddress.IPv4Network) else ()
        return address in self.network or any(address in network for network in within)

    def __str__(self) -> str:
        """`parse_rule` reads it back."""
        where = self.pattern if self.network is None else str(self.network)
        if ":" in where and self.ports:
            where = f"[{where}]"
        ports = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self.ports)
        return f"{where}:{ports}" if ports else where


def _within(network: _Network, other: _Network) -> bool:
    return (
        network.version == other.version and other.prefixlen <= network.prefixlen and network.network_address in other
    )


def parse_rule(text: str) -> Rule:
    """`CIDR[:PORTS]`, `ADDRESS[:PORTS]` or `NAMES[:PORTS]`, where PORTS is like 22,8000-8010 and `*` in NAMES stands for any characters.

    IPv6 has brackets, or its /BITS. Raises UsageError.
    """
    try:
        if not text.isascii():  # before the case is changed: there are letters beyond ASCII that become one of it
            raise _slip("it has characters beyond ASCII")
        return _rule(text.strip().lower())
    except ValueError as why:
        raise UsageError(f"The rule {text!r} for what may be dialled is not understood: {why}.") from None


def _rule(text: str) -> Rule:
    if text.startswith("["):
        where, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in where or (rest and not rest.startswith(":")):
            raise _slip("brackets enclose an IPv6 network or address")
        ports = rest[1:] if rest else None
    elif "/" in text:
        address, _, rest = text.partition("/")
        bits, colon, behind = rest.partition(":")
        where, ports = f"{address}/{bits}", behind if colon else None
    elif text.count(":") > 1:
        raise _slip("an IPv6 address needs brackets")
    else:
        where, colon, behind = text.partition(":")
        ports = behind if colon else None
    span = () if ports is None else tuple(sorted({_ports(word.strip()) for word in ports.split(",")}))
    if "/" in where or ":" in where or _plain_address(where) is not None:
        (network,) = networks.read([where], _RIGHT).texts
        return Rule(ipaddress.ip_network(network), "", span)
    if _LIKE_ADDRESS.fullmatch(where):
        raise _slip(f"{where!r} is neither an address nor the name of a host")
    if not _PATTERN.fullmatch(where):
        raise _slip(f"{where!r} is not the name of a host")
    return Rule(None, where, span)


def _ports(word: str) -> tuple[int, int]:
    first, dash, last = word.partition("-")
    found = [int(one) for one in ((first, last) if dash else (first, first)) if _PORT.fullmatch(one)]
    if len(found) < 2 or not found[0] <= found[1] <= 65535:
        raise _slip(f"{word!r} is not a port from 1 to 65535, nor a range of them")
    return found[0], found[1]


def _slip(why: str) -> ValueError:
    return ValueError(f"{why}; {_RIGHT}")


@dataclass(frozen=True)
class Rules:
    """Everything that may be dialled, less what is `denied`; without a rule that is nothing."""

    rules: tuple[Rule, ...] = ()
    denied: tuple[Rule, ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str], denied: Iterable[str] = ()) -> Rules:
        """One rule each. Raises UsageError."""
        one, other = (tuple(dict.fromkeys(parse_rule(text) for text in some)) for some in (texts, denied))
        return cls(one, other)

    def texts(self) -> tuple[str, ...]:
        return tuple(map(str, self.rules))

    def __bool__(self) -> bool:
        return bool(self.rules)

    def __str__(self) -> str:
        return some(self.texts(), " or ")

    def refuse(self, place: Place) -> Refusal | None:
        """Why nothing may be dialled there, as far as that can be said before a name is resolved."""
        if place.address is not None:
            return self.refuse_address(place, str(place.address))
        if no := self._denied(place, None):
            return no
        rules = [rule for rule in self.rules if rule.has(place.port)]
        if any(rule.network is not None or matches(rule.pattern, place.host) for rule in rules):
            return None
        return self._no(place, "name" if rules else "port")

    def refuse_unresolved(self, place: Place) -> Refusal | None:
        """The same for who leaves resolving to others: an address must be in a network, and a name must be one of those that are named."""
        if place.address is not None:
            return self.refuse(place)
        rules = [rule for rule in self.rules if rule.has(place.port)]
        if any(rule.network is None and matches(rule.pattern, place.host) for rule in rules):
            return None
        return self._no(place, "name" if rules else "port")

    def refuse_address(self, place: Place, address: str) -> Refusal | None:
        """Why no connection may be made for this place to `address`, which is as a resolver gives it."""
        plain = _plain_address(address.partition("%")[0])  # a zone says only which link
        if plain is None:
            return self._no(place, "address")
        if no := self._denied(place, plain):
            return no
        if any(rule.allows(place, plain) for rule in self.rules):
            return None
        if not any(rule.has(place.port) for rule in self.rules):
            return self._no(place, "port")
        if (found := _special(plain)) is not None:
            kind, network = found
            where = f"{place} ({kind})" if plain == place.address else f"{place} is {plain} ({kind}), which"
            return Refusal(kind, f"{where} is reached only by a rule for an address or network within {network}")
        return self._no(place, "address", plain)

    def _denied(self, place: Place, address: _Address | None) -> Refusal | None:
        rule = next((rule for rule in self.denied if rule.denies(place, address)), None)
        if rule is None:
            return None
        resolved = "" if address is None or address == place.address else f" ({address})"
        return Refusal(DENIED, f"{place}{resolved} is denied by {rule}")

    def _no(self, place: Place, rule: str, address: _Address | None = None) -> Refusal:
        if not self.rules:
            return Refusal("none", f"{place} is not allowed, and nothing else is")
        resolved = "" if address is None or address == place.address else f" ({address})"
        return Refusal(rule, f"{place}{resolved} is not in {self}")


def refused(rule: str) -> Code:
    """What a client answers that does not dial because of this rule."""
    return Code.DIAL_FORBIDDEN if rule == DENIED else Code.DIAL_DENIED


NO_RULES: Final = Rules()
