"""Files that are read elsewhere yield the corpus that they yield when they are read here."""

import pickle
from dataclasses import replace

import pytest

from lm_core.corpus.collect import collect
from lm_core.corpus.config import CollectConfig, LocalFiles
from tests.corpus.builds import new_build, rows


@pytest.fixture
def folder(tmp_path):
    pages = tmp_path / "pages"
    pages.mkdir()
    for number in range(6):
        (pages / f"page-{number}.txt").write_text(f"A page with the number {number}. " * 30)
    (pages / "table.jsonl").write_text('{"text": "a row of a table, long enough to be kept"}\nno JSON at all\n')
    return pages


def elsewhere(done: list):
    """A mapper whose functions, parts and results go through bytes, as they do on their way to another machine."""

    def run(function, parts):
        for part in parts:
            there, own = pickle.loads(pickle.dumps((function, part)))
            done.append(own)
            yield pickle.loads(pickle.dumps(there(own)))

    return run


@pytest.mark.parametrize("reuse", [True, False])
def test_files_are_read_elsewhere_once_and_the_corpus_is_the_same(tmp_path, folder, reuse):
    config = CollectConfig(sources=(LocalFiles(path=str(folder)),), reuse=reuse)
    here = new_build(tmp_path, "here", workspace=tmp_path / "one")
    expected = collect(here, config)
    done: list = []
    found = {}
    for name in ("there", "again"):
        build = replace(new_build(tmp_path, name, workspace=tmp_path / "two"), mapper=elsewhere(done))
        found[name] = collect(build, config)
        for file in ("documents-00000.parquet", "rejected.parquet"):
            assert rows(build.folder, file) == rows(here.folder, file)
        assert not list(build.work.glob("*.part"))
    assert found["there"] == expected
    assert len(done) == (7 if reuse else 14)
