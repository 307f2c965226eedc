"""https references against a real server: answers, repeated attempts, redirects, time and size."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from jobs.images.fetch import https
from jobs.images.fetch.hosts import Hosts
from jobs.images.fetch.references import Fetched

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


def test_a_server_that_says_so_without_being_asked_gives_nothing(server, fetcher_of, reason_of):
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


def test_no_more_attempts_are_made_than_allowed(server, fetcher_of, reason_of):
    server.answers["/a"] = [(503, {}, b"")]
    fetcher = fetcher_of(attempts=3)
    assert reason_of(fetcher, server.url("/a")) == "server_error"
    assert (len(server.asked), len(fetcher.slept)) == (3, 2)


@pytest.mark.parametrize(
    ("status", "reason"),
    [(400, "http_error"), (401, "access_denied"), (403, "access_denied"), (404, "not_found"), (410, "not_found")]
    + [(204, "http_error"), (302, "http_error")],
)
def test_an_answer_that_will_not_change_is_not_asked_for_again(server, fetcher_of, status, reason, reason_of):
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


def test_a_server_that_asks_for_more_than_the_longest_wait_is_not_asked_again(server, fetcher_of, reason_of):
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


def test_a_host_that_takes_no_connection_is_unavailable(fetcher_of, reason_of):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and listening to nobody
        port = taken.getsockname()[1]
        fetcher = fetcher_of(allowed_hosts=(f"img.test:{port}",), attempts=2)
        assert reason_of(fetcher, f"https://img.test:{port}/a") == "host_unavailable"
    assert len(fetcher.slept) == 1


def test_a_host_without_an_address_is_unavailable(server, fetcher_of, reason_of):
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
def test_a_redirect_off_the_list_is_refused(server, fetcher_of, location, reason, reason_of):
    server.answers |= {"/a": [to(location)], "/b": [OK]}
    fetcher = fetcher_of()
    assert reason_of(fetcher, server.url("/a")) == reason
    assert (server.asks(), fetcher.slept) == (["/a"], [])


def test_a_host_whose_name_cannot_be_asked_for_is_a_bad_url(server, fetcher_of, reason_of):
    fetcher = fetcher_of(resolve=https.resolve_name)
    for name in ("a..img.test", f"{'a' * 64}.img.test"):
        assert reason_of(fetcher, server.url("/a", host=name)) == "bad_url"


@pytest.mark.parametrize("uri", ["file://[/x.jpg", "file://\u2100/x.jpg"])
def test_a_file_reference_that_is_no_url_is_refused(fetcher_of, uri, reason_of):
    assert reason_of(fetcher_of(), uri) == "bad_url"


def test_five_redirects_are_followed_and_a_sixth_is_not(server, fetcher_of, reason_of):
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
def test_a_server_that_drips_is_given_up_when_the_time_is_over(server, fetcher_of, before, reason_of):
    server.answers["/a"] = [drip(before)]
    assert reason_of(fetcher_of(total_seconds=0.6, read_seconds=3600, attempts=1), server.url("/a")) == "timed_out"


def test_a_silent_server_is_given_up_when_the_time_is_over(server, fetcher_of, reason_of):
    done = threading.Event()
    server.answers["/a"] = [lambda _handler: done.wait()]
    assert reason_of(fetcher_of(total_seconds=0.5, read_seconds=3600, attempts=1), server.url("/a")) == "timed_out"
    done.set()


def test_without_time_no_connection_is_made(server, fetcher_of, reason_of):
    assert reason_of(fetcher_of(total_seconds=0.0, attempts=1), server.url("/a")) == "timed_out"
    assert server.connections == 0


def test_redirects_share_the_time_of_an_attempt(server, fetcher_of, reason_of):
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


def test_a_body_is_read_no_further_than_the_most(server, fetcher_of, reason_of):
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


def test_a_body_that_announces_too_much_is_not_read(server, fetcher_of, reason_of):
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
