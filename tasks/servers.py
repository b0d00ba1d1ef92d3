"""The managed local servers: Prefect and MLflow, on loopback, with their databases in the workspace.

They are found through `<workspace>/servers.json`, started when there are none, and go on after a run so that its pages
can be looked at; `stop` ends them. A server counts as ours only when the process that we started is alive (same
process id and start time), listens on the port and answers: of two workspaces that start at the same moment, neither
may talk to the other's server.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from lm_core.errors import TryLaterError
from tasks.environment import configured_address

DEFAULT_PORTS = {"prefect": 4200, "mlflow": 5000}
HEALTH = {"prefect": "/api/health", "mlflow": "/health"}
START_TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Server:
    """A running server. `pid` is None when it is not ours to stop."""

    service: str
    address: str
    pid: int | None = None
    started: float | None = None

    @property
    def api(self) -> str:
        """What clients are given: Prefect's API lies below /api, MLflow's at the root."""
        return self.address + "/api" if self.service == "prefect" else self.address

    def answers(self, timeout_seconds: float = 2.0) -> bool:
        """Whether its health page answers, and no stranger in its place."""
        return self._listens() and _answers(self.address + HEALTH[self.service], timeout_seconds)

    def _listens(self) -> bool:
        """Whether the process that was started, or a child of it, holds the port."""
        if self.pid is None:
            return True
        port = int(self.address.rpartition(":")[2])
        try:
            process = psutil.Process(self.pid)
            family = [process, *process.children(recursive=True)]
            sockets = [socket for member in family for socket in member.net_connections("tcp")]
        except psutil.Error:
            return False
        return any(socket.status == psutil.CONN_LISTEN and socket.laddr.port == port for socket in sockets)

    def alive(self) -> bool:
        """Whether the very process that was started still runs."""
        if self.pid is None:
            return True
        try:
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - (self.started or 0)) < 2
        except psutil.NoSuchProcess:
            return False


def _answers(url: str, timeout_seconds: float) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=timeout_seconds) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def find(workspace: Path, service: str) -> Server | None:
    """The server this workspace uses, when it is running."""
    address = configured_address(service)
    if address:
        return Server(service, address.removesuffix("/").removesuffix("/api"))
    try:
        entry = json.loads((workspace / "servers.json").read_text())[service]
        server = Server(**entry)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return server if server.alive() and server.answers() else None


def begin(workspace: Path, services: tuple[str, ...], ports: dict[str, int] | None = None) -> dict[str, Server]:
    """Find or start servers without waiting until they answer (see `wait`).

    Args:
        ports: ports a person asked for; the defaults give way to a free port when they are taken.

    Raises:
        TryLaterError: a port that was asked for is in use.
    """
    servers = {}
    for service in services:
        server = find(workspace, service)
        if server is None:
            with _reserved_port(service, (ports or {}).get(service)) as (port, reservation):
                server = _start(workspace, service, port, reservation)
            _remember(workspace, server)
        servers[service] = server
    return servers


def wait(server: Server, workspace: Path, timeout_seconds: float = START_TIMEOUT_SECONDS) -> Server:
    """Block until a server answers.

    Raises:
        TryLaterError: it ended or did not answer in time; the message names its log.
    """
    log = workspace / "logs" / f"{server.service}.log"
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if not server.alive():
            break
        if server.answers():
            return server
        time.sleep(0.15)
    hint = f"its log is {log}" if server.pid else "it was configured by environment variable"
    raise TryLaterError(f"the {server.service} server at {server.address} does not answer; {hint}")


def managed_pids(workspace: Path) -> list[int]:
    """Process ids of the servers this workspace has started."""
    try:
        entries = json.loads((workspace / "servers.json").read_text())
    except (OSError, ValueError):
        return []
    return [entry["pid"] for entry in entries.values() if entry.get("pid")]


def wait_for_mlflow(timeout_seconds: float = 60) -> None:
    """Block until the MLflow server in use answers.

    Raises:
        TryLaterError: it does not answer in time.
    """
    address = configured_address("mlflow") or ""
    deadline = time.monotonic() + timeout_seconds
    while not _answers(address + HEALTH["mlflow"], 2.0):
        if time.monotonic() > deadline:
            raise TryLaterError(
                f"MLflow at {address or 'no address'} does not answer; the models are kept in the workspace, "
                "start it and run the same command again"
            )
        time.sleep(0.3)


def stop(workspace: Path) -> list[str]:
    """Stop the managed servers of a workspace; returns the names of those that were running."""
    path = workspace / "servers.json"
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    stopped = []
    for service, entry in entries.items():
        server = Server(**entry)
        if server.pid and server.alive():
            _end_tree(psutil.Process(server.pid))
            stopped.append(service)
    path.unlink(missing_ok=True)
    return stopped


def _end_tree(process: psutil.Process) -> None:
    """End a process and its children: politely, then not."""
    family = [*process.children(recursive=True), process]
    for member in family:
        _signal(member, signal.SIGTERM)
    _, left = psutil.wait_procs(family, timeout=8)
    for member in left:
        _signal(member, signal.SIGKILL)
    psutil.wait_procs(left, timeout=3)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def port_is_free(port: int) -> bool:
    """Whether a server could listen on the loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def _reserved_port(service: str, asked: int | None) -> Iterator[tuple[int, int]]:
    """A free port and the descriptor of a lock on it.

    A server takes seconds until it listens; another that starts meanwhile must choose another port. The server inherits
    the descriptor, so that the kernel frees the lock with the server's end.
    """
    for port in [asked] if asked is not None else [DEFAULT_PORTS[service], *(_any_free_port() for _ in range(20))]:
        path = Path(tempfile.gettempdir()) / f"millrace-{os.getuid()}-port-{port}.lock"
        with open(path, "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if port_is_free(port):
                yield port, lock.fileno()
                return
    what = f"port {asked} for the {service} server is in use" if asked else f"no port is free for the {service} server"
    raise TryLaterError(f"{what}; stop what uses it or name another with --{service}-port")


def _any_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _command(workspace: Path, service: str, port: int) -> tuple[list[str], dict[str, str]]:
    if service == "prefect":
        database = f"sqlite+aiosqlite:///{workspace / 'prefect' / 'prefect.db'}"
        return (
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            {
                "PREFECT_API_DATABASE_CONNECTION_URL": database,
                "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
                "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port},http://localhost:{port}",
            },
        )
    # Ten processes and 2.4 GB by default; one worker without job execution serves a small team in 0.5 GB.
    return (
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{workspace / 'mlflow' / 'mlflow.db'}"),
            *("--artifacts-destination", str(workspace / "mlflow" / "artifacts")),
        ],
        {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )


def _start(workspace: Path, service: str, port: int, reservation: int) -> Server:
    command, settings = _command(workspace, service, port)
    for folder in (workspace / service, workspace / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | settings
    environment.pop("PREFECT_API_URL", None)
    with open(workspace / "logs" / f"{service}.log", "ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            pass_fds=[reservation],
        )
    return Server(service, f"http://127.0.0.1:{port}", process.pid, psutil.Process(process.pid).create_time())


def _remember(workspace: Path, server: Server) -> None:
    path = workspace / "servers.json"
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        entries = {}
    entries[server.service] = asdict(server)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(entries, indent=1))
    temporary.replace(path)
