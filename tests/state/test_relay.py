"""What a relay keeps: what survives a restart, who may read it, and the sentences for what cannot be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fastrelay.auth import Token, Verifier
from fastrelay.policy import FIRST_GRANT
from fastrelay.state import Reservation, ServerState
from tests.support.state import mode, posix, refused


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "server"


def known(state: ServerState, token: Token) -> bool:
    key = state.find(token.key_id)
    return key is not None and key.same_token(Verifier.of(token))


def test_first_start_and_the_next(path: Path) -> None:
    first = ServerState.open(path)
    token, seed = first.token(()), first.seed
    assert known(first, token)
    key = first.find(token.key_id)
    assert key is not None and (key.label, key.grant) == ("first", FIRST_GRANT)
    assert 0 <= time.time() - key.created < 60
    assert first.find("unknown0") is None
    assert len(seed) == 32
    first.close()
    again = ServerState.open(path)
    assert (again.token(()), again.seed) == (token, seed)
    assert known(again, token)
    again.close()


def test_two_relays_have_nothing_in_common(tmp_path: Path) -> None:
    a, b = ServerState.open(tmp_path / "a"), ServerState.open(tmp_path / "b")
    assert a.seed != b.seed and a.token(()).key_id != b.token(()).key_id and a.token(()).secret != b.token(()).secret
    a.close()
    b.close()


def test_the_pin_is_the_callers(path: Path) -> None:
    state = ServerState.open(path)
    pins = (b"p" * 32, b"q" * 32)
    assert state.token(pins) == Token(state.token(()).key_id, state.token(()).secret, pins)
    assert state.identity_paths == (path / "relay.crt", path / "relay.key")
    state.close()


def test_the_secret_lies_in_one_file_only(path: Path) -> None:
    state = ServerState.open(path)
    secret = state.token(()).text().split(".")[2].encode()
    state.close()
    assert [file.name for file in path.iterdir() if secret in file.read_bytes()] == ["first-token"]


@posix
def test_everything_is_the_owners_alone(path: Path) -> None:
    umask = os.umask(0)
    try:
        state = ServerState.open(path)
        state.save_reservations({"home": Reservation("inst-1", 1.5, {})})
    finally:
        os.umask(umask)
    assert mode(path) == 0o700
    files = {file.name: mode(file) for file in path.iterdir()}
    assert files == dict.fromkeys(
        ["lock", "seed", "first-token", "tokens.json", "tokens.lock", "reservations.json"], 0o600
    )
    state.close()


def test_one_relay_at_a_time(path: Path) -> None:
    first = ServerState.open(path)
    refused(lambda: ServerState.open(path), "Another relay", str(path), "--state")
    first.close()
    first.close()
    ServerState.open(path).close()


def test_the_lock_ends_with_its_process(path: Path) -> None:
    script = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from fastrelay.state import ServerState
        state = ServerState.open(Path(sys.argv[1]))
        print("open", flush=True)
        sys.stdin.read()
        os._exit(0)
    """)
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline().strip() == b"open"
        refused(lambda: ServerState.open(path), "Another relay")
        other.kill()
    ServerState.open(path).close()


def test_a_refused_start_leaves_no_lock(path: Path) -> None:
    ServerState.open(path).close()
    (path / "tokens.json").write_text("{")
    refused(lambda: ServerState.open(path), "tokens.json")
    (path / "tokens.json").unlink()
    ServerState.open(path).close()


def test_a_start_that_ended_early_is_completed(path: Path) -> None:
    """The first token is written before its verifier."""
    state = ServerState.open(path)
    token = state.token(())
    state.close()
    (path / "tokens.json").unlink()
    (path / ".tokens.json.new").write_text("half of it")
    again = ServerState.open(path)
    assert again.token(()) == token and known(again, token)
    assert not (path / ".tokens.json.new").exists()
    again.close()


def test_a_first_token_that_was_replaced_is_not_made_anew(path: Path) -> None:
    state = ServerState.open(path)
    key_id = state.token(()).key_id
    state.close()
    (path / "first-token").unlink()
    again = ServerState.open(path)
    assert again.find(key_id) is not None
    assert not (path / "first-token").exists()
    refused(lambda: again.token(()), "no longer kept", "`fastrelay token new LABEL`")
    again.close()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokens.json", b"{"),
        ("tokens.json", b"\xff"),
        ("tokens.json", b'{"tokens": [{"key_id": "x", "stored_key": "", "server_key": ""}]}'),
        ("tokens.json", b'{"tokens": ' + b"[" * 9999),
        ("seed", b"too short"),
    ],
)
def test_damaged_files(path: Path, name: str, content: bytes) -> None:
    ServerState.open(path).close()
    (path / name).write_bytes(content)
    refused(lambda: ServerState.open(path), f"The file {path / name} is damaged", "move it away")


@pytest.mark.parametrize("content", [b"", b"fr1.k3yID_-0.short", b"\xff\xfe"])
def test_damaged_first_token(path: Path, content: bytes) -> None:
    ServerState.open(path).close()
    (path / "first-token").write_bytes(content)
    state = ServerState.open(path)
    refused(lambda: state.token(()), f"The file {path / 'first-token'} is damaged")
    state.close()


def test_tokens_of_a_later_version_are_read(path: Path) -> None:
    state = ServerState.open(path)
    token = state.token(())
    state.close()
    file = path / "tokens.json"
    content = json.loads(file.read_text())
    content["tokens"][0]["ports"] = "20000-20009"
    content["format"] = 2
    file.write_text(json.dumps(content))
    again = ServerState.open(path)
    assert known(again, token)
    again.close()


@posix
@pytest.mark.parametrize("name", ["seed", "first-token", "tokens.json", "relay.key"])
@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620])
def test_secrets_that_others_may_read(path: Path, name: str, bits: int) -> None:
    ServerState.open(path).close()
    (path / "relay.key").touch(mode=0o600)
    (path / name).chmod(bits)
    refused(lambda: ServerState.open(path), str(path / name), "chmod 600")
    refused(lambda: ServerState.open(path, read_only=True), str(path / name), "chmod 600")
    (path / name).chmod(0o600)
    ServerState.open(path).close()


@posix
@pytest.mark.parametrize("bits", [0o720, 0o702, 0o777, 0o1777])
def test_a_directory_that_others_may_change(path: Path, bits: int) -> None:
    ServerState.open(path).close()
    path.chmod(bits)
    for open_ in (ServerState.open, lambda path: ServerState.open(path, read_only=True)):
        refused(lambda open_=open_: open_(path), str(path), "chmod go-w")  # type: ignore[misc]
    path.chmod(0o755)
    ServerState.open(path).close()


# --- the relay's state, read only --------------------------------------------------------------------------------------


def test_read_only_beside_a_relay(path: Path) -> None:
    relay = ServerState.open(path)
    before = sorted(path.iterdir())
    reader = ServerState.open(path, read_only=True)
    assert reader.token((b"p" * 32,)) == relay.token((b"p" * 32,))
    assert reader.identity_paths == relay.identity_paths
    reader.close()
    assert sorted(path.iterdir()) == before
    relay.close()


def test_read_only_makes_nothing(path: Path) -> None:
    refused(
        lambda: ServerState.open(path, read_only=True), "No relay has been started", str(path), "`fastrelay server`"
    )
    assert not path.parent.exists()
    path.mkdir(parents=True)
    refused(lambda: ServerState.open(path, read_only=True), "No relay has been started")
    assert not list(path.iterdir())


def test_read_only_after_the_first_token_was_replaced(path: Path) -> None:
    ServerState.open(path).close()
    (path / "first-token").unlink()
    reader = ServerState.open(path, read_only=True)
    refused(lambda: reader.token(()), "no longer kept")


# --- the address -------------------------------------------------------------------------------------------------------


def test_address(path: Path) -> None:
    state = ServerState.open(path)
    assert state.address() == ""
    state.save_address("tls://relay.example:7443")
    assert state.address() == ServerState.open(path, read_only=True).address() == "tls://relay.example:7443"
    state.close()


# --- reservations ------------------------------------------------------------------------------------------------------


def test_reservations(path: Path) -> None:
    state = ServerState.open(path)
    assert state.reservations() == {}
    kept = {
        "home": Reservation("inst-1", 1_700_000_000.25, {"tcp-22": 20022, "web": 20080}),
        "work": Reservation("inst-2", 0.0, {}),
        "lab": Reservation("inst-3", 5.0, {}, {"db": "first"}),
    }
    state.save_reservations(kept)
    assert state.reservations() == kept
    state.close()
    again = ServerState.open(path)
    assert again.reservations() == kept
    again.save_reservations({})
    assert again.reservations() == {}
    again.close()


@pytest.mark.parametrize(
    "content", ["", "[]", '{"home": {}}', '{"home": {"instance": "i", "seen": 1, "ports": {"a": "b"}}}']
)
def test_damaged_reservations(path: Path, content: str) -> None:
    state = ServerState.open(path)
    (path / "reservations.json").write_text(content)
    refused(state.reservations, f"The file {path / 'reservations.json'} is damaged", "move it away")
    state.close()


def test_a_disk_that_is_full_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = ServerState.open(path)
    kept = {"home": Reservation("inst-1", 1.0, {"web": 20080})}
    state.save_reservations(kept)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        state.save_reservations({})
    monkeypatch.undo()
    assert state.reservations() == kept
    assert not [file for file in path.iterdir() if file.name.endswith(".new")]
    state.close()
