"""Parts of a flow that do not need each other, side by side: a thread for each, and for its stages a process.

Threads only walk the wiring and wait. A stage that begins in one of them takes a worker (`lm_core.workers`) and keeps
it until its report is written, so that as many stages run as there are workers, however deep the parts are nested.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

from lm_core.errors import Preempted
from lm_core.runtime import Runtime
from lm_core.workers import STOPPED, Worker, Workers
from tasks.display import Display
from tasks.wording import duration

ResultT = TypeVar("ResultT")
_beside: ContextVar[bool] = ContextVar("_beside", default=False)


class SideBySide:
    """Runs calls side by side; as many stages at a time as `Runtime.num_side_by_side` says."""

    def __init__(self, runtime: Runtime, display: Display) -> None:
        self._number = runtime.num_side_by_side
        self._display = display
        self._workers = Workers(runtime)
        self._stopped = False

    @contextmanager
    def worker(self) -> Iterator[Worker | None]:
        """Where a stage that begins now computes: a worker for as long as it takes, or None for this process."""
        if not _beside.get():
            yield None
            return
        with self._workers.one() as worker:
            yield worker

    def together(self, calls: Sequence[Callable[[], ResultT]], *, counted: str = "") -> list[ResultT]:
        """Results of the calls, in their order.

        A call that fails leaves the others alone: when all have ended the first error is raised, and every other one
        has been said in a line.

        Args:
            counted: what a call is, in the plural: then the display tells how many are done.

        Raises:
            Preempted: SIGTERM came; what was training has saved a checkpoint.
        """
        if self._number == 1 or len(calls) == 1:
            return [call() for call in calls]
        pool = ThreadPoolExecutor(self._number)
        try:
            with self._stopping_with_sigterm():
                futures = [pool.submit(copy_context().run, _run_beside, call) for call in calls]
                self._wait_for(futures, counted)
        except BaseException:  # Ctrl-C: nothing of it is worth a wait
            self._workers.end()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        if self._stopped:
            raise Preempted(STOPPED)
        errors = [error for future in futures if (error := future.exception())]
        for line in dict.fromkeys(str(error) for error in errors):
            if line != str(errors[0]):
                self._display.say(f"  failed, too: {line}")
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the processes."""
        self._workers.end()

    def _wait_for(self, futures: Sequence[Future[Any]], counted: str) -> None:
        started, left = time.monotonic(), set(futures)
        while left:
            _, left = wait(left, return_when=FIRST_COMPLETED)
            done = len(futures) - len(left)
            if counted and left and not self._stopped:
                seconds = (time.monotonic() - started) * len(left) / done
                self._display.say(f"  {done} of {len(futures)} {counted} done, about {duration(seconds)} left")

    @contextmanager
    def _stopping_with_sigterm(self) -> Iterator[None]:
        """SIGTERM reaches the processes; only the main thread may listen, and it waits for all others."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(*_: Any) -> None:
            self._stopped = True
            self._workers.stop()

        previous = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)


def _run_beside(call: Callable[[], ResultT]) -> ResultT:
    _beside.set(True)
    return call()
