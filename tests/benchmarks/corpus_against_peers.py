"""Deduplication and quality rules beside their peers, on the same corpus in one run.

    python -m venv PEERS && PEERS/bin/pip install datatrove spacy tokenizers orjson 'xxhash<4' daft rensa text-dedup
    python tests/benchmarks/corpus_against_peers.py --peers PEERS/bin/python [--data DIR] [--slow-share 0.15]

The corpus: the texts under DIR/pretrain and, for one in nine, an edited copy whose Jaccard similarity is known. Each
tool runs at its own default definition of a copy in a process of its own, timed from reading one Parquet file to
knowing what is kept; all are judged alike by the exact similarities of 5-word shingles, found by a prefix-filter join
over all documents:

    unjustified_07, _08   share of the removed documents that no *kept* document resembles with a Jaccard of 0.7, 0.8
    recall                share of the true pairs (Jaccard >= 0.8) of which at most one document is left

`millrace` does what the peers do: equal texts and near copies. `millrace_whole` is our stage at its defaults, with
contained texts, boilerplate lines and repeated passages besides; `edges_wrong` counts its removals that the edge
table does not justify by exact figures.

The peers that need minutes (datatrove, text-dedup) are given a random share of the documents, the copies with their
originals; their speed is per megabyte of what they got. The last line is one JSON object.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.schemas import DECISIONS, DOCUMENTS
from lm_core.artifact import Corpus, Decisions
from lm_core.corpus.characters import character_table
from lm_core.corpus.config import CleanConfig, DeduplicateConfig
from lm_core.corpus.dedup.shingles import shingle_hashes, token_hashes
from lm_core.runtime import Runtime
from lm_core.store import Build

# The rules of the peer's three filters, besides our own; it does not look for personal data.
RULES_ONLY = CleanConfig(published=("gopher_repetition", "gopher", "fineweb"), redact=())
SIMILARITIES = (0.72, 0.78, 0.82, 0.86, 0.9, 0.95)
SLOW = ("datatrove", "text_dedup", "datatrove_filters")
OURS = ("millrace", "millrace_whole", "millrace_rules")
COPIES_ONLY = DeduplicateConfig(containment_threshold=None, boilerplate_fraction=None, max_passage_documents=None)
PEERS = ("daft", "rensa", "datatrove", "text_dedup", "datatrove_filters")


def texts_with_copies(data: Path) -> tuple[list[str], list[int]]:
    """Texts, and for each the number of the text it was copied from (itself for an original)."""
    texts = [text for file in sorted((data / "pretrain").glob("*.parquet")) for text in
             pq.read_table(file, columns=["text"])["text"].to_pylist()]  # fmt: skip
    generator = random.Random(20260101)
    origins = list(range(len(texts)))
    for number in range(0, len(texts), 9):
        words = re.split(r"(\s+)", texts[number])
        if not 200 < len(words) < 20_000:
            continue
        # Replacing a share p of the words leaves (1 - p)^5 of the 5-word shingles.
        similarity = generator.choice(SIMILARITIES)
        share = 1 - (2 * similarity / (1 + similarity)) ** 0.2
        copy = [f"new{generator.randrange(10**6)}" if place % 2 == 0 and generator.random() < share else word
                for place, word in enumerate(words)]  # fmt: skip
        texts.append("".join(copy))
        origins.append(number)
    order = generator.sample(range(len(texts)), len(texts))
    place = {number: new for new, number in enumerate(order)}
    return [texts[number] for number in order], [place[origins[number]] for number in order]


# ---------------------------------------------------------------- the judge


def shingle_sets(texts: list[str], size: int) -> list[np.ndarray]:
    table, sets = character_table(), []
    for text in texts:
        data = np.frombuffer(text.encode() or b" ", np.uint8)
        tokens, shingles = np.empty(len(data) + 1, np.uint64), np.empty(len(data) + 1, np.uint64)
        count = token_hashes(data, 0, len(data), table, tokens)
        sets.append(np.unique(shingles[: shingle_hashes(tokens, count, size, shingles)]))
    return sets


def true_pairs(sets: list[np.ndarray], least: float) -> dict[tuple[int, int], float]:
    """All pairs with a Jaccard similarity of `least`, by a join over prefixes: exact, no sketches.

    With shingles in the order of their rarity, sets of that similarity share one of the first (1 - least) of each.
    """
    owners = np.repeat(np.arange(len(sets)), [len(s) for s in sets])
    _, numbers, counts = np.unique(np.concatenate(sets), return_inverse=True, return_counts=True)
    rarity = np.empty(len(counts), np.int64)
    rarity[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    order = np.lexsort((rarity[numbers], owners))
    starts = np.searchsorted(owners[order], owners[order], side="left")
    lengths = np.array([len(s) for s in sets])[owners[order]]
    prefix = order[np.arange(len(order)) - starts <= lengths - np.ceil(least * lengths)]
    prefix = prefix[counts[numbers[prefix]] > 1]
    prefix = prefix[np.argsort(numbers[prefix], kind="stable")]
    pairs = set()
    for bucket in np.split(owners[prefix], np.flatnonzero(np.diff(numbers[prefix])) + 1):
        members = bucket.tolist()
        pairs.update((a, b) for n, a in enumerate(members) for b in members[n + 1 :]
                     if least * max(len(sets[a]), len(sets[b])) <= min(len(sets[a]), len(sets[b])))  # fmt: skip
    found = {}
    for a, b in pairs:
        shared = len(np.intersect1d(sets[a], sets[b], assume_unique=True))
        similarity = shared / (len(sets[a]) + len(sets[b]) - shared)
        if similarity >= least:
            found[a, b] = similarity
    return found


def judged(kept: set[int], given: set[int], pairs: dict[tuple[int, int], float]) -> dict[str, float]:
    best = dict.fromkeys(given - kept, 0.0)
    num_true = num_left = 0
    for (a, b), similarity in pairs.items():
        if a not in given or b not in given:
            continue
        num_true += similarity >= 0.8
        num_left += similarity >= 0.8 and a in kept and b in kept
        for gone, stays in ((a, b), (b, a)):
            if gone in best and stays in kept:
                best[gone] = max(best[gone], similarity)
    removed = max(len(best), 1)
    return {
        "removed": len(best),
        "unjustified_07": round(sum(b < 0.7 for b in best.values()) / removed, 4),
        "unjustified_08": round(sum(b < 0.8 for b in best.values()) / removed, 4),
        "recall": round(1 - num_left / max(num_true, 1), 6),
    }


def wrong_edges(path: Path, kept: set[int], given: set[int], sets: list[np.ndarray]) -> int:
    """Removed documents without an edge to a kept one whose exact figure reaches the bound."""
    config, justified = DeduplicateConfig(), set()
    for edge in pq.read_table(path).to_pylist():
        gone, keeper = int(edge["doc_id"], 16), int(edge["keeper"], 16)
        shared = len(np.intersect1d(sets[gone], sets[keeper], assume_unique=True))
        similarity = shared / max(len(sets[gone]) + len(sets[keeper]) - shared, 1)
        contained = shared >= (config.containment_threshold or 2) * len(sets[gone])
        if keeper in kept and (edge["reason"] == "same_text" or similarity >= config.threshold or contained):
            justified.add(gone)
    return len(given - kept - justified)


# ---------------------------------------------------------------- running


def measured(command: list[str]) -> tuple[dict, float]:
    """The last line of a command as JSON, and the peak of its process tree's proportional memory in MB."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            try:
                tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                peak[0] = max(peak[0], sum(p.memory_full_info().pss for p in tree) / 1e6)
            except psutil.Error:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, errors = process.communicate()
    done.set()
    watcher.join()
    if process.returncode:
        return {"error": (errors.strip().splitlines() or ["no message"])[-1][:200]}, peak[0]
    return json.loads(output.strip().splitlines()[-1]), peak[0]


def write_corpus(texts: Path, work: Path) -> None:
    """The artifacts that our stages read: a corpus, and a cleaning that dropped nothing."""
    table = pq.read_table(texts)
    (work / "corpus").mkdir()
    numbers = table["id"].to_pylist()
    columns = {
        "doc_id": pa.array([f"{number:032x}" for number in numbers]), "source": pa.array(["all"] * len(numbers)),
        "key": pa.array(map(str, numbers)), "kind": pa.array(["text"] * len(numbers)),
        "num_bytes": pa.compute.binary_length(table["text"]).cast(pa.int64()), "text": table["text"],
    }  # fmt: skip
    nulls = pa.nulls(len(numbers), pa.string())
    documents = pa.table([columns.get(name, nulls) for name in DOCUMENTS.names], names=DOCUMENTS.names).cast(DOCUMENTS)
    path = work / "corpus" / "documents-00000.parquet"
    pq.write_table(documents, path, compression="zstd", row_group_size=750)
    pq.write_table(DECISIONS.empty_table(), work / "decisions.parquet")


def run_stage(name: str, work: Path) -> None:
    """One of our stages, from a corpus artifact to its published files."""
    from lm_core.corpus.clean import clean
    from lm_core.corpus.deduplicate import check_canaries, deduplicate
    from lm_core.corpus.language import languages_of
    from lm_core.corpus.signals import signals_of

    corpus, nothing = Corpus(work / "corpus", "collect", "f", "d"), Decisions(work, "clean", "f", "d")
    build = Build(work / name, work / f"{name}-work", Runtime(workspace=work / "workspace"))
    build.folder.mkdir()
    build.work.mkdir()
    check_canaries(DeduplicateConfig())  # compiles, or loads what was compiled before
    if name == "millrace_rules":
        sample = pa.array(["a text"], pa.large_string())
        signals_of(sample, languages_of(sample)[0])
    started, before = time.perf_counter(), time.process_time()
    if name != "millrace_rules":
        config = COPIES_ONLY if name == "millrace" else DeduplicateConfig()
        deduplicate(build, config, corpus=corpus, cleaning=nothing)
        seconds, spent = time.perf_counter() - started, time.process_time() - before
        kept = pq.read_table(build.folder / "splits.parquet")["doc_id"].to_pylist()
        (work / "kept.json").write_text(json.dumps([int(doc_id, 16) for doc_id in kept]))
    else:
        clean(build, RULES_ONLY, corpus=corpus)
        seconds, spent = time.perf_counter() - started, time.process_time() - before
    print(json.dumps({"seconds": seconds, "cpu_seconds": round(spent, 2)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    repository = Path(__file__).resolve().parents[2]
    bundle = os.environ.get("MILLRACE_TEST_DATA", repository.parent / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(bundle))
    parser.add_argument("--peers", help="Python interpreter of the venv with the peers")
    parser.add_argument("--tools", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--slow-share", type=float, default=0.15)
    parser.add_argument("--ours", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        run_stage(arguments.ours[0], Path(arguments.ours[1]))
        return
    texts, origins = texts_with_copies(arguments.data)
    megabytes = [len(text.encode()) / 1e6 for text in texts]
    sets = shingle_sets(texts, 5)
    pairs = true_pairs(sets, 0.7)
    report: dict = {"benchmark": "corpus", "documents": len(texts), "megabytes": round(sum(megabytes), 1),
                    "true_pairs": sum(s >= 0.8 for s in pairs.values()), "tools": {}}  # fmt: skip
    chosen = [number for number, origin in enumerate(origins) if random.Random(origin).random() < arguments.slow_share]
    with tempfile.TemporaryDirectory() as temporary:
        for tool in [*OURS, *(arguments.tools if arguments.peers else [])]:
            given = chosen if tool in SLOW else range(len(texts))
            work = Path(temporary) / tool
            work.mkdir()
            pq.write_table(pa.table({"id": pa.array(given, pa.int64()), "text": [texts[n] for n in given]}),
                           work / "texts.parquet", row_group_size=1500)  # fmt: skip
            if tool in OURS:
                write_corpus(work / "texts.parquet", work)
                command = [sys.executable, __file__, "--ours", tool, str(work)]
            else:
                script = Path(__file__).with_name("corpus_peers.py")
                command = [arguments.peers, str(script), tool, str(work / "texts.parquet"), str(work)]
            found, peak = measured(command)
            report["tools"][tool] = result = found | {"peak_mb": round(peak), "documents": len(given)}
            if "error" not in found:
                size = sum(megabytes[number] for number in given)
                result["mb_per_second"] = round(size / found["seconds"], 2)
                result["mb_per_cpu_second"] = round(size / found["cpu_seconds"], 2)
            if (work / "kept.json").exists():
                kept = set(json.loads((work / "kept.json").read_text()))
                result |= {"kept": len(kept)} if "filters" in tool else judged(kept, set(given), pairs)
            if tool == "millrace_whole" and "error" not in found:
                result["edges_wrong"] = wrong_edges(work / tool / "edges.parquet", kept, set(given), sets)
            print(tool, json.dumps(result), file=sys.stderr, flush=True)
    speeds = {f"ratios_{figure}": ratios(report["tools"], f"mb_per_{figure}") for figure in ("second", "cpu_second")}
    print(json.dumps(report | speeds))


def ratios(tools: dict, figure: str) -> dict[str, float]:
    """Our speed over each peer's."""
    return {
        tool: round(tools["millrace_rules" if "filters" in tool else "millrace"][figure] / speed, 1)
        for tool, found in tools.items()
        if tool not in OURS and (speed := found.get(figure))
    }


if __name__ == "__main__":
    main()
