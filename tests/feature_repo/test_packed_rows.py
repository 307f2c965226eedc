"""A packed row gives back what was packed, and nothing where it is not what was packed."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.contract import VIEWS, Feature
from feature_repo.packed import rows as packed_rows
from feature_repo.packed.arrow_rows import packed
from feature_repo.packed.keys import entity_keys
from feature_repo.packed.rows import KINDS, NO_TIME, NUMBERS, Layout, RowUnreadable, cells_of

MEMBERS = {
    "int": st.integers(-(2**63), 2**63 - 1),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "float": st.floats(),
    "float32": st.floats(width=32),
    "bool": st.booleans(),
    "str": st.text(max_size=9),
    "bytes": st.binary(max_size=9),
}
VALUES = MEMBERS | {f"list[{kind}]": st.lists(values, max_size=4) for kind, values in MEMBERS.items()}
TIMES = st.integers(-(2**63), 2**63 - 1)
ARROW = {
    "int": pa.int64(),
    "int32": pa.int32(),
    "float": pa.float64(),
    "float32": pa.float32(),
    "bool": pa.bool_(),
    "str": pa.string(),
    "bytes": pa.binary(),
}
ARROW |= {f"list[{kind}]": pa.list_(member) for kind, member in ARROW.items()}
BUSY = settings(suppress_health_check=[HealthCheck.too_slow])  # the alphabet of all text is made at the first draw
LETTERS = {"int": "q", "int32": "i", "float": "d", "float32": "f", "bool": "?"}


@st.composite
def tables(draw):
    """Columns of any kinds, and rows of them: a list of values a column; some are null."""
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=10))
    count = draw(st.integers(0, 6))
    columns = [draw(st.lists(st.none() | VALUES[kind], min_size=count, max_size=count)) for kind in kinds]
    times = [draw(st.lists(TIMES, min_size=count, max_size=count)) for _ in range(2)]
    return [Feature(f"f{number}", kind) for number, kind in enumerate(kinds)], columns, times


def pack(features, columns, times):
    cells = {feature.name: cells_of(feature.kind, column) for feature, column in zip(features, columns, strict=True)}
    return Layout(features).pack(*(np.array(moments, np.int64) for moments in times), cells)


def decoded(features, row):
    """A row's event time, created time and values, read field by field: the slow twin."""
    _, words, _, event, created = struct.unpack_from("<QIIqq", row)
    assert words * 8 == len(row)
    at, numbers = 32, {}
    fixed = [feature for feature in features if feature.kind in NUMBERS]
    for feature in sorted(fixed, key=lambda feature: -struct.calcsize(f"<{LETTERS[feature.kind]}")):
        [numbers[feature.name]] = struct.unpack_from(f"<{LETTERS[feature.kind]}", row, at)
        at += struct.calcsize(f"<{LETTERS[feature.kind]}")
    variable = [feature for feature in features if feature.kind not in NUMBERS]
    ends = struct.unpack_from(f"<{len(variable)}I", row, at)
    at += 4 * len(variable)
    nulls = row[at : at + (len(features) + 7) // 8]
    at += len(nulls)
    behind = row[(at + 7) // 8 * 8 :]
    cells = {feature.name: behind[a:b] for feature, a, b in zip(variable, (0, *ends), ends, strict=False)}
    values = []
    for place, feature in enumerate(features):
        if nulls[place // 8] >> place % 8 & 1:
            values.append(None)
        elif feature.kind in NUMBERS:
            values.append(numbers[feature.name])
        else:
            values.append(decoded_cell(feature.kind, cells[feature.name]))
    return event, created, values


def decoded_cell(kind, cell):
    member = kind.removeprefix("list[").removesuffix("]")
    if kind in ("str", "bytes"):
        return cell if kind == "bytes" else cell.decode()
    if member in NUMBERS:
        return [value for [value] in struct.iter_unpack(f"<{LETTERS[member]}", cell)]
    [count] = struct.unpack_from("<I", cell)
    ends = struct.unpack_from(f"<{count}I", cell, 4)
    content = cell[4 + 4 * count :]
    return [decoded_cell(member, content[a:b]) for a, b in zip((0, *ends), ends, strict=False)]


def plain(value):
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


@BUSY
@given(tables())
def test_what_is_packed_is_unpacked_and_read_alike_field_by_field(table):
    features, columns, times = table
    rows = pack(*table)
    unpacked = Layout(features).unpack(rows)
    twins = [decoded(features, row) for row in rows]
    assert unpacked.found.tolist() == [True] * len(rows)
    assert unpacked.event_time.tolist() == times[0] == [event for event, _, _ in twins]
    assert unpacked.created_time.tolist() == times[1] == [created for _, created, _ in twins]
    for place, (feature, column) in enumerate(zip(features, columns, strict=True)):
        name = feature.name
        assert unpacked.valid[name].tolist() == [value is not None for value in column]
        values = zip(unpacked.values[name], unpacked.valid[name], strict=True)
        got = [plain(value) if valid else None for value, valid in values]
        assert repr(got) == repr(column) == repr([values[place] for _, _, values in twins])  # NaN, and -0.0
        if feature.kind in NUMBERS:
            assert unpacked.values[name].dtype == np.dtype(NUMBERS[feature.kind])


@BUSY
@given(tables(), st.data())
def test_a_row_that_is_not_there_takes_nothing_from_the_others(table, data):
    features, _, times = table
    rows = pack(*table)
    places = data.draw(st.lists(st.none() | st.integers(0, len(rows) - 1) if rows else st.none(), max_size=9))
    whole, some = Layout(features).unpack(rows), Layout(features).unpack([p if p is None else rows[p] for p in places])
    assert some.found.tolist() == [place is not None for place in places]
    assert some.event_time.tolist() == [NO_TIME if place is None else times[0][place] for place in places]
    for name in whole.values:
        for row, place in enumerate(places):
            valid = place is not None and bool(whole.valid[name][place])
            assert bool(some.valid[name][row]) == valid
            if valid:
                assert repr(plain(some.values[name][row])) == repr(plain(whole.values[name][place]))
            else:
                assert not some.values[name][row]


@BUSY
@given(tables(), st.data())
def test_a_row_with_a_changed_byte_or_cut_short_is_refused(table, data):
    rows = pack(*table)
    if not rows:
        return
    place = data.draw(st.integers(0, len(rows) - 1))
    damaged = bytearray(rows[place])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    cut = rows[place][: data.draw(st.integers(0, len(damaged) - 1))]
    for wrong in (bytes(damaged), cut, rows[place] + b"\0", rows[place] + b"\0" * 8):
        with pytest.raises(RowUnreadable, match="materialize its view again"):
            Layout(table[0]).unpack([*rows[:place], wrong, *rows[place + 1 :]])


def test_a_row_of_other_columns_or_of_another_version_is_refused(monkeypatch):
    features = [Feature("clicks", "int"), Feature("title", "str")]
    [row] = pack(features, [[3], ["a"]], [[1], [1]])
    for others in (features[::-1], features[:1], [Feature("clicks", "float"), features[1]]):
        with pytest.raises(RowUnreadable, match="of another layout"):
            Layout(others).unpack([row])
    monkeypatch.setattr(packed_rows, "LAYOUT_VERSION", packed_rows.LAYOUT_VERSION + 1)
    with pytest.raises(RowUnreadable, match="of another layout"):
        Layout(features).unpack([row])


def test_the_bytes_of_a_row_are_fixed():
    features = [Feature("n", "int"), Feature("s", "str")]
    [row] = pack(features, [[-2], ["ab"]], [[7], [NO_TIME]])
    header = struct.pack("<II", 7, zlib.crc32(b"1\nn int\ns str")) + struct.pack("<qq", 7, -(2**63))
    assert row[8:] == header + struct.pack("<qI", -2, 2) + b"\0" * 4 + b"ab" + b"\0" * 6


@BUSY
@given(tables(), st.integers(0, 3))
def test_arrow_is_packed_to_the_bytes_of_pythons_values(table, skipped):
    features, columns, times = table
    whole = {
        "id": pa.array([f"é{number}" for number in range(len(times[0]))], pa.string()),
        "event_timestamp": pa.array([moment if moment != NO_TIME else 0 for moment in times[0]], pa.int64()),
        "made": pa.array([None if moment == NO_TIME else moment for moment in times[1]], pa.int64()),
    }
    moments = [[0 if moment == NO_TIME else moment for moment in times[0]], times[1]]
    for name in ("event_timestamp", "made"):
        whole[name] = whole[name].cast(pa.timestamp("us", tz="UTC"))
    for feature, column in zip(features, columns, strict=True):
        whole[feature.name] = pa.array(column, ARROW[feature.kind])
    batch = packed(Layout(features), ["id"], pa.RecordBatch.from_pydict(whole).slice(skipped), "made")
    assert batch.rows == pack(features, columns, moments)[skipped:]
    assert batch.keys == entity_keys({"id": whole["id"].to_pylist()})[skipped:]


def test_nulls_where_the_store_has_none_are_refused():
    moment = pa.array([0], pa.timestamp("us", tz="UTC"))
    layout = Layout([Feature("names", "list[str]")])
    for key, at, names, why in (
        (None, moment, ["a"], "column id has 1 nulls"),
        ("u", pa.nulls(1, moment.type), ["a"], "column event_timestamp has 1 nulls"),
        ("u", moment, ["a", None], "lists of column names hold 1 nulls"),
    ):
        columns = {"id": pa.array([key], pa.string()), "event_timestamp": at, "names": pa.array([names])}
        with pytest.raises(ValueError, match=why):
            packed(layout, ["id"], pa.RecordBatch.from_pydict(columns), None)


def test_every_view_of_the_contract_has_a_layout_and_no_two_the_same():
    assert len({Layout(view.features).fingerprint for view in VIEWS}) == len(VIEWS)
    with pytest.raises(ValueError, match="no packed row holds a column of kind map"):
        Layout([Feature("x", "map")])


def test_reading_needs_no_feast():
    program = (
        "import sys, feature_repo.packed.reader, feature_repo.packed.database;"
        "assert not {'feast', 'pyarrow', 'redis', 'psycopg'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
