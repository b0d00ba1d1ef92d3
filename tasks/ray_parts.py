"""The parts of a stage as Prefect tasks on a Ray cluster: what `--runner ray` means.

A stage only says what is done to a part (`lm_core.mapping`). Here each part becomes a task run of Prefect's Ray task
runner, on whichever node has a free core; RAY_ADDRESS names a cluster, without it one is started on this machine for
the time of the stage. Nodes need the same installation and the workspace at the same path.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext

from lm_core.errors import MachineError
from lm_core.mapping import AHEAD, Mapper
from lm_core.runtime import Runtime


def mapper_of(runtime: Runtime, stage: str) -> AbstractContextManager[Mapper | None]:
    """Who works on the parts of a stage; None for threads of this process."""
    return RayParts(runtime, stage) if runtime.runner == "ray" else nullcontext()


class RayParts:
    """Maps over parts on Ray; connects when it is first used, so that a stage without parts never does."""

    def __init__(self, runtime: Runtime, stage: str) -> None:
        self._runtime = runtime
        self._stage = stage
        self._opened = ExitStack()
        self._runner: Any = None
        self._num_parts = 0

    def __enter__(self) -> RayParts:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._opened.close()

    def __call__(self, function: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]:
        """Results of a function for each part, in their order."""
        runner = self._connected()
        import ray

        ahead = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting: deque[Any] = deque()
        for part in parts:
            self._num_parts += 1
            name = f"{self._stage} part {self._num_parts}"
            run = task(name=f"{self._stage}-part", task_run_name=name, cache_policy=NO_CACHE, persist_result=False)
            # One opaque parameter: Prefect would look for futures within a part.
            submit = partial(runner.submit, run(_work), parameters={"work": partial(function, part)})
            waiting.append(copy_context().run(_outside_of_stage, submit))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _connected(self) -> Any:
        if self._runner is None:
            try:
                from prefect_ray import RayTaskRunner
            except ImportError:
                raise MachineError("the runner ray needs the extra: pip install 'millrace[ray]'") from None
            own = {} if self._runtime.ray_address else {"num_cpus": self._runtime.num_workers}
            settings = own | {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
            runner = RayTaskRunner(address=self._runtime.ray_address, init_kwargs=settings)
            try:
                self._runner = self._opened.enter_context(runner)
            except (ConnectionError, RuntimeError, ValueError) as error:
                where = self._runtime.ray_address or "on this machine"
                raise MachineError(f"no Ray cluster {where}: {str(error).splitlines()[0]}") from None
        return self._runner


def _outside_of_stage(submit: Callable[[], Any]) -> Any:
    """Submit as if from the flow: the task of the stage holds what cannot travel, a display and open files."""
    TaskRunContext.__var__.set(None)  # type: ignore[arg-type]
    return submit()


def _work(work: Callable[[], Any]) -> Any:
    """Runs on a node of the cluster."""
    return work()
