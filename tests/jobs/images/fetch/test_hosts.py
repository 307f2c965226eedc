"""Only hosts of the list are asked, none inside a network, and none that is down."""

import itertools
import socket
from ipaddress import ip_address

import httpcore
import pytest

from jobs.images.fetch import https
from jobs.images.fetch.references import Fetcher, HttpsConfig, NotFetched
from jobs.rules.items import RETRYABLE
from model.errors import CourierError

OK = (200, {}, b"bytes")


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
def test_only_hosts_of_the_list_are_asked(tmp_path, allowed, url, asked, reason_of):
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
def test_an_address_inside_a_network_is_never_connected_to(server, fetcher_of, address, reason_of):
    assert not https.is_public(ip_address(address))
    fetcher = fetcher_of(resolve=lambda *_: ["93.184.216.34", address], private_networks=False)
    assert reason_of(fetcher, server.url("/a")) == "private_address"
    assert (server.connections, fetcher.slept) == (0, [])


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_an_address_that_anyone_reaches_is_public(address):
    assert https.is_public(ip_address(address))


def test_a_server_on_this_machine_is_refused_unless_a_test_says_so(server, fetcher_of, reason_of):
    server.answers["/a"] = [OK]
    assert reason_of(fetcher_of(private_networks=False), server.url("/a")) == "private_address"
    assert server.connections == 0
    assert fetcher_of(private_networks=True).fetch(server.url("/a")).data == b"bytes"


def test_a_name_that_changes_its_meaning_gains_nothing(server, fetcher_of, monkeypatch, reason_of):
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


def test_a_certificate_for_another_name_is_refused(server, fetcher_of, reason_of):
    fetcher = fetcher_of()
    assert reason_of(fetcher, server.url("/a", host="wrong.test")) == "certificate_refused"
    assert (server.asked, fetcher.slept) == ([], [])


# --- a host that is down --------------------------------------------------------------------------------------------


def hang_up(handler):
    handler.close_connection = True
    handler.connection.close()


def test_a_host_that_gives_no_answer_time_after_time_is_not_asked_again_and_the_others_are(
    server, fetcher_of, reason_of
):
    server.answers |= {"/a": [hang_up], "/b": [OK]}
    fetcher = fetcher_of(attempts=2, down_after=4)
    reasons = [reason_of(fetcher, server.url("/a")) for _ in range(4)]
    assert reasons == ["host_unavailable"] * 2 + ["host_down"] * 2
    assert reason_of(fetcher, server.url("/b")) == "host_down"
    assert server.asks() == ["/a"] * 4
    assert fetcher.fetch(server.url("/b", "other.test")).data == b"bytes"
    assert "host_down" in RETRYABLE


def test_any_answer_shows_that_a_host_is_there(server, fetcher_of, reason_of):
    server.answers["/a"] = [hang_up, (404, {}, b""), hang_up, (404, {}, b""), hang_up, OK]
    fetcher = fetcher_of(attempts=1, down_after=2)
    reasons = [reason_of(fetcher, server.url("/a")) for _ in range(5)]
    assert reasons == ["host_unavailable", "not_found", "host_unavailable", "not_found", "host_unavailable"]
    assert fetcher.fetch(server.url("/a")).data == b"bytes"
