"""Classical baselines of downstream tasks: what a score is worth without any neural model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from lm_core.downstream.docstrings import first_sentence


def majority(train_targets: Sequence[str], num_items: int) -> list[str]:
    """The commonest training target, for every item."""
    commonest = min(Counter(train_targets).items(), key=lambda pair: (-pair[1], pair[0]))[0]
    return [commonest] * num_items


def tfidf_logistic_regression(
    train_prompts: Sequence[str], train_targets: Sequence[str], prompts: Sequence[str]
) -> list[str]:
    """Logistic regression on TF-IDF of words and word pairs; with one class only, that class."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    if len(set(train_targets)) < 2:
        return [train_targets[0]] * len(prompts)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\w+")
    features = vectorizer.fit_transform(train_prompts)
    classifier = LogisticRegression(C=10.0, max_iter=300).fit(features, list(train_targets))
    return [str(label) for label in classifier.predict(vectorizer.transform(prompts))]


def nearest_neighbour(train_prompts: Sequence[str], train_targets: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """The target of the training prompt that is most similar by TF-IDF."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\w+")
    known = vectorizer.fit_transform(train_prompts)
    similarity = (vectorizer.transform(prompts) @ known.T).toarray()
    return [train_targets[i] for i in np.argmax(similarity, 1)]


def lead_sentence(prompts: Sequence[str]) -> list[str]:
    """The first sentence of the text in the prompt, after its instruction."""
    return [first_sentence(prompt.split("\n\n", 1)[-1]) for prompt in prompts]
