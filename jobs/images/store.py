"""The store of examined images: what each reference last gave, in shards that are written whole or not at all.

A run looks its references up here before it opens anything. The store is no artifact: it may be deleted at any time,
and what is built from it has the same bytes with it and without it, but for pictures that are kept through an outage.
One job at a time may use it: see `alone`; where no lock reaches, StoreChanged tells.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog
from filelock import FileLock, Timeout
from PIL import features

from jobs.config import ImagesConfig
from jobs.engines.whole_files import write_pictures
from jobs.images.outcome import Outcome
from jobs.paths import arrow_source
from model import artifact, strict_json
from model.artifact import AnyPath
from model.errors import CourierError

log = structlog.get_logger()

# Raise it when a column changes its meaning, or an image its reason: what was stored before is then examined anew.
FORMAT: Final = 3
CODECS: Final = ("pil", "libjpeg_turbo", "zlib", "libtiff", "webp", "avif")  # another version may give other pixels


# Where the store holds a picture: the reference as the items table writes it, and its absolute form.
Location = tuple[str, str]

SCHEMA: Final = pa.schema(
    [
        *((name, pa.string()) for name in ("uri", "fingerprint", "reason", "bytes_sha256", "image_id", "phash")),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("frames", pa.int32()),
        ("stale", pa.string()),
        ("png", pa.binary()),
    ]
)
CHOSEN: Final = ("uri", "image_id", "png")
PICTURES: Final = pa.schema([("image_id", pa.string()), ("image", pa.binary())])
FACTS: Final = tuple(field.name for field in fields(Outcome))


class StoreBusy(CourierError):
    """Another program is at work in the store; the message says what to do."""


class StoreChanged(CourierError):
    """Somebody else wrote into the store while it was being read; the message says what to do."""


@dataclass(frozen=True)
class ImageStore:
    """The shards of one way of decoding, in a folder that every worker sees."""

    folder: AnyPath
    shards: int

    def number(self, image_uri: str) -> int:
        """The shard of a reference, by its words as the items table writes them: the same wherever the table lies."""
        return int.from_bytes(hashlib.sha256(image_uri.encode()).digest()[:8]) % self.shards

    def known(self, number: int) -> dict[str, Outcome]:
        """What the shard holds: uri -> its outcome; empty where it was never finished."""
        table = self._read(number, FACTS)
        return {} if table is None else {row["uri"]: Outcome(**row) for row in table.to_pylist()}

    def is_empty(self) -> bool:
        """Whether it knows of no reference at all."""
        return next(self.folder.glob("references-*"), None) is None

    def save(self, number: int, outcomes: Mapping[str, Outcome], pngs: Mapping[str, bytes]) -> None:
        """Replace the shard by these outcomes. pngs: uri -> PNG where it was made anew; the others keep theirs."""
        usable = [uri for uri, one in outcomes.items() if not one.reason]
        stored = self._pngs(number) if any(uri not in pngs for uri in usable) else {}
        held = {uri: pngs[uri] if uri in pngs else stored[uri] for uri in usable}
        rows = [vars(one) | {"png": held.get(uri)} for uri, one in sorted(outcomes.items())]
        stats = {
            "references": len(rows),
            "by_reason": dict(sorted(Counter(row["reason"] for row in rows if row["reason"]).items())),
            "png_bytes": sum(map(len, held.values())),
        }
        path = self._path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        artifact.write_whole(path.with_suffix(".json"), strict_json.dumps(stats, sort_keys=True).encode())
        # Last, for it is the table that makes a shard a finished one.
        write_pictures(pa.Table.from_pylist(rows, SCHEMA), path, pixels="png")

    def gather(self, wanted: Iterable[tuple[str, Location]]) -> pa.Table:
        """The pictures (image_id, image) at these locations, sorted by id. Raises StoreChanged if one is not there."""
        by_shard: defaultdict[int, dict[str, str]] = defaultdict(dict)
        for image_id, (image_uri, uri) in wanted:
            by_shard[self.number(image_uri)][uri] = image_id
        found = [self._pictures(number, ids) for number, ids in sorted(by_shard.items())]
        return pa.concat_tables([PICTURES.empty_table(), *found]).sort_by("image_id")

    def sweep(self) -> None:
        """Remove what killed writers left behind."""
        for path in self.folder.glob(".references-*"):
            path.unlink(missing_ok=True)

    def _pictures(self, number: int, ids: Mapping[str, str]) -> pa.Table:
        where, files = arrow_source(self._path(number))
        try:
            with pq.ParquetFile(where, filesystem=files) as file:
                found = [self._chosen(file, group, ids) for group in range(file.num_row_groups)]
        except (FileNotFoundError, pa.ArrowInvalid):
            raise self._changed(number) from None
        table = pa.concat_tables([pa.schema([SCHEMA.field(name) for name in CHOSEN]).empty_table(), *found])
        if [ids[uri] for uri in table["uri"].to_pylist()] != table["image_id"].to_pylist() or len(table) != len(ids):
            raise self._changed(number)
        return table.select(["image_id", "png"]).rename_columns(PICTURES.names)

    def _chosen(self, file: pq.ParquetFile, group: int, ids: Mapping[str, str]) -> pa.Table:
        """The rows of one row group whose uri is among `ids`: no more of a shard's pictures are in memory at a time."""
        chosen = pc.is_in(file.read_row_group(group, ["uri"])["uri"], value_set=pa.array(ids, pa.string()))
        if not pc.any(chosen).as_py():
            return pa.schema([SCHEMA.field(name) for name in CHOSEN]).empty_table()
        return file.read_row_group(group, list(CHOSEN)).filter(chosen)

    def _changed(self, number: int) -> StoreChanged:
        return StoreChanged(f"{self._path(number)} changed while the job ran: one job at a time may use it, run again")

    def _pngs(self, number: int) -> dict[str, bytes]:
        table = self._read(number, ("uri", "png"))
        return {} if table is None else dict(zip(table["uri"].to_pylist(), table["png"].to_pylist(), strict=True))

    def _read(self, number: int, columns: Collection[str]) -> Any:
        path = self._path(number)
        where, files = arrow_source(path)
        try:
            return pq.ParquetFile(where, filesystem=files).read(list(columns))
        except FileNotFoundError:
            return None
        except pa.ArrowInvalid as error:  # a disk that lost power after the rename
            log.warning("store_shard_unreadable", path=str(path), error=str(error).partition("\n")[0])
            return None

    def _path(self, number: int) -> AnyPath:
        return self.folder / f"references-{number:05d}-of-{self.shards:05d}.parquet"


@contextmanager
def alone(store: ImageStore) -> Iterator[None]:
    """Hold the store for this process until the block ends. Raises StoreBusy where another one does.

    At a URL nothing can be held: there a job only finds out, by StoreChanged, that another one was at work.
    """
    if not isinstance(store.folder, Path):
        yield
        return
    store.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(store.folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StoreBusy(f"another job is at work in {store.folder}: wait for it, or give another --store") from None
    try:
        yield
    finally:
        lock.release()


def absolute(image_uri: str, folder: AnyPath) -> str:
    """The reference as the store knows it: a relative path stands with the folder that it starts from."""
    return image_uri if "://" in image_uri else f"{folder}/{image_uri}"


def open_store(folder: AnyPath, config: ImagesConfig) -> ImageStore:
    """The shards in `folder` of images that were decoded as `config` and the libraries of this process decode them."""
    return ImageStore(folder.absolute() / decoding_key(config), config.store_shards)


def decoding_key(config: ImagesConfig) -> str:
    """12 hex digits of everything that an outcome depends on besides the bytes of the file."""
    identity: dict[str, Any] = {
        "format": FORMAT,
        "courier": version("courier"),
        **{name: getattr(config, name) for name in ("size", "max_bytes", "max_pixels", "min_side", "max_side")},
        **{name: features.version(name) for name in CODECS},
    }
    return hashlib.sha256(strict_json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
