"""Runs that died without a word: Prefect marks them Crashed when their heartbeat stops.

A run under a worker is seen to end by its worker. One that a person started has nobody to say so: after kill -9 or a
power cut it would stay Running for ever, and keep its slot of a concurrency limit.
"""

from __future__ import annotations

from datetime import timedelta

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

AUTOMATION = "runs without a heartbeat are crashed"
HEARTBEAT = "prefect.flow-run.heartbeat"
SILENCE = timedelta(seconds=90)  # three heartbeats (PREFECT_FLOWS_HEARTBEAT_FREQUENCY is 30)
QUIET_STATES = ("Completed", "Failed", "Cancelled", "Crashed", "Cancelling", "Paused", "Suspended")


def watch_for_crashes() -> None:
    """Make the automation in the server in use, unless it is there."""
    with get_client(sync_client=True) as client:
        if client.read_automations_by_name(AUTOMATION):
            return
        client.create_automation(
            AutomationCore(
                name=AUTOMATION,
                description="Three heartbeats missed: the process is gone. Run the same command again to resume.",
                trigger=EventTrigger(
                    after={HEARTBEAT},
                    expect={HEARTBEAT, *(f"prefect.flow-run.{state}" for state in QUIET_STATES)},
                    match={"prefect.resource.id": "prefect.flow-run.*"},
                    for_each={"prefect.resource.id"},
                    posture=Posture.Proactive,
                    threshold=1,
                    within=SILENCE,
                ),
                actions=[
                    ChangeFlowRunState(
                        state=StateType.CRASHED,
                        message="its process ended without a word; the same command resumes from the last checkpoint",
                    )
                ],
            )
        )
