"""Settings that other packages read from the environment, made before they are imported.

Prefect and MLflow read theirs at import; this module imports neither and is called first thing by the command line.
"""

from __future__ import annotations

import os
from pathlib import Path

# Nothing phones home, nothing is unpickled, no ephemeral server, no hub unless a source names one.
QUIET = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # the automation of tasks/supervision.py waits for three of them
    # Against a server that is gone MLflow otherwise blocks for minutes; the journal keeps what could not be sent.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
    "TOKENIZERS_PARALLELISM": "true",
    "PYTHONWARNINGS": "ignore",
    # Threads that spin at OpenMP's barriers train four to six times slower as soon as anything else wants the cores.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def prepare_environment(workspace: Path, *, debug: bool = False) -> None:
    """Set what is not set already; PREFECT_HOME and with it Prefect's database stand in the workspace."""
    settings = QUIET | {"PREFECT_HOME": str(workspace / "prefect")}
    if debug:
        settings["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    os.environ["MILLRACE_WORKSPACE"] = str(workspace)


def use_runner(runner: str | None) -> None:
    """Where this run works on the parts of data stages, where the command line says it."""
    if runner is not None:
        os.environ["MILLRACE_RUNNER"] = runner


def use_processes(number: int | None, strategy: str | None) -> None:
    """How many processes this run pretrains with, where the command line says it."""
    if number is not None:
        os.environ["MILLRACE_PROCESSES"] = str(number)
    if strategy is not None:
        os.environ["MILLRACE_STRATEGY"] = strategy


def configured_address(service: str) -> str | None:
    """Address of a server the user already has (PREFECT_API_URL, MLFLOW_TRACKING_URI); None for a managed one."""
    return os.environ.get({"prefect": "PREFECT_API_URL", "mlflow": "MLFLOW_TRACKING_URI"}[service]) or None


def use_addresses(*, prefect_api: str | None = None, mlflow: str | None = None) -> None:
    """Point this process, and those it starts, at the servers."""
    if prefect_api:
        os.environ["PREFECT_API_URL"] = prefect_api
    if mlflow:
        os.environ["MLFLOW_TRACKING_URI"] = mlflow
