"""Rows shared among threads: every row once, whoever starts the threads, and no error lost."""

import sys
import threading

import pytest
import torch

from lm_core.model import row_threads
from lm_core.model.row_threads import num_parts, share_rows

WAYS = {"team": row_threads._openmp_team, "pool": lambda: None}


@pytest.fixture(params=WAYS)
def three_threads(request, monkeypatch):
    monkeypatch.setattr(row_threads, "_openmp_team", WAYS[request.param])
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("rows", [0, 63, 100, 200, 1001])
def test_every_row_is_worked_on_once_in_parts_that_depend_on_nothing_else(rows):
    lock, seen = threading.Lock(), []

    def work(part, begin, end):
        with lock:
            seen.append((part, begin, end))

    share_rows(work, rows)
    parts = num_parts(rows)
    assert sorted(seen) == [(p, rows * p // parts, rows * (p + 1) // parts) for p in range(parts)]


@pytest.mark.usefixtures("three_threads")
def test_an_error_in_any_part_arrives():
    def work(part, begin, end):
        if part == 1:
            raise MemoryError("part 1")

    with pytest.raises(MemoryError, match="part 1"):
        share_rows(work, 300)


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is Linux's")
def test_on_linux_the_threads_are_those_of_pytorch():
    assert row_threads._openmp_team() is not None
