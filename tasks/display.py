"""What a person sees while a run works: one line per stage, with progress, rate and time left. All on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from tasks.wording import describe, duration

LOG_EVERY_SECONDS = 10.0
WIDTH_OF_A_FILE = 120  # columns, where no terminal says how many it has


class Display:
    """Live progress on a terminal; on anything else a line when a stage begins, every ten seconds, and when it ends."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        if not self.console.is_terminal:
            self.console.width = WIDTH_OF_A_FILE
        self.live = (
            Progress(
                SpinnerColumn(finished_text="[green]✓"),
                TextColumn("{task.description:<38}"),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("{task.fields[line]}"),
                console=self.console,
            )
            if sys.stderr.isatty() and not quiet
            else None
        )
        self._rows: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._last_line = 0.0

    def __enter__(self) -> Display:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.live:
            self.live.stop()

    def say(self, text: str) -> None:
        """One line for a person."""
        self.console.print(text, soft_wrap=True, markup=False)

    def begin(self, stage: str) -> None:
        """A stage begins."""
        self._started[stage] = self._last_line = time.monotonic()
        if self.live:
            self._rows[stage] = self.live.add_task(stage, total=None, line="")

    def progress(self, stage: str, done: float, total: float | None, unit: str, figures: Mapping[str, float]) -> None:
        """A stage has come so far."""
        line = describe(done, total, unit, time.monotonic() - self._started[stage], figures)
        if self.live:
            self.live.update(self._rows[stage], completed=done, total=total, line=line)
        elif time.monotonic() - self._last_line > LOG_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self.say(f"  {stage}: {line}")

    def end(self, stage: str, state: str, seconds: float, summary: str) -> None:
        """A stage ends."""
        if self.live:
            self.live.update(self._rows[stage], completed=1, total=1, line=f"{state.lower()}  {summary}")
        else:
            self.say(f"{stage:<38} {state:<9} {duration(seconds):>9}  {summary}")
