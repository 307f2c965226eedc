"""A real https server on loopback that answers what a test tells it to, and a fetcher that may ask it."""

import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trustme

from jobs.images.fetch.references import Fetcher, HttpsConfig, NotFetched
from jobs.rules.items import STATUS_OF


@pytest.fixture(scope="session")
def reason_of() -> Callable[[Fetcher, str | None], str]:
    """Why a reference gives no bytes: one of the known reasons, told in one line."""

    def reason(fetcher: Fetcher, uri: str | None) -> str:
        with pytest.raises(NotFetched) as caught:
            fetcher.fetch(uri)
        assert "\n" not in str(caught.value)
        assert caught.value.reason in STATUS_OF
        return caught.value.reason

    return reason


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
