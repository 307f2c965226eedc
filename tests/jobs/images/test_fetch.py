"""References are followed to their bytes, and to no place where they must not lead; https against a real server."""

import itertools
import os
import re
import socket
import ssl
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import fsspec
import httpcore
import pytest
import trustme
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry as fsspec_drivers

from jobs.images.fetch import https
from jobs.images.fetch import references as fetching
from jobs.images.fetch.hosts import Hosts
from jobs.images.fetch.references import Fetched, Fetcher, HttpsConfig, NotFetched
from jobs.rules.items import RETRYABLE, STATUS_OF
from model.errors import CourierError


def reason_of(fetcher, uri):
    with pytest.raises(NotFetched) as caught:
        fetcher.fetch(uri)
    assert "\n" not in str(caught.value)
    assert caught.value.reason in STATUS_OF
    return caught.value.reason


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_path_and_its_file_uri_give_the_same_bytes_and_fingerprint(tmp_path):
    (tmp_path / "A b%.JPG").write_bytes(b"0123456789")
    fetcher = Fetcher(tmp_path, 100)
    absolute = (tmp_path / "A b%.JPG").as_uri()
    for uri in ("A b%.JPG", absolute, "FILE" + absolute.removeprefix("file")):
        assert fetcher.fetch(uri) == Fetched(b"0123456789", fetcher.fingerprint("A b%.JPG"))


def test_a_file_is_read_again_only_if_it_has_changed(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    fetcher = Fetcher(tmp_path, 100)
    known = fetcher.fetch("a").fingerprint
    assert fetcher.fetch_if_changed("a", known) is None
    (tmp_path / "a").write_bytes(b"three")
    assert fetcher.fetch_if_changed("a", known) == fetcher.fetch("a")
    assert fetcher.fetch("a").data == b"three"


def test_one_byte_more_than_the_most_is_read_and_no_further(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    assert Fetcher(tmp_path, 4).fetch("a").data == b"01234"


def test_a_fingerprint_changes_with_the_bytes_even_where_size_and_date_are_kept(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    fetcher = Fetcher(tmp_path, 100)
    before, stat = fetcher.fingerprint("a"), path.stat()
    assert fetcher.fingerprint("a") == before
    while path.stat().st_ctime_ns == stat.st_ctime_ns:  # a file system may keep time in ticks
        path.write_bytes(b"two")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert fetcher.fingerprint("a") != before


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        (None, "no_reference"),
        ("gone.jpg", "not_found"),
        ("file.txt/below", "not_found"),
        ("x" * 300, "unreadable"),
        ("null\0byte", "unreadable"),
        ("../outside", "outside_folder"),
        ("/etc/hostname", "outside_folder"),
        ("folder", "not_a_file"),
        ("file://elsewhere/a.jpg", "scheme_not_allowed"),
        ("http://example.org/a.jpg", "scheme_not_allowed"),
        ("ftp://example.org/a.jpg", "scheme_not_allowed"),
        ("s3://user:secret@bucket/a.jpg", "credentials_in_url"),
        ("https://example.org/a.jpg", "host_not_allowed"),
    ],
)
def test_what_gives_no_bytes_says_why_and_a_look_says_the_same(tmp_path, uri, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").write_bytes(b"")
    fetcher = Fetcher(tmp_path, 100)
    assert reason_of(fetcher, uri) == reason
    if uri is None or not uri.startswith("https"):
        with pytest.raises(NotFetched) as caught:
            fetcher.fingerprint(uri)
        assert caught.value.reason == reason


def test_a_link_that_the_owner_of_the_folder_made_is_followed(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "a.png").write_bytes(b"1")
    (tmp_path / "raw" / "a.png").symlink_to(tmp_path / "a.png")
    assert Fetcher(tmp_path / "raw", 4).fetch("a.png").data == b"1"


def test_every_reason_in_the_source_has_a_status_and_what_may_pass_is_among_what_may_be_retried():
    source = "".join(Path(module.__file__).read_text() for module in (fetching, https))
    reasons = set(re.findall(r'(?:NotFetched|_MayPass)\("(\w+)"', source))
    assert {"not_found", "timed_out", "private_address"} <= reasons <= set(STATUS_OF)
    assert (
        {"timed_out", "host_unavailable", "server_error", "rate_limited", "unreadable"} <= RETRYABLE <= set(STATUS_OF)
    )
    assert {"broken", "placeholder", "ok"}.isdisjoint(STATUS_OF[reason] for reason in RETRYABLE)


# --- object stores --------------------------------------------------------------------------------------------------


class Bucket(MemoryFileSystem):
    """An object store in memory, in the place of gs://."""

    protocol = "gs"
    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("gs://").lstrip("/")


def test_an_object_store_is_read_through_fsspec(monkeypatch, tmp_path):
    monkeypatch.setitem(fsspec_drivers, "gs", Bucket)
    with fsspec.open("gs://shop/a.jpg", "wb") as stream:
        stream.write(b"0123456789")
    whole = Fetcher(tmp_path, 100)
    assert whole.fetch("gs://shop/a.jpg").data == b"0123456789"
    assert Fetcher(tmp_path, 4).fetch("gs://shop/a.jpg").data == b"01234"
    assert reason_of(whole, "gs://shop/b.jpg") == "not_found"
    before = whole.fingerprint("gs://shop/a.jpg")
    assert whole.fetch("gs://shop/a.jpg").fingerprint == before
    with fsspec.open("gs://shop/a.jpg", "wb") as stream:
        stream.write(b"9876543210")
    assert whole.fingerprint("gs://shop/a.jpg") != before


def test_a_store_whose_driver_is_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)  # importing it fails, installed or not
    assert reason_of(Fetcher(tmp_path, 4), "s3://shop/a.jpg") == "scheme_unavailable"


# --- https ----------------------------------------------------------------------------------------------------------


class Server:
    """An https server on loopback that answers what a test tells it to, and counts."""

    def __init__(self, authority):
        self.answers = {}  # path -> answers in turn, the last one for ever: (status, headers, body) or a function
        self.asked, self.names, self.sent = [], [], 0
        self.active = self.most_active = 0
        self.crowd = threading.Condition()
        self.connections = 0
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("img.test", "other.test").configure_cert(tls)
        tls.sni_callback = lambda _socket, name, _context: self.names.append(name)
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                server.connections += 1
                super().setup()

            def do_GET(self):
                server.asked.append((self.headers["Host"], self.path))
                waiting = server.answers[self.path]
                answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
                if callable(answer):
                    answer(self)
                    return
                status, headers, body = answer
                self.send_response(status)
                for name, value in {"Content-Length": len(body), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        class Threads(ThreadingHTTPServer):
            daemon_threads = True

            def finish_request(self, request, client_address):
                with tls.wrap_socket(request, server_side=True) as wrapped:
                    super().finish_request(wrapped, client_address)

            def handle_error(self, *_):
                pass  # a client that goes away in the middle is what some tests are about

        self.http = Threads(("127.0.0.1", 0), Handler)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, path, host="img.test"):
        return f"https://{host}:{self.port}{path}"

    def asks(self):
        return [path for _, path in self.asked]


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def server(authority):
    made = Server(authority)
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def fetcher_of(authority, server, tmp_path):
    """A fetcher that may ask the server, under both its names; its sleeps are noted in `slept` and not slept."""
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    made = []

    def make(max_bytes=1000, resolve=lambda _host, _port: ["127.0.0.1"], private_networks=True, hosts=None, **options):
        options.setdefault("allowed_hosts", (f"img.test:{server.port}", f"*.test:{server.port}"))
        slept = []
        fetcher = Fetcher(
            tmp_path,
            max_bytes,
            HttpsConfig(**options),
            hosts=hosts,
            private_networks=private_networks,
            ssl_context=trust,
            resolve=resolve,
            sleep=slept.append,
        )
        fetcher.slept = slept
        made.append(fetcher)
        return fetcher

    yield make
    for fetcher in made:
        fetcher.close()


OK = (200, {}, b"bytes")


@pytest.mark.parametrize(
    ("headers", "fingerprint"),
    [
        ({"ETag": '"v1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, '"v1"'),
        ({"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, "Mon, 01 Jan 2024 00:00:00 GMT"),
        ({"Content-Type": "text/html"}, ""),
    ],
)
def test_an_answer_is_its_bytes_and_its_tag_or_date(server, fetcher_of, headers, fingerprint):
    server.answers["/a.JPG?size=2"] = [(200, headers, b"bytes")]
    fetcher = fetcher_of()
    assert fetcher.fetch(server.url("/a.JPG?size=2#part")) == Fetched(b"bytes", fingerprint)
    assert fetcher.fingerprint(server.url("/a.JPG")) is None
    assert server.asked == [(f"img.test:{server.port}", "/a.JPG?size=2")]


@pytest.mark.parametrize(
    ("known", "header"),
    [
        ('"v1"', "If-None-Match"),
        ('W/"v1"', "If-None-Match"),
        ("Mon, 01 Jan 2024 00:00:00 GMT", "If-Modified-Since"),
    ],
)
def test_a_server_that_says_nothing_changed_sends_no_bytes(server, fetcher_of, known, header):
    def unless(handler):
        handler.send_response(304 if handler.headers[header] == known else 200)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.answers |= {"/moved": [to("/a")], "/a": [unless]}
    fetcher = fetcher_of()
    assert fetcher.fetch_if_changed(server.url("/moved"), known) is None
    assert fetcher.fetch_if_changed(server.url("/a"), '"other"') == Fetched(b"", "")
    assert fetcher.fetch_if_changed(server.url("/a"), '"\u00fc"') == fetcher.fetch(server.url("/a")) == Fetched(b"", "")


def test_a_server_that_says_so_without_being_asked_gives_nothing(server, fetcher_of):
    server.answers["/a"] = [(304, {}, b"")]
    assert reason_of(fetcher_of(), server.url("/a")) == "http_error"


def test_connections_are_kept_and_tls_asks_for_the_name(server, fetcher_of):
    server.answers["/a"] = [OK]
    fetcher = fetcher_of()
    for _ in range(3):
        fetcher.fetch(server.url("/a"))
    assert (server.connections, server.names) == (1, ["img.test"])


def test_what_may_pass_is_tried_again_later_each_time(server, fetcher_of):
    server.answers["/a"] = [(503, {}, b""), (500, {}, b"broken"), OK]
    fetcher = fetcher_of()
    assert fetcher.fetch(server.url("/a")).data == b"bytes"
    assert len(server.asked) == 3
    first, second = fetcher.slept
    assert 0.5 <= first <= 1
    assert 1 <= second <= 2


def test_no_more_attempts_are_made_than_allowed(server, fetcher_of):
    server.answers["/a"] = [(503, {}, b"")]
    fetcher = fetcher_of(attempts=3)
    assert reason_of(fetcher, server.url("/a")) == "server_error"
    assert (len(server.asked), len(fetcher.slept)) == (3, 2)


@pytest.mark.parametrize(
    ("status", "reason"),
    [(400, "http_error"), (401, "access_denied"), (403, "access_denied"), (404, "not_found"), (410, "not_found")]
    + [(204, "http_error"), (302, "http_error")],
)
def test_an_answer_that_will_not_change_is_not_asked_for_again(server, fetcher_of, status, reason):
    server.answers["/a"] = [(status, {}, b"")]
    fetcher = fetcher_of()
    assert reason_of(fetcher, server.url("/a")) == reason
    assert (len(server.asked), fetcher.slept) == (1, [])


def test_a_server_is_left_alone_as_long_as_it_asks(server, fetcher_of):
    later = datetime.now(UTC) + timedelta(seconds=30)
    never = "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"
    waits = ["7", format_datetime(later, usegmt=True), never]
    server.answers["/a"] = [(429, {"Retry-After": wait}, b"") for wait in waits] + [OK]
    fetcher = fetcher_of()
    assert fetcher.fetch(server.url("/a")).data == b"bytes"
    assert fetcher.slept[0] == 7
    assert 20 < fetcher.slept[1] <= 30
    assert 2 <= fetcher.slept[2] <= 4  # nonsense: as without it


def test_a_server_that_asks_for_more_than_the_longest_wait_is_not_asked_again(server, fetcher_of):
    server.answers["/a"] = [(429, {"Retry-After": 61}, b"")]
    server.answers["/b"] = [(503, {"Retry-After": 60}, b""), OK]
    fetcher = fetcher_of(longest_wait=60)
    assert reason_of(fetcher, server.url("/a")) == "rate_limited"
    assert len(server.asked) == 1
    assert fetcher.fetch(server.url("/b")).data == b"bytes"


def test_a_body_cut_short_is_asked_for_again(server, fetcher_of):
    def cut(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"half")
        handler.close_connection = True

    server.answers["/a"] = [cut, OK]
    assert fetcher_of().fetch(server.url("/a")).data == b"bytes"
    assert len(server.asked) == 2


def test_a_host_that_takes_no_connection_is_unavailable(fetcher_of):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and listening to nobody
        port = taken.getsockname()[1]
        fetcher = fetcher_of(allowed_hosts=(f"img.test:{port}",), attempts=2)
        assert reason_of(fetcher, f"https://img.test:{port}/a") == "host_unavailable"
    assert len(fetcher.slept) == 1


def test_a_host_without_an_address_is_unavailable(server, fetcher_of):
    def nowhere(_host, _port):
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    assert reason_of(fetcher_of(resolve=nowhere, attempts=1), server.url("/a")) == "host_unavailable"
    assert reason_of(fetcher_of(resolve=lambda *_: [], attempts=1), server.url("/a")) == "host_unavailable"


def test_the_second_address_is_tried_where_the_first_takes_no_connection(server, fetcher_of):
    server.answers["/a"] = [OK]
    fetcher = fetcher_of(resolve=lambda *_: ["127.0.0.2", "127.0.0.1"])  # the server listens at the second only
    assert fetcher.fetch(server.url("/a")).data == b"bytes"


# --- redirects ------------------------------------------------------------------------------------------------------


def to(location):
    return (302, {"Location": location}, b"")


def test_redirects_on_the_list_are_followed(server, fetcher_of):
    server.answers |= {"/a": [to("/b")], "/b": [to(server.url("/c", host="other.test"))], "/c": [OK]}
    assert fetcher_of().fetch(server.url("/a")).data == b"bytes"
    assert server.asked[-1] == (f"other.test:{server.port}", "/c")


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("https://elsewhere.example/b", "redirect_not_allowed"),
        ("//elsewhere.example/b", "redirect_not_allowed"),
        ("http://img.test/b", "redirect_not_allowed"),
        ("https://img.test/b", "redirect_not_allowed"),  # another port
        ("file:///etc/hostname", "redirect_not_allowed"),
        ("https://user:secret@img.test/b", "credentials_in_url"),
        ("https://img.test:port/b", "bad_url"),
    ],
)
def test_a_redirect_off_the_list_is_refused(server, fetcher_of, location, reason):
    server.answers |= {"/a": [to(location)], "/b": [OK]}
    fetcher = fetcher_of()
    assert reason_of(fetcher, server.url("/a")) == reason
    assert (server.asks(), fetcher.slept) == (["/a"], [])


def test_a_host_whose_name_cannot_be_asked_for_is_a_bad_url(server, fetcher_of):
    fetcher = fetcher_of(resolve=https.resolve_name)
    for name in ("a..img.test", f"{'a' * 64}.img.test"):
        assert reason_of(fetcher, server.url("/a", host=name)) == "bad_url"


@pytest.mark.parametrize("uri", ["file://[/x.jpg", "file://\u2100/x.jpg"])
def test_a_file_reference_that_is_no_url_is_refused(fetcher_of, uri):
    assert reason_of(fetcher_of(), uri) == "bad_url"


def test_five_redirects_are_followed_and_a_sixth_is_not(server, fetcher_of):
    server.answers |= {f"/{n}": [to(f"/{n + 1}")] for n in range(6)} | {"/6": [OK], "/loop": [to("/loop")]}
    fetcher = fetcher_of()
    assert fetcher.fetch(server.url("/1")).data == b"bytes"
    server.asked.clear()
    assert reason_of(fetcher, server.url("/0")) == "too_many_redirects"
    assert server.asks() == ["/0", "/1", "/2", "/3", "/4", "/5"]
    server.asked.clear()
    assert reason_of(fetcher, server.url("/loop")) == "too_many_redirects"
    assert server.asks() == ["/loop"] * 6


# --- patience and size ----------------------------------------------------------------------------------------------


def drip(before):
    """An answer that never ends, a byte now and then, from within its headers or its body."""

    def answer(handler):
        handler.wfile.write(before)
        while True:
            handler.wfile.write(b"x")
            time.sleep(0.02)

    return answer


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n"


@pytest.mark.parametrize("before", [b"HTTP/1.1 200 OK\r\nX: ", HEAD + b"\r\n"], ids=["headers", "body"])
def test_a_server_that_drips_is_given_up_when_the_time_is_over(server, fetcher_of, before):
    server.answers["/a"] = [drip(before)]
    started = time.monotonic()
    assert reason_of(fetcher_of(total_seconds=0.6, read_seconds=30, attempts=1), server.url("/a")) == "timed_out"
    assert time.monotonic() - started < 10


def test_a_silent_server_is_given_up_when_the_time_is_over(server, fetcher_of):
    done = threading.Event()
    server.answers["/a"] = [lambda _handler: done.wait(20)]
    started = time.monotonic()
    assert reason_of(fetcher_of(total_seconds=0.5, read_seconds=19, attempts=1), server.url("/a")) == "timed_out"
    assert time.monotonic() - started < 10
    done.set()


def test_without_time_no_connection_is_made(server, fetcher_of):
    assert reason_of(fetcher_of(total_seconds=0.0, attempts=1), server.url("/a")) == "timed_out"
    assert server.connections == 0


def test_redirects_share_the_time_of_an_attempt(server, fetcher_of):
    def late(handler):
        time.sleep(0.3)
        handler.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: /a\r\nContent-Length: 0\r\n\r\n")

    server.answers["/a"] = [late]
    assert reason_of(fetcher_of(total_seconds=0.8, attempts=1), server.url("/a")) == "timed_out"
    assert len(server.asked) <= 3


def test_a_silent_server_is_given_up_and_asked_again(server, fetcher_of):
    done = threading.Event()
    server.answers["/a"] = [lambda _handler: done.wait(20), OK]
    fetcher = fetcher_of(read_seconds=0.4, total_seconds=30)
    assert fetcher.fetch(server.url("/a")).data == b"bytes"
    assert len(fetcher.slept) == 1
    done.set()


def test_a_body_is_read_no_further_than_the_most(server, fetcher_of):
    stopped = threading.Event()

    def endless(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            while server.sent < 200_000_000:
                handler.wfile.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                server.sent += 0x10000
        finally:
            stopped.set()

    server.answers["/a"] = [endless]
    fetcher = fetcher_of(max_bytes=100_000)
    assert reason_of(fetcher, server.url("/a")) == "too_large"
    assert stopped.wait(20)
    assert server.sent < 50_000_000  # what the sockets' buffers hold
    assert (len(server.asked), fetcher.slept) == (1, [])


def test_a_body_that_announces_too_much_is_not_read(server, fetcher_of):
    server.answers["/a"] = [drip(HEAD.replace(b"900", b"1001") + b"\r\n")]
    server.answers["/b"] = [(200, {}, b"x" * 1000)]
    fetcher = fetcher_of(max_bytes=1000)
    assert reason_of(fetcher, server.url("/a")) == "too_large"
    assert len(fetcher.fetch(server.url("/b")).data) == 1000


@pytest.mark.parametrize("clients", [1, 2])
def test_no_host_is_asked_more_at_a_time_than_allowed_however_many_clients_share_the_bounds(
    server, fetcher_of, clients
):
    def counted(handler):
        with server.crowd:
            server.active += 1
            server.most_active = max(server.most_active, server.active)
            server.crowd.notify_all()
            if len(server.asked) <= 12:  # the first ones stay until a fourth has come, or had the time to come
                server.crowd.wait_for(lambda: server.most_active > 3, timeout=0.5)
            server.active -= 1
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbytes")

    server.answers["/a"] = [counted]
    hosts = Hosts(per_host=3, down_after=9)
    fetchers = [fetcher_of(hosts=hosts) for _ in range(clients)]
    with ThreadPoolExecutor(12) as pool:
        fetched = list(pool.map(lambda n: fetchers[n % clients].fetch(server.url("/a")).data, range(48)))
    assert fetched == [b"bytes"] * 48
    assert server.most_active == 3


# --- what must not be asked -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "url", "asked"),
    [
        ((), "https://img.test/a", False),
        (("img.test",), "https://img.test/a", True),
        (("img.test",), "HTTPS://IMG.test:443/a", True),
        (("Img.Test",), "https://img.test./a", True),
        (("img.test",), "https://img.test:8443/a", False),
        (("img.test:8443",), "https://img.test:8443/a", True),
        (("img.test:8443",), "https://img.test/a", False),
        (("img.test",), "https://evilimg.test/a", False),
        (("img.test",), "https://img.test.evil.example/a", False),
        (("*.img.test",), "https://a.b.img.test/a", True),
        (("*.img.test",), "https://img.test/a", False),
        (("*.img.test",), "https://evilimg.test/a", False),
        (("*.img.test",), "https://evil.example/.img.test", False),
        (("img.test",), "https://img.test\\@evil.example/a", False),
        (("img.test",), "https:///a", False),
        (("bücher.test",), "https://xn--bcher-kva.test/a", True),
    ],
)
def test_only_hosts_of_the_list_are_asked(tmp_path, allowed, url, asked):
    names = []

    def resolve(host, _port):
        names.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    fetcher = Fetcher(tmp_path, 10, HttpsConfig(allowed_hosts=allowed, attempts=1), resolve=resolve)
    reason = reason_of(fetcher, url)
    assert bool(names) == asked
    assert reason == "host_unavailable" if asked else reason in ("host_not_allowed", "credentials_in_url")


@pytest.mark.parametrize("entry", ["", "https://img.test", "img.test/a", "*", "*.", "a*b.test", "user@img.test"])
def test_an_entry_that_is_no_host_is_refused(tmp_path, entry):
    with pytest.raises(CourierError, match="is not a host"):
        Fetcher(tmp_path, 10, HttpsConfig(allowed_hosts=(entry,)))


@pytest.mark.parametrize("uri", ["https://user:secret@img.test/a", "https://secret@img.test/a", "gs://secret@shop/a"])
def test_credentials_are_refused_and_not_repeated(tmp_path, uri):
    with pytest.raises(NotFetched) as caught:
        Fetcher(tmp_path, 10, HttpsConfig(allowed_hosts=("img.test",))).fetch(uri)
    assert caught.value.reason == "credentials_in_url"
    assert "secret" not in str(caught.value)


def test_the_query_of_a_signed_address_is_not_repeated(server, fetcher_of):
    server.answers["/a?signature=secret"] = [(404, {}, b"")]
    with pytest.raises(NotFetched, match="/a is answered with HTTP status 404") as caught:
        fetcher_of().fetch(server.url("/a?signature=secret"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"]
    + ["240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%1", "fc00::1", "fec0::1", "ff02::1"]
    + ["::ffff:127.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "64:ff9b::a00:1", "2001:db8::1"],
)
def test_an_address_inside_a_network_is_never_connected_to(server, fetcher_of, address):
    assert not https.is_public(ip_address(address))
    fetcher = fetcher_of(resolve=lambda *_: ["93.184.216.34", address], private_networks=False)
    assert reason_of(fetcher, server.url("/a")) == "private_address"
    assert (server.connections, fetcher.slept) == (0, [])


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_an_address_that_anyone_reaches_is_public(address):
    assert https.is_public(ip_address(address))


def test_a_server_on_this_machine_is_refused_unless_a_test_says_so(server, fetcher_of):
    server.answers["/a"] = [OK]
    assert reason_of(fetcher_of(private_networks=False), server.url("/a")) == "private_address"
    assert server.connections == 0
    assert fetcher_of(private_networks=True).fetch(server.url("/a")).data == b"bytes"


def test_a_name_that_changes_its_meaning_gains_nothing(server, fetcher_of, monkeypatch):
    """Public when it is checked and this machine afterwards: the connection goes to the address that was checked."""
    server.answers["/a"] = [OK]
    meanings = itertools.chain([["93.184.216.34"]], itertools.repeat(["127.0.0.1"]))
    connected, connect = [], httpcore.SyncBackend.connect_tcp

    def instead(self, host, *arguments):  # the public address, played by the server
        connected.append(host)
        return connect(self, "127.0.0.1", *arguments)

    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", instead)
    fetcher = fetcher_of(resolve=lambda *_: next(meanings), private_networks=False)
    assert fetcher.fetch(server.url("/a")).data == b"bytes"
    assert connected == ["93.184.216.34"]
    again = fetcher_of(resolve=lambda *_: next(meanings), private_networks=False)
    assert reason_of(again, server.url("/a")) == "private_address"
    assert connected == ["93.184.216.34"]


def test_a_certificate_for_another_name_is_refused(server, fetcher_of):
    fetcher = fetcher_of()
    assert reason_of(fetcher, server.url("/a", host="wrong.test")) == "certificate_refused"
    assert (server.asked, fetcher.slept) == ([], [])


# --- a host that is down --------------------------------------------------------------------------------------------


def hang_up(handler):
    handler.close_connection = True
    handler.connection.close()


def test_a_host_that_gives_no_answer_time_after_time_is_not_asked_again_and_the_others_are(server, fetcher_of):
    server.answers |= {"/a": [hang_up], "/b": [OK]}
    fetcher = fetcher_of(attempts=2, down_after=4)
    reasons = [reason_of(fetcher, server.url("/a")) for _ in range(4)]
    assert reasons == ["host_unavailable"] * 2 + ["host_down"] * 2
    assert reason_of(fetcher, server.url("/b")) == "host_down"
    assert server.asks() == ["/a"] * 4
    assert fetcher.fetch(server.url("/b", "other.test")).data == b"bytes"
    assert "host_down" in RETRYABLE


def test_any_answer_shows_that_a_host_is_there(server, fetcher_of):
    server.answers["/a"] = [hang_up, (404, {}, b""), hang_up, (404, {}, b""), hang_up, OK]
    fetcher = fetcher_of(attempts=1, down_after=2)
    reasons = [reason_of(fetcher, server.url("/a")) for _ in range(5)]
    assert reasons == ["host_unavailable", "not_found", "host_unavailable", "not_found", "host_unavailable"]
    assert fetcher.fetch(server.url("/a")).data == b"bytes"
