"""Fixtures of the tests with whole processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.processes import WAYS, Link, Way

SPREAD = [way if way.tls is (way.loop == "uvloop") else pytest.param(way, marks=pytest.mark.slow) for way in WAYS]
"""For tests that take long: each transport and each loop once, and the other two combinations among the slow tests."""
TWICE = [way for way in WAYS if way.tls is (way.loop == "uvloop")]
"""For tests that take very long: each transport and each loop once."""


@pytest.fixture(scope="module", params=WAYS, ids=repr)
def way(request: pytest.FixtureRequest) -> Way:
    """TLS and plain, uvloop and asyncio."""
    assert isinstance(request.param, Way)
    return request.param


@pytest.fixture(scope="module")
def link(way: Way, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    """One relay for the tests of a module that leave it in good health."""
    with Link(tmp_path_factory.mktemp("link"), way) as made:
        yield made


@pytest.fixture
def own_link(way: Way, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    """A relay that the test may kill."""
    with Link(tmp_path_factory.mktemp("own"), way) as made:
        yield made
