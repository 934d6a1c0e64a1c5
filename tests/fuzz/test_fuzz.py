"""The fuzzers for a moment, what they have found before, and the session for a million broken frames."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.fuzz import CORPUS, NAMES, fuzzer
from tests.fuzz.fuzzer import Dice, Fuzzer, replay

COUNTS = {"session": 50_000, "state": 600, "websocket": 1500}


@pytest.mark.parametrize("name", NAMES)
def test_for_a_moment(name: str) -> None:
    fuzz = fuzzer(name)(Random(1))
    try:
        fuzz.run(count=COUNTS.get(name, 10_000))
    finally:
        fuzz.close()
    assert fuzz.mutated > 0
    assert len(fuzz.ends) > 3, "it ends in too few ways to be a test"


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_found_before(path: Path) -> None:
    replay(fuzzer(path.name.partition("-")[0]), path.read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_bytes_as_dice(name: str) -> None:
    """What a guided run feeds: any bytes play to an end."""
    for seed in range(20):
        replay(fuzzer(name), Random(seed).randbytes(seed * 20))


def test_dice_say_what_the_bytes_say() -> None:
    dice = Dice(bytes((0, 128, 3, 0xFF, 1)))
    assert dice.random() == 0.5
    assert dice.choice("abcdefgh") == "d"
    assert dice.randbytes(2) == b"\xff\x01"
    assert dice.used_up and dice.random() == 0 and dice.choice("ab") == "a"


def test_a_find_is_raised() -> None:
    class Finds(Fuzzer):
        def step(self) -> None:
            assert self.random.randbytes(1) != b"!", "found"

    replay(Finds, b"no find")
    with pytest.raises(AssertionError, match="found"):
        replay(Finds, b"a find!")


@pytest.mark.slow
def test_a_million_mutated_frames_through_the_session() -> None:
    fuzz = fuzzer("session")(Random(2))
    fuzz.run(mutated=10**6)
    print(fuzz.report())
