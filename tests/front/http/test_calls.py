"""What a call through a client asks for is read in one way or not at all, and its path passes byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay.config import NAME
from fastrelay.errors import MessageError
from fastrelay.front.http import calls
from fastrelay.front.http.calls import CLIENT_TIME, ClientCall, Destination, client_call, destination
from fastrelay.front.http.messages import Fields


def refused(target: bytes) -> MessageError:
    with pytest.raises(MessageError) as caught:
        client_call(target)
    return caught.value


@pytest.mark.parametrize(
    ("target", "call"),
    [
        (b"/client/home/http/10.0.0.5", ("home", "http", "10.0.0.5", 80, b"10.0.0.5", b"/", CLIENT_TIME)),
        (b"/client/home/http/10.0.0.5:8080/", ("home", "http", "10.0.0.5", 8080, b"10.0.0.5:8080", b"/", CLIENT_TIME)),
        (b"/client/a.b-c/https/A.Example/x", ("a.b-c", "https", "a.example", 443, b"A.Example", b"/x", CLIENT_TIME)),
        (
            b"/client/h/https/[2001:DB8::7]:8443?q",
            ("h", "https", "2001:db8::7", 8443, b"[2001:DB8::7]:8443", b"/?q", CLIENT_TIME),
        ),
        (b"/client/h/http/x?timeout=2.5", ("h", "http", "x", 80, b"x", b"/", 2.5)),
        (b"/client/h/http/x/p?a=1&timeout=30&b=2", ("h", "http", "x", 80, b"x", b"/p?a=1&b=2", 30.0)),
        (
            b"/client/h/http/x/p?atimeout=1&timeouts",
            ("h", "http", "x", 80, b"x", b"/p?atimeout=1&timeouts", CLIENT_TIME),
        ),
        (b"/client/h/http/x/p?", ("h", "http", "x", 80, b"x", b"/p?", CLIENT_TIME)),
        (
            b"/client/h/http/x/../../etc/%2e%2e/a%2Fb//c",
            ("h", "http", "x", 80, b"x", b"/../../etc/%2e%2e/a%2Fb//c", CLIENT_TIME),
        ),
        (b"/client/h/http/x//y", ("h", "http", "x", 80, b"x", b"//y", CLIENT_TIME)),
        (
            b"/client/h/http/xn--bcher-kva.example/",
            ("h", "http", "xn--bcher-kva.example", 80, b"xn--bcher-kva.example", b"/", CLIENT_TIME),
        ),
    ],
)
def test_a_client_and_a_destination(target: bytes, call: tuple[str, str, str, int, bytes, bytes, float]) -> None:
    assert client_call(target) == ClientCall(call[0], Destination(*call[1:6]), call[6])


@pytest.mark.parametrize(
    "target",
    [
        b"/client/",
        b"/client/home",
        b"/client/home/http",
        b"/client/home/http/",
        b"/client/home/http//x",
        b"/client//http/x/",
        b"/client/../http/x/",
        b"/client/%2e%2e/http/x/",
        b"/client/Home/http/x/",
        b"/client/" + b"a" * 64 + b"/http/x/",
        b"/client/home/ftp/x/",
        b"/client/home/HTTP/x/",
        b"/client/home/file//etc/passwd",
        b"/client/home/http/x:0/",
        b"/client/home/http/x:70000/",
        b"/client/home/http/x:/",
        b"/client/home/http/x:80:80/",
        b"/client/home/http/user@x/",
        b"/client/home/http/user:pw@x:80/",
        b"/client/home/http/::1/",
        b"/client/home/http/[::1/",
        b"/client/home/http/[]:80/",
        b"/client/home/http/[fe80::1%25eth0]:80/",
        b"/client/home/http/127.1/",
        b"/client/home/http/2130706433/",
        b"/client/home/http/b\xc3\xbccher.example/",
        b"/client/home/http/b%C3%BCcher.example/",
        b"/client/home/http/x%2Fy/",
        b"/client/home/http/-x/",
        b"/client/home/http/" + b"a" * 64 + b".example/",
        b"/client/home/http/" + b"a." * 127 + b"aa/",
        b"/client/home/http/x?timeout=0",
        b"/client/home/http/x?timeout=-1",
        b"/client/home/http/x?timeout=",
        b"/client/home/http/x?timeout",
        b"/client/home/http/x?timeout=1e9",
        b"/client/home/http/x?timeout=nan",
        b"/client/home/http/x?timeout=3601",
        b"/client/home/http/x?timeout=1&timeout=1",
        b"/client/home/http/x?timeout=1&timeout=2",
    ],
)
def test_what_is_no_call_is_refused_with_400(target: bytes) -> None:
    error = refused(target)
    assert error.status == 400 and error.text.endswith(".")


paths = st.lists(
    st.sampled_from([b"/", b"..", b".", b"%2F", b"%00", b"a", b"=", b"&", b"@", b":", b"//", b"x%zz"]), max_size=12
).map(b"".join)


@given(paths, paths)
def test_paths_and_queries_pass_as_they_came(path: bytes, query: bytes) -> None:
    call = client_call(b"/client/home/http/10.0.0.5:8080/" + path + b"?" + query)
    assert call.destination.path == b"/" + path + b"?" + query
    assert (call.destination.target, call.time) == ("10.0.0.5:8080", CLIENT_TIME)


@given(st.binary(max_size=60).map(lambda raw: b"/client/" + raw))
def test_a_call_is_valid_or_refused(target: bytes) -> None:
    try:
        call = client_call(target)
    except MessageError:
        return
    assert NAME.fullmatch(call.client) and 0 < call.destination.port < 65536
    assert call.destination.scheme in ("http", "https") and call.destination.path.startswith(b"/")
    assert call.destination.authority in target and 0 < call.time <= calls.MOST_TIME


# --- X-PROXY-DESTINATION -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"http://10.0.0.5", ("http", "10.0.0.5", 80, b"10.0.0.5", b"/")),
        (b"HTTPS://A.Example:8443/x?y=1", ("https", "a.example", 8443, b"A.Example:8443", b"/x?y=1")),
        (b"http://[::1]:8080?y", ("http", "::1", 8080, b"[::1]:8080", b"/?y")),
        (b"http://x/a%2Fb/../c#here", ("http", "x", 80, b"x", b"/a%2Fb/../c")),
        (b"http://x/?u=http://y@z/", ("http", "x", 80, b"x", b"/?u=http://y@z/")),
    ],
)
def test_a_destination(value: bytes, expected: tuple[str, str, int, bytes, bytes]) -> None:
    assert destination(Fields.of([(b"X-Proxy-Destination", value)])) == Destination(*expected)


@pytest.mark.parametrize(
    "values",
    [
        (b"",),
        (b"x",),
        (b"/path",),
        (b"//x/",),
        (b"http:///x",),
        (b"http:x",),
        (b"ftp://x/",),
        (b"file:///etc/passwd",),
        (b"http://user@x/",),
        (b"http://user:pw@x/",),
        (b"http://x:0/",),
        (b"http://x:70000/",),
        (b"http://x:port/",),
        (b"http://x y/",),
        (b"http://x/a b",),
        (b"http://x/\xc3\xbc",),
        (b"http://b\xc3\xbccher.example/",),
        (b"http://x%00/",),
        (b"http://[::1/",),
        (b"http://127.1/",),
        (b"http://0x7f.1/",),
        (b"http://x\\y/",),
        (b"http://x/", b"http://x/"),
    ],
)
def test_what_is_no_destination_is_unparsable(values: tuple[bytes, ...]) -> None:
    with pytest.raises(MessageError) as caught:
        destination(Fields.of([(b"X-PROXY-DESTINATION", value) for value in values]))
    assert (caught.value.status, caught.value.text) == (526, "Unable to parse X-PROXY-DESTINATION header")


def test_a_destination_that_is_missing() -> None:
    with pytest.raises(MessageError) as caught:
        destination(Fields.of([(b"X-Proxy-Destinations", b"http://x/")]))
    assert (caught.value.status, caught.value.text) == (526, "Missing X-PROXY-DESTINATION header")
