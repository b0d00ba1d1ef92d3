"""Tables of hashes against NumPy's sets."""

import numpy as np
import pytest

from lm_core.corpus.dedup.hash_tables import HashSet, repeated


@pytest.mark.parametrize("size", [0, 1, 2, 300, 20_000])
def test_repeated_hashes_are_those_that_numpy_counts_twice(size):
    values = np.random.default_rng(size).integers(0, 1 << 63, size, dtype=np.uint64)
    values[: size // 7] = values[size - size // 7 :]
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    assert set(repeated(values)) == set(np.flatnonzero(count[place] > 1))


def test_a_set_of_hashes_finds_its_own_and_no_others():
    numbers = np.random.default_rng(0).integers(0, 1 << 63, 5000, dtype=np.uint64)
    wanted = np.concatenate([numbers[4000:], numbers[:10]])
    found = HashSet(numbers[:4500]).places_in(wanted)
    assert found.tolist() == np.flatnonzero(np.isin(wanted, numbers[:4500])).tolist()
