"""The systems that are compared. Each is a few lines: the programs it takes, how they are started, and what installs them.

All run with their documented defaults; only limits that a run would hit are raised, and logs go nowhere.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import pwd
import random
import re
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from bench.programs import LOOPBACK, BenchError, Place, Running, find, line, run, wait_for

Address = tuple[str, int]
Start = Callable[[ExitStack, Place, Path, int, int], Running]
"""(stack, place, a directory of its own, target, tunnels)"""

HOST = "127.0.0.1"
CONNECTIONS = 16_000
"""Connections that a run may hold at once: for systems whose own limit is lower."""
BORE_PORT = 7835
"""Of bore's server; there is no option for it."""


@dataclass(frozen=True)
class System:
    """A way from visitors to a target. `install` is the line that installs its programs, `printer` the command that prints its version."""

    name: str
    title: str
    starter: Start
    programs: tuple[str, ...] = ()
    install: str = ""
    printer: tuple[str, ...] = ()
    package: str = ""  # of Python, where it is one
    loopback_only: bool = False

    def missing(self) -> str:
        """What must be installed before it can start, in one sentence; empty when nothing is missing."""
        for program in self.programs:
            if find(program) is None:
                return f"{program} is not on PATH; install it with `{self.install}`."
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"This Python has no {self.package}; install it with `{self.install}`."
        if self.name == "nginx" and _stream_module() is None:
            return f"nginx is here without its stream module; install it with `{self.install}`."
        return ""

    def version(self) -> str:
        """As the program says it; `unknown` when it does not."""
        if self.package:
            return metadata.version(self.package)
        if not self.printer:
            return f"{platform.system()} {platform.release()}"
        command = (_path(self.printer[0]), *self.printer[1:])
        said = subprocess.run(command, check=False, capture_output=True, text=True, timeout=10)
        # Not the seconds of a time of day, which rathole prints as well.
        found = re.search(r"(?<![\d:.])\d+\.\d+[\w.+~-]*", said.stdout + said.stderr)
        return found[0] if found else "unknown"

    def start(self, stack: ExitStack, place: Place, directory: Path, target: int, tunnels: int = 1) -> Running:
        """Start it until the stack ends, and return when visitors reach port `target` beside the client through each tunnel."""
        if reason := self.missing():
            raise BenchError(reason)
        if self.loopback_only and place != LOOPBACK:
            raise BenchError(f"{self.title} has no encryption and runs on loopback only; take fastrelay-tls on a link.")
        return self.starter(
            stack, place, Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=directory)), target, tunnels
        )


def _path(program: str) -> str:
    path = find(program)
    if path is None:
        raise BenchError(f"{program} is not on PATH; install it, or leave out the systems that need it.")
    return path


def _free_ports(number: int) -> list[int]:
    """Ports that differ, as all are held until the last is known."""
    with ExitStack() as held:
        listeners = [held.enter_context(socket.create_server((HOST, 0))) for _ in range(number)]
        return [int(listener.getsockname()[1]) for listener in listeners]


def _standing(place: Place, what: str, visitors: list[Address], programs: Sequence[subprocess.Popen[str]]) -> Running:
    """Wait for all visitors' ports. A program that has ended meanwhile is an error: somebody else may listen in its place."""
    for visitor in visitors:
        wait_for(visitor, what, place.relay)
    if any(program.poll() is not None for program in programs):
        raise BenchError(f"A process of {what} ended while it started; run it by hand to see why.")
    return Running(visitors, [program.pid for program in programs])


# --- fastrelay, and nothing at all ----------------------------------------------------------------------------------------


def _fastrelay(plain: bool, websocket: bool = False) -> Start:
    def start(stack: ExitStack, place: Place, directory: Path, target: int, tunnels: int) -> Running:
        python, state = [sys.executable, "-m", "fastrelay"], directory / "server"
        # Visitors' ports use the host that the server binds: on a link it binds all, so that they are on loopback as well.
        where = (
            ["--bind", f"{HOST}:0"]
            if place == LOOPBACK
            else ["--bind", "0.0.0.0:0", "--advertise", place.relay_address]
        )
        options = [*where, "--state", str(state), *(["--plaintext"] if plain else [])]
        server = run(stack, *place.relay, *python, "server", *options, stdout=subprocess.PIPE)
        url = line(server, "fastrelay server")
        if websocket:
            url = url.replace("tls://", "wss://")
        show = [*python, "token", "show", "--state", str(state)]
        token = subprocess.run(show, check=True, capture_output=True, text=True).stdout.strip()
        if tunnels == 1:
            own = ["--expose", f"{HOST}:{target}", "--token", token, "--state", str(directory / "client")]
            command = [*python, "client", url, *own]
        else:
            command = [
                sys.executable,
                "-m",
                "bench.many_clients",
                url,
                token,
                str(target),
                str(tunnels),
                str(directory),
            ]
        client = run(stack, *place.client, *command, stdout=subprocess.PIPE)
        visitors = [(HOST, int(line(client, "fastrelay client").rsplit(":", 1)[1])) for _ in range(tunnels)]
        return _standing(place, "fastrelay", visitors, [server, client])

    return start


def _direct(_: ExitStack, place: Place, directory: Path, target: int, tunnels: int) -> Running:
    # What the machine or the link does without a relay. The target must listen on the client's address.
    return _standing(place, "the target", [(place.client_address, target)] * tunnels, [])


# --- two hops: proxies that only forward, a chain of two of them --------------------------------------------------------

Hop = Callable[[Path, list[tuple[Address, Address]]], list[str]]
"""Writes what forwards each first address to the second one, into a new directory, and returns the command."""


def _two(what: str, hop: Hop) -> Start:
    def start(stack: ExitStack, place: Place, directory: Path, target: int, tunnels: int) -> Running:
        ports = _free_ports(2 * tunnels)
        fronts: list[Address] = [(HOST, port) for port in ports[:tunnels]]
        backs: list[Address] = [(place.client_address, port) for port in ports[tunnels:]]
        programs = []
        for prefix, name, froms, to in (
            (place.client, "back", backs, [(HOST, target)] * tunnels),
            (place.relay, "front", fronts, backs),
        ):
            own = directory / name
            own.mkdir()
            programs.append(run(stack, *prefix, *hop(own, list(zip(froms, to, strict=True)))))
            for address in froms:
                wait_for(address, what, prefix)
        return _standing(place, what, fronts, programs)

    return start


def _files() -> int:
    """Open files for CONNECTIONS, or as many as are allowed."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = 2 * CONNECTIONS + 200
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def _haproxy(directory: Path, ways: list[tuple[Address, Address]]) -> list[str]:
    conf = directory / "haproxy.cfg"
    conf.write_text(
        f"global\n  maxconn {(_files() - 200) // 2}\n"
        # It has no default timeouts, and says that it must have some.
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 600s\n  timeout server 600s\n"
        + "".join(
            f"listen relay{number}\n  bind {_join(here)}\n  server target {_join(there)}\n"
            for number, (here, there) in enumerate(ways)
        )
    )
    return [_path("haproxy"), "-f", str(conf), "-db"]


def _nginx(directory: Path, ways: list[tuple[Address, Address]]) -> list[str]:
    module = _stream_module()
    conf = directory / "nginx.conf"
    # `proxy_half_close` stays off, its default: whoever ends one direction loses the other one.
    servers = "".join(f"  server {{ listen {_join(here)}; proxy_pass {_join(there)}; }}\n" for here, there in ways)
    conf.write_text(
        (f"load_module {module};\n" if module else "")
        + f"daemon off; worker_processes 1; worker_rlimit_nofile {_files()}; pid {directory}/nginx.pid; error_log /dev/null;\n"
        f"events {{ worker_connections {_files() - 100}; }}\nstream {{\n{servers}}}\n"
    )
    return [_path("nginx"), "-c", str(conf), "-p", str(directory)]


@functools.cache
def _stream_module() -> str | None:
    """The file to load; empty when nginx has it built in, None when there is none."""
    said = subprocess.run([_path("nginx"), "-V"], check=False, capture_output=True, text=True, timeout=10).stderr
    if re.search(r"--with-stream(\s|$)", said):
        return ""
    places = re.search(r"--modules-path=(\S+)", said)
    module = Path(places[1], "ngx_stream_module.so") if places else None
    return str(module) if module and module.exists() else None


def _join(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


# --- a server and its clients -------------------------------------------------------------------------------------------


class Ends(NamedTuple):
    """Where the clients reach the server, the public port of each, and the port beside them that all lead to."""

    control: Address
    ports: list[int]
    target: int


class Recipe(NamedTuple):
    """The command of the server and that of each client. `control` is where the server listens, if not where it was told to."""

    server: list[str]
    clients: list[list[str]]
    control: Address | None = None


Cook = Callable[[Path, Ends], Recipe]
"""Writes what configures them into a directory of their own."""


def _tunnel(what: str, cook: Cook) -> Start:
    def start(stack: ExitStack, place: Place, directory: Path, target: int, tunnels: int) -> Running:
        first, *ports = _free_ports(1 + tunnels)
        ends = Ends((place.relay_address, first), ports, target)
        recipe = cook(directory, ends)
        server = run(stack, *place.relay, *recipe.server)
        wait_for(recipe.control or ends.control, what, place.relay)
        clients = [run(stack, *place.client, *client) for client in recipe.clients]
        return _standing(place, what, [(HOST, port) for port in ports], [server, *clients])

    return start


def _ssh(directory: Path, ends: Ends) -> Recipe:
    for name in ("host", "user"):
        command = [_path("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    if os.geteuid() == 0:  # Debian's service makes what sshd asks of root's machine; here there may be no service
        with suppress(OSError):
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    user = pwd.getpwuid(os.geteuid()).pw_name
    conf = directory / "sshd_config"
    conf.write_text(
        f"ListenAddress {_join(ends.control)}\nHostKey {directory}/host\nAuthorizedKeysFile {directory}/user.pub\nPidFile none\n"
        # StrictModes would refuse a key below /tmp; more clients than MaxStartups may come at the same time.
        f"UsePAM {'yes' if _locked(user) else 'no'}\nStrictModes no\nMaxStartups 1000\n"
    )
    options = {
        "User": user,
        "IdentityFile": str(directory / "user"),
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "ExitOnForwardFailure": "yes",
        "BatchMode": "yes",
    }
    given = [word for option, value in options.items() for word in ("-o", f"{option}={value}")]
    client = [_path("ssh"), "-F", "none", "-N", *given, "-p", str(ends.control[1])]
    return Recipe(
        [_path("sshd"), "-D", "-e", "-f", str(conf)],
        [[*client, "-R", f"{HOST}:{port}:{HOST}:{ends.target}", ends.control[0]] for port in ends.ports],
    )


def _locked(user: str) -> bool:
    """Whether the account has a locked password, as root has on Ubuntu: without PAM, sshd lets nobody in there, not even by key."""
    with suppress(OSError):  # others than root cannot know; nor can their sshd
        return f"\n{user}:!" in "\n" + Path("/etc/shadow").read_text()
    return False


def _rathole(directory: Path, ends: Ends) -> Recipe:
    services = "".join(
        f'[server.services.tunnel{number}]\nbind_addr = "{HOST}:{port}"\n' for number, port in enumerate(ends.ports)
    )
    token = 'default_token = "bench"\n'  # there is no way to have none
    server = _write(directory / "server.toml", f'[server]\nbind_addr = "{_join(ends.control)}"\n{token}{services}')
    clients = [
        _write(
            directory / f"client-{number}.toml",
            f'[client]\nremote_addr = "{_join(ends.control)}"\n{token}'
            f'[client.services.tunnel{number}]\nlocal_addr = "{HOST}:{ends.target}"\n',
        )
        for number in range(len(ends.ports))
    ]
    rathole = _path("rathole")
    return Recipe([rathole, "--server", server], [[rathole, "--client", client] for client in clients])


def _bore(_: Path, ends: Ends) -> Recipe:
    # Its port is fixed: on loopback each server has an address of its own, on a link there can be one only.
    address = ends.control[0] if ends.control[0] != HOST else _bore_address()
    bore = _path("bore")
    local = [bore, "local", "--local-host", HOST, "--to", address]
    return Recipe(
        [bore, "server", "--bind-addr", address, "--bind-tunnels", HOST],
        [[*local, "--port", str(port), str(ends.target)] for port in ends.ports],
        (address, BORE_PORT),
    )


def _bore_address() -> str:
    """A loopback address where nobody has bore's port. By chance, so that two that look at the same time find different ones."""
    for _ in range(20):
        address = f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"
        with suppress(OSError), socket.create_server((address, BORE_PORT)):
            return address
    raise BenchError(f"bore needs port {BORE_PORT}, which somebody has on all addresses: stop what listens there.")


def _chisel(_: Path, ends: Ends) -> Recipe:
    chisel = _path("chisel")
    return Recipe(
        [chisel, "server", "--reverse", "--host", ends.control[0], "--port", str(ends.control[1])],
        [
            [chisel, "client", f"http://{_join(ends.control)}", f"R:{HOST}:{port}:{HOST}:{ends.target}"]
            for port in ends.ports
        ],
    )


def _frp(directory: Path, ends: Ends) -> Recipe:
    frpc = [_path("frpc"), "-c"]
    # Its defaults are TLS between the two, and all visitors of a client on one connection.
    server = _write(
        directory / "frps.toml",
        f'bindAddr = "{ends.control[0]}"\nbindPort = {ends.control[1]}\nproxyBindAddr = "{HOST}"\n',
    )
    clients = [
        _write(
            directory / f"frpc-{port}.toml",
            f'serverAddr = "{ends.control[0]}"\nserverPort = {ends.control[1]}\n[[proxies]]\nname = "tunnel-{port}"\ntype = "tcp"\n'
            f'localIP = "{HOST}"\nlocalPort = {ends.target}\nremotePort = {port}\n',
        )
        for port in ends.ports
    ]
    return Recipe([_path("frps"), "-c", server], [[*frpc, client] for client in clients])


def _asyncssh(_: Path, ends: Ends) -> Recipe:
    python = [sys.executable, "-m", "bench.asyncssh_ends"]
    where = [ends.control[0], str(ends.control[1])]
    return Recipe(
        [*python, "server", *where],
        [[*python, "client", *where, str(port), str(ends.target)] for port in ends.ports],
    )


def _write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


# --- all of them --------------------------------------------------------------------------------------------------------

_FRP = "https://github.com/fatedier/frp/releases/download/v0.70.0/frp_0.70.0_linux_amd64.tar.gz"
_SYSTEMS = (
    System("fastrelay", "fastrelay, plain", _fastrelay(plain=True), package="fastrelay", loopback_only=True),
    System("fastrelay-tls", "fastrelay, TLS", _fastrelay(plain=False), package="fastrelay"),
    System("fastrelay-wss", "fastrelay, WebSocket", _fastrelay(plain=False, websocket=True), package="fastrelay"),
    System(
        "haproxy",
        "HAProxy x2",
        _two("HAProxy", _haproxy),
        programs=("haproxy",),
        install="apt install haproxy",
        printer=("haproxy", "-v"),
    ),
    System(
        "nginx",
        "nginx stream x2",
        _two("nginx", _nginx),
        programs=("nginx",),
        install="apt install nginx libnginx-mod-stream",
        printer=("nginx", "-v"),
    ),
    System(
        "ssh",
        "ssh -R",
        _tunnel("ssh", _ssh),
        programs=("sshd", "ssh", "ssh-keygen"),
        install="apt install openssh-server openssh-client",
        printer=("ssh", "-V"),
    ),
    System(
        "rathole",
        "rathole",
        _tunnel("rathole", _rathole),
        programs=("rathole",),
        install="cargo install rathole",
        printer=("rathole", "--version"),
    ),
    System(
        "bore",
        "bore",
        _tunnel("bore", _bore),
        programs=("bore",),
        install="cargo install bore-cli",
        printer=("bore", "--version"),
    ),
    System(
        "chisel",
        "chisel",
        _tunnel("chisel", _chisel),
        programs=("chisel",),
        install="go install github.com/jpillora/chisel@latest",
        printer=("chisel", "--version"),
    ),
    System(
        "frp",
        "frp, TLS",
        _tunnel("frp", _frp),
        programs=("frps", "frpc"),
        # `go install` refuses it: its go.mod replaces a module.
        install=f"curl -L {_FRP} | tar xz -C /usr/local/bin --strip-components 1 --wildcards '*/frp[cs]'",
        printer=("frps", "--version"),
    ),
    System(
        "asyncssh",
        "asyncssh",
        _tunnel("asyncssh", _asyncssh),
        package="asyncssh",
        install="pip install asyncssh",
    ),
    System("direct", "no relay", _direct),
)
SYSTEMS = {system.name: system for system in _SYSTEMS}
