"""Reading docstrings: their first line, and what they say about parameters and results.

Understands the three styles in use: Google (`Args:`), NumPy (underlined `Parameters`) and Sphinx (`:param x:`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_SPACES = re.compile(r"\s+")
_GOOGLE_SECTION = re.compile(r"^(?P<indent> *)(?:Args|Arguments|Parameters|Params|Keyword Args): *$")
_GOOGLE_ITEM = re.compile(r"^\*{0,2}(?P<name>[A-Za-z_]\w*) *(?:\([^)\n]*\))? *: +(?P<text>\S.*)$")
_NUMPY_SECTION = re.compile(r"^(?P<indent> *)(?:Other )?Parameters *$")
_NUMPY_ITEM = re.compile(r"^\*{0,2}(?P<name>[A-Za-z_]\w*)(?: *:.*)? *$")
_SPHINX_ITEM = re.compile(
    r"^ *:(?:param|parameter|arg) +(?:[^:\n]*? )?\*{0,2}(?P<name>[A-Za-z_]\w*) *: *(?P<text>\S.*)$"
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s")
_MARKUP = re.compile(r":[a-z:]+:`~?([^`]*)`|``([^`]*)``")


@dataclass(frozen=True)
class Parameter:
    """A documented parameter: its name and the first sentence that documents it."""

    name: str
    text: str


def plain(text: str) -> str:
    """Text on one line, without reStructuredText roles and literal marks."""
    return _SPACES.sub(" ", _MARKUP.sub(lambda found: found[1] or found[2] or "", text)).strip()


def first_sentence(text: str) -> str:
    """The first sentence of a text, on one line."""
    return _SENTENCE_END.split(plain(text), maxsplit=1)[0]


def split_summary(text: str) -> tuple[str, str] | None:
    """First line and body, where the first line stands alone as PEP 257 asks; None where it does not."""
    first, blank, body = text.partition("\n\n")
    if not blank or "\n" in first.strip() or not body.strip():
        return None
    return plain(first), body.strip("\n")


def parameters(text: str) -> list[Parameter]:
    """Documented parameters in the order of the docstring; of a name given twice, the first."""
    lines = text.split("\n")
    found: dict[str, str] = {}
    for index, line in enumerate(lines):
        items: list[tuple[str, list[str]]] = []
        if match := _SPHINX_ITEM.match(line):
            items = [(match["name"], [match["text"], *_deeper(lines, index + 1, _indent(line))])]
        elif match := _NUMPY_SECTION.match(line):
            if index + 1 < len(lines) and set(lines[index + 1].strip()) == {"-"}:
                items = _numpy_items(lines, index + 2, len(match["indent"]))
        elif match := _GOOGLE_SECTION.match(line):
            items = _google_items(_deeper(lines, index + 1, len(match["indent"])))
        for name, parts in items:
            sentence = first_sentence(" ".join(parts))
            if sentence:
                found.setdefault(name, sentence)
    return [Parameter(name, sentence) for name, sentence in found.items()]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _deeper(lines: list[str], start: int, indent: int) -> list[str]:
    """Lines from `start` that are indented deeper than `indent`, until a blank line or a shallower one."""
    block = []
    for line in lines[start:]:
        if not line.strip() or _indent(line) <= indent:
            break
        block.append(line)
    return block


def _numpy_items(lines: list[str], start: int, indent: int) -> list[tuple[str, list[str]]]:
    """Items of a NumPy section: names at the section's own indent, texts deeper; ends at the next underline."""
    items = []
    for index in range(start, len(lines)):
        line = lines[index]
        underlined = index + 1 < len(lines) and set(lines[index + 1].strip()) == {"-"}
        if underlined or (line.strip() and _indent(line) < indent):
            break
        match = _NUMPY_ITEM.match(line.strip()) if line.strip() and _indent(line) == indent else None
        if match:
            items.append((match["name"], _deeper(lines, index + 1, indent)))
    return items


def _google_items(block: list[str]) -> list[tuple[str, list[str]]]:
    """Items of a Google section: `name (type): text`, continued on deeper lines."""
    items: list[tuple[str, list[str]]] = []
    level = _indent(block[0]) if block else 0
    for line in block:
        match = _GOOGLE_ITEM.match(line.strip()) if _indent(line) == level else None
        if match:
            items.append((match["name"], [match["text"]]))
        elif items and _indent(line) > level:
            items[-1][1].append(line)
    return items
