"""The nearest of the names there are to one that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like `name`, however little it is like it."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def hint(name: str, known: Iterable[str]) -> str:
    """The end of a message: what may have been meant; nothing when no known name is like it."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
