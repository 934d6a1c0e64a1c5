"""tokens.json: written by several at once, read while it is written, and never by halves."""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastrelay.policy import FIRST_GRANT, Grant, Key
from fastrelay.state import ServerState
from fastrelay.state.tokens import TokenStore, new_token
from tests.support.state import mode, posix, refused


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[ServerState]:
    """The state of a relay that runs."""
    state = ServerState.open(tmp_path / "server")
    yield state
    state.close()


@pytest.fixture
def store(relay: ServerState) -> TokenStore:
    """What the command line uses beside it."""
    return ServerState.open(relay.path, read_only=True).tokens


def add(store: TokenStore, label: str, grant: Grant = FIRST_GRANT) -> Key:
    key = Key.made(new_token(), label, grant, 5.0)
    with store.edit() as keys:
        keys.append(key)
    return key


def labels(relay: ServerState) -> list[str]:
    return [key.label for key in relay.keys.values()]


# --- while a relay runs ------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_once(relay: ServerState, store: TokenStore) -> None:
    assert not relay.reload()
    key = add(
        store, "home", Grant(names=("home",), services=("*",), ports="20000-20009,443", max_streams=5, expires=9.5)
    )
    assert relay.reload() and not relay.reload()
    assert relay.find(key.key_id) == key
    assert labels(relay) == ["first", "home"]
    with store.edit() as keys:
        keys.remove(key)
    assert relay.reload() and relay.find(key.key_id) is None
    assert store.all() == list(relay.keys.values())


def test_an_edit_that_changes_nothing_writes_nothing(relay: ServerState, store: TokenStore) -> None:
    with store.edit() as keys:
        keys.reverse()
    assert not relay.reload()


def test_an_edit_that_fails_writes_nothing(relay: ServerState, store: TokenStore) -> None:
    def fail() -> None:
        with store.edit() as keys:
            keys.clear()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not relay.reload() and labels(relay) == ["first"]
    add(store, "home")  # the lock was given back


@pytest.mark.parametrize("content", ["", "{", '{"tokens": 5}', '{"tokens": [{}]}', "unknown", "twice", "gone"])
def test_a_damaged_file_is_told_once_and_the_old_tokens_stay(
    relay: ServerState, store: TokenStore, content: str
) -> None:
    add(store, "home")
    assert relay.reload()
    file = relay.path / "tokens.json"
    good = file.read_bytes()
    if content == "gone":
        file.unlink()
    elif content in ("unknown", "twice"):
        form = json.loads(good)
        if content == "unknown":
            form["tokens"][0]["grant"]["port"] = "20000"
        else:
            form["tokens"].append(form["tokens"][0])
        file.write_text(json.dumps(form))
    else:
        file.write_text(content)
    refused(relay.reload, str(file))
    assert not relay.reload() and labels(relay) == ["first", "home"]
    refused(store.all)
    refused(lambda: add(store, "other"))
    file.write_bytes(good)
    file.chmod(0o600)
    assert relay.reload() and labels(relay) == ["first", "home"]


@posix
def test_a_file_that_others_may_read_is_not_taken_until_it_is_private(relay: ServerState, store: TokenStore) -> None:
    add(store, "home")
    file = relay.path / "tokens.json"
    file.chmod(0o644)
    refused(relay.reload, "chmod 600")
    assert not relay.reload() and labels(relay) == ["first"]
    file.chmod(0o600)
    assert relay.reload() and labels(relay) == ["first", "home"]


@posix
def test_files_of_writers_are_the_owners_alone(relay: ServerState, store: TokenStore) -> None:
    umask = os.umask(0)
    try:
        add(store, "home")
    finally:
        os.umask(umask)
    assert mode(relay.path / "tokens.json") == mode(relay.path / "tokens.lock") == 0o600


@posix
@pytest.mark.skipif(os.name != "nt" and os.geteuid() != 0, reason="needs root")
def test_what_root_writes_belongs_to_the_owner_of_the_directory(relay: ServerState, store: TokenStore) -> None:
    relay.close()
    (relay.path / "tokens.lock").unlink()
    os.chown(relay.path, 12_345, 12_346)
    add(store, "home")
    for name in ("tokens.json", "tokens.lock"):
        found = (relay.path / name).stat()
        assert (found.st_uid, found.st_gid) == (12_345, 12_346)


def test_writers_wait_for_each_other(relay: ServerState) -> None:
    def one(number: int) -> None:
        add(TokenStore(relay.path), f"c{number}")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(16)))
    assert relay.reload()
    assert sorted(labels(relay)) == sorted(["first", *(f"c{number}" for number in range(16))])


def test_a_writer_that_is_killed_leaves_all_or_nothing(relay: ServerState, store: TokenStore) -> None:
    script = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from fastrelay.state.tokens import TokenStore
        os.fsync = lambda fd: os._exit(9)
        with TokenStore(Path(sys.argv[1])).edit() as keys:
            keys.clear()
    """)
    assert subprocess.run([sys.executable, "-c", script, str(relay.path)], check=False).returncode == 9
    assert not relay.reload() and labels(relay) == ["first"]
    add(store, "home")
    assert relay.reload() and labels(relay) == ["first", "home"]


# --- the first token ---------------------------------------------------------------------------------------------------


def revoke(keys: list[Key]) -> None:
    del keys[0]


def narrow(keys: list[Key]) -> None:
    keys[0] = Key(keys[0].key_id, keys[0].stored_key, keys[0].server_key, b"", "first", 0.0, Grant())


@pytest.mark.parametrize("change", [revoke, narrow])
def test_the_first_token_is_kept_as_long_as_its_record(
    relay: ServerState, store: TokenStore, change: Callable[[list[Key]], None]
) -> None:
    add(store, "home")
    assert store.first() is not None
    with store.edit() as keys:
        change(keys)
    assert store.first() is None and not (relay.path / "first-token").exists()
    relay.close()
    again = ServerState.open(relay.path)
    assert "home" in labels(again) and again.tokens.first() is None, "it is not made anew"
    again.close()


def test_a_damaged_first_token_is_in_nobodys_way(relay: ServerState, store: TokenStore) -> None:
    (relay.path / "first-token").write_text("nonsense")
    with store.edit() as keys:
        keys.clear()
    assert relay.reload() and not relay.keys


def test_no_tokens_at_all_is_a_choice(relay: ServerState, store: TokenStore) -> None:
    with store.edit() as keys:
        keys.clear()
    relay.close()
    again = ServerState.open(relay.path)
    assert not again.keys
    again.close()


# --- other directories -------------------------------------------------------------------------------------------------


def test_records_of_before_grants_are_the_first_tokens(relay: ServerState) -> None:
    file = relay.path / "tokens.json"
    form = json.loads(file.read_text())
    for member in ("label", "created", "grant"):
        del form["tokens"][0][member]
    file.write_text(json.dumps(form))
    assert relay.reload()
    (key,) = relay.keys.values()
    assert (key.label, key.grant) == ("first", FIRST_GRANT)


def test_without_a_relay_there_is_nothing_to_edit(tmp_path: Path) -> None:
    (tmp_path / "first-token").touch(mode=0o600)
    store = ServerState.open(tmp_path, read_only=True).tokens
    refused(store.all, "No relay has been started")
    refused(lambda: add(store, "home"), "No relay has been started")


def test_looking_takes_no_time(relay: ServerState) -> None:
    """It happens four times a second for as long as the relay runs."""
    start = time.perf_counter()
    for _ in range(100):
        assert not relay.reload()
    assert time.perf_counter() - start < 0.5
