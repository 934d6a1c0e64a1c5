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


@pytest.fixture
def fastrelay_tunnel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    """A tunnel for this test, under a name of its own."""
    from fastrelay import sync

    relay, token = os.environ.get("FASTRELAY_RELAY", ""), os.environ.get("FASTRELAY_TOKEN", "")
    if not (relay and token):
        server: Server = request.getfixturevalue("fastrelay_server")
        relay, token = server.url, server.token
    state = tmp_path_factory.mktemp("fastrelay-client")
    with sync.connect(relay, token=token, name=f"pytest-{uuid.uuid4().hex[:12]}", state=state, drain=0) as tunnel:
        yield tunnel
