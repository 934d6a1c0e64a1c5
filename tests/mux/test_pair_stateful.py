"""Two honest sessions, everything that local ends can do in any order, and bytes cut anywhere: nothing may go wrong.

The model knows only what was sent. What is received is its beginning, and all of it once the end was seen; no honest step ever raises.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fastrelay.errors import Code
from fastrelay.mux.stream import Recv, Send, Stream
from fastrelay.wire import HALF_OPEN_IDLE, MIN_MAX_DATA, Settings
from tests.support.pair import POOL, Pair, Tap


def payload(number: int, side: int, offset: int, size: int) -> bytes:
    """Bytes that know their stream, side and offset: steps of another width for each, modulo a prime that no size here shares."""
    width = (2 * number + side) % 250 + 1
    period = bytes(width * i % 251 for i in range(251))
    start = offset % 251
    return (period * (size // 251 + 2))[start : start + size]


@dataclass
class Model:
    """One stream as the test knows it: bytes sent and ends given by each side (0 the dialer, 1 the listener)."""

    sent: list[int] = field(default_factory=lambda: [0, 0])
    ended: list[bool] = field(default_factory=lambda: [False, False])
    checked: list[int] = field(default_factory=lambda: [0, 0])
    broken: bool = False
    """Reset or stopped by somebody: bytes may be missing, and a clean end may not come."""


COUNT = st.integers(0, 1 << 16)
SIZES = st.one_of(st.integers(1, 40), st.sampled_from((4096, 16_384, 16_385, 65_536, 300_000)))
SIDES = st.integers(0, 1)


class PairMachine(RuleBasedStateMachine):
    @initialize(
        early=st.tuples(*[st.sampled_from((0, 10, 65_536))] * 2),
        most=st.tuples(*[st.sampled_from((2, 65_535))] * 2),
        pools=st.tuples(*[st.sampled_from((0, 400_000, POOL))] * 2),
        count=st.integers(0, 3),
        held=st.booleans(),
    )
    def begin(
        self, early: tuple[int, int], most: tuple[int, int], pools: tuple[int, int], count: int, held: bool
    ) -> None:
        self.arguments = (early, most, pools, count, held)
        dialer, listener = (
            Settings(max_data=MIN_MAX_DATA, early=allowed, max_streams=count)
            for allowed, count in zip(early, most, strict=True)
        )
        self.pair = Pair(dialer=dialer, listener=listener, dialer_pool=pools[0], listener_pool=pools[1])
        self.models: dict[int, Model] = {}
        for which in range(count):  # most of what matters happens on streams that stand
            self.pair.sides[which % 2].holds = held
            self.open(which % 2, held)
        self.pair.pump()

    # --- choosing ------------------------------------------------------------------------------------------------------

    def streams(self, which: int) -> list[Stream]:
        """The streams that one side has in its hands: it has not reset them, and they were not reset."""
        side = self.pair.sides[which]
        taps = (side.taps.get(number) for number in side.session.streams)
        return [tap.stream for tap in taps if tap is not None and tap.stream is not None and tap.stream.outlet is tap]

    def one(self, which: int, number: int) -> Stream | None:
        found = self.streams(which)
        return found[number % len(found)] if found else None

    # --- what local ends do --------------------------------------------------------------------------------------------

    @rule(which=SIDES, held=st.booleans())
    def open(self, which: int, held: bool) -> None:
        stream = self.pair.sides[which].open(held=held)
        if stream is not None:
            self.models[stream.id] = Model()

    @rule(which=SIDES, accepts=st.booleans(), holds=st.booleans())
    def change_manners(self, which: int, accepts: bool, holds: bool) -> None:
        side = self.pair.sides[which]
        side.accepts, side.holds = accepts, holds

    @rule(which=SIDES, number=COUNT)
    def accept(self, which: int, number: int) -> None:
        stream = self.one(which, number)
        if stream is not None and stream.send is Send.PENDING:
            stream.accept()

    @rule(which=SIDES, number=COUNT, size=SIZES)
    def send(self, which: int, number: int, size: int) -> None:
        stream = self.one(which, number)
        if stream is not None:
            model = self.models[stream.id]
            data = payload(stream.id, which, model.sent[which], size)
            model.sent[which] += self.pair.sides[which].send_all(stream, data)

    @rule(which=SIDES, number=COUNT, size=st.integers(100_000, 2_000_000))
    def send_much(self, which: int, number: int, size: int) -> None:
        """A transfer in full flight: credit comes back while it runs, until it is done or the receiver takes no more."""
        stream = self.one(which, number)
        if stream is None:
            return
        model, side = self.models[stream.id], self.pair.sides[which]
        size += model.sent[which]
        while model.sent[which] < size:
            left = size - model.sent[which]
            sent = side.send_all(stream, payload(stream.id, which, model.sent[which], min(left, 1 << 18)))
            model.sent[which] += sent
            self.pair.clock.now += 0.001
            self.pair.pump()
            if not sent:
                return

    @rule(which=SIDES, number=COUNT)
    def fin(self, which: int, number: int) -> None:
        stream = self.one(which, number)
        if stream is not None and stream.send is Send.OPEN:
            stream.fin()
            self.models[stream.id].ended[which] = True

    @rule(which=SIDES, number=COUNT, rarely=st.integers(0, 2))
    def reset(self, which: int, number: int, rarely: int) -> None:
        stream = self.one(which, number)
        if stream is not None and not rarely:
            self.models[stream.id].broken = True
            stream.reset(Code.CONNECTION_RESET)

    @rule(which=SIDES, number=COUNT)
    def stop(self, which: int, number: int) -> None:
        stream = self.one(which, number)
        if stream is not None and stream.recv is not Recv.PENDING:
            self.models[stream.id].broken = True
            stream.stop()

    @rule(which=SIDES, number=COUNT, size=SIZES)
    def release(self, which: int, number: int, size: int) -> None:
        """A socket takes some of what is queued, also behind the end of its stream."""
        queued = [tap for tap in self.pair.sides[which].taps.values() if tap.stream is not None and tap.stream.queued]
        if queued:
            queued[number % len(queued)].release(size)

    @rule(which=SIDES, number=COUNT, held=st.booleans())
    def hold(self, which: int, number: int, held: bool) -> None:
        """A socket takes nothing more, or all again."""
        stream = self.one(which, number)
        if stream is not None:
            tap = self.pair.sides[which].taps[stream.id]
            tap.held = held
            if not held:
                tap.release()

    # --- what the tunnel does ------------------------------------------------------------------------------------------

    @rule(which=SIDES, size=SIZES | st.integers(1, 1000))
    def deliver(self, which: int, size: int) -> None:
        self.pair.deliver(self.pair.sides[which], size)

    @rule(which=SIDES)
    def flush(self, which: int) -> None:
        self.pair.sides[which].session.flush()

    @rule()
    def pump(self) -> None:
        self.pair.pump()

    @rule(seconds=st.floats(0.0001, 12))
    def wait(self, seconds: float) -> None:
        self.pair.clock.now += seconds
        for side in self.pair.sides:
            if side.session.tick(self.pair.clock.now) is None:
                self.lose(0)
                return

    @precondition(lambda self: any(side.session._half_open for side in self.pair.sides))
    @rule(rarely=st.integers(0, 5))
    def wait_long(self, rarely: int) -> None:
        """Nothing moves for so long that half-open streams are reset."""
        if rarely:
            return
        for side in self.pair.sides:
            for number in side.session._half_open:
                if number.id in self.models:
                    self.models[number.id].broken = True
        for _ in range(HALF_OPEN_IDLE // 10 + 3):
            self.pair.pump()
            self.pair.clock.now += 10
            for side in self.pair.sides:
                assert side.session.tick(self.pair.clock.now) is not None
        for side in self.pair.sides:
            for stream in list(side.session.streams.values()):
                self.models[stream.id].broken |= stream.half_open

    @rule(rarely=st.integers(0, 9))
    def lose(self, rarely: int) -> None:
        """The tunnel breaks; a new one begins."""
        if rarely:
            return
        for side in self.pair.sides:
            alive = [tap for tap in side.taps.values() if tap.stream is not None and tap.stream.outlet is tap]
            alive = [tap for tap in alive if tap.stream is not None and not tap.stream.ended]
            side.lose()
            assert all(tap.lost for tap in alive)
            side.detach_all()
            side.check()
            assert side.pool.used == 0
        self.begin(*self.arguments)

    # --- what must hold ------------------------------------------------------------------------------------------------

    @invariant()
    def honest(self) -> None:
        for which, side in enumerate(self.pair.sides):
            side.check()
            for number, tap in side.taps.items():
                self.check_tap(tap, number, which)

    def check_tap(self, tap: Tap, number: int, which: int) -> None:
        model, other = self.models[number], 1 - which
        size = len(tap.received)
        assert size <= model.sent[other]
        start, model.checked[which] = model.checked[which], size
        assert tap.received[start:] == payload(number, other, start, size - start)
        if tap.fin:
            assert model.ended[other], "an end that nobody gave"
            assert size == model.sent[other], "an end before all was there"

    def teardown(self) -> None:
        """Everybody ends what he has: then nothing is left, and nothing is owed."""
        if not hasattr(self, "pair"):
            return
        both = self.pair
        for _ in range(4):  # streams that are under way arrive, are accepted and end as well
            for which, side in enumerate(both.sides):
                side.accepts, side.holds = True, False
                for stream in self.streams(which):
                    if stream.send is Send.PENDING:
                        stream.accept()
                    if stream.send is Send.OPEN:
                        stream.fin()
                        self.models[stream.id].ended[which] = True
                for tap in side.taps.values():
                    tap.held = False
                    tap.release()
            both.pump()
        for which, side in enumerate(both.sides):
            assert side.session.streams == {}
            assert side.session.their_streams == 0
            assert not side.session._half_open
            side.check()
            assert side.pool.used == 0
            for number, tap in side.taps.items():
                self.check_tap(tap, number, which)
                model = self.models[number]
                refused = any(s.taps[number].code is Code.LIMIT for s in both.sides if number in s.taps)
                if not (model.broken or refused):
                    assert tap.fin and tap.code is None, "an honest stream ends cleanly"


def run(examples: int) -> None:
    run_state_machine_as_test(
        PairMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


def test_pair() -> None:
    run(100)


@pytest.mark.slow
def test_pair_for_long() -> None:
    run(2000)


def test_the_pattern_tells_offsets_streams_and_sides_apart() -> None:
    assert len({payload(n, side, at, 40) for n in (1, 2) for side in (0, 1) for at in range(40)}) == 160
