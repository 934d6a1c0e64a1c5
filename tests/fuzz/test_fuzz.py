"""The fuzzers for a moment, and the session for a million broken ones."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import FUZZERS


@pytest.mark.parametrize("name", FUZZERS)
def test_for_a_moment(name: str) -> None:
    fuzz = FUZZERS[name](1)
    fuzz.run(frames=50_000 if name == "session" else 10_000)
    assert fuzz.mutated > 0
    assert len(fuzz.ends) > 3, "it ends in too few ways to be a test"


@pytest.mark.slow
def test_a_million_mutated_frames_through_the_session() -> None:
    fuzz = FUZZERS["session"](2)
    fuzz.run(mutated=10**6)
    print(fuzz.report())
