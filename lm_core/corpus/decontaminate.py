"""Decontaminate: drop training documents that give away a held-out example.

A score is only worth something when the model has not read the answers. Held-out examples are the validation and test
examples made from the corpus itself, and every held-out item of the declared downstream tasks whose data are there. A
training document that holds at least a set share of the n-grams of one (`lm_core.corpus.item_index`) is dropped, with
the example named; hits.parquet holds every hit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_contracts.schemas import DECISIONS, HITS
from lm_core.artifact import Corpus, Decisions, DownstreamData, HeldOut
from lm_core.corpus.config import DecontaminateConfig
from lm_core.corpus.item_index import ItemIndex, index_items, open_index
from lm_core.store import Build

ITEM = "item"
_FOUND = pa.schema([*HITS, ("item", pa.int64())]).remove_metadata()


class Part(NamedTuple):
    """A row group of the corpus, and the places of the documents in it that are searched."""

    shard: Path
    row_group: int
    places: np.ndarray


def decontaminate(
    build: Build,
    config: DecontaminateConfig,
    *,
    corpus: Corpus,
    cleaning: Decisions,
    duplicates: Decisions,
    examples: DownstreamData,
    held_out: HeldOut,
) -> dict[str, Any]:
    """Write the decisions on training documents that hold a held-out example of another document, and all hits."""
    items = _items(examples, held_out)
    index = index_of(items, config)
    folder = index.save(build.work / "items")
    splits = pq.read_table(duplicates.file("splits.parquet"), filters=[("split", "=", "train")])
    parts = list(_parts(corpus.document_shards(), splits["doc_id"].combine_chunks()))
    found, done = [_FOUND.empty_table()], 0
    for part, hits in zip(parts, build.map(partial(_hits, folder, config.min_containment), parts), strict=True):
        found.append(_named(hits, items))
        done += len(part.places)
        build.progress(done, splits.num_rows, "documents", hits=sum(table.num_rows for table in found))
    hits, num_forms = without_forms(pa.concat_tables(found), items, config)
    hits = hits.sort_by([("doc_id", "ascending"), ("containment", "descending"), ("item", "ascending")])
    pq.write_table(hits.select(HITS.names).cast(HITS), build.folder / "hits.parquet", compression="zstd")
    decisions = _decisions(hits)
    pq.write_table(decisions, build.folder / "decisions.parquet", compression="zstd")
    return {
        "dropped": decisions.num_rows,
        "hits": hits.num_rows,
        "searched_items": int((index.num_grams > 0).sum()),
        "items_ignored_as_forms": num_forms,
        "reasons": dict(sorted(Counter(decisions["reason"].to_pylist()).items())),
    }


def _items(examples: DownstreamData, held_out: HeldOut) -> pa.Table:
    """Task, item_id, part, text and document of all held-out examples, in an order that is always the same."""
    made = pq.read_table(examples.file("examples.parquet"), filters=[("split", "in", ["validation", "test"])])
    # The prompt alone may be common knowledge; an example is given away by prompt and target together.
    texts = pc.binary_join_element_wise(made["prompt"], made["target"], "\n")
    made = made.append_column("text", texts).append_column("part", pa.array([ITEM] * made.num_rows, pa.string()))
    declared = pq.read_table(held_out.file("held_out.parquet"))
    declared = declared.append_column("doc_id", pa.nulls(declared.num_rows, pa.string()))
    names = ["task", "item_id", "part", "text", "doc_id"]
    both = [table.select(names).cast(pa.schema([(name, pa.string()) for name in names])) for table in (made, declared)]
    return pa.concat_tables(both).sort_by([(name, "ascending") for name in names[:4]])


def index_of(items: pa.Table, config: DecontaminateConfig) -> ItemIndex:
    """Index of items by their columns `part` and `text`: a whole item may be short, a text it is about must be long."""
    is_item = pc.equal(items["part"], ITEM).to_numpy()
    return index_items(
        items["text"],
        np.where(is_item, config.min_item_tokens, config.min_passage_tokens),
        ngram_tokens=config.ngram_tokens,
        short_tokens=config.min_item_tokens,
        max_items=config.max_items_per_ngram,
    )


def _parts(shards: list[Path], wanted: pa.Array) -> Iterator[Part]:
    for shard in shards:
        file = pq.ParquetFile(shard)
        for number in range(file.num_row_groups):
            doc_ids = file.read_row_group(number, columns=["doc_id"])["doc_id"]
            places = np.flatnonzero(pc.is_in(doc_ids, value_set=wanted).to_numpy())
            if len(places):
                yield Part(shard, number, places)


def _hits(index: Path, least: float, part: Part) -> pa.Table:
    """What the documents of a row group hold: doc_id, item (its row in the index), containment."""
    file = pq.ParquetFile(part.shard)
    group = file.read_row_group(part.row_group, columns=["doc_id", "text"], use_threads=False)
    chosen = group.take(pa.array(part.places))
    texts = chosen["text"].cast(pa.large_string()).combine_chunks()
    rows, items, shares = open_index(index).held(texts, least)
    return pa.table({"doc_id": chosen["doc_id"].take(pa.array(rows)), "item": items, "containment": shares})


def _named(hits: pa.Table, items: pa.Table) -> pa.Table:
    """The hits with the names of their items, without those of an example that was made from the document itself."""
    of_item = items.take(hits["item"])
    elsewhere = pc.fill_null(pc.not_equal(of_item["doc_id"], hits["doc_id"]), True)
    for name in ("task", "item_id", "part"):
        hits = hits.append_column(name, of_item[name])
    return hits.filter(elsewhere).select(_FOUND.names).cast(_FOUND)


def without_forms(hits: pa.Table, items: pa.Table, config: DecontaminateConfig) -> tuple[pa.Table, int]:
    """The hits without those of forms, and how many items are forms.

    An example that was cut from a document of the corpus may be a form of words which many of its documents share. An
    item of a declared task comes from elsewhere: in however many documents it stands, they have read it.
    """
    counts = hits["item"].value_counts()
    many = counts.field("values").filter(pc.greater(counts.field("counts"), config.max_documents_per_item))
    forms = many.filter(pc.is_valid(items["doc_id"].take(many)))
    return hits.filter(pc.invert(pc.is_in(hits["item"], value_set=forms.combine_chunks()))), len(forms)


def _decisions(hits: pa.Table) -> pa.Table:
    """For each document the first of its hits: that of the item of which it holds most."""
    doc_ids = hits["doc_id"].to_numpy(zero_copy_only=False)
    first = hits.filter(pa.array(np.append(True, doc_ids[1:] != doc_ids[:-1])[: len(doc_ids)], pa.bool_()))
    columns = {
        "doc_id": first["doc_id"],
        "stage": np.full(len(first), "decontaminate", object),
        "fate": np.full(len(first), "contaminated", object),
        "reason": first["task"],
        "keeper": first["item_id"],
        "figure": first["containment"],
    }
    return pa.table(columns).cast(DECISIONS)
