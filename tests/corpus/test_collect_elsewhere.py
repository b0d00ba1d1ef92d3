"""What is read elsewhere yields the corpus that it yields when it is read here, from every kind of source."""

import pickle
from dataclasses import replace

import pytest

from lm_core.corpus.collect import collect
from lm_core.corpus.config import CollectConfig, HubDataset, InstalledPackages, LocalFiles, WebPages
from tests.corpus.builds import new_build, rows
from tests.corpus.test_sources_web import Site, page


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


def test_pages_packages_and_data_sets_are_read_elsewhere(tmp_path, folder):
    site = Site()
    site.pages = {path: (200, {}, page(path)) for path in ("/a", "/b")}
    web = WebPages(
        urls=(f"{site.root}/a", f"{site.root}/b"), allow_http=True, allow_private_addresses=True, delay_seconds=0
    )
    table = HubDataset(name="json", data_files=str(folder / "table.jsonl"))
    (folder / "table.jsonl").write_text('{"text": "a row of a table, long enough to be kept"}\n')
    packages = InstalledPackages(packages=("packaging",), include_standard_library=False)
    config = CollectConfig(sources=(web, table, packages))
    here = new_build(tmp_path, "here", workspace=tmp_path / "one")
    expected = collect(here, config)
    done: list = []
    build = replace(new_build(tmp_path, "there", workspace=tmp_path / "two"), mapper=elsewhere(done))
    try:
        assert collect(build, config) == expected
    finally:
        site.server.shutdown()
        site.server.server_close()
    assert rows(build.folder, "documents-00000.parquet") == rows(here.folder, "documents-00000.parquet")
    assert len(done) == 4  # two pages, a data set, a package
