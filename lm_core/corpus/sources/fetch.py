"""One request to the web, which goes nowhere but where it may.

Every step of a chain of redirections is judged alike: the scheme, the host, and each address the host's name resolves
to. The connection then goes to the very address that was judged, so that a name cannot point elsewhere a moment later.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, cast
from urllib.parse import SplitResult, quote, urljoin, urlsplit

USER_AGENT = "millrace"
_MAX_REDIRECTIONS = 5
_CHUNK_BYTES = 1 << 16
_REDIRECTIONS, _LATER = {301, 302, 303, 307, 308}, {408, 425, 429, 500, 502, 503, 504}
_SAFE = "/:?#[]@!$&'()*+,;=%~"


class FetchError(Exception):
    """A page that was not fetched.

    Attributes:
        reason: short name of what is wrong.
        for_now: whether it may go better later.
    """

    def __init__(self, reason: str, detail: str, *, for_now: bool = False) -> None:
        super().__init__(detail)
        self.reason = reason
        self.for_now = for_now


@dataclass(frozen=True)
class Limits:
    """What a request may do.

    Attributes:
        hosts: hosts, with those below them, that may be asked.
    """

    hosts: frozenset[str]
    max_bytes: int
    timeout_seconds: float
    allow_http: bool
    allow_private_addresses: bool


@dataclass(frozen=True)
class Answer:
    """Status, headers (names in lower case) and the address that answered in the end."""

    status: int
    headers: Mapping[str, str]
    url: str


def fetch(url: str, limits: Limits, sink: BinaryIO, headers: Mapping[str, str] | None = None) -> Answer:
    """GET a page into `sink`; status 200 or 304.

    Raises:
        FetchError: not allowed, not there, too long, too slow.
    """
    deadline = time.monotonic() + limits.timeout_seconds
    for _ in range(_MAX_REDIRECTIONS + 1):
        parts = _allowed(url, limits)
        try:
            connection, line = _connect(parts, limits, deadline)
            try:
                target = quote(parts._replace(scheme="", netloc="", fragment="").geturl() or "/", safe=_SAFE)
                sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **(headers or {})}
                connection.request("GET", target, headers=sent)
                response = connection.getresponse()
                if response.status in _REDIRECTIONS and (location := response.getheader("Location")):
                    url = _joined(url, location)
                    continue
                return _receive(response, url, limits, sink)
            finally:
                line.hang_up()
        except (OSError, http.client.HTTPException) as error:
            raise FetchError("not_reachable", f"{url}: {type(error).__name__}: {error}"[:300], for_now=True) from None
    raise FetchError("redirections", f"{url}: more than {_MAX_REDIRECTIONS} redirections")


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise FetchError("not_allowed", f"{url[:200]} leads to {location[:100]}: {error}"[:300]) from None


def _receive(response: http.client.HTTPResponse, url: str, limits: Limits, sink: BinaryIO) -> Answer:
    status = response.status
    if status not in (200, 304):
        raise FetchError(f"http_{status}", f"{url}: {status} {response.reason}"[:300], for_now=status in _LATER)
    size = 0
    while part := response.read(_CHUNK_BYTES):
        size += len(part)
        if size > limits.max_bytes:
            raise FetchError("too_long", f"{url}: more than {limits.max_bytes} bytes")
        sink.write(part)
    if response.length:  # what http.client still expects when the other side has hung up
        raise FetchError("cut_short", f"{url}: {response.length} bytes are missing", for_now=True)
    return Answer(status, {name.lower(): value for name, value in response.getheaders()}, url)


def parts_of(url: str) -> SplitResult:
    """The parts of an address, whose host is one that a name server can be asked for.

    Raises:
        ValueError: saying what is wrong; the parsers of addresses raise on brackets, ports and labels that are none.
    """
    parts = urlsplit(url)
    _ = parts.port
    try:
        (parts.hostname or "").rstrip(".").encode("idna")
        url.encode()
    except UnicodeError as error:
        raise ValueError(f"no host can have that name ({error.__cause__ or error})") from None
    return parts


def _allowed(url: str, limits: Limits) -> SplitResult:
    """The parts of an address that may be asked.

    Raises:
        FetchError: saying why not.
    """
    try:
        parts = parts_of(url)
    except ValueError as error:
        raise FetchError("not_allowed", f"{url[:200]}: {error}"[:300]) from None
    host = (parts.hostname or "").rstrip(".")
    if parts.scheme != "https" and not (parts.scheme == "http" and limits.allow_http):
        raise FetchError("not_allowed", f"{url[:200]}: only https is allowed (allow_http allows http)")
    if not host or parts.username is not None:
        raise FetchError("not_allowed", f"{url[:200]}: no host, or a user name in the address")
    if not is_below(host, limits.hosts):
        raise FetchError("not_allowed", f"{url[:200]}: {host} is not among the allowed hosts (allowed_hosts)")
    if parts.port not in (None, 80, 443) and not limits.allow_private_addresses:
        raise FetchError("not_allowed", f"{url[:200]}: port {parts.port} is not one of the web")
    return parts


def is_below(host: str, hosts: frozenset[str]) -> bool:
    """Whether a host is one of these or below one of them."""
    names = host.lower().split(".")
    return any(".".join(names[start:]) in hosts for start in range(len(names)))


def _addresses(host: str, port: int, limits: Limits) -> list[str]:
    """What the name resolves to; refused as a whole when one of them is not on the public internet."""
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not limits.allow_private_addresses:
        for address in found:
            judged = ipaddress.ip_address(address.partition("%")[0])
            judged = getattr(judged, "ipv4_mapped", None) or judged
            if not judged.is_global or judged.is_multicast:
                raise FetchError("not_allowed", f"{host} is at {address}, a private address (allow_private_addresses)")
    return found


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


class _TimedSocket:
    """A connection of which each wait ends at the deadline, however little comes at a time."""

    def __init__(self, plain: socket.socket, deadline: float, url: str) -> None:
        self._plain = plain
        self._deadline = deadline
        self._url = url

    def sendall(self, content: bytes) -> None:
        self._plain.settimeout(_left(self._deadline, self._url))
        self._plain.sendall(content)

    def makefile(self, mode: str) -> BinaryIO:
        """What the headers and the page are read from."""
        return io.BufferedReader(_Received(self._plain, self._deadline, self._url), _CHUNK_BYTES)

    def close(self) -> None:
        """Nothing: http.client closes its side before the page has been read."""

    def hang_up(self) -> None:
        self._plain.close()


class _Received(io.RawIOBase):
    def __init__(self, plain: socket.socket, deadline: float, url: str) -> None:
        self._plain = plain
        self._deadline = deadline
        self._url = url

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._plain.settimeout(_left(self._deadline, self._url))
        try:
            return self._plain.recv_into(buffer)
        except TimeoutError:
            raise _too_slow(self._url) from None


def _left(deadline: float, url: str) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _too_slow(url)
    return left


def _too_slow(url: str) -> FetchError:
    return FetchError("too_slow", f"{url[:200]}: not whole within the time limit (timeout_seconds)", for_now=True)


def _connect(parts: SplitResult, limits: Limits, deadline: float) -> tuple[http.client.HTTPConnection, _TimedSocket]:
    secure = parts.scheme == "https"
    host, url = str(parts.hostname), parts.geturl()
    port = parts.port or (443 if secure else 80)
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(host, port)
    last: OSError | None = None
    for address in _addresses(host, port, limits):
        try:
            plain = socket.create_connection((address, port), timeout=_left(deadline, url))
            plain.settimeout(_left(deadline, url))
            sock = _tls().wrap_socket(plain, server_hostname=host) if secure else plain
            line = _TimedSocket(sock, deadline, url)
            connection.sock = cast(socket.socket, line)
            return connection, line
        except ssl.SSLError as error:
            raise FetchError("not_trusted", f"{host}: {error}"[:300]) from None
        except OSError as error:
            last = error
    raise last or OSError(f"{host} has no address")
