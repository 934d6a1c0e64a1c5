"""What can be repeated at will is said at once, then now and then with a count: nothing is lost, and nothing floods."""

from __future__ import annotations

import asyncio
import logging
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay.limits import SETTINGS, Limits
from fastrelay.net.notices import Notice, Notices, Seldom
from fastrelay.net.runtime import Runtime
from tests.conftest import Run
from tests.support.tunnel import until

EVERY = 10.0


@given(st.lists(st.tuples(st.floats(0, 30), st.sampled_from("ab")), max_size=60))
def test_everything_is_counted_and_nothing_floods(steps: list[tuple[float, str]]) -> None:
    """Whoever asks what is due when `next` says so hears of everything, and of one subject at most once in a while."""
    seldom = Seldom(EVERY)
    now = 0.0
    told: dict[str, list[float]] = {"a": [], "b": []}
    heard = {"a": 0, "b": 0}
    counted = {"a": 0, "b": 0}

    def catch_up(until: float) -> None:
        while (when := seldom.next()) is not None and when <= until:
            for notice, count in seldom.due(when):
                told[notice.event].append(when)
                counted[notice.event] += count

    for pause, about in steps:
        now += pause
        catch_up(now)
        heard[about] += 1
        if seldom.hear(about, Notice(about, "text", {}), now):
            told[about].append(now)
            counted[about] += 1
    catch_up(now + 3 * EVERY)
    assert counted == heard
    assert seldom.next() is None and not seldom.rest(), "nothing is kept of what is silent"
    for times in told.values():
        assert all(later - earlier >= EVERY * 0.999 for earlier, later in pairwise(times))


def test_what_is_left_is_said_at_the_end() -> None:
    seldom = Seldom(EVERY)
    first, last = Notice("e", "first", {}), Notice("e", "last", {})
    assert seldom.hear("x", first, 0.0) and not seldom.hear("x", first, 1.0) and not seldom.hear("x", last, 2.0)
    assert seldom.due(5.0) == []
    assert seldom.rest() == [(last, 2)] and seldom.rest() == []


def test_a_flood_of_notices(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        notices = Notices(asyncio.get_running_loop(), 0.05)
        for number in range(1000):
            notices.say("same", "some.event", f"number {number}", number=number)
        notices.say("other", "some.event", "another")
        assert [record.getMessage() for record in caplog.records] == ["number 0", "another"]
        await until(lambda: len(caplog.records) == 3, "the rest is told of", 1)
        assert caplog.records[2].getMessage() == "number 999 (999 more like this.)"
        assert vars(caplog.records[2])["fields"] == {"number": 999, "count": 999}
        await until(lambda: notices._timer is None, "nobody waits for more", 1)
        notices.say("same", "some.event", "anew")
        notices.say("same", "some.event", "and again")
        notices.close()
        assert [record.getMessage() for record in caplog.records[3:]] == ["anew", "and again"]

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())


def test_a_limit_is_one_event(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        runtime = Runtime(Limits(streams=3))
        for _ in range(5):
            runtime.reached("streams", "home")
        runtime.reached("drain-time", "the relay")
        await runtime.close()

    with caplog.at_level(logging.INFO, "fastrelay"):
        run(main())
    assert [vars(record)["event"] for record in caplog.records] == ["limit.reached"] * 3
    fields = [vars(record)["fields"] for record in caplog.records]
    assert fields == [
        {"limit": "streams", "value": "3", "who": "home"},
        {"limit": "drain-time", "value": "30s", "who": "the relay"},
        {"limit": "streams", "value": "3", "who": "home", "count": 4},
    ]
    assert caplog.records[0].getMessage() == (f"The limit streams=3 is reached by home: {SETTINGS['streams'].reached}.")
    assert "(4 more like this.)" in caplog.records[2].getMessage()
