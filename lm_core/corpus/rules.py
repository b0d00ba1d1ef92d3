"""The quality rules: named predicates over a document's signals, each with its source.

A document meets the fate `quality` for the first rule it breaks, in this order: our own, then the published sets that
`CleanConfig.published` names. Signals are columns of `signals.parquet`, so that bounds can be tried by SQL without
reading the text again; `CleanConfig.bounds` and `bounds_by_language` move any of them.

Sources: Gopher (Rae et al. 2021, appendix A1), C4 (Raffel et al. 2020, section 2.2), FineWeb (Penedo et al. 2024,
section 3.6). Our own bounds stand in `CleanConfig`: documentation strings are short and technical, so most are wider
than those made for web pages. C4's rules that remove lines, and its list of bad words, are not among them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lm_core.corpus.config import CleanConfig
from lm_core.nearest import hint

# Written without spaces: the mean length of their words says nothing.
_SPACELESS = ("zh", "yue", "wuu", "ja", "th", "lo", "km", "my", "dz")


@dataclass(frozen=True)
class Rule:
    """A named bound on one signal.

    Attributes:
        name: the reason written beside a dropped document.
        signal: column of signals.parquet whose value is kept as the decision's figure.
        breaks: `<` or `>`: a document breaks the rule when its signal is below, or above, the bound.
        bound: a number, or SQL that gives one.
        source: where the rule comes from.
        spaced_only: does not judge languages written without spaces.
    """

    name: str
    signal: str
    breaks: str
    bound: float | str
    source: str
    spaced_only: bool = False

    def condition(self, config: CleanConfig) -> str:
        """SQL that holds when a document breaks the rule."""
        others = {code: bounds[self.name] for code, bounds in config.bounds_by_language.items() if self.name in bounds}
        bound = str(config.bounds.get(self.name, self.bound))
        if others:
            cases = " ".join(f"WHEN {_quoted(code)} THEN {value}" for code, value in sorted(others.items()))
            bound = f"(CASE language {cases} ELSE {bound} END)"
        # NaN, a signal without meaning for this document, counts as the greatest number in SQL and breaks nothing here.
        condition = f"({self.signal} {self.breaks} {bound} AND NOT isnan({self.signal}))"
        if self.spaced_only:
            condition = f"({condition} AND language NOT IN ({', '.join(map(_quoted, _SPACELESS))}))"
        return condition


_TOP = {2: 0.20, 3: 0.18, 4: 0.16}
_DUPLICATE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
PUBLISHED: dict[str, tuple[Rule, ...]] = {
    "gopher": (
        Rule("gopher_few_words", "num_words", "<", 50, "Gopher"),
        Rule("gopher_many_words", "num_words", ">", 100_000, "Gopher"),
        Rule("gopher_short_words", "mean_word_length", "<", 3, "Gopher", spaced_only=True),
        Rule("gopher_long_words", "mean_word_length", ">", 10, "Gopher"),
        Rule("gopher_hashes", "hashes_per_word", ">", 0.1, "Gopher"),
        Rule("gopher_ellipses", "ellipses_per_word", ">", 0.1, "Gopher"),
        Rule("gopher_bullets", "bullet_fraction", ">", 0.9, "Gopher"),
        Rule("gopher_ellipsis_lines", "ellipsis_fraction", ">", 0.3, "Gopher"),
        Rule("gopher_alphabetic_words", "alphabetic_fraction", "<", 0.8, "Gopher"),
        Rule("gopher_stop_words", "num_stop_words", "<", 2, "Gopher"),
    ),
    "gopher_repetition": (
        Rule("gopher_duplicate_lines", "duplicate_lines", ">", 0.3, "Gopher, table A1"),
        Rule("gopher_duplicate_line_characters", "duplicate_line_characters", ">", 0.2, "Gopher, table A1"),
        Rule("gopher_duplicate_paragraphs", "duplicate_paragraphs", ">", 0.3, "Gopher, table A1"),
        Rule("gopher_duplicate_paragraph_characters", "duplicate_paragraph_characters", ">", 0.2, "Gopher, table A1"),
        *(Rule(f"gopher_top_{n}_gram", f"top_{n}_gram", ">", most, "Gopher, table A1") for n, most in _TOP.items()),
        *(Rule(f"gopher_duplicate_{n}_grams", f"duplicate_{n}_grams", ">", most, "Gopher, table A1")
          for n, most in _DUPLICATE.items()),
    ),
    "c4": (
        Rule("c4_few_sentences", "num_sentences", "<", 5, "C4"),
        Rule("c4_curly_brackets", "curly_brackets", ">", 0, "C4"),
        Rule("c4_lorem_ipsum", "lorem_ipsum", ">", 0, "C4"),
    ),
    "fineweb": (
        Rule("fineweb_language", "language_confidence", "<", 0.65, "FineWeb"),
        Rule("fineweb_unpunctuated_lines", "punctuated_line_fraction", "<", 0.12, "FineWeb"),
        Rule("fineweb_short_lines", "short_line_fraction", ">", 0.67, "FineWeb"),
        Rule("fineweb_duplicate_line_characters", "duplicate_line_characters", ">", 0.01, "FineWeb"),
        Rule("fineweb_newlines", "newlines_per_word", ">", 0.3, "FineWeb"),
    ),
}  # fmt: skip


def own_rules(config: CleanConfig) -> tuple[Rule, ...]:
    """Our own rules, at the bounds of a configuration."""
    few = f"(CASE WHEN kind = 'docstring' THEN {config.min_docstring_words} ELSE {config.min_text_words} END)"
    return (
        Rule("too_few_words", "num_words", "<", few, "Gopher"),
        Rule("too_many_words", "num_words", ">", config.max_words, "Gopher"),
        Rule("broken_characters", "replacement_fraction", ">", config.max_replacement_fraction, "C4"),
        Rule("long_words", "mean_word_length", ">", config.max_mean_word_length, "Gopher"),
        Rule("few_alphabetic_words", "alphabetic_fraction", "<", config.min_alphabetic_fraction, "Gopher"),
        Rule("symbols", "symbol_fraction", ">", config.max_symbol_fraction, "Gopher"),
        Rule("repeated_lines", "duplicate_line_fraction", ">", config.max_duplicate_line_fraction, "Gopher, FineWeb"),
        Rule("bullets", "bullet_fraction", ">", config.max_bullet_fraction, "Gopher"),
        Rule("ellipses", "ellipsis_fraction", ">", config.max_ellipsis_fraction, "Gopher"),
    )


def rules(config: CleanConfig) -> tuple[Rule, ...]:
    """All rules that a configuration lets decide, in their order."""
    return (*own_rules(config), *(rule for name in config.published for rule in PUBLISHED[name]))


def decision_sql(config: CleanConfig, relation: str) -> str:
    """SQL over a relation with the columns of signals.parquet: doc_id, reason and figure of what breaks a rule."""
    cases = [(rule.condition(config), f"'{rule.name}'", rule.signal) for rule in rules(config)]
    if config.languages:
        # The signal of the language rule is the language itself; its figure stays empty.
        wanted = ", ".join(map(_quoted, config.languages))
        cases.append((f"language NOT IN ({wanted})", "'language'", "NULL"))
    reason = " ".join(f"WHEN {condition} THEN {name}" for condition, name, _ in cases)
    figure = " ".join(f"WHEN {condition} THEN {signal}" for condition, _, signal in cases)
    return f"""
        SELECT doc_id, CASE {reason} END AS reason, CASE {figure} END::DOUBLE AS figure
        FROM {relation} WHERE reason IS NOT NULL
    """


def refuse_without_effect(config: CleanConfig) -> None:
    """A bound for a rule that is not among those that decide, or for a language no text is in, has no effect.

    Raises:
        ValueError: there is one, or a bound is no finite number.
    """
    languages = (*config.languages, *config.bounds_by_language)
    if languages:
        from lm_core.corpus.language import known_languages  # loads the model

        unknown = sorted(set(languages) - set(known_languages()))
        if unknown:
            raise ValueError(f"{unknown[0]} is no language that is told apart; give ISO 639-1 codes, as en or zh")
    known = [rule.name for rule in rules(config)]
    for bounds in (config.bounds, *config.bounds_by_language.values()):
        for name, bound in bounds.items():
            if name not in known:
                likely = hint(name, known)
                raise ValueError(f"no rule {name} decides here (the sets in `published` bring more){likely}")
            if not math.isfinite(bound):
                raise ValueError(f"the bound of {name} is no finite number")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
