"""Peak memory of a run: this process and its children, without the servers it may have started."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import psutil

SAMPLE_SECONDS = 0.5


class PeakMemory:
    """Samples resident memory in a thread.

    Args:
        excluded: called at each sample; process ids whose trees do not count.
    """

    def __init__(self, excluded: Callable[[], Iterable[int]]) -> None:
        self.peak_bytes = 0
        self._excluded = excluded
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="peak-memory")

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            self.peak_bytes = max(self.peak_bytes, self._resident(me, set(self._excluded())))
            if self._stop.wait(SAMPLE_SECONDS):
                return

    def _resident(self, process: psutil.Process, excluded: set[int]) -> int:
        if process.pid in excluded:
            return 0
        try:
            children = process.children()
            return int(process.memory_info().rss) + sum(self._resident(child, excluded) for child in children)
        except psutil.NoSuchProcess:
            return 0
