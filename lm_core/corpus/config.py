"""Configuration of the corpus stages: what is collected, what counts as good, as a copy, as contaminated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lm_core.config import Config, Incidental


class InstalledPackages(Config):
    """Documentation strings of the standard library and of all installed packages."""

    kind: Literal["installed_packages"] = Field("installed_packages", description="Which reader this is.")
    max_package_bytes: int = Field(
        1_500_000, ge=1_000, description="Most text taken from one package, so that the biggest do not dominate."
    )
    include_standard_library: bool = Field(True, description="Take the standard library too.")
    packages: tuple[str, ...] = Field((), description="Only these distributions; empty for all that are installed.")


class LocalFiles(Config):
    """Files of one's own: text, Markdown, JSONL, CSV, Parquet; plain or compressed."""

    kind: Literal["local_files"] = Field("local_files", description="Which reader this is.")
    path: str = Incidental(..., description="A file, a folder (read recursively) or a glob pattern.")
    text_column: str | None = Field(None, description="Column that holds the text; found by its name when not given.")
    max_document_bytes: int = Field(
        32_000_000, ge=1_000, description="A longer document, line or cell is rejected: it bounds the memory."
    )


class HubDataset(Config):
    """A data set of the Hugging Face hub, or local files through the same loader."""

    kind: Literal["hub"] = Field("hub", description="Which reader this is.")
    name: str = Field(..., min_length=1, description="Name on the hub, or a local builder: json, csv, parquet, text.")
    subset: str | None = Field(None, description="Configuration name of the data set.")
    revision: str = Field("main", description="Commit, tag or branch; pin a commit for a run that can be repeated.")
    split: str = Field("train", description="Split to read.")
    text_column: str | None = Field(None, description="Column that holds the text; found by its name when not given.")
    max_documents: int | None = Field(None, ge=1, description="Stop after that many documents.")
    data_files: str | None = Incidental(None, description="Files for a local builder: a path or glob pattern.")
    max_document_bytes: int = Field(32_000_000, ge=1_000, description="A longer document is rejected.")


Source = Annotated[InstalledPackages | LocalFiles | HubDataset, Field(discriminator="kind")]


class CollectConfig(Config):
    """Stage collect: where the documents come from."""

    sources: tuple[Source, ...] = Field((InstalledPackages(),), min_length=1, description="What to read.")
    max_bytes: int | None = Field(
        None, ge=1_000, description="Most text in all; documents are then chosen by their hash, not by their order."
    )
    shard_bytes: int = Field(64_000_000, ge=1_000, description="Text in one Parquet shard of the corpus.")


class CleanConfig(Config):
    """Stage clean: the bounds of the quality rules. `lm_core.corpus.rules` documents each rule and its source."""

    languages: tuple[str, ...] = Field((), description="ISO 639-1 codes to keep; empty keeps every language.")
    min_docstring_words: int = Field(3, ge=1, description="Fewest words of a docstring.")
    min_text_words: int = Field(20, ge=1, description="Fewest words of any other document.")
    max_words: int = Field(5_000_000, ge=1, description="Most words of a document.")
    max_mean_word_length: float = Field(16.0, gt=1, description="Longest mean word, in characters (Gopher: 10).")
    min_alphabetic_fraction: float = Field(
        0.5, ge=0, le=1, description="Least fraction of words that hold a letter (Gopher: 0.8)."
    )
    max_symbol_fraction: float = Field(
        0.1, ge=0, le=1, description="Most '#' and ellipses for each word (Gopher: 0.1)."
    )
    max_duplicate_line_fraction: float = Field(
        0.3, ge=0, le=1, description="Most characters that lie in repeated lines (Gopher: 0.2, FineWeb: 0.1)."
    )
    max_replacement_fraction: float = Field(
        0.001, ge=0, le=1, description="Most U+FFFD for each character: the trace of broken decoding."
    )
    max_bullet_fraction: float = Field(0.9, ge=0, le=1, description="Most lines that start with a bullet (Gopher).")
    max_ellipsis_fraction: float = Field(0.3, ge=0, le=1, description="Most lines that end in an ellipsis (Gopher).")


class DeduplicateConfig(Config):
    """Stage deduplicate: what a copy is, which copy stays, and the splits."""

    threshold: float = Field(0.8, gt=0.3, le=1, description="Jaccard similarity from which two documents are copies.")
    shingle_tokens: int = Field(5, ge=1, le=16, description="Consecutive tokens in a shingle.")
    num_bands: int = Field(24, ge=1, le=64, description="Bands of the MinHash index; more find more.")
    band_rows: int = Field(4, ge=1, le=8, description="MinHash values in a band; more propose fewer candidates.")
    prefer_sources: tuple[str, ...] = Field((), description="Sources whose copy is kept first; then the longest stays.")
    cluster_threshold: float = Field(
        0.5, gt=0, le=1, description="Jaccard similarity from which kept documents share a cluster, and so a split."
    )
    max_source_loss_fraction: float = Field(
        0.95, gt=0, le=1, description="A source (of 100 documents or more) that loses more stops the run."
    )
    validation_fraction: float = Field(0.05, ge=0, lt=0.5, description="Share of clusters in the split validation.")
    test_fraction: float = Field(0.05, ge=0, lt=0.5, description="Share of clusters in the split test.")

    @model_validator(mode="after")
    def _cluster_is_wider(self) -> DeduplicateConfig:
        if self.cluster_threshold > self.threshold:
            raise ValueError(
                f"cluster_threshold ({self.cluster_threshold}) must not exceed threshold ({self.threshold})"
            )
        return self


class DecontaminateConfig(Config):
    """Stage decontaminate: when a training document gives an evaluation item away."""

    ngram_tokens: int = Field(13, ge=5, le=32, description="Length of the n-grams compared, in tokens.")
    min_containment: float = Field(
        0.5, gt=0, le=1, description="Share of an item's n-grams that a document must hold to be contaminated."
    )
    min_item_tokens: int = Field(
        8, ge=3, description="Items shorter than this are not searched: their words occur by chance."
    )
    max_items_per_ngram: int = Field(
        20, ge=1, description="N-grams that stand in more items than this are a template of the task, not evidence."
    )
    max_documents_per_item: int = Field(
        20, ge=1, description="An item that stands in more documents than this is a form they share, not a leak."
    )

    @field_validator("min_item_tokens")
    @classmethod
    def _item_bound(cls, value: int) -> int:
        if value > 32:
            raise ValueError("min_item_tokens must not exceed 32")
        return value
