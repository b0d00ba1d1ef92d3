"""Words of others on a terminal: names of files, sources and keys may hold what a terminal would obey."""

from __future__ import annotations

import re

# Control characters, line ends that only some programs know, marks that turn the direction of what follows, and lone
# surrogates, which no terminal's encoding can hold.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LINE_ENDS = re.compile("[\n\t]")


def visible(text: str) -> str:
    """The text with everything spelled out that a terminal would obey instead of showing it; lines stay lines."""
    return _OBEYED.sub(_spelled, text)


def on_one_line(text: str) -> str:
    """As `visible`, with line ends and tabs spelled out too."""
    return _LINE_ENDS.sub(_spelled, visible(text))


def _spelled(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
