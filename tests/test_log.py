"""Events: how they are said, and that README, "Audit log", lists those that the code has, with their levels and fields."""

from __future__ import annotations

import ast
import datetime
import errno
import json
import logging
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrelay
from fastrelay import log
from fastrelay.errors import Code, PinError, ProtocolError, RefusedError
from fastrelay.roles.targets import TargetEdge
from fastrelay.roles.visitors import AuditedVisitor as Visitor

ROOT = Path(fastrelay.__file__).parent
README = ROOT.parent / "README.md"
LEVELS = {"note", "info", "warning", "error"}

TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


Events = dict[str, tuple[set[str], set[str]]]
"""Event -> (levels, fields)"""


def level_of(call: ast.Call) -> str:
    """The level of `log.warning(…)`; "" of any other call."""
    name = ast.unparse(call.func)
    return name.removeprefix("log.") if name.startswith("log.") and name.removeprefix("log.") in LEVELS else ""


def functions() -> Iterator[tuple[Path, ast.FunctionDef]]:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and path.name != "log.py":
                yield path, node


def shared_fields() -> dict[tuple[Path, str], set[str]]:
    """(file, function) -> the keys of the dict that it returns, for events that have fields in common: `**self._who()`."""
    found = {}
    for path, function in functions():
        for answer in (node for node in ast.walk(function) if isinstance(node, ast.Return)):
            for made in (node for node in ast.walk(answer) if isinstance(node, ast.Dict) and node.keys):
                found[path, function.name] = {
                    str(key.value) if isinstance(key, ast.Constant) else "" for key in made.keys
                }
    return found


def messengers() -> dict[str, tuple[int, str]]:
    """Functions that say the event in their argument `event`: where it stands in a call, and at which level they say it."""
    found = {}
    for _, function in functions():
        names = [argument.arg for argument in function.args.args if argument.arg != "self"]
        for node in ast.walk(function):
            if "event" in names and isinstance(node, ast.Call) and level_of(node):
                found[function.name] = names.index("event"), level_of(node)
    return found


def in_the_code() -> Events:
    """From every call that says an event; one whose name is not in place is an error, but in a function that takes it as `event`."""
    found: Events = {}
    shared, indirect = shared_fields(), messengers()
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if level := level_of(node):
                event = node.args[0]
            elif called == "log.record":
                level, event = ast.unparse(node.args[0]).rpartition(".")[2].lower(), node.args[1]
            elif called.rpartition(".")[2] in indirect and len(node.args) > indirect[called.rpartition(".")[2]][0]:
                place, level = indirect[called.rpartition(".")[2]]
                event = node.args[place]
                if called.endswith(".say"):  # `Notices` says how many it has kept back
                    found.setdefault(str(getattr(event, "value", "")), (set(), set()))[1].add("count")
            else:
                continue
            if isinstance(event, ast.Name) and event.id == "event":
                continue
            assert isinstance(event, ast.Constant), f"{path}:{node.lineno}: an event is named in place"
            levels, fields = found.setdefault(str(event.value), (set(), set()))
            levels.add(level)
            for keyword in node.keywords:
                if keyword.arg is not None:
                    fields.add(keyword.arg)
                elif ast.unparse(keyword.value) != "fields":
                    name = ast.unparse(keyword.value).removesuffix("()").rpartition(".")[2]
                    elsewhere = [keys for (_, function), keys in shared.items() if function == name]
                    fields |= shared.get((path, name)) or set().union(*elsewhere)
    return found


def in_the_readme() -> Events:
    text = README.read_text(encoding="utf-8")
    section = text.split("\n## Audit log\n")[1].split("\n## ")[0]
    found: Events = {}
    for row in re.findall(r"^\| `(.+?)` \| (.+?) \| (.*?) ?\| .+ \|$", section, re.MULTILINE):
        event, levels, fields = row
        assert event not in found, f"{event} is listed twice"
        found[event] = set(levels.split(", ")), set(fields.split(", ")) - {""}
    assert list(found) == sorted(found), "in the order of the alphabet"
    return found


def test_readme_lists_every_event() -> None:
    code, readme = in_the_code(), in_the_readme()
    assert len(code) > 15
    assert readme.keys() == code.keys()
    for event, (levels, fields) in code.items():
        assert re.fullmatch(r"[a-z]+\.[a-z_]+", event)
        assert readme[event] == (levels, fields), event
        assert not fields & {"ts", "level", "event", "text", "traceback"}, event


def test_an_event_is_a_record_with_its_level_name_and_fields(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fastrelay"):
        log.info("one.event", "100 % of %s", port=1, nothing=None)
        log.warning("two.event", "b")
        log.error("three.event", "c", port=2)
    assert [(r.levelname, vars(r)["event"], r.getMessage(), vars(r)["fields"]) for r in caplog.records] == [
        ("INFO", "one.event", "100 % of %s", {"port": 1}),
        ("WARNING", "two.event", "b", {}),
        ("ERROR", "three.event", "c", {"port": 2}),
    ]


def test_a_note_goes_to_who_audits_and_to_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[tuple[str, str, dict[str, object]]] = []
    with caplog.at_level(1):
        log.note("one.event", "nobody hears this")
        assert not log.audited()
        log.audit(lambda *what: heard.append(what))
        assert log.audited()
        log.note("two.event", "100 % of %s", port=1)
        log.audit(None)
        assert not log.audited()
        log.note("three.event", "nor this")
    assert heard == [("two.event", "100 % of %s", {"port": 1})] and not caplog.records


@given(st.floats(0, 1e10))
def test_a_time_is_that_of_the_event(when: float) -> None:
    told = json.loads(log.line(when, "note", "one.event", "It happened.", {}))["ts"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told)
    assert abs(datetime.datetime.fromisoformat(told).timestamp() - when) < 0.002


@settings(max_examples=40)
@given(st.text(st.characters()), st.dictionaries(st.text(), st.text(st.characters()) | st.integers() | st.binary()))
def test_any_event_is_one_line_of_printable_ascii(text: str, fields: dict[str, object]) -> None:
    made = log.line(0.0, "note", "one.event", text, fields)
    assert made.isascii() and made.isprintable()
    assert json.loads(made).get("text") == fields.get("text", text)


# --- causes -------------------------------------------------------------------------------------------------------------------


def test_readme_lists_every_cause() -> None:
    section = README.read_text(encoding="utf-8").split("| cause | ")[1].split("\n\n")[0]
    listed = {cause for row in section.splitlines() for cause in re.findall(r"`([a-z-]+)`", row.split("|")[1])}
    sides = {"visitor-reset", "target-reset"}
    assert {Visitor.near, Visitor.far} == {TargetEdge.near, TargetEdge.far} == sides and Visitor.near == TargetEdge.far
    # A reset is always somebody's.
    assert listed == {*log.CAUSES.values(), *sides, "tunnel-lost"} - {"reset"}


def test_every_code_has_a_cause() -> None:
    assert log.CAUSES.keys() == set(Code)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (None, "tunnel-lost"),
        (ConnectionResetError(), "tunnel-lost"),
        (ConnectionAbortedError("nothing heard"), "tunnel-lost"),
        (ProtocolError(Code.SHUTDOWN, ""), "shutdown"),
        (RefusedError(Code.UNAUTHORIZED, ""), "denied"),
        (ProtocolError(Code.CALM, ""), "limit"),
        (ProtocolError(Code.NO_ERROR, "the token has changed"), "denied"),
        (PinError(), "denied"),
        (ssl.SSLCertVerificationError(), "denied"),
        (ssl.SSLError(), "protocol"),
        (TimeoutError(), "timeout"),
        (OSError(errno.EMFILE, ""), "limit"),
        (OSError(errno.EHOSTUNREACH, ""), "tunnel-lost"),
    ],
)
def test_the_cause_of_a_tunnels_end(error: Exception | None, cause: str) -> None:
    assert log.cause(error) == cause
