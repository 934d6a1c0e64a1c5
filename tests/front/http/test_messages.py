"""Messages are cut where they end, at any cut of the bytes; what could be read two ways is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay.errors import MessageError
from fastrelay.front.http.messages import (
    MOST_FIELDS,
    MOST_HEAD,
    REPEATED,
    Fields,
    Request,
    Requests,
    Response,
    Responses,
    Seen,
)

Piece = Request | Response | bytes
"""A head, or a whole body as it came."""


def cut(messages: Requests | Responses, pieces: list[bytes], bodiless: tuple[bool, ...] = ()) -> list[Piece]:
    """What comes out; a body that is over ends its bytes."""
    out: list[Piece] = []
    answers = iter(bodiless)
    fresh = True
    for piece in pieces:
        data = memoryview(piece)
        while data:
            if messages.in_body:
                size = messages.take_body(data)
                assert size > 0
                if fresh or not out or not isinstance(out[-1], bytes):
                    out.append(b"")
                last = out[-1]
                assert isinstance(last, bytes)
                out[-1] = last + bytes(data[:size])
                fresh = not messages.in_body
            else:
                if isinstance(messages, Responses):
                    messages.bodiless = next(answers, False) if fresh else messages.bodiless
                fresh = False
                size = messages.take_head(data)
                assert size > 0
                if messages.whole:
                    out.append(messages.head())
                    fresh = True
            data = data[size:]
    return out


def sliced(raw: bytes, sizes: list[int]) -> list[bytes]:
    """`raw` in pieces of these sizes, over and over."""
    pieces, at, turn = [], 0, 0
    while at < len(raw):
        size = sizes[turn % len(sizes)]
        pieces.append(raw[at : at + size])
        at, turn = at + size, turn + 1
    return pieces


def request(
    first: bytes = b"GET / HTTP/1.1", *fields: bytes, host: bytes | None = b"a.example", body: bytes = b""
) -> bytes:
    lines = [first, *([b"Host: " + host] if host is not None else []), *fields, b"", b""]
    return b"\r\n".join(lines) + body


def chunked(pieces: list[bytes], trailer: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n" + trailer + b"\r\n"


blocks = st.sampled_from([b"x", b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: b\r\n\r\n", b"y" * 700])
plain = st.lists(blocks, max_size=6).map(b"".join)
coded = st.tuples(st.lists(blocks, max_size=6), st.sampled_from([b"", b"T: x\r\n", b"A: b\r\nC: d\r\n"])).map(
    lambda drawn: chunked(*drawn)
)


@given(
    st.lists(st.tuples(st.booleans(), plain, coded), min_size=1, max_size=5),
    st.lists(st.integers(1, 900), min_size=1, max_size=5),
)
def test_requests_are_cut_where_they_end(drawn: list[tuple[bool, bytes, bytes]], sizes: list[int]) -> None:
    raw, expected = b"", []
    for number, (in_chunks, counted, coded_) in enumerate(drawn):
        path = b"/%d" % number
        field = b"Transfer-Encoding: chunked" if in_chunks else b"Content-Length: %d" % len(counted)
        body = coded_ if in_chunks else counted
        raw += request(b"POST %b HTTP/1.1" % path, field, body=body)
        expected += [path, body] if body else [path]
    found = cut(Requests(), sliced(raw, sizes))
    assert [
        piece if isinstance(piece, bytes) else piece.target for piece in found if isinstance(piece, bytes | Request)
    ] == expected
    for piece in found:  # trailers are of the body
        assert isinstance(piece, bytes) or len(piece.fields) == 2


@given(st.lists(st.integers(1, 90), min_size=1, max_size=5))
def test_responses_are_cut_where_they_end(sizes: list[int]) -> None:
    raw = (
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"  # to HEAD
        b"HTTP/1.1 204 No Content\r\n\r\n"
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunked([b"a\r\n\r\nb", b"c"])
        + b"HTTP/1.0 200 Fine\r\n\r\nuntil the end, HTTP/1.1 200 OK\r\n\r\n"
    )
    found = cut(Responses(), sliced(raw, sizes), (False, False, True, False, False, False, False))
    assert [
        piece if isinstance(piece, bytes) else piece.status for piece in found if isinstance(piece, bytes | Response)
    ] == [
        *(100, 200, b"hello", 200, 204, 304, 200),
        chunked([b"a\r\n\r\nb", b"c"]),
        200,
        b"until the end, HTTP/1.1 200 OK\r\n\r\n",
    ]
    assert isinstance(found[-2], Response) and (found[-2].version, found[-2].keep_alive) == ("1.0", False)


class Forgetful(Seen):
    def __setitem__(self, head: bytes, found: object) -> None:
        pass


class ForgetfulRequests(Requests):
    _seen = Forgetful()


class ForgetfulResponses(Responses):
    _seen = Forgetful()


def until_refused(messages: Requests | Responses, pieces: list[bytes], bodiless: tuple[bool, ...]) -> list[object]:
    """What comes out; at its end what was refused, if anything was."""
    out: list[object] = []
    try:
        out += cut(messages, pieces, bodiless)
    except MessageError as error:
        out.append((error.status, error.text))
    return out


ASKED = (
    request(),
    request(b"GET /x HTTP/1.1"),
    b"\r\n" + request(),
    request(b"POST / HTTP/1.1", b"Content-Length: 0"),
    request(b"POST / HTTP/1.1", b"Content-Length: 5", body=b"GET /"),
    request(b"POST / HTTP/1.1", b"Content-Length: 5", body=b"\r\n\r\nx"),
    request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", body=chunked([b"a", b"\r\n\r\n"])),
    request(b"GET /old HTTP/1.0", b"Connection: keep-alive"),
    request(b"GET /ws HTTP/1.1", b"Connection: Upgrade", b"Upgrade: websocket"),
    request(b"GET / HTTP/1.1", b"Connection: close"),
    request(b"GET / HTTP/1.1", b"Host: b.example"),
    request(b"GET /long HTTP/1.1", b"Cookie: " + b"x" * REPEATED),
)
ANSWERED = (
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked([b"a\r\n\r\nb", b"c"]),
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
)


@given(st.lists(st.sampled_from(ASKED), min_size=1, max_size=12), st.lists(st.integers(1, 300), min_size=1, max_size=4))
def test_a_request_that_came_before_is_what_it_was(drawn: list[bytes], sizes: list[int]) -> None:
    pieces = sliced(b"".join(drawn), sizes)
    assert until_refused(Requests(), pieces, ()) == until_refused(ForgetfulRequests(), pieces, ())


@given(
    st.lists(st.tuples(st.sampled_from(ANSWERED), st.booleans()), min_size=1, max_size=12),
    st.lists(st.integers(1, 300), min_size=1, max_size=4),
)
def test_an_answer_that_came_before_is_what_it_was(drawn: list[tuple[bytes, bool]], sizes: list[int]) -> None:
    """To HEAD as well, where the same head has no body behind it."""
    raw = b"".join(answer[: answer.index(b"\r\n\r\n") + 4] if headed else answer for answer, headed in drawn)
    pieces, bodiless = sliced(raw, sizes), tuple(headed for _, headed in drawn)
    assert until_refused(Responses(), pieces, bodiless) == until_refused(ForgetfulResponses(), pieces, bodiless)


def test_what_is_remembered_is_bounded() -> None:
    messages = Requests()
    for number in range(2 * REPEATED):
        cut(messages, [request(b"GET /%d HTTP/1.1" % number)])
    assert 0 < len(Requests._seen) <= REPEATED
    (one,) = cut(messages, [request(b"GET /again HTTP/1.1")])
    (two,) = cut(Requests(), [request(b"GET /again HTTP/1.1")])
    assert one is two, "of another visitor too"


def test_what_a_head_says() -> None:
    raw = request(b"OPTIONS http://A.example:80/x?y=1 HTTP/1.1", b"Connection: close", b"X: \xff", host=b"A.EXAMPLE:80")
    (head,) = cut(Requests(), [b"\r\n" + raw])
    assert head == Request(
        b"OPTIONS",
        b"/x?y=1",
        "1.1",
        Fields.of([(b"Host", b"A.EXAMPLE:80"), (b"Connection", b"close"), (b"X", b"\xff")]),
        b"a.example:80",
        b"",
        False,
    )


@pytest.mark.parametrize(
    ("first", "target"),
    [
        (b"GET http://a.example HTTP/1.1", b"/"),
        (b"GET HTTPS://a.example?x HTTP/1.1", b"/?x"),
        (b"OPTIONS * HTTP/1.1", b"*"),
        (b"GET //b.example/ HTTP/1.1", b"//b.example/"),
        (b"GET /../../etc HTTP/1.1", b"/../../etc"),  # a path is the target's matter
    ],
)
def test_targets(first: bytes, target: bytes) -> None:
    (head,) = cut(Requests(), [request(first)])
    assert isinstance(head, Request) and head.target == target


def test_an_upgrade_that_may_be_refused() -> None:
    """Behind its head there is either another protocol, which nobody cuts, or the next request."""
    raw = request(b"GET /ws HTTP/1.1", b"Upgrade: websocket", b"Connection: keep-alive, Upgrade", b"Content-Length: 0")
    first, second = cut(Requests(), [raw + request(b"GET /next HTTP/1.1")])
    assert isinstance(first, Request) and first.upgrade == b"websocket"
    assert isinstance(second, Request) and (second.target, second.upgrade) == (b"/next", b"")


def test_a_switch_of_protocols() -> None:
    raw = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
    messages = Responses()
    assert messages.take_head(memoryview(raw + b"\x00raw")) == len(raw)
    head = messages.head()
    assert (head.status, head.upgrade, head.keep_alive, messages.in_body) == (101, b"x", True, False)


HEAD = b"GET / HTTP/1.1\r\nHost: a.example\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a.example\r\n"
HOSTILE = [
    # two readings of where a body ends
    POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    *(
        POST + b"Content-Length: %b\r\n\r\nhello" % value
        for value in (
            b"+5",
            b"-5",
            b"5, 5",
            b"5,6",
            b"0x5",
            b"5_0",
            b"5.0",
            b"5e1",
            b"",
            b" ",
            b"5 5",
            b"\x0b5",
            b"99999999999999999999",
            b"\xd9\xa5",
        )
    ),
    *(
        POST + b"Transfer-Encoding: %b\r\n\r\n5\r\nhello\r\n0\r\n\r\n" % value
        for value in (
            *(
                b"identity",
                b"chunked, identity",
                b"identity, chunked",
                b"gzip, chunked",
                b"chunked, chunked",
                b"\x0bchunked",
            ),
            *(
                b"chunked;q=1",
                b"xchunked",
                b"chunked\x00",
                b'"chunked"',
                b"chunked,",
                b", chunked",
                b"cow",
                b"",
                b"\xc3chunked",
            ),
        )
    ),
    POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
    POST + b" Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    POST + b"X: y\r\n\tTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    *(
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + body
        for body in (
            *(
                b"+5\r\nhello\r\n0\r\n\r\n",
                b"-5\r\nhello\r\n0\r\n\r\n",
                b"0x5\r\nhello\r\n0\r\n\r\n",
                b" 5\r\nhello\r\n0\r\n\r\n",
            ),
            *(
                b"5\nhello\n0\n\n",
                b"5\rhello\r\n0\r\n\r\n",
                b"5;x\ny\r\nhello\r\n0\r\n\r\n",
                b"5;\x00\r\nhello\r\n0\r\n\r\n",
            ),
            *(
                b"fffffffffffffffff\r\nhello",
                b"5\r\nhelloX\r\n0\r\n\r\n",
                b"5\r\nhello\n0\r\n\r\n",
                b"\r\n5\r\nhello\r\n0\r\n\r\n",
            ),
            *(
                b"0\r\nX : y\r\n\r\n",
                b"0\r\n X: y\r\n\r\n",
                b"0\r\nX: y\n\r\n",
                b"0\r\n: y\r\n\r\n",
                b"5 ;a\r\nhello\r\n0\r\n\r\n",
            ),
        )
    ),
    # whose request it is
    b"GET / HTTP/1.1\r\n\r\n",
    HEAD + b"Host: b.example\r\n\r\n",
    HEAD + b"Host: a.example\r\n\r\n",
    HEAD + b"host: b.example\r\n\r\n",
    HEAD + b"Host : b.example\r\n\r\n",
    b"GET http://b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
    b"GET http://a.example:81/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
    b"GET http://u@a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
    b"GET ftp://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
    b"GET a.example HTTP/1.1\r\nHost: a.example\r\n\r\n",
    b"GET * HTTP/1.1\r\nHost: a.example\r\n\r\n",
    *(
        b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host
        for host in (
            *(
                b"",
                b"a b",
                b"a/b",
                b"a?b",
                b"a#b",
                b"u@a",
                b"u:p@a",
                b"a,b",
                b"a:80:81",
                b"a:",
                b"a:x",
                b"a:123456",
                b"[::1",
                b"::1",
                b"[fe80::1%25eth0]",
            ),
            *(
                b"a\\b",
                b"a%2eb",
                b"a%00",
                b"a\x00b",
                b"\xc3\xa4.example",
                b"a;b",
                b"'a'",
                b"<a>",
                b"x" * 254,
                b"[::g]",
                b"a\tb",
                b"*",
            ),
        )
    ),
    # what is no head at all
    *(
        first + b"\r\nHost: a.example\r\n\r\n"
        for first in (
            *(
                b"GET / HTTP/2.0",
                b"GET / HTTP/1.2",
                b"GET / HTTP/0.9",
                b"GET / HTTP/11",
                b"GET / http/1.1",
                b"GET / HTTP/1.1 ",
                b"GET /",
                b"GET",
            ),
            *(
                b"get / HTTP/1.1",
                b"FOO / HTTP/1.1",
                b" GET / HTTP/1.1",
                b"GET\t/ HTTP/1.1",
                b"GET /a b HTTP/1.1",
                b"GET /\x00 HTTP/1.1",
                b"GET /\xc3\xa4 HTTP/1.1",
            ),
            *(
                b"CONNECT a.example:80 HTTP/1.1",
                b"PRI * HTTP/2.0",
                b"GET / RTSP/1.0",
                b"G@T / HTTP/1.1",
                b"GET /\r HTTP/1.1",
                b"HTTP/1.1 200 OK",
                b"",
            ),
        )
    ),
    *(
        HEAD + field + b"\r\n\r\n"
        for field in (
            b"X",
            b": y",
            b"X\x00: y",
            b"X\x7f: y",
            b"X(: y",
            b"X: a\x00b",
            b"X: a\x01b",
            b"X: a\rb",
            b"X: a\nb",
            b"X Y: z",
            b"\xc3: y",
            b'"X": y',
            b"X: a\x7fb",
        )
    ),
    HEAD + b"X: y\r\n folded\r\n\r\n",
    HEAD + b"X: " + b"y" * MOST_HEAD + b"\r\n\r\n",
    HEAD + b"X: y\r\n" * MOST_FIELDS + b"\r\n",
    b"GET /" + b"x" * MOST_HEAD + b" HTTP/1.1\r\nHost: a.example\r\n\r\n",
    # upgrades
    HEAD + b"Upgrade: x\r\nUpgrade: y\r\nConnection: upgrade\r\n\r\n",
    HEAD + b"Upgrade: x, y\r\nConnection: upgrade\r\n\r\n",
    HEAD + b"Upgrade: \r\nConnection: upgrade\r\n\r\n",
    HEAD + b"Upgrade: \xff\r\nConnection: upgrade\r\n\r\n",
    POST + b"Upgrade: x\r\nConnection: upgrade\r\nContent-Length: 5\r\n\r\nhello",
    POST + b"Upgrade: x\r\nConnection: upgrade\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    # other protocols
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    b"\x05\x01\x00\r\n\r\n",
    b"\r\n\r\n\r\n\r\n",
    b"GET / ICE/1.0\r\nHost: a.example\r\n\r\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + HEAD + b"\r\n",
    b"0\r\n\r\n" + HEAD + b"\r\n",
    b"\x00" + HEAD + b"\r\n",
]


def test_the_corpus_is_one() -> None:
    assert len(HOSTILE) >= 150 and len(set(HOSTILE)) == len(HOSTILE)


@pytest.mark.parametrize("raw", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_requests_are_refused(raw: bytes) -> None:
    """Whole, byte by byte, and with a second request behind, which must not come out."""
    second = request(b"GET /smuggled HTTP/1.1")
    for pieces in ([raw], [raw + second], sliced(raw + second, [1])):
        messages = Requests()
        out: list[Piece] = []

        def all_of_it(messages: Requests = messages, pieces: list[bytes] = pieces, out: list[Piece] = out) -> None:
            for piece in pieces:
                out += cut(messages, [piece])

        with pytest.raises(MessageError) as caught:
            all_of_it()
        assert 400 <= caught.value.status <= 505 and caught.value.text.isprintable()
        assert not [head for head in out if isinstance(head, Request) and head.target == b"/smuggled"]


@given(
    st.binary(max_size=400),
    st.sampled_from([b"", HEAD, POST, POST + b"Transfer-Encoding: chunked\r\n\r\n"]),
    st.integers(1, 50),
)
def test_any_bytes(raw: bytes, start: bytes, size: int) -> None:
    """Nothing but pieces and MessageError; the same whatever the cuts."""

    def outcome(pieces: list[bytes]) -> tuple[list[Piece], int]:
        out: list[Piece] = []
        messages = Requests()
        try:
            for piece in pieces:
                out += cut(messages, [piece])
        except MessageError as error:
            return out, error.status
        return out, 0

    heads = [
        [piece for piece in outcome(pieces)[0] if isinstance(piece, Request)]
        for pieces in ([bytes([b]) for b in start + raw], sliced(start + raw, [size]))
    ]
    assert heads[0][: len(heads[1])] == heads[1][: len(heads[0])]
