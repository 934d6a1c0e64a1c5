"""`fastrelay token …` beside a relay's state: what is printed where, and what is then in tokens.json."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastrelay.auth import Token, pin_texts
from fastrelay.net.tls import file_pin, load_identity, make_identity
from fastrelay.policy import FIRST_GRANT, Grant, Key
from fastrelay.state import ServerState
from tests.support.certificates import Authority
from tests.support.grants import make_token
from tests.test_cli import fastrelay

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[ServerState]:
    """The state of a relay that runs."""
    state = ServerState.open(tmp_path / "server")
    yield state
    state.close()


@pytest.fixture
def typed(relay: ServerState, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Typed:
    """`typed("list")`: exit code, stdout and stderr of `fastrelay token list`."""
    return lambda *words: fastrelay(capsys, monkeypatch, "token", *words, "--state", str(relay.path))


def keys(relay: ServerState, label: str) -> list[Key]:
    relay.reload()
    return [key for key in relay.keys.values() if key.label == label]


def handed_out(answer: tuple[int, str, str]) -> Token:
    """The token that was printed: alone on stdout, and nowhere else."""
    code, out, err = answer
    assert code == 0, err
    token = Token.parse(out)
    assert out == f"{token.text()}\n"
    assert token.text() not in err and token.text().split(".")[2] not in err
    return token


# --- new ---------------------------------------------------------------------------------------------------------------


def test_new(relay: ServerState, typed: Typed) -> None:
    answer = typed("new", "home", "--ports", "20000-20009, 443")
    token = handed_out(answer)
    assert "fastrelay client RELAY --name home --expose 22 --token-file FILE" in answer[2]
    assert "no public port" not in answer[2]
    (key,) = keys(relay, "home")
    assert key == Key.made(token, "home", Grant(("home",), ("*",), "20000-20009,443"), key.created)
    assert abs(time.time() - key.created) < 60
    assert token.secret.hex() not in (relay.path / "tokens.json").read_text()


def test_new_with_everything(relay: ServerState, typed: Typed) -> None:
    answer = typed(
        "new", "lab", "--names", "lab-*,bench", "--services", "web", "--ports", "relay", "--expires", "30d", "--max-streams", "5"
    )  # fmt: skip
    handed_out(answer)
    assert "--name bench --expose web=22" in answer[2]
    (key,) = keys(relay, "lab")
    assert abs(key.grant.expires - time.time() - 30 * 86400) < 60
    assert key.grant.same_but_time(Grant(("lab-*", "bench"), ("web",), "relay", 5))


def test_new_for_what_clients_dial(relay: ServerState, typed: Typed) -> None:
    """With --through it is for visiting only; without, clients with the token itself dial."""
    answer = typed("new", "me", "--dial", "10.0.0.0/8:22,5432", "--dial", "*.Lab:443", "--through", "home,lab*")
    handed_out(answer)
    assert "fastrelay socks RELAY home --token-file FILE" in answer[2]
    assert keys(relay, "me")[0].grant == Grant(dial=("10.0.0.0/8:22,5432", "*.lab:443"), through=("home", "lab*"))
    answer = typed("new", "home", "--ports", "20000-20009", "--services", "db,web*", "--dial", "10.0.0.0/8:22,5432")
    handed_out(answer)
    assert "fastrelay client RELAY --name home --expose db=22" in answer[2]
    grant = keys(relay, "home")[0].grant
    assert (grant.names, grant.dial, grant.through) == (("home",), ("10.0.0.0/8:22,5432",), ("home",))
    shown = typed("show", "me")[1]
    assert "dial      10.0.0.0/8:22,5432 *.lab:443\n" in shown and "through   home,lab*\n" in shown


def test_new_without_ports_says_so(relay: ServerState, typed: Typed) -> None:
    answer = typed("new", "home", "--names", "*")
    handed_out(answer)
    assert "no public port" in answer[2] and "--ports 20000-20009" in answer[2]
    assert "fastrelay client RELAY --expose private://22" in answer[2], "any name will do"
    assert keys(relay, "home")[0].grant == Grant(("*",), ("*",))


def test_new_for_visitors(relay: ServerState, typed: Typed) -> None:
    answer = typed("new", "laptop", "--reach", "db,web*")
    handed_out(answer)
    assert "visitor" in answer[2] and "fastrelay forward RELAY db --token-file FILE" in answer[2]
    assert "public port" not in answer[2]
    assert keys(relay, "laptop")[0].grant == Grant(reach=("db", "web*")), "and nothing else"


@pytest.mark.parametrize("also", [("--services", "x"), ("--names", "x"), ("--ports", "20000")])
def test_new_for_visitors_that_serve_as_well(relay: ServerState, typed: Typed, also: tuple[str, str]) -> None:
    handed_out(typed("new", "laptop", "--reach", "db,own", *also))
    grant = keys(relay, "laptop")[0].grant
    assert grant.reach == ("db", "own") and grant.names and grant.services


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("first",), "`fastrelay token rotate first`"),
        (("Home",), "'Home'"),
        (("x" * 64,), "1 to 63"),
        (("home", "--ports", "1-100"), "443,1024-2000"),
        (("home", "--ports", "all"), "'all'"),
        (("home", "--names", ""), "client names"),
        (("home", "--dial", "10.0.0.1/8"), "10.0.0.0/8"),
        (("home", "--dial", ""), "10.0.0.0/8:22"),
        (("home", "--through", "lab"), "--dial"),
        (("home", "--dial", "10.0.0.0/8", "--through", "Lab"), "client names"),
        (("home", "--services", "A"), "service names"),
        (("home", "--reach", "A"), "service names"),
        (("home", "--expires", "soon"), "30d"),
        (("home", "--expires", "2020-01-01"), "over"),
        (("home", "--max-streams", "0"), "max-streams"),
        (("home", "--max-streams", "65536"), "max-streams"),
        (("home", "--hosts", "a_b"), "host names"),
        ((), "LABEL"),
    ],
)
def test_new_that_is_refused_makes_nothing(relay: ServerState, typed: Typed, words: tuple[str, ...], told: str) -> None:
    code, out, err = typed("new", *words)
    assert (code, out) == (2, "") and told in err
    assert not relay.reload()


def test_tokens_carry_the_pin(relay: ServerState, typed: Typed) -> None:
    assert handed_out(typed("new", "plain", "--ports", "relay")).pins == ()
    make_identity(*relay.identity_paths)
    pin = load_identity(*relay.identity_paths).pin
    assert handed_out(typed("new", "home", "--ports", "relay")).pins == (pin,)
    assert handed_out(typed("rotate", "home")).pins == (pin,)
    assert handed_out(typed("show")).pins == (pin,)


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("tls://relay.example.com:7443", "client relay.example.com:7443 --name"),
        ("tls://[2001:db8::7]:443", "client [2001:db8::7]:443 --name"),
        ("tcp://127.0.0.1:7443", "client tcp://127.0.0.1:7443 --name"),
        ("nonsense", "client RELAY --name"),
    ],
)
def test_the_line_says_where_the_relay_is(relay: ServerState, typed: Typed, address: str, line: str) -> None:
    relay.save_address(address)
    answer = typed("new", "home", "--ports", "relay")
    handed_out(answer)
    assert f"fastrelay {line} home --expose 22" in answer[2]
    assert ("RELAY" in answer[2]) is ("RELAY" in line)


def test_a_relay_on_all_addresses_is_where_this_machine_is(relay: ServerState, typed: Typed) -> None:
    relay.save_address("tls://[::]:7443")
    _, _, told = typed("new", "home")
    assert re.search(r"fastrelay client \S+:7443 --name home", told) and "[::]" not in told


# --- certificates ------------------------------------------------------------------------------------------------------


def test_a_token_with_a_certificate(relay: ServerState, typed: Typed, tmp_path: Path) -> None:
    cert, _ = Authority(tmp_path).issue("home")
    answer = typed("new", "home", "--ports", "relay", "--client-cert", str(cert))
    token = handed_out(answer)
    assert "--client-cert CERT --client-key KEY --token-file FILE" in answer[2]
    (key,) = keys(relay, "home")
    assert key == Key.made(token, "home", Grant(("home",), ("*",), "relay"), key.created, file_pin(cert))
    again = handed_out(typed("rotate", "home"))
    (key,) = keys(relay, "home")
    assert (key.key_id, key.cert) == (again.key_id, file_pin(cert)), "a new secret, the same certificate"
    assert re.search(r"^home +\S+ +both ", typed("list")[1], re.MULTILINE)


def test_a_certificate_without_a_token(relay: ServerState, typed: Typed, tmp_path: Path) -> None:
    make_identity(*relay.identity_paths)
    pin = pin_texts([load_identity(*relay.identity_paths).pin])[0]
    cert, _ = Authority(tmp_path).issue("home")
    words = ("--ports", "relay", "--client-cert", str(cert), "--no-token")
    code, out, err = typed("new", "home", *words)
    assert (code, out) == (0, "")
    assert f"--expose 22 --client-cert CERT --client-key KEY --pin {pin}\n" in err and "--token" not in err
    (key,) = keys(relay, "home")
    assert key.by_certificate and key.cert == file_pin(cert) and key.grant == Grant(("home",), ("*",), "relay")
    assert relay.find_cert(file_pin(cert)) == key
    code, out, err = typed("new", "other", *words)
    assert (code, out) == (2, "") and "'home'" in err
    code, out, err = typed("rotate", "home")
    assert (code, out) == (2, "") and "no secret" in err
    assert keys(relay, "home") == [key]
    assert re.search(r"^proof +certificate$", typed("show", "home")[1], re.MULTILINE)
    assert typed("revoke", "home")[0] == 0 and not keys(relay, "home")


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("--no-token",), 2, "--client-cert"),
        (("--client-cert", "/nowhere.crt"), 3, "/nowhere.crt"),
        (("--client-cert", "/dev/null"), 3, "give --client-cert a file in PEM form"),
    ],
)
def test_certificates_that_cannot_be(
    relay: ServerState, typed: Typed, words: tuple[str, ...], status: int, told: str
) -> None:
    code, out, err = typed("new", "home", *words)
    assert (code, out) == (status, "") and told in err
    assert not relay.reload()


# --- list and show -----------------------------------------------------------------------------------------------------


def test_hosts(relay: ServerState, typed: Typed) -> None:
    _, _, err = typed("new", "lab", "--hosts", "Web.home.example, *.lab.example")
    (key,) = keys(relay, "lab")
    assert key.grant.hosts == ("web.home.example", "*.lab.example") and "--expose http://8000 " in err
    assert key.refuse_host("web.home.example") is None is key.refuse_host("a.b.lab.example")
    refusal = key.refuse_host("web.lab.example.org")
    assert refusal is not None and refusal.rule == "hosts" and "web.home.example or *.lab.example" in refusal.text
    assert "hosts     web.home.example,*.lab.example" in typed("show", "lab")[1]


def test_list(relay: ServerState, typed: Typed) -> None:
    typed("new", "a-longer-label", "--expires", "2099-12-31")
    code, out, err = typed("list")
    assert (code, err) == (0, "")
    head, first, second = out.splitlines()
    assert head.split() == [
        "LABEL",
        "KEY",
        "PROOF",
        "PORTS",
        "NAMES",
        "SERVICES",
        "REACH",
        "HOSTS",
        "EXPIRES",
        "CREATED",
    ]
    (key,) = keys(relay, "a-longer-label")
    assert second.split()[:9] == [
        "a-longer-label",
        key.key_id,
        "token",
        "-",
        "a-longer-label",
        "*",
        "-",
        "-",
        "2100-01-01T00:00Z",
    ]
    assert first.split()[0] == "first" and first.split()[2:8] == ["token", "relay", "*", "*", "own", "*"]
    assert {line.index(word) for line, word in ((head, "KEY"), (second, key.key_id))} == {16}, "columns are aligned"
    assert relay.token(()).text().split(".")[2] not in out


def test_show_a_label(relay: ServerState, typed: Typed) -> None:
    typed("new", "home", "--ports", "20000", "--expires", "1d")
    code, out, err = typed("show", "home")
    assert (code, err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert rows["ports"] == "20000" and rows["names"] == "home" and rows["services"] == "*"
    assert rows["key"] == keys(relay, "home")[0].key_id
    assert "fr1." not in typed("show", "first")[1]
    code, out, err = typed("show", "nobody")
    assert (code, out) == (2, "") and "'nobody'" in err and "`fastrelay token list`" in err


def test_show_alone_is_the_first_token(relay: ServerState, typed: Typed) -> None:
    assert handed_out(typed("show")) == relay.token(())


# --- revoke ------------------------------------------------------------------------------------------------------------


def test_revoke(relay: ServerState, typed: Typed) -> None:
    typed("new", "home")
    code, out, err = typed("revoke", "home")
    assert (code, out) == (0, "") and "within a second" in err
    assert not keys(relay, "home") and keys(relay, "first")
    assert handed_out(typed("show")) == relay.token(())
    code, out, err = typed("revoke", "home")
    assert (code, out) == (2, "") and "There is no token 'home'" in err


def test_revoke_first(relay: ServerState, typed: Typed) -> None:
    assert typed("revoke", "first")[0] == 0
    assert not (relay.path / "first-token").exists() and not keys(relay, "first")
    code, out, err = typed("show")
    assert (code, out) == (3, "") and "no longer kept" in err


# --- rotate ------------------------------------------------------------------------------------------------------------


def test_rotate(relay: ServerState, typed: Typed) -> None:
    old = handed_out(typed("new", "home", "--ports", "20000", "--expires", "30d"))
    (before,) = keys(relay, "home")
    new = handed_out(typed("rotate", "home"))
    assert new.key_id != old.key_id and new.secret != old.secret
    (after,) = keys(relay, "home")
    assert after == Key.made(new, "home", before.grant, after.created)


def test_rotate_first_is_not_kept_in_clear(relay: ServerState, typed: Typed) -> None:
    new = handed_out(typed("rotate", "first"))
    (key,) = keys(relay, "first")
    assert (key.key_id, key.grant) == (new.key_id, FIRST_GRANT)
    assert not (relay.path / "first-token").exists()


def test_rotate_and_keep(relay: ServerState, typed: Typed) -> None:
    typed("new", "home", "--ports", "20000")
    (before,) = keys(relay, "home")
    typed("rotate", "home", "--keep", "12h")
    old, new = keys(relay, "home")
    assert old.same_token(before) and old.grant.same_but_time(before.grant)
    assert abs(old.grant.expires - time.time() - 43200) < 60 and not new.grant.expires
    # Once more: none of the old ones lives longer than it would have.
    typed("rotate", "home", "--keep", "30d")
    oldest, older, newest = keys(relay, "home")
    assert oldest == old and older.same_token(new) and older.grant.expires > old.grant.expires
    assert not newest.grant.expires
    typed("revoke", "home")
    assert not keys(relay, "home"), "all of them"


@pytest.mark.parametrize(
    ("words", "told"),
    [(("nobody",), "There is no token"), (("first", "--keep", "x"), "30d"), (("first", "--keep", "0d"), "30d")],
)
def test_rotate_that_is_refused(relay: ServerState, typed: Typed, words: tuple[str, ...], told: str) -> None:
    code, out, err = typed("rotate", *words)
    assert (code, out) == (2, "") and told in err
    assert not relay.reload() and relay.tokens.first()


def test_rotate_a_token_that_is_over(relay: ServerState, typed: Typed) -> None:
    make_token(relay.path, "home", expires=1)
    code, out, err = typed("rotate", "home")
    assert (code, out) == (2, "") and "expired" in err and "revoke" in err
    assert "(over)" in typed("show", "home")[1]


# --- without a relay ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [("new", "home"), ("list",), ("show",), ("show", "home"), ("revoke", "home"), ("rotate", "home")]
)
def test_where_no_relay_was_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    code, out, err = fastrelay(capsys, monkeypatch, "token", *words, "--state", str(tmp_path / "none"))
    assert (code, out) == (3, "") and "`fastrelay server`" in err
    assert not (tmp_path / "none").exists()
