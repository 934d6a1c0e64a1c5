"""What a token grants, and whether what a client asks for is in it (protocol.md section 4.5). Pure: time is an argument.

Default deny: a grant without an entry gives nothing of that kind. Each check answers None, or a Refusal that names the rule.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Final

import msgspec

from fastrelay.auth import Token, Verifier
from fastrelay.config import NAME, PortRange, parse_ports
from fastrelay.dialling import Place, Rules
from fastrelay.errors import UsageError
from fastrelay.matching import Refusal, matches, some
from fastrelay.wire import MAX_STREAMS

FIRST_LABEL: Final = "first"
"""The label of the token that a relay makes at its first start."""

PRIVILEGED: Final = 1024
"""Ports below are granted one by one, never as part of a range."""

_RELAY: Final = "relay"
OWN: Final = "own"
"""In `reach`: the private services of clients that came with the same token."""
_PATTERN: Final = re.compile(r"[a-z0-9*][a-z0-9._*-]{0,62}")
_HOSTS: Final = re.compile(r"[a-z0-9*]([a-z0-9.*-]{0,251}[a-z0-9*])?")
_DURATION: Final = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST: Final = 36525 * 86400  # a hundred years
_LATEST: Final = 253402300799.0  # the last second of the year 9999


_REACHES: Final = "one that does is made by `fastrelay token new LABEL --reach NAMES` on the relay"


# --- ports -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ports:
    """Public ports in the order in which they are given out: `ranges`, and with `relay` the range that the relay was started with.

    A range of one port lists it by number. Raises UsageError for a longer one that begins below 1024.
    """

    ranges: tuple[PortRange, ...] = ()
    relay: bool = False

    def __post_init__(self) -> None:
        for ports in self.ranges:
            if ports.first < PRIVILEGED and len(ports) > 1:
                raise UsageError(
                    f"The ports {ports} begin below {PRIVILEGED}, where ports are granted one by one: list those by number, as in "
                    f"443,{PRIVILEGED}-2000."
                )

    @classmethod
    def parse(cls, text: str) -> Ports:
        """`20000-20009,443`, where `relay` stands for the relay's own range; "" is no port at all. Raises UsageError."""
        words = [word.strip() for word in text.split(",")] if text.strip() else []
        ranges: list[PortRange] = []
        for word in words:
            if word == _RELAY:
                continue
            try:
                ports = parse_ports(word)
            except UsageError:
                raise UsageError(
                    f"The ports {text!r} are not understood: write them like 20000-20009,443, or {_RELAY} for the range of the relay."
                ) from None
            if "-" in word and ports.first < PRIVILEGED and len(ports) == 1:
                raise UsageError(f"The port {ports.first} is granted by number only: write it without a dash.")
            ranges.append(ports)
        return cls(tuple(ranges), _RELAY in words)

    def __str__(self) -> str:
        """`parse` reads it back."""
        words = [str(ports.first) if len(ports) == 1 else str(ports) for ports in self.ranges]
        return ",".join([*words, *([_RELAY] if self.relay else [])])


@dataclass(frozen=True)
class Allowed:
    """The ports that a token gives on one relay, which gives out `relay` by itself and takes its clients on the port `own`."""

    label: str
    ports: Ports
    relay: PortRange
    own: int

    def refusal(self, port: int) -> Refusal | None:
        """Why a port (1 to 65535) is not granted."""
        if port == self.own:
            return Refusal("relay-port", f"port {port} is where this relay takes its clients, and no token grants it")
        # A longer range of the token begins at 1024 or above; the relay's own may not.
        if any(port in ports for ports in self.ports.ranges):
            return None
        if port < PRIVILEGED:
            return Refusal(
                "privileged-port",
                f"the token {self.label!r} does not grant port {port}, and ports below {PRIVILEGED} are granted only by number; "
                f"a token with it is made by `fastrelay token new LABEL --ports {port}` on the relay",
            )
        if self.ports.relay and port in self.relay:
            return None
        if not self.ports.ranges and not self.ports.relay:
            return self.nothing()
        granted = f"port {self}" if str(self).isdigit() else f"the ports {self}"
        return Refusal(
            "ports",
            f"the token {self.label!r} grants {granted}, not port {port}; ask for what it grants, or use a token with port {port}",
        )

    def nothing(self) -> Refusal:
        """Why there is no port at all."""
        return Refusal(
            "ports",
            f"the token {self.label!r} grants no public port; one that does is made by "
            "`fastrelay token new LABEL --ports 20000-20009` on the relay",
        )

    def __iter__(self) -> Iterator[int]:
        """Every port once, in the order in which they are given out."""
        earlier: list[PortRange] = []
        for ports in self.ports.ranges:
            yield from self._new(ports, earlier)
            earlier.append(ports)
        if self.ports.relay:
            yield from (port for port in self._new(self.relay, earlier) if port >= PRIVILEGED)

    def for_any(self) -> Iterator[int]:
        """The same for a client that asks for any port: those below 1024 are for who names them, as long as there are others."""
        others = (port for port in self if port >= PRIVILEGED)
        first = next(others, None)
        return iter(self) if first is None else chain((first,), others)

    def _new(self, ports: PortRange, earlier: list[PortRange]) -> Iterator[int]:
        return (port for port in ports if port != self.own and not any(port in others for others in earlier))

    def __str__(self) -> str:
        """For people: `20000-20009,443`."""
        words = [str(Ports((ports,))) for ports in self.ports.ranges]
        return some([*words, *([str(self.relay)] if self.ports.relay else [])], ",")


# --- names -------------------------------------------------------------------------------------------------------------


def parse_patterns(text: str, what: str) -> tuple[str, ...]:
    """`home`, `home,lab-*` or `*`: names of protocol.md section 4.1 in which `*` stands for any characters. Raises UsageError.

    `what` says whose names they are: "client" or "service".
    """
    patterns = tuple(word.strip() for word in text.split(","))
    for pattern in patterns:
        if not _PATTERN.fullmatch(pattern):
            raise UsageError(
                f"The {what} names {text!r} are not understood: write names of a-z 0-9 . _ - between commas, with * for any characters, "
                "like home,lab-*."
            )
    return patterns


def parse_hosts(text: str) -> tuple[str, ...]:
    """`web.home.example,*.lab.example`: host names, in which `*` stands for any characters; "" is none. Raises UsageError."""
    patterns = tuple(word.strip().lower() for word in text.split(",")) if text.strip() else ()
    if not all(_HOSTS.fullmatch(pattern) for pattern in patterns):
        raise UsageError(
            f"The host names {text!r} are not understood: write them between commas, with * for any characters, like *.home.example.com."
        )
    return patterns


def _one_of(patterns: tuple[str, ...], name: str) -> bool:
    return NAME.fullmatch(name) is not None and any(matches(pattern, name) for pattern in patterns)


def check_label(label: str) -> None:
    """Raises UsageError for what cannot be the label of a token: it has the form of a name, for by itself it is the client's."""
    if not NAME.fullmatch(label):
        raise UsageError(
            f"The label {label!r} is not a name: use 1 to 63 of a-z 0-9 . _ - and begin with a letter or digit, such as home-nas."
        )


# --- times -------------------------------------------------------------------------------------------------------------


def parse_duration(text: str) -> float:
    """Seconds of `30d`, `12h`, `90m` or `45s`. Raises UsageError."""
    match = _DURATION.fullmatch(text.strip())
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < seconds <= _LONGEST:
        raise UsageError(f"The time {text!r} is not understood: write it like 30d, 12h, 90m or 45s.")
    return float(seconds)


def parse_expiry(text: str, now: float) -> float:
    """Unix time of what is so long after `now` (`30d`), or of the end of a day (`2030-12-31`, in UTC). Raises UsageError."""
    day = text.strip()
    if _DURATION.fullmatch(day):
        return now + parse_duration(day)
    try:
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", day):
            raise ValueError
        begin = datetime.datetime.combine(datetime.date.fromisoformat(day), datetime.time(), datetime.UTC).timestamp()
    except ValueError:
        raise UsageError(
            f"The time {text!r} is not understood: write it like 30d, 12h, 90m, or the last day like 2030-12-31."
        ) from None
    if begin + 86400 <= now:
        raise UsageError(f"The day {day} is over: name one to come, or a time from now on such as 30d.")
    return min(begin + 86400, _LATEST)


def show_time(seconds: float) -> str:
    """Unix time as `2030-12-31T10:00Z`."""
    when = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return when.strftime("%Y-%m-%dT%H:%MZ")


# --- grants ------------------------------------------------------------------------------------------------------------


@lru_cache(1024)
def _rules(texts: tuple[str, ...]) -> Rules:
    return Rules.parse(texts)


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one token is good for: `names` of clients and of their `services` as patterns, `ports` as `Ports` writes them, how many streams
    at a time (`max_streams`, 0 is no bound of its own), until when (`expires`, unix time, 0 is for ever), which private services it reaches
    (`reach`, patterns, of which OWN stands for those of clients with this token), `hosts` of its HTTP services, as patterns, and what may be dialled
    (`dial`, as `dialling.Rules` writes it) through which clients (`through`, patterns).

    A member that this version does not know is an error: it might be a bound. Raises ValueError for what cannot be.
    """

    names: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    ports: str = ""
    max_streams: int = 0
    expires: float = 0.0
    reach: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    dial: tuple[str, ...] = ()
    through: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in (*self.names, *self.services, *self.reach, *self.through):
            if not _PATTERN.fullmatch(pattern):
                raise ValueError(f"{pattern!r} is no name or pattern")
        if any(not _HOSTS.fullmatch(pattern) for pattern in self.hosts):
            raise ValueError(f"{self.hosts} are no host names or patterns")
        try:
            Ports.parse(self.ports)
            _rules(self.dial)
        except UsageError as error:
            raise ValueError(str(error)) from None
        if not 0 <= self.max_streams <= MAX_STREAMS:
            raise ValueError(f"max_streams is not from 0 to {MAX_STREAMS}")
        if not 0 <= self.expires <= _LATEST:
            raise ValueError("expires is no time")

    def same_but_time(self, other: Grant) -> bool:
        """Whether both grant the same as long as they last."""
        return msgspec.structs.replace(self, expires=0.0) == msgspec.structs.replace(other, expires=0.0)


FIRST_GRANT: Final = Grant(names=("*",), services=("*",), ports=_RELAY, reach=(OWN,), hosts=("*",))
"""The first token's: every name, the range of ports that the relay was started with, the private services of its own clients, and every host name
under the relay's domain.
"""


class Key(Verifier, frozen=True):
    """A token as the relay knows it: how to check it, what its owner calls it, when it was made (unix time), and what it grants."""

    label: str = FIRST_LABEL
    created: float = 0.0
    grant: Grant = FIRST_GRANT

    def __post_init__(self) -> None:
        Verifier.__post_init__(self)
        if not NAME.fullmatch(self.label):
            raise ValueError("label does not have the form of a name")
        if not 0 <= self.created <= _LATEST:
            raise ValueError("created is no time")

    @classmethod
    def made(cls, token: Token, label: str, grant: Grant, created: float, cert: bytes = b"") -> Key:
        """With `cert` the token is good only together with a client certificate whose public key has this SHA-256."""
        verifier = Verifier.of(token)
        return cls(verifier.key_id, verifier.stored_key, verifier.server_key, cert, label, created, grant)

    @classmethod
    def for_certificate(cls, key_id: str, cert: bytes, label: str, grant: Grant, created: float) -> Key:
        """Without a token: the client certificate whose public key has this SHA-256 is enough (protocol.md section 4.6)."""
        return cls(key_id, cert=cert, label=label, created=created, grant=grant)

    def same_token(self, other: Verifier) -> bool:
        """Whether both are proved by the same secret and certificate."""
        mine = (self.key_id, self.stored_key, self.server_key, self.cert)
        return mine == (other.key_id, other.stored_key, other.server_key, other.cert)

    # --- checks --------------------------------------------------------------------------------------------------------

    def expired(self, now: float) -> Refusal | None:
        """`now` is unix time."""
        if not self.grant.expires or now < self.grant.expires:
            return None
        return Refusal(
            "expires",
            f"the token {self.label!r} expired at {show_time(self.grant.expires)}; make another with `fastrelay token new` "
            "on the relay",
        )

    def refuse_name(self, name: str) -> Refusal | None:
        """For the name of a client."""
        names = self.grant.names
        if _one_of(names, name):
            return None
        exact = next((own for own in names if "*" not in own), None)
        use = f"use {f'--name {exact}' if exact else 'another --name'}, or a" if names else "use a"
        return Refusal(
            "names",
            f"the token {self.label!r} is for {_listed('clients', names)}, not {name!r}; {use} token for {name!r}",
        )

    def refuse_service(self, name: str) -> Refusal | None:
        """For the name of a service."""
        services = self.grant.services
        if _one_of(services, name):
            return None
        exact = next((own for own in services if "*" not in own), "NAME")
        use = f"name it so, as in --expose {exact}=22, or use a" if services else "use a"
        return Refusal(
            "services",
            f"the token {self.label!r} is for {_listed('services', services)}, not {name!r}; {use} token for {name!r}",
        )

    def refuse_visits(self) -> Refusal | None:
        """For a client that serves nothing, and only reaches services of others, or has others dial."""
        if self.grant.reach or self.grant.through:
            return None
        return Refusal(
            "reach", f"the token {self.label!r} reaches no private services, and no client dials for it; {_REACHES}"
        )

    def refuse_reach(self, service: str, label: str) -> Refusal | None:
        """For the name of a private service, which belongs to a client with the token `label`, "" if to nobody.

        The rule OWN says that the service must seem not to be there: its name may be another's.
        """
        reach = self.grant.reach
        if _one_of(tuple(pattern for pattern in reach if pattern != OWN), service):
            return None
        if OWN not in reach:
            return Refusal(
                "reach", f"the token {self.label!r} reaches {_listed('services', reach)}, not {service!r}; {_REACHES}"
            )
        if label == self.label:
            return None
        return Refusal(OWN, f"no client with the token {self.label!r} has a private service {service!r}")

    def refuse_host(self, host: str) -> Refusal | None:
        """For the host name of an HTTP service."""
        hosts = self.grant.hosts
        if any(matches(pattern, host) for pattern in hosts):
            return None
        return Refusal(
            "hosts",
            f"the token {self.label!r} is for {_listed('hosts', hosts)}, not {host!r}; one that is for it is made by "
            f"`fastrelay token new LABEL --hosts {host}` on the relay",
        )

    def refuse_dial(self, client: str, place: Place) -> Refusal | None:
        """For a connection that this client is to make."""
        return self.refuse_through(client) or self.refuse_place(place)

    def refuse_through(self, client: str) -> Refusal | None:
        """For a client that is to make connections."""
        through = self.grant.through
        if _one_of(through, client):
            return None
        return Refusal(
            "through",
            f"the token {self.label!r} dials through {_listed('clients', through)}, not {client!r}; use one that is made by "
            "`fastrelay token new LABEL --dial PLACE --through NAMES` on the relay",
        )

    def refuse_place(self, place: Place) -> Refusal | None:
        """For where some client is to connect to."""
        if no := _rules(self.grant.dial).refuse_unresolved(place):
            return Refusal(
                "dial",
                f"the token {self.label!r} does not grant that: {no.text}; one that does is made by `fastrelay token new LABEL --dial {place}` "
                "on the relay",
            )
        return None

    def ports(self, relay: PortRange, own: int) -> Allowed:
        """What it gives on a relay with this range of its own, which takes its clients on the port `own`."""
        return Allowed(self.label, Ports.parse(self.grant.ports), relay, own)

    def streams(self, most: int) -> int:
        """How many streams at a time, where there may be `most`."""
        return min(most, self.grant.max_streams or most)


def standing(admitted: Key, current: Key | None, now: float) -> Refusal | None:
    """Why a session that was admitted with one key must end, where the relay has `current` for its key id now; `now` is unix time.

    The rule `changed` alone lets it come again.
    """
    if current is None or not admitted.same_token(current):
        return Refusal(
            "revoked", f"the token {admitted.label!r} was revoked or replaced on the relay; use one that is valid there"
        )
    if not admitted.grant.same_but_time(current.grant):
        return Refusal("changed", f"the token {current.label!r} grants something else from now on; connect again")
    return current.expired(now)


def _listed(what: str, patterns: tuple[str, ...]) -> str:
    return f"{what} named {some(patterns, ' or ')}" if patterns else f"no {what} at all"
