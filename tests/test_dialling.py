"""fastrelay.dialling: a place is read in one way or not at all, and no rule leads where nobody thought of."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrelay.config import is_host
from fastrelay.dialling import DENIED, MOST, NO_RULES, Place, Rules, parse_rule, read_place, refused
from fastrelay.errors import Code, UsageError
from fastrelay.matching import Refusal
from tests.attack.test_addresses import forms
from tests.fuzz.texts import PIECES

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

fewer = settings(max_examples=settings().max_examples // 3)

addresses = st.ip_addresses()
labels = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,5}[a-z0-9_])?", fullmatch=True)
hosts = st.lists(labels, min_size=1, max_size=4).map(".".join)
ports = st.integers(1, 65535)
pieces = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=6).map("".join)
spans = st.lists(st.tuples(ports, ports).map(sorted).map(tuple), min_size=1, max_size=3)
networks = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)), st.tuples(st.ip_addresses(v=6), st.integers(0, 128))
).map(lambda pair: ipaddress.ip_network(pair, strict=False))


def at(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def named(answer: Refusal | None) -> str:
    """The rule of a no, "" for a yes."""
    return "" if answer is None else answer.rule


# --- places ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("10.0.0.5:22", "10.0.0.5"),
        ("db.lan:22", "db.lan"),
        ("DB.Lan:22", "db.lan"),
        ("localhost:22", "localhost"),
        ("_sip.0x.example:22", "_sip.0x.example"),
        ("1.2.3.4.example:22", "1.2.3.4.example"),
        ("[2001:DB8:0:0::7]:22", "2001:db8::7"),
        ("[::1]:22", "::1"),
        ("[::ffff:10.0.0.5]:22", "10.0.0.5"),
        ("[::ffff:a00:5]:22", "10.0.0.5"),
        ("[0:0:0:0:0:FFFF:10.0.0.5]:22", "10.0.0.5"),
    ],
)
def test_places(text: str, host: str) -> None:
    place = read_place(text)
    assert (place.host, place.port) == (host, 22)
    assert str(place) == at(host, 22) and read_place(str(place)) == place


@pytest.mark.parametrize(
    "text",
    [
        "", ":22", "db", "db:", "db:0", "db:00022", "db:65536", "db:+22", "db:22 ", " db:22", "db:٢٢", "db:0x16", "db:22\n", "db:22:22",
        "127.1:22", "0x7f.1:22", "0X7F.0.0.1:22", "0x7f000001:22", "2130706433:22", "0177.0.0.1:22", "127.0.0.1.:22", "10.0.0.05:22",
        "1.2.3:22", "1.2.3.4.5:22", "256.0.0.1:22", "a.0x:22", "a.1:22", "db.lan.:22", ".db:22", "db..lan:22", "-db:22", "db-:22",
        "::1:22", "[::1]22", "[::1:22", "::1]:22", "[]:22", "[127.0.0.1]:22", "[db]:22", "[fe80::1%lo]:22", "[fe80::1%25lo]:22", "[[::1]]:22",
        "loca\N{KELVIN SIGN}host:22", "münchen.example:22", "127。0。0。1:22", "１２７.0.0.1:22", "db\0:22", "a b:22", "user@db:22",
        "http://db:22", "db/../x:22", "a" * 64 + ".lan:22", "a." * 127 + "example:22", "home/db:22", "unix:/run/x:22", "*:22",
    ],
)  # fmt: skip
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_place(text)
    assert str(caught.value).isprintable()


@fewer
@given(addresses, ports)
def test_every_address_is_a_place_in_its_usual_form(address: ipaddress.IPv4Address, port: int) -> None:
    place = read_place(at(str(address), port))
    plain = getattr(address, "ipv4_mapped", None) or address
    assert place == Place(str(plain), port, plain)


def reading_of_libc(host: str) -> str | None:
    """What the resolver of this system makes of a host without asking anybody; None for what it would have to ask for."""
    with contextlib.suppress(OSError, UnicodeError, ValueError):
        found = socket.getaddrinfo(host, 22, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return str(found[0][4][0])
    return None


def check_one_reading(text: str) -> None:
    """A place is what libc makes of it too; and what is a name here, libc does not take for an address."""
    try:
        place = read_place(text)
    except ValueError:
        return
    assert read_place(str(place)) == place and len(text) <= MOST and text.isascii()
    typed = text.rpartition(":")[0].strip("[]")
    libc = reading_of_libc(typed)
    if place.address is None:
        assert libc is None and reading_of_libc(place.host) is None
        assert place.host == typed.lower()
    else:
        assert libc is not None
        there = ipaddress.ip_address(libc)
        assert place.address == (getattr(there, "ipv4_mapped", None) or there)
        assert str(place.address) == place.host
    assert is_host(place.host)


@fewer
@given(pieces | st.tuples(pieces, ports).map(lambda pair: f"{pair[0]}:{pair[1]}") | st.text(max_size=20))
def test_never_two_readings(text: str) -> None:
    check_one_reading(text)


@fewer
@given(
    st.lists(st.sampled_from(["0", "1", "7f", "0x7f", "0177", "127", "256", "a", "x", "0x", "08"]), max_size=5),
    st.sampled_from([".", ".", ":"]),
)
def test_never_two_readings_of_numbers(parts: list[str], between: str) -> None:
    for host in (between.join(parts), f"[{between.join(parts)}]", between.join(parts) + "."):
        check_one_reading(f"{host}:22")


def test_never_two_readings_of_what_attackers_say() -> None:
    texts = [form.decode("utf-8", "replace") for form in forms(22)]
    assert len(texts) >= 500
    for text in texts:
        check_one_reading(text)


# --- rules -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "again"),
    [
        ("10.0.0.0/8:22,5432", "10.0.0.0/8:22,5432"),
        (" 10.0.0.0/8 ", "10.0.0.0/8"),
        ("192.168.1.7:443", "192.168.1.7/32:443"),
        ("192.168.1.7", "192.168.1.7/32"),
        ("0.0.0.0/0:1-65535", "0.0.0.0/0:1-65535"),
        ("10.0.0.0/8:8000-8010,22,22", "10.0.0.0/8:22,8000-8010"),
        ("[2001:DB8::/32]:22", "[2001:db8::/32]:22"),
        ("2001:db8::/32:22", "[2001:db8::/32]:22"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("[2001:db8::7]", "2001:db8::7/128"),
        ("[::ffff:10.0.0.0/104]:22", "10.0.0.0/8:22"),
        ("*.Lab.example:443", "*.lab.example:443"),
        ("db", "db"),
        ("*", "*"),
        ("*:80", "*:80"),
    ],
)
def test_rules_as_typed(text: str, again: str) -> None:
    rule = parse_rule(text)
    assert str(rule) == again and parse_rule(again) == rule


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not the name of a host"),
        (":22", "is not the name of a host"),
        ("10.0.0.1/8:22", "write 10.0.0.1 for that one alone, or 10.0.0.0/8 for all of them"),
        ("10.0.0.*:22", "is neither an address nor the name of a host"),
        ("10.0.0:22", "is neither an address nor the name of a host"),
        ("10.0.0.0/33", "is not a network or address; write it like 10.0.0.0/8:22,5432"),
        ("db:", "'' is not a port"),
        ("db:0", "'0' is not a port"),
        ("db:65536", "'65536' is not a port"),
        ("db:22,", "'' is not a port"),
        ("db:30-20", "'30-20' is not a port"),
        ("db:ssh", "'ssh' is not a port"),
        ("2001:db8::7:22", "an IPv6 address needs brackets"),
        ("[db]:22", "brackets enclose an IPv6 network"),
        ("[2001:db8::7]22", "brackets enclose an IPv6 network"),
        ("[fe80::1%lo]:22", "is not a network in the form ADDRESS/BITS; write it like 10.0.0.0/8:22"),
        ("unix:/run/x", "is not a network or address"),
        ("münchen.example:22", "beyond ASCII"),
        ("\N{KELVIN SIGN}.example", "beyond ASCII"),
        ("?.example", "is not the name of a host"),
        ("a" * 254, "is not the name of a host"),
    ],
)
def test_rules_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        Rules.parse([text])
    told = str(caught.value)
    assert why in told and repr(text) in told and told.endswith(".") and told.isprintable()


@fewer
@given(pieces | st.text("10.0/8:22,-*[]a", max_size=20))
def test_any_text_is_a_rule_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        rule = parse_rule(text)
        assert parse_rule(str(rule)) == rule


@fewer
@given(st.lists(networks, max_size=3), spans, addresses, st.booleans(), st.data())
def test_an_address_is_allowed_by_a_network_that_has_it(
    listed: list[Network],
    span: list[tuple[int, int]],
    address: Address,
    near: bool,
    data: st.DataObject,
) -> None:
    """The oracle: the networks of ipaddress, and for special addresses only networks within the special one."""
    if near and listed:  # by chance nearly nothing is in any network
        network = data.draw(st.sampled_from(listed))
        offset = data.draw(st.integers(-1, min(network.num_addresses, 1 << 16)))
        top = (1 << network.max_prefixlen) - 1
        address = type(network.network_address)(min(max(int(network.network_address) + offset, 0), top))
    numbers = ",".join(f"{first}-{last}" for first, last in span)
    rules = Rules.parse([f"[{one}]:{numbers}" if one.version == 6 else f"{one}:{numbers}" for one in listed])
    edges = {edge for first, last in span for edge in (first - 1, first, last, last + 1)} & set(range(1, 65536))
    port = data.draw(st.sampled_from(sorted(edges)))
    plain = getattr(address, "ipv4_mapped", None) or address
    inside = [one for one in map(plain_network, listed) if plain in one]
    special = special_around(plain)
    if special is not None:
        inside = [one for one in inside if one.subnet_of(special)]  # type: ignore[arg-type]
    allowed = bool(inside) and any(first <= port <= last for first, last in span)
    place = read_place(at(str(address), port))
    for answer in (rules.refuse(place), rules.refuse_unresolved(place), rules.refuse_address(place, str(address))):
        assert (answer is None) is allowed, answer
        assert answer is None or (answer.text.isprintable() and str(place) in answer.text)
    # A name that leads there, for rules of networks: no more and no less.
    assert (rules.refuse_address(read_place(f"db.lan:{port}"), str(address)) is None) is allowed


def plain_network(
    network: Network,
) -> Network:
    """What is in IPv6 form is IPv4."""
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is not None and network.prefixlen >= 96:
        return ipaddress.IPv4Network((int(mapped), network.prefixlen - 96))
    return network


SPECIAL = [
    *("127.0.0.0/8", "0.0.0.0/8", "169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32", "224.0.0.0/4", "240.0.0.0/4"),
    *("::1/128", "::/128", "fe80::/10", "fd00:ec2::254/128", "fd20:ce::254/128", "ff00::/8", "::/96", "2001::/32", "64:ff9b:1::/48"),
    *("64:ff9b::7f00:0/104", "64:ff9b::/104", "64:ff9b::a9fe:0/112", "64:ff9b::6464:64c8/128", "64:ff9b::a83f:8110/128"),
    *("64:ff9b::c000:c0/128", "64:ff9b::e000:0/100", "64:ff9b::f000:0/100"),
    *("2002:7f00::/24", "2002::/24", "2002:a9fe::/32", "2002:6464:64c8::/48", "2002:a83f:8110::/48", "2002:c000:c0::/48"),
    *("2002:e000::/20", "2002:f000::/20"),
]  # fmt: skip


def special_around(
    address: Address,
) -> Network | None:
    return next((one for one in map(ipaddress.ip_network, SPECIAL) if address in one), None)


@pytest.mark.parametrize("network", SPECIAL)
def test_special_addresses(network: str) -> None:
    """Neither a name leads there, nor a network that only happens to be around."""
    within = ipaddress.ip_network(network)
    everything = ["0.0.0.0/0", "::/0", "*"]
    for address in (within.network_address, within.broadcast_address):
        name, literal = read_place("rebound.example:80"), read_place(at(str(address), 80))
        for place in (name, literal):
            answer = Rules.parse(everything).refuse_address(place, str(address))
            assert answer is not None and answer.rule not in ("name", "address", "port")
        around = Rules.parse([*everything, str(special_around(address))])
        assert around.refuse_address(literal, str(address)) is None
        assert around.refuse_address(name, str(address)) is None


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        ("127.0.0.1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("0.0.0.0", "this-host"),
        ("169.254.169.254", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("100.100.100.200", "metadata"),
        ("fd00:ec2::254", "metadata"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("::127.0.0.1", "embedded-ipv4"),
        ("192.0.2.7", ""),
        ("10.0.0.1", ""),
        ("2001:db8::7", ""),
        ("64:ff9b::c000:207", ""),
        ("not an address", "address"),
        ("", "address"),
    ],
)
def test_where_a_name_may_lead(address: str, rule: str) -> None:
    answer = Rules.parse(["*.example:80"]).refuse_address(read_place("db.example:80"), address)
    assert named(answer) == rule


def test_an_address_has_no_name() -> None:
    assert named(Rules.parse(["*"]).refuse(read_place("10.0.0.5:22"))) == "address"
    assert named(Rules.parse(["*"]).refuse(read_place("[2001:db8::7]:22"))) == "address"


@fewer
@given(
    hosts, st.lists(st.text("ab.*", min_size=1, max_size=6).filter(lambda text: text[0] != "."), min_size=1, max_size=3)
)
def test_names(host: str, patterns: list[str]) -> None:
    with contextlib.suppress(ValueError):
        place = read_place(f"{host}:22")
        if place.address is None:
            oracle = any(re.fullmatch(".*".join(map(re.escape, one.split("*"))), place.host) for one in patterns)
            rules = Rules.parse(patterns)
            for answer in (
                rules.refuse(place),
                rules.refuse_unresolved(place),
                rules.refuse_address(place, "192.0.2.7"),
            ):
                assert (answer is None) is oracle


def test_what_can_be_said_before_a_name_is_resolved() -> None:
    rules = Rules.parse(["10.0.0.0/8:22", "*.lab:443"])
    for text, before, unresolved in (
        ("x.lab:443", "", ""),
        ("x.lan:443", "name", "name"),
        ("x.lan:22", "", "name"),  # it may resolve to one of 10.0.0.0/8, and only who resolves it knows
        ("x.lab:80", "port", "port"),
        ("10.0.0.5:22", "", ""),
        ("10.0.0.5:443", "address", "address"),
        ("10.0.0.5:80", "port", "port"),
    ):
        place = read_place(text)
        assert (named(rules.refuse(place)), named(rules.refuse_unresolved(place))) == (before, unresolved), text


@fewer
@given(hosts | addresses.map(str), ports)
def test_without_rules_nothing_is_allowed(host: str, port: int) -> None:
    assert not NO_RULES
    with contextlib.suppress(ValueError):
        place = read_place(at(host, port))
        for answer in (
            NO_RULES.refuse(place),
            NO_RULES.refuse_unresolved(place),
            NO_RULES.refuse_address(place, "10.0.0.5"),
        ):
            assert named(answer) == "none"


@given(st.ip_addresses(v=4), st.integers(1, 65535), st.integers(0, 32), spans)
def test_what_is_denied_is_denied_in_every_form(
    address: ipaddress.IPv4Address, port: int, bits: int, ports: list[tuple[int, int]]
) -> None:
    network = ipaddress.ip_network((address, bits), strict=False)
    span = ",".join(f"{first}-{last}" for first, last in ports)
    rules = Rules.parse(["0.0.0.0/0", "::/0", "127.0.0.0/8", "*"], [f"{network}:{span}"])
    named_so = any(first <= port <= last for first, last in ports)
    nat64 = ipaddress.IPv6Address(0x0064_FF9B << 96 | int(address))
    six_to_four = ipaddress.IPv6Address(0x2002 << 112 | int(address) << 80)
    for form in (address, f"::ffff:{address}", nat64, six_to_four):
        place = read_place(at(str(form), port))
        assert (named(rules.refuse(place)) == DENIED) is named_so
        name = read_place(f"x.example:{port}")
        assert rules.refuse(name) is None
        assert (named(rules.refuse_address(name, str(form))) == DENIED) is named_so


def test_a_name_that_is_denied() -> None:
    rules = Rules.parse(["10.0.0.0/8", "*.lab"], ["secret.lab", "*.prod:443"])
    for text, rule in (
        ("secret.lab:22", DENIED),
        ("x.prod:443", DENIED),
        ("x.prod:80", ""),
        ("open.lab:22", ""),
        ("10.0.0.5:22", ""),
    ):
        place = read_place(text)
        assert named(rules.refuse(place)) == rule
        assert named(rules.refuse_address(place, "10.0.0.5")) == rule
    assert refused(DENIED) is Code.DIAL_FORBIDDEN
    assert refused("name") is Code.DIAL_DENIED


def test_the_sentences() -> None:
    rules = Rules.parse(["10.0.0.0/8:22,5432", "*.lab.example:443"])
    listed = "10.0.0.0/8:22,5432 or *.lab.example:443"

    def told(answer: Refusal | None) -> str:
        return "" if answer is None else answer.text

    assert told(rules.refuse(read_place("10.0.0.5:23"))) == f"10.0.0.5:23 is not in {listed}"
    db = read_place("db.lab.example:443")
    assert told(rules.refuse_address(read_place("db:22"), "192.0.2.7")) == f"db:22 (192.0.2.7) is not in {listed}"
    assert told(rules.refuse_address(db, "127.0.0.1")) == (
        "db.lab.example:443 is 127.0.0.1 (loopback), which is reached only by a rule for an address or network within 127.0.0.0/8"
    )
    assert told(Rules.parse(["0.0.0.0/0"]).refuse(read_place("169.254.169.254:80"))) == (
        "169.254.169.254:80 (link-local) is reached only by a rule for an address or network within 169.254.0.0/16"
    )
    denied = Rules.parse(["0.0.0.0/0"], ["10.0.0.0/8:22"])
    assert told(denied.refuse(read_place("10.0.0.5:22"))) == "10.0.0.5:22 is denied by 10.0.0.0/8:22"
    assert told(denied.refuse_address(read_place("db:22"), "10.0.0.5")) == "db:22 (10.0.0.5) is denied by 10.0.0.0/8:22"
    assert told(NO_RULES.refuse(db)) == "db.lab.example:443 is not allowed, and nothing else is"
