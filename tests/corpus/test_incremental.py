"""A run that compares only what has to do with what came or went writes the same files as one that compares all."""

import random

import pytest

from lm_core.corpus.config import DeduplicateConfig
from lm_core.corpus.dedup import search
from lm_core.corpus.dedup.containment import MAX_OWNERS
from lm_core.corpus.deduplicate import deduplicate
from tests.corpus.builds import corpus_of, new_build, nothing_dropped
from tests.corpus.test_containment import library
from tests.corpus.tiny_ledger import document

FILES = ("decisions.parquet", "edges.parquet", "splits.parquet", "cuts.parquet")


def family(seed: int) -> list[dict]:
    """Books with chapters and quotations, near and equal copies, and pages that nearly too many share a notice of."""
    generator = random.Random(seed)
    words = [f"v{n}" for n in range(4000)]
    notice = " ".join(generator.choices(words, k=150))
    texts = library(seed)
    for _ in range(MAX_OWNERS + 4):
        texts.append("\n\n".join([notice, " ".join(generator.choices(words, k=generator.randint(5, 60)))]))
    for text in generator.sample(texts, 40):
        changed = text.split(" ")
        for _ in range(generator.randint(0, 3)):
            changed[generator.randrange(len(changed))] = "another"
        texts.append(" ".join(changed))
    footer = "This line stands at the end of every page that a certain program has made.\n"
    lines = ["\n".join(" ".join(generator.choices(words, k=9)) for _ in range(8)) for _ in range(60)]
    shared = " ".join(generator.choices(words, k=60))
    texts += [f"{text}\n\n{shared}\n\n{footer}" if n < 24 else text for n, text in enumerate(lines)]
    return [document(f"key-{n}", text, generator.choice(["one", "two"])) for n, text in enumerate(texts)]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_comes_and_goes_the_files_are_those_of_a_full_run(tmp_path, monkeypatch, seed):
    documents, generator = family(seed), random.Random(seed)
    compared = []
    whole = search._with_company
    monkeypatch.setattr(search, "_with_company", lambda *args: compared.append(1) or whole(*args))
    config = DeduplicateConfig(prefer_sources=("two",), min_boilerplate_documents=20, boilerplate_fraction=0.1)

    def run(name: str, own: list[dict], workspace: str) -> tuple[list[bytes], dict]:
        build = new_build(tmp_path / name, "out", workspace=tmp_path / workspace)
        root = tmp_path / name
        statistics = deduplicate(build, config, corpus=corpus_of(root, own), cleaning=nothing_dropped(root))
        return [(build.folder / file).read_bytes() for file in FILES], statistics

    here = generator.sample(documents, len(documents) - 12)
    run("first", here, "kept")
    away = [one for one in documents if one not in here]
    for step in range(14 if seed == 0 else 6):
        gone = generator.sample(here, generator.randint(0, 8))
        came = away[: generator.randint(1, 12)]
        here = generator.sample([one for one in here if one not in gone] + came, len(here) - len(gone) + len(came))
        away = away[len(came) :] + gone
        compared.clear()
        again, statistics = run(f"step-{step}", here, "kept")
        assert len(compared) == 1  # the canaries
        full, expected = run(f"full-{step}", here, f"other-{step}")
        assert again == full
        assert statistics == expected
