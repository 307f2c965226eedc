"""Log a sample of ranking requests with the feature values used, as parquet files: what `courier parity` reads.

No request waits for the log: what one thread cannot write in time is dropped and counted. A file is written aside and
then renamed, so that whoever reads the folder finds whole files alone, and a killed server loses no more than it had
not written yet.
"""

import os
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from model.artifact import PARTIAL
from model.ctr.inputs.request_log import LOG_FOLDER, hashed_user, log_key, log_row, request_digest
from serving.settings import Settings

if TYPE_CHECKING:
    from serving.features import RankingRows
    from serving.ranker import FeatureSource

log = structlog.get_logger()

FILE_BYTES: Final = 8 << 20  # of rows in memory, that are then written as one file, some ten times smaller
HELD_BYTES: Final = 64 << 20  # of rows in memory, those that are being written included; beyond it they are dropped
STALE_SECONDS: Final = 3_600.0  # no file takes that long to write: who began it was killed


class RequestLog:
    """A folder of parquet files in the form of model.ctr.inputs.request_log, and the thread that writes them."""

    def __init__(
        self,
        folder: Path,
        *,
        rate: float,
        total_bytes: int,
        seconds: float = 60.0,
        key: bytes = b"",
        file_bytes: int = FILE_BYTES,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        """Start logging into `folder`, which several servers may share.

        rate: the share of requests that is logged, 0 to 1; the same request is logged always or never.
        total_bytes: of all files together; the oldest are removed.
        key: of `log_key`, to hash users' ids with; empty where they may stand in the log.
        file_bytes, seconds: how many bytes of rows, or how long, the thread gathers before it writes a file.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.rate, self.total_bytes = folder, rate, total_bytes
        self.written = self.dropped = 0  # requests
        self._seconds, self._key, self._file_bytes, self._held_bytes = seconds, key, file_bytes, held_bytes
        self._pending: list[pa.Table] = []
        self._gathered = self._held = 0  # bytes: of what is pending, and of what is being written too
        self._since = time.monotonic()  # when the first of those pending came
        self._closing = False
        self._changed = threading.Condition()
        self._writer = threading.Thread(target=self._write_files, name="request-log", daemon=True)
        self._writer.start()

    def offer(
        self,
        rows: pa.Table,
        user_id: str,
        item_ids: Sequence[str],
        as_of: datetime,
        *,
        release_id: str,
        space_id: str,
        codebook_id: str,
    ) -> None:
        """Log a request's rows, if it is of the sample and there is room. Never raises, never waits for the disk."""
        try:
            digest = request_digest(user_id, item_ids, as_of, self._key)
            if rows.num_rows == 0 or int.from_bytes(digest[:8], "big") >= self.rate * 2**64:
                return
            row = log_row(
                rows,
                request_id=digest.hex(),
                logged_at=datetime.now(UTC),
                release_id=release_id,
                space_id=space_id,
                codebook_id=codebook_id,
                hashed=hashed_user(user_id, self._key) if self._key else None,
            )
        except Exception as error:  # a ranking is worth more than its record
            log.error("request_not_logged", error=repr(error))
            self._drop(1)
            return
        self._append(row)

    def close(self) -> None:
        """Write what is pending, and end the thread. What is offered afterwards is dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._writer.join()

    def _append(self, row: pa.Table) -> None:
        with self._changed:
            if self._closing or self._held + row.nbytes > self._held_bytes:
                self.dropped += 1
                return
            if not self._pending:
                self._since = time.monotonic()
            self._pending.append(row)
            self._gathered += row.nbytes
            self._held += row.nbytes
            if self._gathered >= self._file_bytes or len(self._pending) == 1:
                self._changed.notify()

    def _drop(self, requests: int) -> None:
        with self._changed:
            self.dropped += requests

    def _write_files(self) -> None:
        while True:
            with self._changed:
                while not self._closing and not self._is_due():
                    self._changed.wait(self._seconds if self._pending else None)
                rows, taken = self._pending, self._gathered
                self._pending, self._gathered = [], 0
                if not rows:
                    return
            try:
                self._write_file(pa.concat_tables(rows))
                self.written += len(rows)
            except Exception as error:  # a full disk ends the log's file, not the server
                log.error("request_log_failed", folder=str(self.folder), requests=len(rows), error=repr(error))
                self._drop(len(rows))
            with self._changed:
                self._held -= taken

    def _is_due(self) -> bool:
        waited = time.monotonic() - self._since >= self._seconds
        return bool(self._pending) and (waited or self._gathered >= self._file_bytes)

    def _write_file(self, rows: pa.Table) -> None:
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:8]}.parquet"
        aside = self.folder / f".{name}{PARTIAL}"
        try:
            with aside.open("wb") as stream:
                pq.write_table(rows, stream, compression="zstd")
                stream.flush()
                os.fsync(stream.fileno())
            aside.replace(self.folder / name)
        finally:
            aside.unlink(missing_ok=True)
        self._make_room()
        log.info("request_log_written", file=name, requests=rows.num_rows, dropped=self.dropped)

    def _make_room(self) -> None:
        # Servers that share the folder may remove the same file: then it is gone, as both wanted.
        sizes = {path: _size(path) for path in sorted(self.folder.glob("*.parquet"))}  # by name: the oldest first
        excess = sum(sizes.values()) - self.total_bytes
        for path, size in sizes.items():
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size
        for path in self.folder.glob(f".*{PARTIAL}"):
            if time.time() - _modified(path) > STALE_SECONDS:
                path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def open_request_log(settings: Settings) -> RequestLog | None:
    """The log that the settings ask for; None where they ask for none. Raises OSError where its folder cannot be."""
    if settings.request_log_rate == 0:
        return None
    return RequestLog(
        settings.request_log or settings.workspace / LOG_FOLDER,
        rate=settings.request_log_rate,
        total_bytes=settings.request_log_bytes,
        seconds=settings.request_log_seconds,
        key=log_key(settings.request_log_key.get_secret_value()) if settings.request_log_key else b"",
    )


@dataclass(frozen=True, slots=True)
class LoggedFeatures:
    """A FeatureSource that logs the rows which another one answers with."""

    features: "FeatureSource"
    request_log: RequestLog = field(repr=False)
    release_id: str

    def ranking_rows(
        self, user_id: str, item_ids: Sequence[str], space_id: str, codebook_id: str, *, as_of: datetime, vectors: bool
    ) -> "RankingRows":
        """The other's answer, as it is. Raises what the other one raises."""
        rows = self.features.ranking_rows(user_id, item_ids, space_id, codebook_id, as_of=as_of, vectors=vectors)
        of = {"release_id": self.release_id, "space_id": space_id, "codebook_id": codebook_id}
        self.request_log.offer(rows.table, user_id, item_ids, as_of, **of)
        return rows
