"""Pages as they were fetched, kept in the workspace: bytes, checksum, and what asks whether they have changed."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from lm_core.corpus.sources.fetch import FetchError, Limits, fetch

_FAILED_FOR_SECONDS = 600
_MAX_PAUSE_SECONDS = 30


@dataclass(frozen=True)
class Stored:
    """A page, or that there is none.

    Attributes:
        sha256: of the bytes; None when the page was not fetched.
        reason: why not, with `detail`.
        checked: when it was last asked for, seconds since 1970.
    """

    url: str
    final_url: str
    sha256: str | None
    content_type: str = ""
    etag: str | None = None
    last_modified: str | None = None
    reason: str | None = None
    detail: str | None = None
    checked: float = 0.0
    for_now: bool = False

    @property
    def state(self) -> str:
        """What identifies the content."""
        return self.sha256 or f"{self.reason}"


class WebStore:
    """Fetches pages through a folder of what was fetched before.

    Args:
        wait_turn: called with a host before each request to it.
    """

    def __init__(
        self,
        folder: Path,
        limits: Limits,
        *,
        recheck_seconds: float,
        num_retries: int,
        wait_turn: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._limits = limits
        self._recheck_seconds = recheck_seconds
        self._num_retries = num_retries
        self._wait_turn = wait_turn
        folder.mkdir(parents=True, exist_ok=True)

    def body(self, stored: Stored) -> Path:
        """The file with the bytes of a page."""
        return self._folder / f"{_name(stored.url)}.body"

    def get(self, url: str, host: str) -> Stored:
        """The page as it is now; not asked for when it was asked for a moment ago."""
        old = self._load(url)
        now = time.time()
        if old:
            fresh = _FAILED_FOR_SECONDS if old.for_now else self._recheck_seconds
            if 0 <= now - old.checked < fresh:
                return old
        try:
            new = self._fetch(url, host, old, now)
        except FetchError as error:
            if error.for_now and old and old.sha256:
                return old  # a page that does not answer today is as it was
            new = Stored(url, url, None, reason=error.reason, detail=str(error), checked=now, for_now=error.for_now)
        self._save(new)
        return new

    def _fetch(self, url: str, host: str, old: Stored | None, now: float) -> Stored:
        asked = {}
        if old and old.sha256:
            asked = {"If-None-Match": old.etag, "If-Modified-Since": old.last_modified}
        headers = {name: value for name, value in asked.items() if value}
        draft = self._folder / f"{_name(url)}.{os.getpid()}.{threading.get_ident()}"
        for attempt in range(self._num_retries + 1):
            self._wait_turn(host)
            try:
                with open(draft, "wb") as sink:
                    answer = fetch(url, self._limits, sink, headers)
                break
            except FetchError as error:
                if not error.for_now or attempt == self._num_retries:
                    draft.unlink(missing_ok=True)
                    raise
                time.sleep(min(2**attempt, _MAX_PAUSE_SECONDS))
        if answer.status == 304 and old:
            draft.unlink()
            return Stored(**{**asdict(old), "checked": now})
        with open(draft, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        draft.replace(self._folder / f"{_name(url)}.body")
        return Stored(
            url,
            answer.url,
            digest,
            answer.headers.get("content-type", ""),
            answer.headers.get("etag"),
            answer.headers.get("last-modified"),
            checked=now,
        )

    def _load(self, url: str) -> Stored | None:
        """What is known of a page, if its bytes are still those that were fetched."""
        try:
            stored = Stored(**json.loads((self._folder / f"{_name(url)}.json").read_bytes()))
            if stored.sha256:
                with open(self.body(stored), "rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() != stored.sha256:
                        return None
            return stored
        except (OSError, ValueError, TypeError):
            return None

    def _save(self, stored: Stored) -> None:
        path = self._folder / f"{_name(stored.url)}.json"
        draft = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        draft.write_text(json.dumps(asdict(stored)))
        draft.replace(path)


def _name(url: str) -> str:
    return hashlib.sha256(url.encode("utf-8", "replace")).hexdigest()[:40]


class Turns:
    """Lets each host be asked once in so many seconds, however many threads ask."""

    def __init__(self, delay_seconds: float) -> None:
        self._delay = delay_seconds
        self._next: dict[str, float] = {}
        self._lock = threading.Lock()

    def wait(self, host: str) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next.get(host, 0.0))
            self._next[host] = turn + self._delay
        with suppress(ValueError):
            time.sleep(turn - now)
