"""A plugin of pytest, known to it by itself: a relay and a tunnel for tests, for instance of webhooks.

    fastrelay_server     a relay on loopback for all tests of the session (`fastrelay.sync.Server`)
    fastrelay_tunnel     a tunnel to it for one test, or to the relay of FASTRELAY_RELAY and FASTRELAY_TOKEN where both are set
                         (`fastrelay.sync.Tunnel`): `fastrelay_tunnel.expose(port).url` is where others reach a port of the test

Tests with a loop of their own use `fastrelay.connect(fastrelay_server.url, token=fastrelay_server.token)`. Nothing is loaded before a test asks.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fastrelay.sync import Server, Tunnel


@pytest.fixture(scope="session")
def fastrelay_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A relay on loopback, with a state directory of its own."""
    from fastrelay import sync

    with sync.Server(bind="127.0.0.1:0", state=tmp_path_factory.mktemp("fastrelay-server"), drain=0) as server:
        yield server


@pytest.fixture(scope="session")
def _fastrelay_client(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """One name and one installation for all tests of the session: a relay keeps the ports of each name for a while."""
    return f"pytest-{uuid.uuid4().hex[:12]}", tmp_path_factory.mktemp("fastrelay-client")


@pytest.fixture
def fastrelay_tunnel(request: pytest.FixtureRequest, _fastrelay_client: tuple[str, Path]) -> Iterator[Tunnel]:
    """A tunnel for this test."""
    from fastrelay import sync

    relay, token = os.environ.get("FASTRELAY_RELAY", ""), os.environ.get("FASTRELAY_TOKEN", "")
    if not (relay and token):
        server: Server = request.getfixturevalue("fastrelay_server")
        relay, token = server.url, server.token
    name, state = _fastrelay_client
    with sync.connect(relay, token=token, name=name, state=state, drain=0) as tunnel:
        yield tunnel
