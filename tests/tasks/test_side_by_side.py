"""Calls side by side: they meet, they answer in their order, and what fails leaves the others alone."""

import os
import signal
import threading

import pytest

from lm_core.errors import Preempted, UserError
from lm_core.runtime import Runtime
from tasks.display import Display
from tasks.side_by_side import SideBySide


class Heard(Display):
    """A display that remembers what it was told to say."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []
        self.said = threading.Event()

    def say(self, text: str) -> None:
        self.lines.append(text)
        self.said.set()


@pytest.fixture
def two(tmp_path):
    display = Heard()
    beside = SideBySide(Runtime(workspace=tmp_path, num_threads=2, num_side_by_side=2), display)
    yield beside, display
    beside.close()


def test_calls_meet_and_answer_in_their_order(two):
    beside, display = two
    meeting = threading.Barrier(2)

    def call(number, waits):
        meeting.wait(60)
        if waits:
            display.said.wait(60)
        return number * number

    assert beside.together([lambda: call(2, True), lambda: call(3, False)], counted="tasks") == [4, 9]
    assert display.lines[0].startswith("  1 of 2 tasks done, about ")


def test_stages_have_a_worker_each_and_the_main_line_has_none(two):
    beside, _ = two
    meeting = threading.Barrier(2)

    def call():
        with beside.worker() as worker:
            meeting.wait(60)
            return worker

    first, second = beside.together([call, call])
    assert first is not second and None not in (first, second)
    with beside.worker() as worker:
        assert worker is None


def test_parts_of_parts_wait_for_nobody(two):
    beside, _ = two

    def stage(number):
        with beside.worker():
            return number

    def part(number):
        return beside.together([lambda: stage(number), lambda: stage(number + 1)])

    assert beside.together([lambda n=n: part(n) for n in (0, 10, 20)]) == [[0, 1], [10, 11], [20, 21]]


def test_one_that_fails_leaves_the_others_alone(two):
    beside, display = two
    done = []

    def fails(word):
        raise UserError(word)

    calls = [lambda: done.append(1), lambda: fails("first"), lambda: done.append(2), lambda: fails("second")]
    with pytest.raises(UserError, match="first"):
        beside.together(calls)
    assert sorted(done) == [1, 2]
    assert display.lines == ["  failed, too: second"]


def test_sigterm_is_a_request(two):
    beside, _ = two
    before = signal.getsignal(signal.SIGTERM)

    def call():
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted):
        beside.together([call, lambda: None])
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_at_a_time_stays_in_this_thread(tmp_path):
    alone = SideBySide(Runtime(workspace=tmp_path, num_threads=2, num_side_by_side=1), Heard())
    here = threading.get_ident()
    assert alone.together([threading.get_ident, threading.get_ident]) == [here, here]


def test_a_number_that_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="MILLRACE_SIDE_BY_SIDE"):
        Runtime(num_side_by_side=0)


def test_a_memory_limit_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("MILLRACE_MEMORY_LIMIT", "2e8")
    assert Runtime().memory_limit_bytes == 200_000_000
    monkeypatch.setenv("MILLRACE_MEMORY_LIMIT", "1000")
    with pytest.raises(UserError, match="MILLRACE_MEMORY_LIMIT"):
        Runtime()
