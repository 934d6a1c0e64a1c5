"""Start-up stays light: what a command must not load, told by the interpreter itself in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"cryptography", "unittest", "multiprocessing", "xml", "http", "email", "sqlite3", "curses", "pytest"}


def loaded_by(code: str) -> set[str]:
    """Names of the modules and packages that are there after the code has run."""
    script = f"import sys\n{code}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    names = run.stdout.split()
    return {*names, *(name.partition(".")[0] for name in names)}


def test_help_loads_no_loop_and_no_tls() -> None:
    assert not loaded_by("import fastrelay.cli") & (HEAVY | {"asyncio", "ssl", "uvloop", "fastrelay.app", "msgspec"})


def test_a_client_does_not_load_the_relay() -> None:
    modules = loaded_by("import fastrelay.app, fastrelay.roles.client")
    assert not modules & (
        HEAVY | {"fastrelay.roles.server", "fastrelay.roles.registry", "fastrelay.net.listen", "fastrelay.net.door"}
    )


def test_a_relay_does_not_load_the_client() -> None:
    modules = loaded_by("import fastrelay.app, fastrelay.roles.server")
    assert not modules & (HEAVY | {"fastrelay.roles.client", "fastrelay.net.dial"})


@pytest.mark.parametrize("room", ["wire", "limits", "auth", "policy", "mux.session", "mux.greeting", "roles.registry"])
def test_pure_rooms_load_no_io(room: str) -> None:
    assert not loaded_by(f"import fastrelay.{room}") & {"asyncio", "ssl", "uvloop", "selectors"}
