"""A real sshd behind the relay: logins, `ssh -W`, copies."""

from __future__ import annotations

import getpass
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import SPREAD, TWICE
from tests.support import need
from tests.support.payload import Checker, Keystream
from tests.support.peers import Address, background, free_port, listens, until
from tests.support.processes import DIRECT, Echo, Process, Relay, Way

MIB = 1024 * 1024


class Sshd(Process):
    """OpenSSH on loopback with keys and rules of its own; `options` lead a client to whatever port."""

    def __init__(self, home: Path) -> None:
        self.user = getpass.getuser()
        for name in ("host", "user"):
            subprocess.run(
                [need.program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)],
                check=True,
                timeout=30,
            )
        (home / "authorized_keys").write_bytes((home / "user.pub").read_bytes())
        port = free_port()
        config = {
            "ListenAddress": f"127.0.0.1:{port}",
            "HostKey": home / "host",
            "AuthorizedKeysFile": home / "authorized_keys",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            "MaxStartups": 200,
            "MaxSessions": 200,
            "Subsystem": "sftp internal-sftp",
        }
        (home / "sshd_config").write_text(
            "".join(f"{key} {value}\n" for key, value in config.items()), encoding="utf-8"
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's own rule
        self.address = ("127.0.0.1", port)
        key = (home / "host.pub").read_text(encoding="ascii").split()[:2]
        (home / "known_hosts").write_text(f"tested {' '.join(key)}\n", encoding="ascii")
        self.options = [
            "-F", "none", "-i", str(home / "user"), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "HostKeyAlias=tested",
            "-o", f"UserKnownHostsFile={home / 'known_hosts'}", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=20",
        ]  # fmt: skip
        super().__init__([need.program("sshd"), "-D", "-e", "-f", str(home / "sshd_config")])
        try:
            until(lambda: listens(self.address), "sshd listens")
        except BaseException:
            self.__exit__(AssertionError)
            raise

    def ssh(self, address: Address, *words: str) -> list[str]:
        return [
            need.program("ssh"),
            *self.options,
            "-p",
            str(address[1]),
            *words[:-1],
            f"{self.user}@{address[0]}",
            *words[-1:],
        ]

    def scp(self, address: Address, source: str, goal: str) -> list[str]:
        return [need.program("scp"), "-q", *self.options, "-P", str(address[1]), source, goal]


@pytest.fixture(scope="module", params=SPREAD, ids=repr)
def way(request: pytest.FixtureRequest) -> Way:
    assert isinstance(request.param, Way)
    return request.param


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    need.program("ssh")
    need.program("sshd")
    with Sshd(tmp_path_factory.mktemp("sshd")) as made:
        yield made


@pytest.fixture(scope="module")
def public(sshd: Sshd, way: Way, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """Where the relay offers sshd."""
    if DIRECT:
        yield sshd.address
        return
    with Relay(tmp_path_factory.mktemp("relay"), way, sshd.address) as relay:
        yield relay.addresses[0]


def run(command: list[str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
    )


def test_login(sshd: Sshd, public: Address) -> None:
    done = run(sshd.ssh(public, "echo you are in; exit 7"))
    assert (done.stdout, done.returncode) == ("you are in\n", 7), done.stderr


def test_login_times_20_at_once(sshd: Sshd, public: Address) -> None:
    start = time.monotonic()
    logins = [
        subprocess.Popen(
            sshd.ssh(public, f"echo login {number}"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(20)
    ]
    failures = []
    for number, login in enumerate(logins):
        try:
            out, err = login.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            login.kill()
            out, err = login.communicate()
        if (out, login.returncode) != (f"login {number}\n", 0):
            failures.append((number, login.returncode, err))
    assert not failures
    print(f"\n20 logins at once: 0 failures, {time.monotonic() - start:.1f} s")


def test_forward_of_standard_streams(sshd: Sshd, public: Address) -> None:
    """`ssh -W` through the relay to an echo: 4 MiB there and back, an end on stdin is an end at the echo and comes back as one."""
    with Echo() as echo:
        assert not isinstance(echo.target, str)
        command = [*sshd.ssh(public, "-W", f"{echo.target[0]}:{echo.target[1]}", "")]
        forward = subprocess.Popen(command[:-1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert forward.stdin and forward.stdout and forward.stderr
        with forward.stdin as stdin, forward.stdout as stdout, forward.stderr:

            def send() -> None:
                stdin.write(Keystream("-W").take(4 * MIB))
                stdin.close()

            sending = background(send)
            reading = background(stdout.read)
            try:
                answer = reading.result(60)
                sending.result(10)
            except BaseException:
                forward.kill()
                raise
            assert forward.wait(20) == 0
        checker = Checker("-W")
        checker.feed(answer)
        assert checker.received == 4 * MIB


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_copy_of_16_mib(sshd: Sshd, public: Address, tmp_path: Path) -> None:
    copy_up_and_down(sshd, public, tmp_path, 16 * MIB)


@pytest.mark.slow
@pytest.mark.parametrize("way", TWICE, indirect=True, ids=repr, scope="module")
def test_copy_of_1_gib(sshd: Sshd, public: Address, tmp_path: Path) -> None:
    copy_up_and_down(sshd, public, tmp_path, 1024 * MIB)


def copy_up_and_down(sshd: Sshd, public: Address, tmp_path: Path, size: int) -> None:
    """`scp` there and back; the same SHA-256 three times."""
    stream = Keystream("scp")
    original, there, back = tmp_path / "original", tmp_path / "there", tmp_path / "back"
    with original.open("wb") as file:
        for _ in range(size // MIB):
            file.write(stream.take(MIB))
    remote = f"{sshd.user}@{public[0]}:{there}"
    start = time.monotonic()
    up = run(sshd.scp(public, str(original), remote), 300)
    middle = time.monotonic()
    assert up.returncode == 0, up.stderr
    down = run(sshd.scp(public, remote, str(back)), 300)
    end = time.monotonic()
    assert down.returncode == 0, down.stderr
    expected = digest(original)
    assert (digest(there), digest(back)) == (expected, expected)
    print(f"\nscp of {size // MIB} MiB: up {middle - start:.1f} s, down {end - middle:.1f} s, SHA-256 equal {expected}")
    for path in (original, there, back):
        path.unlink()
