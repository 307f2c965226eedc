"""The form in which serving logs ranking requests: a row each, with every feature value that the ranking used.

A request's rows repeat the user's features for each candidate, so what is of the user stands once, and what is of the
candidates in lists, all of one length. Vectors are not logged: a release fixes them.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.arrow_types import TIME
from feature_repo.contract import ITEM_KEY, USER_KEY
from model.ctr.inputs.rows import (
    CLUSTER_FEATURES,
    HISTORY_CATEGORIES,
    HISTORY_CLUSTERS,
    ITEM_FEATURES,
    ROW_COLUMNS,
    USER_FEATURES,
)

LOG_FOLDER: Final = "request_log"  # in the workspace, unless a setting names another
ID_BYTES: Final = 16

CANDIDATE_FEATURES: Final = tuple(feature.name for feature in (*ITEM_FEATURES, *CLUSTER_FEATURES))
REQUEST_FEATURES: Final = (*(feature.name for feature in USER_FEATURES), HISTORY_CLUSTERS, HISTORY_CATEGORIES)
_OF_REQUEST: Final = (USER_KEY, "request_time", *REQUEST_FEATURES)
_OF_CANDIDATES: Final = (ITEM_KEY, *CANDIDATE_FEATURES)
_STAMP: Final = pa.schema(
    [
        ("request_id", pa.string()),
        ("logged_at", TIME),
        ("release_id", pa.string()),
        ("space_id", pa.string()),
        ("codebook_id", pa.string()),
        ("user_hashed", pa.bool_()),
    ]
)
LOG_SCHEMA: Final = pa.schema(
    [
        *_STAMP,
        *((name, ROW_COLUMNS[name]) for name in _OF_REQUEST),
        *((name, pa.list_(ROW_COLUMNS[name])) for name in _OF_CANDIDATES),
    ]
)


def log_key(secret: str) -> bytes:
    """The key that a secret of any length makes: 64 bytes."""
    return hashlib.blake2b(secret.encode()).digest()


def request_digest(user_id: str, item_ids: Sequence[str], moment: datetime, key: bytes) -> bytes:
    """The identity of a request, ID_BYTES of a hash: the same for the same request, on every server.

    key: of `log_key`, or empty; whoever lacks it cannot try users until one gives this identity.
    """
    digest = hashlib.blake2b(key=key, digest_size=ID_BYTES)
    for part in (moment.isoformat(), user_id, *item_ids):
        told = part.encode()
        digest.update(len(told).to_bytes(8, "little") + told)
    return digest.digest()


def hashed_user(user_id: str, key: bytes) -> str:
    """A user's id as a log has it that must not name users: 32 hex digits. key: of `log_key`."""
    return hashlib.blake2b(user_id.encode(), key=key, digest_size=ID_BYTES).hexdigest()


def log_row(
    rows: pa.Table,
    *,
    request_id: str,
    logged_at: datetime,
    release_id: str,
    space_id: str,
    codebook_id: str,
    hashed: str | None,
) -> pa.Table:
    """One row of LOG_SCHEMA, which holds no buffer of `rows`' repeated user features.

    rows: a request's candidates, at least one, in the columns of model.ctr.inputs.rows that serving has.
    hashed: what stands in place of the user's id; None where the id itself may.
    """
    stamp = [request_id, logged_at, release_id, space_id, codebook_id, hashed is not None]
    columns = [pa.array([value], field.type) for value, field in zip(stamp, _STAMP, strict=True)]
    of_request = rows.select(_OF_REQUEST).take(pa.array([0], pa.int64()))
    if hashed is not None:
        of_request = of_request.set_column(0, USER_KEY, pa.array([hashed], pa.string()))
    whole = pa.array([0, rows.num_rows], pa.int32())
    lists = [pa.ListArray.from_arrays(whole, rows.column(name).combine_chunks()) for name in _OF_CANDIDATES]
    return pa.table([*columns, *of_request.columns, *lists], schema=LOG_SCHEMA)


def logged_requests(log: pa.Table) -> pa.Table:
    """What a log says of each request and its user: every column that is not of its candidates."""
    return log.select([*_STAMP.names, *_OF_REQUEST])


def logged_candidates(log: pa.Table) -> pa.Table:
    """What a log says of each candidate: `request`, the place of its request in the log, its item_id and features."""
    counts = pc.list_value_length(log.column(ITEM_KEY)).to_numpy()
    places = np.repeat(np.arange(log.num_rows, dtype=np.int64), counts)
    flat = {name: pc.list_flatten(log.column(name)) for name in _OF_CANDIDATES}
    return pa.table({"request": places, **flat})
