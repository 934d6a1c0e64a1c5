"""The floors of the house, as data. A room imports itself, rooms of its own package, and what is on lower floors; lazily too."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastrelay
from fastrelay import errors

ROOT = Path(fastrelay.__file__).parent
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("wire", "metrics", "log", "disk", "matching"),
    ("networks", "limits"),
    ("dialling",),
    ("config",),
    ("auth", "policy", "mux"),
    ("net", "state"),
    ("roles",),
    ("front", "cluster", "admin", "demo"),
    ("app", "console", "audit"),
    ("api",),
    ("sync", "httpx", "asgi"),
    ("testing",),
    ("cli", ""),
)
SIDEWAYS = {("mux", "auth"), ("policy", "auth")}
"""The greeting carries the proofs; a key checks one. Nothing else on one floor knows its neighbour."""

FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
IMPURE = {
    *("asyncio", "socket", "ssl", "select", "selectors", "os", "time", "random", "secrets", "logging", "threading"),
    *("signal", "subprocess", "uvloop", "fcntl"),
}
PURE = {"errors", "networks", "wire", "limits", "config", "auth", "policy", "mux", "matching", "dialling"}
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
each_file = pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])


def room(path: Path) -> str:
    """The room that a file is in: `mux` for mux/stream.py, `wire` for wire.py, "" for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return {"__init__": "", "__main__": "cli"}.get(parts[0], parts[0])


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            assert node.module is not None
            if node.module == "fastrelay":  # `from fastrelay import wire`
                yield from (f"fastrelay.{alias.name}" for alias in node.names)
            else:
                yield node.module


@each_file
def test_floors(path: Path) -> None:
    here = room(path)
    for name in imports(path):
        first, _, rest = name.partition(".")
        there = rest.split(".")[0]
        if first != "fastrelay" or there in (here, "", "__version__"):
            continue
        assert here in FLOOR and there in FLOOR, f"{here or 'fastrelay'} imports {there}: one of them is on no floor"
        assert FLOOR[there] < FLOOR[here] or (here, there) in SIDEWAYS, f"{here} must not know {there}"


@each_file
def test_every_room_has_a_floor_and_a_head(path: Path) -> None:
    assert room(path) in {*FLOOR, ""}
    assert ast.get_docstring(TREES[path]), "the file does not say why it exists"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, "too long to be read"


@each_file
def test_pure_rooms_know_no_loop_no_clock_and_no_dice(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)} & IMPURE
    if room(path) in PURE:
        assert not outside
    if room(path) not in ("net", "app", "cli"):
        assert "uvloop" not in outside


@each_file
def test_only_the_command_line_prints_and_exits(path: Path) -> None:
    if room(path) == "cli":
        return
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("print", "sys.exit", "exit", "quit", "os._exit"), (
                f"line {node.lineno}"
            )
        assert not (isinstance(node, ast.Name) and node.id == "SystemExit"), "only cli ends the process"


@each_file
def test_exceptions_are_defined_in_errors(path: Path) -> None:
    known = {name for name, value in [*vars(builtins).items(), *vars(errors).items()] if _is_exception(value)}
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ClassDef) and room(path) != "errors":
            bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
            assert not bases & known, f"{node.name} belongs in errors.py"


def _is_exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)
