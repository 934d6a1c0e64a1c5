"""The relay that is attacked, and its neighbours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.attack.frames import Token
from tests.attack.neighbours import Neighbours
from tests.support.peers import Address
from tests.support.processes import BEST, Server, Way

PLAIN = Way(False, BEST.loop)


class Field:
    """A relay, the token that everybody has, and an honest tunnel."""

    def __init__(self, server: Server, token: str, neighbours: Neighbours) -> None:
        self.server = server
        self.token = Token.parse(token)
        self.neighbours = neighbours

    @property
    def address(self) -> Address:
        return self.server.address


@pytest.fixture(scope="module", params=[PLAIN], ids=repr)
def field(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """One for all tests of a module: what one attack leaves behind, the next one meets."""
    home = tmp_path_factory.mktemp("field")
    way: Way = request.param
    with Server(home / "server", way) as server:
        token = server.token()
        with Neighbours(server, token, home / "neighbour") as neighbours:
            yield Field(server, token, neighbours)


@pytest.fixture
def only_long(long: int) -> None:
    """For tests that have no short form."""
    if not long:
        pytest.skip("it has no short form: --long 1")
