"""Fetch the bytes that an image reference names: a path in the raw folder, file://, an object store, or https://.

Only these schemes are followed, a relative path cannot leave its folder, and https:// asks only hosts on a list.
"""

import os
import posixpath
import re
import ssl
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fsspec
from upath import UPath

from jobs.images.fetch.fetched import Fetched, NotFetched
from jobs.images.fetch.hosts import Hosts
from jobs.images.fetch.https import Https, HttpsConfig, Resolve, resolve_name
from model.artifact import AnyPath

__all__ = ["Fetched", "Fetcher", "HttpsConfig", "NotFetched", "is_far"]

T = TypeVar("T")

FILES: Final = ("", "file")
OBJECT_STORES: Final = ("s3", "gs")
FAR: Final = ("https", *OBJECT_STORES)

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


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
        return not is_far(uri) and (isinstance(self.folder, str) or _SCHEME.match(uri) is not None)

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
        scheme, uri = self._resolved(uri)
        if scheme == "https":
            return self.https.get(uri, known)
        if known and self.fingerprint(uri) == known:
            return None
        if scheme in FILES:
            return _read_file(self._path(scheme, uri), self.max_bytes)
        return _read_object(uri, scheme, self.max_bytes)

    def fingerprint(self, uri: str | None) -> str | None:
        """The fingerprint that `fetch` would give, without reading; None where only fetching tells (https).

        Raises NotFetched where a look is enough to know that there is nothing to fetch.
        """
        scheme, uri = self._resolved(uri)
        if scheme == "https":
            return None
        if scheme in FILES:
            return _look(self._path(scheme, uri))
        return _told(uri, scheme, lambda: _ukey(*_located(uri)))

    def close(self) -> None:
        """Close the connections."""
        self.https.close()

    def _resolved(self, uri: str | None) -> tuple[str, str]:
        scheme, uri = _scheme(uri)
        if scheme or isinstance(self.folder, str):
            return scheme, uri
        return self.folder.protocol, _below(uri, self.folder)

    def _path(self, scheme: str, uri: str) -> str:
        return _absolute(uri) if scheme else _inside(uri, cast(str, self.folder))


def is_far(uri: str) -> bool:
    """Whether a reference itself names another machine."""
    match = _SCHEME.match(uri)
    return match is not None and match[1].lower() in FAR


def _scheme(uri: str | None) -> tuple[str, str]:
    """The scheme in small letters ("" for a path) and the reference. Raises NotFetched for what is not followed."""
    if uri is None:
        raise NotFetched("no_reference", "the item names no image")
    match = _SCHEME.match(uri)
    if match is None:
        return "", uri
    name = match[1].lower()
    if name not in ("file", "https", *OBJECT_STORES):
        raise NotFetched("scheme_not_allowed", f"{name}:// references are not followed")
    if name != "https" and "@" in uri[match.end() :].partition("/")[0]:
        raise NotFetched("credentials_in_url", f"{name}:// references with a user name are not followed")
    return name, uri


# --- files ----------------------------------------------------------------------------------------------------------


def _inside(uri: str, folder: str) -> str:
    # By name, not by link: a folder of images that the owner of the raw folder linked into it is meant to be there.
    # Text, for to build pathlib's paths takes longer than to look at the file.
    path = os.path.normpath(os.path.join(folder, uri))  # noqa: PTH118
    if not f"{path}/".startswith(folder.rstrip("/") + "/"):
        raise NotFetched("outside_folder", f"{uri} leaves the folder of the items table")
    return path


def _below(uri: str, folder: UPath) -> str:
    """The object that a relative reference names, where the raw folder lies at a URL."""
    start = folder.path.rstrip("/")
    path = posixpath.normpath(posixpath.join(start, uri))
    if not path.startswith(f"{start}/"):
        raise NotFetched("outside_folder", f"{uri} leaves the folder of the items table")
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
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise NotFetched("unreadable", f"{path} cannot be read: {_why(error)}") from None
    if not stat.S_ISREG(found.st_mode):  # a folder, or a pipe that would block for ever
        raise NotFetched("not_a_file", f"{path} is not a regular file")
    return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}"


def _read_file(path: str, max_bytes: int) -> Fetched:
    fingerprint = _look(path)
    try:
        with open(path, "rb") as stream:  # noqa: PTH123
            return Fetched(stream.read(max_bytes + 1), fingerprint)
    except OSError as error:
        raise NotFetched("unreadable", f"{path} cannot be read: {_why(error)}") from None


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


# --- object stores --------------------------------------------------------------------------------------------------


def _read_object(uri: str, scheme: str, max_bytes: int) -> Fetched:
    def read() -> Fetched:
        files, path = _located(uri)
        fingerprint = _ukey(files, path)
        with files.open(path, "rb") as stream:
            return Fetched(stream.read(max_bytes + 1), fingerprint)

    return _told(uri, scheme, read)


def _located(uri: str) -> tuple[Any, str]:
    files, path = fsspec.core.url_to_fs(uri)
    return files, str(path)


def _ukey(files: Any, path: str) -> str:
    """What the store says identifies the object's content: an ETag, a generation, or its size and date."""
    return str(files.ukey(path))


def _told(uri: str, scheme: str, deed: Callable[[], T]) -> T:
    """Do something with an object store. Raises NotFetched for whatever its driver raises."""
    try:
        return deed()
    except FileNotFoundError:
        raise NotFetched("not_found", f"{uri} does not exist") from None
    except PermissionError:
        raise NotFetched("access_denied", f"the store does not give us {uri}") from None
    except ImportError:
        raise NotFetched("scheme_unavailable", f"no fsspec driver for {scheme}:// is installed") from None
    except TimeoutError:
        raise NotFetched("timed_out", f"{uri} was not given in time") from None
    except Exception as error:  # every store's driver raises its own kinds
        raise NotFetched("unreadable", f"{uri} cannot be read ({type(error).__name__})") from None
