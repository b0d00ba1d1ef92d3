"""The rows of an array, shared among the threads of PyTorch.

Those wait for their next share of work by spinning, for a while at least. Threads of another pool would have to take
the processors from them: with as many threads as processors, a kernel gained nothing from its second thread.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

_MIN_ROWS = 64  # fewer are not worth a second thread
_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

Work = Callable[[int, int, int], object]


def num_parts(rows: int) -> int:
    """How many threads share so many rows: those of PyTorch."""
    return max(1, min(torch.get_num_threads(), rows // _MIN_ROWS))


def share_rows(work: Work, rows: int) -> None:
    """Call work(part, begin, end) for every part; always the same parts for the same number of threads."""
    parts = num_parts(rows)
    bounds = [rows * part // parts for part in range(parts + 1)]
    if parts == 1:
        work(0, 0, rows)
        return
    team = _openmp_team()
    if team is None:
        _in_a_pool(work, bounds)
    else:
        _in_a_team(team, work, bounds)


@lru_cache(maxsize=1)
def _openmp_team() -> Any:
    """Where the OpenMP that PyTorch itself uses starts its threads; None where it is not GNU's or looks like it."""
    try:
        return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None


def _in_a_team(team: Any, work: Work, bounds: list[int]) -> None:
    waiting = itertools.count()  # a team may be smaller than asked for, so each thread takes parts while there are any
    errors: list[BaseException] = []

    def member(_: int | None) -> None:
        try:
            while (part := next(waiting)) < len(bounds) - 1:
                work(part, bounds[part], bounds[part + 1])
        except BaseException as error:  # nothing may pass through the frames of a C library
            errors.append(error)

    team(_ENTRY(member), None, ctypes.c_uint(len(bounds) - 1), ctypes.c_uint(0))
    if errors:
        raise errors[0]


@lru_cache(maxsize=1)
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="rows")


def _in_a_pool(work: Work, bounds: list[int]) -> None:
    pool = _pool(torch.get_num_threads() - 1)
    others = [pool.submit(work, part, bounds[part], bounds[part + 1]) for part in range(1, len(bounds) - 1)]
    work(0, bounds[0], bounds[1])
    for other in others:
        other.result()
