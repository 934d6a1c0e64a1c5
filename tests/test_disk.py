"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastrelay import disk


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_has_its_mode_and_nothing_is_left_beside_it(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "file"
    (tmp_path / ".file.new").write_bytes(b"of a run that was killed")
    for data in (b"one", b"and another one", b""):
        assert disk.write(file, data, mode) == data == file.read_bytes()
        assert file.stat().st_mode & 0o777 == mode
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("step", ["fsync", "fdopen"])
def test_what_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    file = tmp_path / "file"
    disk.write(file, b"before")

    def no_room(fd: int, *_: object) -> None:
        if step == "fdopen":
            os.close(fd)
        raise OSError(28, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, no_room)
        with pytest.raises(OSError):
            disk.write(file, b"after")
    assert file.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [file]
