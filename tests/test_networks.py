"""fastrelay.networks: a list means what ipaddress says it means, and what is no list is refused by a sentence."""

from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastrelay.errors import UsageError
from fastrelay.networks import Networks, assign, read
from fastrelay.wire import MAX_NETWORKS

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@st.composite
def some_networks(draw: st.DrawFn) -> Network:
    address = draw(st.ip_addresses())
    bits = draw(st.integers(0, address.max_prefixlen))
    return ipaddress.ip_network(f"{address}/{bits}", strict=False)


# Few bits, so that an address is in a network as often as not.
near = st.builds(ipaddress.IPv4Address, st.integers(0, 15)) | st.builds(ipaddress.IPv6Address, st.integers(0, 15))
near_networks = st.builds(
    lambda address, bits: ipaddress.ip_network(f"{address}/{address.max_prefixlen - bits}", strict=False),
    near,
    st.integers(0, 4),
)


# --- membership --------------------------------------------------------------------------------------------------------


@given(st.lists(near_networks | some_networks(), min_size=1, max_size=MAX_NETWORKS), near | st.ip_addresses())
def test_membership_is_that_of_ipaddress(listed: list[Network], address: Address) -> None:
    made = read(map(str, listed))
    plain = (address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None) or address
    assert (str(address) in made) is any(plain in _plain(network) for network in listed)
    assert Networks(made.texts) == made, "what was read is canonical"


@example([ipaddress.ip_network("::ffff:0:0/96")], ipaddress.ip_address("192.0.2.1"))
@example([ipaddress.ip_network("::/0")], ipaddress.ip_address("::ffff:192.0.2.1"))
@given(st.lists(some_networks(), min_size=1, max_size=3), st.ip_addresses())
def test_the_forms_of_ipv4_are_one(listed: list[Network], address: Address) -> None:
    made = read(map(str, listed))
    assert Networks(made.texts) == made
    assert (str(address) in made) is (str(getattr(address, "ipv4_mapped", None) or address) in made)


def _plain(network: Network) -> Network:
    """What is in IPv6 form as IPv4."""
    if network.version == 6 and network.subnet_of(ipaddress.IPv6Network("::ffff:0:0/96")):
        return ipaddress.ip_network((int(network.network_address) & 0xFFFF_FFFF, network.prefixlen - 96))
    return network


@settings(max_examples=settings().max_examples // 3)
@given(st.lists(some_networks(), min_size=1, max_size=5), st.ip_addresses(v=4))
def test_an_ipv4_visitor_is_the_same_in_ipv6_form(listed: list[Network], address: ipaddress.IPv4Address) -> None:
    made = read(map(str, listed))
    assert (f"::ffff:{address}" in made) is (str(address) in made)


@settings(max_examples=settings().max_examples // 3)
@given(some_networks().filter(lambda network: network.version == 4))
def test_a_network_is_the_same_in_ipv6_form(network: Network) -> None:
    assert read([f"::ffff:{network.network_address}/{network.prefixlen + 96}"]) == read([str(network)])


def test_both_families_are_kept_apart() -> None:
    assert "192.0.2.1" not in read(["::/0"]) and "::ffff:192.0.2.1" not in read(["::/0"])
    assert "2001:db8::1" not in read(["0.0.0.0/0"])
    assert "fe80::1%eth0" in read(["fe80::/10"])


@pytest.mark.parametrize("address", ["", "unix", "10.0.0", "10.0.0.1:80", "[::1]", " 10.0.0.1", "%", None, 5, ()])
def test_what_is_not_an_address_is_in_no_list(address: object) -> None:
    assert address not in read(["0.0.0.0/0", "::/0"])


# --- what is typed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("192.0.2.0/24", "192.0.2.0/24"),
        (" 192.0.2.7 ", "192.0.2.7/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("10.0.0.0/08", "10.0.0.0/8"),
        ("2001:DB8:0::/32", "2001:db8::/32"),
        ("::1", "::1/128"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
    ],
)
def test_read(text: str, canonical: str) -> None:
    assert read([text, text]).texts == (canonical,)
    if text != canonical:
        with pytest.raises(ValueError, match=r"canonical|not a network"):
            Networks((text,))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a network is missing"),
        ("10.0.0.1/8", "'10.0.0.1/8' is one address of a larger network; write 10.0.0.1 for that one alone, or 10.0.0.0/8 for all"),
        ("2001:db8::1/32", "write 2001:db8::1 for that one alone, or 2001:db8::/32 for all"),
        ("::ffff:10.0.0.1/104", "or 10.0.0.0/8 for all"),
        ("10.0.0.0/33", "is not a network or address"),
        ("10.0.0.0/-1", "is not a network or address"),
        ("10.0.0.0/", "is not a network or address"),
        ("10.0.0/8", "is not a network or address"),
        ("10.0.0.0/8/8", "is not a network or address"),
        ("home.example.com", "is not a network or address"),
        ("10.0.0.0/255.0.0.0", "ADDRESS/BITS"),
        ("fe80::1%eth0", "ADDRESS/BITS"),
        ("fe80::1%\n/10", r"'fe80::1%\n/10' is not a network or address"),
        ("١٠.0.0.0/8", "is not a network or address"),
    ],
)  # fmt: skip
def test_read_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        read([text])
    assert why in str(caught.value)


def test_the_size_of_a_list() -> None:
    many = [f"10.0.{number}.0/24" for number in range(MAX_NETWORKS + 1)]
    assert len(read(many[:-1])) == MAX_NETWORKS
    for texts in ((), tuple(many)):
        with pytest.raises(ValueError, match=r"empty|65 networks are more than 64"):
            Networks(texts)


@given(st.lists(st.text("0123456789abf:./%= ,", max_size=20) | st.text(max_size=20), max_size=4))
def test_any_text_is_a_list_or_a_value_error(texts: list[str]) -> None:
    for make in (read, lambda texts: Networks(tuple(texts))):
        with contextlib.suppress(ValueError):
            assert str(make(texts)).isprintable()


# --- [NAME=]CIDR[,CIDR...] ---------------------------------------------------------------------------------------------


def test_assign() -> None:
    specs = ["192.0.2.0/24", "ssh=10.0.0.0/8, 10.0.0.0/8", "ssh=::1"]
    assert assign(specs, ["ssh", "web", "db"]) == {
        "ssh": read(["10.0.0.0/8", "::1/128"]),
        "web": read(["192.0.2.0/24"]),
        "db": read(["192.0.2.0/24"]),
    }
    assert assign(["ssh=192.0.2.7"], ["ssh", "web"]) == {"ssh": read(["192.0.2.7"])}
    assert assign([], ["ssh"]) == {}


@pytest.mark.parametrize(
    ("specs", "told"),
    [
        (["shs=10.0.0.0/8"], "'shs', which is not exposed: use one of ssh, web"),
        (["=10.0.0.0/8"], "'', which is not exposed"),
        (["ssh="], "a network is missing"),
        ([""], "a network is missing"),
        (["10.0.0.0/8,"], "a network is missing; write it like 192.0.2.0/24"),
        (["ssh=10.0.0.1/8"], "or 10.0.0.0/8 for all of them."),
        ([f"ssh=10.0.{n}.0/24" for n in range(65)], "65 networks are more than 64"),
    ],
)
def test_assign_refused(specs: list[str], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        assign(specs, ["ssh", "web"])
    assert told in str(caught.value) and repr(specs[-1]) in str(caught.value)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@given(st.text("sh=10./:, ", max_size=30) | st.text(max_size=30))
def test_any_spec_is_understood_or_a_usage_error(spec: str) -> None:
    with contextlib.suppress(UsageError):
        assert set(assign([spec], ["ssh", "web"])) <= {"ssh", "web"}
