"""References are followed to the bytes of a file or an object, and to no place where they must not lead."""

import os
import re
import sys
import unicodedata
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry as fsspec_drivers
from fsspec.registry import _registry as loaded_drivers

from jobs.images.fetch import https, references
from jobs.images.fetch.references import Fetched, Fetcher, NotFetched
from jobs.rules.items import OUTAGES, RETRYABLE, STATUS_OF

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
        ("x" * 300, "impossible_name"),
        ("null\0byte", "impossible_name"),
        ("../outside", "outside_folder"),
        ("/etc/hostname", "absolute_path"),
        ("folder", "not_a_file"),
        ("file://elsewhere/a.jpg", "scheme_not_allowed"),
        ("http://example.org/a.jpg", "scheme_not_allowed"),
        ("ftp://example.org/a.jpg", "scheme_not_allowed"),
        ("s3://user:secret@bucket/a.jpg", "credentials_in_url"),
        ("https://example.org/a.jpg", "host_not_allowed"),
    ],
)
def test_what_gives_no_bytes_says_why_and_a_look_says_the_same(tmp_path, uri, reason, reason_of):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").write_bytes(b"")
    fetcher = Fetcher(tmp_path, 100)
    assert reason_of(fetcher, uri) == reason
    if uri is None or not uri.startswith("https"):
        with pytest.raises(NotFetched) as caught:
            fetcher.fingerprint(uri)
        assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        (" plain.jpg", "white_space"),
        ("plain.jpg\n", "white_space"),
        ("plain.jpg\u200b", "white_space"),
        ("'plain.jpg'", "white_space"),
        ("below\\a b.jpg", "backslashes"),
        ("below/a%20b.jpg", "encoded"),
        ("below%2Fa%20b.jpg?v=1", "encoded"),
        ("below/a+b.jpg", "encoded"),
        ("plain.jpg?v=1", "query_after_name"),
        ("plain.jpg,", "several_references"),
        ("about:blank", "scheme_not_allowed"),
        (" below\\a%20b.jpg ", "encoded"),
        ("/plain.jpg", "absolute_path"),
        ("plain.jpg|other.jpg", "several_references"),
        ("cdn.test/plain.jpg", "scheme_missing"),
        ("shop.data/plain.jpg", "not_found"),  # a folder, although it is named as hosts are
        ("shop.data", "not_a_file"),
        ("gone%20.jpg", "not_found"),
        ("gone.jpg?v=1", "not_found"),
        ("%2e%2e/outside.jpg", "not_found"),  # what was meant is no more allowed than what is written
        ("file:///C:/shop/a.jpg", "other_machine"),
        ("file:/no such folder/a.jpg", "other_machine"),
        ("file:////nas/shop/a.jpg", "other_machine"),
        ("file:///gone.jpg", "not_found"),
        ("None", "no_reference"),
        ("data:image/png;base64," + "A" * 10_000, "inline_data"),
        ("x/" * 3000, "impossible_name"),
        ("s3://", "bad_url"),
        ("s3://[::1", "bad_url"),
        ("s3://a bucket/a.jpg", "bad_url"),
        ("s3://shop", "not_a_file"),
        ("gs://shop/folder/", "not_a_file"),
        ("S3://shop/" + "x" * 1025, "impossible_name"),
        ("https://[::1", "bad_url"),
        (" HTTPS://cdn.test/a.jpg", "host_not_allowed"),
    ],
)
def test_the_reason_of_a_reference_that_leads_nowhere_is_the_fault_of_its_words(tmp_path, uri, reason, reason_of):
    raw = tmp_path / "raw"
    for name in ("plain.jpg", "other.jpg", "below/a b.jpg", "shop.data/b.jpg", "../outside.jpg"):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(b"1")
    assert reason_of(Fetcher(raw, 100), uri) == reason


# In a locale of ASCII alone no file of this machine has such a name.
WRITES_LETTERS = pytest.mark.skipif(sys.getfilesystemencoding() == "ascii", reason="no name can hold such letters here")


@WRITES_LETTERS
@pytest.mark.parametrize(("named", "stored"), [("NFD", "NFC"), ("NFC", "NFD"), ("NFC", "NFC"), ("NFD", "NFD")])
def test_a_name_is_found_whether_its_letters_are_composed_or_decomposed(tmp_path, named, stored):
    (tmp_path / unicodedata.normalize(stored, "é.jpg")).write_bytes(b"1")
    fetcher = Fetcher(tmp_path, 100)
    for uri in ("é.jpg", f"{tmp_path.as_uri()}/é.jpg"):
        fetched = fetcher.fetch(unicodedata.normalize(named, uri))
        assert fetched.data == b"1"
        assert fetcher.fingerprint(unicodedata.normalize(named, uri)) == fetched.fingerprint


@WRITES_LETTERS
def test_of_two_names_that_are_one_text_the_one_that_is_written_is_read(tmp_path):
    for form in ("NFC", "NFD"):
        (tmp_path / unicodedata.normalize(form, "é.jpg")).write_bytes(form.encode())
    fetcher = Fetcher(tmp_path, 100)
    assert [fetcher.fetch(unicodedata.normalize(form, "é.jpg")).data for form in ("NFC", "NFD")] == [b"NFC", b"NFD"]


def test_a_name_that_looks_like_a_fault_is_read_where_there_is_such_a_file(tmp_path):
    fetcher = Fetcher(tmp_path, 100)
    for name in (" a.jpg", "a\\b.jpg", "a%20b.jpg", "a|b.jpg", "['a']", "a.jpg;b.jpg", "a?b.jpg", "https;a"):
        (tmp_path / name).write_bytes(name.encode())
        assert fetcher.fetch(name).data == name.encode()


def test_a_link_that_the_owner_of_the_folder_made_is_followed(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "a.png").write_bytes(b"1")
    (tmp_path / "raw" / "a.png").symlink_to(tmp_path / "a.png")
    assert Fetcher(tmp_path / "raw", 4).fetch("a.png").data == b"1"


def test_every_reason_in_the_source_has_a_status_and_what_may_pass_is_among_what_may_be_retried():
    source = "".join(Path(module.__file__).read_text("utf-8") for module in (references, https))
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


def test_an_object_store_is_read_through_fsspec(monkeypatch, tmp_path, reason_of):
    monkeypatch.setitem(fsspec_drivers, "gs", Bucket)
    with fsspec.open("gs://shop/a.jpg", "wb") as stream:
        stream.write(b"0123456789")
    whole = Fetcher(tmp_path, 100)
    assert whole.fetch("gs://shop/a.jpg").data == b"0123456789"
    assert Fetcher(tmp_path, 4).fetch("gs://shop/a.jpg").data == b"01234"
    assert whole.fetch(" GS://shop/a.jpg\n").data == b"0123456789"
    assert reason_of(whole, "gs://shop/b.jpg") == "not_found"
    with fsspec.open("gs://shop/a b.jpg", "wb") as stream:
        stream.write(b"1")
    assert reason_of(whole, "gs://shop/a%20b.jpg") == "encoded"
    before = whole.fingerprint("gs://shop/a.jpg")
    assert whole.fetch("gs://shop/a.jpg").fingerprint == before
    with fsspec.open("gs://shop/a.jpg", "wb") as stream:
        stream.write(b"9876543210")
    assert whole.fingerprint("gs://shop/a.jpg") != before


def test_a_store_that_wants_credentials_and_has_none_is_no_outage_that_passes(monkeypatch, tmp_path, reason_of):
    class NoCredentialsError(Exception):
        """As botocore names it."""

    def ukey(*_):
        raise NoCredentialsError

    monkeypatch.setitem(fsspec_drivers, "gs", Bucket)
    monkeypatch.setattr(Bucket, "ukey", ukey, raising=False)
    assert reason_of(Fetcher(tmp_path, 4), "gs://shop/a.jpg") == "no_credentials"
    assert "no_credentials" in OUTAGES - RETRYABLE  # a picture that was there before is kept


def test_a_store_whose_driver_is_not_installed_is_refused(tmp_path, monkeypatch, reason_of):
    monkeypatch.setitem(sys.modules, "s3fs", None)  # importing it fails, installed or not
    monkeypatch.delitem(loaded_drivers, "s3", raising=False)  # which an earlier test of this process may have imported
    assert reason_of(Fetcher(tmp_path, 4), "s3://shop/a.jpg") == "scheme_unavailable"
