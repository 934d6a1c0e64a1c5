"""What a person may set: how many, how much and how long, each with a default, bounds, and what happens when it is reached.

`Limits` is the truth: the help of the command line, the check of what is typed and the table in protocol.md section 12 come from its
fields. What the other side relies on (sizes of frames, floors of windows) is not here: see `fastrelay.wire`. Pure.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Final, NamedTuple

from fastrelay import wire
from fastrelay.errors import UsageError


class Side(enum.Enum):
    BOTH = "both"
    RELAY = "relay"
    CLIENT = "client"


class Bucket(NamedTuple):
    """`burst` at once, and filled with `rate` a second."""

    burst: int
    rate: int


Value = int | float | tuple[int, int]


class Setting(NamedTuple):
    """One limit: `name` as it is typed, values in `unit` from `least` to `most`, and what happens when it is `reached`."""

    name: str
    side: Side
    default: Any
    least: Any
    most: Any
    unit: str
    reached: str

    @property
    def field(self) -> str:
        """Its name in `Limits`."""
        return self.name.replace("-", "_")

    def show(self, value: Value | None) -> str:
        """A value as it is typed: 8M, 10s, 1000/200, 1024; auto is what the system allows."""
        if value is None:
            return "auto"
        if isinstance(value, tuple):
            return "/".join(map(str, value))
        if self.unit == "seconds":
            return f"{value:.12g}s"
        if self.unit.startswith("bytes"):
            for letter in "GMK":
                if value and not value % _SIZES[letter]:
                    return f"{int(value) // _SIZES[letter]}{letter}"
        return str(value)

    def of(self, side: Side) -> bool:
        """Whether this side has the limit."""
        return self.side in (side, Side.BOTH)


def _limit(default: Any, least: Any, most: Any, unit: str, side: Side, reached: str) -> Any:
    return field(default=default, metadata={"rest": (side, default, least, most, unit, reached)})


def _flood(burst: int, rate: int, least: tuple[int, int], side: Side) -> Any:
    return _limit(
        Bucket(burst, rate),
        Bucket(*least),
        Bucket(1_000_000, 1_000_000),
        "at once/a second",
        side,
        "the session is ended (CALM)",
    )


def _penalty(seconds: int) -> Any:
    return _limit(seconds, 0, 86_400, "seconds", Side.RELAY, "the source is charged with so much")


@dataclass(frozen=True)
class Limits:
    """The limits of one process. Times are seconds, sizes bytes."""

    streams: int = _limit(
        wire.MAX_STREAMS, 1, wire.MAX_STREAMS, "for each client", Side.BOTH, "new visitors of the client are reset"
    )
    services: int = _limit(
        wire.MAX_SERVICES, 1, wire.MAX_SERVICES, "for each client", Side.RELAY, "another service is refused"
    )
    clients: int = _limit(
        1024,
        1,
        65_535,
        "for each token, but a quarter of files",
        Side.RELAY,
        "another client of the token is refused (CALM)",
    )
    dials: int = _limit(wire.MAX_DIALS, 1, 65_535, "at once", Side.CLIENT, "more of them wait for their turn")
    files: int | None = _limit(
        None, 128, 1 << 20, "open at once", Side.BOTH, "new visitors wait, or at a client are reset; see `ulimit -n`"
    )
    memory: int | None = _limit(
        None, 1 << 20, 1 << 40, "bytes queued", Side.BOTH, "new visitors wait, or at a client are reset"
    )
    control: int = _limit(
        8 << 20, 65_536, 1 << 30, "bytes", Side.BOTH, "the tunnel, whose other side takes nothing, is lost"
    )
    handshake_time: float = _limit(wire.HANDSHAKE_TIME, 0.1, 60, "seconds", Side.BOTH, "the connection is closed")
    dial_time: float = _limit(wire.DIAL_TIME, 0.1, 120, "seconds", Side.CLIENT, "the visitor is reset (DIAL_TIMEOUT)")
    answer_time: float = _limit(
        wire.ANSWER_TIME, 0.1, 300, "seconds", Side.RELAY, "the visitor is reset (DIAL_TIMEOUT)"
    )
    request_wait: float = _limit(
        1, 0.01, 60, "seconds", Side.RELAY, "the call finds no client, and is answered so (526)"
    )
    half_open_time: float = _limit(
        wire.HALF_OPEN_IDLE, 1, 86_400, "seconds", Side.BOTH, "streams on which nothing moved are reset (TIMEOUT)"
    )
    drain_time: float = _limit(
        wire.DRAIN_TIME, 0.1, 86_400, "seconds", Side.BOTH, "streams that are still open are reset"
    )
    reserved_time: float = _limit(
        wire.RESERVED_TIME, 1, 31_536_000, "seconds", Side.RELAY, "the name and its ports are free again"
    )
    return_time: float = _limit(5, 0, 60, "seconds", Side.RELAY, "who waits for a client that is away is reset")
    held_ports: int = _limit(
        4096,
        0,
        65_535,
        "of clients that are away, but a quarter of files",
        Side.RELAY,
        "another port is not held, and other programs can take it",
    )
    # Strangers at the tunnel port (protocol.md section 12.1).
    max_greetings: int = _limit(
        1000, 1, 65_535, "strangers, but an eighth of files", Side.RELAY, "an older one is closed for a new one"
    )
    greetings_per_source: int = _limit(
        64, 1, 65_535, "strangers", Side.RELAY, "the oldest of the source is closed for a new one"
    )
    max_client_hello: int = _limit(8192, 512, 16_384, "bytes", Side.RELAY, "the connection is closed")
    penalty_refused: float = _penalty(5)
    penalty_slow: float = _penalty(10)
    penalty_unfinished: float = _penalty(1)
    unfinished_burst: int = _limit(
        200, 1, 1_000_000, "for each source", Side.RELAY, "more unfinished connections are charged"
    )
    unfinished_rate: int = _limit(50, 1, 1_000_000, "a second", Side.RELAY, "more unfinished connections are charged")
    penalty_from: float = _limit(15, 1, 86_400, "seconds", Side.RELAY, "the source is served slowly")
    penalty_most: float = _limit(600, 1, 86_400, "seconds", Side.RELAY, "the penalty of the source grows no more")
    penalty_rate: int = _limit(20, 1, 10_000, "a second", Side.RELAY, "others of the slow source wait")
    penalty_rate_all: int = _limit(100, 1, 10_000, "a second", Side.RELAY, "others of all slow sources wait")
    max_sources: int = _limit(65_536, 1, 1 << 20, "sources", Side.RELAY, "the least recently used one is forgotten")
    # The smallest are what an honest peer may do (protocol.md sections 5 and 10).
    flood_ping: tuple[int, int] = _flood(20, 1, (20, 1), Side.BOTH)
    flood_window: tuple[int, int] = _flood(1000, 10, (1, 1), Side.BOTH)
    flood_empty: tuple[int, int] = _flood(1000, 10, (1, 1), Side.BOTH)
    flood_open: tuple[int, int] = _flood(4000, 2000, (1, 1), Side.RELAY)
    flood_reset: tuple[int, int] = _flood(2000, 500, (1, 1), Side.RELAY)
    flood_expose: tuple[int, int] = _flood(2 * wire.MAX_SERVICES, 1, (wire.MAX_SERVICES, 1), Side.RELAY)
    flood_list: tuple[int, int] = _flood(5, 1, (1, 1), Side.RELAY)
    flood_pins: tuple[int, int] = _flood(20, 1, (20, 1), Side.CLIENT)
    flood_optional: tuple[int, int] = _flood(1000, 100, (1, 1), Side.BOTH)


SETTINGS: Final = {
    one.name.replace("_", "-"): Setting(one.name.replace("_", "-"), *one.metadata["rest"]) for one in fields(Limits)
}
DEFAULTS: Final = Limits()


# --- what a person types -----------------------------------------------------------------------------------------------

_SIZES: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_TIMES: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def parse_limits(texts: Iterable[str], side: Side) -> Limits:
    """`NAME=VALUE` each; of two with one name the last counts. Raises UsageError: a sentence that says what would be right."""
    found: dict[str, Value | None] = {}
    for text in texts:
        name, equals, value = text.strip().partition("=")
        setting = SETTINGS.get(name)
        if setting is None or not setting.of(side):
            other = "" if setting is None else f"; {name} is a limit of a {setting.side.value}"
            names = ", ".join(one.name for one in SETTINGS.values() if one.of(side))
            raise UsageError(f"A {side.value} has no limit {name!r}{other}: use one of {names}.")
        if not equals:
            raise UsageError(f"The limit {name} has no value: write it like {name}={setting.show(setting.default)}.")
        found[setting.field] = _value(setting, value.strip())
    return Limits(**found)  # type: ignore[arg-type]


def _value(setting: Setting, text: str) -> Value | None:
    if text == "auto" and setting.default is None:
        return None
    value = _read(text, setting.unit)
    if value is None:
        raise UsageError(
            f"The limit {f'{setting.name}={text}'!r} is not understood: write it like {setting.name}={setting.show(setting.default)}."
        )
    inside = (
        all(a <= b <= c for a, b, c in zip(setting.least, value, setting.most, strict=True))
        if isinstance(value, tuple)
        else setting.least <= value <= setting.most
    )
    if not inside:
        low, high = setting.show(setting.least), setting.show(setting.most)
        raise UsageError(f"The limit {setting.name}={text} is out of bounds: give it from {low} to {high}.")
    return value


def _read(text: str, unit: str) -> Value | None:
    """The value of a text in its unit; None if it has none."""
    if unit == "at once/a second":
        bucket = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        return Bucket(int(bucket[1]), int(bucket[2])) if bucket else None
    if unit == "seconds":
        time = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|[smhd]?)", text)
        return round(float(time[1]) * _TIMES[time[2]], 6) if time else None
    size = re.fullmatch(r"([0-9]{1,13})([KMG]?)", text)
    if size is None or (size[2] and not unit.startswith("bytes")):
        return None
    return int(size[1]) * _SIZES[size[2]]


def lines(side: Side) -> Iterator[tuple[str, str]]:
    """For a help text: each limit of this side with its default, and what happens when it is reached."""
    for one in SETTINGS.values():
        if one.of(side):
            yield f"{one.name}={one.show(one.default)}", one.reached
