import json

import pytest
import torch

from lm_core.errors import UserError
from lm_core.training.checkpoint import Checkpointer, State


def state(step: int) -> State:
    return State(step, {"model": {"w": torch.full((3,), float(step))}}, {"tokens": step})


def saved(folder, *steps, **determinism) -> Checkpointer:
    checkpoints = Checkpointer(folder, determinism)
    for step in steps:
        checkpoints.save(state(step))
    checkpoints.wait()
    return checkpoints


def test_two_are_kept_and_the_newest_comes_back(tmp_path):
    newest = saved(tmp_path, 1, 2, 3).newest()
    assert newest.step == 3
    assert torch.equal(newest.tensors["model"]["w"], torch.full((3,), 3.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00000002", "checkpoint-00000003"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, name):
    checkpoints = saved(tmp_path, 1, 2)
    damaged = tmp_path / "checkpoint-00000002" / name
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    assert checkpoints.newest().step == 1


def spoilt(change):
    def spoil(content):
        change(content)
        return content

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [*(spoilt(lambda content, name=name: content.pop(name)) for name in ("step", "files", "figures", "determinism")),
     spoilt(lambda content: content.update(determinism=["threads"])), spoilt(lambda content: content.update(files=[1])),
     spoilt(lambda content: content.update(figures=3)), spoilt(lambda content: content.update(step=None)),
     lambda content: [content], lambda content: 7],
)  # fmt: skip
def test_a_state_that_says_too_little_gives_way_to_the_one_before(tmp_path, spoil):
    checkpoints = saved(tmp_path, 1, 2, num_threads=1)
    path = tmp_path / "checkpoint-00000002/state.json"
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    assert checkpoints.newest().step == 1


def test_the_state_is_copied_at_once(tmp_path):
    weights = torch.zeros(3)
    checkpoints = Checkpointer(tmp_path, {})
    checkpoints.save(State(1, {"model": {"w": weights}}, {}))
    weights += 1
    checkpoints.wait()
    assert float(checkpoints.newest().tensors["model"]["w"].sum()) == 0


def test_other_conditions_are_refused_with_the_way_out(tmp_path):
    saved(tmp_path, 1, num_threads=1)
    with pytest.raises(UserError, match=r"num_threads=1.*num_threads=2.*remove") as error:
        Checkpointer(tmp_path, {"num_threads": 2}).newest()
    assert "\n" not in str(error.value)


def test_anchors_stay_when_checkpoints_have_gone_on(tmp_path):
    checkpoints = Checkpointer(tmp_path, {})
    for step in range(1, 8):
        checkpoints.save(state(step), anchor=step in (1, 2, 3, 6))
    checkpoints.wait()
    assert checkpoints.newest().step == 7
    assert [path.name for path in sorted(tmp_path.glob("anchor-*"))] == ["anchor-00000003", "anchor-00000006"]
    assert checkpoints.anchor(7).step == 6
    assert checkpoints.anchor(5).step == 3  # one that is still ahead is not gone back to
    assert checkpoints.anchor(2) is None


def test_another_world_goes_on_though_its_threads_differ(tmp_path):
    saved(tmp_path, 1, num_threads=2, precision="fp32")
    other = Checkpointer(tmp_path, {"num_threads": 1, "precision": "fp32"}, "2 processes, ddp").newest()
    assert (other.step, other.world) == (1, "1 process")
    with pytest.raises(UserError, match="precision"):
        Checkpointer(tmp_path, {"num_threads": 1, "precision": "bf16"}, "2 processes, ddp").newest()
