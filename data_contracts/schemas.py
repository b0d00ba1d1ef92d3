"""Arrow schemas of every table that passes between stages: columns, types, meaning.

The meaning stands in each field's metadata under b"description", so that a reader of the Parquet file sees it too.
"""

from __future__ import annotations

import pyarrow as pa

FATES_IN_ORDER = (
    "kept",
    "quality",
    "exact_duplicate",
    "near_duplicate",
    "contaminated",
    "quarantined",
    "removed",
)
SPLITS = ("train", "validation", "test")


def _schema(*columns: tuple[str, pa.DataType, bool, str]) -> pa.Schema:
    """Schema from (name, type, nullable, meaning) rows."""
    return pa.schema(
        [pa.field(name, kind, nullable, metadata={"description": meaning}) for name, kind, nullable, meaning in columns]
    )


DOCUMENTS = _schema(
    ("doc_id", pa.string(), False, "32 hex digits: SHA-256 over source, key and text, cut short"),
    ("source", pa.string(), False, "what the document is counted under: a package, a file, a data set"),
    ("key", pa.string(), False, "place within the source: module:qualname, file#row, URL; unique within it"),
    ("kind", pa.string(), False, "docstring or text"),
    ("title", pa.string(), True, "name of the documented object, or the document's own title"),
    ("licence", pa.string(), True, "licence as the source states it"),
    ("version", pa.string(), True, "version of the package, revision of the data set"),
    ("url", pa.string(), True, "address it was fetched from, or that its row states"),
    ("time", pa.string(), True, "when it was written or published, as the source states it; never the time of reading"),
    ("content_hash", pa.string(), True, "32 hex digits: SHA-256 over the text alone, cut short"),
    ("num_bytes", pa.int64(), False, "length of the text in UTF-8 bytes"),
    ("text", pa.string(), False, "canonical text: NFC, newlines as \\n, no NUL, no trailing blanks"),
)

REJECTED = _schema(
    ("doc_id", pa.string(), False, "32 hex digits over source and key"),
    ("source", pa.string(), False, "as in documents"),
    ("key", pa.string(), False, "as in documents"),
    ("reason", pa.string(), False, "short name of what is wrong, e.g. not_utf8"),
    ("detail", pa.string(), True, "where and what, for a person: offset, field, message"),
)

DECISIONS = _schema(
    ("doc_id", pa.string(), False, "the document that is dropped"),
    ("stage", pa.string(), False, "stage that decided"),
    ("fate", pa.string(), False, "one of FATES_IN_ORDER except kept"),
    ("reason", pa.string(), False, "name of the rule"),
    ("keeper", pa.string(), True, "doc_id of the document kept instead, or the evaluation item it contains"),
    ("figure", pa.float64(), True, "the number that decided: Jaccard, containment, the rule's statistic"),
)

SIGNALS = _schema(
    ("doc_id", pa.string(), False, "a collected document"),
    ("kind", pa.string(), False, "as in documents"),
    ("language", pa.string(), False, "ISO 639-1 code, the likeliest"),
    ("num_words", pa.float64(), False, "number of words"),
    ("mean_word_length", pa.float64(), False, "characters of a word, on average"),
    ("alphabetic_fraction", pa.float64(), False, "share of the words that hold a letter"),
    ("symbol_fraction", pa.float64(), False, "runs of '#' and ellipses for each word"),
    ("duplicate_line_fraction", pa.float64(), False, "share of the characters in lines that stood before"),
    ("replacement_fraction", pa.float64(), False, "U+FFFD for each character"),
    ("bullet_fraction", pa.float64(), False, "share of the lines that start with a bullet"),
    ("ellipsis_fraction", pa.float64(), False, "share of the lines that end in an ellipsis"),
)

REDACTIONS = _schema(
    ("doc_id", pa.string(), False, "a collected document"),
    ("kind", pa.string(), False, "key, email, iban, card, ip, phone; boilerplate, repeated"),
    ("start", pa.int64(), False, "first character of the text that a placeholder replaces, or that is cut"),
    ("length", pa.int64(), False, "how many characters that are"),
)

CUTS = _schema(
    ("doc_id", pa.string(), False, "a document that survived deduplication"),
    ("kind", pa.string(), False, "boilerplate or repeated"),
    ("start", pa.int64(), False, "first character of the text that is cut"),
    ("length", pa.int64(), False, "how many characters that are"),
)

SPLIT_OF_DOCUMENT = _schema(
    ("doc_id", pa.string(), False, "a document that survived deduplication"),
    ("cluster", pa.string(), False, "smallest doc_id of its cluster of similar documents; itself when alone"),
    ("split", pa.string(), False, "train, validation or test, by hash of the cluster"),
)

EDGES = _schema(
    ("doc_id", pa.string(), False, "a document that was dropped as a copy"),
    ("keeper", pa.string(), False, "the document kept instead"),
    ("jaccard", pa.float64(), False, "similarity of their sets of shingles; 1 for equal texts"),
    ("containment", pa.float64(), False, "share of the dropped document's shingles that the keeper holds"),
    ("reason", pa.string(), False, "what justified it: same_text, jaccard or containment"),
)

CANARIES = _schema(
    ("canary", pa.string(), False, "a text planted in every deduplication"),
    ("expected", pa.string(), False, "the canary it is a copy of, or kept"),
    ("found", pa.string(), False, "what the deduplication took it for"),
)

FATES = _schema(
    ("doc_id", pa.string(), False, "a collected document"),
    ("source", pa.string(), False, "as in documents"),
    ("key", pa.string(), False, "as in documents"),
    ("fate", pa.string(), False, "one of FATES_IN_ORDER"),
    ("stage", pa.string(), True, "stage that decided; null when kept"),
    ("reason", pa.string(), True, "rule that decided; null when kept"),
    ("keeper", pa.string(), True, "document kept instead, or evaluation item contained"),
    ("figure", pa.float64(), True, "number that decided"),
    ("split", pa.string(), True, "train, validation or test; null when not kept"),
    ("num_bytes", pa.int64(), False, "length in UTF-8 bytes; 0 when the document could not be read"),
)

QUARANTINE = _schema(
    ("table_name", pa.string(), False, "contract the row broke"),
    ("row_key", pa.string(), True, "primary key of the row"),
    ("rule", pa.string(), False, "first rule it broke, in the contract's order"),
    ("rules", pa.string(), False, "all rules it broke, joined by commas"),
    ("row", pa.string(), False, "the whole row as JSON"),
)

EXAMPLES = _schema(
    ("item_id", pa.string(), False, "32 hex digits over task, document and question"),
    ("task", pa.string(), False, "downstream task"),
    ("split", pa.string(), False, "train, validation or test: that of its document"),
    ("doc_id", pa.string(), True, "document it was made from; null for data from outside the corpus"),
    ("prompt", pa.string(), False, "what the model is given"),
    ("target", pa.string(), False, "what it should answer"),
    ("labels", pa.list_(pa.string()), True, "the closed set of answers of a classification task"),
    ("references", pa.list_(pa.string()), True, "all accepted answers; null when the target is the only one"),
    ("group", pa.string(), True, "what items share, an article say: intervals are clustered by it; null: nothing"),
)

BAD_ROWS = _schema(
    ("task", pa.string(), False, "downstream task"),
    ("split", pa.string(), False, "split of the file, or all; of a leak the split the item was taken from"),
    ("file", pa.string(), False, "file within the data folder; empty for a leak"),
    ("row", pa.int64(), False, "row within the file, from 0; -1 for a leak"),
    ("reason", pa.string(), False, "short name of what is wrong, e.g. span_does_not_match"),
    ("detail", pa.string(), False, "what was found, for a person"),
)

HELD_OUT_TEXTS = _schema(
    ("item_id", pa.string(), False, "as in examples"),
    ("task", pa.string(), False, "downstream task"),
    ("split", pa.string(), False, "validation or test"),
    ("part", pa.string(), False, "item: the prompt with its answer; else the column that holds the text"),
    ("text", pa.string(), False, "what no text for learning may hold"),
)

HITS = _schema(
    ("doc_id", pa.string(), False, "a document that would give the item away"),
    ("task", pa.string(), False, "downstream task"),
    ("item_id", pa.string(), False, "as in examples"),
    ("part", pa.string(), False, "as in held_out"),
    ("containment", pa.float64(), False, "share of the n-grams of the part that the document holds"),
)

SPANS = _schema(
    ("doc_id", pa.string(), False, "document the tokens come from"),
    ("split", pa.string(), False, "train, validation or test"),
    ("window", pa.int64(), False, "training window that holds the tokens"),
    ("offset", pa.int32(), False, "position of the first token within the window"),
    ("start", pa.int32(), False, "position of the first token within the document"),
    ("num_tokens", pa.int32(), False, "length of the span in tokens"),
)

STEPS = _schema(
    ("step", pa.int64(), False, "optimizer step of the pretraining, from 0"),
    ("window", pa.int64(), False, "window of the split train that it read"),
)

PREDICTIONS = _schema(
    ("item_id", pa.string(), False, "as in examples"),
    ("task", pa.string(), False, "downstream task"),
    ("system", pa.string(), False, "model, random_weights, or the name of a baseline"),
    ("prediction", pa.string(), False, "what the system answered"),
    ("target", pa.string(), False, "what was wanted"),
    ("score", pa.float64(), True, "the metric on this item; null where it asks for a likelihood and there is none"),
    ("bits", pa.float64(), True, "-log2 p of the target; null where the system has no likelihood"),
    ("num_bytes", pa.int64(), True, "UTF-8 bytes that the bits stand for; 1 for a label"),
    ("confidence", pa.float64(), True, "probability of the predicted label; null without labels"),
    ("references", pa.list_(pa.string()), True, "all accepted answers; null when the target is the only one"),
    ("group", pa.string(), True, "what items share: intervals are clustered by it; null: nothing"),
    ("prompt", pa.string(), True, "what was asked; null where nothing stands before the answer"),
    ("kind", pa.string(), True, "by which scores are given too: a phenomenon, a kind of bias; null: none"),
    ("choices", pa.list_(pa.string()), True, "the texts to choose from; null where the answer is free"),
    ("choice_bits", pa.list_(pa.float64()), True, "-log2 p of each of the choices"),
    ("choice_bytes", pa.list_(pa.int64()), True, "UTF-8 bytes of each of the choices"),
    ("answer_bits", pa.float64(), True, "-log2 p that the system gives its own answer; null where nobody asked"),
    ("answer_bits_of_reference", pa.float64(), True, "-log2 p that the model before tuning gives that answer"),
    ("rank", pa.float64(), True, "rank of the right caption among the candidates; null but for pictures"),
)

QUESTIONS = _schema(
    ("item_id", pa.string(), False, "as in predictions"),
    ("picture", pa.string(), False, "split and name of the picture that is asked about"),
    ("question", pa.string(), False, "what was asked; empty where a caption was wanted"),
    ("type", pa.string(), False, "kind of answer wanted, by which scores are given"),
    ("ranks", pa.map_(pa.string(), pa.float64()), True, "system -> rank of the right caption; null for questions"),
)
