"""Language of a text, without a model: the script decides, and among Latin scripts the commonest function words.

Good enough to keep or drop whole languages and to count them; short texts without function words are `und`.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain

SAMPLE_CHARACTERS = 1000
_MIN_SCRIPT_FRACTION = 0.2
_SCRIPTS = (
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("ko", re.compile("[\uac00-\ud7af]")),
    ("zh", re.compile("[\u4e00-\u9fff]")),
    ("th", re.compile("[\u0e00-\u0e7f]")),
    ("ru", re.compile("[\u0400-\u04ff]")),
    ("el", re.compile("[\u0370-\u03ff]")),
    ("ar", re.compile("[\u0600-\u06ff]")),
    ("he", re.compile("[\u0590-\u05ff]")),
    ("hi", re.compile("[\u0900-\u097f]")),
)
_FUNCTION_WORDS = {
    "en": "the of and to in is that for it with as be this on are by or not from an if can which",
    "de": "der die das und ist nicht ein eine zu den mit von auf für im dem werden wird sich auch",
    "fr": "le la les de des et est une un du pour dans que qui sur pas avec ce par au plus sont",
    "es": "el la los las de y que en es un una por con para del se no al lo como más su",
    "it": "il lo la gli di e che è un una per con non del della si da nel sono le come",
    "pt": "o a os as de e que é um uma para com não do da em no na se por mais dos",
    "nl": "de het een en van is in op te dat niet met voor aan zijn er ook als wordt door",
}
_LANGUAGES_OF = {
    word: [language for language, words in _FUNCTION_WORDS.items() if word in words.split()]
    for words in _FUNCTION_WORDS.values()
    for word in words.split()
}
_WORD = re.compile(r"[^\W\d_]+")


def language_of(text: str) -> str:
    """ISO 639-1 code, or `und`. Only the first thousand characters are looked at."""
    sample = text[:SAMPLE_CHARACTERS]
    if not sample.isascii():
        language = _language_by_script(sample)
        if language:
            return language
    votes = Counter(chain.from_iterable(_LANGUAGES_OF.get(word, ()) for word in _words(sample)))
    # Of languages with as many votes the first in the table wins.
    return max(_FUNCTION_WORDS, key=votes.__getitem__) if votes else "und"


def _words(sample: str) -> list[str]:
    return _WORD.findall(sample.lower())


def _language_by_script(sample: str) -> str | None:
    letters = sum(map(str.isalpha, sample))
    for language, script in _SCRIPTS:
        # Kana mark Japanese even where most characters are shared with Chinese.
        share = 0.05 if language == "ja" else _MIN_SCRIPT_FRACTION
        if letters and len(script.findall(sample)) >= share * letters:
            return language
    return None
