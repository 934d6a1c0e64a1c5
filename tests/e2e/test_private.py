"""Private services with whole processes and real programs: `forward`, `dial` and `list` as a person, ssh and PostgreSQL use them."""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.doors import TARGET, PrivateService
from tests.e2e.test_half_close import crosses
from tests.e2e.test_ssh import Sshd, run
from tests.support import need
from tests.support.payload import Checker, Keystream
from tests.support.peers import (
    Address,
    Pump,
    accept,
    background,
    connect,
    exactly,
    free_port,
    hang_up,
    read_to_end,
    reset,
    send_and_end,
    until,
)
from tests.support.processes import (
    BEST,
    ROOT,
    Client,
    Forward,
    Process,
    Server,
    environment,
    fastrelay,
    message,
    once,
    spec,
)

MIB = 1 << 20


class Setting:
    """A relay, and what a visitor needs to know."""

    def __init__(self, home: Path, server: Server) -> None:
        self.home = home
        self.server = server
        self.token = server.token()
        self.state = home / "visitor"
        self.state.mkdir(mode=0o700)

    @contextlib.contextmanager
    def serving(self, name: str, target: Address | str) -> Iterator[Client]:
        with Client(
            self.server.url, self.token, self.home / name, expose=[f"{name}=private://{spec(target)}"], name=name
        ) as client:
            assert client.line(0) == f"fastrelay://{name}"
            yield client

    def dial(self, name: str, token: str = "") -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            fastrelay("dial", self.server.url, name),
            cwd=ROOT,
            env=environment(self.state, FASTRELAY_TOKEN=token or self.token),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    home = tmp_path_factory.mktemp("private")
    with Server(home / "server") as server:
        yield Setting(home, server)


# --- dial and list -----------------------------------------------------------------------------------------------------


def test_dial_ends_each_direction_on_its_own(setting: Setting) -> None:
    """4 MiB and an end on stdin, then 4 MiB and an end on stdout; then the process is done."""
    with socket.create_server(("127.0.0.1", 0)) as listener, setting.serving("half", listener.getsockname()):
        with setting.dial("half") as process, accept(listener) as target:
            assert process.stdin and process.stdout and process.stderr
            sending = background(_feed, process, 4 * MIB)
            checker = Checker("request")
            read_to_end(target, checker)
            assert checker.received == 4 * MIB
            sending.result(10)
            assert process.poll() is None, "the other direction goes on"
            answering = background(send_and_end, target, Keystream("answer"), 4 * MIB)
            checker = Checker("answer")
            checker.feed(process.stdout.read())
            assert checker.received == 4 * MIB
            answering.result(10)
            assert process.wait(10) == 0
            assert process.stderr.read() == b""


def _feed(process: subprocess.Popen[bytes], size: int) -> None:
    assert process.stdin
    process.stdin.write(Keystream("request").take(size))
    process.stdin.close()


def test_dial_passes_on_an_end_of_the_target_while_stdin_goes_on(setting: Setting) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, setting.serving("first", listener.getsockname()):
        with setting.dial("first") as process, accept(listener) as target:
            assert process.stdin and process.stdout
            target.sendall(b"all that there is")
            target.shutdown(socket.SHUT_WR)
            assert process.stdout.read() == b"all that there is", "stdout has ended"
            process.stdin.write(b"and still we speak")
            process.stdin.close()
            assert exactly(target, 18) == b"and still we speak"
            assert target.recv(1) == b""
            assert process.wait(10) == 0


def test_dial_says_when_it_was_reset(setting: Setting) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, setting.serving("cut", listener.getsockname()):
        with setting.dial("cut") as process, accept(listener) as target:
            assert process.stdout and process.stderr
            target.sendall(b"the last words")
            assert process.stdout.read(14) == b"the last words"
            reset(target)
            assert process.wait(10) == 1
            assert process.stderr.read().decode() == "Error: The connection to cut was reset.\n"


@pytest.mark.slow
def test_dial_that_nobody_reads_any_more_ends(setting: Setting) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, setting.serving("deaf", listener.getsockname()):
        with setting.dial("deaf") as process, accept(listener) as target:
            assert process.stdout and process.stderr and process.stdin
            process.stdout.close()
            sending = background(send_and_end, target, Keystream("unread"), 4 * MIB)
            with contextlib.suppress(OSError):
                sending.result(10)
            assert process.wait(10) == 1


@pytest.mark.slow
def test_dial_stops_on_ctrl_c(setting: Setting) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, setting.serving("stop", listener.getsockname()):
        with setting.dial("stop") as process, accept(listener) as target:
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130
            with pytest.raises(ConnectionResetError):
                target.recv(1)


@pytest.mark.slow
def test_what_cannot_be_reached_has_an_exit_code_and_a_sentence(setting: Setting) -> None:
    with setting.serving("none", ("127.0.0.1", free_port())):
        visitor = once(
            "token", "new", "guest", "--reach", "web*", "--state", str(setting.server.state), state=setting.state
        )
        until(lambda: "added guest" in setting.server.stderr, "the relay knows the token")
        for name, token, said in (
            ("none", setting.token, "refused the connection"),
            ("nobody", setting.token, "no private service 'nobody'"),
            ("none", visitor.stdout.strip(), "does not let this client reach 'none'"),
        ):
            done = once("dial", setting.server.url, name, state=setting.state, token=token)
            assert (done.returncode, done.stdout) == (3, "") and said in done.stderr, done.stderr
            assert done.stderr.count("\n") == 1, "one sentence"
    until(lambda: "none is gone" in setting.server.stderr, "its client is gone")
    done = once("dial", setting.server.url, "none", state=setting.state, token=setting.token)
    assert done.returncode == 3 and "is not connected now" in done.stderr


def test_list_is_for_programs_where_nobody_looks(setting: Setting) -> None:
    before = int(time.time())
    with setting.serving("listed", ("127.0.0.1", 1)):
        since_line = len(setting.server.err)
        done = once("list", setting.server.url, state=setting.state, token=setting.token)
        assert (done.returncode, done.stderr) == (0, "")
        rows = {line.split("\t")[0]: line.split("\t")[1:] for line in done.stdout.splitlines()}
        kind, client, since, here = rows["listed"]
        assert (kind, client, here) == ("private", "listed", "yes") and before <= int(since) <= time.time()
        assert "going down" in setting.server.logs("a visiting client is gone", since=since_line), "it says goodbye"


def test_forward_says_why_a_visitor_was_reset(setting: Setting) -> None:
    with Forward(setting.server.url, setting.token, setting.home / "why", "nowhere") as forward:
        with connect(forward.address) as visitor:
            assert hang_up(visitor)
        assert "no private service 'nowhere'" in message(forward.logs("target.failed"))
        forward.signal(signal.SIGTERM)
        assert forward.wait() == 0


# --- forward -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("who", ["server", "client", "forward"])
def test_a_process_that_is_killed_resets_both_ends_and_all_comes_back(tmp_path: Path, who: str) -> None:
    """kill -9 with 20 connections; of a client or relay that is started again the next visitor does not know that it was gone."""
    with PrivateService(tmp_path, BEST) as door, contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(door.pair()) for _ in range(20)]
        start = time.monotonic()
        getattr(door, who).kill()
        for pair in pairs:
            assert hang_up(pair.visitor) and hang_up(pair.target), "a reset, not an end"
        assert time.monotonic() - start < 2
        if who == "forward":
            return
        url, token = door.server.url, door.server.token()
        if who == "server":
            stack.enter_context(Server(tmp_path / "server", BEST, bind=url.removeprefix("tls://")))
        else:
            expose = [f"{TARGET}=private://{spec(door.target)}"]
            stack.enter_context(Client(url, token, tmp_path / "client", expose=expose))

        def passes() -> bool:
            try:
                with door.connect() as visitor:
                    visitor.sendall(b"are you there?")
                    with accept(door.listener, 0.2) as target:
                        return exactly(target, 14) == b"are you there?"
            except (OSError, AssertionError):
                return False

        until(passes, "a new visitor gets through", 20)


@pytest.mark.slow
def test_who_does_not_read_stalls_nobody_else(tmp_path: Path) -> None:
    """Four connections are flooded in both directions, and nobody reads; the fifth carries 4 MiB there and back, and the relay keeps little."""
    with PrivateService(tmp_path, BEST) as door, contextlib.ExitStack() as stack:
        stuck = [stack.enter_context(door.pair()) for _ in range(4)]
        before = door.server.rss()
        flows = [
            (end, Keystream((at, side)))
            for at, pair in enumerate(stuck)
            for side, end in enumerate((pair.visitor, pair.target))
        ]
        with Pump(flows) as pump:
            until(pump.stuck, "credit has stopped the floods")
            with door.pair() as pair:
                crosses(pair.visitor, pair.target, "request", 4 * MIB)
                crosses(pair.target, pair.visitor, "answer", 4 * MIB)
            assert pump.stuck()
        assert door.server.rss() - before < 32 * 1024, "KiB"


# --- ssh ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    need.program("ssh")
    need.program("sshd")
    with Sshd(tmp_path_factory.mktemp("sshd")) as made:
        yield made


@pytest.fixture
def through_dial(setting: Setting, sshd: Sshd) -> Iterator[list[str]]:
    """Options of ssh and scp for a host `shell` that has a name only."""
    env = environment(setting.state, FASTRELAY_TOKEN=setting.token, PYTHONPATH=str(ROOT))
    kept = ("HOME", "XDG_STATE_HOME", "FASTRELAY_TOKEN", "PYTHONPATH")
    words = ["env", *(f"{name}={env[name]}" for name in kept), *fastrelay("dial", setting.server.url, "%h")]
    with setting.serving("shell", sshd.address):
        yield [*sshd.options, "-o", f"ProxyCommand={' '.join(words)}"]


def test_ssh_with_dial_as_proxy_command(sshd: Sshd, through_dial: list[str]) -> None:
    done = run([need.program("ssh"), *through_dial, f"{sshd.user}@shell", "echo you are in; exit 7"])
    assert (done.stdout, done.returncode) == ("you are in\n", 7), done.stderr


@pytest.mark.slow
def test_scp_with_dial_as_proxy_command(sshd: Sshd, through_dial: list[str], tmp_path: Path) -> None:
    """16 MiB there and back."""
    original, there, back = (tmp_path / name for name in ("original", "there", "back"))
    original.write_bytes(Keystream("scp").take(16 * MIB))
    for source, goal in ((str(original), f"{sshd.user}@shell:{there}"), (f"{sshd.user}@shell:{there}", str(back))):
        done = run([need.program("scp"), "-q", *through_dial, source, goal])
        assert done.returncode == 0, done.stderr
    assert back.read_bytes() == there.read_bytes() == original.read_bytes()


# --- PostgreSQL --------------------------------------------------------------------------------------------------------


class Postgres(Process):
    """A cluster of its own, on loopback; as root it runs as the user that the package has made."""

    def __init__(self, home: Path) -> None:
        programs = need.postgres()
        user = getpass.getuser()
        switch: list[str] = []
        if os.geteuid() == 0:
            user = "postgres"
            os.chown(home, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
            switch = [need.program("setpriv"), f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        self.address = ("127.0.0.1", free_port())
        data = home / "data"
        subprocess.run(
            [*switch, str(programs / "initdb"), "--no-sync", "-A", "trust", "-U", "tested", "-D", str(data)],
            check=True,
            capture_output=True,
            timeout=60,
        )
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.address[1],
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": 50,
        }
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        super().__init__([*switch, str(programs / "postgres"), "-D", str(data), *words])
        try:
            self.logs("ready to accept connections")
        except BaseException:
            self.__exit__(AssertionError)
            raise

    def __exit__(self, kind: object, *rest: object) -> None:
        self.popen.send_signal(signal.SIGINT)  # its other processes end with it
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(10)
        super().__exit__(kind, *rest)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    home = Path(tempfile.mkdtemp(prefix="fastrelay-postgres-"))  # another user must get there
    try:
        with Postgres(home) as made:
            yield made
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.slow
def test_psql_and_pgbench_through_forward(setting: Setting, postgres: Postgres) -> None:
    """The same rows as without a relay; then transactions on 20 connections, each new, and none of them fails."""
    with (
        setting.serving("db", postgres.address),
        Forward(setting.server.url, setting.token, setting.home / "pg", "db") as forward,
    ):

        def ask(address: Address, *words: str) -> str:
            where = ["-h", address[0], "-p", str(address[1]), "-U", "tested"]
            done = run([words[0], *where, *words[1:]])
            assert done.returncode == 0, done.stderr
            return done.stdout + done.stderr

        psql, pgbench = need.program("psql"), need.program("pgbench")
        query = "select n, md5(n::text) from generate_series(1, 50000) as n"
        answers = [
            ask(address, psql, "-qAtX", "-c", query, "postgres") for address in (postgres.address, forward.address)
        ]
        assert answers[0] == answers[1] and answers[0].count("\n") == 50_000
        ask(forward.address, pgbench, "-q", "-i", "-s", "1", "postgres")
        said = ask(forward.address, pgbench, "-n", "-c", "20", "-j", "2", "-t", "20", "-C", "postgres")
        assert "number of transactions actually processed: 400/400" in said
        assert "number of failed transactions: 0 " in said
        total = "select sum(abalance) - (select sum(delta) from pgbench_history) from pgbench_accounts"
        assert ask(forward.address, psql, "-qAtX", "-c", total, "postgres").strip() == "0"
