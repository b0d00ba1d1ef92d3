"""One peer's deduplication or filters, run by the interpreter of a venv that holds it (see corpus_against_peers.py).

    VENV/bin/python corpus_peers.py TOOL texts.parquet WORK_FOLDER

texts.parquet has the columns id (int64) and text. Writes WORK_FOLDER/kept.json (the ids that are left) and prints one
JSON line with the seconds from reading the file to knowing what is kept, by the clock and of the processor (with the
processes that have ended). Imports are not counted.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

os.environ["DO_NOT_TRACK"] = "true"
CORES = len(os.sched_getaffinity(0))
WORD = re.compile(r"\w+")
Spent = tuple[float, float]


def _clock() -> Spent:
    return time.perf_counter(), sum(os.times()[:4])


def _since(started: Spent) -> Spent:
    now = _clock()
    return now[0] - started[0], now[1] - started[1]


def _shards(texts: Path, folder: Path) -> None:
    """One JSONL file a core: the form in which datatrove shares work (not timed)."""
    import pyarrow.parquet as pq

    folder.mkdir()
    rows = pq.read_table(texts).to_pylist()
    for core in range(CORES):
        with open(folder / f"{core:05d}.jsonl", "w") as file:
            for row in rows[core::CORES]:
                file.write(json.dumps({"id": str(row["id"]), "text": row["text"]}) + "\n")


def _ids(folder: Path) -> list[int]:
    return [int(json.loads(line)["id"]) for file in folder.glob("*.jsonl") for line in open(file)]


def _run(pipeline, logs: Path, name: str, tasks: int = CORES) -> None:
    from datatrove.executor import LocalPipelineExecutor

    LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=tasks, logging_dir=str(logs / name)).run()


def datatrove(texts: Path, work: Path) -> tuple[Spent, list[int]]:
    """Its MinHash pipeline at its defaults: 14 buckets of 8 (about 0.72), 5-grams of spaCy tokens."""
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    _shards(texts, work / "in")
    config = MinhashConfig()
    reader = JsonlReader(str(work / "in"))
    started = _clock()
    _run([reader, MinhashDedupSignature(str(work / "sig"), config=config)], work / "logs", "signature")
    buckets = MinhashDedupBuckets(str(work / "sig"), str(work / "buckets"), config=config)
    _run([buckets], work / "logs", "buckets", config.num_buckets)
    _run([MinhashDedupCluster(str(work / "buckets"), str(work / "remove"), config=config)], work / "logs", "cluster", 1)
    writer = JsonlWriter(str(work / "out"), compression=None)
    _run([reader, MinhashDedupFilter(str(work / "remove")), writer], work / "logs", "filter")
    return _since(started), _ids(work / "out")


def datatrove_filters(texts: Path, work: Path) -> tuple[Spent, list[int]]:
    """Gopher quality, Gopher repetition and FineWeb quality at their defaults."""
    from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    _shards(texts, work / "in")
    started = _clock()
    filters = [GopherRepetitionFilter(), GopherQualityFilter(), FineWebQualityFilter()]
    writer = JsonlWriter(str(work / "out"), compression=None)
    _run([JsonlReader(str(work / "in")), *filters, writer], work / "logs", "filters")
    return _since(started), _ids(work / "out")


def text_dedup(texts: Path, work: Path) -> tuple[Spent, list[int]]:
    """text_dedup.minhash: 5-grams, 250 permutations, threshold 0.7 (its default), all cores."""
    from datasets import load_from_disk
    from text_dedup.minhash import main

    arguments = [
        "--path", "parquet", "--data_files", str(texts), "--split", "train", "--column", "text", "--output",
        str(work / "out"), "--cache_dir", str(work / "cache"), "--num_proc", str(CORES), "--min_length", "1",
    ]  # fmt: skip
    started = _clock()
    main(arguments, standalone_mode=False)
    seconds = _since(started)
    return seconds, load_from_disk(str(work / "out"))["id"]


def daft(texts: Path, work: Path) -> tuple[Spent, list[int]]:
    """Daft's own recipe: normalise, 64 MinHashes of 5-grams, 8 bands of 8 (0.7), connected components."""
    import daft
    import numpy as np
    from daft import col
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    started = _clock()
    normal = col("text").normalize(remove_punct=True, lowercase=True, nfd_unicode=True, white_space=True)
    sketched = daft.read_parquet(str(texts)).select(
        col("id"), normal.minhash(num_hashes=64, ngram_size=5, seed=42, hash_function="xxhash").chunk(8).alias("bands")
    )
    bands = sketched.with_column("band", daft.lit(list(range(8)))).explode("bands", "band")
    grouped = bands.groupby("band", "bands").agg(col("id").list_agg().alias("ids"))
    buckets = grouped.where(col("ids").list_count() > 1).select("ids").to_pydict()["ids"]
    ids = np.array(daft.read_parquet(str(texts)).select("id").to_pydict()["id"])
    first = np.array([min(bucket) for bucket in buckets for _ in bucket])
    other = np.array([member for bucket in buckets for member in bucket])
    size = int(ids.max()) + 1
    _, labels = connected_components(coo_array((np.ones(len(first), bool), (first, other)), shape=(size, size)))
    _, keep = np.unique(labels[ids], return_index=True)
    return _since(started), ids[keep].tolist()


def rensa(texts: Path, work: Path) -> tuple[Spent, list[int]]:
    """RMinHash over Python's 5-grams of words, LSH of 16 bands of 8, duplicates at an estimated 0.8."""
    import pyarrow.parquet as pq
    from rensa import RMinHash, RMinHashLSH

    started = _clock()
    table = pq.read_table(texts)
    index, kept, sketches = RMinHashLSH(threshold=0.8, num_perm=128, num_bands=16), [], {}
    for number, text in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True):
        words = WORD.findall(text.lower())
        sketch = RMinHash(num_perm=128, seed=42)
        sketch.update([" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))])
        if all(sketch.jaccard(sketches[other]) < 0.8 for other in index.query(sketch)):
            index.insert(number, sketch)
            sketches[number] = sketch
            kept.append(number)
    return _since(started), kept


TOOLS = {tool.__name__: tool for tool in (datatrove, datatrove_filters, text_dedup, daft, rensa)}

if __name__ == "__main__":
    seconds, kept = TOOLS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    (Path(sys.argv[3]) / "kept.json").write_text(json.dumps([int(number) for number in kept]))
    print(json.dumps({"seconds": seconds[0], "cpu_seconds": round(seconds[1], 2)}))
