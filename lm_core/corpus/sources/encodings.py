"""Bytes to text: what a file says of its encoding is a hint, what its bytes say decides."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

from ftfy import fix_encoding
from ftfy.badness import is_bad

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What charset-normalizer may choose from: encodings that documents are really in, not all that Python has.
_CANDIDATES = [
    "cp1252", "cp1251", "koi8_r", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "cp1250", "cp1253", "cp1254",
    "cp1255", "cp1256",
]  # fmt: skip
_SAMPLE_BYTES = 65_536
# Fewer bytes beyond ASCII say nothing about the encoding; then the most frequent one is taken.
_MIN_EVIDENCE_BYTES = 24
_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_CONTROL_BYTES = [bytes([code]) for code in (*range(9), *range(0x0E, 0x1B), *range(0x1C, 0x20))]


@dataclass(frozen=True)
class Decoded:
    """Text and the encoding its bytes turned out to have."""

    text: str
    encoding: str


def decode(content: bytes, label: str | None = None) -> Decoded:
    """Text of the bytes: byte-order mark, UTF-8, UTF-16 without a mark, the label, then the likeliest old encoding.

    A label (of a page, a header, the configuration) is believed only where the bytes do not contradict it: UTF-8 is
    hardly ever met by chance. A few bytes that are not UTF-8 in a text that otherwise is become U+FFFD.

    Raises:
        ValueError: the bytes are no text.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return Decoded(content.decode(encoding, "replace"), encoding.removesuffix("-sig"))
    if content.count(0) > len(content) // 10:
        return _without_mark(content)
    try:
        return Decoded(content.decode("utf-8"), "utf-8")
    except UnicodeDecodeError:
        pass
    damaged = content.decode("utf-8", "replace")
    num_broken = damaged.count("\ufffd")
    if num_broken * 20 < sum(1 for byte in content[:1_000_000] if byte >= 0xC2):
        return Decoded(damaged, "utf-8, damaged")
    return _labelled(content, label) or _likeliest(content)


def wide_encoding(sample: bytes) -> str | None:
    """UTF-16 or UTF-32 by the first bytes of a stream, in which a newline is more than a byte; None for all others."""
    for mark, encoding in _BYTE_ORDER_MARKS[1:]:
        if sample.startswith(mark):
            return encoding
    if sample.count(0) <= len(sample) // 10:
        return None
    # The end of a sample may cut a character in two, at most into a pair of which one half is here.
    for end in (len(sample) - len(sample) % 2, len(sample) - len(sample) % 2 - 2):
        try:
            return _without_mark(sample[:end]).encoding
        except ValueError:
            continue
    return None


def _without_mark(content: bytes) -> Decoded:
    """UTF-16 shows by zeros in every other place."""
    sample = content[:_SAMPLE_BYTES]
    for place, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros, others = sample[place::2].count(0), sample[1 - place :: 2].count(0)
        if zeros > len(sample) // 5 and others * 10 < zeros:
            try:
                text = content.decode(encoding)
            except UnicodeDecodeError:
                break
            if len(_CONTROL.findall(text[:_SAMPLE_BYTES])) * 50 <= len(text[:_SAMPLE_BYTES]):
                return Decoded(text, encoding)
    raise ValueError(f"no text: {content.count(0)} of {len(content)} bytes are zero")


def _labelled(content: bytes, label: str | None) -> Decoded | None:
    """As the label says, unless it is none of Python's text encodings or the bytes do not fit."""
    if not label:
        return None
    try:
        name = codecs.lookup(label.strip()).name
        # Pages that say ISO-8859-1 mean Windows-1252, whose extra characters the other leaves as controls.
        name = "cp1252" if name == "iso8859-1" else name
        return None if name == "utf-8" else Decoded(content.decode(name), name)
    except (LookupError, UnicodeError, ValueError):
        return None


def _likeliest(content: bytes) -> Decoded:
    num_controls = sum(map(content[:_SAMPLE_BYTES].count, _CONTROL_BYTES))
    if num_controls * 20 > len(content[:_SAMPLE_BYTES]):
        raise ValueError(f"no text: {num_controls} of the first {len(content[:_SAMPLE_BYTES])} bytes are controls")
    high = content[:_SAMPLE_BYTES].translate(None, bytes(range(0x80)))
    best = None
    if len(high) >= _MIN_EVIDENCE_BYTES:
        from charset_normalizer import from_bytes

        best = from_bytes(content[:_SAMPLE_BYTES], cp_isolation=_CANDIDATES, preemptive_behaviour=False).best()
    western = content.decode("cp1252", "replace")
    if best is not None:
        text = content.decode(best.encoding, "replace")
        # Western text often reads the same in its neighbours: then it is called what it is.
        if text != western and text.count("\ufffd") <= len(content) // 10_000:
            return Decoded(text, best.encoding)
    if "\ufffd" in western:
        return Decoded(content.decode("latin-1"), "latin-1")
    return Decoded(western, "cp1252")


def mend(text: str) -> tuple[str, int]:
    """Undo text that was decoded wrongly before it came here ("cafÃ©"), line by line.

    Returns:
        The text and the number of lines that were mended.
    """
    if text.isascii() or not is_bad(text):
        return text, 0
    lines = text.split("\n")
    mended = 0
    for number, line in enumerate(lines):
        if not line.isascii() and is_bad(line):
            fixed = fix_encoding(line)
            if fixed != line:
                lines[number], mended = fixed, mended + 1
    return "\n".join(lines), mended
