"""PDF: the text of all pages as one document, read by PDFium in a process of its own.

A PDF is a program of sorts, and PDFium is C++: what crashes, hangs or fills the memory there costs that one file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from lm_core.corpus.config import LocalFiles
from lm_core.corpus.sources.formats import missing_extra
from lm_core.corpus.sources.found import Origin, found
from lm_core.corpus.sources.local_files import LocalFile
from lm_core.corpus.sources.streams import BROKEN_STREAM, BombError, on_disk
from lm_core.corpus.text import Item, Rejected, Tally

_READER = Path(__file__).with_name("pdf_process.py")
_TIMEOUT_SECONDS = 120


def read(file: LocalFile, config: LocalFiles) -> Iterator[Item]:
    """The file as one document."""
    if find_spec("pypdfium2") is None:
        raise missing_extra("PDF", ImportError(name="pypdfium2"))
    try:
        if file.compression or file.member:
            with file.open() as stream, on_disk(stream, ".pdf") as path:
                answer = _ask(path, config.max_document_bytes)
        else:
            answer = _ask(file.path, config.max_document_bytes)
    except BROKEN_STREAM as error:
        reason = "bomb" if isinstance(error, BombError) else "unreadable_file"
        answer = {"reason": reason, "detail": f"{type(error).__name__}: {error}"}
    if "reason" in answer:
        yield Rejected(file.source, file.name, answer["reason"], answer["detail"][:300])
        return
    yield Tally("book_pages", "pdf", answer["num_pages"])
    title = answer["title"] or file.name.rpartition("/")[2]
    origin = Origin(file.source, file.name, title=title, time=answer["time"])
    yield from found(answer["text"], origin, max_bytes=config.max_document_bytes)


def _ask(path: Path, max_bytes: int) -> dict:
    command = [sys.executable, "-I", str(_READER), str(path), str(max_bytes)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"reason": "too_slow", "detail": f"more than {_TIMEOUT_SECONDS} seconds"}
    if done.returncode != 0:
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        ended = f"the reader ended with {done.returncode}, perhaps for want of memory: a file may take 512 MB"
        return {"reason": "unreadable_file", "detail": last or ended}
    return dict(json.loads(done.stdout))
