"""Word-by-word translation by a dictionary that is learnt from pairs: IBM model 1 (Brown et al. 1993)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lm_core.evaluation.metrics import SPACELESS

ROUNDS = 5
# Words of scripts without spaces are learnt from their text; more of them than this translate worse (en-zh: chrF).
VOCAB_SIZE = 3000
# Markup that a translation must carry over: literals, roles, format fields, options, numbers.
PLACEHOLDERS = re.compile(
    r"``[^`]+``|:[a-z:]+:`[^`]+`|%(?:\([a-z_]+\))?[sdr]|\{[^{}\s]*\}|--?[a-z][\w-]+|\d+(?:\.\d+)*"
)
_RUN = re.compile(f"[{SPACELESS}]+")
_NO_SPACE_BESIDE = re.compile(rf"[{SPACELESS}\u3000-\u303f\uff00-\uffef]")
_TOKENS = re.compile(rf"{PLACEHOLDERS.pattern}|[{SPACELESS}]+|[^\W\d_{SPACELESS}]+['’]?|\w|[^\w\s]")

Ids = NDArray[np.int64]
Segment = Callable[[str], list[str]]


def dictionary(sources: Sequence[str], targets: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """The likeliest word for each word, in the order of the source and with its spaces.

    Placeholders and words that the pairs do not show are copied as they stand. The pairs' words are looked up in
    lower case and translated to words as they are written; what begins with a capital goes on doing so.
    """
    of_source, of_target = _segmenter(sources), _segmenter(targets)
    known = [[_looked_up(word) for word in of_source(text)] for text in sources]
    best = likeliest_words(known, [of_target(text) for text in targets])
    return [_translate(prompt, of_source, best) for prompt in prompts]


def likeliest_words(sources: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> dict[str, str]:
    """Source word -> target word of the highest t(target | source) under IBM model 1 with an empty source word."""
    source_words = sorted({word for text in sources for word in text})
    target_words = sorted({word for text in targets for word in text})
    number = {word: place for place, word in enumerate(source_words)}
    target_number = {word: place for place, word in enumerate(target_words)}
    nothing = len(source_words)
    pairs: list[Ids] = []
    owners: list[Ids] = []
    num_tokens = 0
    for source, target in zip(sources, targets, strict=True):
        from_ids = np.array([*(number[word] for word in source), nothing], np.int64)
        to_ids = np.array([target_number[word] for word in target], np.int64)
        pairs.append((from_ids[None, :] * len(target_words) + to_ids[:, None]).ravel())
        owners.append(np.repeat(np.arange(num_tokens, num_tokens + len(to_ids)), len(from_ids)))
        num_tokens += len(to_ids)
    if not num_tokens:
        return {}
    keys, inverse = np.unique(np.concatenate(pairs), return_inverse=True)
    probabilities = _expect_and_maximise(inverse, np.concatenate(owners), keys // len(target_words))
    order = np.lexsort((keys, -probabilities, keys // len(target_words)))
    first = order[np.unique(keys[order] // len(target_words), return_index=True)[1]]
    chosen = [divmod(int(keys[place]), len(target_words)) for place in first]
    return {source_words[source]: target_words[target] for source, target in chosen if source != nothing}


def _expect_and_maximise(pair_of: Ids, token_of: Ids, source_of: Ids) -> NDArray[np.float64]:
    """t(target | source) of each pair of words.

    Args:
        pair_of: of each meeting of a source word with a target token the pair of words.
        token_of: of each meeting the target token.
        source_of: of each pair of words the source word.
    """
    probabilities = np.ones(len(source_of))
    for _ in range(ROUNDS):
        weights = probabilities[pair_of]
        weights /= np.bincount(token_of, weights)[token_of]
        counts = np.bincount(pair_of, weights, len(source_of))
        probabilities = counts / np.bincount(source_of, counts)[source_of]
    return probabilities


def _segmenter(texts: Sequence[str]) -> Segment:
    """Cuts texts into tokens; runs of a script without spaces into words learnt by byte-pair encoding of such runs."""
    from tokenizers import Tokenizer, models, trainers

    runs = [run for text in texts for run in _RUN.findall(text)]
    encoder = Tokenizer(models.BPE())
    encoder.train_from_iterator(runs, trainers.BpeTrainer(vocab_size=VOCAB_SIZE, min_frequency=2, show_progress=False))

    def segment(text: str) -> list[str]:
        return [part for token in _TOKENS.findall(text) for part in _parts(token)]

    def _parts(token: str) -> list[str]:
        # A character that was never seen has no token; such a run is copied whole.
        parts = encoder.encode(token).tokens if _RUN.fullmatch(token) else [token]
        return parts if "".join(parts) == token else [token]

    return segment


def _looked_up(word: str) -> str:
    return word if PLACEHOLDERS.fullmatch(word) else word.lower()


def _translate(prompt: str, segment: Segment, best: dict[str, str]) -> str:
    """The prompt's tokens translated; a space where the source has one, but none beside a spaceless script."""
    text, at = "", 0
    for token in segment(prompt):
        start = prompt.index(token, at)
        word = _translated(token, best)
        joined = start == at or not text or text[-1] in "'’" or any(map(_NO_SPACE_BESIDE.match, (word, text[-1])))
        text += word if joined else f" {word}"
        at = start + len(token)
    return text


def _translated(token: str, best: dict[str, str]) -> str:
    if PLACEHOLDERS.fullmatch(token):
        return token
    word = best.get(_looked_up(token), token)
    return word[:1].upper() + word[1:] if token[:1].isupper() else word
