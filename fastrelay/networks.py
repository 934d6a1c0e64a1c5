"""Lists of networks (protocol.md section 5.1): read once, then asked whether an address is in one of them. Pure.

IPv4 and IPv6 are kept apart. An IPv4 address in IPv6 form (::ffff:192.0.2.7, which sockets for both families show) counts as IPv4.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from fastrelay.errors import UsageError
from fastrelay.wire import MAX_NETWORKS

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
_RIGHT: Final = "write it like 192.0.2.0/24, ssh=192.0.2.7 or ssh=192.0.2.0/24,2001:db8::/32"


@dataclass(frozen=True)
class Networks:
    """One to MAX_NETWORKS networks in canonical form: ADDRESS/BITS, no bit set behind the first BITS, IPv6 as in RFC 5952.

    Raises ValueError, half a sentence that says why not.
    """

    texts: tuple[str, ...]
    _masks: dict[int, tuple[tuple[int, int], ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.texts:
            raise ValueError("the list is empty")
        if len(self.texts) > MAX_NETWORKS:
            raise ValueError(f"{len(self.texts)} networks are more than {MAX_NETWORKS}")
        networks = [_network(text) for text in self.texts]
        for text, network in zip(self.texts, networks, strict=True):
            if text != str(network):
                raise ValueError(f"{text!r} is not in canonical form, which is {network}")
        by_version = {
            version: tuple((int(one.network_address), int(one.netmask)) for one in networks if one.version == version)
            for version in (4, 6)
        }
        object.__setattr__(self, "_masks", by_version)

    def __contains__(self, address: object) -> bool:
        """Whether an address, as a socket shows it, is in one of the networks; what is not an address is not."""
        if not isinstance(address, str):
            return False
        try:
            found = _plain(ipaddress.ip_address(address.partition("%")[0]))
        except ValueError:
            return False
        number = int(found)
        return any(number & mask == first for first, mask in self._masks[found.version])

    def __len__(self) -> int:
        return len(self.texts)

    def __str__(self) -> str:
        return ", ".join(self.texts)


def read(texts: Iterable[str]) -> Networks:
    """A list from what a person types: a bare address is that one alone, spellings become canonical, what is there twice counts once.

    Raises ValueError, half a sentence that says why not.
    """
    return Networks(tuple(dict.fromkeys(str(_network(text.strip())) for text in texts)))


def assign(specs: Iterable[str], services: Sequence[str]) -> dict[str, Networks]:
    """Who may visit which of `services`, from `[NAME=]CIDR[,CIDR…]` each. Without NAME it is for all that have none of their own.

    Several for the same NAME add up. A service that is not in the answer is open to everybody. Raises UsageError.
    """
    lists: dict[str, list[str]] = {}
    for spec in specs:
        name, named, networks = spec.strip().rpartition("=")
        if named and name not in services:
            raise UsageError(
                f"The visitors {spec!r} are for the service {name!r}, which is not exposed: use one of {', '.join(services)}, "
                "or no name for all of them."
            )
        try:
            read(networks.split(","))
            lists.setdefault(name, []).extend(networks.split(","))
            read(lists[name])
        except ValueError as why:
            raise UsageError(f"The visitors {spec!r} are not understood: {why}.") from None
    found = {service: lists.get(service) or lists.get("") for service in services}
    return {service: read(texts) for service, texts in found.items() if texts}


def _network(text: str) -> _Network:
    """Raises ValueError, half a sentence that says why `text` is no network."""
    address, slash, prefix = text.partition("/")
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        pass
    else:
        if "%" not in text and (not slash or prefix.isdigit()):
            return _plain_network(network)
        raise ValueError(f"{text!r} is not a network in the form ADDRESS/BITS; {_RIGHT}")
    if not text:
        raise ValueError(f"a network is missing; {_RIGHT}")
    try:
        around = _plain_network(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise ValueError(f"{text!r} is not a network or address; {_RIGHT}") from None
    raise ValueError(
        f"{text!r} is one address of a larger network; write {address} for that one alone, or {around} for all of them"
    )


def _plain(address: _Address) -> _Address:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _plain_network(network: _Network) -> _Network:
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        first = _plain(network.network_address)
        return ipaddress.IPv4Network((int(first), network.prefixlen - _MAPPED.prefixlen))
    return network
