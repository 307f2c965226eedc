"""Get bytes over https from the hosts of an allow-list, and from no machine that a stranger could not reach himself.

A name is resolved and its addresses are checked at the moment a connection is made, and the connection goes to a
checked address: a name that means another machine a moment later gains nothing. TLS still asks for the name.
"""

import email.utils
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import httpcore
import httpx
import tenacity

from jobs.images.fetch.fetched import Fetched, NotFetched
from jobs.images.fetch.hosts import Hosts
from model.errors import CourierError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Sequence[str]]  # (host, port) -> addresses

PORT: Final = 443
MAX_REDIRECTS: Final = 5
REDIRECTS: Final = (301, 302, 303, 307, 308)
FIRST_WAIT: Final = 0.5  # seconds, doubled each time, with as much again by chance
HEADERS: Final = [("Accept", "image/*,*/*;q=0.5"), ("Accept-Encoding", "identity"), ("User-Agent", "courier")]
# In a network without IPv4 its addresses come in here: https://www.rfc-editor.org/rfc/rfc6052
NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpsConfig:
    """Which hosts may be asked, and how patiently. Each worker process keeps to the bounds by itself."""

    # example.com, or *.example.com for every name below it, on port 443; another port stands behind a colon.
    allowed_hosts: tuple[str, ...] = ()
    per_host: int = 4  # requests at a time
    connect_seconds: float = 10.0
    read_seconds: float = 20.0  # without a byte
    total_seconds: float = 60.0  # for one attempt, its redirects included
    attempts: int = 4
    down_after: int = 12  # attempts in a row without an answer, whatever their URLs: the host is not asked again
    longest_wait: float = 60.0  # seconds between attempts; a server that asks for more is left alone


class _MayPass(NotFetched):
    """A failure that another attempt may not meet; `after` is how many seconds the server asked to wait."""

    def __init__(self, reason: str, sentence: str, after: float = 0.0) -> None:
        super().__init__(reason, sentence)
        self.after = after


def resolve_name(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system resolves it. Raises OSError."""
    return [str(one[4][0]) for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class Https:
    """A client for any number of threads; its connections are its own, `hosts` may be shared by several.

    private_networks: only for tests against a server on this machine.
    """

    def __init__(
        self,
        config: HttpsConfig,
        max_bytes: int,
        *,
        private_networks: bool = False,
        hosts: Hosts | None = None,
        ssl_context: ssl.SSLContext | None = None,
        resolve: Resolve = resolve_name,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.hosts = hosts or Hosts(config.per_host, config.down_after)
        self.config, self.max_bytes, self.sleep = config, max_bytes, sleep
        self.allowed = [_allowed(entry) for entry in config.allowed_hosts]
        self.network = _CheckedNetwork(resolve, private_networks)
        self.pool = httpcore.ConnectionPool(
            ssl_context or httpx.create_ssl_context(),
            max_connections=None,
            keepalive_expiry=30.0,
            network_backend=self.network,
        )

    def get(self, uri: str, known: str = "") -> Fetched | None:
        """The bytes and the ETag, or else the date, of an https:// address. Raises NotFetched.

        known: the ETag or date of an earlier answer; None comes back where the server says that it still stands.
        What may pass (no answer, 429, 5xx) is tried again, later each time and no sooner than the server asks.
        """
        url = self._checked(uri)
        attempts = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.config.attempts),
            wait=self._wait,
            retry=tenacity.retry_if_exception(self._worth_another),
            sleep=self.sleep,
            reraise=True,
        )
        return attempts(self._attempt, url, known)

    def close(self) -> None:
        """Close the connections."""
        self.pool.close()

    # --- what is allowed --------------------------------------------------------------------------------------------

    def _checked(self, uri: str) -> httpx.URL:
        try:
            url = httpx.URL(uri)
        except (httpx.InvalidURL, UnicodeError):
            raise NotFetched("bad_url", "the reference is not a URL") from None
        return self._allowed_only(url, "host_not_allowed")

    def _allowed_only(self, url: httpx.URL, reason: str) -> httpx.URL:
        if url.userinfo:
            raise NotFetched("credentials_in_url", f"references to {url.host} with a user name are not followed")
        if url.scheme != "https" or not self._is_allowed(url):
            raise NotFetched(reason, f"{url.scheme}://{url.netloc.decode('ascii')} is not on the list of allowed hosts")
        return url

    def _is_allowed(self, url: httpx.URL) -> bool:
        host, port = url.raw_host.decode("ascii").removesuffix("."), url.port or PORT
        return any(
            port == allowed_port and (host.endswith(name[1:]) if name.startswith("*.") else host == name)
            for name, allowed_port in self.allowed
        )

    # --- attempts ---------------------------------------------------------------------------------------------------

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        backoff = tenacity.wait_exponential(FIRST_WAIT, self.config.longest_wait / 2)(state)
        wait = backoff + tenacity.wait_random(0, backoff)(state)
        return max(wait, error.after if isinstance(error, _MayPass) else 0.0)

    def _worth_another(self, error: BaseException) -> bool:
        return isinstance(error, _MayPass) and error.after <= self.config.longest_wait

    def _attempt(self, url: httpx.URL, known: str) -> Fetched | None:
        left = self.config.total_seconds
        for _ in range(MAX_REDIRECTS + 1):
            with self.hosts.turn(url.netloc.decode("ascii")):  # waiting here is no fault of the server's
                started = time.monotonic()
                answer = self._ask(url, known, left)
                left -= time.monotonic() - started
            if not isinstance(answer, httpx.URL):
                return answer
            url = self._allowed_only(answer, "redirect_not_allowed")
        raise NotFetched("too_many_redirects", f"{_shown(url)} lies behind more than {MAX_REDIRECTS} redirects")

    def _ask(self, url: httpx.URL, known: str, seconds: float) -> Fetched | httpx.URL | None:
        """One request: the bytes, or where the server sends us instead, or None for no change."""
        before, host = _DEADLINE.set(time.monotonic() + seconds), url.netloc.decode("ascii")
        try:
            headers = HEADERS + _unless(known)
            with self.pool.stream("GET", _target(url), headers=headers, extensions=self._timeouts()) as response:
                self.hosts.answered(host)
                return None if known and response.status == 304 else self._answer(url, response)
        except httpcore.TimeoutException:
            self.hosts.failed(host)
            raise _MayPass("timed_out", f"{_shown(url)} did not answer in time") from None
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            self.hosts.failed(host)
            raise _MayPass("host_unavailable", f"{url.host} gives no answer ({type(error).__name__})") from None
        finally:
            _DEADLINE.reset(before)

    def _timeouts(self) -> dict[str, dict[str, float]]:
        return {"timeout": {"connect": self.config.connect_seconds, "read": self.config.read_seconds, "write": 10.0}}

    def _answer(self, url: httpx.URL, response: httpcore.Response) -> Fetched | httpx.URL:
        headers = httpx.Headers(response.headers)
        if response.status in REDIRECTS and "location" in headers:
            try:
                return url.join(headers["location"])
            except (httpx.InvalidURL, UnicodeError):
                raise NotFetched("bad_url", f"{_shown(url)} redirects to what is not a URL") from None
        if response.status != 200:
            raise _refusal(url, response.status, headers)
        size = headers.get("content-length", "")
        if size.isascii() and size.isdigit() and int(size) > self.max_bytes:
            raise self._too_large(url)
        return Fetched(self._body(url, response.iter_stream()), headers.get("etag") or headers.get("last-modified", ""))

    def _body(self, url: httpx.URL, chunks: Iterable[bytes]) -> bytes:
        data = bytearray()
        for chunk in chunks:
            data += chunk
            if len(data) > self.max_bytes:
                raise self._too_large(url)
        return bytes(data)

    def _too_large(self, url: httpx.URL) -> NotFetched:
        return NotFetched("too_large", f"{_shown(url)} is larger than {self.max_bytes} bytes")


def _allowed(entry: str) -> tuple[str, int]:
    host, _, port = entry.rpartition(":") if entry.rpartition(":")[2].isdecimal() else (entry, "", "")
    try:
        name = httpx.URL(scheme="https", host=host.removeprefix("*.")).raw_host.decode("ascii")
    except (httpx.InvalidURL, UnicodeError):
        name = ""
    if not name or set(name) & set("*/@% "):
        raise CourierError(f"{entry!r} is not a host: write example.com, *.example.com or example.com:8443")
    return ("*." if host.startswith("*.") else "") + name, int(port or PORT)


def _unless(known: str) -> list[tuple[str, str]]:
    """The header that asks for an answer only if it has changed: https://www.rfc-editor.org/rfc/rfc9110#section-13"""
    if not known or not known.isascii():  # HTTP has no other letters, whatever the server sent
        return []
    return [("If-None-Match" if known.startswith(('"', "W/")) else "If-Modified-Since", known)]


def _target(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=b"https", host=url.raw_host, port=url.port, target=url.raw_path)


def _shown(url: httpx.URL) -> str:
    # Without its query: that is where signed addresses keep their secrets.
    return f"https://{url.netloc.decode('ascii')}{url.path}"


def _refusal(url: httpx.URL, status: int, headers: httpx.Headers) -> NotFetched:
    sentence = f"{_shown(url)} is answered with HTTP status {status}"
    if status == 429 or status >= 500:
        reason = "rate_limited" if status == 429 else "server_error"
        return _MayPass(reason, sentence, _seconds(headers.get("retry-after", "")))
    reasons = {401: "access_denied", 403: "access_denied", 404: "not_found", 410: "not_found"}
    return NotFetched(reasons.get(status, "http_error"), sentence)


def _seconds(retry_after: str) -> float:
    """Retry-After in seconds from now: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after. Nonsense is 0."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        moment = email.utils.parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


# --- the network ----------------------------------------------------------------------------------------------------

_DEADLINE: Final = ContextVar("deadline", default=float("inf"))  # of the attempt in this thread, on the monotonic clock


def _in_time(timeout: float | None, late: type[httpcore.TimeoutException]) -> float:
    """The shorter of a time-out and the time that is left: a byte now and then does not make an answer."""
    left = _DEADLINE.get() - time.monotonic()
    if left <= 0:
        raise late("the attempt has taken too long")
    return left if timeout is None else min(timeout, left)


class _CheckedNetwork(httpcore.NetworkBackend):
    """Connects to checked addresses only. https://www.encode.io/httpcore/network-backends/"""

    def __init__(self, resolve: Resolve, private_networks: bool) -> None:
        self.resolve, self.private_networks = resolve, private_networks
        self.sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """A connection to the first address of `host` that takes it. Raises NotFetched if any address is private."""
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in self._addresses(host, port):
            seconds = _in_time(timeout, httpcore.ConnectTimeout)
            try:
                stream = self.sockets.connect_tcp(address, port, seconds, local_address, socket_options)
                return _TimedStream(stream)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    def _addresses(self, host: str, port: int) -> list[str]:
        try:
            addresses = list(self.resolve(host, port))
        except OSError as error:
            raise httpcore.ConnectError(f"{host} cannot be resolved") from error
        except UnicodeError:  # an empty or too long label, which the resolver encodes before it asks
            raise NotFetched("bad_url", f"{host} is not the name of a host") from None
        for address in addresses:
            if not (self.private_networks or is_public(ipaddress.ip_address(address))):
                raise NotFetched("private_address", f"{host} has an address inside a private network")
        return addresses


def is_public(address: Address) -> bool:
    """Whether an address is meant to be reached from anywhere; one that carries an IPv4 address is judged by that."""
    carried = _carried(address)
    if carried is not None:
        return is_public(carried)
    site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    return address.is_global and not (address.is_multicast or address.is_reserved or site_local)


def _carried(address: Address) -> ipaddress.IPv4Address | None:
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


class _TimedStream(httpcore.NetworkStream):
    """A stream whose every wait ends with the attempt's time."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self.stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, _in_time(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, _in_time(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        seconds = _in_time(timeout, httpcore.ConnectTimeout)
        try:
            return _TimedStream(self.stream.start_tls(ssl_context, server_hostname, seconds))
        except httpcore.ConnectError as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise NotFetched("certificate_refused", f"the certificate of {server_hostname} is not valid") from None
            raise

    def get_extra_info(self, info: str) -> object:
        return self.stream.get_extra_info(info)
