"""Classical baselines of downstream tasks: what a score is worth without any neural model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lm_core.downstream.docstrings import first_sentence
from lm_core.downstream.passages import sentences
from lm_core.evaluation.metrics import words

DICTIONARY_PAIRS, DICTIONARY_ROUNDS = 4000, 4
_SPEAKER = re.compile(r"^(User|Agent): ")


def majority(train_targets: Sequence[str], num_items: int) -> list[str]:
    """The commonest training target, for every item."""
    commonest = min(Counter(train_targets).items(), key=lambda pair: (-pair[1], pair[0]))[0]
    return [commonest] * num_items


def tfidf_logistic_regression(
    train_prompts: Sequence[str], train_targets: Sequence[str], prompts: Sequence[str]
) -> tuple[list[str], NDArray[np.float64]]:
    """Logistic regression on TF-IDF of words and word pairs; with one class only, that class.

    Returns:
        The likeliest label of each prompt, and its probability.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    if len(set(train_targets)) < 2:
        return [train_targets[0]] * len(prompts), np.ones(len(prompts))
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\w+")
    features = vectorizer.fit_transform(train_prompts)
    classifier = LogisticRegression(C=10.0, max_iter=300).fit(features, list(train_targets))
    probabilities = classifier.predict_proba(vectorizer.transform(prompts))
    labels = [str(classifier.classes_[i]) for i in probabilities.argmax(1)]
    return labels, probabilities.max(1)


def tfidf_with_threshold(
    train: Sequence[tuple[str, str]], validation: Sequence[tuple[str, str]], prompts: Sequence[str], outside: str
) -> list[str]:
    """TF-IDF and logistic regression over the labels proper; what it is unsure of is out of scope.

    Args:
        train: (prompt, label); those out of scope are not shown to the classifier.
        validation: (prompt, label), with some out of scope: the threshold is the one most often right there.
        outside: the answer for texts that belong to no label.
    """
    inside = [(prompt, label) for prompt, label in train if label != outside]
    asked = [prompt for prompt, _ in validation] + list(prompts)
    labels, sure = tfidf_logistic_regression([p for p, _ in inside], [label for _, label in inside], asked)
    wanted = np.array([label for _, label in validation])
    guessed, known = np.array(labels[: len(validation)]), sure[: len(validation)]
    thresholds = np.linspace(0.0, 0.9, 46)
    right = [(np.where(known < t, outside, guessed) == wanted).mean() for t in thresholds] if len(wanted) else [0.0]
    best = thresholds[int(np.argmax(right))]
    pairs = zip(labels[len(validation) :], sure[len(validation) :], strict=True)
    return [outside if confidence < best else label for label, confidence in pairs]


def nearest_neighbour(train_prompts: Sequence[str], train_targets: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """The target of the training prompt that is most similar by TF-IDF."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, analyzer=words)
    known = vectorizer.fit_transform(train_prompts)
    similarity = (vectorizer.transform(prompts) @ known.T).toarray()
    return [train_targets[i] for i in np.argmax(similarity, 1)]


def copy(prompts: Sequence[str]) -> list[str]:
    """The last line of the prompt, without the name of its speaker: the source of a translation, the last turn."""
    return [_SPEAKER.sub("", prompt.rsplit("\n", 1)[-1]) for prompt in prompts]


def best_overlap_sentence(prompts: Sequence[str]) -> list[str]:
    """The sentence that shares most words with the question, which is the prompt's first line."""
    found = []
    for prompt in prompts:
        question, _, context = prompt.partition("\n")
        wanted = set(words(question))
        parts = sentences(context) or [""]
        found.append(max(parts, key=lambda part: len(wanted & set(words(part)))).strip())
    return found


def dictionary(sources: Sequence[str], targets: Sequence[str], prompts: Sequence[str], *, joint: str) -> list[str]:
    """Word-by-word translation by the likeliest word of IBM model 1 (Brown et al. 1993); unknown words are copied.

    Args:
        joint: what stands between words of the target: nothing in Chinese.
    """
    pairs = [(words(s), words(t)) for s, t in zip(sources, targets, strict=True)][:DICTIONARY_PAIRS]
    table: dict[str, dict[str, float]] = {}
    for _ in range(DICTIONARY_ROUNDS):
        counts: dict[str, dict[str, float]] = {}
        for source, target in pairs:
            for word in target:
                weights = [table[s].get(word, 0.0) for s in source] if table else [1.0] * len(source)
                total = sum(weights) or 1.0
                for s, weight in zip(source, weights, strict=True):
                    row = counts.setdefault(s, {})
                    row[word] = row.get(word, 0.0) + weight / total
        table = {s: {t: c / sum(row.values()) for t, c in row.items()} for s, row in counts.items()}
    best = {s: min(row.items(), key=lambda pair: (-pair[1], pair[0]))[0] for s, row in table.items()}
    return [joint.join(best.get(word, word) for word in words(prompt)) for prompt in prompts]


def lead_sentence(prompts: Sequence[str]) -> list[str]:
    """The first sentence of the text in the prompt, after its instruction."""
    return [first_sentence(prompt.split("\n\n", 1)[-1]) for prompt in prompts]
