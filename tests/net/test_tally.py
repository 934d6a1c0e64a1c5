"""What is said about strangers is bounded, and adds up."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from fastrelay.net import tally
from fastrelay.net.tally import Sum, Tally


def test_the_first_ones_are_told_and_the_others_counted() -> None:
    one = Tally()
    assert [one.tell("x", "a", 2) for _ in range(5)] == [True, True, False, False, False]
    assert one.tell("x", "b", 2) and one.tell("y", "a", 1)
    assert one.sums() == [Sum("x", "a", 3)]
    assert one.tell("x", "a", 2), "a new period"
    assert one.sums() == []


def test_what_is_not_told_of_is_counted_once() -> None:
    """10,000 from one source, then from 10,000."""
    one = Tally()
    told = sum(one.tell("x", "a", 10) for _ in range(10_000))
    sums = one.sums()
    assert told == 10 and sums == [Sum("x", "a", 9_990)]
    told = sum(one.tell("x", f"s{n}", 10) for n in range(10_000))
    sums = one.sums()
    assert told == tally.MOST_LINES and len(sums) == tally.MOST_SUMS + 1
    assert told + sum(times for *_, times in sums) == 10_000
    for n in range(10_000):
        one.tell("x", f"s{n}", 1)
    assert one.tell("y", "a", 1), "what is rare is not lost in what is frequent"


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sampled_from("xyz"), st.integers(0, 1500)), max_size=6))
def test_nothing_is_lost_whatever_comes(calls: list[tuple[str, int]]) -> None:
    one = Tally()
    told: Counter[str] = Counter()
    for what, number in calls:
        for n in range(number):
            if one.tell(what, f"s{n}", 1):
                told[what] += 1
    sums = one.sums()
    assert max(told.values(), default=0) <= tally.MOST_LINES and len(sums) <= tally.MOST_SUMS + 3
    for what, _, times in sums:
        told[what] += times
    assert told == sum((Counter({what: number}) for what, number in calls), Counter())
