"""Who has which name and which ports: decisions, with time as a number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay.config import PortRange
from fastrelay.errors import Code, ProtocolError
from fastrelay.policy import Allowed, Ports
from fastrelay.roles import registry as registry_module
from fastrelay.roles.registry import Registry, pool_owner
from fastrelay.state import Reservation
from fastrelay.wire import MAX_SERVICES, RESERVED_TIME

PORTS = PortRange(20_000, 20_004)
ALL = Allowed("first", Ports((), relay=True), PORTS, 7443)
DAY = float(RESERVED_TIME)


def registry(**reservations: Reservation) -> Registry:
    return Registry(reservations)


def claim(reg: Registry, name: str, instance: str = "", now: float = 0.0) -> object:
    session = object()
    reg.claim(name, instance or name, session, now)
    return session


def offered(
    reg: Registry, name: str, service: str, wanted: int = 0, now: float = 0.0, allowed: Allowed = ALL
) -> list[int] | str:
    """The ports, or the error."""
    offer = reg.offer(name, service, wanted, allowed, now)
    ports = list(offer.ports)
    assert bool(ports) is not bool(offer.error) and bool(offer.error) is bool(offer.text)
    assert bool(offer.rule) is (offer.error == "not-granted")
    return ports or offer.error


def grant(reg: Registry, name: str, service: str, wanted: int = 0, now: float = 0.0) -> int:
    ports = offered(reg, name, service, wanted, now)
    assert isinstance(ports, list), ports
    reg.grant(name, service, ports[0])
    return ports[0]


def test_the_same_installation_takes_over_and_another_is_refused() -> None:
    reg = registry()
    first = claim(reg, "home")
    second = object()
    assert reg.claim("home", "home", second, 1.0) is first
    with pytest.raises(ProtocolError, match="is used by another") as refused:
        reg.claim("home", "other", object(), 2.0)
    assert refused.value.code is Code.NAME_TAKEN
    reg.release("home", first, 3.0)  # the old one ends late: the new one keeps the name
    with pytest.raises(ProtocolError, match="is used"):
        reg.claim("home", "other", object(), 4.0)
    reg.release("home", second, 5.0)
    with pytest.raises(ProtocolError, match="is reserved"):
        reg.claim("home", "other", object(), 5.0 + DAY)
    assert reg.claim("home", "other", object(), 5.0 + DAY + 1) is None


def test_ports_stay_reserved_for_a_day_after_the_last_sight() -> None:
    reg = registry()
    session = claim(reg, "home")
    assert grant(reg, "home", "ssh") == 20_000
    claim(reg, "away")
    # Whoever is here stays here, however long.
    assert offered(reg, "away", "web", 20_000, 3 * DAY) == "port-taken"
    reg.release("home", session, 3 * DAY)
    assert offered(reg, "away", "web", 20_000, 4 * DAY) == "port-reserved"
    assert offered(reg, "away", "web", 20_000, 4 * DAY + 1) == [20_000]


def test_the_order_is_wanted_then_had_then_the_next_free() -> None:
    reg = registry()
    claim(reg, "a")
    claim(reg, "b")
    assert grant(reg, "a", "ssh") == 20_000
    assert offered(reg, "b", "ssh", 0, 0) == [20_001, 20_002, 20_003, 20_004]
    assert grant(reg, "b", "ssh", 20_003) == 20_003
    assert offered(reg, "b", "ssh", 0, 0) == [20_003, 20_001, 20_002, 20_004]
    assert offered(reg, "b", "ssh", 20_002, 0) == [20_002]
    assert offered(reg, "b", "ssh", 20_000, 0) == "port-taken"
    assert offered(reg, "b", "ssh", 30_000, 0) == "not-granted"


def test_another_port_gives_the_old_one_back() -> None:
    reg = registry()
    claim(reg, "a")
    grant(reg, "a", "ssh", 20_001)
    grant(reg, "a", "ssh", 20_002)
    claim(reg, "b")
    assert grant(reg, "b", "web", 20_001) == 20_001
    assert reg.reservations(0)["a"].ports == {"ssh": 20_002}


def test_ones_own_port_moves_to_a_service_of_another_name() -> None:
    reg = registry()
    claim(reg, "a")
    grant(reg, "a", "tcp-22", 20_001)
    assert grant(reg, "a", "tcp-8022", 20_001) == 20_001
    assert reg.reservations(0)["a"].ports == {"tcp-8022": 20_001}
    assert grant(reg, "a", "tcp-22") == 20_000


def test_no_port_is_left() -> None:
    reg = registry()
    claim(reg, "a")
    for service in "12345":
        grant(reg, "a", service)
    assert offered(reg, "a", "6", 0, 0) == "no-port"
    assert offered(reg, "a", "5", 0, 0) == [20_004]


def test_what_the_token_does_not_give() -> None:
    reg = registry()
    claim(reg, "a")
    claim(reg, "b")
    two = Allowed("narrow", Ports((PortRange(20_001, 20_002),)), PORTS, 7443)
    none = Allowed("none", Ports(), PORTS, 7443)
    assert offered(reg, "a", "ssh", 20_003, allowed=two) == "not-granted"
    assert offered(reg, "a", "ssh", 0, allowed=two) == [20_001, 20_002]
    assert offered(reg, "a", "ssh", 0, allowed=none) == "not-granted"
    # Had, but no longer given: another one, and the old one is everybody's again.
    grant(reg, "a", "ssh", 20_000)
    assert offered(reg, "a", "ssh", 0, allowed=two) == [20_001, 20_002]
    reg.grant("a", "ssh", 20_001)
    assert offered(reg, "b", "web", 20_000) == [20_000]
    # What is reserved counts for every token alike.
    assert offered(reg, "b", "web", 20_001, allowed=two) == "port-taken"
    assert offered(reg, "b", "web", 0, allowed=two) == [20_002]
    reg.grant("b", "web", 20_002)
    assert offered(reg, "b", "more", 0, allowed=two) == "no-port"


def test_a_name_keeps_its_last_ports_only() -> None:
    """Or a client could have all ports of the relay kept for it, by services that come and go."""
    reg = registry()
    many = Allowed("first", Ports((PortRange(30_000, 30_199),)), PORTS, 7443)
    claim(reg, "a")
    for number in range(3 * MAX_SERVICES):
        ports = offered(reg, "a", f"s{number}", allowed=many)
        assert isinstance(ports, list)
        reg.grant("a", f"s{number}", ports[0])
    kept = reg.reservations(0)["a"].ports
    assert list(kept) == [f"s{number}" for number in range(2 * MAX_SERVICES, 3 * MAX_SERVICES)]
    assert set(reg._owner) == set(kept.values())


def test_names_without_a_port_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a token for every name could fill the memory, and the disk at each change."""
    most = 20
    monkeypatch.setattr(registry_module, "_MOST_IDLE", most)
    reg = registry()
    session = claim(reg, "serves")
    grant(reg, "serves", "ssh")
    reg.release("serves", session, 0.0)
    stays = claim(reg, "stays")
    for number in range(2 * most):
        session = claim(reg, f"n{number}", now=float(number))
        reg.release(f"n{number}", session, float(number))
    kept = reg.reservations(0)
    assert len(kept) == most + 2 and {"serves", "stays", f"n{most}"} <= kept.keys()
    with pytest.raises(ProtocolError):
        reg.claim(f"n{most}", "other", object(), 5.0)
    assert claim(reg, f"n{most}", now=5.0), "its own installation comes back"
    session = claim(reg, "one-more", now=6.0)
    reg.release("one-more", session, 6.0)
    assert f"n{most}" in reg.reservations(6.0), "whoever is here is not among them"
    again = Registry({**reg.reservations(7.0), "late": Reservation("late", 1e9, {})})
    assert len(again.reservations(7.0)) == most + 1 and "late" in again.reservations(7.0)
    assert "serves" in again.reservations(7.0)
    reg.release("stays", stays, 8.0)


def test_what_was_saved_stands_again() -> None:
    saved = {"home": Reservation("inst", 100.0, {"ssh": 20_002, "old": 30_000})}
    reg = Registry(saved)
    with pytest.raises(ProtocolError):
        reg.claim("home", "other", object(), 100.0)
    assert reg.claim("home", "inst", object(), 100.0) is None
    assert offered(reg, "home", "ssh", 0, 100.0)[0] == 20_002
    # A port that the token does not give any more is not given out again.
    assert 30_000 not in offered(reg, "home", "old", 0, 100.0)
    assert reg.reservations(500.0)["home"].seen == 500.0
    assert Registry(saved).reservations(500.0)["home"].seen == 100.0


def test_saved_reservations_that_share_a_port_do_no_harm() -> None:
    reg = registry(a=Reservation("a", 0.0, {"x": 20_000}), b=Reservation("b", 0.0, {"y": 20_000}))
    claim(reg, "a")
    assert offered(reg, "a", "x") == [20_001, 20_002, 20_003, 20_004], "it is the other's"
    reg = registry(a=Reservation("a", 0.0, {"x": 20_000}), b=Reservation("b", 0.0, {"y": 20_000}))
    assert reg.claim("c", "c", object(), 2 * DAY) is None
    assert grant(reg, "c", "z", now=2 * DAY) == 20_000


names = st.sampled_from(["a", "b", "c"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), names, st.sampled_from(["one", "two"])),
        st.tuples(st.just("release"), names, st.just("")),
        st.tuples(st.just("offer"), names, st.sampled_from(["x", "y", "z"]), st.sampled_from([0, 20_000, 20_003, 1])),
        st.tuples(st.just("private"), names, st.sampled_from(["x", "y"])),
        st.tuples(st.just("wait"), st.sampled_from([1.0, DAY / 2, DAY * 1.1])),
    ),
    max_size=60,
)


@given(steps)
def test_nobody_ever_has_what_is_anothers(script: list[tuple[str, ...]]) -> None:
    reg = registry()
    now = 0.0
    here: dict[str, tuple[str, object]] = {}
    seen: dict[str, tuple[str, float]] = {}  # who was here last under this name, and when
    for step in script:
        if step[0] == "wait":
            now += float(step[1])
        elif step[0] == "claim":
            _, name, instance = step
            session = object()
            owner = here[name][0] if name in here else None
            kept = seen.get(name)
            free = owner in (None, instance) and (
                kept is None or kept[0] == instance or name in here or now - kept[1] > DAY
            )
            if not free:
                with pytest.raises(ProtocolError) as refused:
                    reg.claim(name, instance, session, now)
                assert refused.value.code is Code.NAME_TAKEN
                continue
            old = reg.claim(name, instance, session, now)
            assert old is (here[name][1] if name in here else None)
            here[name] = (instance, session)
            seen[name] = (instance, now)
        elif step[0] == "release" and step[1] in here:
            instance, session = here.pop(step[1])
            reg.release(step[1], session, now)
            seen[step[1]] = (instance, now)
        elif step[0] == "offer" and step[1] in here:
            _, name, service, wanted = step
            given_ports = offered(reg, name, service, int(wanted), now)
            ports = given_ports if isinstance(given_ports, list) else []
            assert set(ports) <= set(PORTS)
            others = {
                port for other, kept_ in reg.reservations(now).items() if other != name for port in kept_.ports.values()
            }
            assert not others & set(ports)
            if ports:
                reg.grant(name, service, ports[-1])
        elif step[0] == "private" and step[1] in here:
            _, name, service = step
            refused_ = reg.offer_name(name, service, now).error
            owners = {other for other, kept_ in reg.reservations(now).items() if service in kept_.named}
            assert refused_ == ("" if owners <= {name} else "name-taken" if owners & here.keys() else "name-reserved")
            if not refused_:
                reg.grant_name(name, service, "first")
        all_named = [service for kept_ in reg.reservations(now).values() for service in kept_.named]
        assert len(all_named) == len(set(all_named)), "a private service has one owner"
        assert set(reg._named) == set(all_named)
        given_out = [port for kept_ in reg.reservations(now).values() for port in kept_.ports.values()]
        assert len(given_out) == len(set(given_out)), "a port has one owner"
        assert set(reg._owner) == set(given_out)


# --- private services -------------------------------------------------------------------------------------------------------


def test_a_private_service_has_one_owner_and_stays_its_own() -> None:
    reg = registry()
    session = claim(reg, "a")
    claim(reg, "b")
    assert not reg.offer_name("a", "db", 0.0).error
    reg.grant_name("a", "db", "first")
    assert reg.owner("db") == ("a", "first")
    assert not reg.offer_name("a", "db", 1.0).error and reg.offer_name("b", "db", 1.0).error == "name-taken"
    reg.release("a", session, 10.0)
    assert reg.offer_name("b", "db", 10.0 + DAY).error == "name-reserved"
    again = Registry(reg.reservations(10.0))
    claim(again, "b", now=11.0)
    assert again.offer_name("b", "db", 11.0).error == "name-reserved", "a restart forgets nothing"
    assert again.owner("db") == ("a", "first")
    assert not reg.offer_name("b", "db", 11.0 + DAY).error
    assert reg.owner("db") == ("", "") and not reg.named()


def test_of_a_client_the_last_private_services_are_kept() -> None:
    reg = registry()
    claim(reg, "a")
    for number in range(MAX_SERVICES + 1):
        reg.grant_name("a", f"s{number}", "first")
    assert reg.owner("s0") == ("", "") and len(reg.named()) == MAX_SERVICES
    reg.grant_name("a", "s1", "first")
    reg.grant_name("a", "new", "first")
    assert reg.owner("s1") == ("a", "first") and reg.owner("s2") == ("", ""), (
        "the one that was asked for longest ago goes"
    )


def test_so_many_private_services_are_kept_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_MOST_NAMED", 2)
    reg = registry()
    claim(reg, "a")
    claim(reg, "b")
    reg.grant_name("a", "x", "first")
    reg.grant_name("a", "y", "first")
    assert reg.offer_name("b", "z", 0.0).error == "limit", "and nobody loses one for it"
    assert not reg.offer_name("a", "x", 0.0).error


def test_a_client_with_a_private_service_is_not_among_those_that_had_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_MOST_IDLE", 1)
    reg = registry()
    first = claim(reg, "a")
    reg.grant_name("a", "db", "first")
    reg.release("a", first, 1.0)
    for name in ("b", "c", "d"):
        reg.release(name, claim(reg, name), 2.0)
    assert set(reg.reservations(3.0)) == {"a", "d"}


# --- pools ------------------------------------------------------------------------------------------------------------------

WEB = pool_owner("first", "web")


def pool(reg: Registry, owner: str, now: float = 0.0, also: str = "", wanted: int = 0) -> tuple[object, int]:
    """A pool that has its port, and whose last client has not gone."""
    held = object()
    reg.claim(owner, "", held, now)
    offer = reg.offer(owner, owner.partition("/")[2], wanted, ALL, now, also)
    assert not offer.error, offer
    port = next(iter(offer.ports))
    reg.grant(owner, owner.partition("/")[2], port)
    return held, port


def test_a_pool_is_kept_like_a_client() -> None:
    reg = registry()
    claim(reg, "other")
    held, port = pool(reg, WEB)
    assert offered(reg, "other", "s", port) == "port-taken"
    reg.release(WEB, held, DAY)
    assert offered(reg, "other", "s", port, DAY) == "port-reserved"
    again = Registry(reg.reservations(DAY))
    claim(again, "other", now=DAY)
    refused = again.offer("other", "s", port, ALL, 2 * DAY)
    assert refused.error == "port-reserved" and "the pool 'web'" in refused.text
    assert pool(again, WEB, 2 * DAY)[1] == port
    assert offered(reg, "other", "s", port, 2 * DAY + 1) == [port]
    assert reg.forgotten() == [WEB]


def test_what_a_client_has_may_become_the_pools() -> None:
    reg = registry()
    claim(reg, "home")
    claim(reg, "other")
    mine, others = grant(reg, "home", "web"), grant(reg, "other", "web")
    assert reg.offer(WEB, "x", others, ALL, 0.0, "home").error == "port-taken"
    reg.claim(WEB, "", object(), 0.0)
    assert reg.offer(WEB, "web", others, ALL, 0.0, "home").error == "port-taken"
    assert next(iter(reg.offer(WEB, "web", 0, ALL, 0.0).ports)) not in (mine, others)
    assert next(iter(reg.offer(WEB, "web", 0, ALL, 0.0, "home").ports)) == mine
    reg.grant(WEB, "web", mine)
    kept = reg.reservations(0.0)
    assert kept["home"].ports == {} and kept[WEB].ports == {"web": mine}
    assert offered(reg, "home", "web", mine) == "port-taken", "and it does not come back by itself"
    reg.grant_name("home", "db", "first")
    assert reg.offer_name(WEB, "db", 0.0).error == "name-taken"
    assert not reg.offer_name(WEB, "db", 0.0, "home").error
    reg.grant_name(WEB, "db", "first")
    assert reg.owner("db") == (WEB, "first") and reg.reservations(0.0)["home"].named == {}
    assert reg.named() == [("db", "", 0.0)]


def test_a_pool_that_never_was_leaves_nothing() -> None:
    reg = registry()
    held = object()
    reg.claim(WEB, "", held, 0.0)
    reg.release(WEB, held, 0.0)
    assert reg.reservations(0.0) == {}


def test_of_the_pools_of_a_token_the_last_are_kept() -> None:
    ports = PortRange(20_000, 20_000 + 2 * MAX_SERVICES)
    reg = registry()
    here, _ = pool(reg, pool_owner("first", "here"))
    others, _ = pool(reg, pool_owner("other", "web"))
    reg.release(pool_owner("other", "web"), others, 0.0)
    for number in range(MAX_SERVICES + 3):
        owner = pool_owner("first", f"p{number}")
        held = object()
        reg.claim(owner, "", held, float(number))
        free = next(iter(reg.offer(owner, "p", 0, Allowed("first", Ports((), relay=True), ports, 7443), 0.0).ports))
        reg.grant(owner, "p", free)
        reg.release(owner, held, float(number))
    kept = reg.reservations(0.0)
    assert len(kept) == MAX_SERVICES + 2
    assert not {pool_owner("first", f"p{number}") for number in range(3)} & kept.keys()
    assert reg.here(pool_owner("first", "here")) and here
