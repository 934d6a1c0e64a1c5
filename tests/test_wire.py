"""The bytes of frames: what is packed unpacks, and rubbish raises ProtocolError and nothing else."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastrelay import wire
from fastrelay.errors import Code, ProtocolError
from fastrelay.wire import Kind, Settings
from tests.support.pair import refusal

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
TEXT = st.text(st.characters(codec="utf-8"))
PLAIN = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=255)
FORMS: tuple[type[msgspec.Struct], ...] = (
    wire.ClientHello,
    wire.RelayHello,
    wire.Auth,
    wire.Welcome,
    wire.Expose,
    wire.Exposed,
    wire.List,
    wire.Listed,
    wire.Settings,
)
SETTINGS = st.builds(
    Settings,
    max_data=st.integers(wire.MIN_MAX_DATA, wire.MAX_MAX_DATA),
    early=st.integers(0, wire.MAX_EARLY),
    max_streams=st.integers(1, wire.MAX_STREAMS),
)
MESSAGES = st.one_of(
    st.builds(
        wire.ClientHello,
        versions=st.tuples(U32, U32),
        nonce=TEXT,
        binding=TEXT,
        agent=TEXT,
        features=st.lists(TEXT),
        settings=SETTINGS,
    ),
    st.builds(wire.RelayHello, version=U32, nonce=TEXT, agent=TEXT, features=st.lists(TEXT), settings=SETTINGS),
    st.builds(wire.Auth, key_id=TEXT, proof=TEXT, name=TEXT, instance=TEXT),
    st.builds(wire.Welcome, proof=TEXT, session=TEXT, host=TEXT),
    st.builds(
        wire.Expose,
        service=U32,
        name=TEXT,
        kind=TEXT,
        port=st.integers(0, 65535),
        visitors=st.lists(TEXT, max_size=3).map(tuple),
    ),
    st.builds(wire.Exposed, service=U32, port=st.integers(0, 65535), visitors=U32, error=TEXT, text=TEXT),
    st.builds(
        wire.Listed,
        services=st.lists(
            st.builds(wire.Listing, name=TEXT, kind=TEXT, client=TEXT, since=U32, here=st.booleans()), max_size=3
        ),
        more=st.booleans(),
    ),
)


@given(st.sampled_from(Kind), U32, st.binary(max_size=300))
def test_frame_header(kind: Kind, stream: int, payload: bytes) -> None:
    raw = wire.frame(kind, stream, payload)
    word, number = wire.HEADER.unpack_from(raw)
    assert (word >> 24, word & 0xFFFFFF, number, raw[8:]) == (kind, len(payload), stream, payload)


@given(U32, U64, U64)
def test_window_frame(stream: int, limit: int, consumed: int) -> None:
    raw = wire.window_frame(stream, limit, consumed)
    assert raw == wire.frame(Kind.WINDOW, stream, wire.WINDOW.pack(limit, consumed))


@given(st.sampled_from((Kind.RESET, Kind.STOP)), U32, U32)
def test_code_frame(kind: Kind, stream: int, code: int) -> None:
    assert wire.code_frame(kind, stream, code) == wire.frame(kind, stream, wire.CODE.pack(code))


@given(st.builds(wire.Open, st.integers(0, 255), U64, U32, PLAIN, PLAIN))
def test_open_round_trip(request: wire.Open) -> None:
    assert wire.unpack_open(wire.pack_open(request)) == request


@given(TEXT)
def test_open_with_any_text_fits_its_fields(text: str) -> None:
    request = wire.unpack_open(wire.pack_open(wire.Open(0, 1, 2, text, text)))
    assert request.visitor.isprintable()
    assert request.target == (request.visitor if len(text.encode()) <= 255 else "")


def test_a_target_is_never_cut() -> None:
    """The shorter one might be another that there is."""
    longest = "home/" + "a" * 246 + ":443"
    assert wire.unpack_open(wire.pack_open(wire.Open(0, 1, target=longest))).target == longest
    assert wire.unpack_open(wire.pack_open(wire.Open(0, 1, target="x" + longest))).target == ""


def test_open_keeps_the_first_of_a_repeated_field_and_ignores_unknown_ones() -> None:
    def field(kind: int, value: bytes) -> bytes:
        return bytes((kind, len(value))) + value

    payload = b"".join(
        (
            wire.OPEN_HEAD.pack(0, 5),
            field(200, b"unknown"),
            field(wire.FIELD_TARGET, b"db"),
            field(wire.FIELD_SERVICE, bytes((0, 0, 0, 7))),
            field(wire.FIELD_SERVICE, bytes((0, 0, 0, 8))),
            field(wire.FIELD_VISITOR, b"first"),
            field(wire.FIELD_VISITOR, b"second"),
            field(wire.FIELD_TRACEPARENT, b""),
        )
    )
    assert wire.unpack_open(payload) == wire.Open(0, 5, 7, "first", "db")


@given(st.binary(min_size=9, max_size=200))
@example(bytes(9) + b"\x01\x03abc")  # a service of 3 bytes
@example(bytes(9) + b"\x01")
@example(bytes(9) + b"\x01\x05abcd")
def test_garbage_in_open(payload: bytes) -> None:
    assert refusal(lambda: wire.unpack_open(payload)) in (None, Code.PROTOCOL)


@given(U32, st.sampled_from(Code), PLAIN)
def test_goaway_round_trip(last: int, code: Code, reason: str) -> None:
    assert wire.unpack_goaway(wire.pack_goaway(last, code, reason)) == (last, code, reason)


@given(st.binary(min_size=8, max_size=100))
def test_garbage_in_goaway(payload: bytes) -> None:
    _, code, text = wire.unpack_goaway(payload)
    assert isinstance(code, Code)
    assert text.isprintable()


def test_a_long_goaway_is_cut_to_a_frame() -> None:
    payload = wire.pack_goaway(0, Code.CALM, "\N{SNOWMAN}" * 4096)
    assert len(payload) == wire.MAX_CONTROL
    assert wire.unpack_goaway(payload)[2].startswith("\N{SNOWMAN}")


@given(st.binary() | TEXT.map(str.encode))
@example(b"\x1b]0;title\x07\r\n\0")
@example("\u202eright to left\u2028".encode())
def test_text_is_printable(raw: bytes) -> None:
    assert wire.text(raw).isprintable()


@given(PLAIN)
def test_text_keeps_what_is_printable(text: str) -> None:
    assert wire.text(text.encode()) == text


@given(MESSAGES)
def test_json_round_trip(message: msgspec.Struct) -> None:
    assert wire.unpack_json(wire.pack_json(message), type(message)) == message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(("service", "name", "port", "visitors", "settings", "max_data", "x")), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(st.binary(max_size=200) | JSON.map(msgspec.json.encode), st.sampled_from(FORMS))
@example(b'{"x":' + b"[" * 4090, wire.Expose)  # nesting beyond what the parser's stack takes
@example(b'{"service":1e400,"name":"a"}', wire.Expose)
@example(b'{"service":' + b"9" * 4000 + b',"name":"a"}', wire.Expose)
@example(b'{"service":1,"name":"\\ud800"}', wire.Expose)
@example(b'{"service":1,"name":"\xff"}', wire.Expose)
def test_garbage_in_json(payload: bytes, form: type[msgspec.Struct]) -> None:
    assert refusal(lambda: wire.unpack_json(payload, form)) in (None, Code.PROTOCOL)


def test_peers_that_do_not_know_visitors() -> None:
    asked = wire.pack_json(wire.Expose(service=1, name="ssh", visitors=("192.0.2.0/24",)))
    answered = wire.pack_json(wire.Exposed(service=1, port=20022, visitors=1))
    for payload, known in ((asked, ("service", "name")), (answered, ("service", "port"))):
        older = msgspec.defstruct("Older", [(name, str if name == "name" else int) for name in known])
        assert msgspec.structs.astuple(msgspec.json.decode(payload, type=older))[0] == 1
    assert wire.unpack_json(b'{"service":1,"name":"ssh"}', wire.Expose).visitors == ()
    assert wire.unpack_json(b'{"service":1,"port":20022}', wire.Exposed).visitors == 0
    assert b"visitors" not in wire.pack_json(wire.Expose(service=1, name="ssh"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_data", wire.MIN_MAX_DATA - 1),
        ("max_data", wire.MAX_MAX_DATA + 1),
        ("early", -1),
        ("early", wire.MAX_EARLY + 1),
        ("max_streams", 0),
        ("max_streams", wire.MAX_STREAMS + 1),
    ],
)
def test_settings_have_bounds(name: str, value: int) -> None:
    with pytest.raises(ProtocolError, match=name):
        wire.unpack_json(msgspec.json.encode({name: value}), Settings)


@given(st.integers(0, 255), st.integers(0, 2**24 - 1), U32)
def test_check_size_by_the_header_alone(kind: int, length: int, stream: int) -> None:
    code = refusal(lambda: wire.check_size(kind, length, stream))
    assert code in (None, Code.PROTOCOL, Code.FRAME_SIZE)
    assert code or (length <= wire.MAX_CONTROL and (kind in wire.SIZES or kind >= wire.OPTIONAL))


@given(U32)
def test_unknown_codes_are_internal(number: int) -> None:
    assert Code.of(number) == (number if number in set(Code) else Code.INTERNAL)
