"""Fetch the bytes that an image reference names: a path in the raw folder, file://, or an object store.

Only the schemes listed here are followed, and a relative path cannot leave its folder.
"""

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fsspec

OBJECT_STORES: Final = ("s3", "gs")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class NotFetched(ValueError):
    """The reference gives no bytes; `reason` is a code of jobs.logic.catalogue.STATUS_OF, the message one sentence."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


def fetch(uri: str | None, folder: Path, max_bytes: int) -> bytes:
    """The bytes behind a reference; relative paths start at `folder`. Raises NotFetched.

    At most max_bytes + 1 bytes are read: the one too many tells the decoder that the file is too large.
    """
    if uri is None:
        raise NotFetched("no_reference", "the item names no image")
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return _read_file(_inside(uri, folder), max_bytes)
    name = scheme[1].lower()
    if name == "file":
        return _read_file(_absolute(uri), max_bytes)
    if name in OBJECT_STORES:
        return _read_object(uri, name, max_bytes)
    raise NotFetched("scheme_not_allowed", f"{name}:// references are not followed")


def _inside(uri: str, folder: Path) -> Path:
    # By name, not by link: a folder of images that the owner of the raw folder linked into it is meant to be there.
    path = Path(os.path.normpath(folder / uri))
    if not path.is_relative_to(os.path.normpath(folder)):
        raise NotFetched("outside_folder", f"{uri} leaves the folder of the items table")
    return path


def _absolute(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise NotFetched("scheme_not_allowed", f"{uri} names a file on another machine")
    return Path(url2pathname(parts.path))


def _read_file(path: Path, max_bytes: int) -> bytes:
    try:
        if not path.exists():
            raise NotFetched("not_found", f"{path} does not exist")
        if not path.is_file():  # a folder, or a pipe that would block for ever
            raise NotFetched("not_a_file", f"{path} is not a regular file")
        with path.open("rb") as stream:
            return stream.read(max_bytes + 1)
    except OSError as error:
        raise NotFetched("unreadable", f"{path} cannot be read: {error.strerror}") from None


def _read_object(uri: str, scheme: str, max_bytes: int) -> bytes:
    try:
        with fsspec.open(uri, "rb") as stream:
            data: bytes = stream.read(max_bytes + 1)
            return data
    except FileNotFoundError:
        raise NotFetched("not_found", f"{uri} does not exist") from None
    except ImportError:
        raise NotFetched("scheme_unavailable", f"no fsspec driver for {scheme}:// is installed") from None
    except Exception as error:  # every store's driver raises its own kinds
        raise NotFetched("unreadable", f"{uri} cannot be read ({type(error).__name__})") from None
