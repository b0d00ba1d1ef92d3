"""Configuration of the corpus stages: what is collected, what counts as good, as a copy, as contaminated."""

from __future__ import annotations

import codecs
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
    """Files of one's own, on this machine or wherever fsspec reaches: texts, pages, books, tables, web archives."""

    kind: Literal["local_files"] = Field("local_files", description="Which reader this is.")
    path: str = Incidental(
        ...,
        description="A file, a folder (read recursively), a glob pattern, or an address such as s3://bucket/folder.",
    )
    text_column: str | None = Field(None, description="Column that holds the text; found by its name when not given.")
    encoding: str | None = Field(
        None, description="Encoding of files that are neither UTF-8 nor marked; found by their bytes when not given."
    )
    max_document_bytes: int = Field(
        32_000_000, ge=1_000, description="A longer document, line or cell is rejected: it bounds the memory."
    )

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                codecs.lookup(value)
            except LookupError:
                raise ValueError("no encoding that Python knows, such as cp1252 or gb18030") from None
        return value


class WebPages(Config):
    """Pages fetched from the web: single addresses, lists of them, sitemaps, RSS and Atom feeds."""

    kind: Literal["web"] = Field("web", description="Which reader this is.")
    urls: tuple[str, ...] = Field((), description="Addresses of pages, or of files of any kind that is read.")
    url_lists: tuple[str, ...] = Incidental((), description="Files with one address on each line.")
    sitemaps: tuple[str, ...] = Field((), description="Addresses of sitemaps, whose pages are fetched.")
    feeds: tuple[str, ...] = Field((), description="Addresses of RSS or Atom feeds, whose articles are fetched.")
    articles: bool = Field(True, description="Fetch the page of each entry of a feed; else take the entry's own words.")
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Hosts, with those below them, that sitemaps, feeds and redirections may lead to; "
        "empty for the hosts named here."
    )  # fmt: skip
    max_pages: int = Field(1_000, ge=1, description="Most pages fetched, in the order in which they are named.")
    max_page_bytes: int = Field(10_000_000, ge=1_000, description="A longer page is rejected.")
    obey_robots: bool = Field(True, description="Leave out what a host's robots.txt asks crawlers to leave.")
    text_column: str | None = Field(None, description="Column that holds the text of tables that are fetched.")
    recheck_hours: float = Incidental(
        24.0, ge=0.1, description="A page is asked for again after that time; it is fetched only if it has changed."
    )
    timeout_seconds: float = Incidental(30.0, gt=0, le=3_600, description="Most time for one page, all in all.")
    num_retries: int = Incidental(2, ge=0, le=10, description="How often a page that fails for a while is tried again.")
    delay_seconds: float = Incidental(1.0, ge=0, le=600, description="Pause between two requests to one host.")
    allow_http: bool = Incidental(False, description="Allow addresses without encryption (http:).")
    allow_private_addresses: bool = Incidental(
        False, description="Allow hosts on this machine and on private networks, for an intranet of one's own."
    )

    @model_validator(mode="after")
    def _something_to_fetch(self) -> WebPages:
        if not (self.urls or self.url_lists or self.sitemaps or self.feeds):
            raise ValueError("a source of kind web needs urls, url_lists, sitemaps or feeds")
        return self


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


SOURCE_KINDS: dict[str, type[Config]] = {
    "installed_packages": InstalledPackages, "local_files": LocalFiles, "web": WebPages, "hub": HubDataset,
}  # fmt: skip
Source = Annotated[InstalledPackages | LocalFiles | WebPages | HubDataset, Field(discriminator="kind")]


class CollectConfig(Config):
    """Stage collect: where the documents come from."""

    sources: tuple[Source, ...] = Field((InstalledPackages(),), min_length=1, description="What to read.")
    max_bytes: int | None = Field(
        None, ge=1_000, description="Most text in all; documents are then chosen by their hash, not by their order."
    )
    shard_bytes: int = Field(64_000_000, ge=1_000, description="Text in one Parquet shard of the corpus.")
    reuse: bool = Incidental(
        True, description="Keep in the workspace what each file yielded, so that an unchanged one is not read again."
    )


_FEED_SUFFIXES, _WEB, _HUB = (".rss", ".atom"), ("https://", "http://"), "hf://datasets/"


def source_of(data: str) -> LocalFiles | WebPages | HubDataset:
    """What `--data` means: a path, an address on the web or on an object store, hf://datasets/NAME.

    Raises:
        ValueError: it means nothing.
    """
    if not data.strip():
        raise ValueError("no path and no address is given")  # an empty path would mean the current folder
    scheme, separator, rest = data.partition("://")
    data = f"{scheme.lower()}{separator}{rest}" if separator else data
    if data.startswith(_HUB):
        name, _, revision = data.removeprefix(_HUB).strip("/").partition("@")
        if not name:
            raise ValueError(f"{data} names no data set; write {_HUB}OWNER/NAME or {_HUB}OWNER/NAME@REVISION")
        return HubDataset(name=name, revision=revision or "main")
    if not data.startswith(_WEB):
        return LocalFiles(path=data)
    path = data.partition("?")[0].rstrip("/").lower()
    last = path.rpartition("/")[2]
    plain = data.startswith("http://")
    if last.endswith(_FEED_SUFFIXES) or last in ("rss", "feed", "atom", "rss.xml", "atom.xml", "feed.xml"):
        return WebPages(feeds=(data,), allow_http=plain)
    if "sitemap" in last:
        return WebPages(sitemaps=(data,), allow_http=plain)
    return WebPages(urls=(data,), allow_http=plain)


class CleanConfig(Config):
    """Stage clean: the bounds of the quality rules (`lm_core.corpus.rules` documents each), and what is redacted."""

    redact: tuple[Literal["key", "email", "iban", "card", "ip", "phone"], ...] = Field(
        ("key", "email", "iban", "card", "ip", "phone"),
        description="Personal data and secrets that a typed placeholder replaces, [EMAIL] say, where text is read "
        "for learning; empty redacts nothing.",
    )

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
    published: tuple[Literal["gopher", "gopher_repetition", "c4", "fineweb"], ...] = Field(
        (),
        description="Published sets of rules that decide besides, at the bounds of their papers: made for web.",
    )
    bounds: dict[str, float] = Field(
        {}, description="Another bound for a rule, by its name: {gopher_short_words = 2.5}."
    )  # fmt: skip
    bounds_by_language: dict[str, dict[str, float]] = Field(
        {}, description="Other bounds for documents of a language, by its ISO 639 code and the rule's name."
    )

    @model_validator(mode="after")
    def _known_rules(self) -> CleanConfig:
        if self.languages or self.bounds or self.bounds_by_language:
            from lm_core.corpus.rules import refuse_without_effect

            refuse_without_effect(self)
        return self


class DeduplicateConfig(Config):
    """Stage deduplicate: what a copy is, which copy stays, and the splits."""

    threshold: float = Field(0.8, gt=0.3, le=1, description="Jaccard similarity from which two documents are copies.")
    containment_threshold: float | None = Field(
        0.9, gt=0.5, le=1, description="Share of a document's shingles from which on another, preferred one that holds "
        "them makes it a copy, though it is no like text: a quotation, a chapter beside its book; null looks for none."
    )  # fmt: skip
    min_contained_shingles: int = Field(
        100, ge=50, description="A document of fewer shingles is never taken for a part of another."
    )
    shingle_tokens: int = Field(5, ge=1, le=16, description="Consecutive tokens in a shingle.")
    num_bands: int = Field(24, ge=1, le=64, description="Bands of the MinHash index; more find more.")
    band_rows: int = Field(4, ge=1, le=8, description="MinHash values in a band; more propose fewer candidates.")
    prefer_sources: tuple[str, ...] = Field((), description="Sources whose copy is kept first; then the longest stays.")
    cluster_threshold: float = Field(
        0.5, gt=0, le=1, description="Jaccard similarity from which kept documents share a cluster, and so a split."
    )
    boilerplate_fraction: float | None = Field(
        0.2, gt=0, le=1, description="A line that this share of a source's documents have is cut from all of them; "
        "null cuts none."
    )  # fmt: skip
    min_boilerplate_documents: int = Field(20, ge=2, description="Fewest documents that make a line boilerplate.")
    min_boilerplate_characters: int = Field(25, ge=10, description="A shorter line is never boilerplate.")
    max_passage_documents: int | None = Field(
        2, ge=1, description="A paragraph or long line that stands in more documents, of whatever source, is cut from "
        "all but the preferred one; null cuts none."
    )  # fmt: skip
    min_passage_characters: int = Field(200, ge=50, description="A shorter paragraph or line may repeat.")
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
    min_passage_tokens: int = Field(
        50, ge=13, description="Texts that items are about (a context, an article) are searched from this length on."
    )
    min_containment: float = Field(
        0.5, gt=0, le=1, description="Share of an item's n-grams that a document must hold to be contaminated."
    )
    min_item_tokens: int = Field(
        8,
        ge=3,
        description="Items shorter than this are not searched: their words occur by chance. Those shorter than two "
        "n-grams are compared by n-grams of this length.",
    )
    max_items_per_ngram: int = Field(
        20, ge=1, description="N-grams that stand in more items than this are a template of the task, not evidence."
    )
    max_documents_per_item: int = Field(
        20,
        ge=1,
        description="An example made from the corpus that stands in more documents than this is a form they share; an "
        "item of a declared task never is.",
    )

    @field_validator("min_item_tokens")
    @classmethod
    def _item_bound(cls, value: int) -> int:
        if value > 32:
            raise ValueError("min_item_tokens must not exceed 32")
        return value
