"""Language of a text: the model that py3langid brings along (142 classes, no download), in compiled code.

The model is langid.py's (Lui and Baldwin 2012): an automaton finds byte n-grams, naive Bayes weighs them. Here it walks
over Arrow buffers, which gives the library's answers at many times its speed.
"""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

from lm_core.corpus.dedup.sketch import text_buffers

SAMPLE_CHARACTERS = 1000
UNKNOWN = "und"
# Below that confidence the best of 142 guesses says nothing: short texts, formulas, names.
_MIN_CONFIDENCE = 0.3


class _Model(NamedTuple):
    """The automaton (moves: 256 for each row, rows: row of each state, features: -1 or what a state finds), weights."""

    moves: np.ndarray
    rows: np.ndarray
    features: np.ndarray
    weights: np.ndarray
    prior: np.ndarray
    labels: np.ndarray


@lru_cache(maxsize=1)
def _model() -> _Model:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    found = LanguageIdentifier.from_model_file(MODEL_FILE)
    return _Model(
        np.asarray(found.tk_nextmove), np.asarray(found.tk_row, np.int64), np.asarray(found.tk_output, np.int32),
        found.nb_ptc.astype(np.float32), found.nb_pc.astype(np.float32), np.array(found.nb_classes),
    )  # fmt: skip


def known_languages() -> list[str]:
    """The ISO 639-1 codes that a text can be found to be in, and "und" of one that says too little."""
    return [*_model().labels.tolist(), UNKNOWN]


@njit(nogil=True, cache=True)
def _score(offsets, data, moves, rows, features, weights, prior, scores):
    """Log-posterior of each language (texts, languages); 0 for a text without any feature."""
    counts = np.zeros(len(weights), np.int32)
    touched = np.empty(len(weights), np.int32)
    for row in range(len(scores)):
        state, num_touched = np.int64(0), 0
        for position in range(offsets[row], offsets[row + 1]):
            state = np.int64(moves[(rows[state] << 8) + np.int64(data[position])])
            feature = features[state]
            if feature < 0:
                continue
            if counts[feature] == 0:
                touched[num_touched] = feature
                num_touched += 1
            counts[feature] += 1
        own = scores[row]
        own[:] = prior
        if num_touched == 0:
            own[:] = 0
        for feature in touched[:num_touched]:
            weight = np.float32(np.log1p(np.float32(counts[feature])))
            counts[feature] = 0
            for language in range(len(own)):
                own[language] += weight * weights[feature, language]


def languages_of(texts: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """ISO 639 code of each text or `und`, and the confidence in it (0 to 1); only its first thousand characters count.

    `zxx` is text without a language: code, numbers.
    """
    model = _model()
    samples = pc.utf8_slice_codeunits(texts.cast(pa.large_string()), 0, SAMPLE_CHARACTERS)
    samples = pc.if_else(pc.utf8_is_upper(samples), pc.utf8_lower(samples), samples)
    offsets, data = text_buffers(samples)
    scores = np.empty((len(texts), len(model.labels)), np.float32)
    _score(offsets, data, model.moves, model.rows, model.features, model.weights, model.prior, scores)
    # The library's softmax: a temperature of the square root of the bytes keeps confidence comparable across lengths.
    cooled = scores.astype(np.float64) / np.sqrt(np.maximum(np.diff(offsets), 1))[:, None]
    shares = np.exp(cooled - cooled.max(axis=1, keepdims=True))
    labels, columns = np.unique(model.labels, return_inverse=True)
    by_label = np.zeros((len(texts), len(labels)))
    np.add.at(by_label.T, columns, shares.T)  # some languages have a column for each of their scripts
    best = by_label.argmax(axis=1)
    confidence = by_label[np.arange(len(texts)), best] / np.maximum(by_label.sum(axis=1), 1e-300)
    codes = np.where(confidence >= _MIN_CONFIDENCE, labels[best], UNKNOWN)
    return pa.array(codes, pa.string()), confidence


def language_of(text: str) -> str:
    """ISO 639 code of one text, or `und`."""
    code: str = languages_of(pa.array([text], pa.large_string()))[0][0].as_py()
    return code
