"""What a person may set: what is understood, what is refused and with which words, and that defaults are what they always were."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay import wire
from fastrelay.errors import UsageError
from fastrelay.limits import DEFAULTS, SETTINGS, Bucket, Limits, Setting, Side, Value, lines, parse_limits


def test_every_field_has_a_setting() -> None:
    assert [one.field for one in SETTINGS.values()] == [field.name for field in dataclasses.fields(Limits)]
    for name, one in SETTINGS.items():
        assert one.name == name
        assert getattr(DEFAULTS, one.field) == one.default
        assert one.reached and one.unit


def test_the_defaults_are_those_of_the_protocol() -> None:
    assert (DEFAULTS.streams, DEFAULTS.services, DEFAULTS.dials) == (
        wire.MAX_STREAMS,
        wire.MAX_SERVICES,
        wire.MAX_DIALS,
    )
    assert DEFAULTS.handshake_time == wire.HANDSHAKE_TIME
    assert (DEFAULTS.dial_time, DEFAULTS.drain_time) == (wire.DIAL_TIME, wire.DRAIN_TIME)
    assert (DEFAULTS.half_open_time, DEFAULTS.reserved_time) == (wire.HALF_OPEN_IDLE, wire.RESERVED_TIME)
    assert DEFAULTS.files is None and DEFAULTS.memory is None, "as much as the system allows"
    assert DEFAULTS.streams >= 10_000, "so many visitors of one client are legal"


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("streams=7", "streams", 7),
        (" streams=7 ", "streams", 7),
        ("control=65536", "control", 65_536),
        ("control=64K", "control", 65_536),
        ("control=3M", "control", 3 << 20),
        ("control=1G", "control", 1 << 30),
        ("drain-time=5", "drain_time", 5.0),
        ("drain-time=500ms", "drain_time", 0.5),
        ("drain-time=2.5s", "drain_time", 2.5),
        ("drain-time=2550ms", "drain_time", 2.55),
        ("drain-time=2m", "drain_time", 120.0),
        ("reserved-time=1h", "reserved_time", 3600.0),
        ("reserved-time=30d", "reserved_time", 30 * 86_400.0),
        ("memory=32M", "memory", 32 << 20),
        ("memory=1099511627776", "memory", 1 << 40),
        ("memory=auto", "memory", None),
        ("files=256", "files", 256),
        ("flood-ping=100/5", "flood_ping", Bucket(100, 5)),
    ],
)
def test_what_is_understood(text: str, field: str, value: Value) -> None:
    limits = parse_limits([text], Side.RELAY)
    assert getattr(limits, field) == value
    assert dataclasses.replace(limits, **{field: getattr(DEFAULTS, field)}) == DEFAULTS


def test_several_and_none() -> None:
    assert parse_limits([], Side.RELAY) == DEFAULTS
    limits = parse_limits(["streams=7", "drain-time=1", "streams=8"], Side.CLIENT)
    assert limits == Limits(streams=8, drain_time=1.0), "of two the last counts"


@pytest.mark.parametrize(
    ("text", "side", "told"),
    [
        ("nonsense=3", Side.RELAY, ("'nonsense'", "streams", "drain-time")),
        ("", Side.RELAY, ("''", "streams")),
        ("dials=3", Side.RELAY, ("'dials'", "of a client")),
        ("services=3", Side.CLIENT, ("'services'", "of a relay")),
        ("streams", Side.RELAY, ("has no value", "streams=65535")),
        ("streams=", Side.RELAY, ("not understood", "streams=65535")),
        ("streams=many", Side.RELAY, ("streams=many", "streams=65535")),
        ("streams=-1", Side.RELAY, ("streams=-1", "streams=65535")),
        ("streams=1K", Side.RELAY, ("not understood",)),
        ("streams=10s", Side.RELAY, ("not understood",)),
        ("streams=0", Side.RELAY, ("from 1 to 65535",)),
        ("streams=65536", Side.RELAY, ("from 1 to 65535",)),
        ("streams=٣", Side.RELAY, ("not understood",)),
        ("control=1", Side.RELAY, ("from 64K to 1G",)),
        ("control=1\n\x1bG", Side.RELAY, (r"'control=1\n\x1bG' is not understood",)),
        ("control=1T", Side.RELAY, ("not understood", "control=8M")),
        ("control=10s", Side.RELAY, ("not understood",)),
        ("streams=auto", Side.RELAY, ("not understood",)),
        ("memory=1K", Side.RELAY, ("from 1M to 1024G",)),
        ("files=100", Side.RELAY, ("from 128 to 1048576",)),
        ("drain-time=soon", Side.RELAY, ("drain-time=30s",)),
        ("drain-time=8M", Side.RELAY, ("drain-time=30s",)),
        ("drain-time=inf", Side.RELAY, ("drain-time=30s",)),
        ("drain-time=2d", Side.RELAY, ("from 0.1s to 86400s",)),
        ("flood-ping=20", Side.RELAY, ("flood-ping=20/1",)),
        ("flood-ping=10/1", Side.RELAY, ("from 20/1 to 1000000/1000000",)),
        ("flood-ping=20/0", Side.RELAY, ("from 20/1 to 1000000/1000000",)),
    ],
)
def test_what_is_refused(text: str, side: Side, told: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as refused:
        parse_limits([text], side)
    for words in told:
        assert words in str(refused.value)


@given(st.sampled_from(sorted(SETTINGS.values())), st.data())
def test_every_value_in_bounds_is_read_as_it_is_shown(one: Setting, data: st.DataObject) -> None:
    value: Value
    if isinstance(one.least, Bucket):
        value = Bucket(*(data.draw(st.integers(low, high)) for low, high in zip(one.least, one.most, strict=True)))
    elif one.unit == "seconds":
        value = data.draw(st.integers(int(one.least * 1000), int(one.most * 1000))) / 1000
    else:
        value = data.draw(st.integers(one.least, one.most))
    side = Side.CLIENT if one.of(Side.CLIENT) else Side.RELAY
    assert getattr(parse_limits([f"{one.name}={one.show(value)}"], side), one.field) == value


@given(st.text(), st.sampled_from([Side.RELAY, Side.CLIENT]))
def test_any_text_is_understood_or_refused(text: str, side: Side) -> None:
    with contextlib.suppress(UsageError):
        parse_limits([text], side)


@given(st.sampled_from(sorted(SETTINGS)), st.text(alphabet="0123456789.KMGmsh/ -"))
def test_any_value_is_understood_or_refused(name: str, text: str) -> None:
    side = Side.CLIENT if SETTINGS[name].of(Side.CLIENT) else Side.RELAY
    try:
        limits = parse_limits([f"{name}={text}"], side)
    except UsageError:
        return
    value = getattr(limits, SETTINGS[name].field)
    assert parse_limits([f"{name}={SETTINGS[name].show(value)}"], side) == limits


def test_help_shows_what_each_side_may_set() -> None:
    for side in (Side.RELAY, Side.CLIENT):
        shown = dict(lines(side))
        assert len(shown) == sum(one.of(side) for one in SETTINGS.values())
        assert parse_limits(shown, side) == DEFAULTS, "what is shown can be typed"
