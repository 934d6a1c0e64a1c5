"""What a peer may do too often, and how often (protocol.md section 12).

A peer is charged only for what it does of its own accord; visitors and targets are not its fault.
"""

from __future__ import annotations

from fastrelay.errors import Code, LimitError
from fastrelay.limits import DEFAULTS, Limits

# (name, burst, a second); the same rows as the table in protocol.md, in its order.
PING = ("PING", *DEFAULTS.flood_ping)
WINDOW = ("WINDOW that raises nothing", *DEFAULTS.flood_window)
EMPTY = ("DATA or FIN without effect (empty DATA)", *DEFAULTS.flood_empty)
OPEN = ("OPEN by a client", *DEFAULTS.flood_open)
RESET = ("RESET by a client before ACCEPT of a stream that it opened", *DEFAULTS.flood_reset)
EXPOSE = ("EXPOSE", *DEFAULTS.flood_expose)
LIST = ("LIST", *DEFAULTS.flood_list)
PINS = ("PINS", *DEFAULTS.flood_pins)
OPTIONAL = ("unknown optional frame", *DEFAULTS.flood_optional)
ROWS = (PING, WINDOW, EMPTY, OPEN, RESET, EXPOSE, LIST, PINS, OPTIONAL)


class Floods:
    """The buckets of one peer. Each holds `burst` and fills with its rate; an empty one ends the session."""

    __slots__ = ("_set", "_spent")

    def __init__(self, limits: Limits = DEFAULTS) -> None:
        self._spent: dict[str, tuple[float, float]] = {}  # name -> (what has been spent, when)
        self._set = {
            PING: ("flood-ping", limits.flood_ping),
            WINDOW: ("flood-window", limits.flood_window),
            EMPTY: ("flood-empty", limits.flood_empty),
            OPEN: ("flood-open", limits.flood_open),
            RESET: ("flood-reset", limits.flood_reset),
            EXPOSE: ("flood-expose", limits.flood_expose),
            LIST: ("flood-list", limits.flood_list),
            PINS: ("flood-pins", limits.flood_pins),
            OPTIONAL: ("flood-optional", limits.flood_optional),
        }

    def charge(self, row: tuple[str, int, int], now: float) -> None:
        """Raises LimitError (CALM) when the peer has no more of it."""
        name = row[0]
        limit, (burst, rate) = self._set[row]
        spent, since = self._spent.get(name, (0.0, now))
        spent = max(0.0, spent - (now - since) * rate) + 1
        if spent > burst:
            raise LimitError(
                Code.CALM, f"too much of one thing: {name}, more than {burst} at once and {rate} a second", limit
            )
        self._spent[name] = (spent, now)
