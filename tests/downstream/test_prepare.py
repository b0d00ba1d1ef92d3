import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_contracts.schemas import EXAMPLES
from lm_core.downstream.config import PrepareConfig
from lm_core.downstream.prepare import family_of, prepare
from tests.downstream.tiny_world import PREPARE, documents, new_build, split_of, write_corpus


def run(root, rows, config=PREPARE):
    corpus, decisions, _ = write_corpus(root, rows)
    build = new_build(root, "prepare")
    statistics = prepare(build, config, corpus=corpus, cleaning=decisions, duplicates=decisions)
    return statistics, pq.read_table(build.folder / "examples.parquet")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return run(tmp_path_factory.mktemp("prepared"), documents())


def test_all_tasks_are_made_and_counted(prepared):
    statistics, table = prepared
    assert table.schema.equals(EXAMPLES)
    assert set(statistics["tasks"]) == {"summary", "answer", "topic"}
    assert statistics["items"] == table.num_rows == sum(sum(n.values()) for n in statistics["tasks"].values())
    assert statistics["tasks"]["summary"]["train"] == 60
    assert statistics["topic_labels"] == ["ledger", "milling", "weather"]


def test_the_split_of_an_example_is_that_of_its_document(prepared):
    assert all(row["split"] == split_of(row["doc_id"]) for row in prepared[1].to_pylist())


def test_items_are_unique_and_sorted(prepared):
    keys = [(row["task"], row["split"], row["item_id"]) for row in prepared[1].to_pylist()]
    assert keys == sorted(set(keys))


def test_topics_are_balanced(prepared):
    rows = [r for r in prepared[1].to_pylist() if r["task"] == "topic" and r["split"] == "train"]
    counts = {label: sum(r["target"] == label for r in rows) for label in rows[0]["labels"]}
    assert len(set(counts.values())) == 1


def test_a_question_names_parameter_and_function_and_a_summary_its_object(prepared):
    rows = prepared[1].to_pylist()
    answer = next(r for r in rows if r["task"] == "answer")
    assert "What does the parameter" in answer["prompt"] and answer["target"] not in answer["prompt"]
    summary = next(r for r in rows if r["task"] == "summary")
    assert summary["target"] not in summary["prompt"]


def test_order_of_shards_and_rows_does_not_matter(prepared, tmp_path):
    _, table = run(tmp_path, documents()[::-1])
    assert table.equals(prepared[1])


def plain_documents(sources):
    rows = documents()
    return [row | {"kind": "text", "source": sources[i % len(sources)], "title": None} for i, row in enumerate(rows)]


def test_plain_text_of_two_sources_gives_topic_alone(tmp_path):
    statistics, table = run(tmp_path, plain_documents(["letters.txt", "notes.txt"]))
    assert set(statistics["tasks"]) == {"topic"}
    assert "needed" in statistics["left_out"]["summary"]
    assert set(pa.compute.unique(table["target"]).to_pylist()) == {"letters.txt", "notes.txt"}


def test_plain_text_of_one_source_gives_no_task_and_says_why(tmp_path):
    statistics, table = run(tmp_path, plain_documents(["letters.txt"]))
    assert table.num_rows == 0 and not statistics["tasks"]
    assert statistics["left_out"]["topic"] == "fewer than two sources have enough documents"


def test_one_document_is_no_error(tmp_path):
    statistics, _ = run(tmp_path, documents()[:1], PrepareConfig())
    assert not statistics["tasks"] and len(statistics["left_out"]) == 3


def test_families_join_the_packages_of_one_name():
    assert family_of("prefect-ray", "docstring") == family_of("Prefect", "docstring") == "prefect"
    assert family_of("my-notes.txt", "text") == "my-notes.txt"
