"""Work on the parts of a stage: in threads of this process, or wherever a runner takes it.

A stage says what is done to a part; where that happens is no concern of its own, and never changes the result. So the
function must be importable by its name (or `functools.partial` of one that is), parts must be small and say where the
data lie (a path and a row group, say), and results come back in the order of the parts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

# So many parts for each worker wait or are done before their turn; more would only fill the memory.
AHEAD = 3


class Mapper(Protocol):
    """Applies a function to parts; yields the results in the order of the parts."""

    def __call__(self, function: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]: ...


def in_threads(num_threads: int) -> Mapper:
    """A mapper over threads of this process: right for functions that spend their time without the GIL."""

    def run(function: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]:
        with ThreadPoolExecutor(num_threads) as pool:
            waiting: deque[Future[Any]] = deque()
            for part in parts:
                waiting.append(pool.submit(function, part))
                if len(waiting) >= AHEAD * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    return run
