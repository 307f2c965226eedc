"""`courier forget`: remove what a workspace holds of a user or an item, and prove it."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast

import pyarrow.parquet as pq
import structlog
import typer

from feature_repo.contract import ITEM_KEY, USER_KEY
from jobs.engines import duckdb_session
from jobs.forget import artifacts
from jobs.forget.online import packed_settings, remove_online, rows_online
from jobs.forget.reports import LINES, REPORTS, count_in_text, write_text_without
from jobs.forget.rows import Entity, count_held, only_of, write_without
from jobs.images.store import absolute
from jobs.options import AsJson, By, Folder, call
from jobs.raw.canonical import canonical_table
from jobs.raw.duckdb_tables import items_alone, read_events
from jobs.raw.folder import tables_of
from jobs.raw.forgotten import KEYS_OF, add_forgotten
from jobs.raw.ingest import read_tables
from jobs.raw.typed import FILE
from jobs.releases.added import adding, record_rewritten
from jobs.workspace import Workspace, locked, open_workspace
from model import artifact, releases, strict_json
from model.ctr.inputs.request_log import LOG_FOLDER, hashed_user, log_key
from model.errors import CourierError

log = structlog.get_logger()

STILL_HELD: Final = 4  # the exit status where something is left
FORMER_STORE: Final = "feast/online.db"
LOG_KEY: Final = "COURIER_REQUEST_LOG_KEY"  # as serving has it: what users' ids are hashed with in its log
LOG: Final = "COURIER_REQUEST_LOG"  # the log's folder, where it is not the workspace's
Deed = Literal["deleted", "rewritten", "removed"]


class BadRequest(CourierError):
    """The command line does not say whom to forget; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where was looked, how many rows (or texts) held the entity, what became of them, and how many still do."""

    where: str
    found: int
    done: Deed | None
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was done to forget an entity.

    places: all that were looked at.  raw: raw files, which their owner keeps, and how many rows of theirs hold it.
    unread_raw: why raw files could not be read; None where they were.  hashed_log_rows: logged requests whose users
    cannot be told without the key of the log.
    """

    key: str
    entity_id: str
    at: str
    places: tuple[Place, ...]
    raw: dict[str, int]
    unread_raw: str | None
    hashed_log_rows: int

    @property
    def found(self) -> int:
        """How many rows held the entity."""
        return sum(place.found for place in self.places)

    @property
    def left(self) -> int:
        """How many still do."""
        return sum(place.left for place in self.places)

    def sentence(self) -> str:
        """The proof in words."""
        what = f"{self.key.removesuffix('_id')} {self.entity_id!r}"
        held = [place for place in self.places if place.found]
        listed = ", ".join(f"{place.where} {place.found}" for place in held)
        said = f"{self.found} rows held {what} ({listed}), {self.left} are left" if held else f"no row holds {what}"
        said = f"looked in {len(self.places)} places: {said}"
        if self.raw:
            files = ", ".join(f"{name} ({rows})" for name, rows in self.raw.items())
            said += f"; raw files of yours still hold rows, which are dropped whenever they are read: {files}"
        if self.unread_raw:
            said += f"; the raw files could not be read: {self.unread_raw}"
        if self.hashed_log_rows:
            said += f"; {self.hashed_log_rows} logged requests name hashed users: set {LOG_KEY} and run this again"
        return said


def forget(workspace: Workspace, key: str, entity_id: str, *, by: str) -> Proof:
    """Remove what the workspace holds of a user or an item, and drop their rows from raw tables from now on.

    Killed at any moment and run again it ends in the same state. The current release answers throughout; other
    artifacts that held the entity are made again by `courier run`.
    Raises StageError where another run holds the workspace, StoreCannotDelete before anything is done.
    """
    folder, raw = workspace.folder, workspace.raw
    near = raw.resolve() if isinstance(raw, Path) else None
    packed_settings(folder)
    with locked(folder), adding(folder):
        artifacts.sweep(folder)
        add_forgotten(folder, key, entity_id)
        entity = Entity(key, (entity_id, *_hashed(key, entity_id)))
        places = [
            _online(folder, entity),
            _former_store(folder, entity),
            *_store_of_images(workspace, entity),
            *_loose(folder, near, entity),
        ]
        folders = artifacts.artifact_folders(folder, near)
        held = artifacts.holding(folders, entity)
        done = artifacts.remove_from(folder, held, entity, by=by)
        after = artifacts.artifact_folders(folder, near)
        artifacts.name_successors(after)
        record_rewritten(folder)
        left = sum(one.rows for one in artifacts.holding(after, entity))
        rows = {one.folder: one.rows for one in held}
        for one in folders:
            places.append(Place(_called(folder, one), rows.get(one, 0), done.get(one), 0))  # type: ignore[arg-type]
        places.append(Place("all artifacts, read again", 0, None, left))
        holding_raw, unread = _raw_rows(workspace, entity)
    return Proof(
        key=key,
        entity_id=entity_id,
        at=datetime.now(UTC).isoformat(),
        places=tuple(places),
        raw=holding_raw,
        unread_raw=unread,
        hashed_log_rows=_hashed_rows(folder) if key == USER_KEY and not os.environ.get(LOG_KEY) else 0,
    )


def _called(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _hashed(key: str, entity_id: str) -> tuple[str, ...]:
    secret = os.environ.get(LOG_KEY)
    return (hashed_user(entity_id, log_key(secret)),) if secret and key == USER_KEY else ()


def _online(folder: Path, entity: Entity) -> Place:
    found = rows_online(folder, entity)
    if found:
        remove_online(folder, found, entity)
    left = sum(map(len, rows_online(folder, entity).values())) if found else 0
    return Place("online store", sum(map(len, found.values())), "deleted" if found else None, left)


def _former_store(folder: Path, entity: Entity) -> Place:
    """Remove the file in which Feast's own store lay before rows were packed: nobody reads it any more."""
    file = folder / FORMER_STORE
    found = int(file.is_file() and any(one.encode() in file.read_bytes() for one in entity.ids))
    if found:
        file.unlink()
    return Place(FORMER_STORE, found, "removed" if found else None, 0)


def _store_of_images(workspace: Workspace, entity: Entity) -> list[Place]:
    """Remove the shards of examined images that hold a picture of this item alone; what is lost is examined anew."""
    folder = workspace.folder
    if entity.key != ITEM_KEY:
        return []
    pictures, uris = set[str](), set[str]()
    for held in folder.glob("images/*/shards"):
        pictures |= only_of(held.parent / "items.parquet", "image_id", entity.ids[0])
        uris |= only_of(held.parent / "items.parquet", "image_uri", entity.ids[0])
    uris |= {absolute(uri, workspace.raw) for uri in uris}
    shards = dict.fromkeys(sorted(folder.glob("image_store/*/references-*.parquet")), 0)
    for path in shards:
        rows = pq.read_table(path, columns=["image_id", "uri"]).to_pylist()
        shards[path] = sum(row["image_id"] in pictures or row["uri"] in uris for row in rows)
    for path in (path for path, rows in shards.items() if rows):
        path.unlink()
    found = sum(shards.values())
    return [Place("image_store", found, "removed" if found else None, 0)]


def _loose(folder: Path, raw: Path | None, entity: Entity) -> list[Place]:
    """What lies in no artifact: logged requests, rejected clicks, published reports, histories of profiles."""
    inside = artifacts.artifact_folders(folder, raw)
    places = []
    for path in _loose_files(folder, raw):
        if any(path.is_relative_to(one) for one in inside):
            continue
        count = count_held if path.suffix == ".parquet" else count_in_text
        rows = count(path, entity)
        if not rows:
            places.append(Place(_called(folder, path), 0, None, 0))
        elif path.name in REPORTS:
            path.unlink()
            places.append(Place(_called(folder, path), rows, "removed", 0))
        else:
            aside = path.with_name(f".{path.name}{artifacts.WITHOUT}")
            (write_without if path.suffix == ".parquet" else write_text_without)(path, aside, entity)
            shutil.copymode(path, aside)
            aside.replace(path)
            places.append(Place(_called(folder, path), rows, "rewritten", count(path, entity)))
    return places


def _loose_files(folder: Path, raw: Path | None) -> list[Path]:
    roots = [one for one in folder.iterdir() if one.is_dir() and one.name != "image_store" and one.resolve() != raw]
    elsewhere = os.environ.get(LOG)
    roots += [Path(elsewhere)] if elsewhere and Path(elsewhere).is_dir() else []
    return [
        path
        for root in roots
        for path in sorted(root.rglob("*"))
        if path.is_file() and (path.suffix in (".parquet", LINES) or path.name in REPORTS)
    ]


def _hashed_rows(folder: Path) -> int:
    rows = 0
    for path in Path(os.environ.get(LOG) or folder / LOG_FOLDER).glob("*.parquet"):
        for name in (one for one in pq.read_schema(path).names if one == "user_hashed"):
            rows += sum(pq.read_table(path, columns=[name])[name].to_pylist())
    return rows


def _raw_rows(workspace: Workspace, entity: Entity) -> tuple[dict[str, int], str | None]:
    """How many rows of each raw file hold the entity; and why that is not known, where it is not."""
    found: dict[str, int] = {}
    try:
        tables = [name for name in tables_of(workspace.raw) if entity.key in KEYS_OF[name]]
        with artifact.scratch(workspace.folder) as aside:  # which is swept after a kill
            scratch = cast(Path, aside)
            read = scratch / "ingest"
            read_tables(raw=workspace.raw, raw_digest="", out=read, config=workspace.config.ingest)
            with duckdb_session.connect(scratch / "spill") as db:
                for name in tables:
                    table = canonical_table(read, name, workspace.raw)
                    rows = read_events(db, table, datetime.now(UTC)) if name == "events" else items_alone(db, table)
                    holds = f"coalesce({entity.key} = $id, FALSE) OR json_extract_string(row, '$.{entity.key}') = $id"
                    query = f"SELECT {FILE}, count(*) FROM ({rows}) WHERE {holds} GROUP BY {FILE} ORDER BY {FILE}"
                    found |= dict(db.execute(query, {"id": entity.ids[0]}).fetchall())
    except CourierError as error:
        return found, str(error)
    return found, None


def command(
    user: Annotated[str | None, typer.Option(metavar="ID", help="forget this user")] = None,
    item: Annotated[str | None, typer.Option(metavar="ID", help="forget this item")] = None,
    workspace: Folder = Path("workspace"),
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Remove what a workspace holds of a user or an item: tables, histories, features, store, index, logs.

    Their rows are dropped from raw tables from now on. The raw files themselves are yours: the answer names those that
    hold rows. The current release goes on answering; `courier run` makes what was removed again. Exit status 4 where
    something is left.
    """
    if (user is None) == (item is None):
        raise BadRequest("whom to forget is not clear: give --user ID or --item ID, one of the two")
    key, entity_id = (USER_KEY, user) if user is not None else (ITEM_KEY, item)
    proof = forget(open_workspace(workspace), key, str(entity_id), by=by or releases.user_name())
    print(strict_json.dumps(_document(proof), indent=1) if as_json else proof.sentence())
    if proof.left:
        raise typer.Exit(STILL_HELD)


def _document(proof: Proof) -> dict[str, Any]:
    return asdict(proof) | {"found": proof.found, "left": proof.left, "sentence": proof.sentence()}


def forget_main(argv: Sequence[str]) -> None:
    """`courier forget`."""
    call(command, "courier forget", argv)
