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

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED: Final = 0xFFFF  # the first _MAPPED_BITS of IPv4 in IPv6 form
_MAPPED_BITS: Final = 96
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
        version = 6 if ":" in address else 4
        try:
            number = int(ipaddress.IPv6Address(address) if version == 6 else ipaddress.IPv4Address(address))
        except ValueError:
            return False
        if version == 6 and number >> 32 == _MAPPED:
            version, number = 4, number & 0xFFFF_FFFF
        return any(number & mask == first for first, mask in self._masks[version])

    def __len__(self) -> int:
        return len(self.texts)

    def __str__(self) -> str:
        return ", ".join(self.texts)


def read(texts: Iterable[str], right: str = _RIGHT) -> Networks:
    """A list from what a person types: a bare address is that one alone, spellings become canonical, what is there twice counts once.

    `right` is how to write it, for what is not understood.

    Raises ValueError, half a sentence that says why not.
    """
    return Networks(tuple(dict.fromkeys(str(_network(text.strip(), right)) for text in texts)))


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


def parse_balancers(specs: Iterable[str]) -> Networks | None:
    """Load balancers from `CIDR[,CIDR…]` each; None where there are none. Raises UsageError."""
    texts = [text for spec in specs for text in spec.split(",")]
    try:
        return read(texts) if texts else None
    except ValueError as why:
        reason = str(why).removesuffix(f"; {_RIGHT}")
        raise UsageError(
            f"The load balancers {','.join(texts)!r} are not understood: {reason}; write them like 10.0.0.5 or 192.0.2.0/24,2001:db8::/32."
        ) from None


def _network(text: str, right: str = _RIGHT) -> _Network:
    """Raises ValueError, half a sentence that says why `text` is no network."""
    address, slash, prefix = text.partition("/")
    form = ipaddress.IPv6Network if ":" in text else ipaddress.IPv4Network
    try:
        network: _Network = form(text)
    except ValueError:
        pass
    else:
        if "%" not in text and (not slash or prefix.isdigit()):
            return _plain_network(network)
        raise ValueError(f"{text!r} is not a network in the form ADDRESS/BITS; {right}")
    if not text:
        raise ValueError(f"a network is missing; {right}")
    try:
        if "%" in text:  # a zone may be anything
            raise ValueError
        around = _plain_network(form(text, strict=False))
    except ValueError:
        raise ValueError(f"{text!r} is not a network or address; {right}") from None
    raise ValueError(
        f"{text!r} is one address of a larger network; write {address} for that one alone, or {around} for all of them"
    )


def _plain_network(network: _Network) -> _Network:
    """What is in IPv6 form becomes IPv4."""
    first = int(network.network_address)
    if network.version == 6 and network.prefixlen >= _MAPPED_BITS and first >> 32 == _MAPPED:
        return ipaddress.IPv4Network((first & 0xFFFF_FFFF, network.prefixlen - _MAPPED_BITS))
    return network
