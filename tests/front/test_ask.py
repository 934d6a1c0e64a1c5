"""What programs ask of a proxy: whole, at every cut, and nonsense."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay.errors import AskError, Code
from fastrelay.front.ask import MOST, Ask

HELLO = b"\x05\x01\x00"
CONNECT = b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"


def socks(address: bytes, port: int = 443, command: int = 1) -> bytes:
    return b"\x05" + bytes((command, 0)) + address + port.to_bytes(2, "big")


V4 = b"\x01" + bytes((192, 0, 2, 7))
V6 = b"\x04" + bytes.fromhex("20010db8000000000000000000000007")
NAME = b"\x03\x0bexample.com"


@pytest.mark.parametrize(
    ("raw", "target", "said"),
    [
        (HELLO + socks(V4), ("192.0.2.7", 443), b"\x05\x00"),
        (HELLO + socks(V6, 22), ("2001:db8::7", 22), b"\x05\x00"),
        (HELLO + socks(NAME, 65_535), ("example.com", 65_535), b"\x05\x00"),
        (HELLO + socks(b"\x03\x07fe80::1", 1), ("fe80::1", 1), b"\x05\x00"),
        (HELLO + socks(b"\x03\x0bEXAMPLE.com", 1), ("example.com", 1), b"\x05\x00"),
        (HELLO + socks(b"\x04" + bytes.fromhex("00000000000000000000ffff0a000005"), 1), ("10.0.0.5", 1), b"\x05\x00"),
        (b"\x05\x03\x02\x01\x00" + socks(V4), ("192.0.2.7", 443), b"\x05\x00"),
        (CONNECT, ("example.com", 443), b""),
        (b"CONNECT [2001:DB8::7]:22 HTTP/1.1\r\nHost: x\r\n\r\n", ("2001:db8::7", 22), b""),
        (b"CONNECT 10.0.0.5:5432 HTTP/1.0\r\n\r\n", ("10.0.0.5", 5432), b""),
    ],
)
@pytest.mark.parametrize("rest", [b"", b"\x16\x03\x01", b"SSH-2.0-x\r\n"])
def test_requests(raw: bytes, target: tuple[str, int], said: bytes, rest: bytes) -> None:
    for cut in range(1, len(raw)):
        ask = Ask()
        reply = ask.feed(raw[:cut])
        early = ask.target
        assert early is None
        reply += ask.feed(raw[cut:] + rest)
        assert ask.target == target
        assert (ask.rest, reply) == (rest, said)


@pytest.mark.parametrize(
    ("raw", "reply"),
    [
        (b"\x05\x01\x02", b"\x05\xff"),
        (b"\x05\x00", b"\x05\xff"),
        (HELLO + socks(V4, command=2), b"\x05\x07"),
        (HELLO + socks(V4, command=3), b"\x05\x07"),
        (HELLO + socks(b"\x02" + bytes(4)), b"\x05\x08"),
        (HELLO + socks(V4, 0), b"\x05\x01"),
        (HELLO + socks(b"\x03\x00"), b"\x05\x01"),
        (HELLO + socks(b"\x03\x05a b\r\n"), b"\x05\x01"),
        (HELLO + socks(b"\x03\x05127.1"), b"\x05\x01"),
        (HELLO + socks(b"\x03\x0a0x7f000001"), b"\x05\x01"),
        (HELLO + socks(b"\x03\x0c127.0.0.1\0.x"), b"\x05\x01"),
        (HELLO + socks(b"\x03\x07../../x"), b"\x05\x01"),
        (HELLO + socks(b"\x03\x0fm\xc3\xbcnchen.example"), b"\x05\x01"),
        (HELLO + socks(b"\x03\xff" + b"a" * 255), b"\x05\x01"),
        (b"CONNECT 127.1:80 HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400 "),
        (b"CONNECT 2130706433:80 HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400 "),
        (b"CONNECT m\xc3\xbcnchen.example:80 HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400 "),
        (b"CONNECT ../../etc:80 HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400 "),
        (b"CONNECT /etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400 "),
        (b"CONNECT example.com:443/x HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400 "),
        (
            b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 400 ",
        ),
        (HELLO + b"\x04\x01\x00\x01" + bytes(6), b"\x05\x01"),
        (b"\x04\x01\x00\x50", b"HTTP/1.1 400 "),
        (b"\x16\x03\x01\x02\x00\x01", b"HTTP/1.1 400 "),
        (b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 "),
        (b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n", b"HTTP/1.1 405 "),
        (b"CONNECT example.com HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400 "),
        (b"CONNECT example.com:0 HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400 "),
        (b"CONNECT example.com:70000 HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400 "),
        (b"CONNECT user@example.com:80 HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400 "),
        (b"CONNECT [::zz]:80 HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", b"HTTP/1.1 400 "),
        (CONNECT[:-2] + b"X: " + b"y" * MOST, b"HTTP/1.1 502 "),
    ],
)
def test_what_is_not_served_is_told_so(raw: bytes, reply: bytes) -> None:
    ask = Ask()
    with pytest.raises(AskError) as caught:
        ask.feed(raw)
    assert caught.value.reply.startswith(reply) and ask.target is None


@pytest.mark.parametrize("code", list(Code))
def test_answers(code: Code) -> None:
    one, two = Ask(), Ask()
    one.feed(HELLO + socks(V4))
    two.feed(CONNECT)
    answer, response = one.answer(code), two.answer(code)
    assert len(answer) == 10 and answer[0] == 5 and (answer[1] == 0) is (code is Code.NO_ERROR)
    assert response.startswith(b"HTTP/1.1 200 ") is (code is Code.NO_ERROR)
    head, _, body = response.partition(b"\r\n\r\n")
    assert code is Code.NO_ERROR or f"Content-Length: {len(body)}".encode() in head


@given(
    st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=8), st.sampled_from([b"", HELLO, b"CONNECT "])
)
def test_any_bytes(pieces: list[bytes], start: bytes) -> None:
    """Nothing but a wait, a target that can be, or an AskError with an answer."""
    ask = Ask()
    for piece in [start, *pieces] if start else pieces:
        try:
            ask.feed(piece)
        except AskError as error:
            replied = error.reply
            break
        if ask.target is not None:
            host, port = ask.target
            assert host and host.isascii() and host.isprintable() and " " not in host and 0 < port <= 65_535
            return
    else:
        return
    assert replied


def test_readme_says_what_is_answered() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    table = text.split("| what became of it | SOCKS5 |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (.+?) \| ([0-9]+)(?:; ([0-9]+))? \| ([0-9]*) ?\|$", table, re.MULTILINE)
    told = {what: (int(socks_), int(status or 0)) for what, socks_, _, status in rows}
    codes = {
        "connected": (Code.NO_ERROR,),
        "the token, or the client, does not allow it": (Code.DENIED, Code.DIAL_DENIED, Code.DIAL_FORBIDDEN),
        "there is no such client, or it is away": (Code.NO_SERVICE, Code.AWAY),
        "the target cannot be reached": (Code.UNREACHABLE,),
        "the target did not answer": (Code.DIAL_TIMEOUT,),
        "the target refused": (Code.REFUSED,),
    }
    named = {code for listed in codes.values() for code in listed}
    codes["anything else failed"] = tuple(set(Code) - named)
    for what, listed in codes.items():
        for code in listed:
            one, two = Ask(), Ask()
            one.feed(HELLO + socks(V4))
            two.feed(CONNECT)
            assert (one.answer(code)[1], int(two.answer(code).split()[1])) == told[what], code
    refusals = {
        "a host or port that cannot be, or no request at all": (HELLO + socks(V4, 0), b"\x16\x03\x01\x02\x00\x01"),
        "a command other than CONNECT": (HELLO + socks(V4, command=2), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    }
    for what, asked in refusals.items():
        replies = []
        for raw in asked:
            with pytest.raises(AskError) as caught:
                Ask().feed(raw)
            replies.append(caught.value.reply)
        assert (replies[0][1], int(replies[1].split()[1])) == told[what]
    assert told.keys() == {*codes, *refusals, "an address of a kind that there is not; a login"}
