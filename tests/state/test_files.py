"""Where a state directory is, and the sentences for one that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fastrelay.state import ClientState, ServerState, default_state, files
from tests.support.state import URL, posix, refused

with_proc = pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="needs a directory where not even root may write"
)


def test_default_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_state("server") == tmp_path / "fastrelay" / "server"
    assert default_state("client") == tmp_path / "fastrelay" / "client"


@pytest.mark.parametrize("xdg", ["", "relative", None])
def test_default_state_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, xdg: str | None) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    if xdg is None:
        monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_STATE_HOME", xdg)
    assert default_state("server") == tmp_path / ".local" / "state" / "fastrelay" / "server"


def test_default_state_without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    refused(lambda: default_state("client"), "--state")


# --- directories that cannot be used -----------------------------------------------------------------------------------

OPENERS: list[Callable[[Path], object]] = [ServerState.open, lambda path: ClientState.open(path, URL, "home")]


@pytest.mark.parametrize("opened", OPENERS)
def test_not_a_directory(opened: Callable[[Path], object], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    refused(lambda: opened(file), f"The state directory {file} cannot be used", "Not a directory", "--state")
    refused(lambda: opened(file / "below"), f"The state directory {file / 'below'} cannot be used", "Not a directory")


@with_proc
@pytest.mark.parametrize("opened", OPENERS)
@pytest.mark.parametrize("name", ["/proc/self", "/proc/self/state"])
def test_not_writable(opened: Callable[[Path], object], name: str) -> None:
    refused(lambda: opened(Path(name)), f"The state directory {name} cannot be used", "--state")


@posix
@pytest.mark.parametrize("opened", OPENERS)
def test_a_file_system_without_locks(
    opened: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(fd: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    refused(lambda: opened(tmp_path), f"The state directory {tmp_path} cannot be used", "No locks available")


def test_read_only_in_what_is_no_directory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    refused(
        lambda: ServerState.open(file, read_only=True), f"The state directory {file} cannot be used", "Not a directory"
    )


@pytest.mark.parametrize("name", [r"\u001b[2J", r"\ud800", "\U0007c4a5"])
def test_what_a_damaged_file_says_is_safe_to_print(tmp_path: Path, name: str) -> None:
    class Form(msgspec.Struct, forbid_unknown_fields=True):
        pass

    path = tmp_path / "file.json"
    path.write_text(f'{{"{name}": 1}}')
    refused(lambda: files.read_json(path, Form), "file.json", "is damaged")
