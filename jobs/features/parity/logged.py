"""Read the requests that serving logged, batch by batch, under the ids that the offline tables have."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.contract import ITEM_KEY, USER_HISTORY, USER_KEY, USER_STATISTICS
from jobs.features.offline import connect, read_parquet
from model.ctr.inputs.request_log import LOG_SCHEMA, hashed_user
from model.errors import CourierError

CANDIDATES_A_BATCH: Final = 200_000  # or what the next file brings more; of which memory holds the features twice


class LogUnusable(CourierError):
    """A request log from which nothing can be compared; the message says what to do."""


@dataclass(slots=True)
class RequestLogFiles:
    """The files of a request log, oldest first.

    key: what its users' ids were hashed with.  skipped: files that were written in another form, which are not read.
    """

    folder: Path
    key: bytes = b""
    skipped: list[str] = field(default_factory=list)

    def batches(self, features: Path) -> Iterator[pa.Table]:
        """Requests in LOG_SCHEMA, their users as the features artifact calls them.

        A hashed user whom it does not know keeps the hash: then the tables must say nothing, and so must the log.
        Raises LogUnusable where there is no request, or users are hashed and the key is missing or another.
        """
        names = self._names(features)
        held: list[pa.Table] = []
        requests = candidates = 0
        for table in self._tables(LOG_SCHEMA):
            held.append(_renamed(table, names))
            requests += table.num_rows
            candidates += pc.sum(pc.list_value_length(table.column(ITEM_KEY))).as_py() or 0
            if candidates >= CANDIDATES_A_BATCH:
                yield pa.concat_tables(held)
                held, candidates = [], 0
        if held:
            yield pa.concat_tables(held)
        if requests == 0:
            others = f" but {len(self.skipped)} files of another version" if self.skipped else ""
            raise LogUnusable(
                f"{self.folder} holds no request{others}: start `courier serve` with COURIER_REQUEST_LOG_RATE=1,"
                " and rank"
            )

    def _tables(self, schema: pa.Schema) -> Iterator[pa.Table]:
        self.skipped = []
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                found = pq.read_schema(path)
                if found.equals(LOG_SCHEMA):
                    yield pq.read_table(path, columns=schema.names)
                else:
                    self.skipped.append(path.name)
            except FileNotFoundError:  # the log makes room for newer ones
                continue

    def _names(self, features: Path) -> dict[str, str]:
        # hash -> user, of those in the log.
        told = pa.schema([LOG_SCHEMA.field(name) for name in (USER_KEY, "user_hashed")])
        hashed: set[str] = set()
        for table in self._tables(told):
            hashed.update(table.filter(table.column("user_hashed")).column(USER_KEY).to_pylist())
        if not hashed:
            return {}
        if not self.key:
            raise LogUnusable(f"the users of {self.folder} are hashed: give the key in COURIER_REQUEST_LOG_KEY")
        names = {one: user for user in _users(features) if (one := hashed_user(user, self.key)) in hashed}
        if not names:
            raise LogUnusable(
                f"none of the {len(hashed)} users of {self.folder} is known under this key: give the one that"
                " serving had in COURIER_REQUEST_LOG_KEY"
            )
        return names


def _users(features: Path) -> Iterator[str]:
    parts = (f"SELECT {USER_KEY} FROM {read_parquet(features / v.name)}" for v in (USER_HISTORY, USER_STATISTICS))
    with closing(connect()) as connection:
        for batch in connection.sql(" UNION ".join(parts)).to_arrow_reader(100_000):
            yield from batch.column(USER_KEY).to_pylist()


def _renamed(table: pa.Table, names: dict[str, str]) -> pa.Table:
    if not names:
        return table
    rows = zip(table.column(USER_KEY).to_pylist(), table.column("user_hashed").to_pylist(), strict=True)
    users = [names.get(user, user) if hashed else user for user, hashed in rows]
    return table.set_column(table.schema.get_field_index(USER_KEY), USER_KEY, pa.array(users, pa.string()))
