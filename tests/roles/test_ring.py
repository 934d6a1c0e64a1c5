"""Whose turn it is: the least loaded one's, then the one's that has waited longest; and never one that was tried."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fastrelay.roles.ring import REST, Ring


def ring(*members: str, load: dict[str, int] | None = None) -> Ring[str]:
    made: Ring[str] = Ring((load or dict.fromkeys(members, 0)).__getitem__)
    for member in members:
        made.add(member)
    return made


def test_equals_take_turns() -> None:
    three = ring("a", "b", "c")
    assert [three.take(0.0) for _ in range(7)] == ["a", "b", "c", "a", "b", "c", "a"]


def test_the_least_loaded_first() -> None:
    load = {"a": 2, "b": 0, "c": 1}
    three = ring(*load, load=load)
    turns = []
    for _ in range(6):
        chosen = three.take(0.0)
        assert chosen is not None
        load[chosen] += 1
        turns.append(chosen)
    assert turns[:3] == ["b", "c", "b"] and set(turns[3:]) == {"a", "b", "c"}
    assert set(load.values()) == {3}


def test_who_has_failed_rests() -> None:
    load = {"a": 0, "b": 100}
    two = ring(*load, load=load)
    two.failed("a", 10.0)
    assert two.take(10.0 + REST - 0.1) == "b"
    assert two.take(10.0 + REST) == "a"


def test_if_all_rest_all_are_asked() -> None:
    two = ring("a", "b")
    two.failed("a", 0.0)
    two.failed("b", 0.0)
    assert {two.take(1.0), two.take(1.0)} == {"a", "b"}


def test_nobody_is_left() -> None:
    two = ring("a", "b")
    assert two.take(0.0, ("a", "b")) is None
    two.discard("a")
    two.discard("a")
    two.failed("a", 0.0)
    assert list(two) == ["b"] and len(two) == 1
    two.discard("b")
    assert two.take(0.0) is None


@given(st.integers(1, 9), st.lists(st.integers(0, 8), max_size=300))
def test_long_visits_are_spread_evenly(members: int, ends: list[int]) -> None:
    """Whoever leaves when, the next visitors fill the gaps: no two differ by more than what has just left."""
    load: Counter[int] = Counter(dict.fromkeys(range(members), 0))
    many: Ring[int] = Ring(load.__getitem__)
    for member in range(members):
        many.add(member)
    for end in ends:
        if end < members and load[end]:
            load[end] -= 1
        else:
            chosen = many.take(0.0)
            assert chosen is not None
            load[chosen] += 1
    for _ in range(sum(load.values()) * members):
        chosen = many.take(0.0)
        assert chosen is not None
        load[chosen] += 1
        if max(load.values()) - min(load.values()) <= 1:
            break
    assert max(load.values()) - min(load.values()) <= 1


class Rings(RuleBasedStateMachine):
    """Members come, go, fail and are loaded, as a model that sorts says."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.turn = 0
        self.load: dict[int, int] = {}
        self.rests: dict[int, float] = {}
        self.last: dict[int, int] = {}
        self.ring: Ring[int] = Ring(self.load.__getitem__)

    @rule(load=st.integers(0, 3))
    def comes(self, load: int) -> None:
        self.turn += 1
        self.load[self.turn] = load
        self.rests[self.turn] = 0.0
        self.last[self.turn] = self.turn
        self.ring.add(self.turn)

    @precondition(lambda self: self.rests)
    @rule(data=st.data())
    def goes(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(sorted(self.rests)))
        del self.rests[gone]
        self.ring.discard(gone)

    @precondition(lambda self: self.rests)
    @rule(data=st.data())
    def fails(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(sorted(self.rests)))
        self.rests[one] = self.now + REST
        self.ring.failed(one, self.now)

    @precondition(lambda self: self.rests)
    @rule(data=st.data(), load=st.integers(0, 3))
    def is_loaded(self, data: st.DataObject, load: int) -> None:
        self.load[data.draw(st.sampled_from(sorted(self.rests)))] = load

    @rule(seconds=st.sampled_from((0.5, REST, 20.0)))
    def waits(self, seconds: float) -> None:
        self.now += seconds

    @rule(data=st.data())
    def takes(self, data: st.DataObject) -> None:
        tried = data.draw(st.sets(st.sampled_from(sorted(self.rests)))) if self.rests else set()
        left = [one for one in self.rests if one not in tried]
        best = min(left, key=lambda one: (self.rests[one] > self.now, self.load[one], self.last[one]), default=None)
        assert self.ring.take(self.now, tried) == best
        if best is not None:
            self.turn += 1
            self.last[best] = self.turn

    @invariant()
    def the_same_are_there(self) -> None:
        assert set(self.ring) == set(self.rests)


TestRings = Rings.TestCase
TestRings.settings = settings(max_examples=settings().max_examples // 4, stateful_step_count=30)


@pytest.mark.parametrize("tried", [(), ("a",)])
def test_a_turn_does_not_end_a_rest(tried: tuple[str, ...]) -> None:
    two = ring("a", "b", load={"a": 0, "b": 0, "c": 9})
    two.failed("a", 0.0)
    two.failed("b", 0.0)
    two.take(1.0, tried)
    two.add("c")
    assert two.take(1.0) == "c"
