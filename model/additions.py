"""Items that were added since a release: they lie beside it, of its space, and are found and ranked with it.

An addition is an artifact, never changed: `items.parquet`, a row an item, and `vectors.npy`, (N, 256) float32 of unit
length in the same order. The database of releases says which there are, in the order in which they were added.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from sqlalchemy.orm import Session

from feature_repo.contract import EMBEDDING_DIM
from model import artifact
from model.artifact import ArtifactMismatch
from model.release_database import AdditionRow

KIND: Final = "additions"  # and the folder of a workspace that they lie in
ITEMS: Final = "items.parquet"
VECTORS: Final = "vectors.npy"
SCHEMA: Final = pa.schema(
    [
        *((name, pa.string()) for name in ("item_id", "image_id", "image_uri", "category", "title")),
        ("price", pa.float64()),
        ("created_at", pa.timestamp("us", tz="UTC")),
        ("cluster_id", pa.int32()),
        ("image", pa.binary()),  # a PNG, as the images artifact has those of its items
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """Items that were added at once.

    path, digest: of their artifact, in the workspace.  items: how many they are.  codebook_id: of their codes.
    """

    addition_id: str
    created_at: datetime
    space_id: str
    codebook_id: str
    path: str
    digest: str
    items: int
    done_by: str


@dataclass(frozen=True, slots=True)
class AddedItems:
    """Items as SCHEMA has them, each once, and their vectors (N, 256) in the same order."""

    table: pa.Table
    vectors: npt.NDArray[np.float32]


def record(session: Session, addition: Addition) -> None:
    """Say that these items were added, last of all: what was added before with other pictures is so no more."""
    remove(session, [addition.addition_id])
    session.add(AdditionRow(**{name: getattr(addition, name) for name in addition.__slots__}))
    session.flush()


def replace_digests(session: Session, digests: Mapping[str, tuple[str, int]]) -> None:
    """Say that artifacts of additions hold less now. digests: addition_id -> their digest, and how many items."""
    for addition_id, (digest, items) in digests.items():
        chosen = sa.update(AdditionRow).where(AdditionRow.addition_id == addition_id)
        session.execute(chosen.values(digest=digest, items=items))
    session.flush()


def list_additions(session: Session, space_id: str | None = None, codebook_id: str | None = None) -> list[Addition]:
    """The additions in the order in which they were made; of this space and codebook alone, where they are given."""
    asked = {name: value for name, value in (("space_id", space_id), ("codebook_id", codebook_id)) if value is not None}
    rows = session.scalars(sa.select(AdditionRow).filter_by(**asked).order_by(AdditionRow.number))
    return [Addition(**{name: getattr(row, name) for name in Addition.__slots__}) for row in rows]


def remove(session: Session, addition_ids: Iterable[str]) -> None:
    """Say that there are no such additions any more."""
    session.execute(sa.delete(AdditionRow).where(AdditionRow.addition_id.in_(list(addition_ids))))
    session.flush()


def check(workspace: Path, addition: Addition, space_id: str) -> Path:
    """The folder of an addition every byte of which is as recorded. Raises ArtifactMissing, ArtifactMismatch."""
    folder = workspace / addition.path
    manifest = artifact.verify(folder, kind=KIND)
    if artifact.identity(manifest) != addition.digest:
        raise ArtifactMismatch(f"{folder} is another artifact than the database of releases names: add its items again")
    if (space := manifest.facts["space_id"]) != space_id:
        raise ArtifactMismatch(f"{folder} is of space {space}, the release of {space_id}: add its items again")
    return folder


def write_addition(
    out: Path, items: Sequence[dict[str, Any]], vectors: npt.NDArray[np.float32], *, space_id: str, codebook_id: str
) -> None:
    """Write the artifact of an addition. items: rows of SCHEMA.  vectors: (N, 256), in their order."""
    with artifact.write(out, kind=KIND, inputs={}, config={}) as draft:
        pq.write_table(pa.Table.from_pylist(list(items), SCHEMA), draft.path / ITEMS)
        np.save(draft.path / VECTORS, np.asarray(vectors, np.float32))
        draft.facts |= {"space_id": space_id, "codebook_id": codebook_id, "items": len(items)}


def read_added(workspace: Path, found: Sequence[Addition], space_id: str) -> AddedItems:
    """What was added, of an item the newest. found: in their order.

    Every byte of them is read. Raises ArtifactMissing, ArtifactMismatch.
    """
    tables, vectors = [SCHEMA.empty_table()], [np.zeros((0, EMBEDDING_DIM), np.float32)]
    for folder in (check(workspace, one, space_id) for one in found):
        tables.append(pq.read_table(folder / ITEMS))
        vectors.append(np.load(folder / VECTORS))
        if vectors[-1].shape != (len(tables[-1]), EMBEDDING_DIM):
            raise ArtifactMismatch(f"{folder} holds other vectors than items: add its items again")
    table, matrix = pa.concat_tables(tables), np.concatenate(vectors)
    newest = {item: row for row, item in enumerate(table["item_id"].to_pylist())}
    rows = sorted(newest.values())
    return AddedItems(table.take(pa.array(rows, pa.int64())), matrix[rows])
