"""fastrelay.policy: nothing is granted that is not listed, whatever is asked for; and every no names its rule."""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrelay.auth import Token, Verifier
from fastrelay.config import NAME, PortRange
from fastrelay.dialling import read_place
from fastrelay.errors import UsageError
from fastrelay.matching import matches
from fastrelay.policy import (
    FIRST_GRANT,
    PRIVILEGED,
    Allowed,
    Grant,
    Key,
    Ports,
    parse_duration,
    parse_expiry,
    parse_patterns,
    show_time,
)

fewer = settings(max_examples=settings().max_examples // 4)
"""For examples that take long."""
TOKEN = Token("k3yID_-0", bytes(range(32)))
RANGE = PortRange(20_000, 20_009)
OWN = 20_005

numbers = st.integers(1, 65535)
ranges = st.tuples(numbers, numbers).map(lambda ends: PortRange(min(ends), max(ends)))
listed = st.builds(
    Ports,
    st.lists(ranges.filter(lambda ports: ports.first >= PRIVILEGED or len(ports) == 1), max_size=4).map(tuple),
    st.booleans(),
)
names = st.text("ab0.-_", min_size=1, max_size=8).filter(NAME.fullmatch)
patterns = st.text("ab.-*", min_size=1, max_size=12).filter(lambda text: text[0] not in ".-")


def key(label: str = "home", **grant: object) -> Key:
    return Key.made(TOKEN, label, msgspec.convert(grant, Grant), 1.0)


def refused(parse: Callable[[], object], *says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse()
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text
    for word in says:
        assert word in text


def rule(answer: object) -> str:
    """The rule of a refusal; "" for a yes."""
    return getattr(answer, "rule", "") if answer is not None else ""


# --- ports -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ports", "again"),
    [
        ("", Ports(), ""),
        ("  ", Ports(), ""),
        ("relay", Ports((), True), "relay"),
        ("443", Ports((PortRange(443, 443),)), "443"),
        ("20000-20009,443", Ports((PortRange(20_000, 20_009), PortRange(443, 443))), "20000-20009,443"),
        (" 443 , relay,1024 - 1030 ", Ports((PortRange(443, 443), PortRange(1024, 1030)), True), "443,1024-1030,relay"),
        ("20000-20000", Ports((PortRange(20_000, 20_000),)), "20000"),
    ],
)
def test_ports_as_typed(text: str, ports: Ports, again: str) -> None:
    assert Ports.parse(text) == ports
    assert str(ports) == again


@pytest.mark.parametrize(
    "text", ["x", ",", "443,", "0", "65536", "-1", "1-", "20009-20000", "Relay", "20000 20001", "*", "٣"]
)
def test_ports_that_are_none(text: str) -> None:
    refused(lambda: Ports.parse(text), repr(text), "20000-20009,443")


@pytest.mark.parametrize("text", ["1-65535", "443-444", "1023-1024", "20000,80-90", "443-443"])
def test_ranges_below_1024_are_refused(text: str) -> None:
    refused(lambda: Ports.parse(text), "number")


@given(listed)
def test_ports_are_read_back(ports: Ports) -> None:
    assert Ports.parse(str(ports)) == ports


@given(st.text("0129-,relay \x00é", max_size=20))
def test_any_text_is_ports_or_a_sentence(text: str) -> None:
    with contextlib.suppress(UsageError):
        Ports.parse(text)


@fewer
@given(listed, ranges, numbers, st.lists(numbers, max_size=20))
def test_no_port_is_granted_that_is_not_listed(ports: Ports, relay: PortRange, own: int, asked: list[int]) -> None:
    allowed = Allowed("home", ports, relay, own)
    edges = [edge for one in (*ports.ranges, relay) for edge in (one.first - 1, one.first, one.last, one.last + 1)]
    for port in {*asked, *edges, own, 80, 1023, 1024} & set(range(1, 65536)):
        by_number = any(port == one.first == one.last for one in ports.ranges)
        in_range = any(one.first <= port <= one.last for one in [*ports.ranges, *([relay] if ports.relay else [])])
        granted = port != own and (by_number or (port >= 1024 and in_range))
        answer = allowed.refusal(port)
        assert (answer is None) is granted
        if answer is not None:
            assert str(port) in answer.text or answer == allowed.nothing()


near = st.integers(1000, 1060)
short = st.tuples(near, near).map(lambda ends: PortRange(min(ends), max(ends)))
few = st.builds(
    Ports, st.lists(short.filter(lambda ports: ports.first >= PRIVILEGED), max_size=4).map(tuple), st.booleans()
)


@fewer
@given(few, short, near)
def test_what_is_given_out_is_what_is_granted(ports: Ports, relay: PortRange, own: int) -> None:
    allowed = Allowed("home", ports, relay, own)
    given_out = list(allowed)
    assert len(given_out) == len(set(given_out))
    assert set(given_out) == {port for port in range(900, 1200) if allowed.refusal(port) is None}


@pytest.mark.parametrize(
    ("ports", "port", "named", "says"),
    [
        ("20000-20009,443", 443, "", ""),
        ("20000-20009", 20_010, "ports", "the token 'home' grants the ports 20000-20009, not port 20010"),
        ("20000-20009", OWN, "relay-port", f"port {OWN} is where this relay takes its clients"),
        ("relay", OWN, "relay-port", "no token grants it"),
        (f"{OWN}", OWN, "relay-port", "no token grants it"),
        ("relay", 20_009, "", ""),
        ("relay", 20_010, "ports", "grants the ports 20000-20009, not port 20010"),
        ("20000-20009", 443, "privileged-port", "--ports 443"),
        ("", 20_000, "ports", "grants no public port"),
    ],
)  # fmt: skip
def test_the_sentences_for_ports(ports: str, port: int, named: str, says: str) -> None:
    answer = key(ports=ports).ports(RANGE, OWN).refusal(port)
    assert rule(answer) == named
    assert answer is None or says in answer.text


def test_a_relay_that_gives_out_low_ports_grants_none_of_them_by_its_range() -> None:
    allowed = key(ports="relay").ports(PortRange(80, 1030), 1025)
    assert list(allowed) == [1024, 1026, 1027, 1028, 1029, 1030]
    assert rule(allowed.refusal(80)) == "privileged-port"


def test_the_order_is_as_listed() -> None:
    assert list(key(ports="30005,30000-30002,30001-30003,relay").ports(PortRange(30_003, 30_006), 1)) == [
        30_005, 30_000, 30_001, 30_002, 30_003, 30_004, 30_006,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ports", "given_out"),
    [
        ("22,21000-21001", [21_000, 21_001]),
        ("22,443", [22, 443]),
        ("22,relay", [port for port in RANGE if port != OWN]),
        ("", []),
    ],
)
def test_any_port_is_none_that_one_asks_for_by_number(ports: str, given_out: list[int]) -> None:
    """As long as there are others."""
    assert list(key(ports=ports).ports(RANGE, OWN).for_any()) == given_out


# --- names -------------------------------------------------------------------------------------------------------------


@given(patterns, st.text("ab.-", max_size=12))
def test_patterns_are_those_of_everybody(pattern: str, name: str) -> None:
    oracle = re.compile(".*".join(map(re.escape, pattern.split("*"))))
    assert matches(pattern, name) is (oracle.fullmatch(name) is not None)


def test_a_pattern_with_many_stars_takes_no_time() -> None:
    assert not matches("*a" * 31 + "*b", "a" * 63)


@given(names)
def test_a_star_is_for_every_name(name: str) -> None:
    assert FIRST_GRANT.names == ("*",)
    assert key(names=["*"], services=["*"]).refuse_name(name) is None
    assert key(names=["*"], services=["*"]).refuse_service(name) is None
    assert rule(key().refuse_name(name)) == "names" and rule(key().refuse_service(name)) == "services"


@given(st.text("homeHOME.-_ \n", max_size=6) | names)
def test_only_the_name_itself_is_granted(name: str) -> None:
    assert (key(names=["home"]).refuse_name(name) is None) is (name == "home")
    assert (key(services=["home"]).refuse_service(name) is None) is (name == "home")


def test_places_that_clients_dial() -> None:
    one = key(dial=["10.0.0.0/8:22", "*.lab:443"], through=["home", "lab-*"])
    for client, place, named in (
        ("home", "10.0.0.5:22", ""),
        ("lab-1", "db.lab:443", ""),
        ("office", "10.0.0.5:22", "through"),
        ("office", "192.0.2.7:22", "through"),  # who may not use a client learns nothing of it
        ("home", "10.0.0.5:23", "dial"),
        ("home", "192.0.2.7:22", "dial"),
        ("home", "db.lan:22", "dial"),  # it may be in 10.0.0.0/8, and the relay cannot know
        ("home", "127.0.0.1:22", "dial"),
    ):
        answer = one.refuse_dial(client, read_place(place))
        assert rule(answer) == named
        assert answer is None or ("'home'" in answer.text and "--dial" in answer.text)
    assert rule(key().refuse_dial("home", read_place("10.0.0.5:22"))) == "through"
    assert rule(key(through=["*"]).refuse_dial("home", read_place("10.0.0.5:22"))) == "dial"
    assert key(through=["*"]).refuse_visits() is None and rule(key(dial=["*"]).refuse_visits()) == "reach"


@pytest.mark.parametrize("name", ["", "Home", "home/", "*", "a" * 64])
def test_what_is_no_client_dials_nothing(name: str) -> None:
    assert rule(key(dial=["*"], through=["*"]).refuse_dial(name, read_place("db.lab:22"))) == "through"


@pytest.mark.parametrize("name", ["", "Home", "home.\n", "hоme", "ｈome", "a" * 64, ".home", "-home", "*", "home*"])
def test_what_is_no_name_has_no_grant(name: str) -> None:
    assert key(names=["*"]).refuse_name(name) is not None
    assert key(services=["*"]).refuse_service(name) is not None


def test_the_sentences_for_names() -> None:
    answer = key(names=["home"]).refuse_name("office")
    assert answer is not None
    assert answer.text == (
        "the token 'home' is for clients named home, not 'office'; use --name home, or a token for 'office'"
    )
    answer = key(names=["lab-*", "*.example"]).refuse_name("office")
    assert answer is not None
    assert answer.text == (
        "the token 'home' is for clients named lab-* or *.example, not 'office'; use another --name, or a token for 'office'"
    )
    answer = key(services=["web"]).refuse_service("ssh")
    assert answer is not None and answer.text == (
        "the token 'home' is for services named web, not 'ssh'; name it so, as in --expose web=22, or use a token for 'ssh'"
    )
    answer = key().refuse_name("office")
    assert answer is not None
    assert answer.text == "the token 'home' is for no clients at all, not 'office'; use a token for 'office'"


def test_what_a_token_reaches() -> None:
    """(service, label of the token with which its client came) -> the rule that says no."""
    some = key(reach=["db", "web*"])
    assert [rule(some.refuse_reach(name, "lab")) for name in ("db", "web", "web2")] == ["", "", ""]
    assert rule(some.refuse_reach("dbx", "lab")) == rule(some.refuse_reach("own", "home")) == "reach"
    own = key(reach=["own", "db"])
    assert rule(own.refuse_reach("db", "lab")) == rule(own.refuse_reach("x", "home")) == ""
    unseen = [own.refuse_reach("x", label) for label in ("lab", "")]
    assert rule(unseen[0]) == "own" and unseen[0] == unseen[1], "whether another's is there cannot be told"
    none = key()
    assert rule(none.refuse_reach("db", "home")) == rule(none.refuse_visits()) == "reach"
    assert some.refuse_visits() is None and own.refuse_visits() is None


@pytest.mark.parametrize("name", ["", "DB", "db\n", "a" * 64, "*", "home/10.0.0.5:22"])
def test_what_is_no_name_is_not_reached(name: str) -> None:
    assert key(reach=["*"]).refuse_reach(name, "lab") is not None


def test_a_long_grant_is_refused_in_a_short_sentence() -> None:
    many = key(names=["a" * 60 + f"{n:03}" for n in range(500)], ports=",".join(map(str, range(20_000, 22_000, 2))))
    answers = [many.refuse_name("b" * 63), many.ports(PortRange(1, 2), 7443).refusal(30_000)]
    assert "20000,20002,20004,20006,20008,20010,20012,20014 and 992 more" in str(answers[1])
    for answer in answers:
        assert answer is not None and len(answer.text) < 1000


def test_patterns_as_typed() -> None:
    assert parse_patterns("home", "client") == ("home",)
    assert parse_patterns(" home, lab-*,*", "client") == ("home", "lab-*", "*")
    for text in ("", "home,", "Home", "a b", "h?me", ".a", "é", "a" * 64, "[ab]"):
        refused(lambda text=text: parse_patterns(text, "service"), "service names", repr(text))  # type: ignore[misc]


# --- times -------------------------------------------------------------------------------------------------------------

NOON = datetime.datetime(2030, 1, 31, 12, tzinfo=datetime.UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 30 * 86400), ("12h", 43200), ("90m", 5400), ("45s", 45), (" 1d ", 86400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_expiry(text, NOON) == NOON + seconds


@pytest.mark.parametrize("text", ["", "0d", "30", "d", "-1d", "1.5h", "1w", "999999d", "30 d", "1d1h", "٣d"])
def test_what_is_no_duration(text: str) -> None:
    refused(lambda: parse_duration(text), repr(text), "30d")
    refused(lambda: parse_expiry(text, NOON), repr(text), "30d")


def test_a_day_is_valid_to_its_end() -> None:
    assert parse_expiry("2030-01-31", NOON) == NOON + 43200
    assert show_time(parse_expiry("2030-01-31", NOON)) == "2030-02-01T00:00Z"
    assert show_time(parse_expiry("9999-12-31", NOON)) == "9999-12-31T23:59Z"
    refused(lambda: parse_expiry("2030-01-30", NOON), "over")
    for text in ("2030-02-30", "2030-1-31", "20300131", "2030-W05-4", "0000-01-01", "2030-01-31T10:00"):
        refused(lambda text=text: parse_expiry(text, NOON), repr(text))  # type: ignore[misc]


def test_expiry() -> None:
    assert key().expired(1e12) is None
    one = key(expires=NOON)
    assert one.expired(NOON - 0.001) is None
    answer = one.expired(NOON)
    assert answer is not None and answer.rule == "expires"
    assert "the token 'home' expired at 2030-01-31T12:00Z" in answer.text


# --- grants and keys ---------------------------------------------------------------------------------------------------


def test_a_grant_without_entries_gives_nothing() -> None:
    one = Key.made(TOKEN, "home", Grant(), 0.0)
    assert rule(one.refuse_name("home")) == "names" and rule(one.refuse_service("ssh")) == "services"
    allowed = one.ports(RANGE, OWN)
    assert not list(allowed) and all(allowed.refusal(port) for port in range(1, 65536))


def test_the_first_token_has_all_names_and_the_range_of_the_relay() -> None:
    one = Key.of(TOKEN)
    assert isinstance(one, Key) and (one.label, one.grant) == ("first", FIRST_GRANT)
    assert list(one.ports(RANGE, OWN)) == [port for port in RANGE if port != OWN]


def test_how_many_visitors() -> None:
    assert key().streams(100) == 100
    assert key(max_streams=5).streams(100) == 5
    assert key(max_streams=500).streams(100) == 100


@pytest.mark.parametrize(
    "grant",
    [
        {"names": ["Home"]}, {"names": [""]}, {"names": "home"}, {"services": ["a b"]}, {"ports": "1-65535"}, {"ports": 443},
        {"ports": "all"}, {"max_streams": -1}, {"max_streams": 65536}, {"expires": -1}, {"expires": 1e300}, {"expires": "30d"},
        {"expire": 1}, {"dial": ["10.0.0.1/8"]}, {"dial": "10.0.0.0/8"}, {"dial": [""]}, {"through": ["Home"]}, {"through": "home"},
        {"names": ["home"], "domains": ["*"]}, {"hosts": ["a b"]}, {"hosts": ["-a"]},
    ],
)  # fmt: skip
def test_grants_that_cannot_be(grant: dict[str, object]) -> None:
    """A bound that is not understood is an error, never no bound."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(grant), type=Grant)


grants = st.builds(
    Grant,
    st.lists(patterns, max_size=3).map(tuple),
    st.lists(patterns, max_size=3).map(tuple),
    listed.map(str),
    st.integers(0, 65535),
    st.floats(0, 4e9),
)


@fewer
@given(grants, names)
def test_keys_are_read_back(grant: Grant, label: str) -> None:
    one = Key.made(TOKEN, label, grant, 5.0)
    again = msgspec.json.decode(msgspec.json.encode(one), type=Key)
    assert again == one and again.same_token(one)


odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70_000),
    st.floats(),
    st.sampled_from(["", "*", "home", "relay", "1-9", "20000-20009", "é"]),
)
members = [
    "names",
    "services",
    "ports",
    "max_streams",
    "expires",
    "label",
    "created",
    "key_id",
    "stored_key",
    "domains",
]


@fewer
@given(st.dictionaries(st.sampled_from(members), odd | st.lists(odd, max_size=3)))
def test_any_record_is_a_grant_or_an_error(record: dict[str, object]) -> None:
    """And a grant that was read can be asked everything."""
    good = msgspec.to_builtins(key(names=["home"]))
    form = {**good, **{name: record[name] for name in record if name in good}}
    form["grant"] = {name: value for name, value in record.items() if name not in good}
    with contextlib.suppress(msgspec.ValidationError):
        one = msgspec.json.decode(msgspec.json.encode(form), type=Key)
        one.refuse_name("home")
        one.refuse_service("home")
        one.expired(NOON)
        assert one.streams(10) <= 10
        allowed = one.ports(RANGE, OWN)
        assert allowed.refusal(OWN) is not None and allowed.refusal(80) is not None
        assert OWN not in list(allowed)


def test_what_counts_as_another_grant() -> None:
    one = Grant(names=("home",), services=("*",), ports="20000", max_streams=5, expires=1.0)
    assert one.same_but_time(msgspec.structs.replace(one, expires=2.0))
    others: list[dict[str, object]] = [{"names": ("home", "b")}, {"services": ()}, {"ports": ""}, {"max_streams": 4}]
    for change in others:
        assert not one.same_but_time(msgspec.structs.replace(one, **change))


def test_another_secret_is_another_token() -> None:
    one = key()
    assert not one.same_token(Key.made(Token("k3yID_-0", bytes(32)), "home", one.grant, 1.0))
    assert not one.same_token(Key.made(Token("k3yID_-1", TOKEN.secret), "home", one.grant, 1.0))
    assert not one.same_token(Key.made(TOKEN, "home", one.grant, 1.0, bytes(32))), "it needs a certificate from now on"


@pytest.mark.parametrize(
    "change", [{"label": "Not A Name"}, {"label": ""}, {"created": -1.0}, {"key_id": "x"}, {"stored_key": b""}]
)
def test_keys_that_cannot_be(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        msgspec.structs.replace(key(), **change)


def test_no_key_is_shown() -> None:
    assert repr(key()) == repr(Verifier.of(TOKEN)).replace("Verifier", "Key")
