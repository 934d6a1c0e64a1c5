"""What a peer is charged for, each at the number of protocol.md section 12; and what it never is, because it is not its doing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fastrelay import wire
from fastrelay.errors import Code
from fastrelay.mux import floods
from tests.support import pair
from tests.support.pair import Pair, client, relay

UNKNOWN = [kind for kind in range(wire.OPTIONAL, 0x100) if kind not in wire.SIZES]

FLOODS: dict[tuple[str, int, int], tuple[bytes, Callable[[int], bytes]]] = {
    floods.PING: (b"", lambda n: pair.ping()),
    floods.WINDOW: (pair.open_(1, 500), lambda n: pair.window(1, 500)),
    floods.EMPTY: (pair.open_(1), lambda n: pair.data(1, b"")),
    floods.OPEN: (b"", lambda n: pair.open_(2 * n + 1)),
    floods.EXPOSE: (b"", lambda n: pair.expose(n + 1)),
    floods.LIST: (b"", lambda n: pair.list_()),
    floods.OPTIONAL: (b"", lambda n: wire.frame(UNKNOWN[n % len(UNKNOWN)], n % 3, b"?")),
}


@pytest.mark.parametrize("row", FLOODS, ids=[row[0] for row in FLOODS])
def test_a_flood_is_calmed_at_the_documented_number(row: tuple[str, int, int]) -> None:
    _, burst, rate = row
    first, one = FLOODS[row]
    side = relay()
    side.feed(first)
    if row is floods.WINDOW:
        side.feed(pair.window(1, 501))
    numbers = iter(range(10**6))
    side.feed(b"".join(one(next(numbers)) for _ in range(burst)))
    side.clock.now += 0.9999 / rate
    assert side.refuses(one(next(numbers))) is Code.CALM

    side = relay()
    side.feed(first)
    numbers = iter(range(10**6))
    side.feed(b"".join(one(next(numbers)) for _ in range(burst)))
    side.clock.now += 10
    side.feed(b"".join(one(next(numbers)) for _ in range(min(burst, 10 * rate))))
    assert side.refuses(one(next(numbers))) is Code.CALM, "it fills with the rate, and never beyond the burst"


def test_resets_of_streams_that_have_no_target_yet_are_charged_to_the_client() -> None:
    _, burst, rate = floods.RESET
    side = relay()
    side.accepts = False
    for n in range(burst + rate + 1):
        side.clock.now += 0.01  # slower than OPEN is charged
        side.feed(pair.open_(2 * n + 1))
    side.feed(b"".join(pair.reset(2 * n + 1) for n in range(burst)))
    side.clock.now += 1
    side.feed(b"".join(pair.reset(2 * n + 1) for n in range(burst, burst + rate)))
    assert side.refuses(pair.reset(2 * (burst + rate) + 1)) is Code.CALM


def test_a_client_is_not_charged_for_its_visitors_once_they_have_a_target() -> None:
    """A program with 10,000 forwarded connections is killed."""
    side = relay()
    for n in range(10_000):
        side.clock.now += 0.01
        side.feed(pair.open_(2 * n + 1))
    side.feed(b"".join(pair.reset(2 * n + 1) for n in range(10_000)))
    assert not side.session.streams


def test_a_client_is_not_charged_for_visitors_and_targets() -> None:
    """10,000 streams that the relay opened are refused or reset, in one instant."""
    side = relay()
    for n in range(10_000):
        stream = side.must_open()
        side.feed(pair.reset(stream.id, Code.REFUSED) if n % 2 else pair.accept(stream.id) + pair.reset(stream.id))
    assert not side.session.streams


def test_a_client_is_not_charged_for_answering_a_reset() -> None:
    """The relay refuses what a client opens, at the pace at which a client may open."""
    side = relay()
    side.accepts = False
    for n in range(5000):
        side.clock.now += 0.01
        number = 2 * n + 1
        side.feed(pair.open_(number))
        side.session.streams[number].reset(Code.REFUSED)
        side.feed(pair.reset(number, Code.CANCEL))
    assert not side.session.streams


def test_a_relay_is_not_charged_for_opening_and_resetting() -> None:
    side = client()
    for n in range(1, 5001):
        side.feed(pair.open_(2 * n) + pair.reset(2 * n))
    assert not side.session.streams


def test_late_windows_stops_and_resets_cost_nothing() -> None:
    side = relay()
    stream = side.must_open()
    side.feed(pair.reset(stream.id))
    side.feed((pair.window(stream.id, 1) + pair.stop(stream.id) + pair.reset(stream.id)) * 2000)


def test_windows_for_a_half_that_has_ended_cost_nothing() -> None:
    """They were on the way when FIN was sent, and came one for each step of a large window."""
    side = relay()
    stream = side.must_open()
    side.feed(pair.accept(stream.id))
    stream.fin()
    side.feed(b"".join(pair.window(stream.id, 100_000 + n) for n in range(5000)))


def test_short_streams_in_full_flight_charge_nobody() -> None:
    """1,500 transfers, each larger than its window, as fast as the pair can: no WINDOW and no PING is one too many."""
    both = Pair()
    for _ in range(1500):
        stream = both.listener.must_open()
        both.clock.now += 0.001
        left = 400_000
        while left:
            left -= both.listener.send(stream, bytes(left))
            both.deliver(both.listener)
            both.dialer.session.flush()
            both.deliver(both.dialer)
        stream.fin()
        both.dialer.session.streams[stream.id].fin()
        both.pump()
    assert not both.dialer.session.streams and not both.listener.session.streams
    both.check()
