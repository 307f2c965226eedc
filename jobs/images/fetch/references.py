"""Fetch the bytes that an image reference names: a path in the raw folder, file://, an object store, or https://.

Only these schemes are followed, a relative path cannot leave its folder, and https:// asks only hosts on a list. What
leads nowhere is refused with the fault of its words, where that can be told: jobs.rules.references.
"""

import errno
import logging
import os
import posixpath
import re
import ssl
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fsspec
from upath import UPath

from jobs.images.fetch.fetched import Fetched, NotFetched
from jobs.images.fetch.hosts import Hosts
from jobs.images.fetch.https import Https, HttpsConfig, Resolve, resolve_name
from jobs.rules import references
from jobs.rules.items import SENTENCES
from model.artifact import AnyPath

__all__ = ["Fetched", "Fetcher", "HttpsConfig", "NotFetched", "is_far"]

T = TypeVar("T")

OBJECT_STORES: Final = ("s3", "gs")
FAR: Final = ("https", *OBJECT_STORES)
ROOT: Final = "/"  # of this machine, where the paths of file:// start
KEY_BYTES: Final = 1024  # the longest key that S3 and Google's store take
# Answers that there is nothing; then the fault is looked for in the words.
NOWHERE: Final = ("not_found", "not_a_file", "outside_folder", "absolute_path", "impossible_name")

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")  # a colon, for access points have long names with some


class Fetcher:
    """Follows references for any number of threads; `hosts` may be shared with others.

    Relative paths start at `folder`. private_networks: only for tests against a server on this machine.
    """

    def __init__(
        self,
        folder: AnyPath,
        max_bytes: int,
        https: HttpsConfig | None = None,
        *,
        hosts: Hosts | None = None,
        private_networks: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        resolve: Resolve = resolve_name,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        # Of a failure that is told by its reason here it also prints the traceback.
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
        self.folder = os.path.normpath(folder) if isinstance(folder, Path) else folder
        self.max_bytes = max_bytes
        self.https = Https(
            https or HttpsConfig(),
            max_bytes,
            hosts=hosts,
            private_networks=private_networks,
            ssl_context=ssl_context,
            resolve=resolve,
            sleep=sleep,
        )

    def is_near(self, uri: str) -> bool:
        """Whether a reference is followed without a network, if at all."""
        return not is_far(uri) and (isinstance(self.folder, str) or _has_scheme(uri))

    def fetch(self, uri: str | None) -> Fetched:
        """The bytes behind a reference, with a fingerprint that was taken before them. Raises NotFetched.

        Of a file at most max_bytes + 1 bytes are read: the one too many tells the decoder that it is too large.
        """
        fetched = self.fetch_if_changed(uri, "")
        assert fetched is not None  # nothing is unchanged where nothing is known
        return fetched

    def fetch_if_changed(self, uri: str | None, known: str) -> Fetched | None:
        """As `fetch`, but None where the fingerprint of an earlier answer still stands: then nothing is read.

        Over https the server is asked, and sends no bytes either. With known = "" something always comes back.
        """
        scheme, uri = _scheme(uri)
        if scheme == "https":
            return self.https.get(uri, known)
        place, fingerprint = self._find(scheme, uri)
        if known and fingerprint == known:
            return None
        if _is_file(place):
            return Fetched(_read_file(place, self.max_bytes), fingerprint)
        return Fetched(_read_object(place, self.max_bytes), fingerprint)

    def fingerprint(self, uri: str | None) -> str | None:
        """The fingerprint that `fetch` would give, without reading; None where only fetching tells (https).

        Raises NotFetched where a look is enough to know that there is nothing to fetch.
        """
        scheme, uri = _scheme(uri)
        return None if scheme == "https" else self._find(scheme, uri)[1]

    def close(self) -> None:
        """Close the connections."""
        self.https.close()

    def _find(self, scheme: str, uri: str) -> tuple[str, str]:
        """The path or URL of what a reference names, and its fingerprint. Raises NotFetched."""
        start, path = _parted(scheme, uri)
        try:
            return self._first(start, references.spellings(path))
        except NotFetched as refusal:
            fault = self._fault(start, path) if refusal.reason in NOWHERE else None
            if fault is None:
                raise
            raise NotFetched(fault, SENTENCES[fault]) from None

    def _first(self, start: str, paths: Iterable[str]) -> tuple[str, str]:
        """As `_find`, the first of these paths behind which there is anything. Raises NotFetched, as for the first."""
        refused: NotFetched | None = None
        for path in paths:
            try:
                place = self._place(start, path)
                return place, _look(place) if _is_file(place) else _told(place, _ukey)
            except NotFetched as refusal:
                if refusal.reason not in NOWHERE:
                    raise
                refused = refused or refusal
        assert refused is not None  # there is always the path as it is written
        raise refused

    def _place(self, start: str, path: str) -> str:
        """The path or URL by which it is looked for."""
        if start:
            return start + path
        return _inside(path, self.folder) if isinstance(self.folder, str) else _below(path, self.folder)

    def _fault(self, start: str, path: str) -> str | None:
        """What is wrong with a path that leads nowhere, if that can be told."""
        if start == ROOT:
            folder = os.path.dirname(ROOT + path)  # noqa: PTH120
            return None if os.path.isdir(folder) else references.OTHER_MACHINE  # noqa: PTH112
        for fault, other in references.other_paths(path):
            with suppress(NotFetched):
                self._first(start, references.spellings(other))
                return fault
        likely = None if start else references.likely_fault(path)
        if likely == references.SCHEME_MISSING and isinstance(self.folder, str):
            first = os.path.join(self.folder, path.partition("/")[0])  # noqa: PTH118
            return None if os.path.exists(first) else likely  # noqa: PTH110  # a folder may be named as a host is
        return likely


def is_far(uri: str) -> bool:
    """Whether a reference itself names another machine."""
    return references.trimmed(uri).partition("://")[0] in FAR


def _has_scheme(uri: str) -> bool:
    return references.SCHEME.match(references.trimmed(uri)) is not None


def _scheme(uri: str | None) -> tuple[str, str]:
    """The scheme in small letters and the address; of a path "" and the words as they stand.

    Raises NotFetched for what is not followed.
    """
    if uri is None:
        raise NotFetched("no_reference", "the item names no image")
    if (fault := references.fault(uri)) is not None:
        raise NotFetched(fault, SENTENCES[fault])
    address = references.trimmed(uri)
    match = references.SCHEME.match(address)
    if match is None:
        return "", uri
    name = match[1]
    if name not in ("file", "https", *OBJECT_STORES):
        raise NotFetched("scheme_not_allowed", f"{name}:// references are not followed")
    if name != "https" and "@" in address[match.end() :].partition("/")[0]:
        raise NotFetched("credentials_in_url", f"{name}:// references with a user name are not followed")
    return name, address


def _parted(scheme: str, uri: str) -> tuple[str, str]:
    """What every spelling of a reference has in common, and the path behind it: ROOT, a bucket, or "" for a folder."""
    if scheme == "file":
        return ROOT, _absolute(uri).removeprefix(ROOT)
    if scheme:
        bucket, key = _object_name(scheme, uri)
        return f"{scheme}://{bucket}/", key
    return "", uri


def _is_file(place: str) -> bool:
    """Whether it is a file of this machine and no object's URL."""
    return references.SCHEME.match(place) is None


# --- files ----------------------------------------------------------------------------------------------------------


def _inside(uri: str, folder: str) -> str:
    # By name, not by link: a folder of images that the owner of the raw folder linked into it is meant to be there.
    # Text, for to build pathlib's paths takes longer than to look at the file.
    path = os.path.normpath(os.path.join(folder, uri))  # noqa: PTH118
    if not f"{path}/".startswith(folder.rstrip("/") + "/"):
        raise _leaves(uri)
    return path


def _leaves(uri: str) -> NotFetched:
    reason = "absolute_path" if uri.startswith("/") else "outside_folder"
    return NotFetched(reason, f"{uri} leaves the folder of the items table")


def _below(uri: str, folder: UPath) -> str:
    """The object that a relative reference names, where the raw folder lies at a URL."""
    start = folder.path.rstrip("/")
    path = posixpath.normpath(posixpath.join(start, uri))
    if not path.startswith(f"{start}/"):
        raise _leaves(uri)
    return str(folder).rstrip("/") + path.removeprefix(start)


def _absolute(uri: str) -> str:
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise NotFetched("bad_url", f"{uri} is not a URL") from None
    if parts.netloc not in ("", "localhost"):
        raise NotFetched("scheme_not_allowed", f"{uri} names a file on another machine")
    return url2pathname(parts.path)


def _look(path: str) -> str:
    """The fingerprint of a regular file: any write changes its time of change, whatever is done to the other."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        raise NotFetched("not_found", f"{path} does not exist") from None
    except ValueError:  # a null byte
        raise NotFetched("impossible_name", SENTENCES["impossible_name"]) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise NotFetched("impossible_name", SENTENCES["impossible_name"]) from None
        raise NotFetched("unreadable", f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):  # a folder, or a pipe that would block for ever
        raise NotFetched("not_a_file", f"{path} is not a regular file")
    return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}"


def _read_file(path: str, max_bytes: int) -> bytes:
    try:
        with open(path, "rb") as stream:  # noqa: PTH123
            return stream.read(max_bytes + 1)
    except OSError as error:
        raise NotFetched("unreadable", f"{path} cannot be read: {error.strerror}") from None


# --- object stores --------------------------------------------------------------------------------------------------


def _object_name(scheme: str, uri: str) -> tuple[str, str]:
    """Bucket and key. Raises NotFetched for what no store has."""
    bucket, _, key = uri.removeprefix(f"{scheme}://").partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise NotFetched("bad_url", f"{uri} names no bucket")
    if not key or key.endswith("/"):
        raise NotFetched("not_a_file", f"{uri} names no object")
    return bucket, key


def _read_object(uri: str, max_bytes: int) -> bytes:
    def read(files: Any, path: str) -> bytes:
        with files.open(path, "rb") as stream:
            return bytes(stream.read(max_bytes + 1))

    return _told(uri, read)


def _ukey(files: Any, path: str) -> str:
    """What the store says identifies the object's content: an ETag, a generation, or its size and date."""
    return str(files.ukey(path))


def _told(uri: str, deed: Callable[[Any, str], T]) -> T:
    """What an object store answers: deed(file system, path). Raises NotFetched for whatever its driver raises."""
    scheme, _, name = uri.partition("://")
    if len(name.partition("/")[2].encode(errors="replace")) > KEY_BYTES:
        raise NotFetched("impossible_name", SENTENCES["impossible_name"])
    try:
        files, path = fsspec.core.url_to_fs(uri)
        return deed(files, str(path))
    except FileNotFoundError:
        raise NotFetched("not_found", f"{uri} does not exist") from None
    except PermissionError:
        raise NotFetched("access_denied", f"the store does not give us {uri}") from None
    except ImportError:
        raise NotFetched("scheme_unavailable", f"no fsspec driver for {scheme}:// is installed") from None
    except TimeoutError:
        raise NotFetched("timed_out", f"{uri} was not given in time") from None
    except Exception as error:  # every store's driver raises its own kinds
        if type(error).__name__ == "NoCredentialsError":  # of botocore, which need not be installed
            raise NotFetched("no_credentials", SENTENCES["no_credentials"]) from None
        raise NotFetched("unreadable", f"{uri} cannot be read ({type(error).__name__})") from None
