"""How long a client waits before it tries again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastrelay.net.backoff import FIRST, MOST, Backoff


def bounds(failures: int) -> list[float]:
    backoff = Backoff()
    found = []
    for _ in range(failures):
        backoff.failed()
        found.append(backoff.wait(1.0))
    return found


def test_the_bound_doubles_up_to_the_most() -> None:
    assert bounds(8) == [1.0, 2.0, 4.0, 8.0, 16.0, MOST, MOST, MOST]


def test_a_connection_that_stood_starts_anew() -> None:
    backoff = Backoff()
    for _ in range(9):
        backoff.failed()
    assert backoff.failures == 9
    backoff.succeeded()
    assert backoff.failures == 0
    backoff.failed()
    assert (backoff.failures, backoff.wait(1.0)) == (1, FIRST)


@given(st.integers(1, 100), st.floats(0, 1))
def test_a_wait_is_anything_from_nothing_to_the_bound(failures: int, dice: float) -> None:
    backoff = Backoff()
    for _ in range(failures):
        backoff.failed()
    assert 0 <= backoff.wait(dice) <= bounds(failures)[-1] <= MOST
    assert backoff.wait(0.0) == 0.0
