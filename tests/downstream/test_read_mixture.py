"""Several tasks as one set of examples."""

import pyarrow.parquet as pq
import pytest

from lm_core.downstream.config import ReadMixtureConfig
from lm_core.downstream.read_mixture import read_mixture
from lm_core.errors import UserError
from lm_core.stages import READ_MIXTURE
from tests.downstream.test_declared_tasks import changed, folder, tickets, write_jsonl  # noqa: F401, the fixture
from tests.downstream.tiny_world import new_build

ITEMS_BY_VERSION = {1: {"tickets": 90, "few": 30}}


def test_the_examples_of_all_tasks_stand_one_after_the_other(folder):  # noqa: F811
    write_jsonl(folder / "few.jsonl", [tickets(number) for number in range(30)])
    few = changed(folder, name="few", files={"all": "few.jsonl"})
    build = new_build(folder, "mixture")
    figures = read_mixture(build, ReadMixtureConfig(tasks=(changed(folder), few), data=str(folder)))
    items = {name: sum(splits.values()) for name, splits in figures["tasks"].items()}
    assert items == ITEMS_BY_VERSION[READ_MIXTURE.version], (
        "values moved but the version of read_mixture did not: raise it in lm_core/stages.py, write the new ones here"
    )
    tasks = pq.read_table(build.folder / "examples.parquet")["task"].to_pylist()
    assert len(tasks) == figures["items"] == 120 and tasks == sorted(tasks, key=("tickets", "few").index)


def test_a_task_whose_answer_is_no_text_cannot_be_mixed(folder):  # noqa: F811
    choices = changed(folder, name="choices", kind="choice", choices=("{text}", "{subject}"), baselines=())
    with pytest.raises(UserError, match="choices cannot be mixed"):
        read_mixture(new_build(folder, "wrong"), ReadMixtureConfig(tasks=(changed(folder), choices), data=str(folder)))


def test_skimmed_files_give_fewer_items(folder):  # noqa: F811
    for name in ("many", "more"):
        write_jsonl(folder / f"{name}.jsonl", [tickets(number) for number in range(600)])
    tasks = tuple(changed(folder, name=name, files={"all": f"{name}.jsonl"}) for name in ("many", "more"))
    whole, part = (
        read_mixture(new_build(folder, f"skim_{skim}"), ReadMixtureConfig(tasks=tasks, data=str(folder), skim=skim))[
            "items"
        ]
        for skim in (False, True)
    )
    assert part < whole / 2
