"""The audit log: whole lines in order, or a count of what is missing; never a wait for whoever logs."""

from __future__ import annotations

import json
import logging
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fastrelay import audit, log
from fastrelay.audit import AuditLog
from fastrelay.errors import StartError

QUEUE = 1000


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_GATHER", "_LOOK_EVERY", "_RETRY"):
        monkeypatch.setattr(audit, name, 0.01)
    monkeypatch.setattr(audit, "QUEUE", QUEUE)


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def read(path: Path) -> list[dict[str, Any]]:
    """Every line is a JSON object, and the last one is whole."""
    text = path.read_text(encoding="ascii")
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.splitlines()]


def numbers(path: Path) -> list[int]:
    return [line["number"] for line in read(path) if line["event"] == "one.event"]


def say(*which: int) -> None:
    for number in which:
        log.note("one.event", "It happened.", number=number)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk with so much room in each file; the system then takes what fits of a write, and fails the next."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- what is in it ------------------------------------------------------------------------------------------------------------


def test_everything_is_a_line_with_its_fields(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastrelay")
    path = tmp_path / "audit"
    with AuditLog.open(path):
        assert log.audited()
        log.note("one.event", "A note.", port=7, name="é\x00\x7f\x9b", nothing=None, path=Path("/x"))
        log.info("two.event", "An event.")
        log.error("three.event", "100 % of %s")
        logging.getLogger("asyncio").warning("slow %s", "callback")
        logging.getLogger("fastrelay").debug("not this")
        logging.getLogger("other").info("nor this")
    lines = read(path)
    assert [(line["level"], line["event"], line["text"]) for line in lines] == [
        ("note", "one.event", "A note."),
        ("info", "two.event", "An event."),
        ("error", "three.event", "100 % of %s"),
        ("warning", "asyncio", "slow callback"),
    ]
    assert lines[0] | {"ts": ""} == {
        "ts": "", "level": "note", "event": "one.event", "text": "A note.",
        "port": 7, "name": "é\x00\x7f\x9b", "path": "/x",
    }  # fmt: skip
    assert "nothing" not in lines[0]
    raw = path.read_bytes()
    assert all(byte == 10 or 32 <= byte < 127 for byte in raw), "a control character of a stranger's"


def test_without_an_audit_log_notes_go_nowhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with AuditLog.open(tmp_path / "audit"):
        pass
    assert not log.audited()
    say(1)
    assert read(tmp_path / "audit") == [] and capsys.readouterr() == ("", "")


def test_the_console_is_not_told_notes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fastrelay import console

    made: list[logging.Handler] = []
    monkeypatch.setattr(logging, "basicConfig", lambda handlers, level: made.extend(handlers))
    console.set_up_logging()
    assert [handler.level for handler in made] == [logging.INFO]


def test_lines_of_many_threads_are_whole_and_none_is_missing(tmp_path: Path) -> None:
    with AuditLog.open(tmp_path / "audit"):
        threads = [threading.Thread(target=say, args=range(first, first + 200)) for first in range(0, 800, 200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(numbers(tmp_path / "audit")) == list(range(800))


def test_a_log_is_appended_to(tmp_path: Path) -> None:
    for number in range(3):
        with AuditLog.open(tmp_path / "audit"):
            say(number)
    assert numbers(tmp_path / "audit") == [0, 1, 2]


def test_half_a_line_of_a_machine_that_stopped_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    path.touch(0o600)
    path.write_bytes(b'{"event":"one.e')
    with AuditLog.open(path):
        say(1)
    half, whole, rest = path.read_bytes().split(b"\n")
    assert half == b'{"event":"one.e' and json.loads(whole)["number"] == 1 and rest == b""


def test_half_a_line_in_a_file_that_was_put_there_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    with AuditLog.open(path) as kept:
        path.rename(tmp_path / "audit.1")
        (tmp_path / "other").touch(0o600)
        (tmp_path / "other").write_bytes(b"half")
        (tmp_path / "other").rename(path)
        kept.reopen()
        say(1)
    assert path.read_bytes().startswith(b'half\n{"ts"')


def test_a_line_that_was_cut_off_is_ended_when_there_is_room_at_once(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    with AuditLog.open(path) as kept:
        with largest_file(6):
            rest = kept._append(b"one\ntwo\nthree\n")
        assert (path.read_bytes(), rest) == (b"one\ntw", b"two\nthree\n")
        assert kept._append(rest) == b""
    assert path.read_bytes() == b"one\ntw\ntwo\nthree\n"


# --- whose it is --------------------------------------------------------------------------------------------------------------


def test_the_file_is_made_for_its_owner(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with AuditLog.open(tmp_path / "audit"):
            assert (tmp_path / "audit").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o602, 0o666])
def test_a_file_of_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "audit"
    path.touch()
    path.chmod(mode)
    with pytest.raises(StartError, match=f"chmod 600 {path}"):
        AuditLog.open(path)
    assert not log.audited() and path.read_bytes() == b""


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "audit").touch(0o600)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(StartError, match="another user"):
        AuditLog.open(tmp_path / "audit")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("pipe", ".", "none/audit"):
        with pytest.raises(StartError, match="--audit"):
            AuditLog.open(tmp_path / name)
    with pytest.raises(StartError, match="--audit"):
        AuditLog.open(Path("/dev/full"))


# --- rotation -----------------------------------------------------------------------------------------------------------------


def test_reopen_after_a_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_LOOK_EVERY", 1e9)
    path, moved = tmp_path / "audit", tmp_path / "audit.1"
    with AuditLog.open(path) as kept:
        say(1)
        until(path.read_bytes, "the first line is there")
        path.rename(moved)
        say(2)
        until(lambda: len(numbers(moved)) == 2, "a file that was moved is still written")
        assert not path.exists()
        kept.reopen()
        until(path.exists, "asked to, it begins a new one, although nothing is to be said")
        assert path.stat().st_mode & 0o777 == 0o600
        say(3)
    assert (numbers(moved), numbers(path)) == ([1, 2], [3])


def test_a_file_that_is_gone_is_begun_anew_unasked(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    with AuditLog.open(path):
        for number in range(5):
            path.unlink()
            time.sleep(0.02)
            say(number)
            until(path.exists, "it is there again")
            until(lambda: numbers(path), "and has what was said since")
            assert numbers(path) == [number]


def test_a_new_file_that_others_can_read_does_not_replace_the_old_one(tmp_path: Path) -> None:
    path, moved = tmp_path / "audit", tmp_path / "audit.1"
    with AuditLog.open(path) as kept:
        path.rename(moved)
        path.touch()
        path.chmod(0o644)
        kept.reopen()
        until(lambda: kept.failures, "it was tried")
        say(1)
        until(lambda: numbers(moved) == [1], "the old one has it")
        assert path.read_bytes() == b""
    assert "chmod 600" in next(line["text"] for line in read(moved) if line["event"] == "audit.failed")


# --- disks that do not take it --------------------------------------------------------------------------------------------------


def test_who_logs_never_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that hangs: lines wait, those beyond the bound are counted, and the count comes where they are missing."""
    go = threading.Event()
    write = AuditLog._append

    def hangs(self: AuditLog, data: bytes) -> bytes:
        assert go.wait(10)
        return write(self, data)

    monkeypatch.setattr(AuditLog, "_append", hangs)
    with AuditLog.open(tmp_path / "audit") as kept:
        say(-1)
        until(lambda: not kept._queue, "the thread hangs")
        begin = time.monotonic()
        say(*range(QUEUE + 123))
        assert time.monotonic() - begin < 5 and len(kept._queue) == QUEUE
        go.set()
        until(lambda: not kept._queue, "there is room again")
        say(QUEUE + 123)
    lines = read(tmp_path / "audit")
    assert [line.get("number", line["event"]) for line in lines] == [-1, *range(QUEUE), "audit.dropped", QUEUE + 123]
    assert next(line["events"] for line in lines if line["event"] == "audit.dropped") == 123


def test_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lines wait until there is room; one that was cut off is said again, whole; the console is told once."""
    path = tmp_path / "audit"
    with AuditLog.open(path) as kept:
        with largest_file(1000):
            say(*range(30))
            until(lambda: kept.failures >= 5, "the disk is full")
            assert path.stat().st_size == 1000
        until(lambda: b'"number":29' in path.read_bytes(), "all of it is there")
    lines = path.read_text().splitlines()
    halves = [line for line in lines if not line.endswith("}")]
    assert len(halves) == 1
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    assert [line["number"] for line in whole if line["event"] == "one.event"] == list(range(30))
    failed = [record for record in caplog.records if vars(record)["event"] == "audit.failed"]
    assert len(failed) == 1 and str(path) in failed[0].getMessage()


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    path = directory / "audit"
    with AuditLog.open(path) as kept:
        path.unlink()
        directory.rmdir()
        time.sleep(0.02)
        say(0)
        until(lambda: kept.failures, "it cannot be written")
        said = 1
        while not kept._dropped:
            say(*range(said, said + 100))
            said += 100
        directory.mkdir()
        until(lambda: path.exists() and not kept._queue, "it is written again")
        say(said)
    lines = read(path)
    lost = [line["events"] for line in lines if line["event"] == "audit.dropped"]
    there = numbers(path)
    assert there == sorted(there) and there[-1] == said
    assert said + 1 - len(there) == sum(lost), "every event is there, or counted"
    assert [line["level"] for line in lines if line["event"] == "audit.failed"] == ["error"]


def test_the_end_does_not_wait_for_a_disk_for_ever(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "audit"
    kept = AuditLog.open(path)
    with largest_file(1):
        say(1, 2, 3)
        until(lambda: kept.failures, "the disk is full")
        begin = time.monotonic()
        kept.close()
        assert time.monotonic() - begin < 2
    lost = [vars(record)["fields"] for record in caplog.records if vars(record)["event"] == "audit.lost"]
    assert lost == [{"events": 4}], "three, and that they could not be written"
    kept.close()
