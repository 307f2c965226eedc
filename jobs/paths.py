"""Where tables and artifacts may lie, a folder of this machine or a URL, and how each library is told of it."""

import re
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import fsspec
import typer
from upath import UPath

from model.artifact import AnyPath
from model.errors import CourierError

# Hadoop's names for stores that have several; ours are those of fsspec and Beam.
HADOOP_SCHEMES: Final = {"s3": "s3a"}
OTHER_NAMES: Final = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "az": "abfs", "abfss": "abfs"}
DRIVERS: Final = {"s3": "'courier[s3]'", "gs": "'courier[gcs]'", "abfs": "adlfs"}

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class UrlUnusable(CourierError):
    """Nothing can be read or written at this URL; the message says what can."""


def any_path(text: str | Path) -> AnyPath:
    """The folder or file that a command line names: a Path, or for any URL but file:// a UPath over fsspec.

    A default, a Path already, stays one. Whether anything lies there is not looked at.
    Raises UrlUnusable where fsspec has no driver for it.
    """
    found = _SCHEME.match(text) if isinstance(text, str) else None
    if found is None or not isinstance(text, str):
        return Path(text)
    given, rest = found[1].lower(), text[found.end() :]
    scheme = OTHER_NAMES.get(given, given)
    if scheme == "file":
        return _local(text)
    _require_driver(scheme, text)
    if re.match(r"[^/@]*:[^/@]*@", rest):
        raise UrlUnusable(f"a {scheme}:// URL with a password would be written down: give it to the driver another way")
    # What is listed is listed anew: Spark and other machines write there too.
    return UPath(f"{scheme}://{rest.rstrip('/')}", use_listings_cache=False)


def _local(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise UrlUnusable(f"{url} names a file on another machine: write file:///FOLDER")
    return Path(url2pathname(parts.path))


def _require_driver(scheme: str, url: str) -> None:
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError:
        cure = f"pip install {DRIVERS[scheme]}" if scheme in DRIVERS else f"install fsspec's driver of {scheme}://"
        raise UrlUnusable(f"{url} needs a driver that is not installed: {cure}") from None
    except ValueError:
        raise UrlUnusable(f"{url}: fsspec knows no {scheme}://: give a folder or a URL of s3, gs or abfs") from None


def local_folder(text: str | Path) -> Path:
    """The workspace that a command line names. Raises UrlUnusable for a URL: databases and locks need a real folder."""
    found = _SCHEME.match(text) if isinstance(text, str) else None
    if found is not None and found[1].lower() != "file":
        raise UrlUnusable(
            f"{text} cannot be a workspace, for SQLite files and locks lie in it: give a local folder as --workspace; "
            "the raw folder may be a URL, and so may --out of the programs in jobs.sequences and jobs.images"
        )
    return Path(any_path(text))  # type: ignore[arg-type]  # no URL


def path_option(said: str, *names: str) -> Any:
    """A command's option that any_path parses: typer's own would take a slash of s3:// away."""
    return typer.Option(*names, parser=any_path, metavar="PATH|URL", help=said)


def path_argument(said: str) -> Any:
    """As path_option, for an argument."""
    return typer.Argument(parser=any_path, metavar="PATH|URL", help=said)


def spark_uri(path: AnyPath) -> str:
    """A path as Spark is told of it; on a cluster a bare path would be looked for in its own file system."""
    if isinstance(path, Path):
        return f"file://{path.absolute()}"
    scheme, rest = str(path).split("://", 1)
    return f"{HADOOP_SCHEMES.get(scheme, scheme)}://{rest}"


def from_spark(uri: str) -> str:
    """What we call the file that Spark names so, in a message of its own or as a row's file."""
    plain = unquote(re.sub("^file:/+", "/", uri))
    found = _SCHEME.match(plain)
    ours = next((ours for ours, theirs in HADOOP_SCHEMES.items() if found and found[1] == theirs), None)
    return plain if found is None or ours is None else f"{ours}://{plain[found.end() :]}"


def arrow_source(path: AnyPath) -> tuple[str, Any]:
    """A path as pyarrow's functions take it: the name, and the file system or None for this machine's own."""
    return (str(path), None) if isinstance(path, Path) else (path.path, path.fs)
