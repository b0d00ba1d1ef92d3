"""What an earlier run has found still holds for documents that have nothing to do with those that came or went.

Documents have to do with each other when they share a band or one may lie within the other; those that do, through
others too, are a component. A component none of whose documents came or went keeps its findings. Which ones are
concerned is found by going once over the sketches, with the band keys and samples of what came and went in a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lm_core.corpus.config import DeduplicateConfig
from lm_core.corpus.dedup.containment import MAX_OWNERS, QUERIES, Before, Proposals, Samples, proposals
from lm_core.corpus.dedup.hash_tables import HashSet
from lm_core.corpus.dedup.index import Found, both
from lm_core.corpus.dedup.sketching import Sketched

# With more that came or went than this share, everything is compared afresh.
_FEW = 0.2


@dataclass(frozen=True)
class Update:
    """What is to be compared afresh among n documents.

    Attributes:
        concerned: (n,) bool, documents whose findings hold no more, or that have none.
        beside_new: (n,) bool, documents that came, and those that they share something with.
        proposals: of all documents.
    """

    concerned: np.ndarray
    beside_new: np.ndarray
    proposals: Proposals


class _Change:
    """Documents that came or went, since a run, among those that are compared.

    Attributes:
        here: what the run found, by today's rows.
        added: (n,) bool of today's; gone: (rows,) bool of the segments'.
    """

    def __init__(self, was: Found, here: Found, sketched: Sketched, survivors: np.ndarray, num_threads: int) -> None:
        assert sketched.segments is not None and sketched.rows is not None
        self.sketched, self.survivors, self.segments, self.rows = sketched, survivors, sketched.segments, sketched.rows
        self.today = sketched.today()
        count = len(was.keepers)
        self.here, self.num_threads = here, num_threads
        self.survived = np.zeros(len(self.today), bool)
        self.survived[:count] = was.survivors
        labels = np.full(len(self.today), -1, np.int64)
        labels[:count] = was.components
        self.all_labels, self.labels = labels, labels[self.rows]
        self.added = survivors & ~self.survived[self.rows]
        self.gone = self.survived.copy()
        self.gone[self.rows[survivors]] = False

    def alive(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Today's row of each row of the segments, and whether it is compared."""
        today = self.today[rows]
        return today, (today >= 0) & self.survivors[today]


def what_is_concerned(
    was: Found, here: Found, sketched: Sketched, survivors: np.ndarray, ranks: np.ndarray, config: DeduplicateConfig,
    num_threads: int,
) -> Update | None:  # fmt: skip
    """What must be compared afresh; None when that is so much that everything may be.

    Args:
        was: what an earlier run has found, by rows of the segments; here: the same, by today's rows.
        survivors: (n,) bool, the documents that are compared today; ranks: (n,) their place in the order of
            preference, -1 for the others.
    """
    if sketched.segments is None:
        return None
    change = _Change(was, here, sketched, survivors, num_threads)
    if change.added.sum() + change.gone.sum() > _FEW * survivors.sum():
        return None
    affected = np.zeros(len(change.today), bool)
    affected[change.all_labels[change.gone]] = True
    beside_new = change.added & (sketched.num_shingles > 0)
    num_bands = sketched.keys.shape[1]
    wanted = HashSet(sketched.keys[beside_new].ravel())
    for first, part in zip(change.segments.firsts(), change.segments.parts, strict=True):
        places = wanted.places_in(part["keys"].reshape(-1), num_threads)
        today, alive = change.alive(first + np.unique(places // num_bands))
        beside_new[today[alive & (sketched.num_shingles[today] > 0)]] = True
    proposed = Proposals.none(len(survivors))
    if config.containment_threshold is not None:
        proposed, concerned = _proposed(change, ranks, config.containment_threshold)
        beside_new[concerned] = True
    labels = change.labels
    own = labels[beside_new]
    affected[own[own >= 0]] = True
    return Update(survivors & ((labels < 0) | affected[labels] | change.added), beside_new, proposed)


def _sharing(change: _Change, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """Who has the sampled shingles of a mask's documents: those, rows, which of them, today's rows, who is compared."""
    values = np.unique(change.segments.of_documents("samples", mask))
    owners, found = change.segments.owners(["samples"], HashSet(values), change.num_threads)
    return values, owners, found, *change.alive(owners)


def _proposed(change: _Change, ranks: np.ndarray, threshold: float) -> tuple[Proposals, np.ndarray]:
    """Today's proposals, and the rows of those that are not as they were."""
    mask = change.gone.copy()
    mask[change.rows[change.added]] = True
    values, owners, found, today, alive = _sharing(change, mask)
    number = np.searchsorted(values, found)
    counts = [np.bincount(number[which], minlength=len(values)) for which in (change.survived[owners], alive)]
    turned = (counts[0] <= MAX_OWNERS) != (counts[1] <= MAX_OWNERS)
    # A shingle that has become too common, or rare enough, is another question to all who were looked up by it.
    taken, limits = change.here.taken, change.here.limits
    rows, own = today[alive & turned[number]], found[alive & turned[number]]
    asked = change.added.copy()
    asked[rows[(taken[rows] < QUERIES) | (own <= limits[rows])]] = True
    if (asked & ~change.added).any():
        mask = np.zeros(len(mask), bool)
        mask[change.rows[asked]] = True
        _, _, found, today, alive = _sharing(change, mask)
    known = change.here.containers
    known = known[both(change.survivors[known])]
    samples = Samples.of([(today[alive], found[alive])])
    before = Before(Proposals(known, taken, limits), asked, change.added)
    new = proposals(samples, ranks, threshold, before)
    again = asked[known[:, 0]]
    other = np.setxor1d(_packed(known[again]), _packed(new.pairs))
    concerned = np.concatenate([other >> np.uint64(32), other & np.uint64(0xFFFFFFFF)]).astype(np.int64)
    return Proposals(np.concatenate([known[~again], new.pairs]), new.taken, new.limits), concerned


def _packed(pairs: np.ndarray) -> np.ndarray:
    packed: np.ndarray = (pairs[:, 0].astype(np.uint64) << np.uint64(32)) | pairs[:, 1].astype(np.uint64)
    return packed
