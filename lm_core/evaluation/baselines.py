"""Classical baselines of downstream tasks: what a score is worth without any neural model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lm_core.downstream.docstrings import plain
from lm_core.downstream.passages import sentences
from lm_core.evaluation.metrics import words

# How good answers to items are, in the task's metric: what a baseline leaves open is settled by items not scored.
Judge = Callable[[Sequence[str]], float]
LEADS = (1, 2, 3)
# Of free answers that hardly ever recur: so many are tried as the answer to all, against so many others.
CANDIDATES, COMPARED = 60, 100
_SPEAKER = re.compile(r"^(User|Agent): ")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n\s*\n")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|\*\*|<[^<>]+>")


def majority(
    train_targets: Sequence[str], num_items: int, alike: Callable[[str, str], float] | None = None
) -> list[str]:
    """The commonest training target, for every item; of equally common ones the first by the alphabet.

    Args:
        alike: how alike two answers are. Where free answers hardly ever recur, the one that is most like the others
            is given: of equally common ones, by a sample.
    """
    counts = Counter(train_targets)
    most = max(counts.values())
    commonest = sorted(target for target, count in counts.items() if count == most)
    if alike is not None and len(commonest) > 1:
        some = commonest[:: -(-len(commonest) // CANDIDATES)]
        others = train_targets[:: -(-len(train_targets) // COMPARED)]
        return [max(some, key=lambda target: sum(alike(target, other) for other in others))] * num_items
    return [commonest[0]] * num_items


def tfidf_logistic_regression(
    train_prompts: Sequence[str], train_targets: Sequence[str], prompts: Sequence[str]
) -> tuple[list[str], NDArray[np.float64]]:
    """Logistic regression on TF-IDF of words and word pairs; with one class or no word at all, the commonest class.

    Returns:
        The likeliest label of each prompt, and its probability.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    counts = Counter(train_targets)
    if len(counts) < 2 or not any(map(words, train_prompts)):  # nothing to tell them apart by
        return majority(train_targets, len(prompts)), np.full(len(prompts), max(counts.values()) / counts.total())
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


def nearest_neighbour(
    train: Sequence[tuple[str, str]], validation: Sequence[str], judge: Judge, prompts: Sequence[str]
) -> list[str]:
    """The target of the training prompt that is most similar by TF-IDF: of the whole, or of the last line alone.

    The last line is what a conversation has come to; the validation items say which of the two is compared.

    Args:
        train: (prompt, target).
        validation: prompts; where there are none, the whole is compared.
        judge: how good answers to them are.
    """
    ways: Sequence[Callable[[str], str]] = (lambda prompt: prompt, lambda prompt: prompt.rsplit("\n", 1)[-1])
    if not validation or not any("\n" in prompt for prompt in prompts):
        return _most_similar(train, prompts, ways[0])
    best = max(ways, key=lambda seen: judge(_most_similar(train, validation, seen)))
    return _most_similar(train, prompts, best)


def _most_similar(train: Sequence[tuple[str, str]], prompts: Sequence[str], seen: Callable[[str], str]) -> list[str]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(words(seen(prompt)) for prompt, _ in train):  # all alike
        return majority([target for _, target in train], len(prompts))
    vectorizer = TfidfVectorizer(sublinear_tf=True, analyzer=words)
    known = vectorizer.fit_transform([seen(prompt) for prompt, _ in train])
    similarity = (vectorizer.transform([seen(prompt) for prompt in prompts]) @ known.T).toarray()
    return [train[i][1] for i in np.argmax(similarity, 1)]


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


def lead_sentences(train_texts: Sequence[str], judge: Judge, texts: Sequence[str]) -> list[str]:
    """The first sentence of each text, or the first two or three: as many as the training items' answers ask for.

    Markup of links and literals is no part of a sentence: the references have none.
    """
    best = max(LEADS, key=lambda count: judge([_lead(text, count) for text in train_texts]))
    return [_lead(text, best) for text in texts]


def _lead(text: str, count: int) -> str:
    parts = [plain(part) for part in _SENTENCE_END.split(_LINK.sub(r"\1", text)) if part.strip()]
    return " ".join(parts[:count])
