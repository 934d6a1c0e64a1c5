"""What a peer may do too often, and how often (protocol.md section 12).

A peer is charged only for what it does of its own accord; visitors and targets are not its fault.
"""

from __future__ import annotations

from fastrelay.errors import Code, ProtocolError

# (name, burst, a second); the same rows as the table in protocol.md, in its order.
PING = ("PING", 20, 1)
WINDOW = ("WINDOW that raises nothing", 1000, 10)
EMPTY = ("DATA or FIN without effect (empty DATA)", 1000, 10)
OPEN = ("OPEN by a client", 1000, 200)
RESET = ("RESET by a client of a stream that it opened", 1000, 33)
EXPOSE = ("EXPOSE", 128, 1)
OPTIONAL = ("unknown optional frame", 1000, 100)
ROWS = (PING, WINDOW, EMPTY, OPEN, RESET, EXPOSE, OPTIONAL)


class Floods:
    """The buckets of one peer. Each holds `burst` and fills with its rate; an empty one ends the session."""

    __slots__ = ("_spent",)

    def __init__(self) -> None:
        self._spent: dict[str, tuple[float, float]] = {}  # name -> (what has been spent, when)

    def charge(self, row: tuple[str, int, int], now: float) -> None:
        """Raises ProtocolError (CALM) when the peer has no more of it."""
        name, burst, rate = row
        spent, since = self._spent.get(name, (0.0, now))
        spent = max(0.0, spent - (now - since) * rate) + 1
        if spent > burst:
            raise ProtocolError(
                Code.CALM, f"too much of one thing: {name}, more than {burst} at once and {rate} a second"
            )
        self._spent[name] = (spent, now)
