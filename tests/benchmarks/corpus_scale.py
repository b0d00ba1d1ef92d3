"""How deduplication grows: with the text, with the number of documents, and with what is new.

    python tests/benchmarks/corpus_scale.py [--data DIR] [--documents 5000000] [--parts growth,exact,incremental,many]

growth       the stage over 32 to 550 MB: the texts under DIR/pretrain, and the same with their letters exchanged, so
             that no replica resembles another; the exponent of time over size, by least squares on logarithms.
exact        hashing every text and finding the equal ones, MB/s.
incremental  the stage over all texts, the last hundredth of which is new to it, for the same stage on an empty
             workspace: `share` of its time (medians of three, kernels loaded), and whether the files are equal; at the
             size of the corpus under DIR and at 550 MB, for copies alone and for the whole stage at its defaults.
many         sketches, bands and the greedy pass over as many synthetic documents of thirty words, a tenth of them
             copies, at a memory limit of 1 GB; the exponent between a tenth of them and all.

Each measurement runs in a process of its own, which tells its peak memory: in all (`peak_mb`), and without the pages of
mapped files (`peak_own_mb`), which the system takes back when it needs them. The last line is one JSON object.
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import string
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.schemas import DECISIONS, DOCUMENTS
from lm_core.artifact import Corpus, Decisions
from lm_core.corpus.config import DeduplicateConfig
from lm_core.corpus.dedup import search
from lm_core.corpus.dedup.means import Means
from lm_core.corpus.dedup.search import find_duplicates
from lm_core.corpus.dedup.sketch import content_hashes
from lm_core.corpus.deduplicate import check_canaries, deduplicate
from lm_core.runtime import Runtime
from lm_core.store import Build

COPIES_ONLY = DeduplicateConfig(containment_threshold=None, boilerplate_fraction=None, max_passage_documents=None)
CORES = len(os.sched_getaffinity(0))
SIZES_MB = (32, 64, 128, 256, 550)
INCREMENTAL_MB = (130, 550)
# As collecting writes them: 4 MB in a row group, 64 MB in a shard.
GROUP_ROWS, SHARD_ROWS = 750, 12_000
WORDS, LETTERS = 30, 7
REPEATS = 3


def real_texts(data: Path, megabytes: float) -> list[str]:
    """Texts of a size in all: as they are, then with their letters exchanged, as often as it takes."""
    texts = [text for file in sorted((data / "pretrain").glob("*.parquet"))
             for text in pq.read_table(file, columns=["text"])["text"].to_pylist()]  # fmt: skip
    texts = [texts[place] for place in np.random.default_rng(0).permutation(len(texts))]
    found, size, replica = [], 0.0, 0
    while True:
        letters = "".join(np.random.default_rng(replica).permutation(list(string.ascii_lowercase)))
        exchange = str.maketrans(string.ascii_lowercase, letters) if replica else {}
        for text in texts:
            found.append(text.translate(exchange) if replica else text)
            size += len(text.encode()) / 1e6
            if size >= megabytes:
                return found
        replica += 1


class SyntheticTexts:
    """Documents of thirty random words, made when they are read; the last tenth are copies with one word changed."""

    part = 20_000

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def parts(self, wanted: np.ndarray) -> list:
        """See `lm_core.corpus.dedup.texts.Texts`."""
        firsts = range(0, self.number, self.part)
        return [
            lambda first=first: self._read(first, wanted) for first in firsts if wanted[first : first + self.part].any()
        ]

    def _letters(self, first: int) -> np.ndarray:
        generator = np.random.default_rng(first)
        letters = generator.integers(97, 113, (self.part, WORDS, LETTERS + 1), np.uint8)
        letters[:, :, LETTERS] = 32
        return letters

    def _read(self, first: int, wanted: np.ndarray) -> tuple[np.ndarray, pa.Array]:
        originals = first - self.number * 9 // 10 // self.part * self.part
        letters = self._letters(max(originals, 0) if originals >= 0 else first)
        if originals >= 0:
            letters[:, WORDS - 1, :LETTERS] = 122
        rows = first + np.flatnonzero(wanted[first : first + self.part])
        chosen = letters[rows - first]
        offsets = np.arange(len(rows) + 1, dtype=np.int64) * (WORDS * (LETTERS + 1))
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(chosen))]
        return rows, pa.Array.from_buffers(pa.large_string(), len(rows), buffers)


# ---------------------------------------------------------------- measured in processes of their own


def stage(folder: Path, name: str, corpus: Path, workspace: Path, config: DeduplicateConfig) -> float:
    """Seconds of the stage over the corpus in a folder, into folder/name."""
    (folder / name).mkdir()
    pq.write_table(DECISIONS.empty_table(), folder / name / "decisions.parquet")
    build = Build(folder / name / "out", folder / name / "work", Runtime(workspace=workspace))
    build.folder.mkdir()
    build.work.mkdir()
    cleaning = Decisions(folder / name, "clean", "f", "d")
    started = time.perf_counter()
    deduplicate(build, config, corpus=Corpus(corpus, "collect", "f", "d"), cleaning=cleaning)
    return time.perf_counter() - started


def make(data: Path, megabytes: float, folder: Path) -> dict:
    """Write the corpus as collecting does, and the same without its last hundredth."""
    documents = documents_of(real_texts(data, megabytes))
    most = documents.num_rows - documents.num_rows // 100
    for name, table in (("all", documents), ("most", documents.slice(0, most))):
        (folder / name).mkdir(parents=True)
        rows = range(0, table.num_rows, SHARD_ROWS)
        for number, first in enumerate(rows):
            path = folder / name / f"documents-{number:05}.parquet"
            pq.write_table(table.slice(first, SHARD_ROWS), path, compression="zstd", row_group_size=GROUP_ROWS)
    return {"documents": documents.num_rows}


def documents_of(texts: list[str]) -> pa.Table:
    ids = np.random.default_rng(1).integers(0, 2**62, (len(texts), 2))
    columns = {
        "doc_id": pa.array([f"{a:016x}{b:016x}" for a, b in ids.tolist()]), "source": pa.array(["all"] * len(texts)),
        "key": pa.array(map(str, range(len(texts)))), "kind": pa.array(["text"] * len(texts)),
        "num_bytes": pa.array([len(text.encode()) for text in texts]), "text": pa.array(texts),
    }  # fmt: skip
    nulls = pa.nulls(len(texts), pa.string())
    return pa.table([columns.get(name, nulls) for name in DOCUMENTS.names], names=DOCUMENTS.names).cast(DOCUMENTS)


def growth(folder: Path) -> dict:
    return {"seconds": stage(folder, "growth", folder / "corpus" / "all", folder / "ws", COPIES_ONLY)}


def exact(data: Path) -> dict:
    from concurrent.futures import ThreadPoolExecutor

    texts = pa.array(real_texts(data, 250), pa.large_string())
    size = len(texts) // (8 * CORES) + 1
    parts = [texts[first : first + size] for first in range(0, len(texts), size)]
    content_hashes(parts[0][:1])
    started = time.perf_counter()
    with ThreadPoolExecutor(CORES) as pool:
        hashes = np.concatenate(list(pool.map(content_hashes, parts)))
    equal = search.equal_texts(hashes, np.arange(len(texts)))
    seconds = time.perf_counter() - started
    return {"mb_per_second": 250 / seconds, "equal": int((equal >= 0).sum())}


def incremental(folder: Path, config: DeduplicateConfig) -> dict:
    corpus = folder / "corpus"
    stage(folder, "before", corpus / "most", folder / "before-ws", config)
    times: dict[str, list[float]] = {"again": [], "full": []}
    for _ in range(1 + REPEATS):
        for name in times:
            for left in (folder / name, folder / f"{name}-ws"):
                shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(folder / "before-ws", folder / "again-ws")
        os.sync()
        for name, seconds in times.items():
            seconds.append(stage(folder, name, corpus / "all", folder / f"{name}-ws", config))
    files = ("decisions.parquet", "edges.parquet", "splits.parquet", "cuts.parquet")
    same = all(
        (folder / "again/out" / name).read_bytes() == (folder / "full/out" / name).read_bytes() for name in files
    )
    # The first of each loads the compiled kernels.
    again, full = (statistics.median(seconds[1:]) for seconds in times.values())
    return {"full_seconds": full, "incremental_seconds": again, "seconds": times, "same": same}


def many(number: int, folder: Path) -> dict:
    texts = SyntheticTexts(number // SyntheticTexts.part * SyntheticTexts.part)
    means = Means(CORES, folder, 1_000_000_000)
    started = time.perf_counter()
    found = find_duplicates(texts, np.arange(len(texts)), COPIES_ONLY, means=means)
    return {
        "seconds": time.perf_counter() - started,
        "dropped": int((found.keepers >= 0).sum()),
        "documents": len(texts),
    }


def alone(*arguments: object) -> dict:
    """A measurement by a process of its own."""
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def measured(name: str, data: Path, megabytes: float, *arguments: object) -> dict:
    """A measurement over a corpus that another process has written: its memory is the stage's."""
    with tempfile.TemporaryDirectory() as temporary:
        made = alone("make", data, megabytes, Path(temporary) / "corpus")
        found = {"documents": made.get("documents")} | alone(name, temporary, *arguments)
    print(name, megabytes, *arguments, json.dumps(found), file=sys.stderr, flush=True)
    return found


class OwnMemory:
    """Watches the memory of this process that no file stands behind."""

    def __init__(self) -> None:
        self._peak, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            status = Path("/proc/self/status").read_text()
            self._peak = max(self._peak, int(re.search(r"RssAnon:\s+(\d+)", status)[1]))

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return round(self._peak / 1024)


def one(name: str, *arguments: str) -> None:
    if name == "make":
        print(json.dumps(make(Path(arguments[0]), float(arguments[1]), Path(arguments[2]))))
        return
    check_canaries(COPIES_ONLY)  # compiles, or loads what was compiled before
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    own = OwnMemory()
    if name == "growth":
        found = growth(Path(arguments[0]))
    elif name == "incremental":
        config = COPIES_ONLY if arguments[1] == "copies" else DeduplicateConfig()
        found = incremental(Path(arguments[0]), config)
    elif name == "exact":
        found = exact(Path(arguments[0]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            found = many(int(arguments[0]), Path(temporary))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()}
    print(json.dumps(rounded | {"peak_mb": round(peak), "peak_own_mb": own.stop(), "before_mb": round(base)}))


def exponent(sizes: list[float], seconds: list[float]) -> float:
    return round(float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    bundle = os.environ.get("MILLRACE_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")
    parser.add_argument("--data", type=Path, default=Path(bundle))
    parser.add_argument("--documents", type=int, default=5_000_000)
    parser.add_argument("--parts", default="growth,exact,incremental,many")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(*arguments.one)
        return
    parts, report = arguments.parts.split(","), {"benchmark": "corpus_scale", "cores": CORES}
    if "growth" in parts:
        found = [measured("growth", arguments.data, size) for size in SIZES_MB]
        report["growth"] = dict(zip(map(str, SIZES_MB), found, strict=True))
        report["growth_exponent"] = exponent(list(SIZES_MB), [one["seconds"] for one in found])
    if "exact" in parts:
        report["exact"] = alone("exact", arguments.data)
    if "incremental" in parts:
        for size, what in ((size, what) for size in INCREMENTAL_MB for what in ("copies", "whole")):
            report[f"incremental_{what}_{size}_mb"] = found_one = measured("incremental", arguments.data, size, what)
            found_one["share"] = round(found_one["incremental_seconds"] / found_one["full_seconds"], 4)
    if "many" in parts:
        numbers = [arguments.documents // 10, arguments.documents]
        found = [alone("many", number) for number in numbers]
        report["many"] = found
        report["many_exponent"] = exponent(numbers, [one["seconds"] for one in found])
    print(json.dumps(report))


if __name__ == "__main__":
    main()
