"""With what a search works: threads, room in memory and on disk, who works on parts; none of it changes the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm_core.corpus.dedup.texts import Part
from lm_core.mapping import Mapper, in_threads
from lm_core.store import Progress, silent


@dataclass(frozen=True)
class Means:
    """With what a search works; none of it changes the result.

    Attributes:
        folder: where arrays go that outgrow their share of the memory; None keeps them in memory.
        memory_bytes: of all arrays together; an eighth for each.
        mapper: who works on parts instead of this process' threads.
    """

    num_threads: int = 1
    folder: Path | None = None
    memory_bytes: int = 1_000_000_000
    progress: Progress = silent
    mapper: Mapper | None = None

    def array(self, name: str, shape: tuple[int, ...], kind: Any) -> np.ndarray:
        """A new array, in a file when it is large."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
        if self.folder is None or size <= self.memory_bytes // 8:
            return np.empty(shape, kind)
        return np.memmap(self.folder / f"{name}.array", kind, "w+", shape=shape)

    def over(self, parts: list[Part], function: Callable[[Part], Any], take: Callable[[Any], None], unit: str) -> None:
        """Take the result of a function for each part; the function may run elsewhere (see `lm_core.mapping`)."""
        mapper = self.mapper or in_threads(self.num_threads)
        for done, result in enumerate(mapper(function, parts)):
            take(result)
            self.progress(done, len(parts), unit)

    def over_bands(self, function: Callable[[np.ndarray], np.ndarray], bands: Iterable[np.ndarray]) -> Iterable[Any]:
        """Results of a function for each band: one after the other here (a band is large), side by side elsewhere."""
        return (self.mapper or map)(function, bands)

    def each(self, parts: list[Part], work: Callable[[Part], None], unit: str) -> None:
        """Do the work on all parts, several at a time."""
        with ThreadPoolExecutor(self.num_threads) as pool:
            for done, _ in enumerate(pool.map(work, parts)):
                self.progress(done, len(parts), unit)


SMALL = Means()
