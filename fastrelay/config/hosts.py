"""Hosts, ports, names and addresses to listen on, as a person types them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fastrelay.errors import UsageError

NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""The form of a client's or service's name (protocol.md section 4.1); for `fullmatch`."""

NAME_LENGTH: Final = 63
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_ZONE: Final = re.compile(r"[A-Za-z0-9._-]+")
_PORT: Final = re.compile(r"[0-9]{1,5}")


# --- hosts, ports and names --------------------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Whether `host` (no brackets) can only mean this machine. Of names only "localhost": what others mean is not known here."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # Before 3.13 `is_loopback` does not look inside ::ffff:127.0.0.1.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def is_host(text: str) -> bool:
    """Whether `text` is a host name or address in the form that sockets take; an address of IPv6 has no brackets."""
    try:
        return _host(text) == text
    except ValueError:
        return False


def host_name(raw: str) -> str:
    """A legal client name made from the name of a machine; "client" if nothing of it is left."""
    return legal(raw)[:NAME_LENGTH].rstrip("._-") or "client"


def parse_host(text: str) -> str:
    """A host as typed, `[IPv6]` or bare, to the form that sockets take: lower case, no brackets."""
    bare = text.strip()
    return check_host(bare[1:-1] if bare.startswith("[") and bare.endswith("]") else bare)


def join_host(host: str, port: int) -> str:
    """`HOST:PORT`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def legal(raw: str) -> str:
    """`raw` with only the characters of a name, and the first of them a letter or digit; may be empty."""
    return re.sub(r"[^a-z0-9._-]", "-", raw.lower()).lstrip("._-")


def _host(text: str) -> str:
    """A host without brackets in its usual form. Raises ValueError with half a sentence that says why not."""
    if ":" in text:
        try:
            address = ipaddress.IPv6Address(text)
        except ValueError:
            raise ValueError(f"{text!r} is not an IPv6 address") from None
        if address.scope_id is not None and not _ZONE.fullmatch(address.scope_id):
            raise ValueError(f"{text!r} is not an IPv6 address")
        return str(address)
    host = text.lower()
    if not host:
        raise ValueError("the host is missing")
    labels = host.split(".")
    # A name that ends in a number is an IPv4 address or a slip (`70000`, `1.2.3`, `20022:2222:22`), never a name.
    if re.fullmatch(r"[0-9]+", labels[-1]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise ValueError(f"{text!r} is not a host") from None
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{text!r} is not a host name")
    return host


def read_port(text: str, lowest: int = 1) -> int:
    """A port number from `lowest` to 65535. Raises ValueError with half a sentence that says why not."""
    if not text:
        raise ValueError("the port is missing")
    if not _PORT.fullmatch(text) or not lowest <= int(text) <= 65535:
        raise ValueError(f"{text!r} is not a port from {lowest} to 65535")
    return int(text)


def endpoint(text: str, lowest: int = 1) -> tuple[str, int | None]:
    """`HOST`, `HOST:PORT`, `[IPv6]` or `[IPv6]:PORT`; None where there is no port. Raises ValueError like `read_port`."""
    if text.startswith("["):
        inside, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("the brackets must enclose an IPv6 address, as in [::1] or [::1]:22")
        if ":" not in inside:
            raise ValueError(f"{inside!r} is not an IPv6 address")
        return _host(inside), read_port(rest[1:], lowest) if rest else None
    if text.count(":") > 1:
        if re.fullmatch(r"[0-9A-Fa-f:.]+(%.*)?", text) and "::" in text:
            raise ValueError("an IPv6 address needs brackets, as in [::1] or [::1]:22")
        if _is_ipv6(text) or _is_ipv6(text.rpartition(":")[0]):
            raise ValueError("an IPv6 address needs brackets, as in [::1] or [::1]:22")
        raise ValueError('it has too many parts between ":"')
    host, colon, port = text.partition(":")
    return _host(host), read_port(port, lowest) if colon else None


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def check_host(host: str) -> str:
    """Raises UsageError for what is no host."""
    try:
        return _host(host)
    except ValueError as why:
        raise UsageError(
            f"The host {host!r} is not understood: {why}; write a name or an address, such as relay.example.com."
        ) from None


def check_name(name: str, whose: str) -> None:
    """Raises UsageError for what is no name; `whose` is "client" or "service"."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"The {whose} name {name!r} is not a name: use 1 to {NAME_LENGTH} of a-z 0-9 . _ - and begin with a letter or digit, "
            "such as home-nas."
        )


def check_port(port: int, lowest: int, what: str) -> None:
    """Raises UsageError for what is no port; `what` says which one it is."""
    if not lowest <= port <= 65535:
        raise UsageError(f"The {what} {port} is not a port: use a number from {lowest} to 65535.")


# --- what a relay listens on -------------------------------------------------------------------------------------------


def parse_bind(text: str, default_port: int) -> tuple[str, int]:
    """`HOST`, `HOST:PORT`, `[IPv6]`, `[IPv6]:PORT` or `:PORT` (every address) to (host, port); port 0 is any that is free."""
    bare = text.strip()
    try:
        host, port = endpoint(f"[::]{bare}" if bare.startswith(":") and "::" not in bare else bare, lowest=0)
    except ValueError as why:
        raise UsageError(
            f"The address {text!r} to listen on is not understood: {why}; write it like [::]:{default_port}, 127.0.0.1:{default_port} "
            f"or :{default_port}."
        ) from None
    return host, default_port if port is None else port


@dataclass(frozen=True)
class PortRange:
    """Ports from `first` to `last`, both included."""

    first: int
    last: int

    def __post_init__(self) -> None:
        check_port(self.first, 1, "first port")
        check_port(self.last, 1, "last port")
        if self.first > self.last:
            raise UsageError(
                f"The ports {self} are none: the first is above the last, so write {self.last}-{self.first}."
            )

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and self.first <= port <= self.last

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.last + 1))

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def parse_ports(text: str) -> PortRange:
    """`20000-20999`, or one port alone."""
    first, dash, last = text.strip().partition("-")
    try:
        low = read_port(first.strip())
        high = read_port(last.strip()) if dash else low
    except ValueError as why:
        raise UsageError(f"The ports {text!r} are not understood: {why}; write them like 20000-20999.") from None
    return PortRange(low, high)
