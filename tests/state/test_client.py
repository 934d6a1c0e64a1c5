"""What a client keeps: its instance, one client for a name and relay, and what the relay has said of its keys."""

from __future__ import annotations

import base64
import concurrent.futures
import os
import re
from pathlib import Path

import pytest

from fastrelay.auth import Token
from fastrelay.state import ClientState
from tests.support.state import URL, mode, posix, refused


def test_instance_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "state" / "client"
    first = ClientState.open(path, URL, "home")
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", first.instance)
    first.close()
    first.close()
    again = ClientState.open(path, URL, "home")
    assert again.instance == first.instance
    again.close()
    other = ClientState.open(tmp_path / "other", URL, "home")
    assert other.instance != first.instance
    other.close()


@posix
def test_files_of_a_client_are_the_owners_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        ClientState.open(tmp_path / "state", URL, "home").close()
    finally:
        os.umask(umask)
    assert mode(tmp_path / "state") == 0o700
    assert {mode(file) for file in (tmp_path / "state").iterdir()} == {0o600}


@posix
def test_a_directory_that_others_may_change(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    refused(lambda: ClientState.open(tmp_path, URL, "home"), str(tmp_path), "chmod go-w")
    assert not list(tmp_path.iterdir())


def test_one_client_for_a_name_and_relay(tmp_path: Path) -> None:
    first = ClientState.open(tmp_path, URL, "home")
    refused(lambda: ClientState.open(tmp_path, URL, "home"), "'home'", "already runs here", URL, "--name")
    others = [ClientState.open(tmp_path, URL, "work"), ClientState.open(tmp_path, "tls://other:7443", "home")]
    assert {other.instance for other in others} == {first.instance}
    first.close()
    ClientState.open(tmp_path, URL, "home").close()
    for other in others:
        other.close()


def test_clients_that_start_together_agree_on_the_instance(tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        states = list(pool.map(lambda number: ClientState.open(tmp_path, URL, f"client-{number}"), range(16)))
    assert len({state.instance for state in states}) == 1
    for state in states:
        state.close()


@pytest.mark.parametrize("content", [b"two words", b"\xff", b"x" * 65, b"\n"])
def test_damaged_instance(tmp_path: Path, content: bytes) -> None:
    ClientState.open(tmp_path, URL, "home").close()
    (tmp_path / "instance").write_bytes(content)
    refused(lambda: ClientState.open(tmp_path, URL, "home"), f"The file {tmp_path / 'instance'} is damaged")
    (tmp_path / "instance").unlink()
    ClientState.open(tmp_path, URL, "home").close()


# --- what the relay has said of its keys -------------------------------------------------------------------------------

TOKEN = Token("k3yID_-0", bytes(32), (b"1" * 32,))


def test_pins_are_kept_for_a_token(tmp_path: Path) -> None:
    """Whole sets, for one key id and the pins of its text; each relay and name has its own."""
    state = ClientState.open(tmp_path, URL, "home")
    assert state.pins(TOKEN) == TOKEN.pins
    state.save_pins(TOKEN, (b"1" * 32, b"2" * 32))
    state.save_pins(TOKEN, (b"2" * 32, b"3" * 32))
    state.save_pins(TOKEN, (b"3" * 32,))
    state.close()
    state = ClientState.open(tmp_path, URL, "home")
    assert state.pins(TOKEN) == (b"3" * 32,), "a set never grows"
    for other in (Token("k3yID_-1", bytes(32), TOKEN.pins), Token("k3yID_-0", bytes(32), (b"9" * 32,))):
        assert state.pins(other) == other.pins
    state.close()
    for url, name in ((URL, "work"), ("tls://other.example.com:7443", "home")):
        state = ClientState.open(tmp_path, url, name)
        assert state.pins(TOKEN) == TOKEN.pins
        state.close()


@posix
def test_pins_are_the_owners_alone(tmp_path: Path) -> None:
    state = ClientState.open(tmp_path, URL, "home")
    state.save_pins(TOKEN, (b"3" * 32,))
    assert mode(state.pins_path) == 0o600
    state.close()


def form(pins: str, key_id: str = '"k3yID_-0"') -> str:
    return f'{{"key_id": {key_id}, "token_pins": [], "pins": {pins}}}'


PIN = '"' + base64.b64encode(bytes(32)).decode() + '"'


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        form("[]"),
        form('["AAAA"]'),
        form(f"[{PIN}, {PIN}, {PIN}]"),
        form(f"[{PIN}]", "7"),
        form('["!"]'),
    ],
)
def test_damaged_pins(tmp_path: Path, content: str) -> None:
    state = ClientState.open(tmp_path, URL, "home")
    state.pins_path.write_text(content)
    refused(lambda: state.pins(TOKEN), f"The file {state.pins_path} is damaged", "move it away")
    state.close()
