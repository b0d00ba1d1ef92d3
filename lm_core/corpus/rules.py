"""The quality rules: named predicates over a document's signals, each with its source.

A document meets the fate `quality` for the first rule it breaks, in this order. Signals are columns of
`signals.parquet`, so that bounds can be tried by SQL without reading the text again.

Sources: Gopher (Rae et al. 2021, appendix A1), C4 (Raffel et al. 2020), FineWeb (Penedo et al. 2024). Bounds stand in
`CleanConfig`: documentation strings are short and technical, so most are wider than those made for web pages.
"""

from __future__ import annotations

from dataclasses import dataclass

from lm_core.corpus.config import CleanConfig

# Signals of one document as DuckDB expressions over its `text`, and over lists of its words and lines. A character of a
# script without spaces counts as a word.
SIGNALS = {
    "num_words": "len(words) + num_ideographs",
    "mean_word_length": "CASE WHEN num_ideographs > len(words) THEN 1.0 "
    "ELSE coalesce(list_avg(list_transform(words, lambda w: length(w))), 0) END",
    "alphabetic_fraction": "(len(list_filter(words, lambda w: regexp_matches(w, '\\pL'))) + num_ideographs) "
    "/ greatest(len(words) + num_ideographs, 1)",
    # A run of '#' counts once: "###" is one heading.
    "symbol_fraction": "(len(regexp_extract_all(text, '#+')) "
    "+ (length(text) - length(replace(text, '...', ''))) / 3 + length(text) - length(replace(text, '…', ''))) "
    "/ greatest(len(words) + num_ideographs, 1)",
    "duplicate_line_fraction": "1 - coalesce(list_sum(list_transform(list_distinct(lines), lambda l: length(l))), 0) "
    "/ greatest(coalesce(list_sum(list_transform(lines, lambda l: length(l))), 0), 1)",
    "replacement_fraction": "(length(text) - length(replace(text, chr(65533), ''))) / greatest(length(text), 1)",
    "bullet_fraction": "len(list_filter(lines, lambda l: l[1] IN ('-', '*', '•', '‣'))) / greatest(len(lines), 1)",
    "ellipsis_fraction": "len(list_filter(lines, lambda l: suffix(l, '...') OR suffix(l, '…'))) "
    "/ greatest(len(lines), 1)",
}

# Lines that count as repeated must be long enough not to be closing brackets or table rules.
LINES = "list_filter(list_transform(string_split(text, chr(10)), lambda l: trim(l)), lambda l: length(l) > 3)"
WORDS = "list_filter(regexp_split_to_array(text, '\\s+'), lambda w: w <> '')"
IDEOGRAPHS = "len(regexp_extract_all(text, '[\\x{0E00}-\\x{0EFF}\\x{3040}-\\x{30FF}\\x{3400}-\\x{9FFF}]'))"


@dataclass(frozen=True)
class Rule:
    """A named bound on one signal.

    Attributes:
        name: the reason written beside a dropped document.
        signal: column of signals.parquet whose value is kept as the decision's figure.
        condition: SQL that holds when the document breaks the rule.
        source: where the rule comes from.
    """

    name: str
    signal: str
    condition: str
    source: str


def rules(config: CleanConfig) -> tuple[Rule, ...]:
    """The rules with the bounds of a configuration, in the order in which they decide."""
    docstring, text = config.min_docstring_words, config.min_text_words
    named = (
        Rule(
            "too_few_words",
            "num_words",
            f"num_words < CASE WHEN kind = 'docstring' THEN {docstring} ELSE {text} END",
            "Gopher",
        ),
        Rule("too_many_words", "num_words", f"num_words > {config.max_words}", "Gopher"),
        Rule("broken_characters", "replacement_fraction", _above("replacement_fraction", config), "C4"),
        Rule("long_words", "mean_word_length", _above("mean_word_length", config), "Gopher"),
        Rule("few_alphabetic_words", "alphabetic_fraction",
             f"alphabetic_fraction < {config.min_alphabetic_fraction}", "Gopher"),
        Rule("symbols", "symbol_fraction", _above("symbol_fraction", config), "Gopher"),
        Rule("repeated_lines", "duplicate_line_fraction", _above("duplicate_line_fraction", config), "Gopher, FineWeb"),
        Rule("bullets", "bullet_fraction", _above("bullet_fraction", config), "Gopher"),
        Rule("ellipses", "ellipsis_fraction", _above("ellipsis_fraction", config), "Gopher"),
    )  # fmt: skip
    if not config.languages:
        return named
    wanted = ", ".join(f"'{language}'" for language in config.languages)
    # The signal of the language rule is the language itself; its figure stays empty.
    return (*named, Rule("language", "NULL", f"language NOT IN ({wanted})", "C4"))


def _above(signal: str, config: CleanConfig) -> str:
    return f"{signal} > {getattr(config, f'max_{signal}')}"
