"""Half-close and reset, exact over every door, with nothing, 64 KiB and 4 MiB on the way."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.e2e.doors import DOORS, SLOW, Door
from tests.e2e.test_half_close import crosses, crosses_nothing, quiet
from tests.support.payload import Checker, Keystream
from tests.support.peers import TIMEOUT, End, background, handed_over, hang_up, read_to_end, reset, send
from tests.support.processes import BEST, Pair

SIZES = [0, 64 << 10, 4 << 20]
AFTER_DRAIN = 8.0  # 2 s in each process on the way (protocol.md 9.1, 9.2)

pytestmark = [
    pytest.mark.parametrize(
        "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in DOORS], scope="module"
    ),
    pytest.mark.parametrize("size", SIZES),
]


@pytest.fixture(scope="module")
def door(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with DOORS[name](tmp_path_factory.mktemp("door"), BEST) as made:
        yield made


def ends(pair: Pair, who: str) -> tuple[socket.socket, socket.socket]:
    return (pair.visitor, pair.target) if who == "visitor" else (pair.target, pair.visitor)


@pytest.mark.parametrize("who", ["visitor", "target"])
def test_one_direction_ends_and_the_other_goes_on(door: Door, who: str, size: int) -> None:
    with door.pair() as pair:
        this, other = ends(pair, who)
        crosses(this, other, "first", size)
        assert quiet(this)
        crosses(other, this, "second", size)


@pytest.mark.parametrize("who", ["visitor", "target"])
def test_who_does_not_read_any_more_may_go_on_writing(door: Door, who: str, size: int) -> None:
    with door.pair() as pair:
        this, other = ends(pair, who)
        this.shutdown(socket.SHUT_RD)
        crosses(this, other, "only", size)
        crosses_nothing(other)


def test_both_directions_at_once(door: Door, size: int) -> None:
    with door.pair() as pair:
        answer = background(crosses, pair.target, pair.visitor, "answer", size)
        crosses(pair.visitor, pair.target, "request", size)
        answer.result(TIMEOUT)


@pytest.mark.parametrize("who", ["visitor", "target"])
def test_a_reset_comes_behind_the_bytes_before_it(door: Door, who: str, size: int) -> None:
    with door.pair() as pair:
        this, other = ends(pair, who)
        checker = Checker("before")
        reading = background(read_to_end, other, checker)
        send(this, Keystream("before"), size)
        handed_over(this)
        reset(this)
        assert reading.result(TIMEOUT) is End.RESET
        assert checker.received == size


@pytest.mark.parametrize("who", ["visitor", "target"])
def test_a_reset_after_a_half_close_is_a_reset(door: Door, who: str, size: int) -> None:
    """The other side had ended its direction; what it gets is cut off, and it is told so."""
    with door.pair() as pair:
        this, other = ends(pair, who)
        crosses(other, this, "ended", size)
        send(this, Keystream("cut"), 1000)
        handed_over(this)
        reset(this)
        assert hang_up(other, AFTER_DRAIN)
