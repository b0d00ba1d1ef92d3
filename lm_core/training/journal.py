"""The metrics journal of a run: one JSON object per line, flushed at once, for whoever wants to follow or plot it.

It lives twice: in the artifact under construction, and in the work folder, from which a resumed run takes the lines
written before it was stopped.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, TextIO

JOURNAL = "journal.jsonl"


class Journal:
    """Appends lines {"step", "time", figure: value, ...}.

    Args:
        folder: the artifact under construction.
        work: the work folder that survives a kill.
        step: optimizer steps already done; later lines of an interrupted run are forgotten.
    """

    def __init__(self, folder: Path, work: Path, step: int) -> None:
        earlier = [line for line in _whole_lines(work / JOURNAL) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in earlier)
        self._streams: list[TextIO] = []
        for path in (work / JOURNAL, folder / JOURNAL):
            path.write_text(text)
            self._streams.append(open(path, "a", encoding="utf-8"))  # noqa: SIM115, closed by `close`

    def write(self, step: int, **figures: Any) -> None:
        """Append one line; `step` counts the optimizer steps done."""
        line = json.dumps({"step": step, "time": round(time.time(), 3), **figures}) + "\n"
        for stream in self._streams:
            stream.write(line)
            stream.flush()

    def close(self) -> None:
        """Close both files."""
        for stream in self._streams:
            stream.close()


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of a journal; a line torn by a kill ends it."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
