"""The rows of item_profile are those that plain Python makes of the states that ingests saw."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.features.item_profiles import UnknownPast, place_states, profile_changes, unknown_past
from jobs.features.offline import connect
from jobs.raw.profile_history import COLUMNS, FOLDER
from jobs.rules import profiles as oracle
from jobs.rules.events import micros

DAY = timedelta(days=1)
START = datetime(2024, 3, 1, tzinfo=UTC)
END = START + 5 * DAY
TIME = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [(name, {"VARCHAR": pa.string(), "DOUBLE": pa.float64()}.get(kind, TIME)) for name, kind in COLUMNS.items()]
)
NEVER = datetime.max.replace(tzinfo=UTC)

PROFILES = st.tuples(st.sampled_from([None, "shoe"]), st.sampled_from([None, 1.5]), st.sampled_from([None, START]))
STATES = st.lists(
    st.tuples(st.sampled_from("ab"), PROFILES, st.integers(0, 6), st.sampled_from([None, -1, 0, 3, 6])),
    max_size=8,
    unique_by=lambda one: (one[0], one[2], one[3]),  # an ingest sees one row of a moment
)
SHOWN = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), max_size=8)


def catalogue(connection, since):
    """The table `known`: three items, each of a profile that no ingest saw."""
    connection.execute("CREATE TABLE known (item_id TEXT, category TEXT, price DOUBLE, created_at TIMESTAMPTZ)")
    connection.execute(f"ALTER TABLE known ADD COLUMN event_timestamp TIMESTAMPTZ DEFAULT '{since.isoformat()}'")
    connection.execute("INSERT INTO known (item_id, price) VALUES ('a', 9), ('b', 9), ('c', 9)")


def stored(profile):
    category, price, created = profile
    return (category or "", "nan" if price is None else str(price), -1 if created is None else micros(created))


@settings(max_examples=40)
@given(states=STATES, shown=SHOWN)
def test_the_rows_of_item_profile_are_those_of_the_plain_rule(tmp_path_factory, states, shown):
    workspace, since = tmp_path_factory.mktemp("ws"), START + DAY
    (workspace / FOLDER).mkdir()
    remembered = {"a": [], "b": [], "c": []}
    for item, profile, day, updated in states:
        at = None if updated is None else START + updated * DAY
        remembered[item].append(oracle.State(profile=profile, first_seen=START + day * DAY, updated_at=at))
    rows = [
        dict(zip(SCHEMA.names, (item, *one.profile, one.updated_at, one.first_seen), strict=True))
        for item, seen in remembered.items()
        for one in seen
    ]
    for number, part in enumerate((rows[::2], rows[1::2])):
        pq.write_table(pa.Table.from_pylist(part, SCHEMA), workspace / FOLDER / f"{number:06d}.parquet")
    with connect() as connection:
        catalogue(connection, since)
        place_states(connection, workspace)
        found = connection.sql(profile_changes(END)).to_arrow_table().to_pylist()
        asked = ", ".join(f"('{item}', TIMESTAMPTZ '{START + day * DAY}')" for item, day in [*shown, ("z", 0)])
        impressions = f"(VALUES {asked}) AS shown(item_id, request_time)"
        unknown = unknown_past(connection, impressions)
    expected = [
        (item, at, *stored(profile))
        for item, seen in remembered.items()
        for at, profile in oracle.profiles(seen, since, END) or [(since, (None, 9.0, None))]
    ]
    assert [
        (row["item_id"], row["event_timestamp"], row["category"], str(row["price"]), row["created_at"]) for row in found
    ] == expected
    first = {item: oracle.states_in_order(seen)[0].known_from if seen else NEVER for item, seen in remembered.items()}
    assert unknown == UnknownPast(
        items=sum(at > since for at in first.values()),
        impressions=sum(START + day * DAY < first[item] for item, day in shown),
    )
