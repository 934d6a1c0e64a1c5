"""Who is greeted, who waits and who goes: by hand, and as a state machine against the bounds that it promises."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fastrelay.limits import Limits
from fastrelay.net.gate import End, Gate, Reached, Stranger, source_of

HERE = "192.0.2.1"
THERE = "192.0.2.2"
Gates = Gate[Stranger]


def gate(**limits: Any) -> Gates:
    return Gate(Limits(**limits))


def arrive(gate: Gates, now: float, source: str = HERE) -> Stranger:
    """A newcomer for whom nobody has to go."""
    stranger = Stranger(source)
    assert gate.arrive(stranger, now) is None
    return stranger


def greet(gate: Gates, now: float, source: str = HERE) -> Stranger:
    """A newcomer who speaks at once, and is greeted at once."""
    stranger = arrive(gate, now, source)
    gate.speak(stranger, now)
    assert gate.candidate(now) is stranger
    assert gate.begin(stranger, now) is None
    return stranger


def fail(gate: Gates, now: float, number: int, source: str = HERE) -> None:
    """So many wrong proofs, at once."""
    for stranger in [greet(gate, now, source) for _ in range(number)]:
        gate.end(stranger, End.REFUSED, now)


def served(gate: Gates, now: float, until: float) -> list[tuple[float, Stranger]]:
    """Who is greeted in that time, and when; `due` is trusted for how long to wait."""
    found = []
    while True:
        while (stranger := gate.candidate(now)) is not None:
            gate.begin(stranger, now)
            found.append((now, stranger))
        due = gate.due(now)
        if due is None or now + due > until:
            return found
        assert due > 0
        now += due + 1e-9


# --- sources -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::ffff:c000:207", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
    ],
)
def test_whom_an_address_is_counted_as(host: str, source: str) -> None:
    assert source_of(host) == source


@given(st.ip_addresses())
def test_every_address_has_a_source(address: object) -> None:
    source = source_of(str(address))
    assert source_of(source.removesuffix("/64")) == source


# --- bounds ------------------------------------------------------------------------------------------------------------


def test_who_speaks_is_greeted_at_once() -> None:
    one = gate()
    silent = arrive(one, 0)
    stranger = greet(one, 0)
    assert one.here == 2 and one.candidate(0) is None and one.due(0) is None
    one.end(stranger, End.ADMITTED, 1)
    one.end(stranger, End.REFUSED, 1)  # it has ended
    one.end(silent, End.UNFINISHED, 1)
    assert one.here == 0 and not one._sources and not one.news


def test_a_crowd_of_one_source_is_greeted_in_turn() -> None:
    """As when the clients of a whole site come back at once: nobody must go, and nobody pays."""
    one = gate()
    crowd = [arrive(one, 0) for _ in range(256)]
    for stranger in crowd:
        assert one.speak(stranger, 0) is None
    begun = [stranger for _, stranger in served(one, 0, 0)]
    assert begun == crowd[:64]
    others = [greet(one, 0, f"s{n}") for n in range(10)]
    for n, stranger in enumerate(crowd[64:]):
        assert one.candidate(0.1) is None
        one.end(crowd[n], End.ADMITTED, 0.1)
        assert one.candidate(0.1) is stranger and one.begin(stranger, 0.1) is None
    assert not one.news and one.here == 64 + len(others)


def test_who_stalls_goes_for_who_waits() -> None:
    """But has a fair time before."""
    one = gate(greetings_per_source=2)
    first, second = greet(one, 0), greet(one, 0.5)
    waiting = [arrive(one, 1) for _ in range(8)]
    for stranger in waiting:
        assert one.speak(stranger, 1) is None
    late = arrive(one, 1)
    assert one.speak(late, 1) is waiting[0] and one.news == [(Reached.SOURCE, HERE)]
    assert one.candidate(1.2) is None and one.due(1.2) == pytest.approx(0.1)
    assert one.candidate(1.31) is waiting[1] and one.begin(waiting[1], 1.31) is first
    assert one.candidate(1.31) is None and one.due(1.31) == pytest.approx(0.49)
    assert one.candidate(1.81) is waiting[2] and one.begin(waiting[2], 1.81) is second
    begun = served(one, 1.81, 10)
    assert [stranger for _, stranger in begun] == [*waiting[3:], late], "everybody is greeted in the end"
    assert not one._sources[HERE].penalty(10)


def test_when_all_is_full_the_largest_crowd_gives_way() -> None:
    one = gate(max_greetings=10)
    crowd = [greet(one, 0, THERE) for _ in range(6)]
    late = arrive(one, 0, THERE)
    few = [arrive(one, 0, f"198.51.100.{n}") for n in range(3)]
    assert one.arrive(Stranger(HERE), 0) is late, "one who is not greeted yet goes first"
    for oldest in crowd[:3]:
        assert one.arrive(Stranger(HERE), 0) is oldest
    goes = one.arrive(Stranger(HERE), 0)
    assert goes is not None and goes.source == HERE, "now it is the largest crowd itself"
    assert one.here == 10 and not any(stranger.gone for stranger in few)
    assert {what for what, _ in one.news} == {Reached.ALL}


def test_when_all_is_full_those_go_first_who_had_their_time() -> None:
    """Wherever they are from: who is silent, then who stalls; who waits does not lose its place for them."""
    one = gate(max_greetings=6, greetings_per_source=2)
    few = arrive(one, 0, THERE)
    stalled = greet(one, 0.1, THERE)
    crowd = [greet(one, 1, HERE) for _ in range(2)]
    waiting = [arrive(one, 1, HERE) for _ in range(2)]
    for stranger in waiting:
        one.speak(stranger, 1)
    late = [Stranger("192.0.2.3") for _ in range(3)]
    assert [one.arrive(stranger, 1.5) for stranger in late] == [few, stalled, waiting[0]]
    assert one.arrive(Stranger("192.0.2.3"), 2.5) is crowd[0]


def test_a_newcomer_gets_in_among_sources_with_one_each() -> None:
    one = gate(max_greetings=1000)
    everybody = [arrive(one, n, f"s{n}") for n in range(1000)]
    assert one.arrive(Stranger(HERE), 1000) is everybody[0]


# --- penalties ---------------------------------------------------------------------------------------------------------


def test_wrong_proofs_lead_into_the_lane() -> None:
    one = gate()
    fail(one, 0, 2)
    greet(one, 0)
    fail(one, 0, 1)
    assert one.news == [(Reached.PENALTY, HERE)]
    waiting = [arrive(one, 0) for _ in range(5)]
    for stranger in waiting:
        one.speak(stranger, 0)
    greet(one, 0, THERE)  # others are not concerned
    begun = served(one, 0, 10)
    assert [stranger for _, stranger in begun] == waiting, "in order"
    assert [round(at, 3) for at, _ in begun] == [0, 0.05, 0.1, 0.15, 0.2]


def test_the_lane_is_short_for_who_is_alone() -> None:
    one = gate()
    fail(one, 0, 3)
    stranger = arrive(one, 0.5)
    one.speak(stranger, 0.5)
    assert one.candidate(0.5) is stranger


def test_penalised_sources_share_a_rate() -> None:
    """In 5 s each of 50 sources could have 50, and all together have 500; every source has its share."""
    one = gate(max_greetings=100_000)
    sources = [f"s{n}" for n in range(50)]
    for source in sources:
        fail(one, 0, 3, source)
        for _ in range(60):
            one.speak(arrive(one, 0, source), 0)
    begun = served(one, 0, 5)
    assert 495 <= len(begun) <= 501
    shares = [sum(stranger.source == source for _, stranger in begun) for source in sources]
    assert min(shares) >= 9 and max(shares) <= 11
    greet(one, 5, HERE)


def test_penalties_decay_and_have_a_most() -> None:
    one = gate(greetings_per_source=1000)
    fail(one, 0, 1000)
    source = one._sources[HERE]
    assert source.penalty(0) == one.limits.penalty_most
    assert source.penalty(100) == one.limits.penalty_most - 100
    assert source.slow(585) and not source.slow(585.1)
    assert source.blank(600)


def test_an_admission_halves_the_penalty_and_keeps_the_lane() -> None:
    """Who has one good token could else reset what the wrong ones of its address have deserved."""
    one = gate()
    fail(one, 0, 20)
    good = arrive(one, 0)
    one.speak(good, 0)
    one.begin(good, 0)
    one.end(good, End.ADMITTED, 0)
    assert one._sources[HERE].penalty(0) == 50
    assert one._sources[HERE].slow(0)


def test_a_few_that_are_not_finished_cost_nothing() -> None:
    """The health check of a load balancer, a client on a bad line."""
    one = gate()
    for second in range(100):
        for _ in range(one.limits.unfinished_rate):
            one.end(greet(one, second), End.UNFINISHED, second)
    assert not one.news and not one._sources[HERE].penalty(100)
    for _ in range(one.limits.unfinished_burst + int(one.limits.penalty_from)):
        one.end(greet(one, 200), End.UNFINISHED, 200)
    assert one.news == [(Reached.PENALTY, HERE)]
    assert one._sources[HERE].penalty(200) == one.limits.penalty_from


def test_who_was_not_greeted_costs_nothing() -> None:
    """A port scan, a crowd that says nothing: it is closed at little cost, and a penalty would hit others of its address."""
    one = gate()
    for how in (End.UNFINISHED, End.SLOW, End.REFUSED) * 1000:
        one.end(arrive(one, 0), how, 0)
    assert not one._sources
    for _ in range(900):
        arrive(one, 0)
    assert not one._sources[HERE].penalty(0)
    for _ in range(2):
        one.end(greet(one, 0, THERE), End.SLOW, 0)
    assert one._sources[THERE].penalty(0) == 20 and one.news[-1] == (Reached.PENALTY, THERE)


def test_who_dies_in_the_lane_costs_it_nothing() -> None:
    one = gate()
    fail(one, 0, 3)
    waiting = [arrive(one, 0) for _ in range(4)]
    for stranger in waiting:
        one.speak(stranger, 0)
    one.begin(waiting[0], 0)
    for dead in waiting[1:3]:
        assert one.candidate(0.051) is dead
        one.end(dead, End.UNFINISHED, 0.051)
    assert one.candidate(0.051) is waiting[3]
    one.end(waiting[3], End.UNFINISHED, 0.051)
    assert one.candidate(0.051) is None and one.due(0.051) is None


def test_a_crowd_in_the_lane_does_not_push_out_who_is_greeted() -> None:
    one = gate(greetings_per_source=4)
    fail(one, 0, 4)
    good = arrive(one, 0)
    one.speak(good, 0)
    one.begin(good, 0)
    goes = 0
    for n in range(100):
        goes += one.speak(arrive(one, n / 10_000), n / 10_000) is not None
    assert not good.gone and one.here == 5 and goes == 96


def test_who_waits_when_the_penalty_begins_goes_on_in_the_lane() -> None:
    one = gate(greetings_per_source=2)
    failing = [greet(one, 0) for _ in range(2)]
    waiting = [arrive(one, 0) for _ in range(6)]
    for stranger in waiting:
        one.speak(stranger, 0)
    for stranger in failing:
        one.end(stranger, End.SLOW, 0)
    assert [round(at, 3) for at, _ in served(one, 0, 10)] == [0, 0.05, 0.1, 0.15, 0.2, 0.25]


# --- memory ------------------------------------------------------------------------------------------------------------


def test_who_comes_through_a_proxy_counts_as_whom_the_proxy_names() -> None:
    gates = gate(greetings_per_source=1)
    one, two = arrive(gates, 0), arrive(gates, 0)
    gates.known_as(one, THERE, 0)
    assert (gates.here, one.source, two.source) == (2, THERE, HERE)
    for stranger in (one, two):
        gates.speak(stranger, 0)
    for stranger in (one, two):  # neither is in the other's way
        assert gates.candidate(0) is stranger
        assert gates.begin(stranger, 0) is None
    gates.end(one, End.REFUSED, 0)
    assert gates._sources[THERE].penalty(0) == 5 and gates._sources[HERE].penalty(0) == 0


def test_nobody_goes_for_who_is_here_already() -> None:
    gates = gate(max_greetings=2)
    one, two = arrive(gates, 0), arrive(gates, 0)
    gates.known_as(two, THERE, 5)
    gates.known_as(one, HERE, 5)
    assert not one.gone and not two.gone and gates.here == 2


def test_sources_are_forgotten_least_recently_used_first() -> None:
    one = gate(max_sources=3)
    silent = arrive(one, 0, "s0")
    for n in range(1, 6):
        fail(one, 0, 1, f"s{n}")
    assert list(one._sources) == ["s0", "s4", "s5"]
    fail(one, 0, 1, "s4")
    fail(one, 0, 1, "s6")
    assert set(one._sources) == {"s0", "s4", "s6"}
    one.end(silent, End.UNFINISHED, 0)


def test_sources_of_which_nothing_is_known_are_forgotten_first() -> None:
    one = gate()
    for n in range(1000):
        one.end(greet(one, 0, f"s{n}"), End.UNFINISHED, 0)
    assert len(one._sources) == 1000
    for n in range(600):
        one.end(greet(one, 1, f"t{n}"), End.UNFINISHED, 1)
    assert len(one._sources) <= 601


@pytest.mark.slow
def test_memory_of_all_sources() -> None:
    one = gate()
    tracemalloc.start()
    try:
        for n in range(100_000):
            one.end(greet(one, 0, f"2001:db8:{n >> 16:x}:{n & 0xFFFF:x}::/64"), End.REFUSED, 0)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    print(f"{len(one._sources)} sources: {used / 2**20:.1f} MiB")
    assert len(one._sources) == one.limits.max_sources == 65_536
    assert used < 32 << 20


# --- all of it ---------------------------------------------------------------------------------------------------------


class Everything(RuleBasedStateMachine):
    """Any order of calls that a door can make. Bounds hold, the books are right, a newcomer is always in, nobody waits without end."""

    LIMITS = Limits(max_greetings=6, greetings_per_source=3, max_sources=4, unfinished_burst=2, unfinished_rate=1)

    def __init__(self) -> None:
        super().__init__()
        self.gate: Gates = Gate(self.LIMITS)
        self.now = 0.0
        self.here: list[Stranger] = []
        self.greeted: list[tuple[float, Stranger]] = []

    def gone(self, stranger: Stranger | None) -> None:
        if stranger is not None:
            assert stranger.gone
            self.here.remove(stranger)

    @rule(source=st.sampled_from("abcdef"))
    def arrive(self, source: str) -> None:
        stranger = Stranger(source)
        self.gone(self.gate.arrive(stranger, self.now))
        self.here.append(stranger)
        assert len(self.gate._sources) <= max(self.LIMITS.max_sources, len({one.source for one in self.here}))

    def silent(self) -> list[Stranger]:
        return [one for source in self.gate._sources.values() for one in source.silent]

    @precondition(lambda self: self.silent())
    @rule(data=st.data())
    def speak(self, data: st.DataObject) -> None:
        self.gone(self.gate.speak(data.draw(st.sampled_from(self.silent())), self.now))

    @precondition(lambda self: self.silent())
    @rule(data=st.data(), source=st.sampled_from("abcdef"))
    def known_as(self, data: st.DataObject, source: str) -> None:
        self.gate.known_as(data.draw(st.sampled_from(self.silent())), source, self.now)

    @rule()
    def greet(self) -> None:
        while (stranger := self.gate.candidate(self.now)) is not None:
            assert stranger.waiting
            if self.gate._sources[stranger.source].line is self.gate._lane:
                self.greeted.append((self.now, stranger))
            self.gone(self.gate.begin(stranger, self.now))
        assert (self.gate.due(self.now) is not None) or not any(one.waiting for one in self.here)

    @precondition(lambda self: self.here)
    @rule(data=st.data(), how=st.sampled_from(End))
    def end(self, data: st.DataObject, how: End) -> None:
        stranger = data.draw(st.sampled_from(self.here))
        self.gate.end(stranger, how, self.now)
        self.gone(stranger)

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.11, 1.0, 30.0, 700.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def drain_the_lane(self) -> None:
        """With time everybody who waits is greeted."""
        for _ in range(30):
            self.greet()
            self.now += self.gate.due(self.now) or 0
        assert not any(one.waiting for one in self.here)

    @invariant()
    def books(self) -> None:
        gate, limits = self.gate, self.LIMITS
        assert gate.here == len(self.here) <= limits.max_greetings
        assert not any(stranger.gone for stranger in self.here)
        held = {name: source for name, source in gate._sources.items() if source.here}
        assert {name: source.here for name, source in held.items()} == {
            name: sum(one.source == name for one in self.here) for name in {one.source for one in self.here}
        }
        for source in held.values():
            assert len(source.greeted) <= limits.greetings_per_source
            assert len(source.waiting) <= 4 * limits.greetings_per_source
            assert not source.waiting or source.line is not None
        crowds = {number: set(sources) for number, sources in gate._crowds.items()}
        assert crowds == {
            number: {source for source in held.values() if source.here == number}
            for number in {source.here for source in held.values()}
        }
        assert gate._most == max(crowds, default=0)
        assert all(source.penalty(self.now) <= limits.penalty_most for source in gate._sources.values())

    def teardown(self) -> None:
        for name in "abcdef":
            times = [at for at, stranger in self.greeted if stranger.source == name]
            assert all(b - a > 0.0499 for a, b in itertools.pairwise(times))
        times = [at for at, _ in self.greeted]
        assert all(b - a > 0.00999 for a, b in itertools.pairwise(times))


TestEverything = Everything.TestCase
TestEverything.settings = settings(max_examples=settings().max_examples // 2, stateful_step_count=30)
