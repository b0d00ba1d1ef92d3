"""Stages in processes of their own: the same bits, the same errors, and no process that outlives its master."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lm_core.config import identity_of
from lm_core.downstream.config import FinetuneConfig, ReadTaskConfig
from lm_core.downstream.finetune import finetune
from lm_core.downstream.tasks.registry import declared_tasks
from lm_core.errors import MachineError, Preempted, UserError
from lm_core.orders import ForeignError, order_of, relay
from lm_core.runtime import Runtime
from lm_core.training.config import OptimizationConfig
from lm_core.workers import Worker, Workers
from tests.downstream.tiny_world import World, make_world, new_build

pytestmark = pytest.mark.slow
ENDLESS_SECONDS = 600
LESSON = FinetuneConfig(
    task="topic", max_steps=4, optimization=OptimizationConfig(batch_tokens=512, micro_batch_tokens=512)
)


def sleep(build, config, **inputs):
    """A stage that does not end by itself; it says that it has begun."""
    (build.work / "begun").write_text(str(os.getpid()))
    time.sleep(ENDLESS_SECONDS)


def die(build, config, **inputs):
    os.kill(os.getpid(), signal.SIGKILL)


def chat(build, config, **inputs):
    print('{"result": "of a library"}')
    build.progress(1, 2, "lines")
    return {"pid": os.getpid(), "threads": build.runtime.num_threads, "omp": os.environ["OMP_NUM_THREADS"]}


def stumble(build, config, **inputs):
    raise ZeroDivisionError("of its own making")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("worker_world"))


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    root = tmp_path_factory.mktemp("worker")
    worker = Worker(Runtime(workspace=root, device="cpu", num_threads=1), root / "logs" / "worker.log")
    yield worker
    worker.end()


def test_a_fine_tune_has_the_same_bits_wherever_it_is_made(world, worker):
    config = LESSON.model_copy(update={"task": next(iter(world.examples.statistics["tasks"]))})
    inputs = {"base": world.base, "examples": world.examples, "corpus": world.valid}
    here, there = world.build("here"), world.build("there")
    wanted = finetune(here, config, **inputs)
    made = worker.carry_out("lm_core.downstream.finetune:finetune", there, config, **inputs)
    assert made["weights_sha256"] == wanted["weights_sha256"]
    assert {path.name for path in there.folder.iterdir()} == {path.name for path in here.folder.iterdir()}


def test_what_a_library_prints_is_no_answer_and_progress_arrives(world, worker):
    heard = []
    build = replace(world.build("chat"), progress=lambda *told, **figures: heard.append(told))
    first = worker.carry_out(f"{__name__}:chat", build, LESSON)
    again = worker.carry_out(f"{__name__}:chat", build, LESSON)
    assert first["threads"] == 1 and first["omp"] == "1"
    assert first["pid"] == again["pid"] != os.getpid()
    assert heard == [(1, 2, "lines")] * 2


def test_errors_arrive_as_what_they_are(world, worker):
    nothing = LESSON.model_copy(update={"task": "no_such_task"})
    inputs = {"base": world.base, "examples": world.examples, "corpus": world.valid}
    with pytest.raises(UserError, match="no_such_task has no training examples"):
        worker.carry_out("lm_core.downstream.finetune:finetune", world.build("bad"), nothing, **inputs)
    with pytest.raises(ForeignError, match="ZeroDivisionError: of its own making"):
        worker.carry_out(f"{__name__}:stumble", world.build("defect"), LESSON)


def test_a_process_that_dies_is_named_and_replaced(world, worker):
    with pytest.raises(MachineError, match=r"the process of died_stage died \(signal 9; out of memory\?\)"):
        worker.carry_out(f"{__name__}:die", replace(world.build("died"), work=world.root / "died_stage" / "x"), LESSON)
    assert worker.carry_out(f"{__name__}:chat", world.build("chat"), LESSON)["threads"] == 1


def test_asked_to_stop_it_stops_and_takes_no_more(tmp_path):
    workers = Workers(Runtime(workspace=tmp_path, device="cpu", num_threads=4, num_side_by_side=2))
    build = new_build(tmp_path, "endless")
    begun = build.work / "begun"
    with workers.one() as one:
        assert one.runtime.num_threads == 2
        stopper = subprocess.Popen(
            ["sh", "-c", f"while [ ! -s {begun} ]; do sleep 0.1; done; kill -TERM $(cat {begun})"]
        )
        with pytest.raises(Preempted):
            one.carry_out(f"{__name__}:sleep", build, LESSON)
        stopper.wait()
        workers.stop()
        with pytest.raises(Preempted):
            one.carry_out(f"{__name__}:chat", build, LESSON)
    workers.end()


MASTER = """
import sys
from pathlib import Path
from lm_core.runtime import Runtime
from lm_core.workers import Worker
from tests.downstream.tiny_world import new_build
from tests.test_workers import LESSON
root = Path(sys.argv[1])
Worker(Runtime(workspace=root, device="cpu", num_threads=1), root / "worker.log").carry_out(
    "tests.test_workers:sleep", new_build(root, "endless"), LESSON)
"""


def test_no_worker_outlives_its_master(tmp_path):
    master = subprocess.Popen([sys.executable, "-c", MASTER, str(tmp_path)])
    begun = tmp_path / "work" / "endless" / "begun"
    while not (begun.exists() and begun.read_text()):
        assert master.poll() is None
        time.sleep(0.05)
    pid = int(begun.read_text())
    master.kill()
    master.wait()
    while _lives(pid):  # the test's own time limit is the bound
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_every_declared_task_survives_the_way(tmp_path):
    for task in declared_tasks(None).values():
        config = ReadTaskConfig(task=task, data="somewhere")
        order = order_of("module:name", new_build(tmp_path, "read"), config, {}, Runtime(workspace=tmp_path))
        _, name, values = order["config"]
        assert name == "ReadTaskConfig"
        assert identity_of(ReadTaskConfig.model_validate(values)) == identity_of(config)


def test_lines_that_are_no_json_are_left_out():
    told = []
    assert relay("a library's warning\n", lambda *a, **k: told.append(a)) is None
    assert relay("3\n", lambda *a, **k: told.append(a)) is None
    assert relay('{"result": {"n": 1}}\n', lambda *a, **k: told.append(a)) == {"result": {"n": 1}}
    assert not told
