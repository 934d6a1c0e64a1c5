"""What a client exposes: SPEC, and the target behind it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, NamedTuple

from fastrelay.config.hosts import (
    NAME,
    NAME_LENGTH,
    check_host,
    check_name,
    check_port,
    endpoint,
    is_host,
    join_host,
    legal,
    read_port,
)
from fastrelay.errors import UsageError
from fastrelay.networks import Networks

_UNIX_PATH: Final = 107  # bytes: what Linux's sockaddr_un holds, less the zero at its end

PROXY_VERSIONS: Final = {"off": 0, "v1": 1, "v2": 2}
LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""A name that can be a part of a host name (RFC 1123, 2.1); for `fullmatch`."""

_URL: Final = re.compile(r"(https?)://([a-z0-9.-]{1,253})(?::([0-9]{1,5}))?")
_RIGHT_SPEC: Final = (
    "write it like 22, 20022:22, ssh=20022:192.168.1.7:22, web=unix:/run/web.sock, web=http://8000 or db=private://5432"
)


@dataclass(frozen=True)
class Target:
    """A local service: `host` and `port`, or `path` of a unix socket and then "" and 0."""

    host: str
    port: int
    path: str = ""

    def __post_init__(self) -> None:
        if not self.path:
            check_host(self.host)
            check_port(self.port, 1, "local port")
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
    """A service by `name`, the public `port` it asks for (0 is any), the target behind it, who may visit, None for everybody, and its `kind`
    (protocol.md section 5). With `pool` it is shared with other clients; `proxy` is the version of the PROXY header that its target is
    given first, 0 for none.
    """

    name: str
    port: int
    target: Target
    visitors: Networks | None = None
    pool: bool = False
    proxy: int = 0
    kind: str = "tcp"
    login: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        check_name(self.name, "service")
        check_port(self.port, 0, "public port")
        if self.proxy not in PROXY_VERSIONS.values():
            raise UsageError(f"There is no version {self.proxy} of the PROXY protocol: use 1 or 2, or 0 for none.")
        if self.port and self.kind != "tcp":
            raise UsageError(f"The service {self.name!r} is {self.kind} and has no public port: leave out {self.port}.")
        if self.kind == "http" and not LABEL.fullmatch(self.name):
            raise UsageError(
                f"The service {self.name!r} cannot have this name, which is to be a part of a host name: use a-z 0-9 and -, and begin and end "
                "with a letter or digit, such as my-web."
            )
        if self.login and self.kind != "http":
            raise UsageError(
                f"The service {self.name!r} is {self.kind}, and only HTTP services ask for a password: leave --auth out, or write it as "
                f"{self.name}=http://{self.target}."
            )

    def __str__(self) -> str:
        """The SPEC in full, which says nothing of what has options of its own; `parse_expose` reads it back."""
        scheme = "" if self.kind == "tcp" else f"{self.kind}://"
        return f"{self.name}={scheme}{f'{self.port}:' if self.port else ''}{self.target}"


class Public(NamedTuple):
    """Where visitors reach a service: its URL, and of that host and port, "" and 0 where a name is enough."""

    url: str
    host: str = ""
    port: int = 0


def parse_public(url: str) -> Public:
    """`http://NAME.DOMAIN` or `https://NAME.DOMAIN`, also with `:PORT`, from a relay (protocol.md section 5.3). Raises ValueError."""
    found = _URL.fullmatch(url)
    port = int(found[3] or {"http": 80, "https": 443}[found[1]]) if found else 0
    if found is None or not is_host(found[2]) or not 0 < port < 65_536:
        raise ValueError("it is not the address of an HTTP service")
    return Public(url, found[2], port)


def check_service(name: str) -> None:
    """Whether this can be the name of a service."""
    check_name(name, "service")


def parse_expose(spec: str) -> Exposure:
    """`[NAME=][tcp://][PUBLIC:][HOST:]PORT`, `[NAME=]private://[HOST:]PORT` or `[NAME=]http://[HOST:]PORT`, where `unix:/PATH` may stand for
    HOST:PORT.

    HOST is localhost unless given. `A:B` with digits for A is PUBLIC:PORT, else HOST:PORT. Without NAME the service is called after
    its target: `tcp-22`, `unix-web.sock`, `http-8000`.
    """
    try:
        name, kind, public, target = _split_spec(spec.strip())
    except ValueError as why:
        raise UsageError(f"The service {spec!r} is not understood: {why}; {_RIGHT_SPEC}.") from None
    return Exposure(_default_name(target, kind) if name is None else name, public, target, kind=kind)


def _split_spec(spec: str) -> tuple[str | None, str, int, Target]:
    """NAME or None, kind, PUBLIC or 0, and the target. Raises ValueError with half a sentence that says what is wrong."""
    name: str | None = None
    kind = "tcp"
    rest = spec
    # A "=" behind ":", "/" or "[" belongs to the path of a unix socket.
    if named := re.match(r"([^:/\[=]*)=", spec):
        name, rest = named[1], spec[named.end() :]
        if not NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is not a name (1 to {NAME_LENGTH} of a-z 0-9 . _ -, and the first a letter or digit)"
            )
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", rest):
        if scheme[1] == "unix":
            raise ValueError("unix: takes the path of a socket without //, as in unix:/run/x.sock")
        kind = scheme[1].lower()
        if kind not in ("tcp", "private", "http"):
            raise ValueError(f"the scheme {scheme[1]!r} is not known, only tcp, private and http are")
        rest = rest[scheme.end() :]
        if kind == "http":
            rest = rest if rest.startswith("unix:") else rest.removesuffix("/")  # as it is copied from a browser
    public = 0
    if leading := re.match(r"([0-9]+):", rest):
        public, rest = read_port(leading[1]), rest[leading.end() :]
        if kind != "tcp":
            raise ValueError(f"a {kind} service has no public port, and {public} would be one")
    return name, kind, public, _target(rest)


def _target(text: str) -> Target:
    """`PORT`, `HOST:PORT` or `unix:/PATH`. Raises ValueError with half a sentence that says why not."""
    if text.startswith("unix:"):
        return Target("", 0, _path(text[5:]))
    if not text:
        raise ValueError("the port of the local service is missing")
    if re.fullmatch(r"[0-9]+", text):
        return Target("localhost", read_port(text))
    host, port = endpoint(text)
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


def _default_name(target: Target, kind: str) -> str:
    if not target.path:
        return f"{'http' if kind == 'http' else 'tcp'}-{target.port}"
    name = f"unix-{legal(target.path.rpartition('/')[2]) or 'socket'}"[:NAME_LENGTH]
    return re.sub(r"[._]", "-", name).rstrip("-") if kind == "http" else name


# --- what an option says of services -----------------------------------------------------------------------------------


def assign_proxy(specs: Iterable[str], services: Sequence[str]) -> dict[str, int]:
    """The version of the PROXY protocol for each of `services`, from `[NAME=]v1`, `v2` or `off` each. Without NAME it is for all that have none of
    their own; the last one for a NAME counts. Raises UsageError.
    """
    versions = {"": 0}
    for spec in specs:
        name, named, version = spec.strip().rpartition("=")
        if named:
            _check_exposed(name, services, f"The PROXY protocol {spec!r} is")
        if version not in PROXY_VERSIONS:
            raise UsageError(
                f"The PROXY protocol {spec!r} is not understood: write v1 or v2, or for one service web=v2."
            )
        versions[name] = PROXY_VERSIONS[version]
    return {service: versions.get(service, versions[""]) for service in services}


def assign_pools(names: Iterable[str], services: Sequence[str]) -> set[str]:
    """Those of `services` that are shared with other clients, from NAME[,NAME…] each. Raises UsageError."""
    pools = {name.strip() for text in names for name in text.split(",")}
    for name in sorted(pools):
        _check_exposed(name, services, f"The pool {name!r} is")
    return pools


def assign_logins(specs: Iterable[str], services: Sequence[str]) -> dict[str, bytes]:
    """The SHA-256 of the login of each of `services`, from `[NAME=]USER:PASSWORD` each. Without NAME it is for all that have none of their own.

    Raises UsageError, which quotes nothing: it might be a secret.
    """
    found: dict[str, bytes] = {}
    for spec in specs:
        user, colon, password = spec.partition(":")
        name, named, rest = user.partition("=")
        user = rest if named else user
        name = name if named else ""
        if not (colon and user and password):
            raise UsageError("What --auth says is not understood: write it like alice:PASSWORD, or web=alice:PASSWORD.")
        if name:
            _check_exposed(name, services, "--auth is")
        if name in found:
            raise UsageError(
                f"--auth is given twice for {f'the service {name!r}' if name else 'all services'}: give it once."
            )
        found[name] = sha256(f"{user}:{password}".encode()).digest()
    logins = {service: found.get(service, found.get("", b"")) for service in services}
    return {service: login for service, login in logins.items() if login}


def _check_exposed(name: str, services: Sequence[str], what: str) -> None:
    if name not in services:
        raise UsageError(f"{what} for the service {name!r}, which is not exposed: use one of {', '.join(services)}.")
