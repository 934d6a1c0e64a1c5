"""Tests of the API run on uvloop; with the slow ones on asyncio's own loop as well, since each makes a relay and a tunnel."""

from __future__ import annotations

import pytest

from tests.support import need


@pytest.fixture(params=["uvloop", pytest.param("asyncio", marks=pytest.mark.slow)])
def loop_kind(request: pytest.FixtureRequest) -> str:
    kind = str(request.param)
    if kind == "uvloop":
        need.uvloop()
    return kind
