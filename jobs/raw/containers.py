"""What a raw file really is, by its bytes: a table that can be read, packed or not, or something with another cure."""

import bz2
import codecs
import gzip
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

import pyarrow as pa

from jobs.raw.folder import RawTableUnusable
from model.artifact import AnyPath

HEAD: Final = 2**12  # bytes by which a file is recognised
CHUNK: Final = 2**22  # bytes that are unpacked at a time

# What a file begins with that is no table of ours, and the cure.
FOREIGN: Final = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the data: run git lfs pull",
    b"Obj\x01": "is an Avro file: write the table as parquet, CSV or JSON lines",
    b"ORC": "is an ORC file: write the table as parquet, CSV or JSON lines",
    b"ARROW1": "is an Arrow or Feather file: write the table as parquet",
    b"SQLite format 3\0": "is a SQLite database: export the table as CSV",
    b"\xd0\xcf\x11\xe0": "is an old Excel file: save the table as CSV",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive: unpack it",
    b"\x89HDF": "is an HDF5 file: write the table as parquet",
    b"\x04\x22\x4d\x18": "is compressed with LZ4: unpack it",
    b"\xff\x06\x00\x00sNaPpY": "is compressed with Snappy: unpack it",
    b"\x1f\x9d": "is compressed with compress: unpack it",
    b"Rar!": "is a RAR archive: unpack it",
    b"PARE": "is parquet with an encrypted footer: write it without",
    b"%PDF": "is a PDF: export the table as CSV",
    b"\x93NUMPY": "is a NumPy array: write the table as parquet",
    b"\x80\x04\x95": "is a Python pickle: write the table as parquet",
    b"<!doctype html": "is a web page, perhaps of an error, and no table: fetch the table again",
    b"<html": "is a web page, perhaps of an error, and no table: fetch the table again",
    b"<?xml": "is XML, perhaps of an error, and no table: fetch the table again, as parquet, CSV or JSON lines",
}
TAR_MARK: Final = 257  # where a tar archive says that it is one
UNMARKED: Final = {".br": "Brotli", ".lzo": "LZO", ".snappy": "Snappy"}  # what says so by its name alone
PARQUET: Final = b"PAR1"
MARKS: Final = {  # of the longer ones first, as UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True, slots=True)
class Codec:
    """A way of packing: what a packed file begins with, its name, and what opens it, to be read as plain bytes."""

    magic: bytes
    name: str
    open: Callable[[IO[bytes]], Any]


BZIP2, XZ = b"BZh", b"\xfd7zXZ\0"
CODECS: Final = (
    Codec(b"\x1f\x8b", "gzip", lambda stream: gzip.GzipFile(fileobj=stream)),
    Codec(BZIP2, "bzip2", lambda stream: nullcontext(_Members(stream, bz2.BZ2Decompressor, BZIP2))),
    Codec(XZ, "xz", lambda stream: nullcontext(_Members(stream, lzma.LZMADecompressor, XZ))),
    Codec(b"\x28\xb5\x2f\xfd", "zstd", lambda stream: pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")),
)
ZIP: Final = b"PK\x03\x04"
NO_BYTE: Final = "\udcff"  # in text, for bytes that are no such text; as UTF-8 the byte ff, which no text has
DAMAGES: Final = (
    EOFError,
    RuntimeError,  # of zipfile, for what is encrypted or packed in another way
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    pa.ArrowException,
    OSError,
)


class _GoesOn(RawTableUnusable):
    """A packed file has other bytes after its end."""


class _Members:
    """What lies in a file of packed streams one after another, which the library's own readers end in silence
    where other bytes follow.
    """

    def __init__(self, stream: IO[bytes], decompressor: Callable[[], Any], magic: bytes) -> None:
        self._stream, self._decompressor, self._magic = stream, decompressor, magic
        self._member = decompressor()

    def read(self, size: int) -> bytes:
        """At most so many of the bytes that follow; none at the end. Raises EOFError where it is cut short."""
        while True:
            if self._member.eof:
                packed = self._next(self._member.unused_data)
                if not packed:
                    return b""
                self._member = self._decompressor()
            else:
                packed = self._stream.read(CHUNK) if self._member.needs_input else b""
                if self._member.needs_input and not packed:
                    raise EOFError
            if plain := self._member.decompress(packed, size):
                return cast(bytes, plain)

    def _next(self, rest: bytes) -> bytes:
        """What is read of the next member; empty where there is none. Zeros may stand between, as on tapes."""
        while len(rest := rest.lstrip(b"\0")) < len(self._magic):
            more = self._stream.read(CHUNK)
            if not more:
                break
            rest += more
        if rest and not rest.startswith(self._magic):
            raise _GoesOn
        return rest


def _no_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return NO_BYTE, error.end


codecs.register_error("no_byte", _no_byte)


def local_table(file: AnyPath, aside: Path) -> Path:
    """The file as DuckDB reads it from this machine: itself, or a copy at `aside`, fetched, unpacked and in UTF-8.

    Raises RawTableUnusable for what is no table, with the cure; what is inside is not looked at further.
    """
    with _opened(file) as stream:
        head = stream.read(HEAD)
    _refuse_foreign(file, head)
    codec = next((one for one in CODECS if head.startswith(one.magic)), None)
    if codec is None and not head.startswith(ZIP):
        if isinstance(file, Path) and _encoding(head) is None:
            return file
        with _opened(file) as stream:
            _write(stream, aside)
        return aside
    try:
        with _opened(file) as stream, _unpacked(file, stream, codec) as plain:
            _write(plain, aside, packed=file)
    except _GoesOn:
        raise _goes_on(file, codec) from None
    except DAMAGES as error:
        raise _damaged(file, codec, error) from None
    return aside


def is_parquet(file: Path) -> bool:
    """Whether a file begins as a parquet file."""
    with file.open("rb") as stream:
        return stream.read(len(PARQUET)) == PARQUET


@contextmanager
def _opened(file: AnyPath) -> Iterator[IO[bytes]]:
    if isinstance(file, Path):
        with file.open("rb") as local:
            yield local
    else:
        with file.fs.open(file.path, "rb") as far:
            yield cast(IO[bytes], far)


@contextmanager
def _unpacked(file: AnyPath, stream: IO[bytes], codec: Codec | None) -> Iterator[IO[bytes]]:
    if codec is not None:
        with codec.open(stream) as plain:
            yield plain
        return
    with zipfile.ZipFile(stream) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX/" not in name]
        if any(name.startswith(("xl/", "word/", "content.xml")) for name in names):
            raise RawTableUnusable(f"{file} is an office file: save the table as CSV")
        if len(names) != 1:
            raise RawTableUnusable(
                f"{file} is a zip of {len(names)} files: unpack it into a folder of the table's name"
            )
        with archive.open(names[0]) as plain:
            yield plain


def _write(stream: IO[bytes], aside: Path, packed: AnyPath | None = None) -> None:
    """Write a stream to `aside` as UTF-8. packed: the file that it was unpacked of."""
    head = stream.read(HEAD)
    if packed is not None:
        _refuse_foreign(packed, head)
        if any(head.startswith(magic) for magic in (ZIP, *(codec.magic for codec in CODECS))):
            raise RawTableUnusable(f"{packed} is compressed twice: unpack it once")
    encoding = _encoding(head)
    decoder = codecs.getincrementaldecoder(encoding)(errors="no_byte") if encoding else None
    with aside.open("wb") as plain:
        chunk = head
        while chunk:
            plain.write(decoder.decode(chunk).encode(errors="surrogateescape") if decoder else chunk)
            chunk = stream.read(CHUNK)
        if decoder:
            plain.write(decoder.decode(b"", final=True).encode(errors="surrogateescape"))


def _encoding(head: bytes) -> str | None:
    return next((encoding for mark, encoding in MARKS.items() if head.startswith(mark)), None)


def _refuse_foreign(file: AnyPath, head: bytes) -> None:
    begun = head.lstrip().lower() if head.lstrip()[:1] == b"<" else head
    for magic, said in FOREIGN.items():
        if begun.startswith(magic):
            raise RawTableUnusable(f"{file} {said}")
    if head[TAR_MARK:].startswith(b"ustar"):
        raise RawTableUnusable(f"{file} is a tar archive: unpack it into a folder of the table's name")
    if file.suffix.lower() in UNMARKED and not head.isascii():
        raise RawTableUnusable(f"{file} is compressed with {UNMARKED[file.suffix.lower()]}: unpack it")


def _goes_on(file: AnyPath, codec: Codec | None) -> RawTableUnusable:
    packed = codec.name if codec else "zip"
    return RawTableUnusable(f"{file} goes on with other bytes after the end of its {packed}: write it again")


def _damaged(file: AnyPath, codec: Codec | None, error: Exception) -> Exception:
    if isinstance(error, RawTableUnusable) or (isinstance(error, OSError) and error.errno is not None):
        return error  # a file that may not be read is not damaged
    if isinstance(error, gzip.BadGzipFile) and "Not a gzipped file" in str(error):  # for it began as one
        return _goes_on(file, codec)
    if "encrypted" in str(error):
        return RawTableUnusable(f"{file} is an encrypted zip: unpack it")
    if isinstance(error, NotImplementedError):  # of zipfile, for methods that few use
        return RawTableUnusable(f"{file} is a zip of another method ({error}): unpack it")
    packed = codec.name if codec else "zip"
    return RawTableUnusable(
        f"{file} is cut short or damaged, as its {packed} does not unpack to its end: write it again"
    )


def odd_bytes(file: Path, *, spelled: bool) -> set[str]:
    """Which of CR and NUL a text file may hold: few do, and a look costs less than mending.

    spelled: whether JSON may spell them, too.
    """
    forms = {"\r": [b"\r"], "\0": [b"\0"]}
    if spelled:
        forms = {"\r": [b"\r", rb"\r", rb"\u000d", rb"\u000D"], "\0": [b"\0", rb"\u0000"]}
    found, rest = set[str](), b""
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            chunk = rest + chunk
            found |= {odd for odd, known in forms.items() if odd not in found and any(one in chunk for one in known)}
            rest = chunk[-5:]  # of the longest form all but the last
    return found


def normalised(file: Path, aside: Path) -> Path:
    """A copy of a text file whose lines all end in LF."""
    with file.open("rb") as stream, aside.open("wb") as plain:
        rest = b""
        while chunk := stream.read(CHUNK):
            chunk = rest + chunk
            rest = chunk[-1:] if chunk.endswith(b"\r") else b""  # its LF may begin the next one
            plain.write(re.sub(rb"\r\n?", b"\n", chunk[: len(chunk) - len(rest)]))
        plain.write(rest.replace(b"\r", b"\n"))
    return aside
