"""The local servers and the workspace."""

from __future__ import annotations

from typing import Any

from flows.commands.arguments import AddCommand, Options, add_ports, say, use_servers


def add(command: AddCommand) -> None:
    """`up`, `down`, `gc`."""
    command("up", "start the Prefect and MLflow servers and a worker; Ctrl-C stops them", _up, add_ports)
    command("down", "stop the servers that run in the background", _down)
    gc = command("gc", "remove artifacts that no registered model and no recent run descends from", _gc)
    gc.add_argument("--delete", action="store_true", help="really remove; without it only list")


def _up(options: Options) -> dict[str, Any]:
    from tasks import stack

    found = use_servers(options, ("prefect", "mlflow"))
    from flows.deployments import deploy_parts

    say(f"deployments to start by hand: {', '.join(deploy_parts())}")
    return stack.stay_up(options.workspace, found, say)


def _down(options: Options) -> dict[str, Any]:
    from tasks import servers

    stopped = servers.stop(options.workspace)
    say(f"stopped {' and '.join(stopped)}" if stopped else "nothing was running")
    return {"stopped": stopped}


def _gc(options: Options) -> dict[str, Any]:
    from tasks.housekeeping import collect_garbage

    removed = collect_garbage(options.workspace, delete=options.delete)
    for path, size in removed:
        say(f"{size / 1e6:>9.1f} MB  {path}")
    total = sum(size for _, size in removed)
    verb = "removed" if options.delete else "would be removed (add --delete)"
    say(f"{len(removed)} folders, {total / 1e6:.1f} MB {verb}")
    return {"folders": [str(path) for path, _ in removed], "bytes": total, "deleted": options.delete}
