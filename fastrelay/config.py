"""What a person types, understood once: relays, exposures, bind addresses and the two configurations.

Everything here is frozen, and valid if it exists: nobody behind this room validates again. Every function that reads text raises
UsageError, a sentence that quotes the text and shows a right one, and nothing else. Pure: no files, no sockets, no name look-ups.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fastrelay import wire
from fastrelay.errors import UsageError
from fastrelay.limits import DEFAULTS, Limits
from fastrelay.networks import Networks

DEFAULT_PORT: Final = 7443
"""Where a relay listens for tunnels."""

NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""The form of a client's or service's name (protocol.md section 4.1); for `fullmatch`."""

_NAME_LENGTH: Final = 63
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_ZONE: Final = re.compile(r"[A-Za-z0-9._-]+")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_UNIX_PATH: Final = 107  # bytes: what Linux's sockaddr_un holds, less the zero at its end

_RIGHT_SPEC: Final = "write it like 22, 20022:22, ssh=20022:192.168.1.7:22 or web=unix:/run/web.sock"


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
    return _legal(raw)[:_NAME_LENGTH].rstrip("._-") or "client"


def parse_host(text: str) -> str:
    """A host as typed, `[IPv6]` or bare, to the form that sockets take: lower case, no brackets."""
    bare = text.strip()
    return _check_host(bare[1:-1] if bare.startswith("[") and bare.endswith("]") else bare)


def join_host(host: str, port: int) -> str:
    """`HOST:PORT`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _legal(raw: str) -> str:
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


def _port(text: str, lowest: int = 1) -> int:
    """A port number from `lowest` to 65535. Raises ValueError with half a sentence that says why not."""
    if not text:
        raise ValueError("the port is missing")
    if not _PORT.fullmatch(text) or not lowest <= int(text) <= 65535:
        raise ValueError(f"{text!r} is not a port from {lowest} to 65535")
    return int(text)


def _endpoint(text: str, lowest: int = 1) -> tuple[str, int | None]:
    """`HOST`, `HOST:PORT`, `[IPv6]` or `[IPv6]:PORT`; None where there is no port. Raises ValueError like `_port`."""
    if text.startswith("["):
        inside, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("the brackets must enclose an IPv6 address, as in [::1] or [::1]:22")
        if ":" not in inside:
            raise ValueError(f"{inside!r} is not an IPv6 address")
        return _host(inside), _port(rest[1:], lowest) if rest else None
    if text.count(":") > 1:
        if re.fullmatch(r"[0-9A-Fa-f:.]+(%.*)?", text) and "::" in text:
            raise ValueError("an IPv6 address needs brackets, as in [::1] or [::1]:22")
        if _is_ipv6(text) or _is_ipv6(text.rpartition(":")[0]):
            raise ValueError("an IPv6 address needs brackets, as in [::1] or [::1]:22")
        raise ValueError('it has too many parts between ":"')
    host, colon, port = text.partition(":")
    return _host(host), _port(port, lowest) if colon else None


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _check_host(host: str) -> str:
    try:
        return _host(host)
    except ValueError as why:
        raise UsageError(
            f"The host {host!r} is not understood: {why}; write a name or an address, such as relay.example.com."
        ) from None


def _check_name(name: str, whose: str) -> None:
    if not NAME.fullmatch(name):
        raise UsageError(
            f"The {whose} name {name!r} is not a name: use 1 to {_NAME_LENGTH} of a-z 0-9 . _ - and begin with a letter or digit, "
            "such as home-nas."
        )


def _check_port(port: int, lowest: int, what: str) -> None:
    if not lowest <= port <= 65535:
        raise UsageError(f"The {what} {port} is not a port: use a number from {lowest} to 65535.")


# --- the relay as the client names it ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Relay:
    """Where a client dials: `host` in the form that sockets take, and whether the tunnel is under TLS (protocol.md section 2)."""

    host: str
    port: int
    tls: bool

    def __post_init__(self) -> None:
        _check_host(self.host)
        _check_port(self.port, 1, "relay's port")
        if not self.tls and not is_loopback(self.host):
            raise UsageError(
                f"The relay {self.url!r} would be reached in plaintext, which is allowed on this machine only: "
                f"use tls://{join_host(self.host, self.port)}, or tcp://127.0.0.1:{self.port} for a relay here."
            )

    @property
    def url(self) -> str:
        """`tls://HOST:PORT` or `tcp://HOST:PORT`; `parse_relay` reads it back."""
        return f"{'tls' if self.tls else 'tcp'}://{join_host(self.host, self.port)}"


def parse_relay(text: str) -> Relay:
    """`HOST[:PORT]`, `[IPv6]`, `[IPv6]:PORT`, each also behind `tls://` or `tcp://`; without PORT it is 7443."""
    rest = text.strip()
    if rest.startswith("fr1."):  # not quoted: it is a secret
        raise UsageError(
            "The relay looks like a token: give the token with --token, and here the relay's HOST or HOST:PORT."
        )
    scheme, found, after = rest.partition("://")
    if found:
        rest = after
    try:
        if found and scheme.lower() not in ("tls", "tcp"):
            raise ValueError(f"the scheme {scheme!r} is not known, only tls and tcp are")
        host, port = _endpoint(rest)
    except ValueError as why:
        raise UsageError(
            f"The relay {text!r} is not understood: {why}; write it like relay.example.com, relay.example.com:7443 or [2001:db8::7]:7443."
        ) from None
    return Relay(host, DEFAULT_PORT if port is None else port, not found or scheme.lower() == "tls")


# --- what a client exposes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A local service: `host` and `port`, or `path` of a unix socket and then "" and 0."""

    host: str
    port: int
    path: str = ""

    def __post_init__(self) -> None:
        if not self.path:
            _check_host(self.host)
            _check_port(self.port, 1, "local port")
            return
        try:
            _path(self.path)
        except ValueError as why:
            raise UsageError(f"The target {self.path!r} is not understood: {why}.") from None
        if self.host or self.port:
            raise UsageError(
                f"The target {self.path!r} has a host or port too: give either a path or a host and a port."
            )

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else join_host(self.host, self.port)


@dataclass(frozen=True)
class Exposure:
    """A service by `name`, the public `port` it asks for (0 is any), the target behind it, and who may visit, None for everybody
    (protocol.md section 5).
    """

    name: str
    port: int
    target: Target
    visitors: Networks | None = None

    def __post_init__(self) -> None:
        _check_name(self.name, "service")
        _check_port(self.port, 0, "public port")

    def __str__(self) -> str:
        """The SPEC in full, which says nothing of visitors; `parse_expose` reads it back."""
        return f"{self.name}={f'{self.port}:' if self.port else ''}{self.target}"


def parse_expose(spec: str) -> Exposure:
    """`[NAME=][tcp://][PUBLIC:][HOST:]PORT`, where `unix:/PATH` may stand for HOST:PORT.

    HOST is localhost unless given. `A:B` with digits for A is PUBLIC:PORT, else HOST:PORT. Without NAME the service is called after
    its target: `tcp-22`, `unix-web.sock`.
    """
    try:
        name, public, target = _split_spec(spec.strip())
    except ValueError as why:
        raise UsageError(f"The service {spec!r} is not understood: {why}; {_RIGHT_SPEC}.") from None
    return Exposure(_default_name(target) if name is None else name, public, target)


def _split_spec(spec: str) -> tuple[str | None, int, Target]:
    """NAME or None, PUBLIC or 0, and the target. Raises ValueError with half a sentence that says what is wrong."""
    name: str | None = None
    rest = spec
    # A "=" behind ":", "/" or "[" belongs to the path of a unix socket.
    if named := re.match(r"([^:/\[=]*)=", spec):
        name, rest = named[1], spec[named.end() :]
        if not NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is not a name (1 to {_NAME_LENGTH} of a-z 0-9 . _ -, and the first a letter or digit)"
            )
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", rest):
        if scheme[1] == "unix":
            raise ValueError("unix: takes the path of a socket without //, as in unix:/run/x.sock")
        if scheme[1].lower() != "tcp":
            raise ValueError(f"the scheme {scheme[1]!r} is not known, only tcp is")
        rest = rest[scheme.end() :]
    public = 0
    if leading := re.match(r"([0-9]+):", rest):
        public, rest = _port(leading[1]), rest[leading.end() :]
    return name, public, _target(rest)


def _target(text: str) -> Target:
    """`PORT`, `HOST:PORT` or `unix:/PATH`. Raises ValueError with half a sentence that says why not."""
    if text.startswith("unix:"):
        return Target("", 0, _path(text[5:]))
    if not text:
        raise ValueError("the port of the local service is missing")
    if re.fullmatch(r"[0-9]+", text):
        return Target("localhost", _port(text))
    host, port = _endpoint(text)
    if port is None:
        raise ValueError(f"the port of the local service behind {text!r} is missing")
    return Target(host, port)


def _path(text: str) -> str:
    """The path of a unix socket. Raises ValueError with half a sentence that says why it is none."""
    if not text.startswith("/") or text.startswith("//") or text.endswith("/"):
        raise ValueError("unix: needs the whole path of a socket, from one / on")
    if not text.isprintable() or len(text.encode()) > _UNIX_PATH:
        raise ValueError(f"the path of a unix socket is at most {_UNIX_PATH} bytes, all printable")
    return text


def _default_name(target: Target) -> str:
    if not target.path:
        return f"tcp-{target.port}"
    return f"unix-{_legal(target.path.rpartition('/')[2]) or 'socket'}"[:_NAME_LENGTH]


# --- what a relay listens on -------------------------------------------------------------------------------------------


def parse_bind(text: str, default_port: int) -> tuple[str, int]:
    """`HOST`, `HOST:PORT`, `[IPv6]`, `[IPv6]:PORT` or `:PORT` (every address) to (host, port); port 0 is any that is free."""
    bare = text.strip()
    try:
        host, port = _endpoint(f"[::]{bare}" if bare.startswith(":") and "::" not in bare else bare, lowest=0)
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
        _check_port(self.first, 1, "first port")
        _check_port(self.last, 1, "last port")
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
        low = _port(first.strip())
        high = _port(last.strip()) if dash else low
    except ValueError as why:
        raise UsageError(f"The ports {text!r} are not understood: {why}; write them like 20000-20999.") from None
    return PortRange(low, high)


# --- the two configurations --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServerConfig:
    """A relay. `ports` are given to visitors; `advertise` is the host that visitors type, "" if nobody said.

    `cert` and `key` are PEM files, or None for the relay's own identity in `state`. `client_ca` is a PEM file of CAs: clients may show a
    certificate of theirs, and with `require_client_cert` must. Raises UsageError for what cannot be together.
    """

    bind_host: str
    bind_port: int
    ports: PortRange
    advertise: str
    state: Path
    cert: Path | None
    key: Path | None
    plaintext: bool
    limits: Limits = DEFAULTS
    client_ca: Path | None = None
    require_client_cert: bool = False

    def __post_init__(self) -> None:
        _check_host(self.bind_host)
        _check_port(self.bind_port, 0, "port to listen on")
        if self.advertise:
            _check_host(self.advertise)
        if (self.cert is None) is not (self.key is None):
            missing = "--cert" if self.cert is None else "--key"
            raise UsageError(
                f"A certificate and its key belong together and {missing} is missing: give both, or none for the relay's own."
            )
        if self.require_client_cert and self.client_ca is None:
            raise UsageError(
                "Clients cannot be made to show a certificate, because nobody says whose are good: name a file of CAs with --client-ca."
            )
        if self.plaintext and self.client_ca is not None:
            raise UsageError("Tunnels without TLS show no certificates: leave out --plaintext or --client-ca.")
        if self.plaintext and not is_loopback(self.bind_host):
            raise UsageError(
                f"Tunnels without TLS are allowed on this machine only, and {self.bind_host!r} is more than that: "
                f"use --bind 127.0.0.1:{self.bind_port}, or leave --plaintext out."
            )


@dataclass(frozen=True)
class ClientConfig:
    """A client called `name`. `token` is the token's text, a secret, which no repr shows; "" for none.

    `client_cert` and `client_key` are PEM files, or None; `pins` are the relay's, 32 bytes each, instead of the token's. Raises UsageError
    for what cannot be together.
    """

    relay: Relay
    token: str = field(repr=False)
    exposures: tuple[Exposure, ...]
    name: str
    state: Path
    limits: Limits = DEFAULTS
    client_cert: Path | None = None
    client_key: Path | None = None
    pins: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        _check_name(self.name, "client")
        if (self.client_cert is None) is not (self.client_key is None):
            missing = "--client-cert" if self.client_cert is None else "--client-key"
            raise UsageError(
                f"A client's certificate and its key belong together and {missing} is missing: give both, or none."
            )
        if not self.token and self.client_cert is None:
            raise UsageError(
                "There is no token: give --token or --token-file, or set FASTRELAY_TOKEN; `fastrelay token show` on the relay prints it."
            )
        if not self.relay.tls and (self.client_cert is not None or self.pins):
            raise UsageError(
                f"The relay {self.relay.url} is plaintext, where neither side shows a certificate: leave out --client-cert and --pin."
            )
        if len(self.pins) > 2:
            raise UsageError("More than two pins are given: a relay has one key, and while it changes a next one.")
        if len(self.exposures) > wire.MAX_SERVICES:
            raise UsageError(
                f"{len(self.exposures)} services are too many for one client: expose at most {wire.MAX_SERVICES}, "
                "and the others from a second client with another --name."
            )
        names: dict[str, Exposure] = {}
        ports: dict[int, Exposure] = {}
        for exposure in self.exposures:
            other = names.setdefault(exposure.name, exposure)
            if other is not exposure:
                raise UsageError(
                    f"Two services are called {exposure.name!r} ({other.target} and {exposure.target}): "
                    f"give one another name, such as {exposure.name[:61]}-2={exposure.target}."
                )
            other = ports.setdefault(exposure.port, exposure)
            if exposure.port and other is not exposure:
                raise UsageError(
                    f"The services {other.name!r} and {exposure.name!r} both ask for the public port {exposure.port}: "
                    "give one of them another, or none."
                )
