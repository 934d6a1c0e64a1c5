"""Events: how they are said, and that README, "Audit log", lists those that the code has, with their levels and fields."""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path

import pytest

import fastrelay
from fastrelay import log

ROOT = Path(fastrelay.__file__).parent
README = ROOT.parent / "README.md"
LEVELS = {"note", "info", "warning", "error"}

Events = dict[str, tuple[set[str], set[str]]]
"""Event -> (levels, fields)"""


def in_the_code() -> Events:
    """From every call that says an event, or hands one on to be said now and then; a name that is not literal is an error."""
    found: Events = {}
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        literals = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        known = set()
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called.removeprefix("log.") in LEVELS and called.startswith("log."):
                level, event = called.removeprefix("log."), node.args[0]
            elif called == "log.record":
                level, event = ast.unparse(node.args[0]).rpartition(".")[2].lower(), node.args[1]
            elif called.endswith("._complain") and len(node.args) == 3:
                level, event = "warning", node.args[1]
            else:
                continue
            if isinstance(event, ast.Name) and event.id == "event":
                continue  # inside of `_complain`
            assert isinstance(event, ast.Constant), f"{path}:{node.lineno}: an event is named in place"
            levels, fields = found.setdefault(str(event.value), (set(), set()))
            levels.add(level)
            fields.update(keyword.arg for keyword in node.keywords if keyword.arg is not None)
            known.add(event.value)
        nouns = {name.split(".")[0] for name in found}
        for literal in literals - known:
            if re.fullmatch(r"[a-z]+\.[a-z_]+", literal):
                assert literal.split(".")[0] not in nouns, f"{path}: {literal!r} looks like an event that nobody says"
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
