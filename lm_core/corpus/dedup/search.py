"""The search for copies: sketch what is new, collapse equal texts, compare what shares a band, keep greedily.

With an index of what an earlier run has found, only the documents that have to do with what came or went since are
compared; the result is the same. Bands are searched one by one, and arrays that outgrow their share of the memory lie
in files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lm_core.corpus.config import DeduplicateConfig
from lm_core.corpus.dedup.clusters import clusters_of
from lm_core.corpus.dedup.containment import Proposals, proposals
from lm_core.corpus.dedup.greedy import Bounds, KnownPairs, Pass, greedy_pass
from lm_core.corpus.dedup.hash_tables import repeated, rows_among
from lm_core.corpus.dedup.index import Found, Index, both
from lm_core.corpus.dedup.means import SMALL, Means
from lm_core.corpus.dedup.sketching import Sketched, load_sets, sketch_all
from lm_core.corpus.dedup.texts import Texts
from lm_core.corpus.dedup.update import Update, what_is_concerned

# With more new documents than this share, everything is computed afresh.
_FEW = 0.2


@dataclass(frozen=True)
class Findings:
    """What was found among n documents.

    Attributes:
        found: by rows; exact: (n,) bool, dropped because the text of the keeper is the same byte for byte.
    """

    found: Found
    exact: np.ndarray
    sketched: Sketched

    @property
    def keepers(self) -> np.ndarray:
        """See `Found`."""
        return self.found.keepers

    @property
    def figures(self) -> np.ndarray:
        """See `Found`."""
        return self.found.figures

    @property
    def similarities(self) -> np.ndarray:
        """(p,) float64, Jaccard similarities of the pairs that were compared."""
        shared, first, second = self.found.overlaps.T.astype(np.float64)
        similarities: np.ndarray = shared / np.maximum(first + second - shared, 1)
        return similarities


def find_duplicates(
    texts: Texts,
    preference: np.ndarray,
    config: DeduplicateConfig,
    *,
    index: Index | None = None,
    means: Means = SMALL,
) -> Findings:
    """Find the copies among texts.

    Args:
        preference: all rows, in the order in which they may become keepers.
        index: what need not be computed again.
    """
    sketched = sketch_all(texts, config, index, means)
    equal = equal_texts(sketched.content, preference)
    question = _Question(texts, preference, config, index, means, sketched, equal < 0)
    return _with_equal_texts(question.answer(), equal, sketched)


@dataclass(frozen=True)
class _Question:
    """What is asked of n documents: as the arguments of `find_duplicates`, and what is known of their texts.

    Attributes:
        survivors: (n,) bool, documents that are compared: of equal texts only the preferred one.
    """

    texts: Texts
    preference: np.ndarray
    config: DeduplicateConfig
    index: Index | None
    means: Means
    sketched: Sketched
    survivors: np.ndarray

    def answer(self) -> Found:
        """What becomes of the survivors: found by comparing what is concerned; the rest is as it was."""
        count = len(self.survivors)
        if self.index is None:
            return self._compared(*self._everything(np.zeros(count, bool), Found.nothing(count)))
        was = self.index.found.renumbered(self.sketched.today()[: len(self.index.found.keepers)], count)
        ranks = self._ranks()
        if self.index.holds:
            update = what_is_concerned(
                self.index.found, was, self.sketched, self.survivors, ranks, self.config, self.means.num_threads
            )
            if update is not None:
                return self._compared(update, was, was)
        return self._compared(*self._everything(self.index.rows >= 0, was))

    def _ranks(self) -> np.ndarray:
        """(n,) int64, place of each survivor in the order of preference, -1 for the others."""
        ranks = np.empty(len(self.survivors), np.int64)
        ranks[self.preference] = np.arange(len(ranks))
        ranks[~self.survivors] = -1
        return ranks

    def _everything(self, old: np.ndarray, was: Found) -> tuple[Update, Found, Found]:
        """All that can have to do with each other, and of the others that they are alone."""
        survivors, sketched = self.survivors, self.sketched
        proposed = Proposals.none(len(survivors))
        if self.config.containment_threshold is not None:
            proposed = proposals(sketched.all_samples(), self._ranks(), self.config.containment_threshold)
        concerned = _with_company(sketched, np.flatnonzero(survivors), self.means)
        concerned[proposed.pairs.ravel()] = True
        alone = np.where(survivors, np.arange(len(survivors)), -1)
        # With many new ones, all texts are read at once.
        few = len(was.pairs) > 0 and (concerned & ~old).sum() <= _FEW * concerned.sum()
        beside_new = np.zeros(len(survivors), bool) if few else concerned
        rest = replace(Found.nothing(len(survivors)), components=alone, clusters=alone)
        return Update(concerned, beside_new, proposed), rest, was

    def _compared(self, update: Update, rest: Found, was: Found) -> Found:
        """What becomes of the documents that are concerned, and of the `rest`; of some pairs it `was` known before."""
        concerned, survivors = update.concerned, self.survivors
        rows = self.preference[concerned[self.preference]]
        found = self._passed(rows, update, was)
        keepers, figures = np.where(survivors, rest.keepers, -1), rest.figures.copy()
        components, clusters = np.where(survivors, rest.components, -1), rest.clusters.copy()
        keepers[rows] = np.where(found.keepers >= 0, rows[found.keepers], -1)
        figures[rows], components[rows] = found.figures, rows[found.components]
        clusters[rows] = rows[clusters_of(self._identities(rows), found.joins)]
        apart = np.flatnonzero(both((~concerned & survivors)[rest.pairs]))
        return Found(
            survivors, keepers, figures, components, clusters, update.proposals.taken, update.proposals.limits,
            update.proposals.pairs, np.concatenate([rest.pairs[apart], rows[found.pairs]]),
            np.concatenate([rest.overlaps[apart], found.overlaps]),
        )  # fmt: skip

    def _passed(self, rows: np.ndarray, update: Update, was: Found) -> Pass:
        """The greedy pass over the rows that are concerned, in the order of preference."""
        config, means, sketched = self.config, self.means, self.sketched
        places = np.full(len(self.survivors), -1, np.int64)
        places[rows] = np.arange(len(rows))
        usable = np.flatnonzero(both(update.concerned[was.pairs]))
        containers = update.proposals.pairs
        keys = means.array("keys-compared", (len(rows), sketched.keys.shape[1]), np.uint64)
        np.take(sketched.keys, rows, axis=0, out=keys, mode="clip")  # any other mode buffers
        return greedy_pass(
            keys,
            places[containers[update.concerned[containers[:, 0]]]],
            lambda wanted: load_sets(self.texts, rows, wanted, sketched, config, means),
            known=KnownPairs(places[was.pairs[usable]], was.overlaps[usable]),
            first=update.beside_new[rows],
            bounds=Bounds(
                config.threshold, config.cluster_threshold, config.containment_threshold, config.min_contained_shingles
            ),
            progress=lambda done, total: means.progress(done, total, "candidates"),
            room=means.array,
        )

    def _identities(self, rows: np.ndarray) -> np.ndarray:
        if self.index is None:
            return np.stack([rows.astype(np.uint64)] * 2, axis=1)
        return self.index.doc_ids[rows]


def _with_equal_texts(found: Found, equal: np.ndarray, sketched: Sketched) -> Findings:
    """With the documents that were not compared, as their text is that of another."""
    exact = equal >= 0
    keepers, figures = np.where(exact, equal, found.keepers), np.where(exact[:, None], 1.0, found.figures)
    # A copy of a document that was itself dropped is justified by what that document was dropped for.
    moved = np.flatnonzero(exact & (keepers[equal] >= 0))
    exact[moved], figures[moved], keepers[moved] = False, figures[equal[moved]], keepers[equal[moved]]
    return Findings(replace(found, keepers=keepers, figures=figures), exact, sketched)


def equal_texts(content: np.ndarray, preference: np.ndarray) -> np.ndarray:
    """For each text the preferred of those equal to it; -1 for this one itself."""
    backwards = preference[::-1]
    first = backwards[rows_among(content[backwards], content)]
    return np.where(first == np.arange(len(first)), -1, first)


def _with_company(sketched: Sketched, survivors: np.ndarray, means: Means) -> np.ndarray:
    """Mask of the rows that share a band with another survivor: only these can have copies."""
    mask = np.zeros(len(sketched.keys), bool)
    rows = survivors[sketched.num_shingles[survivors] > 0]
    bands = (sketched.keys[rows, band] for band in range(sketched.keys.shape[1]))
    for shared in means.over_bands(repeated, bands):
        mask[rows[shared]] = True
    return mask
