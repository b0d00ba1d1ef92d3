"""A folder of what people and programs really leave behind: broken, mislabelled, hostile, and good files between."""

import bz2
import gzip
import io
import json
import os
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

NUM_GOOD = 300


def good_text(number: int) -> str:
    """One of the good documents; no two are alike."""
    names = " ".join(f"word{(number * 31 + place * place * 17) % 997}" for place in range(60))
    return f"Document number {number} tells of the town: {names}."


def _warc(number: int, length: int | None = None) -> bytes:
    page = (
        b"<html><body><p>Page %d of the archive says enough words to make a paragraph of text.</p></body></html>"
        % number
    )
    content = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + page
    stated = len(content) if length is None else length
    head = b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: https://a.org/%d\r\nContent-Length: %d\r\n\r\n"
    return head % (number, stated) + content + b"\r\n\r\n"


def _zip(members: list[tuple[str, bytes]]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return packed.getvalue()


def _contents() -> dict[str, bytes]:
    lines = "\n".join(json.dumps({"id": f"g{n}", "text": good_text(n), "source": "good"}) for n in range(NUM_GOOD))
    bomb = b"0" * 80_000_000
    laugh = b"".join(b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9))
    named = b"the text of a file whose name means something elsewhere, long enough to be kept, number %d"
    odd = [
        'it\'s "so".txt',
        "glob*?[a].txt",
        "a..b.txt",
        "new\nline.txt",
        "$(touch pwned).txt",
        "-rf.txt",
        "x" * 240 + ".txt",
    ]
    return {name: named % number for number, name in enumerate(odd)} | {
        "good.jsonl": lines.encode(),
        "cut.jsonl.gz": gzip.compress(lines.replace('"g', '"cut').encode())[:2000],
        "crc.txt.gz": gzip.compress(b"the sum at the end is wrong")[:-8] + b"\0" * 8,
        "label.html": "<meta charset='latin-1'><p>Grüße aus Köln und aus Übersee an alle.</p>".encode(),
        "utf16.csv": "id,text\n1,Grüße an alle in der Stadt\n".encode("utf-16-le"),
        "nul.txt": b"a text with a NUL\0 in the middle of it and some more words",
        "zeros.txt": b"\0" * 100_000,
        "surrogates.jsonl": b'{"text": "\\ud800 a lone surrogate"}\n{"id": "\\ud800", "text": "as its key"}\n',
        "surrogates.csv": b"id,text\n1,\xed\xa0\x80 lone\n\xff\xfe,bad key\n",
        "unclosed.csv": b'id,text\n1,"never closed\n2,two is fine\n3,"three, fine"\n',
        "quotes.csv": b"id,text\n" + b'"' * 9_001 + b"\n1,after the quotes\n",
        "arrays.jsonl": b'[{"text": "a"}]\n"text"\nNaN\n{"text": ["a list"]}\n{"text": "fine"}\n{"a": 1}{"a": 2}\n',
        "deep.jsonl": b'{"text":' + b"[" * 99_999 + b'}\n{"id": ' + b"9" * 5_000 + b"}\n",
        "bomb.jsonl.gz": gzip.compress(bomb),
        "bomb.txt.bz2": bz2.compress(bomb),
        "bomb.zip": _zip([("bomb.txt", bomb)]),
        "nest.zip": _zip([("in.zip", _zip([("a.txt", b"deep")])), ("../../up.txt", b"up"), ("/abs.txt", b"absolute")]),
        "fake.parquet": b"PAR1" + b"\xff" * 500 + b"PAR1",
        "fake.epub": b"PK\3\4" + b"\0" * 100,
        "fake.pdf": b"%PDF-1.7\n\xff\xff",
        "fake.warc": b"nothing of a warc\n" * 100,
        "laughs.rss": b'<!DOCTYPE l [<!ENTITY a "lol">' + laugh + b"]><rss><channel><title>&j;</title></channel></rss>",
        "secrets.atom": b'<!DOCTYPE f [<!ENTITY x SYSTEM "file:///etc/passwd">]><feed><entry><content>&x;</content></entry></feed>',
        "lengths.warc": _warc(1) + _warc(2, 7) + _warc(3) + _warc(4, 10**12) + _warc(5, -1) + _warc(6),
        "script.html": b"<script>alert(1)</script><p>the text of a page <img src=x onerror=alert(1)> with a script</p>",
        "columns.csv": b"a,b\n1,2\n",
        **{f"empty.{name}": b"" for name in ("txt", "jsonl", "csv", "parquet", "pdf", "zip", "epub", "rss", "warc")},
    }  # fmt: skip


def write_nasty_files(folder: Path) -> None:
    """Write them all."""
    folder.mkdir(parents=True)
    for name, content in _contents().items():
        (folder / name).write_bytes(content)
    Path(os.fsdecode(os.fsencode(folder) + b"/latin\xe9\xff.txt")).write_bytes(b"a file whose name is not UTF-8")
    pq.write_table(
        pa.table({"text": pa.array([b"bytes for text", b"\0\1" * 99], pa.binary())}), folder / "bytes.parquet"
    )
    (folder / "circle").symlink_to(folder)
    (folder / "broken.txt").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.txt")
