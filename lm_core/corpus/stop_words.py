"""Stop words by language, for Gopher's rule that running text holds at least two of them.

English: the eight of the paper. The others: words that stand in nearly every text of the language.
"""

from __future__ import annotations

STOP_WORDS = {
    "en": "the be to of and that have with",
    "de": "der die das und ist nicht ein eine zu den mit von auf für im dem werden wird sich auch",
    "fr": "le la les de des et est une un du pour dans que qui sur pas avec ce par au plus sont",
    "es": "el la los las de y que en es un una por con para del se no al lo como más su",
    "it": "il lo la gli di e che è un una per con non del della si da nel sono le come",
    "pt": "o a os as de e que é um uma para com não do da em no na se por mais dos",
    "nl": "de het een en van is in op te dat niet met voor aan zijn er ook als wordt door",
    "ru": "и в не на что с по это как из у за от его к но для так все а",
    "zh": "的 是 不 了 在 有 人 我 这 一 和 也 就 他 为",
    "ja": "の は を に が と で た し て",
}
