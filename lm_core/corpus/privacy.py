"""Personal data and secrets in a text: found by form, proven by checksum where the form has one.

Cleaning writes where they stand (never what they are); the text is redacted where it is read for learning
(`lm_core.corpus.ledger.kept_documents`), so a decision can be reviewed and undone like any other. What cannot belong to
a person is left: addresses of private networks, of documentation, of `git@` remotes.
"""

# mypy: allow-untyped-defs
# Numba infers the types of a kernel's arguments; its docstring names them.

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit

from lm_core.corpus.dedup.sketch import text_buffers

PLACEHOLDERS = {
    "key": "[KEY]",
    "email": "[EMAIL]",
    "iban": "[IBAN]",
    "card": "[CARD]",
    "ip": "[IP_ADDRESS]",
    "phone": "[PHONE]",
}

# Formats that the issuers document; a private key counts with all its lines.
_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[\s\S]{0,10000}?-----END [A-Z ]{0,20}PRIVATE KEY-----"
    r"|(?<![\w-])(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22,255}"
    r"|glpat-[A-Za-z0-9_-]{20}|xox[abprs]-[A-Za-z0-9-]{20,200}|AIza[0-9A-Za-z_-]{35}|hf_[A-Za-z]{34}"
    r"|(?:sk|rk)_live_[0-9A-Za-z]{24,99}|sk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,200}|npm_[A-Za-z0-9]{36}"
    r"|eyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{20,1000})(?![\w-])"
)
# Around them only ASCII counts as part of a word: Chinese puts no blank between an address and its neighbours.
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9_.+%-])[A-Za-z0-9_][A-Za-z0-9._%+-]{0,63}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}"
    r"[A-Za-z]{2,24}(?![A-Za-z0-9_-])"
)
_IBAN = re.compile(
    r"(?<!\w)(?:[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?"
    r"|[A-Za-z]{2}\d{2}(?:[ -]?\d{4}){2,7}(?:[ -]?\d{1,3})?)(?!\w)"
)
_CARD = re.compile(
    r"(?<![\w.-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,4}(?:\1\d{1,3})?|\d{4}([ -])\d{6}\2\d{4,5})(?![\w-]|\.\d)"
)
_IP = re.compile(
    r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)|(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?![\w:])"
)
_PHONE = re.compile(
    r"(?<![A-Za-z0-9_.+/=-])(?:(?:\+|00)\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
    r"|(?:1[ .-])?\(\d{3}\) ?\d{3}[ .-]\d{4}|(?:1[.-])?[2-9]\d{2}[.-]\d{3}[.-]\d{4}|0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,5}"
    r"|\(0\d{1,4}\) ?\d{3,8}(?:[ -]\d{2,5})?|1[3-9]\d{9})(?![A-Za-z0-9_-]|\.\d)"
)
# Eleven digits in a row are a number of a mobile phone in China where something says so, else any number.
_BARE = re.compile(r"1\d{10}")
_PHONE_BEFORE = re.compile(
    r"(?:tel|phone|mobile|cell|call|fax|whatsapp|手机|手機|电话|電話|联系|微信)\W{0,4}$", re.IGNORECASE
)
_NUMBER_BEFORE = re.compile(r"(?:\bv|version|release|section|chapter|step|§|第|[<>~^]=?|==)[ :]{0,2}$", re.IGNORECASE)
_NO_PERSON = re.compile(
    r"git@|noreply@|no-reply@|.*@(?:[\w-]+\.)*(?:example|invalid|test|localhost)(?:\.\w+)?$", re.IGNORECASE
)
# First digits of card numbers and the lengths their networks issue.
_CARD_FORMS = (
    (re.compile(r"4"), (13, 16, 19)),
    (re.compile(r"5[1-5]|2(?:2[2-9]|[3-6]|7[01]|720)"), (16,)),
    (re.compile(r"3[47]"), (15,)),
    (re.compile(r"6(?:011|5|4[4-9])|35(?:2[89]|[3-8])"), (16, 19)),
    (re.compile(r"3(?:0[0-5]|[689])"), (14,)),
)

# First four bytes of words that could be keys ("eyJ", "hf_" and "sk-" count whatever follows them).
_KEY_STARTS = ("----", "AKIA", "ASIA", "AIza", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "gith", "glpa", "xoxa", "xoxb",
               "xoxp", "xoxr", "xoxs", "sk_l", "rk_l", "npm_", "hf_\0", "sk-\0", "eyJ\0")  # fmt: skip
_AT, _COLON, _DASH, _B = ord("@"), ord(":"), ord("-"), ord("B")
_MIN_DIGITS = 7
_KEY_BYTES = 11_000
# Twelve characters, which is as far as the patterns look back.
_BEFORE_BYTES = 48


class Redaction(NamedTuple):
    """Where something stands: characters start .. start + length of the text."""

    kind: str
    start: int
    length: int


def _luhn(digits: str) -> bool:
    """The checksum of card numbers (ISO/IEC 7812-1, annex B)."""
    doubled = [int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(digits))]
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0


def _is_card(found: str) -> bool:
    digits = re.sub(r"[ -]", "", found)
    issued = any(form.match(digits) and len(digits) in lengths for form, lengths in _CARD_FORMS)
    return issued and len(set(digits)) > 1 and _luhn(digits)


def _is_iban(found: str) -> bool:
    """The checksum of ISO 13616: the number, country and check digits moved to its end, is 1 modulo 97."""
    compact = found.replace(" ", "").replace("-", "")
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(sign, 36)) for sign in compact[4:] + compact[:4])) % 97 == 1


def _is_public_address(found: str) -> bool:
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return False
    # Four short numbers are the number of a section or of a version.
    return address.is_global and not address.is_multicast and (address.version == 6 or len(found) >= 10)


def _is_phone(found: str) -> bool:
    digits = re.sub(r"\D", "", found)
    return 8 <= len(digits) <= 15 and len(set(digits)) > 2


_FORMS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "key": (_KEY, lambda found: True),
    "email": (_EMAIL, lambda found: not _NO_PERSON.match(found)),
    "iban": (_IBAN, _is_iban),
    "card": (_CARD, _is_card),
    "ip": (_IP, _is_public_address),
    "phone": (_PHONE, _is_phone),
}


# Without one of these a text holds nothing of the kind: a search for a substring is far quicker than a pattern.
_SIGNS = {"email": ("@",), "ip": (".", ":"), "key": tuple(start.rstrip("\0") for start in _KEY_STARTS)}


def find_personal(text: str, kinds: Collection[str]) -> list[Redaction]:
    """Personal data and secrets of some kinds in a text, in their order and without overlaps."""
    found: list[Redaction] = []
    for kind, (pattern, proven) in _FORMS.items():
        if kind not in kinds or not any(sign in text for sign in _SIGNS.get(kind, ("",))):
            continue
        for match in pattern.finditer(text):
            start, end = match.span()
            if not proven(match.group()) or any(r.start < end and start < r.start + r.length for r in found):
                continue
            if kind == "ip" and _NUMBER_BEFORE.search(text, max(0, start - 12), start):
                continue
            bare = kind == "phone" and _BARE.fullmatch(match.group())
            if bare and not _PHONE_BEFORE.search(text, max(0, start - 12), start):
                continue
            found.append(Redaction(kind, start, end - start))
    return sorted(found, key=lambda redaction: redaction.start)


@njit(nogil=True, cache=True, inline="always")
def _is_word(byte):
    return 48 <= byte <= 57 or 65 <= byte <= 90 or 97 <= byte <= 122 or byte == 95 or byte >= 128


@njit(nogil=True, cache=True)
def _starts_a_key(data, position, end, starts):
    if end - position < 8 or (position > 0 and (_is_word(data[position - 1]) or data[position - 1] == _DASH)):
        return False
    value = np.uint32(0)
    for index in range(4):
        value |= np.uint32(data[position + index]) << np.uint32(8 * index)
    for start in starts:
        if value == starts[0] and data[position + 5] != _B:
            continue  # a rule of dashes begins no private key
        if start == value or (start < np.uint32(1 << 24) and start == value & np.uint32(0xFFFFFF)):
            return True
    return False


@njit(nogil=True, cache=True)
def _windows(offsets, data, starts, out):
    """Stretches of bytes (row, first, last) that could hold something; returns their number, or -1 without room."""
    count = 0
    for row in range(len(offsets) - 1):
        begin, end = offsets[row], offsets[row + 1]
        digits, colons, run = 0, 0, begin
        for position in range(begin, end + 1):
            byte = data[position] if position < end else np.uint8(0)
            is_digit = 48 <= byte <= 57
            hexadecimal = 65 <= byte <= 70 or 97 <= byte <= 102 or byte == _COLON
            if is_digit or hexadecimal or 65 <= byte <= 90 or 40 <= byte <= 47 or byte == 32:
                digits += 1 if is_digit else 0
                colons += 1 if byte == _COLON else 0
                first, last = begin, begin
                if _starts_a_key(data, position, end, starts):
                    first, last = position, position + _KEY_BYTES
            else:
                first, last = (run, position) if digits >= _MIN_DIGITS or colons > 2 else (begin, begin)
                digits = colons = 0
                run = position + 1
                if byte == _AT:
                    first, last = min(first if last > first else position, position - 68), position + 300
                elif position < end and last == begin and _starts_a_key(data, position, end, starts):
                    first, last = position, position + _KEY_BYTES
            if last <= first:
                continue
            first, last = max(begin, first - _BEFORE_BYTES), min(end, last + 4)
            if count and out[count - 1, 0] == row and first <= out[count - 1, 2]:
                out[count - 1, 1] = min(out[count - 1, 1], first)
                out[count - 1, 2] = max(out[count - 1, 2], last)
                continue
            if count == len(out):
                return -1
            out[count] = row, first, last
            count += 1
    return count


def find_in_texts(texts: pa.Array, kinds: Collection[str]) -> Iterator[tuple[int, Redaction]]:
    """Everything of these kinds in a string array, as (row, place) in order.

    A compiled pass marks the stretches with an @, many digits, colons or the beginning of a key; only these meet the
    patterns. A stretch reaches far enough around to hold whatever the patterns could match.
    """
    if not kinds or not len(texts):
        return
    offsets, data = text_buffers(texts)
    starts = np.frombuffer("".join(_KEY_STARTS).encode(), np.uint32)
    windows = np.empty((1024, 3), np.int64)
    while (count := _windows(offsets, data, starts, windows)) < 0:
        windows = np.empty((4 * len(windows), 3), np.int64)
    content = memoryview(data)  # type: ignore[arg-type]
    counted_row, counted_to, before = -1, 0, 0
    for row, first, last in windows[:count].tolist():
        while data[first] & 0xC0 == 0x80:
            first -= 1
        while last < offsets[row + 1] and data[last] & 0xC0 == 0x80:
            last += 1
        found = find_personal(str(content[first:last], "utf-8"), kinds)
        if found:
            if row != counted_row or first < counted_to:
                counted_row, counted_to, before = row, int(offsets[row]), 0
            before += len(str(content[counted_to:first], "utf-8"))
            counted_to = first
            for kind, start, length in found:
                yield row, Redaction(kind, before + start, length)


def redacted(text: str, redactions: Sequence[Redaction]) -> str:
    """The text with a placeholder of its kind in the place of each redaction (in their order)."""
    parts, position = [], 0
    for kind, start, length in redactions:
        # Lines and passages that deduplication cuts leave nothing behind.
        parts += [text[position:start], PLACEHOLDERS.get(kind, "")]
        position = start + length
    return "".join([*parts, text[position:]])
