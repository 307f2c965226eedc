"""Read raw tables once: every file of a table to canonical parquet, or none where the table is canonical already."""

import hashlib
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any, Final

import duckdb
import structlog
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from upath import UPath

from jobs.config import IngestConfig
from jobs.engines.duckdb_session import connect, literal
from jobs.options import Columns, parted
from jobs.paths import path_option
from jobs.raw.canonical import KIND, CanonicalTable, in_place
from jobs.raw.columns import COLUMNS, Names, parse_names, told_columns
from jobs.raw.folder import RawTableUnusable, TableFiles, file_version, source, tables_of
from jobs.raw.forgotten import Forgotten, drop_forgotten, read_forgotten
from jobs.raw.identity import WATCHED_FROM, KnownDigests, file_digests, hash_files, tables_inputs
from jobs.raw.ingest_file import RawFile, ingest_file
from jobs.raw.parquet_files import NOT_UTF8
from jobs.raw.profile_history import record
from jobs.raw.typed import LOST, REASON
from model import artifact, strict_json
from model.artifact import AnyPath, Manifest

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

REVISION: Final = 3  # of what is made of a file; raised where the same bytes give other rows
SPILLED: Final = ".spilled"  # hidden, for no manifest lists it
PIECE: Final = "*.parquet"


def build(
    *,
    raw: AnyPath,
    raw_digest: str,
    out: Path,
    config: IngestConfig,
    workspace: Path | None = None,
) -> Manifest:
    """As `read_tables`, and say what was read; a workspace remembers what is new of items: jobs.raw.profile_history."""
    began = time.monotonic()
    manifest = read_tables(raw=raw, raw_digest=raw_digest, out=out, config=config, workspace=workspace)
    rows = {name: manifest.facts[name]["rows"] for name in COLUMNS if manifest.facts[name]}
    new = {"new_profiles": record(workspace, out, raw, now=datetime.now(UTC))} if workspace else {}
    seconds = round(time.monotonic() - began, 1)
    log.info("raw_tables_ingested", files_read=manifest.notes["files_read"], **rows, **new, seconds=seconds)
    return manifest


def read_tables(
    *,
    raw: AnyPath,
    raw_digest: str,
    out: Path,
    config: IngestConfig,
    workspace: Path | None = None,
    memory: int | None = None,
    threads: int | None = None,
) -> Manifest:
    """The ingest artifact: for each raw table a folder of canonical parquet, a file for each that has rows.

    A table that is canonical already is used in its place, and its files are only named; but not once rows of it were
    forgotten, which are dropped from what is read.
    workspace: where earlier artifacts lie, whose files are taken over where a raw file is the same.
    memory, threads: as jobs.engines.duckdb_session.connect has them.
    Raises RawTableMissing where there is neither, RawTableUnusable.
    """
    names_of, tables, forgotten = parse_names(config.columns), tables_of(raw), read_forgotten(workspace)
    digest_of = KnownDigests(workspace / "raw_digests.db") if workspace else None
    with artifact.write(out, kind=KIND, inputs={"raw": raw_digest}, config=asdict(config)) as draft:
        draft.facts["sampled_negatives"] = bool(source(raw).get("sampled_negatives", False))
        read = 0
        with connect(draft.path / SPILLED, memory=memory, threads=threads) as db:
            db.execute("SET preserve_insertion_order = true")  # rows are numbered as they stand in their files
            for name in COLUMNS:
                draft.facts[name], draft.parts[name] = None, ""
                if name not in tables:
                    continue
                table, names = tables[name], names_of[name]
                versions = {file: file_version(file) for file in table.files}
                digests = file_digests(table.files, digest_of or hash_files)
                found = None if forgotten.digest_of(name) else _usable_in_place(db, table, names)
                if isinstance(found, CanonicalTable):
                    draft.facts[name] = _named(raw, found)
                    said = [digests[file] for file in table.files]
                else:
                    pieces = _pieces(raw, table, names, digests, forgotten)
                    read += _ingest(db, pieces, names, draft.path / name, _earlier(workspace, name), forgotten)
                    draft.facts[name] = _counted(db, table, draft.path / name)
                    said = sorted(pieces)
                _refuse_changed(versions)
                draft.parts[name] = _digest([said, name == "events" and draft.facts["sampled_negatives"]])
        draft.notes["files_read"] = read
    return artifact.read(out, kind=KIND)


def _refuse_changed(versions: Mapping[AnyPath, str]) -> None:
    """Raises RawTableUnusable for a file that is no longer what it was before it was identified."""
    for file, version in versions.items():
        if file_version(file) != version:
            raise RawTableUnusable(f"{file} has changed while it was read: run again when it stands")


def _usable_in_place(db: duckdb.DuckDBPyConnection, table: TableFiles, names: Names) -> CanonicalTable | str:
    found = in_place(table, names)
    if isinstance(found, str) or not isinstance(table.path, Path):
        return found
    texts = [column.name for column in COLUMNS[table.name] if found.kinds and "string" in found.kinds[column.name]]
    try:
        files = ", ".join(literal(file.absolute()) for file in table.files)
        # Only what asks for characters is read as text.
        db.execute(
            f"SELECT {', '.join(f'max(length({name}))' for name in texts)} FROM read_parquet([{files}])"
        ).fetchall()
    except duckdb.Error as error:
        if NOT_UTF8 not in str(error):
            return "it is damaged"  # whoever reads it file by file says which
        return "its text is not UTF-8"
    return found


def _named(raw: AnyPath, table: CanonicalTable) -> dict[str, Any]:
    # By names below the raw folder, which may be another one when the artifact is read, of the same content.
    files = [_called(raw, file) for file in table.files]
    kinds = dict(table.kinds or {})
    return {"in_place": True, "path": table.path.name, "files": files, "kinds": kinds, "rows": table.rows}


def _called(raw: AnyPath, file: AnyPath) -> str:
    return str(file.absolute())[len(str(raw.absolute()).rstrip("/")) + 1 :]


def _counted(db: duckdb.DuckDBPyConnection, table: TableFiles, folder: Path) -> dict[str, Any]:
    """How many rows were read, and how many of them are of no use by themselves, by reason."""
    pieces = sorted(folder.glob(PIECE))
    if not pieces:
        raise RawTableUnusable(f"{table.path} holds no rows: fill it")
    rows = f"read_parquet([{', '.join(map(literal, pieces))}])"  # a pattern would be one all along its path
    reasons = dict(db.execute(f"SELECT {REASON}, count(*) FROM {rows} GROUP BY ALL ORDER BY ALL").fetchall())
    counted = {"in_place": False, "path": table.path.name, "rows": sum(reasons.values())}
    counted["rejected"] = {reason: rows for reason, rows in reasons.items() if reason is not None}
    if table.name == "items":
        lost = f"SELECT unnest({LOST}) AS one FROM {rows}"
        counted["lost"] = dict(db.execute(f"SELECT one, count(*) FROM ({lost}) GROUP BY one ORDER BY one").fetchall())
    return counted


# --- files ----------------------------------------------------------------------------------------------------------


def _pieces(
    raw: AnyPath, table: TableFiles, names: Names, digests: Mapping[AnyPath, str], forgotten: Forgotten
) -> dict[str, RawFile]:
    """The table's files by what names the file that is made of each: all that it depends on."""
    found = {}
    dropped = [digest] if (digest := forgotten.digest_of(table.name)) else []
    for file in table.files:
        told = told_columns(table, file, names)
        one = RawFile(file=file, called=_called(raw, file), table=table.name, told=told)
        found[_digest([REVISION, table.name, digests[file], one.called, told, names, *dropped])] = one
    return found


def _earlier(workspace: Path | None, name: str) -> dict[str, Path]:
    """The files of whole artifacts that lie in a workspace, by their names."""
    if workspace is None:
        return {}
    whole = [file.parent for file in sorted((workspace / KIND).glob(f"*/{artifact.MANIFEST}"))]
    return {piece.name: piece for folder in whole for piece in (folder / name).glob(PIECE)}


def _ingest(
    db: duckdb.DuckDBPyConnection,
    pieces: Mapping[str, RawFile],
    names: Names,
    folder: Path,
    earlier: Mapping[str, Path],
    forgotten: Forgotten,
) -> int:
    """Make a table's files in `folder`; returns how many raw files were read."""
    folder.mkdir(parents=True)
    read = {name: one for name, one in pieces.items() if f"{name}.parquet" not in earlier}
    for name in pieces.keys() - read.keys():
        _take_over(earlier[f"{name}.parquet"], folder / f"{name}.parquet")
    with _progress(db, read.values()) as advance:
        for name, one in read.items():
            scratch = folder.parent / ".read"
            scratch.mkdir()
            try:
                if ingest_file(db, one, names, folder / f"{name}.parquet", scratch):
                    drop_forgotten(db, folder / f"{name}.parquet", one.table, forgotten)
            finally:
                shutil.rmtree(scratch)
            advance(one)
    return len(read)


def _take_over(piece: Path, to: Path) -> None:
    try:
        os.link(piece, to)  # nobody changes it
    except OSError:
        shutil.copyfile(piece, to)


@contextmanager
def _progress(db: duckdb.DuckDBPyConnection, files: Iterable[RawFile]) -> Iterator[Callable[[RawFile], None]]:
    """A progress bar over the bytes of files; how far a large one has come DuckDB says, query by query."""
    sizes = [one.file.stat().st_size for one in files]
    columns = (TextColumn("ingesting raw tables"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    done, ended = deque[int](), Event()
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=sum(sizes) < WATCHED_FROM
    ) as progress:
        task = progress.add_task("", total=max(sum(sizes), 1))

        def watch() -> None:
            while not ended.wait(0.5):
                at = len(done)
                part = max(db.query_progress(), 0.0) / 100 * sizes[at] if at < len(sizes) else 0.0
                progress.update(task, completed=sum(done) + part)

        watching = Thread(target=watch, daemon=True)
        if not progress.disable:
            watching.start()
        try:
            yield lambda one: done.append(one.file.stat().st_size)
        finally:
            ended.set()
            if watching.is_alive():
                watching.join()


def _digest(said: Any) -> str:
    return hashlib.sha256(strict_json.dumps(said, sort_keys=True, default=dict).encode()).hexdigest()[:32]


# --- as a program ---------------------------------------------------------------------------------------------------


@app.command()
def ingest(
    raw: Annotated[UPath, path_option("The folder that holds the tables events and items.")],
    out: Annotated[Path, typer.Option(help="Where the artifact is written; an older one there is replaced.")],
    columns: Columns = None,
) -> None:
    """Read raw tables of any dialect into canonical parquet."""
    build(
        raw=raw,
        raw_digest="/".join(tables_inputs(Path(), raw).values()),
        out=out,
        config=IngestConfig(columns=parted(columns) or ()),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of this stage."""
    app(args=argv, prog_name="ingest")


if __name__ == "__main__":
    main()
