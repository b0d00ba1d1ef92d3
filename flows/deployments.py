"""Deployments: the flows under Prefect's scheduler, run by a worker of the pool `millrace`."""

from __future__ import annotations

import asyncio
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from flows.config import PipelineConfig
from flows.pipeline import run_corpus, run_corpus_to_model, run_evaluate, run_finetune, run_pretrain, run_promote
from lm_core.errors import UserError
from tasks.stack import WORK_POOL


async def _ensure_work_pool() -> None:
    async with get_client() as client:
        try:
            await client.read_work_pool(WORK_POOL)
        except ObjectNotFound:
            await client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process"))


def deploy_parts() -> list[str]:
    """Create or update a deployment of the pipeline and of each part, to be started by hand in Prefect's pages."""
    asyncio.run(_ensure_work_pool())
    made = []
    flows: tuple[Any, ...] = (
        run_corpus_to_model, run_corpus, run_pretrain, run_finetune, run_evaluate, run_promote
    )  # fmt: skip
    for flow in flows:
        deployment = flow.to_deployment(
            name="by-hand",
            tags=["millrace"],
            concurrency_limit=1,
            entrypoint_type=EntrypointType.MODULE_PATH,
            work_pool_name=WORK_POOL,
        )
        deployment.apply()
        made.append(f"{flow.name}/by-hand")
    return made


def deploy_scheduled(config: PipelineConfig, cron: str, name: str, timezone: str, until: str | None) -> dict[str, Any]:
    """Create or replace a deployment of the whole pipeline that runs by a cron line.

    Raises:
        UserError: the cron line or the time zone is not valid.
    """
    asyncio.run(_ensure_work_pool())
    try:
        schedule = Cron(cron, timezone=timezone)
    except ValueError as error:
        raise UserError(f'the schedule "{cron}" ({timezone}) is not valid: {str(error).splitlines()[0]}') from None
    deployment: Any = run_corpus_to_model.to_deployment(
        name=name,
        schedules=[schedule],
        parameters={"config": config.model_dump(mode="json"), "until": until},
        tags=["millrace"],
        concurrency_limit=1,
        entrypoint_type=EntrypointType.MODULE_PATH,
        work_pool_name=WORK_POOL,
    )
    identifier = deployment.apply()
    return {"deployment": f"corpus_to_model/{name}", "id": str(identifier), "cron": cron, "timezone": timezone}
