"""`fastrelay key …` beside a relay's state: what is printed, and which files there are then."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastrelay.auth import Token, parse_pin
from fastrelay.net.tls import load_identity, make_identity
from fastrelay.state import ServerState
from tests.test_cli import fastrelay

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[ServerState]:
    """The state of a relay that runs."""
    state = ServerState.open(tmp_path / "server")
    make_identity(*state.identity_paths)
    yield state
    state.close()


@pytest.fixture
def typed(relay: ServerState, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Typed:
    """`typed("key", "show")`: exit code, stdout and stderr."""
    return lambda *words: fastrelay(capsys, monkeypatch, *words, "--state", str(relay.path))


def pins(out: str) -> dict[str, bytes]:
    rows = [re.fullmatch(r"(current|next) +(\S{43})  valid from \d{4}-\d\d-\d\d until \d{4}-\d\d-\d\d", line) for line in out.splitlines()]  # fmt: skip
    assert all(rows)
    return {row[1]: parse_pin(row[2]) for row in rows if row}


def test_a_change(relay: ServerState, typed: Typed) -> None:
    first = load_identity(*relay.identity_paths).pin
    code, out, err = typed("key", "show")
    assert (code, pins(out), err) == (0, {"current": first}, "")
    code, out, err = typed("key", "prepare")
    following = pins(out)["next"]
    assert (code, list(pins(out))) == (0, ["next"]) and "fastrelay key switch" in err
    assert pins(typed("key", "show")[1]) == {"current": first, "next": following}
    for words in (("token", "show"), ("token", "new", "home"), ("token", "rotate", "home")):
        assert Token.parse(typed(*words)[1]).pins == (first, following), "tokens carry both"
    code, out, err = typed("key", "switch")
    assert (code, pins(out)) == (0, {"current": following}) and "new token" in err
    assert pins(typed("key", "show")[1]) == {"current": following}
    assert Token.parse(typed("token", "show")[1]).pins == (following,)


def test_what_cannot_be_done_is_a_sentence(relay: ServerState, typed: Typed) -> None:
    assert typed("key", "switch")[0] == 3
    assert typed("key", "prepare")[0] == 0
    code, out, err = typed("key", "prepare")
    assert (code, out) == (3, "") and "fastrelay key switch" in err
    for path in relay.identity_paths:
        path.unlink()
    for command in ("show", "prepare", "switch"):
        code, out, err = typed("key", command)
        assert (code, out) == (3, "") and "no key of its own" in err


def test_before_the_first_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = fastrelay(capsys, monkeypatch, "key", "prepare", "--state", str(tmp_path / "none"))
    assert (code, out) == (3, "") and "fastrelay server" in err and not (tmp_path / "none").exists()


def test_secrets_that_others_may_read(relay: ServerState, typed: Typed) -> None:
    typed("key", "prepare")
    (relay.path / "relay.next.key").chmod(0o644)
    assert "chmod 600" in typed("key", "switch")[2]
    assert "chmod 600" in typed("token", "show")[2]
