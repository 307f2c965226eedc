"""`courier add-items`: new items are found by search and ranked at once, before the next run makes a release of them.

Nothing of the release changes: its encoder and codebook give the items their vectors and codes, which lie in an
artifact beside it (model.additions); their features go into the online store; last of all the database of releases
names them, and servers take them up a second later. Who is killed before that has added nothing, and runs it again.
"""

import hashlib
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import structlog
import typer
from rich.console import Console
from rich.table import Table

from feature_repo.contract import (
    CODEBOOK_KEY,
    EVENT_TIME,
    ITEM_CLUSTER,
    ITEM_EMBEDDING,
    ITEM_KEY,
    ITEM_PROFILE,
    SPACE_KEY,
    View,
)
from feature_repo.online_views import open_views
from jobs.config import ImagesConfig
from jobs.embeddings.codebook import read_codebooks
from jobs.features.load import check_rows
from jobs.features.offline import source_schema
from jobs.features.value_checks import TableChecker
from jobs.images.fetch.hosts import Hosts
from jobs.images.fetch.https import HttpsConfig
from jobs.images.fetch.references import Fetcher
from jobs.images.look import CORES, Look, Looker, Reference
from jobs.images.store import absolute
from jobs.options import AllowedHosts, AsJson, By, Folder, call
from jobs.paths import any_path
from jobs.raw.columns import parse_names
from jobs.raw.forgotten import FORGOTTEN, read_forgotten
from jobs.raw.ingest_file import rows_of
from jobs.raw.typed import REASON
from jobs.releases.added import adding, indexed_items
from jobs.releases.commands import opened
from jobs.rules.items import SENTENCES, SHARED_BY_MANY, Item, accept
from jobs.workspace import Workspace, open_workspace
from model import additions, artifact, releases, strict_json
from model.additions import Addition
from model.cluster_id import packed
from model.courier.data.stored_images import from_png
from model.errors import CourierError
from model.releases import Release

if TYPE_CHECKING:
    from jobs.images.outcome import Outcome

log = structlog.get_logger()

ARTIFACTS: Final = "COURIER_ARTIFACTS"  # from where servers fetch what they lack, as serving has it
IN_RELEASE: Final = "in_release"  # reasons of an item that is not added, beside those of jobs.rules.items
ADDED_BEFORE: Final = "added_before"
WHY: Final = SENTENCES | {
    FORGOTTEN: "The workspace was told to forget it.",
    IN_RELEASE: "The release has the item: a change of it is taken up by the next `courier run`.",
    ADDED_BEFORE: "It was added before, as it is.",
}


class NothingAdded(CourierError):
    """No item of a file could be added; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of a file of items. left_out: item_id (or "" where a row has none) and reason of the others."""

    addition_id: str | None
    release_id: str
    read: int
    added: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    seconds: Mapping[str, float]


def add_items(workspace: Workspace, file: Path, *, by: str, now: datetime) -> Report:
    """Add the items of a raw file to the release that answers, but for those that it has.

    file: an items table of any dialect; references to images start from its folder.  now: aware.
    Raises NoRelease, RawTableUnusable, ArtifactMissing, ArtifactMismatch, and what the online store raises.
    """
    with adding(workspace.folder):
        clock = _Clock()
        with opened(workspace.folder) as session:
            release = _answering(session, workspace.folder)
            codebook_id = artifact.read(_folder(workspace, release, "codebook"), kind="codebook").facts["codebook_id"]
            before = additions.list_additions(session, release.space_id, codebook_id)
        rows = list(rows_of(file, "items", parse_names(workspace.config.ingest.columns)["items"]))
        items, left_out = _new_items(workspace, release, rows)
        clock.lap("read")
        looks = _look(workspace, release, file.parent.absolute(), items)
        usable, unusable = _usable(items, looks)
        known = additions.read_added(workspace.folder, before, release.space_id).table
        new = [row for row in usable if not _is_known(row, known)]
        left_out += unusable + [(row["item_id"], ADDED_BEFORE) for row in usable if _is_known(row, known)]
        clock.lap("images")
        addition = None
        if new:
            addition = _add(workspace, release, codebook_id, new, clock, by=by, now=now)
        return Report(
            addition_id=addition,
            release_id=release.release_id,
            read=len(rows),
            added=tuple(row["item_id"] for row in new),
            left_out=tuple(left_out),
            seconds=clock.laps,
        )


class _Clock:
    """Seconds from lap to lap."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._at = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name], self._at = round(now - self._at, 2), now


def _answering(session: Any, folder: Path) -> Release:
    release = releases.answering(session)
    if release is None or "codebook" not in release.artifacts:
        raise NothingAdded(f"no release of {folder} that names its codebook answers: `courier run` makes one")
    return release


def _folder(workspace: Workspace, release: Release, stage: str) -> Path:
    return workspace.folder / release.artifacts[stage]["path"]


def _new_items(
    workspace: Workspace, release: Release, rows: Sequence[Mapping[str, Any]]
) -> tuple[list[Item], list[tuple[str, str]]]:
    """The items of these rows that the release's index does not hold, and (item_id, reason) of the other rows."""
    left_out = [(str(row["item_id"] or ""), str(row[REASON])) for row in rows if row[REASON]]
    forgotten = read_forgotten(workspace.folder)
    theirs = [row for row in rows if not row[REASON] and forgotten.holds(ITEM_KEY, str(row[ITEM_KEY]))]
    left_out += [(str(row[ITEM_KEY]), FORGOTTEN) for row in theirs]
    accepted, rejected = accept([row for row in rows if not row[REASON] and row not in theirs])
    left_out += [(str(row["item_id"] or ""), reason) for row, reason in rejected]
    held = indexed_items(workspace.folder, release)
    left_out += [(one.item_id, IN_RELEASE) for one in accepted if one.item_id in held]
    return [one for one in accepted if one.item_id not in held], left_out


# --- pictures -------------------------------------------------------------------------------------------------------


def _look(workspace: Workspace, release: Release, folder: Path, items: Sequence[Item]) -> dict[str | None, Look]:
    """image_uri -> what it gives, decoded as the pictures of the release were."""
    images = _folder(workspace, release, "images")
    config: ImagesConfig = replace(workspace.config.images, size=artifact.read(images, kind="images").config["size"])
    https = HttpsConfig(allowed_hosts=config.allowed_hosts)
    fetcher = Fetcher(folder, config.max_bytes, https, hosts=Hosts(https.per_host, https.down_after))
    looker = Looker(fetcher, config, retry_failed=False)
    references = [
        Reference(one, absolute(one, folder)) for one in dict.fromkeys(item.image_uri for item in items) if one
    ]
    try:
        with ThreadPoolExecutor(4 * CORES) as pool:
            looks = dict(zip((one.words for one in references), pool.map(looker, references), strict=True))
    finally:
        fetcher.close()
    shared = set(pq.read_table(images / "placeholders.parquet", columns=["image_id"])[0].to_pylist())
    return {
        words: replace(look, outcome=replace(look.outcome, reason=SHARED_BY_MANY))
        if look.outcome.image_id in shared
        else look
        for words, look in looks.items()
    }


def _usable(
    items: Sequence[Item], looks: Mapping[str | None, Look]
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Rows of model.additions.SCHEMA, without their codes, and (item_id, reason) of items without a usable picture."""
    usable, left_out = [], []
    for item in items:
        look = looks.get(item.image_uri)
        outcome: Outcome | None = look.outcome if look else None
        if look is None or outcome is None or outcome.reason:
            left_out.append((item.item_id, outcome.reason if outcome else "no_reference"))
            continue
        told = {name: value for name, value in asdict(item).items() if name != "updated_at"}
        usable.append(told | {"image_id": outcome.image_id, "image": look.png})
    return usable, left_out


def _is_known(row: Mapping[str, Any], known: pa.Table) -> bool:
    """Whether this very item was added before."""
    names = [name for name in known.column_names if name != "cluster_id"]
    same = known.filter(pa.compute.equal(known["item_id"], row["item_id"])).select(names).to_pylist()
    return bool(same == [{name: row[name] for name in names}])


# --- adding ---------------------------------------------------------------------------------------------------------


def _add(
    workspace: Workspace,
    release: Release,
    codebook_id: str,
    rows: list[dict[str, Any]],
    clock: _Clock,
    *,
    by: str,
    now: datetime,
) -> str:
    size = artifact.read(_folder(workspace, release, "images"), kind="images").config["size"]
    vectors = _embed(_folder(workspace, release, "pretrain"), np.stack([from_png(row["image"], size) for row in rows]))
    codebooks, _ = read_codebooks(_folder(workspace, release, "codebook"))
    codes = packed(codebooks.codes(vectors))
    coded = [row | {"cluster_id": int(code)} for row, code in zip(rows, codes, strict=True)]
    clock.lap("embed")
    addition = Addition(
        addition_id=_identity(release.space_id, codebook_id, coded),
        created_at=now,
        space_id=release.space_id,
        codebook_id=codebook_id,
        path="",
        digest="",
        items=len(coded),
        done_by=by,
    )
    addition = replace(addition, path=f"{additions.KIND}/{addition.addition_id}")
    folder = workspace.folder / addition.path
    additions.write_addition(folder, coded, vectors, space_id=release.space_id, codebook_id=codebook_id)
    addition = replace(addition, digest=artifact.digest(folder))
    if to := os.environ.get(ARTIFACTS):
        artifact.copy(folder, any_path(to) / addition.path, kind=additions.KIND)
    # Valid from when the release's features were: whatever is loaded later takes their place.
    loaded = artifact.read(_folder(workspace, release, "materialize"), kind="materialize").facts["as_of"]
    as_of = min(now, datetime.fromisoformat(loaded))
    _load(workspace.folder, _features(coded, vectors, as_of, space_id=release.space_id, codebook_id=codebook_id), as_of)
    clock.lap("store")
    with opened(workspace.folder, writes=True) as session:
        additions.record(session, addition)
    clock.lap("record")
    return addition.addition_id


def _embed(pretrain: Path, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    from model.courier.network.encoder import embed_images, load_encoder  # torch takes seconds

    return embed_images(load_encoder(pretrain), pixels)


def _identity(space_id: str, codebook_id: str, rows: Sequence[Mapping[str, Any]]) -> str:
    said = [{name: value for name, value in row.items() if name != "image"} for row in rows]
    text = strict_json.dumps([space_id, codebook_id, said], sort_keys=True, default=str)
    return f"a{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _features(
    rows: Sequence[Mapping[str, Any]],
    vectors: npt.NDArray[np.float32],
    valid_from: datetime,
    *,
    space_id: str,
    codebook_id: str,
) -> dict[View, list[dict[str, Any]]]:
    """Rows of each view that a new item has: nobody has seen it yet, so it has no statistics."""
    of = {SPACE_KEY: space_id, CODEBOOK_KEY: codebook_id, EVENT_TIME: valid_from}
    keyed = [{ITEM_KEY: row["item_id"], **of} for row in rows]
    pairs = list(zip(keyed, rows, vectors, strict=True))
    return {
        ITEM_PROFILE: [
            keys
            | {
                "category": row["category"] or "",
                "price": math.nan if row["price"] is None else row["price"],
                "created_at": -1 if row["created_at"] is None else _micros(row["created_at"]),
            }
            for keys, row, _ in pairs
        ],
        ITEM_CLUSTER: [keys | {"cluster_id": row["cluster_id"]} for keys, row, _ in pairs],
        ITEM_EMBEDDING: [keys | {"image_embedding": vector.astype("<f4").tobytes()} for keys, _, vector in pairs],
    }


def _micros(moment: datetime) -> int:
    return int(pa.scalar(moment, pa.timestamp("us", tz="UTC")).value)


def _load(folder: Path, features: Mapping[View, Sequence[Mapping[str, Any]]], as_of: datetime) -> None:
    views, checker = open_views(folder), TableChecker()
    for view, rows in features.items():
        table = pa.Table.from_pylist(list(rows), source_schema(view))
        checker.check(view, table, cure="mend the file of items")
        for batch in table.combine_chunks().to_batches():
            views.write(view, batch)
            check_rows(views, view, batch, as_of)


# --- command line ---------------------------------------------------------------------------------------------------


def command(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="an items table, of new items alone")],
    workspace: Folder = Path("workspace"),
    allow_host: AllowedHosts = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Let new items be found by search and ranked at once; put them into the raw items before the next run.

    Images are fetched, embedded and coded as by the release that answers; items that it holds already are left out.
    Exit status 1 where no item could be added.
    """
    asked = open_workspace(workspace, allowed_hosts=allow_host or ())
    report = add_items(asked, file, by=by or releases.user_name(), now=datetime.now(UTC))
    if as_json:
        print(strict_json.dumps(asdict(report), indent=1))
    elif report.left_out:
        table = Table("item", "reason", "what it means", title=f"{len(report.left_out)} of {report.read} rows left out")
        for item_id, reason in report.left_out:
            table.add_row(item_id, reason, WHY.get(reason, ""))
        Console(stderr=True).print(table)
    log.info("items_added", addition=report.addition_id, items=len(report.added), **report.seconds)
    if not report.added and all(reason != ADDED_BEFORE for _, reason in report.left_out):
        counted = ", ".join(f"{reason} {count}" for reason, count in Counter(one for _, one in report.left_out).items())
        raise NothingAdded(
            f"none of the {report.read} items of {file} was added ({counted}): mend them and say it again"
        )


def main(argv: Sequence[str]) -> None:
    """`courier add-items`."""
    call(command, "courier add-items", argv)
