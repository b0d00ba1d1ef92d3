"""Which training steps a document was seen at, and which documents a step saw.

The order of the windows is a pure function of (seed, step), and the span table says which window holds which document:
nothing was logged during training, and nothing is missing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_contracts.schemas import STEPS
from lm_core.artifact import Checkpoint, TokenDataset
from lm_core.tokens import DATASET, window_order


@dataclass(frozen=True)
class TrainingOrder:
    """What decides which windows a pretraining read, and when.

    Attributes:
        num_steps: steps that were taken.
        num_windows: of the split train.
    """

    seed: int
    rows_per_step: int
    num_steps: int
    num_windows: int

    @classmethod
    def of(cls, checkpoint: Checkpoint, tokens: TokenDataset) -> TrainingOrder:
        """The order of a finished pretraining on these tokens."""
        training = json.loads(checkpoint.file("training.json").read_text())
        return cls(
            seed=training["config"]["optimization"]["seed"],
            rows_per_step=training["rows_per_step"],
            num_steps=training["num_steps"],
            num_windows=json.loads(tokens.file(DATASET).read_text())["splits"]["train"]["windows"],
        )

    def epochs(self) -> Iterator[np.ndarray]:
        """Numbers of the windows in the order in which they were read, epoch by epoch; the last may be cut short."""
        left = self.num_steps * self.rows_per_step
        for epoch in range(-(-left // self.num_windows)):
            yield window_order(self.seed, epoch, self.num_windows, self.num_windows)[:left]
            left -= self.num_windows

    def steps_of(self, windows: Collection[int]) -> list[int]:
        """Steps that read any of the windows, counted from 0; one that read two of them stands twice."""
        wanted = np.fromiter(windows, np.int64, len(windows))
        places = [
            epoch * self.num_windows + np.flatnonzero(np.isin(order, wanted))
            for epoch, order in enumerate(self.epochs())
        ]
        return [int(place) // self.rows_per_step for place in np.concatenate(places or [np.array([], np.int64)])]

    def write(self, path: Path) -> int:
        """Write a row of `schemas.STEPS` for each window that a step read; returns the number of rows."""
        num_rows = 0
        with pq.ParquetWriter(path, STEPS, compression="zstd") as writer:
            for order in self.epochs():
                steps = np.arange(num_rows, num_rows + len(order)) // self.rows_per_step
                writer.write_table(pa.table({"step": steps, "window": order}, schema=STEPS))
                num_rows += len(order)
        return num_rows
