"""fastrelay.config: what a person types is understood, or refused by one sentence; and nothing but UsageError ever comes out."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay.config import (
    NAME,
    ClientConfig,
    Exposure,
    PortRange,
    Relay,
    ServerConfig,
    Target,
    assign_pools,
    assign_proxy,
    host_name,
    is_loopback,
    join_host,
    parse_bind,
    parse_expose,
    parse_host,
    parse_ports,
    parse_relay,
)
from fastrelay.errors import UsageError

ports = st.integers(1, 65535)
labels = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,20}[a-z_])?", fullmatch=True)
names_of_hosts = st.lists(labels, min_size=1, max_size=4).map(".".join).filter(lambda host: not host[-1].isdigit())
hosts = names_of_hosts | st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str)
names = st.from_regex(NAME, fullmatch=True)
paths = st.from_regex(r"/([!-.0-~][!-~]{0,60})?[!-.0-~]", fullmatch=True)
targets = st.builds(Target, hosts, ports) | paths.map(lambda path: Target("", 0, path))
exposures = st.builds(Exposure, names, st.just(0) | ports, targets)
# Text that comes near to what is legal finds more than text that does not.
near = st.text("a0129:.[]/=-_%@ tcplsunix", max_size=40)
anything = st.text() | near


def refused(parse: Callable[[], object], *says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse()
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text
    for word in says:
        assert word in text


# --- relays ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "relay", "url"),
    [
        ("relay.example.com", Relay("relay.example.com", 7443, True), "tls://relay.example.com:7443"),
        ("Relay.Example.COM:9000", Relay("relay.example.com", 9000, True), "tls://relay.example.com:9000"),
        ("tls://relay:1", Relay("relay", 1, True), "tls://relay:1"),
        (" TLS://10.1.2.3 ", Relay("10.1.2.3", 7443, True), "tls://10.1.2.3:7443"),
        ("[2001:DB8:0::7]", Relay("2001:db8::7", 7443, True), "tls://[2001:db8::7]:7443"),
        ("tls://[2001:db8::7]:65535", Relay("2001:db8::7", 65535, True), "tls://[2001:db8::7]:65535"),
        ("[fe80::1%eth0]:7443", Relay("fe80::1%eth0", 7443, True), "tls://[fe80::1%eth0]:7443"),
        ("tcp://localhost", Relay("localhost", 7443, False), "tcp://localhost:7443"),
        ("tcp://127.9.9.9:80", Relay("127.9.9.9", 80, False), "tcp://127.9.9.9:80"),
        ("tcp://[::1]:80", Relay("::1", 80, False), "tcp://[::1]:80"),
        ("wss://relay", Relay("relay", 443, True, "/fastrelay"), "wss://relay:443"),
        ("WSS://Relay:7443/fastrelay", Relay("relay", 7443, True, "/fastrelay"), "wss://relay:7443"),
        ("wss://relay/", Relay("relay", 443, True, "/"), "wss://relay:443/"),
        ("wss://[2001:db8::7]:1/a/b", Relay("2001:db8::7", 1, True, "/a/b"), "wss://[2001:db8::7]:1/a/b"),
        ("ws://localhost", Relay("localhost", 80, False, "/fastrelay"), "ws://localhost:80"),
    ],
)
def test_relay(text: str, relay: Relay, url: str) -> None:
    assert parse_relay(text) == relay
    assert relay.url == url


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "host is missing"),
        ("tls://", "host is missing"),
        (":7443", "host is missing"),
        ("relay:", "port is missing"),
        ("relay:0", "'0' is not a port"),
        ("relay:65536", "'65536' is not a port"),
        ("relay:+22", "is not a port"),
        ("relay:٣", "is not a port"),
        ("relay:7443/", "is not a port"),
        ("7443", "'7443' is not a host"),
        ("1.2.3", "'1.2.3' is not a host"),
        ("256.1.1.1", "is not a host"),
        ("user@relay", "is not a host name"),
        ("re lay", "is not a host name"),
        ("-relay", "is not a host name"),
        ("relay..example", "is not a host name"),
        ("relay.example.", "is not a host name"),
        ("a" * 64, "is not a host name"),
        (".".join(["a" * 50] * 6), "is not a host name"),
        ("bücher.example", "is not a host name"),
        ("::1", "needs brackets"),
        ("2001:db8::7:7443", "needs brackets"),
        ("2001:db8:1:2:3:4:5:6", "needs brackets"),
        ("2001:db8:1:2:3:4:5:6:7443", "needs brackets"),
        ("a:b:c", "too many parts"),
        ("[::1", "brackets must enclose"),
        ("[::1]x", "brackets must enclose"),
        ("[relay]:7443", "not an IPv6 address"),
        ("[1::2::3]", "not an IPv6 address"),
        ("[fe80::1%]", "not an IPv6 address"),
        ("[fe80::1%a b]", "not an IPv6 address"),
        ("wss://", "host is missing"),
        ("wss:///path", "host is missing"),
        ("wss://relay:/path", "port is missing"),
        ("http://relay", "'http' is not known"),
        ("://relay", "'' is not known"),
    ],
)
def test_relay_refused(text: str, why: str) -> None:
    refused(lambda: parse_relay(text), repr(text), why, "relay.example.com:7443")


@pytest.mark.parametrize(
    "host", ["relay.example.com", "10.0.0.1", "0.0.0.0", "[::]", "[2001:db8::7]", "localhost.example"]
)
def test_plaintext_only_on_this_machine(host: str) -> None:
    refused(lambda: parse_relay(f"tcp://{host}:9"), "plaintext", f"tls://{host}:9", "tcp://127.0.0.1:9")


def test_a_token_in_the_relays_place_is_not_quoted() -> None:
    secret = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    with pytest.raises(UsageError) as caught:
        parse_relay(f"fr1.k3yID_-0.{secret}")
    assert secret not in str(caught.value) and "--token" in str(caught.value)


@pytest.mark.parametrize("path", ["/a?b", "/a#b", "/a b", "/ä", "//" + "a" * 300])
def test_a_path_that_is_none(path: str) -> None:
    refused(lambda: parse_relay(f"wss://relay{path}"), repr(path), "/fastrelay")


def test_a_password_in_the_relays_place_is_not_quoted() -> None:
    refused(lambda: parse_relay("wss://user:secret@relay/path"), "takes none")
    with pytest.raises(UsageError) as caught:
        parse_relay("wss://user:secret@relay/path")
    assert "secret" not in str(caught.value)


def test_a_websocket_in_plaintext_is_for_this_machine() -> None:
    refused(lambda: parse_relay("ws://relay:80/x"), "'ws://relay:80/x'", "use wss://relay:80", "ws://127.0.0.1:80")


def test_a_relay_that_exists_is_valid() -> None:
    refused(lambda: Relay("", 7443, True), "host")
    refused(lambda: Relay("[::1]", 7443, True), "'[::1]'")
    refused(lambda: Relay("relay", 0, True), "port")


@given(hosts, ports)
def test_relay_round_trip(host: str, port: int) -> None:
    relay = Relay(host, port, True)
    assert parse_relay(relay.url) == relay
    assert parse_relay(join_host(host, port)) == relay


# --- exposures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "name", "port", "target"),
    [
        ("22", "tcp-22", 0, "localhost:22"),
        ("8000", "tcp-8000", 0, "localhost:8000"),
        (" 22 ", "tcp-22", 0, "localhost:22"),
        ("20022:22", "tcp-22", 20022, "localhost:22"),
        ("localhost:22", "tcp-22", 0, "localhost:22"),
        ("NAS:22", "tcp-22", 0, "nas:22"),
        ("192.168.1.7:554", "tcp-554", 0, "192.168.1.7:554"),
        ("20554:192.168.1.7:554", "tcp-554", 20554, "192.168.1.7:554"),
        ("[::1]:22", "tcp-22", 0, "[::1]:22"),
        ("20022:[::1]:22", "tcp-22", 20022, "[::1]:22"),
        ("web=8000", "web", 0, "localhost:8000"),
        ("ssh=20022:22", "ssh", 20022, "localhost:22"),
        ("22=22", "22", 0, "localhost:22"),
        ("cam=20554:192.168.1.7:554", "cam", 20554, "192.168.1.7:554"),
        ("tcp://22", "tcp-22", 0, "localhost:22"),
        ("TCP://20022:22", "tcp-22", 20022, "localhost:22"),
        ("a=tcp://20022:[::1]:22", "a", 20022, "[::1]:22"),
        ("unix:/run/x.sock", "unix-x.sock", 0, "unix:/run/x.sock"),
        ("20022:unix:/run/x.sock", "unix-x.sock", 20022, "unix:/run/x.sock"),
        ("web=unix:/run/x.sock", "web", 0, "unix:/run/x.sock"),
        ("web=tcp://20080:unix:/run/x", "web", 20080, "unix:/run/x"),
        ("unix:/run/My Web=1.sock", "unix-my-web-1.sock", 0, "unix:/run/My Web=1.sock"),
        ("unix:/run/...", "unix-socket", 0, "unix:/run/..."),
        ("unix:/" + "x" * 106, "unix-" + "x" * 58, 0, "unix:/" + "x" * 106),
        ("unixhost:22", "tcp-22", 0, "unixhost:22"),
    ],
)
def test_expose(spec: str, name: str, port: int, target: str) -> None:
    exposure = parse_expose(spec)
    assert (exposure.name, exposure.port, str(exposure.target)) == (name, port, target)


@pytest.mark.parametrize(
    ("spec", "name", "target"),
    [
        ("db=private://5432", "db", "localhost:5432"),
        ("private://5432", "tcp-5432", "localhost:5432"),
        ("db=PRIVATE://10.0.0.5:5432", "db", "10.0.0.5:5432"),
        ("db=private://[::1]:5432", "db", "[::1]:5432"),
        ("db=private://unix:/run/db", "db", "unix:/run/db"),
    ],
)
def test_expose_in_private(spec: str, name: str, target: str) -> None:
    exposure = parse_expose(spec)
    assert (exposure.name, exposure.kind, exposure.port, str(exposure.target)) == (name, "private", 0, target)
    assert parse_expose(str(exposure)) == exposure


def test_target_of_a_unix_socket() -> None:
    assert parse_expose("unix:/run/x.sock").target == Target("", 0, "/run/x.sock")
    assert parse_expose("22").target == Target("localhost", 22)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("", "port of the local service is missing"),
        ("web=", "port of the local service is missing"),
        ("20022:", "port of the local service is missing"),
        ("tcp://", "port of the local service is missing"),
        ("0", "'0' is not a port from 1 to 65535"),
        ("70000", "'70000' is not a port"),
        ("123456789", "is not a port"),
        ("0:22", "'0' is not a port"),
        ("70000:22", "'70000' is not a port"),
        ("20022:0", "'0' is not a port"),
        ("host:0", "'0' is not a port"),
        ("host:", "port is missing"),
        ("host:ssh", "'ssh' is not a port"),
        ("-22", "is not a host name"),
        ("٢٢", "is not a host name"),
        ("host", "port of the local service behind 'host' is missing"),
        ("[::1]", "behind '[::1]' is missing"),
        (":22", "host is missing"),
        ("20022::22", "host is missing"),
        ("a:b:c:d", "too many parts"),
        ("1:2:3:4", "too many parts"),
        ("20022:2222:22", "'2222' is not a host"),
        ("::1:22", "needs brackets"),
        ("20022:fe80::1:22", "needs brackets"),
        ("[::1]22", "brackets must enclose"),
        ("[localhost]:22", "not an IPv6 address"),
        ("a b:22", "is not a host name"),
        ("=22", "'' is not a name"),
        ("Web=22", "'Web' is not a name"),
        (".web=22", "'.web' is not a name"),
        ("w" * 64 + "=22", "is not a name"),
        ("a=b=22", "is not a host name"),
        ("db=private://20022:5432", "no public port, and 20022 would be one"),
        ("private://", "port of the local service is missing"),
        ("unix:///run/x.sock", "as in unix:/run/x.sock"),
        ("web=unix://run/x.sock", "as in unix:/run/x.sock"),
        ("20022:unix://run/x.sock", "whole path"),
        ("udp://53", "'udp' is not known, only tcp, private and http are"),
        ("unix:", "whole path"),
        ("unix:x.sock", "whole path"),
        ("unix:/run/", "whole path"),
        ("unix:/" + "x" * 107, "at most 107 bytes"),
        ("unix:/" + "é" * 54, "at most 107 bytes"),
        ("unix:/a\0b", "printable"),
        ("unix:/\udcff", "printable"),
    ],
)
def test_expose_refused(spec: str, why: str) -> None:
    refused(lambda: parse_expose(spec), repr(spec), why, "20022:22")


def test_an_exposure_that_exists_is_valid() -> None:
    refused(lambda: Exposure("A", 0, Target("localhost", 22)), "'A' is not a name")
    refused(lambda: Exposure("a", -1, Target("localhost", 22)), "-1 is not a port")
    refused(lambda: Target("localhost", 0), "0 is not a port")
    refused(lambda: Target("no host", 22), "'no host'")
    refused(lambda: Target("", 0, "x.sock"), "whole path")
    refused(lambda: Target("localhost", 22, "/run/x.sock"), "either")


@given(exposures)
def test_expose_round_trip(exposure: Exposure) -> None:
    assert parse_expose(str(exposure)) == exposure


@given(st.just(0) | ports, targets)
def test_a_service_without_name_gets_a_legal_one(port: int, target: Target) -> None:
    exposure = parse_expose(f"{port}:{target}" if port else str(target))
    assert NAME.fullmatch(exposure.name)
    assert (exposure.port, exposure.target) == (port, target)


# --- addresses and ports to listen on ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("[::]:7443", "::", 7443),
        (":7443", "::", 7443),
        (":0", "::", 0),
        ("[::]", "::", 99),
        ("[::1]:1", "::1", 1),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("127.0.0.1", "127.0.0.1", 99),
        ("LocalHost:5", "localhost", 5),
    ],
)
def test_bind(text: str, host: str, port: int) -> None:
    assert parse_bind(text, 99) == (host, port)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "host is missing"),
        (":", "port is missing"),
        (":x", "'x' is not a port from 0 to 65535"),
        ("127.0.0.1:65536", "is not a port"),
        ("7443", "'7443' is not a host"),
        ("::", "needs brackets"),
        ("::1", "needs brackets"),
        (":::7443", "needs brackets"),
        ("*:7443", "is not a host name"),
        ("tls://[::]:7443", "too many parts"),
    ],
)
def test_bind_refused(text: str, why: str) -> None:
    refused(lambda: parse_bind(text, 7443), repr(text), why, "[::]:7443")


@given(hosts, st.integers(0, 65535))
def test_bind_round_trip(host: str, port: int) -> None:
    assert parse_bind(join_host(host, port), 1) == (host, port)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [("20000-20999", 20000, 20999), ("1-65535", 1, 65535), ("80", 80, 80), (" 5 - 6 ", 5, 6)],
)
def test_ports(text: str, first: int, last: int) -> None:
    assert parse_ports(text) == PortRange(first, last)


@pytest.mark.parametrize("text", ["", "-", "5-", "-5", "a-b", "0-5", "1-65536", "1-2-3", "1,2", "-5-6"])
def test_ports_refused(text: str) -> None:
    refused(lambda: parse_ports(text), repr(text), "20000-20999")


def test_ports_backwards() -> None:
    refused(lambda: parse_ports("6-5"), "6-5", "5-6")
    refused(lambda: PortRange(0, 5), "0 is not a port")


@given(ports, ports, st.integers())
def test_a_range_of_ports_is_a_range(a: int, b: int, port: int) -> None:
    wanted = range(min(a, b), max(a, b) + 1)
    got = PortRange(wanted[0], wanted[-1])
    assert (port in got) is (port in wanted)
    assert a in got and b in got and "80" not in got
    assert len(got) == len(wanted) and next(iter(got)) == wanted[0]
    assert parse_ports(str(got)) == got


# --- hosts and names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("127.255.255.255", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("::", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("128.0.0.1", False),
        ("127.1", False),
        ("localhost.localdomain", False),
        ("my-laptop", False),
        ("", False),
    ],
)
def test_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@given(st.ip_addresses(v=4))
def test_loopback_is_the_same_when_mapped(address: ipaddress.IPv4Address) -> None:
    assert is_loopback(f"::ffff:{address}") is is_loopback(str(address)) is address.is_loopback


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("nas", "nas"),
        ("My-Laptop.local", "my-laptop.local"),
        ("Anna's MacBook", "anna-s-macbook"),
        ("-._x", "x"),
        ("x--", "x"),
        ("größe", "gr--e"),
        ("", "client"),
        ("...", "client"),
        ("日本", "client"),
        ("a" * 70, "a" * 63),
    ],
)
def test_host_name(raw: str, name: str) -> None:
    assert host_name(raw) == name


@given(st.text())
def test_host_name_is_always_legal(raw: str) -> None:
    name = host_name(raw)
    assert NAME.fullmatch(name)
    assert host_name(name) == name


@pytest.mark.parametrize(
    ("text", "host"), [("Relay.Example", "relay.example"), ("[::1]", "::1"), ("::1", "::1"), (" 10.0.0.1 ", "10.0.0.1")]
)
def test_parse_host(text: str, host: str) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize("text", ["", "[]", "relay:7443", "tls://relay", "a b"])
def test_parse_host_refused(text: str) -> None:
    refused(lambda: parse_host(text), "relay.example.com")


# --- any text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parse", [parse_relay, parse_expose, parse_ports, parse_host, lambda text: parse_bind(text, 7443)]
)
@given(text=anything)
def test_any_text_is_understood_or_a_usage_error(parse: Callable[[str], object], text: str) -> None:
    with contextlib.suppress(UsageError):
        parse(text)


@given(near)
def test_what_is_understood_is_understood_the_same_again(text: str) -> None:
    try:
        exposure = parse_expose(text)
    except UsageError:
        return
    assert parse_expose(str(exposure)) == exposure


# --- the two configurations --------------------------------------------------------------------------------------------


def server(
    *,
    bind_host: str = "::",
    bind_port: int = 7443,
    advertise: str = "",
    cert: str | None = None,
    key: str | None = None,
    plaintext: bool = False,
    behind_proxy: bool = False,
    websocket_path: str = "/fastrelay",
) -> ServerConfig:
    return ServerConfig(
        bind_host=bind_host,
        bind_port=bind_port,
        ports=PortRange(20000, 20999),
        advertise=advertise,
        state=Path("state"),
        cert=Path(cert) if cert else None,
        key=Path(key) if key else None,
        plaintext=plaintext,
        behind_proxy=behind_proxy,
        websocket_path=websocket_path,
    )


def client(
    *specs: str,
    name: str = "home",
    relay: str = "relay",
    behind_proxy: bool = False,
    cert: str | None = None,
    pins: tuple[bytes, ...] = (),
) -> ClientConfig:
    return ClientConfig(
        relay=parse_relay(relay),
        token="fr1.k3yID_-0.secret",
        exposures=tuple(parse_expose(spec) for spec in specs),
        name=name,
        state=Path("state"),
        client_cert=Path(cert) if cert else None,
        client_key=Path(cert) if cert else None,
        pins=pins,
        behind_proxy=behind_proxy,
    )


def test_a_proxy_that_ends_tls() -> None:
    assert server(behind_proxy=True).scheme == "ws"
    assert server(behind_proxy=True).front == "wss://HOST --behind-proxy"
    assert server(behind_proxy=True, advertise="r.example").front == "wss://r.example --behind-proxy"
    third = server(behind_proxy=True, advertise="2001:db8::7", websocket_path="/t")
    assert third.front == "wss://[2001:db8::7]/t --behind-proxy"
    assert parse_relay(third.front.split()[0]) == Relay("2001:db8::7", 443, True, "/t")
    refused(lambda: server(behind_proxy=True, bind_host="127.0.0.1", plaintext=True), "--plaintext or --behind-proxy")
    refused(lambda: server(behind_proxy=True, cert="c", key="k"), "leave out --cert")
    refused(lambda: server(websocket_path="t"), "'t'", "/fastrelay")
    assert replace(server(behind_proxy=True, bind_host="::1"), http=("::1", 7443)).one_port
    for other in (("::1", 7444), ("127.0.0.1", 7443), None):
        assert not replace(server(behind_proxy=True, bind_host="::1"), http=other).one_port
    assert not replace(server(bind_host="::1"), http=("::1", 7443)).one_port
    web: dict[str, Any] = {"https": ("::", 7443), "http_cert": Path("c"), "http_key": Path("k")}
    assert replace(server(), **web, domain="home.example").one_port
    refused(lambda: replace(server(), **web), "--domain")
    refused(lambda: replace(server(behind_proxy=True), **web), "leave out --https, or --behind-proxy")
    assert not replace(server(behind_proxy=True, bind_port=0), http=("::", 0)).one_port
    assert client("22", relay="wss://r.example", behind_proxy=True).behind_proxy
    for relay in ("r.example", "ws://127.0.0.1", "tcp://127.0.0.1"):
        refused(partial(client, "22", relay=relay, behind_proxy=True), "wss://", "leave out --behind-proxy")
    for relay, proxied in (("ws://127.0.0.1", False), ("wss://r.example", True)):
        refused(partial(client, "22", relay=relay, cert="c", behind_proxy=proxied), "--client-cert")
        refused(partial(client, "22", relay=relay, pins=(bytes(32),), behind_proxy=proxied), "--pin")


def test_server_config() -> None:
    assert server().ports == PortRange(20000, 20999)
    assert server(cert="c", key="k").cert == Path("c")
    assert server(bind_host="127.0.0.1", plaintext=True).plaintext
    assert server(advertise="relay.example.com", bind_port=0).advertise == "relay.example.com"


def test_server_config_refused() -> None:
    refused(lambda: server(cert="c"), "--key is missing")
    refused(lambda: server(key="k"), "--cert is missing")
    refused(lambda: server(plaintext=True), "--plaintext", "'::'", "127.0.0.1:7443")
    refused(lambda: server(bind_host=""), "host")
    refused(lambda: server(bind_port=-1), "-1 is not a port")
    refused(lambda: server(advertise="relay:80"), "'relay:80'")


def test_client_config() -> None:
    config = client("22", "ssh=20022:22", "web=20080:80", "8080")
    assert [exposure.name for exposure in config.exposures] == ["tcp-22", "ssh", "web", "tcp-8080"]
    assert "secret" not in repr(config)


def test_client_config_refused() -> None:
    refused(lambda: client("22", name="My Host"), "'My Host'", "client name")
    refused(lambda: client("22", "nas:22"), "'tcp-22'", "tcp-22-2=nas:22")
    refused(lambda: client("22", "22"), "'tcp-22'")
    refused(lambda: client("a=20000:1", "b=20000:2"), "'a' and 'b'", "20000")
    refused(lambda: client(*map(str, range(1, 66))), "65 services", "64")
    assert len(client(*map(str, range(1, 65))).exposures) == 64
    long = "x" * 63
    refused(lambda: client(f"{long}=1", f"{long}=2"), f" {'x' * 61}-2=localhost:2")


# --- what an option says of services -----------------------------------------------------------------------------------


@given(st.lists(near, max_size=4), st.lists(names, max_size=3, unique=True))
def test_any_option_of_services_is_understood_or_refused(specs: list[str], services: list[str]) -> None:
    for assign in (assign_proxy, assign_pools):
        with contextlib.suppress(UsageError):
            assert set(assign(specs, services)) <= set(services)


def test_the_version_of_the_proxy_protocol() -> None:
    assert assign_proxy([], ["ssh", "web"]) == {"ssh": 0, "web": 0}
    assert assign_proxy(["v2", "web=v1"], ["ssh", "web"]) == {"ssh": 2, "web": 1}
    assert assign_proxy(["web=v1", " web=off"], ["ssh", "web"]) == {"ssh": 0, "web": 0}
    refused(lambda: assign_proxy(["V2"], ["ssh"]), "write v1 or v2, or for one service web=v2")
    refused(lambda: assign_proxy(["web=v2"], ["ssh"]), "'web', which is not exposed: use one of ssh")
    refused(lambda: Exposure("web", 0, Target("localhost", 22), proxy=3), "version 3")


def test_pools() -> None:
    assert assign_pools(["ssh, web", "web"], ["ssh", "web", "db"]) == {"ssh", "web"}
    refused(lambda: assign_pools([""], ["ssh"]), "''")
