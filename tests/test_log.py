"""Events: how they are said, and that README, "Audit log", lists those that the code has, with their levels and fields."""

from __future__ import annotations

import ast
import errno
import logging
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastrelay
from fastrelay import log
from fastrelay.errors import Code, PinError, ProtocolError, RefusedError
from fastrelay.roles.targets import Target
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
                    fields |= shared.get((path, name)) or elsewhere[0]
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
    with caplog.at_level(log.NOTE, "fastrelay"):
        log.note("one.event", "100 % of %s", port=1)
        log.info("two.event", "b", nothing=None)
        log.warning("three.event", "c")
        log.error("four.event", "d", port=2)
    assert [(r.levelname, vars(r)["event"], r.getMessage(), vars(r)["fields"]) for r in caplog.records] == [
        ("NOTE", "one.event", "100 % of %s", {"port": 1}),
        ("INFO", "two.event", "b", {}),
        ("WARNING", "three.event", "c", {}),
        ("ERROR", "four.event", "d", {"port": 2}),
    ]


def test_what_nobody_hears_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(log, "record", lambda *_, **__: made.append(1))
    monkeypatch.setattr(log.LOGGER, "handle", lambda _: None)
    monkeypatch.setattr(log.LOGGER, "level", logging.INFO)
    log.LOGGER.manager._clear_cache()  # type: ignore[attr-defined]
    assert not log.audited()
    log.note("one.event", "b")
    assert not made
    log.info("one.event", "b")
    assert made
    log.LOGGER.manager._clear_cache()  # type: ignore[attr-defined]


# --- causes -------------------------------------------------------------------------------------------------------------------


def test_readme_lists_every_cause() -> None:
    section = README.read_text(encoding="utf-8").split("| cause | ")[1].split("\n\n")[0]
    listed = {cause for row in section.splitlines() for cause in re.findall(r"`([a-z-]+)`", row.split("|")[1])}
    sides = {"visitor-reset", "target-reset"}
    assert {Visitor.near, Visitor.far} == {Target.near, Target.far} == sides and Visitor.near == Target.far
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
