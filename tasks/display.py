"""What a person sees while a run works: one line per stage, with progress, rate and time left. All on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

LOG_EVERY_SECONDS = 10.0
WIDTH_OF_A_FILE = 120  # columns, where no terminal says how many it has


def amount(value: float) -> str:
    """A count as people read it: 950, 12.3k, 4.56M."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (limit if suffix != 'k' else 1e3):.3g}{suffix}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as people read them: 8 s, 2 min 05 s, 3 h 10 min."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def describe(done: float, total: float | None, unit: str, seconds: float, figures: Mapping[str, float]) -> str:
    """One line on the progress of a stage."""
    parts = [f"{amount(done)}{f' of {amount(total)}' if total else ''} {unit}"]
    if seconds > 0.5 and done > 0:
        parts.append(f"{amount(done / seconds)}/s")
        if total and done < total:
            parts.append(f"{duration(seconds * (total - done) / done)} left")
    parts += [f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items()]
    return ", ".join(parts)


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
