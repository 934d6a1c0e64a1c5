"""protocol.md is parsed here and held against the code: numbers, tables and vectors cannot drift apart.

The vectors of the proof are in tests/test_auth.py.
"""

from __future__ import annotations

import enum
import inspect
import json
import re
from pathlib import Path

import pytest

from fastrelay import auth, dialling, roles, wire
from fastrelay.errors import Code
from fastrelay.limits import DEFAULTS, SETTINGS
from fastrelay.mux import credit, floods, pace, session
from fastrelay.mux.decoder import Decoder
from fastrelay.mux.stream import RECV, SEND, Recv, Send
from fastrelay.net import gate, websocket
from fastrelay.networks import Networks
from fastrelay.roles import registry, tunnel
from fastrelay.wire import Kind
from tests.net import test_websocket as test_websocket_layer
from tests.support.pair import Clock, Side

TEXT = (Path(__file__).parent.parent / "protocol.md").read_text(encoding="utf-8")
Row = list[str]


def section(number: str) -> str:
    """The text of one section, without those behind it."""
    match = re.search(rf"^#+ {re.escape(number)}\.? .*?(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert match, f"protocol.md has no section {number}"
    return match[0]


def table(number: str, which: int = 0) -> tuple[Row, list[Row]]:
    """Heads and rows of a table of a section."""
    tables = re.findall(r"(?:^\|.*\|\n)+", section(number) + "\n", re.MULTILINE)
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in tables[which].splitlines()]
    assert all(len(row) == len(rows[0]) for row in rows), f"section {number}: a row with too few or too many cells"
    return rows[0], rows[2:]


def test_kinds() -> None:
    _, rows = table("3.2")
    assert {name: int(kind, 16) for kind, name, *_ in rows} == {kind.name: int(kind) for kind in Kind}
    for _, name, stream, payload, largest in rows:
        kind = Kind[name]
        if largest == "max_data":
            assert kind not in wire.SIZES
            continue
        smallest, most, of_stream = wire.SIZES[kind]
        assert most == int(largest), name
        assert of_stream is (stream == "id"), name
        sizes = re.findall(r"u(\d+)", payload)
        if sizes or "8 bytes" in payload:  # "exactly the size given", but for the text of GOAWAY
            assert smallest == (sum(map(int, sizes)) // 8 or 8), name


@pytest.mark.parametrize("kind", [Kind.ACCEPT, Kind.WINDOW, Kind.RESET, Kind.STOP, Kind.PING, Kind.PONG, Kind.TRUNC])
def test_kinds_of_one_size(kind: Kind) -> None:
    smallest, largest, _ = wire.SIZES[kind]
    assert smallest == largest
    assert kind.name in section("3.2").split("exactly the size given")[0] or kind is Kind.TRUNC


def test_members_of_the_handshake() -> None:
    _, rows = table("4.1")
    said = {(name, who): set(re.sub(r" \[.*?\]", "", members).split(", ")) for _, name, who, members in rows}
    forms = {
        ("HELLO", "client"): wire.ClientHello,
        ("HELLO", "relay"): wire.RelayHello,
        ("AUTH", "client"): wire.Auth,
        ("WELCOME", "relay"): wire.Welcome,
    }
    assert said == {step: set(form.__struct_fields__) for step, form in forms.items()}


def test_codes() -> None:
    _, rows = table("11")
    assert {name: int(code) for code, name, _ in rows} == {code.name: int(code) for code in Code}


def test_limits() -> None:
    _, rows = table("12")
    documented = {name: int(value) for name, value, *_ in rows}
    assert documented == {name: getattr(wire, name) for name in documented}
    constants = {
        name
        for name, value in vars(wire).items()
        if name.isupper()
        and type(value) is int
        and not name.startswith(("FIELD_", "OPTIONAL", "VERSION", "STREAM_TCP"))
    }
    assert constants == set(documented), "a limit that protocol.md does not name"


def test_limits_in_the_text() -> None:
    defaults = wire.Settings()
    assert (defaults.max_data, defaults.early, defaults.max_streams) == (wire.MAX_DATA, wire.EARLY, wire.MAX_STREAMS)
    assert f"`max_data` ({wire.MIN_MAX_DATA} to {wire.MAX_MAX_DATA}, largest DATA payload)" in section("4.1")
    assert f"`early` (0 to {wire.MAX_EARLY}" in section("4.1")
    assert f"`max_streams` (1 to {wire.MAX_STREAMS}" in section("4.1")
    assert f"of a name the last {wire.MAX_SERVICES} ports and the last {wire.MAX_SERVICES} such services" in section(
        "4.4"
    )
    assert f"at most {registry._MOST_NAMED} names of private services" in section("4.4")
    assert f"has not answered for {wire.ANSWER_TIME} s" in " ".join(section("6.4").split())
    assert f"the last {registry._MOST_IDLE} that left" in section("4.4")
    assert f"for the first {DEFAULTS.return_time} s (`return-time`, section 12)" in section("5.4")
    for text in (section("9.1"), section("9.2")):
        assert f"moved for {wire.RESET_DRAIN} s, and for {wire.RESET_DRAIN_MOST} s at most" in " ".join(text.split())
    assert f"up to {session._OVER_LIMIT} of them at a time" in section("6.2")
    assert session._ID_MARK == 2**32 * 3 // 4 and "three quarters of its ids" in section("6.2")
    assert auth.MAX_PINS == 2 and "next one (section 4.3): at most two, base64url" in section("4.1")
    assert f"ALPN protocol `{wire.ALPN}`" in section("2")
    assert f"This document is version {wire.VERSION}." in section("4.1")


def test_websocket() -> None:
    text = section("2.1")
    assert f"the subprotocol\n`{wire.WEBSOCKET}`" in text and f"`{wire.WEBSOCKET_PATH}` unless" in text
    assert f"`{wire.ALPN}` is a native tunnel; `{wire.ALPN_HTTP}`, or none, begins with a WebSocket handshake" in text
    said = {Code[name]: int(code) for code, name in re.findall(r"(1\d{3}) for ([A-Z_]+)", text)}
    assert said == websocket.CLOSE_CODES and "else\n  4000 plus the code of section 11" in text
    _, rows = table("2.1")
    documented = {int(status.split(",")[0]) for status, _ in rows}
    # One parameter of that test is the status; the head that does not end has a test of its own.
    (mark,) = test_websocket_layer.test_what_is_not_taken_is_answered.pytestmark  # type: ignore[attr-defined]
    assert documented == {status for _, status in mark.args[1]} | {408}


def test_the_examples_of_services() -> None:
    text = section("5") + section("5.1")
    said = [json.loads(example) for example in re.findall(r"`(\{.*?\})`", text)]
    said += [
        {"service": 1, "name": "x", **json.loads(f"{{{one}}}")} for one in re.findall(r"`(\"visitors\": .*?)`", text)
    ]
    forms = [wire.Expose if "name" in members else wire.Exposed for members in said]
    assert len(said) == 4 and set(forms) == {wire.Expose, wire.Exposed}
    for members, form in zip(said, forms, strict=True):
        assert members.keys() <= set(form.__struct_fields__)
        message = wire.unpack_json(json.dumps(members).encode(), form)
        if isinstance(message, wire.Expose) and message.visitors:
            assert Networks(message.visitors).texts == tuple(members["visitors"])
    assert sum("visitors" in members for members in said) == 1


def test_the_forms_of_places() -> None:
    text = section("6.6")
    assert f"\nmost {dialling.MOST} bytes in all" in text
    assert f"has not answered for {wire.ANSWER_TIME} s" in text
    forms = [form for form, _ in table("6.6")[1]]
    assert forms == ["NAME:PORT", "IPv4:PORT", "[IPv6]:PORT"]
    for place in ("db.lan:1", "192.0.2.7:65535", "[2001:db8::7]:22"):
        assert str(dialling.read_place(place)) == place
    codes = [word for row in table("6.6", 1)[1] for word in row[0].split(", ")]
    assert {Code[code] for code in codes} <= set(Code) and codes.index("DENIED") < codes.index("AWAY") < codes.index(
        "DIAL_DENIED"
    )


def test_the_rules_of_windows() -> None:
    text = " ".join(section("8.2").split())

    def ms(seconds: float) -> str:
        return f"{seconds * 1000:g} ms"

    least, most = credit.step(wire.WINDOW_FLOOR), credit.step(wire.WINDOW_MAX)
    assert f"a sixteenth of the window or {least} bytes, whichever is more, but at most {most}." in text
    assert f"(over spans of at least {ms(credit.RATE_SPAN)} and 2 RTT;" in text
    assert f"the higher of the newest span and {credit._RATE_DECAY:g} times the last figure," in text
    assert f"(of the PINGs of the last {pace._RTT_MEMORY:g} s)" in text
    assert f"q = {ms(credit._QUEUE_ALONE)} while the stream is alone on the tunnel, 0 beside others" in text
    assert f"base = max({wire.WINDOW_FLOOR}, min({credit._BASE_MOST}, rate * {ms(credit._BASE_TIME)}))" in text
    gains = [float(gain) for gain, *_ in table("8.2")[1]]
    assert gains == [credit._GROWING, pace._DRAIN, pace._LOSSY, pace.STEADY]
    assert f"| for {pace._LOSSY_FOR:g} s after packets arrived out of order |" in text
    assert f"when for {pace._DRAIN_EVERY:g} s no PING was as quick as the quickest known" in text
    assert f"as the path takes in {ms(pace._UNSENT_TIME)}, from {pace.LEAST} to {pace.UNSENT_MOST};" in text
    assert f"what the path takes in {ms(pace._FRAME_TIME)}, but at least {pace.LEAST} bytes" in text
    assert f"and at most {pace.SHARED_FRAME} as long as several streams move" in text


def test_errors_of_expose() -> None:
    rooms = Path(roles.__file__).parent
    code = "".join((rooms / name).read_text(encoding="utf-8") for name in ("tunnel.py", "registry.py", "sites.py"))
    said = re.findall(r'(?:refused\(\s*|Offer\(\s*\(\),\s*)"([a-z-]+)"', code)
    assert {error for error, _ in table("5", 1)[1]} == set(said)


def test_kinds_of_services() -> None:
    heads, rows = table("5")
    assert heads[0] == "kind" and tuple(kind for kind, *_ in rows) == tunnel.KINDS


def test_what_is_charged() -> None:
    heads, rows = table("12", 1)
    assert heads == ["charged", "by", "burst", "rate"]
    assert [(name, int(burst), int(rate)) for name, _, burst, rate in rows] == list(floods.ROWS)


def test_limits_on_strangers() -> None:
    _, rows = table("12.1")
    assert f"not before it has had {gate._FAIR_TIME} s. Four times" in section("12.1") and gate._WAITING == 4
    assert {name: int(value) for name, value, *_ in rows} == {name: getattr(DEFAULTS, name) for name, *_ in rows}
    asked = set(re.findall(r"limits\.(\w+)", inspect.getsource(gate)))
    assert {name for name, *_ in rows} == asked | {"max_client_hello"}, "a limit that section 12.1 does not name"


def test_what_may_be_set() -> None:
    heads, rows = table("12", 2)
    assert heads == ["setting", "of", "default", "least", "most", "unit", "when reached"]
    assert rows == [
        [one.name, one.side.value, *map(one.show, (one.default, one.least, one.most)), one.unit, one.reached]
        for one in SETTINGS.values()
    ]


@pytest.mark.parametrize(("number", "rows", "states"), [("7.1", SEND, Send), ("7.2", RECV, Recv)], ids=["SEND", "RECV"])
def test_states(
    number: str, rows: dict[tuple[enum.Enum, str], tuple[Kind | None, enum.Enum] | Code], states: type[enum.Enum]
) -> None:
    heads, lines = table(number)
    assert heads == ["event", *(state.value for state in states)]
    documented: dict[tuple[enum.Enum, str], tuple[Kind | None, enum.Enum] | Code] = {}
    for event, *cells in lines:
        for state, cell in zip(states, cells, strict=True):
            if error := re.fullmatch(r"error (\w+)", cell):
                documented[state, event] = Code[error[1]]
            elif step := re.fullmatch(r"(?:(\w+) )?→ (\w+)", cell):
                documented[state, event] = (Kind[step[1]] if step[1] else None, states(step[2]))
            else:
                assert not cell, f"{number}: {cell!r} is neither a step nor an error"
    assert documented == rows


def build(text: str) -> bytes:
    """The frame that a row of section 14 describes, by our own packers."""
    words = dict(re.findall(r"(\w+)=(\S+)", text))
    quoted = re.search(r'"(.*)"', text)
    said = quoted[1] if quoted else ""
    name = text.split(maxsplit=1)[0]
    if name == "optional":
        return wire.frame(int(text.split()[1], 16), 0, said.encode())
    kind = Kind[name]
    stream = int(words.get("stream", 0))
    match kind:
        case Kind.DATA | Kind.FIN | Kind.TRUNC:
            payload = said.encode()
        case Kind.OPEN:
            what, limit, service = (int(words[name]) for name in ("kind", "limit", "service"))
            request = wire.Open(what, limit, service, words.get("visitor", ""), words.get("target", ""))
            payload = wire.pack_open(request)
        case Kind.ACCEPT:
            payload = wire.LIMIT.pack(int(words["limit"]))
        case Kind.WINDOW:
            return wire.window_frame(stream, int(words["limit"]), int(words["consumed"]))
        case Kind.RESET | Kind.STOP:
            return wire.code_frame(kind, stream, int(words["code"]))
        case Kind.PING | Kind.PONG:
            payload = bytes.fromhex(text.split()[1])
        case Kind.GOAWAY:
            payload = wire.pack_goaway(int(words["last"]), int(words["code"]), said)
        case Kind.AUTH | Kind.WELCOME | Kind.PINS | Kind.LIST | Kind.LISTED:
            forms = {
                Kind.AUTH: wire.Auth,
                Kind.WELCOME: wire.Welcome,
                Kind.PINS: wire.Pins,
                Kind.LIST: wire.List,
                Kind.LISTED: wire.Listed,
            }
            payload = wire.pack_json(forms[kind](**json.loads(text.split(maxsplit=1)[1])))
        case _:
            raise AssertionError(f"no vector is known for {name}")
    return wire.frame(kind, stream, payload)


class Sink:
    def __init__(self) -> None:
        self.received = b""
        self.fin = False

    def receive(self, piece: memoryview) -> None:
        self.received += piece

    def receive_fin(self) -> None:
        self.fin = True


FRAMES = table("14")[1]
REFUSED = table("14", 1)[1]


@pytest.mark.parametrize(
    ("text", "raw"), [(text, bytes.fromhex(raw)) for text, raw in FRAMES], ids=[r[0] for r in FRAMES]
)
def test_vectors_encode_and_decode(text: str, raw: bytes) -> None:
    assert build(text) == raw

    def never(stream: int) -> None:
        raise AssertionError

    sink = Sink()
    controls: list[bytes] = []
    decoder = Decoder({2: sink})
    decoder.hand_to(
        lambda kind, stream, payload: controls.append(wire.frame(kind, stream, payload)), never, never, wire.MAX_DATA
    )
    decoder.feed(memoryview(raw))
    if raw[0] in (Kind.DATA, Kind.FIN):
        assert (sink.received, sink.fin, controls) == (raw[8:], raw[0] == Kind.FIN, [])
    else:
        assert (sink.received, sink.fin, controls) == (b"", False, [raw])


def test_every_kind_of_stream_frame_has_a_vector() -> None:
    seen = {bytes.fromhex(raw)[0] for _, raw in FRAMES}
    assert {kind for kind in Kind if kind < Kind.HELLO} <= seen


def test_vectors_unpack() -> None:
    raw = {" ".join(text.split()[:2]): bytes.fromhex(raw) for text, raw in FRAMES}
    assert wire.unpack_open(raw["OPEN stream=2"][8:]) == wire.Open(0, 262144, 7, "192.0.2.9:51544")
    assert wire.unpack_open(raw["OPEN stream=1"][8:]) == wire.Open(0, 262144, 0, "", "db")
    assert wire.unpack_goaway(raw["GOAWAY last=2"][8:]) == (2, Code.SHUTDOWN, "restarting")


@pytest.mark.parametrize(
    ("raw", "code"), [(bytes.fromhex(raw), code) for raw, code in REFUSED], ids=[r[0] for r in REFUSED]
)
@pytest.mark.parametrize("cut", ["whole", "bytes"])
def test_must_be_refused(raw: bytes, code: str, cut: str) -> None:
    relay = Side(Clock(), dialer=False)
    size = len(raw) if cut == "whole" else 1
    answers = (relay.refuses(raw[at : at + size]) for at in range(0, len(raw), size))
    assert next(filter(None, answers), None) is Code[code]
    assert not relay.opens and not relay.session.streams
