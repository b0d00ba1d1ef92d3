"""A hub of one data set on this machine, as far as its loader asks; run as a program it reads from it and prints JSON.

    python -m tests.corpus.small_hub FOLDER

A program of its own, for the loader reads the address of the hub when it is imported.
"""

import json
import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAME = "org/set"


class Hub(ThreadingHTTPServer):
    """Serves the rows of the commit that `main` points to."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits, self.main = {}, ""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def push(self, commit, rows):
        self.commits[commit] = "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()
        self.main = commit


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        commit = next((name for name in self.server.commits if name in path), self.server.main)
        rows = self.server.commits[commit]
        if re.fullmatch(rf"/api/datasets/{NAME}(/revision/\w+)?", path):
            siblings = [{"rfilename": "rows.jsonl"}]
            self._answer(json.dumps({"id": NAME, "sha": commit, "siblings": siblings, "tags": []}).encode(), commit)
        elif f"/api/datasets/{NAME}/tree/" in path and not path.endswith("/data"):
            self._answer(
                json.dumps([{"type": "file", "path": "rows.jsonl", "size": len(rows), "oid": commit}]).encode(), commit
            )
        elif path.endswith("/rows.jsonl"):
            self._answer(rows, commit)
        else:
            self._answer(b"{}", commit, 404)

    do_HEAD = do_GET

    def _answer(self, content, commit, status=200):
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        headers = {"Content-Type": "application/json", "X-Repo-Commit": commit, "ETag": f'"{commit}"'}
        if asked and status == 200:
            first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        if status == 404:
            headers["X-Error-Code"] = "EntryNotFound"
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


def main(folder: Path) -> None:
    """Read, read again, push a commit and read, close the hub and look what it is known as."""
    hub = Hub()
    os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(folder / "home")}
    os.environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
    from lm_core.corpus.config import HubDataset
    from lm_core.corpus.sources.hub import digests, read
    from lm_core.corpus.sources.reuse import ReadBefore
    from lm_core.corpus.text import Document
    from lm_core.runtime import Runtime

    runtime, config = Runtime(workspace=folder), HubDataset(name=NAME)

    def texts():
        with ReadBefore(folder / "pack") as before:
            found = [item.text for item in read(config, runtime, before) if isinstance(item, Document)]
        return found, before.num_reused

    hub.push("a" * 40, ["one", "two"])
    told = {"first": texts(), "again": texts()}
    hub.push("b" * 40, ["one", "two", "three"])
    told["moved"] = texts()
    told["pinned"] = digests(HubDataset(name=NAME, revision="a" * 40), runtime)
    hub.shutdown()
    hub.server_close()
    told["closed"] = digests(config, runtime)
    sys.stdout.write("\n" + json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
