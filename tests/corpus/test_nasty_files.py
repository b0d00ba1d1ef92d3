"""A folder of everything broken goes through the whole corpus pipeline: nothing is lost, nothing is executed."""

import contextlib
import json

import pyarrow.parquet as pq

from data_contracts.contract import load_contracts
from flows.config import load_config
from flows.presets import preset
from flows.wiring import Until, UntilReached, corpus_to_model
from lm_core.runtime import Runtime
from lm_core.store import Store
from tasks.contracts import TABLES
from tasks.validation import RESULTS
from tests.corpus.nasty_files import NUM_GOOD, write_nasty_files


def test_every_row_has_a_fate_and_no_file_stops_the_run(tmp_path):
    write_nasty_files(tmp_path / "in")
    before = {path.name for path in tmp_path.rglob("*")}
    store, until, made = Store(Runtime(workspace=tmp_path / "workspace", num_threads=1)), Until("validate"), {}

    def run(stage, config, *, label=None, **inputs):
        until.check(stage)
        made[stage.name] = store.build(stage, config, inputs)[0]
        return made[stage.name]

    with contextlib.suppress(UntilReached):
        corpus_to_model(load_config(preset("smoke"), data=str(tmp_path / "in")), run)
    collected, valid = made["collect"].statistics, made["validate"]
    fates = pq.read_table(valid.file("fates.parquet")).to_pylist()
    rejected = pq.read_table(made["collect"].file("rejected.parquet")).to_pylist()
    assert len(fates) == collected["num_documents"] + collected["num_rejected"]
    assert sum(row["fate"] == "kept" for row in fates) > NUM_GOOD * 0.9
    assert all(row["detail"] for row in rejected)
    told = {row["key"].partition("#")[0].partition("/")[0] for row in fates}
    files = [path for path in (tmp_path / "in").iterdir() if path.is_file()]
    names = {path.name.encode("utf-8", "replace").decode() for path in files}
    # What has no fate at all held nothing at all: no line, no record, no entry.
    assert names - told == {"empty.jsonl", "empty.csv", "empty.warc", "laughs.rss"}
    assert collected["ignored_files"] == {"broken link": 1, "link to a folder": 1, "no regular file": 1}
    new = {path.name for path in tmp_path.rglob("*") if "workspace" not in path.parts} - before
    assert not new & {"pwned", "up.txt", "abs.txt"}
    results = json.loads(valid.file(RESULTS).read_text())
    assert set(results) == set(TABLES) <= set(load_contracts())
