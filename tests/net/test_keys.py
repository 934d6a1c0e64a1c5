"""fastrelay.net.keys: a change of the relay's key in two steps, interrupted anywhere, and files that change under a running relay."""

from __future__ import annotations

import itertools
import logging
import os
import ssl
import stat
from pathlib import Path
from typing import Any

import pytest

from fastrelay.errors import StartError
from fastrelay.net import keys
from fastrelay.net.keys import Pair, Shown, known_by, next_pair, prepare, settle, switch
from fastrelay.net.tls import Identity, load_identity, make_identity, server_context


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    made = tmp_path / "relay.crt", tmp_path / "relay.key"
    make_identity(*made)
    return made


def refused(step: Any, *says: str) -> None:
    with pytest.raises(StartError) as caught:
        step()
    assert all(word in str(caught.value) for word in says), caught.value


def looks(shown: Shown, times: int = 3) -> list[bool]:
    return [shown.look() for _ in range(times)]


def names(pair: Pair) -> list[str]:
    return sorted(file.name for file in pair[0].parent.iterdir())


# --- the change --------------------------------------------------------------------------------------------------------


def test_prepare_and_switch(pair: Pair) -> None:
    first = load_identity(*pair)
    following = prepare(pair)
    assert load_identity(*pair) == first and following.pin != first.pin
    assert names(pair) == ["relay.crt", "relay.key", "relay.next.crt", "relay.next.key"]
    assert stat.S_IMODE(next_pair(pair)[1].stat().st_mode) == 0o600
    assert known_by(first, next_pair(pair)) == (first.pin, following.pin)
    current = switch(pair)
    assert (current.pin, current.fingerprint) == (following.pin, following.fingerprint)
    assert names(pair) == ["relay.crt", "relay.key"], "nothing is kept of the old key"
    assert stat.S_IMODE(pair[1].stat().st_mode) == 0o600
    assert known_by(current, next_pair(pair)) == (following.pin,)


def test_what_cannot_be_done(pair: Pair) -> None:
    refused(lambda: switch(pair), "no next key", "fastrelay key prepare")
    prepare(pair)
    pin = load_identity(*next_pair(pair)).pin
    refused(lambda: prepare(pair), "already", "fastrelay key switch", "relay.next.key")
    assert load_identity(*next_pair(pair)).pin == pin
    next_pair(pair)[0].write_text("nonsense")
    before = load_identity(*pair)
    refused(lambda: switch(pair), "relay.next.crt", "remove both")
    refused(lambda: Shown(pair, own=True), "relay.next.crt", "remove both")
    assert load_identity(*pair) == before


@pytest.mark.parametrize("step", [1, 2])
def test_a_switch_that_was_killed_is_ended_by_the_next_start(
    pair: Pair, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = prepare(pair).pin
    count = itertools.count(1)
    replace = keys._replace

    def killed(source: Path, target: Path) -> None:
        if next(count) == step:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(keys, "_replace", killed)
    with pytest.raises(KeyboardInterrupt):
        switch(pair)
    monkeypatch.undo()
    settle(pair)
    assert (load_identity(*pair).pin == following) is (step == 2)
    if step == 1:
        assert switch(pair).pin == following
    assert names(pair) == ["relay.crt", "relay.key"]


def test_a_prepare_that_was_killed_is_begun_anew(pair: Pair) -> None:
    """The key is written before its certificate."""
    prepare(pair)
    next_pair(pair)[0].unlink()
    settle(pair)
    assert known_by(load_identity(*pair), next_pair(pair)) == (load_identity(*pair).pin,)
    refused(lambda: switch(pair), "no next key")
    assert switch_after_prepare(pair)


def test_a_next_key_that_somebody_removed(pair: Pair) -> None:
    prepare(pair)
    next_pair(pair)[1].unlink()
    before = load_identity(*pair)
    settle(pair)
    assert load_identity(*pair) == before
    assert switch_after_prepare(pair)


def switch_after_prepare(pair: Pair) -> bool:
    following = prepare(pair).pin
    return switch(pair).pin == following


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root makes files for others")
def test_what_root_makes_is_for_the_owner_of_the_directory(pair: Pair) -> None:
    os.chown(pair[0].parent, 12345, 12345)
    prepare(pair)
    assert {file.stat().st_uid for file in next_pair(pair)} == {12345}


# --- a running relay ---------------------------------------------------------------------------------------------------


def test_a_running_relay_takes_note(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastrelay")
    shown = Shown(pair, own=True)
    first, context = shown.identity, shown.context
    assert known_by(first, None) == shown.pins
    assert looks(shown) == [False] * 3
    following = prepare(pair)
    assert looks(shown) == [False, True, False], "two looks see the same files before they are read"
    assert list(shown.pins) == [first.pin, following.pin] and shown.identity == first
    switch(pair)
    assert looks(shown) == [False, True, False]
    assert shown.pins == (following.pin,) and shown.identity.fingerprint == following.fingerprint
    assert shown.of(context) == first, "who began with the former certificate goes on with it"
    assert shown.of(shown.context) == shown.identity
    assert [vars(record)["event"] for record in caplog.records] == [
        "key.announced",
        "key.announced",
        "certificate.loaded",
    ]


def test_an_old_certificate_is_forgotten_with_its_last_tunnel(pair: Pair) -> None:
    shown = Shown(pair, own=True)
    switch_after_prepare(pair)
    looks(shown)
    assert len(shown._identities) == 1


def test_files_that_cannot_serve(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """The relay goes on, says so once, and takes the next ones that can."""
    shown = Shown(pair, own=False)
    first = shown.identity
    good = pair[1].read_bytes()
    pair[1].write_bytes(b"half a key")
    assert looks(shown, 5) == [False] * 5
    assert shown.identity == first
    assert [vars(record)["event"] for record in caplog.records] == ["certificate.not_loaded"]
    pair[1].unlink()
    assert looks(shown, 5) == [False] * 5 and len(caplog.records) == 2
    pair[1].write_bytes(good)
    assert looks(shown) == [False, True, False]


def test_files_between_two_steps_are_not_read(pair: Pair, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """As ACME clients do it: links to the new files, one after the other."""
    other = tmp_path / "2.crt", tmp_path / "2.key"
    make_identity(*other)
    shown = Shown(pair, own=False)
    for link, file in zip(pair, other, strict=True):
        link.unlink()
        link.symlink_to(file)
        assert not shown.look()
    assert shown.look()
    assert shown.identity.pin == load_identity(*other).pin
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("when", ["before", "after"])
def test_files_that_change_while_they_are_read(
    pair: Pair, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Else a relay could know itself by one certificate and show the other, and send everybody away."""
    shown = Shown(pair, own=False)
    first, context = shown.identity, shown.context
    make_identity(*pair)
    assert not shown.look()

    def change(identity: Identity, client_ca: Path | None) -> ssl.SSLContext:
        monkeypatch.undo()
        if when == "before":
            make_identity(*pair)
        made = server_context(identity, client_ca)
        if when == "after":
            pair[0].unlink()
            make_identity(*pair)
        return made

    monkeypatch.setattr(keys, "server_context", change)
    assert not shown.look()
    assert (shown.identity, shown.context) == (first, context) and not caplog.records
    assert looks(shown) == [False, True, False]
    assert shown.identity.fingerprint == load_identity(*pair).fingerprint


def test_a_given_certificate_has_no_next_one(pair: Pair) -> None:
    prepare(pair)
    shown = Shown(pair, own=False)
    assert shown.pins == (shown.identity.pin,)


def test_a_file_of_cas_is_watched_too(pair: Pair, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    refused(lambda: Shown(pair, own=True, client_ca=ca), str(ca))
    ca.write_text("nonsense")
    refused(lambda: Shown(pair, own=True, client_ca=ca), str(ca), "--client-ca")
    ca.write_bytes(pair[0].read_bytes())
    shown = Shown(pair, own=True, client_ca=ca)
    ca.write_bytes(pair[0].read_bytes() * 2)
    assert looks(shown) == [False, True, False]
