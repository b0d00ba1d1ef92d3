"""The quality rules: named predicates over a document's signals, each with its source.

A document meets the fate `quality` for the first rule it breaks, in this order. Signals are columns of
`signals.parquet`, so that bounds can be tried by SQL without reading the text again.

Sources: Gopher (Rae et al. 2021, appendix A1), C4 (Raffel et al. 2020), FineWeb (Penedo et al. 2024). Bounds stand in
`CleanConfig`: documentation strings are short and technical, so most are wider than those made for web pages.
"""

from __future__ import annotations

from dataclasses import dataclass

from lm_core.corpus.config import CleanConfig


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
