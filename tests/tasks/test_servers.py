"""Ports of the managed servers: nobody talks to a stranger's."""

import http.server
import os
import subprocess
import threading

import psutil
import pytest

from lm_core.errors import TryLaterError
from tasks import servers


@pytest.fixture
def stranger(monkeypatch):
    """A server that answers every page with 200, on MLflow's default port."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    monkeypatch.setitem(servers.DEFAULT_PORTS, "mlflow", server.server_port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


def test_a_port_is_given_once_even_before_its_server_listens(monkeypatch):
    monkeypatch.setitem(servers.DEFAULT_PORTS, "prefect", servers._any_free_port())
    with servers._reserved_port("prefect", None) as (first, _), servers._reserved_port("prefect", None) as (second, _):
        assert first == servers.DEFAULT_PORTS["prefect"] != second
        with pytest.raises(TryLaterError, match=str(first)), servers._reserved_port("prefect", first):
            pass


def test_a_taken_default_gives_way_and_a_taken_wish_is_refused(stranger):
    with servers._reserved_port("mlflow", None) as (port, _):
        assert port != stranger
    with pytest.raises(TryLaterError, match=f"port {stranger} .*in use"), servers._reserved_port("mlflow", stranger):
        pass


def test_a_stranger_on_the_port_does_not_count_as_our_server(stranger):
    address = f"http://127.0.0.1:{stranger}"
    idle = subprocess.Popen(["sleep", "60"])
    try:
        own = servers.Server("mlflow", address, os.getpid(), psutil.Process().create_time())
        other = servers.Server("mlflow", address, idle.pid, psutil.Process(idle.pid).create_time())
        assert own.answers()
        assert not other.answers()
        assert servers.Server("mlflow", address).answers()  # configured by address: anybody may serve it
    finally:
        idle.kill()
        idle.wait()
