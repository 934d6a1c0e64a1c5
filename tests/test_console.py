"""What a person, or a program, reads on stderr."""

from __future__ import annotations

import io
import json
import logging
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrelay import console
from fastrelay.console import Lines, own_address, paint
from fastrelay.log import JsonLines


def record(text: str, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("fastrelay", level, "file.py", 1, "%s", (text,), None)
    made.__dict__.update(extra)
    return made


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_json_line() -> None:
    line = JsonLines().format(
        record("Client é connected.", logging.WARNING, event="client.connected", fields={"port": 7, "name": "x"})
    )
    assert "\n" not in line
    members = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", members.pop("ts"))
    assert members == {
        "level": "warning",
        "event": "client.connected",
        "text": "Client é connected.",
        "port": 7,
        "name": "x",
    }


@given(st.text(st.characters()))
def test_any_text_is_one_json_line(text: str) -> None:
    line = JsonLines().format(record(text))
    assert "\n" not in line and json.loads(line)["text"] == text


def test_a_path_that_is_not_utf8_is_still_a_line() -> None:
    text = b"unix:/tmp/\xff".decode("utf-8", "surrogateescape")
    line = JsonLines().format(record(text, fields={"target": text}))
    line.encode("ascii")
    assert json.loads(line)["target"] == text


def test_exceptions_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    try:
        raise ValueError("broken")
    except ValueError:
        made = record("A task failed.", exc_info=sys.exc_info())
    assert "ValueError: broken" in json.loads(JsonLines().format(made))["traceback"]
    assert Lines().format(made).endswith("ValueError: broken")


@given(st.text(st.characters()))
def test_nothing_of_strangers_moves_the_cursor(text: str) -> None:
    line = Lines().format(record(text))
    assert line.isprintable()


def test_writes_to_what_has_just_ended_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    loops = logging.getLogger("asyncio")
    with caplog.at_level(logging.WARNING, "asyncio"):
        console.set_up_logging()
        loops.warning("SSL connection is closed")
        loops.warning("Unknown child process pid %d", 1)
    loops.removeFilter(console._worth_saying)
    assert caplog.messages == ["Unknown child process pid 1"]


@pytest.mark.parametrize(
    ("environment", "colour"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), (None, False)]
)
def test_colour_only_where_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str] | None, colour: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", io.StringIO() if environment is None else Terminal())
    for name, value in (environment or {}).items():
        monkeypatch.setenv(name, value)
    assert paint("!", "33") == ("\x1b[33m!\x1b[0m" if colour else "!")
    assert paint("!", "") == "!"
    assert ("\x1b" in Lines().format(record("text", logging.ERROR))) is colour
    assert "\x1b" not in Lines().format(record("text", logging.INFO))


@pytest.mark.parametrize(("stream", "form"), [(Terminal, Lines), (io.StringIO, JsonLines)])
def test_a_terminal_gets_lines_and_a_pipe_gets_json(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], form: type[logging.Formatter]
) -> None:
    root = logging.Logger("root")  # noqa: LOG001 - a root of our own
    made: list[logging.Handler] = []
    monkeypatch.setattr(logging, "basicConfig", lambda handlers, level: made.extend(handlers))
    monkeypatch.setattr(sys, "stderr", stream())
    console.set_up_logging()
    assert [type(handler.formatter) for handler in made] == [form]
    assert root.level == logging.NOTSET


def test_the_address_to_tell() -> None:
    assert own_address("192.0.2.7") == "192.0.2.7"
    assert own_address("relay.example") == "relay.example"
    for everywhere in ("::", "0.0.0.0"):
        assert own_address(everywhere) not in ("", "::", "0.0.0.0")


def test_who_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    for out, err in ((True, True), (True, False), (False, True)):
        monkeypatch.setattr(sys, "stdout", Terminal() if out else io.StringIO())
        monkeypatch.setattr(sys, "stderr", Terminal() if err else io.StringIO())
        assert console.interactive() is (out and err)
