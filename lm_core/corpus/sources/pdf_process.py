"""Reads one PDF and writes one JSON object to stdout; run as a program by `pdf.py`, imports nothing of ours."""

from __future__ import annotations

import json
import re
import sys

_MAX_MEMORY_BYTES = 512_000_000
_DATE = re.compile(r"D:(\d{4})(\d{2})?(\d{2})?")


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))


def _read(path: str, max_bytes: int) -> dict[str, object]:
    import pypdfium2 as pdfium

    try:
        document = pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        encrypted = "assword" in str(error)
        return {"reason": "encrypted" if encrypted else "unreadable_file", "detail": str(error)}
    texts, size = [], 0
    for page in document:
        text = page.get_textpage().get_text_range()
        size += len(text)
        if size > max_bytes:
            return {"reason": "too_long", "detail": f"more than {max_bytes} bytes"}
        texts.append(text)
    # PDFium marks a hyphen at a line's end, where a word goes on, by U+FFFE.
    joined = re.sub("[\ufffe\u0002][ \t]*\r?\n?", "", "\n\n".join(texts))
    stated = document.get_metadata_dict()
    date = _DATE.match(stated.get("CreationDate", ""))
    return {
        "text": joined,
        "num_pages": len(texts),
        "title": stated.get("Title") or None,
        "time": "-".join(part for part in date.groups() if part) if date else None,
    }


def main() -> None:
    """Arguments: the file, the most characters of text."""
    _limit_memory()
    sys.stdout.write(json.dumps(_read(sys.argv[1], int(sys.argv[2]))))


if __name__ == "__main__":
    main()
