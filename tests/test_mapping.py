"""Parts are worked on by a few at a time and answered in their order; a stage's result does not depend on where."""

import threading
from functools import partial

import pytest

from lm_core.mapping import AHEAD, in_threads
from lm_core.runtime import Runtime
from lm_core.store import Build


def test_results_come_in_the_order_of_the_parts_and_no_part_is_begun_far_ahead():
    taken, gate, first_done = [], threading.Event(), []

    def parts():
        for number in range(40):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        if number == 0:
            gate.wait(10)
        first_done.append(number)
        return number * number

    results = in_threads(2)(work, parts())
    threading.Timer(0.2, gate.set).start()
    assert next(results) == 0
    # The others went on while the first one was held up, and its answer still came first.
    assert first_done[0] != 0
    assert len(taken) <= AHEAD * 2 + 1
    assert list(results) == [number * number for number in range(1, 40)]


def test_an_error_of_a_part_is_the_error_of_the_stage():
    with pytest.raises(ZeroDivisionError):
        list(in_threads(2)(partial(divmod, 1), [1, 2, 0, 3]))


def test_a_build_maps_by_what_it_was_given(tmp_path):
    def backwards(function, parts):
        return iter(["elsewhere", *map(function, parts)])

    here = Build(tmp_path, tmp_path, Runtime(workspace=tmp_path, num_threads=1))
    there = Build(tmp_path, tmp_path, Runtime(workspace=tmp_path, num_threads=1), mapper=backwards)
    assert list(here.map(abs, [-1, -2])) == [1, 2]
    assert list(there.map(abs, [-1, -2])) == ["elsewhere", 1, 2]
